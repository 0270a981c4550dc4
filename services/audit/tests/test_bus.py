"""On the real bus: what a service tells is in the ledger at once, and a killed service loses and repeats nothing."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from sojourn_audit.app import SERVICE
from sojourn_audit.store import SEQUENCER_LOCK
from sojourn_shared.clock import system_clock
from sojourn_shared.contracts.events import Actor, Event, EventData
from sojourn_shared.ids import new_id
from sojourn_shared.ledger import verify_lines
from sojourn_shared.service.bus import Bus
from sojourn_shared.service.testing import OpenHouse
from sojourn_shared.signing import PrivateKey, base64url

from .conftest import Audit

ADA = Actor(kind="account", id="01930000-0000-7000-8000-00000000000a", name="Ada")


@contextlib.asynccontextmanager
async def policy_service(nats: Any) -> AsyncIterator[Callable[[], Awaitable[str]]]:
    """A function that tells of a new policy as the policy service would; returns the event's id once NATS has it."""
    bus = Bus("policy", nats.url, nats.creds("policy"))
    running = asyncio.create_task(bus.run())

    async def tells() -> str:
        policy_id = new_id(system_clock())
        event = Event(
            id=new_id(system_clock()),
            source="sojourn/policy",
            type="sojourn.policy.created",
            subject=policy_id,
            time=system_clock(),
            data=EventData(actor=ADA, entity={"id": policy_id, "version": 1, "name": "Drivers"}),
        )
        await bus.publish(event.bus_subject, event.model_dump_json().encode(), event.id)
        return event.id

    try:
        await bus.up.wait()
        yield tells
    finally:
        await bus.close()
        running.cancel()
        await asyncio.wait([running])


@pytest.fixture
async def audit(house_of: OpenHouse, nats: Any) -> AsyncIterator[Audit]:
    settings = {"ledger_key": base64url(PrivateKey.generate().seed), "nats_url": nats.url}
    async with house_of(SERVICE, **settings, nats_creds=nats.creds("audit")) as house:
        yield Audit(house)


async def recorded(audit: Audit, ids: set[str]) -> list[str]:
    """Which of these events are in the ledger, in its order."""
    rows = await audit.sql("SELECT event_id FROM ledger WHERE event_id = ANY(:ids) ORDER BY seq", ids=list(ids))
    return [row[0] for row in rows]


async def until(true: Callable[[], Awaitable[bool]], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not await true():
            await asyncio.sleep(0.01)


async def test_what_a_service_tells_is_in_the_ledger_within_a_second(audit: Audit, nats: Any) -> None:
    """From the stream's acknowledgement to the signed entry, one event at a time."""
    clock = asyncio.get_running_loop().time
    async with policy_service(nats) as tells, audit.house.house.running():
        first = await tells()
        await until(lambda: _holds(audit, {first}))  # whatever earlier tests left in the stream is heard by then
        lags = []
        for _ in range(20):
            event_id = await tells()
            began = clock()
            await until(lambda event_id=event_id: _holds(audit, {event_id}))  # type: ignore[misc]
            lags.append(clock() - began)
    assert sorted(lags)[10] < 1.0
    assert verify_lines(await audit.lines(), await audit.checkpoint()) >= 21


async def test_a_message_that_is_no_event_is_set_aside_and_stops_no_other(audit: Audit, nats: Any) -> None:
    """They are taken together; with a bad one among them each alone. What came twice is recorded once."""
    async with policy_service(nats) as tells:
        ids = {await tells() for _ in range(5)}
        bus = Bus("policy", nats.url, nats.creds("policy"))
        running = asyncio.create_task(bus.run())
        await bus.up.wait()
        bad = new_id(system_clock())
        await bus.publish(f"sojourn.events.policy.policy.created.{bad}", b'{"id": 7}', bad)
        await bus.close()
        running.cancel()
        await asyncio.wait([running])
        ids |= {await tells() for _ in range(5)}
        async with audit.house.house.running():
            await until(lambda: _holds(audit, ids))
    parked = await audit.sql("SELECT reason FROM parked WHERE subject LIKE :subject", subject=f"%{bad}")
    assert [row[0].partition(":")[0] for row in parked] == ["not an event"]
    assert len(await recorded(audit, ids)) == 10


async def _holds(audit: Audit, ids: set[str]) -> bool:
    return set(await recorded(audit, ids)) == ids


@contextlib.asynccontextmanager
async def process(audit: Audit, nats: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    """`sojourn-audit serve` as a process of its own; killed at the end, if it still runs."""
    settings = audit.house.house.settings
    environment = {
        **os.environ,
        "SOJOURN_DATABASE_URL": settings.database_url.get_secret_value(),
        "SOJOURN_NATS_URL": nats.url,
        "SOJOURN_NATS_CREDS": str(nats.creds("audit")),
        "SOJOURN_LISTEN": "127.0.0.1:0",
        "SOJOURN_LEDGER_KEY": settings.ledger_key.get_secret_value(),
    }
    serving = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "sojourn_audit.app",
        "serve",
        env=environment,
        stderr=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        yield serving
    finally:
        with contextlib.suppress(ProcessLookupError):
            serving.kill()
        await serving.wait()


async def test_a_kill_between_hearing_and_sequencing_loses_and_repeats_nothing(audit: Audit, nats: Any) -> None:
    """The arrivals are committed and acknowledged, the sequencer is held, the process is killed with SIGKILL.

    The next process appends them all, each once; what it is told again by the stream changes nothing.
    """
    lock = await asyncpg.connect(audit.house.house.settings.database_url.get_secret_value())
    async with policy_service(nats) as tells:
        try:
            await lock.execute("SELECT pg_advisory_lock($1)", SEQUENCER_LOCK)
            ids = {await tells() for _ in range(30)}

            async def heard() -> bool:
                rows = await audit.sql("SELECT count(*) FROM arrivals WHERE event_id = ANY(:ids)", ids=list(ids))
                return bool(rows[0][0] == 30)

            async with process(audit, nats) as serving:
                await until(heard)
                serving.kill()
                assert await serving.wait() == -9
            assert await recorded(audit, ids) == []
        finally:
            await lock.close()
        async with process(audit, nats):
            ids.add(await tells())
            await until(lambda: _holds(audit, ids), 40)
    assert len(await recorded(audit, ids)) == 31
    assert verify_lines(await audit.lines(), await audit.checkpoint()) >= 31
