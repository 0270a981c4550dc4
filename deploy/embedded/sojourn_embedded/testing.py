"""Fixtures for the tests of every part: a real PostgreSQL and a real NATS, thrown away at the end of the session."""

import asyncio
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nats as nats_client
import pytest

from sojourn_shared.clock import system_clock
from sojourn_shared.service.nats_accounts import PROVISIONER, Accounts, AgentIssuer, provision

from .files import closed_folder, own, write_secret
from .nats_server import NatsServer, free_port, nats_binary
from .postgres import Postgres, copy_binaries, wheel_binaries
from .process import Identity

# As root the servers run under uids that no OS user has; PostgreSQL refuses to be root.
_POSTGRES, _NATS = Identity(64190, 64190), Identity(64191, 64191)


@pytest.fixture(scope="session")
def throw_away_folder() -> Iterator[Path]:
    """A folder that every uid may traverse, as pytest's own folders are not."""
    with tempfile.TemporaryDirectory(prefix="sojourn-test-", ignore_cleanup_errors=True) as folder:
        path = Path(folder)
        path.chmod(0o711)
        yield path


@pytest.fixture(scope="session")
def postgres_url(throw_away_folder: Path) -> Iterator[str]:
    """URL of the superuser of a real PostgreSQL that forgets to fsync: `postgresql://postgres:…@127.0.0.1:…/postgres`."""
    unreachable = Identity.caller().uid == 0 and closed_folder(wheel_binaries())
    server = Postgres(
        folder=throw_away_folder / "postgres",
        identity=_own_uid(_POSTGRES),
        password=secrets.token_hex(8),
        log=throw_away_folder / "postgres.log",
        port=free_port(),
        forgetful=True,
        binaries=copy_binaries(throw_away_folder / "binaries") if unreachable else None,
    )
    server.start()
    try:
        yield server.url()
    finally:
        server.stop()


@dataclass
class TestNats:
    """A real server with the real accounts, streams and durable consumers. `stop` and `start` make an outage."""

    __test__ = False

    server: NatsServer
    accounts: Accounts
    folder: Path

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def agent_issuer(self) -> AgentIssuer:
        """`.seed` and `.account`, as `agent_jwt` takes them."""
        return self.accounts.agent_issuer

    def creds(self, user: str) -> Path:
        """The `.creds` file of a service, of `provisioner` or of `sys`."""
        file = self.folder / f"{user}.creds"
        if not file.exists():
            write_secret(file, self.accounts.credentials(user))
        return file

    def start(self) -> None:
        self.server.start()

    def stop(self) -> None:
        self.server.stop()


@pytest.fixture(scope="session")
def nats(throw_away_folder: Path) -> Iterator[TestNats]:
    """A real NATS as `TestNats`; its streams keep what earlier tests published."""
    with running_nats(throw_away_folder) as running:
        yield running


@contextmanager
def running_nats(folder: Path) -> Iterator[TestNats]:
    """A NATS in `folder` for the time of a block, with the accounts, streams and consumers that Sojourn ships."""
    keys = folder / "nats-keys"
    keys.mkdir(0o700)
    server = NatsServer(
        folder=folder / "nats",
        identity=_own_uid(_NATS) if not closed_folder(nats_binary()) else Identity.caller(),
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


async def provision_as_provisioner(url: str, credentials: Path) -> None:
    """Make the streams and durable consumers."""
    connection = await nats_client.connect(url, user_credentials=str(credentials), allow_reconnect=False)
    try:
        await provision(connection)
    finally:
        await connection.close()


def _own_uid(identity: Identity) -> Identity:
    return identity if Identity.caller().uid == 0 else Identity.caller()
