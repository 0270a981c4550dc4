"""A real PostgreSQL that syncs, and a real NATS, on a throw-away folder: what every bench stands on."""

import asyncio
import contextlib
import secrets
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sojourn_embedded.files import closed_folder, own, write_secret
from sojourn_embedded.nats_server import NatsServer, free_port, nats_binary
from sojourn_embedded.postgres import Postgres, copy_binaries, wheel_binaries
from sojourn_embedded.process import Identity
from sojourn_embedded.testing import TestNats, provision_as_provisioner
from sojourn_shared.clock import system_clock
from sojourn_shared.service import House, Service
from sojourn_shared.service.database import migrate
from sojourn_shared.service.nats_accounts import PROVISIONER, Accounts
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
        with _postgres(folder) as postgres, _nats(folder) as nats:
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


@contextlib.contextmanager
def _nats(folder: Path) -> Iterator[TestNats]:
    keys = folder / "nats-keys"
    keys.mkdir(0o700)
    own_uid = Identity.caller().uid != 0 or closed_folder(nats_binary())
    server = NatsServer(
        folder=folder / "nats",
        identity=Identity.caller() if own_uid else Identity(64191, 64191),
        port=free_port(),
        log=folder / "nats.log",
    )
    accounts = Accounts.kept(None, system_clock())
    own(server.folder, server.identity)
    config = accounts.server_config(port=server.port, store=server.folder / "jetstream")
    write_secret(server.folder / "nats.conf", config, server.identity)
    server.start()
    try:
        running = TestNats(server, accounts, keys)
        asyncio.run(provision_as_provisioner(running.url, running.creds(PROVISIONER)))
        yield running
    finally:
        server.stop()
