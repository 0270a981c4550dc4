"""One transaction: what changes, its events, and the wake-up calls commit together, or not at all."""

import contextlib
import secrets
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

import structlog
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from sojourn_shared.contracts.events import EVENT_TYPES, Actor, Event, EventData, Links
from sojourn_shared.ids import new_id

from .database import WAKE_CHANNEL

if TYPE_CHECKING:
    from .app import House


class Transaction:
    """The base of every service's `Tx`: a connection, the moment, who acts, and the events to be told.

    `now` is taken once, so that everything that one transaction writes has the same time.
    """

    def __init__(self, house: "House", connection: AsyncConnection, actor: Actor, trace: str) -> None:
        self.house = house
        self.connection = connection
        self.actor = actor
        self.trace = trace
        self.now: datetime = house.clock()
        self._events: list[dict[str, Any]] = []
        self._wakes: set[str] = set()

    @classmethod
    @contextlib.asynccontextmanager
    async def begin(
        cls, house: "House", *, actor: Actor | None = None, trace: str | None = None, read_only: bool = False
    ) -> AsyncIterator[Self]:
        """A transaction that commits at the end, events included, or rolls everything back on an error.

        `actor` is the service itself unless given; `trace` a W3C traceparent, or a new one.
        """
        async with house.database.begin(read_only=read_only) as connection:
            tx = cls(house, connection, actor or house.actor, trace or new_trace())
            yield tx
            await tx.flush()

    async def raw(self) -> Any:
        """The asyncpg connection, for the few hot statements that are written as text."""
        return (await self.connection.get_raw_connection()).driver_connection

    def emit(
        self,
        change: str,
        *,
        id: str,
        entity: BaseModel | Mapping[str, Any],
        version: int | None,
        links: Links | None = None,
        because: str | None = None,
        actor: Actor | None = None,
    ) -> str:
        """Say that `change` (`request.approved`) happened to the entity `id`; returns the event's id.

        `version` is the entity's after the change; None for what is not the state of one entity.
        """
        if change not in EVENT_TYPES:
            raise ValueError(f"{change} is not in the vocabulary of events")
        event = Event(
            id=new_id(self.now),
            source=f"sojourn/{self.house.name}",
            type=f"sojourn.{change}",
            subject=id,
            time=self.now,
            traceparent=self.trace,
            data=EventData(
                actor=actor or self.actor,
                links=links or Links(),
                because=because,
                entity=entity.model_dump(mode="json") if isinstance(entity, BaseModel) else dict(entity),
            ),
        )
        self._events.append(
            {
                "event_id": event.id,
                "subject": event.bus_subject,
                "entity": event.entity_kind,
                "entity_id": id,
                "version": version,
                "body": event.model_dump_json().encode(),
                "created_at": self.now,
            }
        )
        self.wake("outbox")
        return event.id

    def wake(self, name: str) -> None:
        """Call the task that waits for `name`, in every replica, once this is committed."""
        self._wakes.add(name)

    async def first_time(self, key: str) -> bool:
        """Record `key` (an event's id, or `<computer>/<report>`); False when it was recorded before."""
        done = await self.connection.execute(
            text("INSERT INTO inbox (id, received_at) VALUES (:id, :now) ON CONFLICT DO NOTHING"),
            {"id": key, "now": self.now},
        )
        return done.rowcount == 1

    def forget(self) -> None:
        """Drop what was to be told: the effect was rolled back."""
        self._events, self._wakes = [], set()

    async def flush(self) -> None:
        """Write the events and wake-up calls; done by `begin` before it commits."""
        if self._events:
            await self.connection.execute(_INSERT_EVENT, self._events)
            structlog.get_logger("sojourn.events").debug("events", changes=[event["subject"] for event in self._events])
            self._events = []
        for name in sorted(self._wakes):
            await self.connection.execute(_NOTIFY, {"channel": WAKE_CHANNEL, "name": name})
        self._wakes = set()


_INSERT_EVENT = text(
    "INSERT INTO outbox (event_id, subject, entity, entity_id, version, body, created_at) "
    "VALUES (:event_id, :subject, :entity, :entity_id, :version, :body, :created_at)"
)
_NOTIFY = text("SELECT pg_notify(:channel, :name)")


def new_trace() -> str:
    """A W3C traceparent for something that begins here."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


def trace_id(traceparent: str) -> str:
    """The 32 hex digits that everything of one request shares."""
    return traceparent.split("-")[1]
