"""Facts arriving by the bus: all of them."""

from sojourn_shared.contracts.events import Event

from .domain import arrival_of
from .store import Tx


async def on_event(event: Event, tx: Tx) -> None:
    """Keep every event, whatever it tells; the sequencer gives it its place."""
    if event.entity_kind == "computer":
        await _learn_name(event, tx)
    await tx.add_arrival(arrival_of(event, await tx.name_of(event.data.links.computer_id)))


async def _learn_name(event: Event, tx: Tx) -> None:
    name, version = event.data.entity.get("name"), event.data.entity.get("version")
    if isinstance(name, str) and isinstance(version, int):
        await tx.learn_name(event.subject, name, version)
