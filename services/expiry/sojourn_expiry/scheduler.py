"""The clock: sleeps until the next due moment, woken by every change, then turns all that is due in one statement."""

import structlog

from sojourn_shared.service import House

from .store import Tx, due
from .store.transaction import CLOCK

log = structlog.get_logger(__name__)

LONGEST_SLEEP_SECONDS = 30.0  # the wall clock may be set meanwhile, and a wake-up call be lost
CONTENDED_SECONDS = 0.05  # what is due is in another transaction's hands


async def run(house: House) -> None:
    """Turn what is due, for ever. Replicas share the work."""
    wake = house.database.woken(CLOCK)
    while True:
        await wake.wait(await turn_all(house))


async def turn_all(house: House) -> float:
    """Turn everything that is due now; returns the seconds until the next moment (at most LONGEST_SLEEP_SECONDS)."""
    while await turn_batch(house):
        pass
    async with Tx.begin(house, read_only=True) as tx:
        moment = await due.next_moment(tx)
        if moment is None:
            return LONGEST_SLEEP_SECONDS
        seconds = (moment - tx.now).total_seconds()
    return min(max(seconds, CONTENDED_SECONDS), LONGEST_SLEEP_SECONDS)


async def turn_batch(house: House) -> int:
    """One transaction each for what begins or ends, and for what comes within sight; returns how many grants."""
    async with Tx.begin(house) as tx:
        turned = await due.turn(tx)
    async with Tx.begin(house) as tx:
        announced = await due.announce(tx)
    if turned:
        log.info("grants turned by the clock", grants=turned)
    return turned + announced
