"""The pool: as many connections as are needed, and few while nothing happens."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from sqlalchemy import text

from sojourn_shared.service.database import FEWEST, LATELY_SECONDS, Database
from sojourn_shared.service.testing import fresh_database

BURST = 6


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[Database]:
    async with fresh_database(postgres_url) as url:
        opened = Database(url, application_name="pool-test")
        try:
            yield opened
        finally:
            await opened.close()


async def burst(database: Database) -> None:
    """Six transactions at once."""
    async with AsyncExitStack() as held:
        for _ in range(BURST):
            await held.enter_async_context(database.begin())


async def sessions(database: Database) -> int:
    async with database.begin() as connection:
        count = text("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pool-test'")
        return int((await connection.execute(count)).scalar_one())


async def test_what_a_burst_opened_stays_while_the_burst_lasts(database: Database) -> None:
    """The second of two bursts finds the connections of the first."""
    await burst(database)
    await burst(database)
    assert await sessions(database) == BURST


async def test_connections_that_nobody_needs_any_more_are_closed(database: Database) -> None:
    """Once single transactions follow each other, few sessions are left in PostgreSQL."""
    await burst(database)
    async with asyncio.timeout(20 * LATELY_SECONDS):
        while await sessions(database) > FEWEST:
            await asyncio.sleep(LATELY_SECONDS / 10)


async def test_more_than_the_pool_keeps_wait_their_turn(database: Database) -> None:
    """Forty transactions at once all come through, though there are never so many connections."""

    async def once() -> int:
        return await sessions(database)

    found = await asyncio.gather(*(once() for _ in range(40)))
    assert max(found) <= 16
