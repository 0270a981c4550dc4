"""Facts arriving by the bus: all of them, as many at once as there are."""

import asyncio
from collections.abc import Sequence

import structlog
from nats.aio.msg import Msg

from sojourn_shared.contracts.events import Event
from sojourn_shared.service import House, inbox

from .domain import arrival_of
from .store import Tx

log = structlog.get_logger(__name__)

AT_ONCE = 200  # messages in one transaction: alone, each would wait for a commit of its own


async def listen(house: House) -> None:
    """Take events from the bus for ever."""
    waiting: asyncio.Queue[Msg] = asyncio.Queue(maxsize=AT_ONCE)

    async def fetch() -> None:
        async for message in house.bus.pull("EVENTS"):
            await waiting.put(message)

    async def take() -> None:
        while True:
            messages = [await waiting.get()]
            while len(messages) < AT_ONCE and not waiting.empty():
                messages.append(waiting.get_nowait())
            await hear_together(house, messages)

    async with asyncio.TaskGroup() as both:  # if one fails the other ends too, and the frame starts this again
        both.create_task(fetch())
        both.create_task(take())


async def hear_together(house: House, messages: Sequence[Msg]) -> None:
    """Keep the events of several messages in one transaction. If that fails, each alone: one bad one stops no other."""
    try:
        events = [inbox.read_event(message.subject, message.data) for message in messages]
        async with Tx.begin(house) as tx:
            new = await tx.first_times([event.id for event in events])
            await keep([event for event in events if event.id in new], tx)
    except Exception as error:
        log.warning("events are taken one by one", count=len(messages), error=repr(error))
        for message in messages:
            await inbox.consume_event(house, message)
    else:
        for message in messages:
            await message.ack()


async def on_event(event: Event, tx: Tx) -> None:
    """Keep an event, whatever it tells; the sequencer gives it its place."""
    await keep([event], tx)


async def keep(events: Sequence[Event], tx: Tx) -> None:
    for event in events:
        if event.entity_kind == "computer":
            await _learn_name(event, tx)
    names = await tx.names_of({event.data.links.computer_id for event in events})
    await tx.add_arrivals([arrival_of(event, names.get(event.data.links.computer_id or "")) for event in events])


async def _learn_name(event: Event, tx: Tx) -> None:
    name, version = event.data.entity.get("name"), event.data.entity.get("version")
    if isinstance(name, str) and isinstance(version, int):
        await tx.learn_name(event.subject, name, version)
