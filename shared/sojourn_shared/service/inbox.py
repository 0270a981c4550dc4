"""What a service hears: each message once, in one transaction with what it does, and nothing that is out of date.

A message that fails is tried again, later and later, then parked with its reason; it never blocks those behind it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import structlog
from nats.aio.msg import Msg
from pydantic import ValidationError
from sqlalchemy import text

from sojourn_shared.contracts.events import Event

from .problems import is_database_gone

if TYPE_CHECKING:
    from .app import House

log = structlog.get_logger(__name__)

TRIES = 10
PARKED_OF_ONE = 100  # messages kept of one subject: enough to see what is wrong, and no disk is filled with the rest
DATABASE_RETRY_SECONDS = 1.0

EventHandler = Callable[[Event, Any], Awaitable[None]]
ReportHandler = Callable[[str, bytes, Any], Awaitable[None]]


class Park(Exception):
    """This message can never be handled; the reason is kept with it."""


class NotYet(Exception):
    """This message will be right once something else has come; tried again for as long as that takes."""


async def consume_events(house: "House") -> None:
    async for message in house.bus.pull("EVENTS"):
        await consume_event(house, message)


async def consume_event(house: "House", message: Msg) -> None:
    """Handle one event's message and acknowledge it; or have it sent again, or set it aside."""
    await _handle(house, message, lambda subject, body: hear(house, subject, body))


async def consume_reports(house: "House") -> None:
    async for message in house.bus.pull("REPORTS"):
        await _handle(house, message, lambda subject, body: take(house, subject, body))


async def hear(house: "House", subject: str, body: bytes) -> None:
    """Handle one event: the inbox row, the effect and its own events commit together. Raises Park, or what failed."""
    event = read_event(subject, body)
    handler = house.service.hears.get(event.entity_kind) or house.service.hears.get("*")
    if handler is None:
        return
    kind = house.service.transaction
    async with kind.begin(house, actor=event.data.actor, trace=event.traceparent) as tx:
        if await tx.first_time(event.id) and await _is_news(tx.connection, event, house.service.newest_only):
            await handler(event, tx)


async def take(house: "House", subject: str, body: bytes) -> None:
    """Handle one report of a computer. Raises Park, NotYet, or what failed."""
    _, _, computer_id, _, report_kind = subject.split(".")
    handler = house.service.takes.get(report_kind)
    if handler is None:
        raise Park(f"nobody here takes reports of kind {report_kind}")
    async with house.service.transaction.begin(house) as tx:
        await handler(computer_id, body, tx)


def read_event(subject: str, body: bytes) -> Event:
    """The event in a message. Raises Park when it is none, or when its subject, type and source disagree."""
    try:
        event = Event.model_validate_json(body)
    except ValidationError as error:
        raise Park(f"not an event: {error.errors(include_input=False)[0]['msg']}") from None
    if event.bus_subject != subject:
        raise Park(f"the event says {event.bus_subject}, its subject is {subject}")
    return event


async def _is_news(connection: Any, event: Event, newest_only: bool) -> bool:
    """Whether nothing newer of this entity was heard. What is no entity state is always news."""
    version = event.data.entity.get("version")
    if not newest_only or not isinstance(version, int):
        return True
    done = await connection.execute(_HEARD, {"entity": event.entity_kind, "id": event.subject, "version": version})
    return bool(done.rowcount)


_HEARD = text(
    "INSERT INTO heard (entity, entity_id, version) VALUES (:entity, :id, :version) "
    "ON CONFLICT (entity, entity_id) DO UPDATE SET version = excluded.version WHERE heard.version < excluded.version"
)


async def _handle(house: "House", message: Msg, act: Callable[[str, bytes], Awaitable[None]]) -> None:
    while True:
        try:
            await act(message.subject, message.data)
        except Park as reason:
            await park(house, message, str(reason))
        except NotYet as reason:
            log.info("not yet", subject=message.subject, reason=str(reason))
            await message.nak(delay=_delay(message))
        except Exception as error:
            if is_database_gone(error):  # not the message's fault: wait, and hold it
                log.warning("waiting for the database", subject=message.subject, error=repr(error))
                await message.in_progress()
                await asyncio.sleep(DATABASE_RETRY_SECONDS)
                continue
            tries = message.metadata.num_delivered
            log.error("a message failed", subject=message.subject, tries=tries, exc_info=error)
            if tries >= TRIES:
                await park(house, message, repr(error))
            else:
                await message.nak(delay=_delay(message))
        else:
            await message.ack()
        return


async def park(house: "House", message: Msg, reason: str) -> None:
    """Set a message aside, with its reason; it is counted in the metrics and in the log.

    Of one subject only so many are kept: whoever holds the credential of one computer's link can send what its keeper
    never signed as fast as the network carries it.
    """
    log.error("parked", subject=message.subject, reason=reason)
    async with house.database.begin() as connection:
        await connection.execute(
            text(
                "INSERT INTO parked (subject, body, reason, tries, parked_at) "
                "SELECT :subject, :body, :reason, :tries, :now "
                "WHERE (SELECT count(*) FROM parked WHERE subject = :subject) < :most"
            ),
            {
                "subject": message.subject,
                "body": message.data,
                "reason": reason,
                "tries": message.metadata.num_delivered,
                "now": house.clock(),
                "most": PARKED_OF_ONE,
            },
        )
    await message.ack()


def _delay(message: Msg) -> float:
    """Seconds until the next try: 0.2, 0.4, … 30."""
    return float(min(0.1 * 2 ** min(message.metadata.num_delivered, 10), 30))
