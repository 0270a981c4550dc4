"""The wiring of policy."""

from pathlib import Path

from sojourn_shared import service
from sojourn_shared.service import House, Service

from . import api, handlers, store
from .credentials import Credentials
from .settings import Settings


def _open(house: House) -> Credentials:
    return Credentials.of(house.settings)


SERVICE = Service(
    name="policy",
    title="Policies and computers",
    settings=Settings,
    metadata=store.metadata,
    migrations=Path(__file__).parent / "migrations",
    transaction=store.Tx,
    routers=api.ROUTERS,
    hears={"agent": handlers.on_agent},
    takes={"health": handlers.on_health},
    open=_open,
)


def main() -> None:
    """The command `sojourn-policy serve | migrate | republish`."""
    service.main(SERVICE)


if __name__ == "__main__":
    main()
