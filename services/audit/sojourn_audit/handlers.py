"""Facts arriving by the bus: all of them."""

from sojourn_shared.contracts.events import Event

from .domain import arrival_of
from .store import Tx


async def on_event(event: Event, tx: Tx) -> None:
    """Keep every event, whatever it tells; the sequencer gives it its place."""
    await tx.add_arrival(arrival_of(event))
