"""The wiring of the gateway: `sojourn-gateway serve | migrate | republish`."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI

from sojourn_shared import service
from sojourn_shared.service import BadSettings, House, Service
from sojourn_shared.signing import PrivateKey, from_base64url

from . import api, bootstrap, callers, front, store
from .forwarding import Forwarding
from .limits import Limits
from .settings import Settings


@dataclass(frozen=True)
class Parts:
    """What only the gateway has."""

    forwarding: Forwarding
    limits: Limits
    first: bootstrap.First | None
    """What the bootstrap file says, when there is one."""


def open_parts(house: House) -> Parts:
    """Raises BadSettings."""
    try:
        key = PrivateKey(from_base64url(house.settings.gateway_key.get_secret_value()))
    except ValueError as error:
        raise BadSettings(f"SOJOURN_GATEWAY_KEY is no seed of a key: {error}.") from None
    path = house.settings.bootstrap_file
    first = bootstrap.read(path) if path else None
    return Parts(Forwarding.to(house.settings.services, key, house.clock), Limits(), first)


@contextlib.asynccontextmanager
async def around(house: House) -> AsyncIterator[None]:
    """The first account stands before anybody is answered; connections to the services are closed at the end."""
    if house.parts.first is not None:
        await bootstrap.apply(house, house.parts.first)
    try:
        yield
    finally:
        await house.parts.forwarding.http.aclose()


def extend(app: FastAPI) -> None:
    front.add_to(app)


SERVICE = Service(
    name="gateway",
    title="Sojourn: gateway",
    settings=Settings,
    metadata=store.metadata,
    migrations=Path(__file__).parent / "migrations",
    transaction=store.Tx,
    routers=[api.accounts, api.keys, api.me],
    open=open_parts,
    around=around,
    authenticate=callers.of_request,
    extend=extend,
    tasks=[callers.tell_refusals],
)


def main() -> None:
    service.main(SERVICE)


if __name__ == "__main__":
    main()
