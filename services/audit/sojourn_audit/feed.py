"""How far the ledger has come, for everybody in this process who waits for news."""

import asyncio
import contextlib

from sojourn_shared.service import House

from .store import Tx

POLL_SECONDS = 1.0  # the wake-up call hurries; this guarantees


class Feed:
    """The size of the ledger as it was last seen. One look at the database serves every open stream."""

    def __init__(self) -> None:
        self.size = 0
        self._grown = asyncio.Condition()

    async def beyond(self, size: int, seconds: float) -> bool:
        """Wait until the ledger holds more than `size` entries; False when it does not after `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._grown:
                await self._grown.wait_for(lambda: self.size > size)
        return self.size > size

    async def look(self, house: House) -> int:
        async with Tx.begin(house, read_only=True) as tx:
            end = await tx.end()
        if end and end.size > self.size:
            self.size = end.size
            async with self._grown:
                self._grown.notify_all()
        return self.size


async def run(house: House) -> None:
    """Look for ever: at each call of the sequencer, of whichever replica."""
    wake = house.database.woken("ledger")
    while True:
        await house.parts.feed.look(house)
        await wake.wait(POLL_SECONDS)
