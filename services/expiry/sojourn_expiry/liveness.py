"""Who went silent: after three missed heartbeats `agent.lost`, unless it was the bus that was silent."""

import asyncio
from datetime import datetime, timedelta

import structlog

from sojourn_shared.service import House

from .store import Tx
from .store import liveness as store

log = structlog.get_logger(__name__)

SILENCE = timedelta(seconds=3 * 70)  # three heartbeats, each 60 ± 10 s after the one before
LOOK_SECONDS = 10.0
BATCH = 500


async def run(house: House) -> None:
    """Look for ever. Time counts only from when this replica could hear: `listening_since` starts anew with the bus."""
    listening_since: datetime | None = None
    while True:
        if not house.bus.up.is_set():
            listening_since = None
            await house.bus.up.wait()
        listening_since = listening_since or house.clock()
        await lose_silent(house, listening_since)
        await asyncio.sleep(LOOK_SECONDS)


async def lose_silent(house: House, listening_since: datetime) -> int:
    """Say `agent.lost` of those that were silent for SILENCE while the bus was up; returns how many."""
    silent_since = house.clock() - SILENCE
    if listening_since > silent_since:
        return 0
    lost = 0
    while True:
        async with Tx.begin(house) as tx:
            ids = await store.lose(tx, silent_since=silent_since, limit=BATCH)
        lost += len(ids)
        if len(ids) < BATCH:
            break
    if lost:
        log.info("agents went silent", agents=lost)
    return lost
