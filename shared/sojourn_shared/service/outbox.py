"""The relay: publishes what the outbox holds, in order, each event under its own id, until the stream has it."""

import asyncio
from typing import TYPE_CHECKING

import nats.errors
import structlog
from sqlalchemy import text

from .bus import BusGone

if TYPE_CHECKING:
    from .app import House

log = structlog.get_logger(__name__)

BATCH = 500
POLL_SECONDS = 1.0  # the wake-up call hurries; this guarantees


async def relay(house: "House") -> None:
    """Publish for ever. Replicas share the work; an event may be sent twice, and is stored once."""
    wake = house.database.woken("outbox")
    while True:
        await house.bus.up.wait()
        try:
            while await publish_batch(house):
                pass
        except (BusGone, nats.errors.Error, TimeoutError) as error:
            log.warning("events wait in the outbox", reason=str(error) or repr(error))
            await asyncio.sleep(POLL_SECONDS)
        await wake.wait(POLL_SECONDS)


async def publish_batch(house: "House") -> int:
    """Publish up to BATCH waiting events; returns how many."""
    async with house.database.begin() as connection:
        rows = (await connection.execute(_WAITING, {"limit": BATCH})).all()
        if rows:
            await asyncio.gather(*(house.bus.publish(row.subject, row.body, row.event_id) for row in rows))
            await connection.execute(_PUBLISHED, {"ids": [str(row.id) for row in rows], "now": house.clock()})
    return len(rows)


async def republish(house: "House") -> int:
    """Mark the newest event of every entity as waiting again, under its old id: for a new or restored consumer."""
    async with house.database.begin() as connection:
        done = await connection.execute(_REPUBLISH)
    return done.rowcount


_WAITING = text(
    "SELECT id, event_id, subject, body FROM outbox WHERE published_at IS NULL "
    "ORDER BY id LIMIT :limit FOR UPDATE SKIP LOCKED"
)
# An array of text: for one of bigint, asyncpg would ask each new connection about its types (10 ms, and 3 MiB there).
_PUBLISHED = text("UPDATE outbox SET published_at = :now WHERE id = ANY(CAST(CAST(:ids AS text[]) AS bigint[]))")
_REPUBLISH = text(
    "UPDATE outbox SET published_at = NULL WHERE version IS NULL OR id IN "
    "(SELECT max(id) FROM outbox WHERE version IS NOT NULL GROUP BY entity, entity_id)"
)
