"""A real PostgreSQL that syncs, and a real NATS, on a throw-away folder: what every bench stands on."""

import contextlib
import secrets
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sojourn_embedded.files import closed_folder
from sojourn_embedded.nats_server import free_port
from sojourn_embedded.postgres import Postgres, copy_binaries, wheel_binaries
from sojourn_embedded.process import Identity
from sojourn_embedded.testing import TestNats, running_nats
from sojourn_shared.service import House, Service
from sojourn_shared.service.database import migrate
from sojourn_shared.service.testing import fresh_database


@dataclass(frozen=True)
class Servers:
    """`postgres_url` is the superuser's: a bench makes its own databases."""

    postgres_url: str
    nats: TestNats


@contextlib.contextmanager
def servers() -> Iterator[Servers]:
    with tempfile.TemporaryDirectory(prefix="sojourn-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o711)
        with _postgres(folder) as postgres, running_nats(folder) as nats:
            yield Servers(postgres.url(), nats)


@contextlib.asynccontextmanager
async def house_of(servers: Servers, service: Service, **settings: Any) -> AsyncIterator[House]:
    """A service on a fresh database, migrated; nothing of it runs by itself."""
    async with fresh_database(servers.postgres_url) as url:
        values = {"database_url": url, "nats_url": servers.nats.url, "nats_creds": servers.nats.creds(service.name)}
        house = House(service, service.settings.model_validate(values | settings))
        try:
            await migrate(house.database, service.migrations)
            yield house
        finally:
            await house.database.close()


@contextlib.contextmanager
def _postgres(folder: Path) -> Iterator[Postgres]:
    root = Identity.caller().uid == 0
    server = Postgres(
        folder=folder / "postgres",
        identity=Identity(64190, 64190) if root else Identity.caller(),
        password=secrets.token_hex(8),
        log=folder / "postgres.log",
        port=free_port(),
        binaries=copy_binaries(folder / "binaries") if root and closed_folder(wheel_binaries()) else None,
    )
    server.start()
    try:
        yield server
    finally:
        server.stop()
