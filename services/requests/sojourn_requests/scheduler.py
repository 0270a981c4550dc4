"""What runs beside the app: the clock that expires what nobody decided, and the messenger to the people waiting."""

from sojourn_requests.store import EXPIRE_BATCH, Tx
from sojourn_shared.service import House
from sojourn_shared.service.bus import BusGone

LONGEST_SLEEP_SECONDS = 60.0  # the wake-up call hurries; this guarantees, also when the wall clock was moved
SHORTEST_SLEEP_SECONDS = 0.05
HELD_SECONDS = 0.5  # what is due and not taken is just being decided by somebody
RESEND_SECONDS = 5.0


async def expire(house: House) -> None:
    """Expire requests at their time, for ever; sleeps until the next one is due, or a new one comes."""
    wake = house.database.woken("clock")
    while True:
        await wake.wait(await expire_due(house))


async def expire_due(house: House) -> float:
    """Expire everything that is due; answers the seconds until there may be more."""
    async with Tx.begin(house) as tx:
        expired = await tx.expire_due()
    if expired == EXPIRE_BATCH:
        return 0.0
    async with Tx.begin(house, read_only=True) as tx:
        due = await tx.next_expiry()
    if due is None:
        return LONGEST_SLEEP_SECONDS
    seconds = (due - house.clock()).total_seconds()
    if seconds <= 0:
        return HELD_SECONDS
    return min(max(seconds, SHORTEST_SLEEP_SECONDS), LONGEST_SLEEP_SECONDS)


async def tell(house: House) -> None:
    """Push to computers what their people wait to hear, for ever. Replicas share the work."""
    wake = house.database.woken("decisions")
    while True:
        await house.bus.up.wait()
        while await push_batch(house):
            pass
        await wake.wait(RESEND_SECONDS)


async def push_batch(house: House) -> int:
    """Send what waits, oldest first; returns how many. Raises BusGone, and then everything still waits.

    A push may be sent twice, or be lost with the connection: the computer asks for the decision when it returns.
    """
    async with Tx.begin(house) as tx:
        waiting = await tx.take_pushes()
        for push in waiting:
            if not await house.bus.push(push.computer_id, "decision", push.body):
                raise BusGone("NATS is not connected")
    return len(waiting)
