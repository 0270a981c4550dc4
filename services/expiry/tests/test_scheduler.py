"""The clock: what is due turns at its moment, in one statement, and says exactly what the domain would have said."""

import asyncio
from datetime import datetime
from typing import Any

from sojourn_expiry import domain, scheduler
from sojourn_expiry.store import Tx, due, rows
from sojourn_expiry.store import grants as store
from sojourn_shared.clock import rfc3339


def window(begins: datetime, until: datetime) -> dict[str, Any]:
    return {"type": "window", "from": rfc3339(begins), "until": rfc3339(until)}


async def test_a_window_begins_and_ends_at_its_moments(yard: Any) -> None:
    """Not before; and the clock knows when to look again."""
    pc = await yard.enrol()
    await yard.assign(pc, duration=window(yard.after(minutes=10), yard.after(minutes=20)))
    (grant,) = await yard.grants()
    house = yard.house.house
    assert grant["status"] == "scheduled"
    yard.pass_time(minutes=9, seconds=50)
    assert await scheduler.turn_all(house) == 10
    assert (await yard.grant(grant["id"]))["status"] == "scheduled"
    yard.pass_time(seconds=10)
    assert await scheduler.turn_all(house) == scheduler.LONGEST_SLEEP_SECONDS
    assert (await yard.grant(grant["id"]))["status"] == "active"
    yard.pass_time(minutes=10)
    await scheduler.turn_all(house)
    over = await yard.grant(grant["id"])
    assert (over["status"], over["delivery"], over["in_force"]) == ("expired", "ending", True)
    assert await yard.changes() == ["grant.scheduled", "grant.activated", "grant.expired"]


async def test_a_clock_that_slept_catches_up_step_by_step(yard: Any) -> None:
    """A whole window passed meanwhile: it began and ended, each with its event."""
    pc = await yard.enrol()
    await yard.assign(pc, duration=window(yard.after(minutes=10), yard.after(minutes=20)))
    yard.pass_time(hours=5)
    await scheduler.turn_all(yard.house.house)
    assert await yard.changes() == ["grant.scheduled", "grant.activated", "grant.expired"]


async def test_time_alone_changes_no_document(yard: Any) -> None:
    """The computer knows the moments; a grant further away than seven days comes in when they are left."""
    pc = await yard.enrol()
    await yard.documents()
    await yard.assign(pc, duration=window(yard.after(days=9), yard.after(days=10)))
    assert await yard.granted(pc) == {}
    yard.pass_time(days=2)
    await scheduler.turn_all(yard.house.house)
    assert len(await yard.granted(pc)) == 1
    yard.pass_time(days=7)
    await yard.documents()  # signed again at half of its life
    await scheduler.turn_all(yard.house.house)
    assert await yard.documents() == 0
    yard.pass_time(days=1)
    await scheduler.turn_all(yard.house.house)
    assert (await yard.grants())[0]["status"] == "expired"


async def test_an_approval_that_nobody_took_up_ends_unheard(yard: Any) -> None:
    """At `take_up_until` + duration: a first use made offline may be on its way until then."""
    pc = await yard.enrol()
    grant_id = await yard.approve(pc, minutes=10, take_up_until=rfc3339(yard.after(hours=1)))
    yard.pass_time(hours=1, minutes=9, seconds=59)
    await scheduler.turn_all(yard.house.house)
    assert (await yard.grant(grant_id))["status"] == "ready"
    yard.pass_time(seconds=1)
    await scheduler.turn_all(yard.house.house)
    assert (await yard.grant(grant_id))["status"] == "expired"


async def test_the_statement_says_what_the_domain_says(yard: Any) -> None:
    """Every kind of grant: status, delivery, next moment, and the event field for field."""
    pc = await yard.enrol("pc-1")
    first_use = {"type": "fixed", "minutes": 5, "starts": "on_first_use"}
    await yard.assign(pc, users={"names": ["alice", "bob"]})
    await yard.assign(pc, duration=first_use | {"take_up_until": rfc3339(yard.after(hours=1))}, max_uses=3)
    await yard.assign(pc, duration=first_use)
    await yard.assign(pc, users={"all": True}, duration=window(yard.after(hours=1), yard.after(hours=9)))
    await yard.approve(pc, not_before=rfc3339(yard.after(hours=1)))
    await yard.starts(pc, await yard.approve(pc))
    failed = await yard.approve(pc)
    await yard.reports(pc, "applied", epoch=1, version=1, grants=[{"id": failed, "applied": False, "reason": "é“\n"}])
    ids = [grant["id"] for grant in await yard.grants()]
    house = yard.house.house
    for _ in range(4):
        yard.pass_time(hours=5)
        async with Tx.begin(house) as tx:
            expected = {grant.id: domain.turned_by_clock(grant, tx.now) for grant in await store.lock(tx, ids)}
            await due.turn(tx)
        async with Tx.begin(house) as tx:
            assert {grant.id: grant for grant in await store.lock(tx, ids)} == expected
        newest = {event.subject: event for event in await yard.house.events() if event.entity_kind == "grant"}
        for grant in expected.values():
            event = newest[grant.id]
            assert event.data.entity == rows.entity(grant)
            assert event.data.links == store.links(grant)
            if grant.updated_at == yard.now:
                assert (event.data.actor, event.service) == (house.actor, "expiry")
                assert event.change == store.OPENED.get(grant.status, f"grant.{grant.status}")
                assert event.bus_subject == f"sojourn.events.expiry.{event.change}.{grant.id}"


async def test_replicas_share_what_is_due(yard: Any) -> None:
    """Four at once turn each grant once."""
    pcs = [await yard.enrol(f"pc-{number}") for number in range(30)]
    await yard.assign(*pcs)
    yard.pass_time(hours=1)

    async def replica() -> int:
        async with Tx.begin(yard.house.house) as tx:
            return await due.turn(tx, limit=10)

    assert sum(await asyncio.gather(*(replica() for _ in range(4)))) == 30
    assert len(await yard.changes("grant.expired")) == 30


async def test_a_change_wakes_the_clock(yard: Any) -> None:
    """A shorter moment than the one it sleeps for is noticed, by the wake-up call of the change."""
    house = yard.house.house
    tasks = [asyncio.ensure_future(house.database.listen()), asyncio.ensure_future(scheduler.run(house))]
    try:
        pc = await yard.enrol()
        await yard.assign(pc, duration={"type": "fixed", "minutes": 1})
        yard.pass_time(minutes=2)
        await yard.approve(pc)
        async with asyncio.timeout(5):
            while await yard.changes("grant.expired") == []:
                await asyncio.sleep(0.01)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
