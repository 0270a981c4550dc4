"""One service's PostgreSQL: the engine, migrations under an advisory lock, and the wake-up calls between replicas."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import structlog
from sqlalchemy import Connection, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry

log = structlog.get_logger(__name__)

WAKE_CHANNEL = "sojourn_wake"
POOL_SIZE = 8
FEWEST = 2
LATELY_SECONDS = 0.5
_MIGRATION_LOCK = 0x50_4A_52_4E  # any number that all replicas share


class Wake:
    """A wake-up call that any replica may give, with the transaction that made the work. Polling guarantees."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def call(self) -> None:
        self._event.set()

    async def wait(self, seconds: float) -> None:
        """Return when called, or after `seconds`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._event.wait(), seconds)
        self._event.clear()


class AsNeeded(AsyncAdaptedQueuePool):
    """Keeps as many connections as were in use at once lately, or FEWEST: each is a process of 2 to 5 MiB there.

    They stay for as long as a burst lasts, because a new one takes as long as ten short transactions.
    """

    _most = _most_before = 0
    _since = 0.0

    def _do_get(self) -> ConnectionPoolEntry:
        record = super()._do_get()
        self._most = max(self._most, self.checkedout())
        return record

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        if (now := time.monotonic()) > self._since + LATELY_SECONDS:
            self._most_before, self._most, self._since = self._most, self.checkedout(), now
        if self.checkedin() + self.checkedout() <= max(FEWEST, self._most, self._most_before):
            super()._do_return_conn(record)
            return
        try:
            record.close()
        finally:
            self._dec_overflow()


class Database:
    """A pool of connections to one database, and one more that listens."""

    def __init__(self, url: str, *, application_name: str) -> None:
        """`url` is `postgresql://role:password@host:port/database`."""
        parsed = make_url(url)
        self._dsn = parsed.set(drivername="postgresql").render_as_string(hide_password=False)
        self.engine: AsyncEngine = create_async_engine(
            parsed.set(drivername="postgresql+asyncpg"),
            poolclass=AsNeeded,
            pool_size=POOL_SIZE,
            max_overflow=POOL_SIZE,
            pool_use_lifo=True,  # the one that was used last: its plans and catalogs are warm
            pool_timeout=5,
            pool_pre_ping=False,
            connect_args={"server_settings": {"application_name": application_name, "timezone": "UTC"}},
        )
        self._wakes: dict[str, Wake] = {}

    def woken(self, name: str) -> Wake:
        """The wake-up call of that name in this process."""
        return self._wakes.setdefault(name, Wake())

    @contextlib.asynccontextmanager
    async def begin(self, *, read_only: bool = False) -> AsyncIterator[AsyncConnection]:
        """A connection in a transaction that commits at the end, or rolls back on an error."""
        async with self.engine.connect() as connection:
            if read_only:
                await connection.execution_options(postgresql_readonly=True)
            async with connection.begin():
                yield connection

    async def listen(self) -> None:
        """Pass on wake-up calls for ever; connects again when the connection goes."""
        connection = await asyncpg.connect(self._dsn)
        gone = asyncio.Event()
        try:
            connection.add_termination_listener(lambda *_: gone.set())
            await connection.add_listener(WAKE_CHANNEL, lambda _c, _pid, _channel, name: self.woken(name).call())
            for wake in self._wakes.values():  # whatever was called while nobody listened
                wake.call()
            await gone.wait()
        finally:
            with contextlib.suppress(Exception):
                await connection.close(timeout=1)
        raise ConnectionError("the listening connection was closed")

    async def writable(self) -> None:
        """Write one row, or raise: a full disk answers reads for a long time."""
        async with self.begin() as connection:
            await connection.execute(
                text(
                    "INSERT INTO health (id, written_at) VALUES (1, now()) "
                    "ON CONFLICT (id) DO UPDATE SET written_at = excluded.written_at"
                )
            )

    async def close(self) -> None:
        await self.engine.dispose()


async def migrate(database: Database, migrations: Path) -> None:
    """Bring the schema to the newest step. Replicas that start together take turns."""
    async with database.begin() as connection:
        await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
        if not await connection.run_sync(_is_newest, migrations):
            await connection.run_sync(_upgrade, migrations)


def _is_newest(connection: Connection, migrations: Path) -> bool:
    """Whether the last step (`NNNN_….py`, revision `NNNN`) was made; Alembic's answer would cost 5 MiB for good."""
    last = max((step.name.partition("_")[0] for step in migrations.glob("[0-9]*_*.py")), default="")
    if connection.execute(text("SELECT to_regclass('alembic_version')")).scalar() is None:
        return False
    return [row.version_num for row in connection.execute(text("SELECT version_num FROM alembic_version"))] == [last]


def _upgrade(connection: Connection, migrations: Path) -> None:
    from alembic.config import Config  # noqa: PLC0415 - needed at the first start of a version, and by no other
    from alembic.runtime.environment import EnvironmentContext  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(migrations))
    config.set_main_option("version_locations", str(migrations))
    config.set_main_option("path_separator", "os")
    script = ScriptDirectory.from_config(config)

    def steps(revision: Any, _context: Any) -> Any:
        return script._upgrade_revs("head", revision)

    with EnvironmentContext(config, script, fn=steps) as environment:
        environment.configure(connection=connection, transactional_ddl=False)  # ours is the transaction
        environment.run_migrations()
