"""The wiring of the audit service."""

from dataclasses import dataclass, field
from pathlib import Path

from sojourn_shared import service
from sojourn_shared.service import House, Service
from sojourn_shared.signing import PrivateKey, from_base64url

from . import api, feed, handlers, sequencer, store
from .feed import Feed
from .ledger import Signer
from .settings import Settings


@dataclass(frozen=True)
class Parts:
    """What only this service has."""

    signer: Signer
    feed: Feed = field(default_factory=Feed)


def open_parts(house: House) -> Parts:
    settings: Settings = house.settings
    return Parts(Signer(PrivateKey(from_base64url(settings.ledger_key.get_secret_value().strip()))))


SERVICE = Service(
    name="audit",
    title="Sojourn audit",
    settings=Settings,
    metadata=store.metadata,
    migrations=Path(__file__).parent / "migrations",
    transaction=store.Tx,
    routers=[api.routes],
    hears={"*": handlers.on_event},
    newest_only=False,
    listen=handlers.listen,
    tasks=[sequencer.run, feed.run],
    open=open_parts,
)


def main() -> None:
    service.main(SERVICE)


if __name__ == "__main__":
    main()
