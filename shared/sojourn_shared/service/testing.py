"""Fixtures for the tests of a service: a real database with its migrations, the app, and callers who hold tokens."""

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import httpx
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from pydantic import BaseModel
from sqlalchemy import Connection, MetaData, text
from sqlalchemy.engine import make_url

from sojourn_shared.clock import ManualClock
from sojourn_shared.contracts.events import Actor, Event, EventData, Links
from sojourn_shared.ids import new_id
from sojourn_shared.signing import PrivateKey

from . import inbox
from .app import House, Service, build
from .auth import Caller, mint
from .database import migrate
from .schema import FRAME
from .transaction import new_trace

NO_NATS = "nats://127.0.0.1:9"  # nobody listens there: a test never meets the NATS of somebody else
START = datetime(2026, 11, 2, 9, 0, tzinfo=UTC)
ADMIN = Caller(
    id="01930000-0000-7000-8000-00000000000a",
    kind="account",
    name="Ada",
    roles=frozenset({"administrator"}),
    os_users=("ada",),
)


def person(name: str, *roles: str, os_users: tuple[str, ...] | None = ()) -> Caller:
    """A caller of that name; the id is made of the name, the same each time."""
    number = int.from_bytes(name.encode().ljust(6, b"\0")[:6])
    return Caller(
        id=f"01930000-0000-7000-8000-{number:012x}",
        kind="account",
        name=name,
        roles=frozenset(roles),
        os_users=os_users,
    )


@dataclass
class TestHouse:
    """A service under test: no NATS; what it would say is in the outbox, what it hears is given by `hears`."""

    __test__ = False

    house: House
    app: Any
    clock: ManualClock
    gateway_key: PrivateKey

    def client(self, caller: Caller | None = ADMIN) -> httpx.AsyncClient:
        """A client that calls as the gateway would for `caller`; None sends no token. Paths start at /api/v1."""

        def sign(request: httpx.Request) -> None:
            if caller is not None:
                token = mint(caller, self.house.name, self.gateway_key, self.clock())
                request.headers["Authorization"] = f"Bearer {token}"

        async def hook(request: httpx.Request) -> None:
            sign(request)

        return httpx.AsyncClient(
            transport=httpx.ASGITransport(app=self.app, raise_app_exceptions=False),
            base_url="http://service/api/v1",
            event_hooks={"request": [hook]},
        )

    async def events(self, *kinds: str) -> list[Event]:
        """What the outbox holds, in order; only of those kinds (`request.approved`) when given."""
        async with self.house.database.begin(read_only=True) as connection:
            rows = await connection.execute(text("SELECT body FROM outbox ORDER BY id"))
            events = [Event.model_validate_json(row.body) for row in rows]
        return [event for event in events if not kinds or event.change in kinds]

    async def hears(
        self,
        change: str,
        entity: BaseModel | Mapping[str, Any],
        *,
        service: str,
        id: str,
        links: Links | None = None,
        actor: Actor | None = None,
        event_id: str | None = None,
    ) -> Event:
        """Deliver an event of another service, exactly as the bus would."""
        event = Event(
            id=event_id or new_id(self.clock()),
            source=f"sojourn/{service}",
            type=f"sojourn.{change}",
            subject=id,
            time=self.clock(),
            traceparent=new_trace(),
            data=EventData(
                actor=actor or Actor(kind="system", id=service, name="Sojourn"),
                links=links or Links(),
                entity=entity.model_dump(mode="json") if isinstance(entity, BaseModel) else dict(entity),
            ),
        )
        await inbox.hear(self.house, event.bus_subject, event.model_dump_json().encode())
        return event

    async def takes(self, computer_id: str, kind: str, jws: str) -> None:
        """Deliver a computer's report, exactly as the bus would."""
        await inbox.take(self.house, f"sojourn.agent.{computer_id}.report.{kind}", jws.encode())

    async def schema_differences(self) -> list[Any]:
        """How the migrated schema differs from the tables in code."""
        async with self.house.database.begin() as connection:
            return await connection.run_sync(_differences, self.house.service.metadata)


def _differences(connection: Connection, metadata: MetaData) -> list[Any]:
    everything = MetaData()
    for source in (FRAME, metadata):
        for table in source.sorted_tables:
            table.to_metadata(everything)
    context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": False})
    found = compare_metadata(context, everything)
    return [difference for difference in found if "alembic_version" not in str(difference)]


OpenHouse = Callable[..., contextlib.AbstractAsyncContextManager[TestHouse]]


@pytest.fixture
def house_of(postgres_url: str) -> OpenHouse:
    """`async with house_of(SERVICE, clock=…, **settings) as house`: a fresh, migrated database of that service."""

    @contextlib.asynccontextmanager
    async def open_house(service: Service, *, clock: ManualClock | None = None, **settings: Any) -> AsyncIterator[Any]:
        clock = clock or ManualClock(START)
        gateway_key = PrivateKey.generate()
        async with fresh_database(postgres_url) as url:
            values = {"database_url": url, "gateway_keys": gateway_key.public.text, "nats_url": NO_NATS, **settings}
            house = House(service, service.settings.model_validate(values), clock)
            try:
                await migrate(house.database, service.migrations)
                yield TestHouse(house, build(house), clock, gateway_key)
            finally:
                await house.database.close()

    return open_house


@contextlib.asynccontextmanager
async def fresh_database(postgres_url: str) -> AsyncIterator[str]:
    """The URL of an empty database, dropped at the end."""
    name = "test_" + new_id(START + timedelta(0)).replace("-", "")
    admin = await asyncpg.connect(postgres_url)
    try:
        await admin.execute(f'CREATE DATABASE "{name}"')
        try:
            yield make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
        finally:
            await admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    finally:
        await admin.close()
