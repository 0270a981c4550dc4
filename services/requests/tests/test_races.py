"""Races, made to happen: a row is held until both sides wait for it."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError

from sojourn_requests import scheduler


async def test_two_approvers_race_and_one_decision_stands(house: Any) -> None:
    """Whoever commits first decides; the other is told who did, and only one approval is announced."""
    asked = (await house.alice.asks("alice")).json()["id"]
    async with house.row_held(asked, until_waiting=2):
        both = asyncio.gather(house.bob.approves(asked), house.carol.approves(asked))
        await asyncio.sleep(0)
    won, lost = sorted(await both, key=lambda answer: answer.status_code)
    assert (won.status_code, lost.status_code) == (200, 409)
    assert won.json()["decision"]["by_name"] in lost.json()["detail"]
    assert await house.events_of(asked) == ["request.submitted", "request.approved"]


async def test_approval_and_cancellation_race_and_one_stands(house: Any) -> None:
    """Never both: either the grant is minted, or the request is cancelled."""
    asked = (await house.alice.asks("alice")).json()["id"]
    async with house.row_held(asked, until_waiting=2):
        both = asyncio.gather(house.bob.approves(asked), house.alice.cancels(asked))
        await asyncio.sleep(0)
    statuses = sorted(answer.status_code for answer in await both)
    assert statuses == [200, 409]
    request = (await house.bob.sees(asked)).json()
    assert (request["status"] == "approved") == (request["grant_id"] is not None)
    assert len(await house.events_of(asked)) == 2


async def test_an_approval_under_way_is_not_expired(house: Any) -> None:
    """It began in time and holds the row: the clock leaves it, and comes back to find it decided."""
    asked = (await house.alice.asks("alice")).json()["id"]
    async with house.row_held(asked, until_waiting=1):
        approval = asyncio.create_task(house.bob.approves(asked))
        async with asyncio.timeout(10):
            await house.somebody_waits()
        house.clock.advance(timedelta(days=1))
        assert await scheduler.expire_due(house.test.house) == scheduler.HELD_SECONDS
    assert (await approval).status_code == 200
    await scheduler.expire_due(house.test.house)
    assert await house.events_of(asked) == ["request.submitted", "request.approved"]


async def test_what_expired_first_is_not_approved(house: Any) -> None:
    """The clock and the approver wait for the same row in this order: the approver finds it expired."""
    asked = (await house.alice.asks("alice")).json()["id"]
    house.clock.advance(timedelta(days=1))
    async with house.row_held(asked, until_waiting=1):
        approval = asyncio.create_task(house.bob.approves(asked))
        await asyncio.sleep(0)
    assert (await approval).json()["type"] == "/problems/not-pending"
    assert await scheduler.expire_due(house.test.house) == scheduler.LONGEST_SLEEP_SECONDS
    assert await house.events_of(asked) == ["request.submitted", "request.expired"]


async def test_simultaneous_wishes_cannot_pass_a_limit(house: Any) -> None:
    """Ten at once, three allowed a day: three are approved without a person, the others go to people."""
    await house.trusts("alice", daily_limit_per_user=3)
    await house.ada.changes("/settings/requests", max_pending_per_user=20)
    wishes = [house.alice.asks("alice", facts={"arguments": [str(number)]}) for number in range(10)]
    answers = [answer.json() for answer in await asyncio.gather(*wishes)]
    assert sorted(answer["status"] for answer in answers) == ["approved"] * 3 + ["pending"] * 7
    failed = {check["name"] for answer in answers for check in answer["checks"] if not check["passed"]}
    assert failed == {"daily_limit"}


async def test_simultaneous_wishes_for_the_same_are_one_request(house: Any) -> None:
    """One is made, the others join it."""
    answers = await asyncio.gather(*(house.alice.asks("alice") for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] * 7 + [201]
    assert len({answer.json()["id"] for answer in answers}) == 1


async def test_a_wish_under_way_does_not_outlive_its_computer(house: Any) -> None:
    """It read that the computer is managed and waits for a row; the decommissioning waits for it, and cancels it."""
    twin = (await house.alice.asks("alice")).json()["id"]
    house.clock.advance(timedelta(days=2))
    async with house.row_held(twin, until_waiting=2):
        wish = asyncio.create_task(house.alice.asks("alice"))
        await house.somebody_waits()
        gone = asyncio.create_task(house.hears_computer(version=2, status="decommissioned"))
        await asyncio.sleep(0)
    await asyncio.gather(wish, gone)
    assert await house.events_of(wish.result().json()["id"]) == ["request.submitted", "request.cancelled"]
    assert (await house.ada.gets("/requests", status="pending")).json()["items"] == []


async def test_the_clock_expires_many_in_one_go_and_knows_when_to_come_back(house: Any) -> None:
    """Set-based, an event for each; then it sleeps until the next is due."""
    await house.ada.changes("/settings/requests", max_pending_per_user=20, pending_minutes=10)
    ids = [(await house.alice.asks("alice", facts={"arguments": [str(number)]})).json()["id"] for number in range(3)]
    house.clock.advance(timedelta(minutes=9, seconds=30))
    late = (await house.alice.asks("alice", facts={"arguments": ["late"]})).json()["id"]
    assert await scheduler.expire_due(house.test.house) == pytest.approx(30)
    house.clock.advance(timedelta(seconds=30))
    assert await scheduler.expire_due(house.test.house) == scheduler.LONGEST_SLEEP_SECONDS
    for request_id in ids:
        assert await house.events_of(request_id) == ["request.submitted", "request.expired"]
    assert (await house.bob.sees(late)).json()["status"] == "pending"
    expired = (await house.bob.sees(ids[0])).json()
    assert (expired["status"], expired["version"], expired["decision"]) == ("expired", 2, None)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE requests SET status = 'approved'",
        "UPDATE requests SET status = 'declined'",
        "UPDATE requests SET status = 'cancelled'",
        "UPDATE requests SET status = 'revoked'",
        "UPDATE requests SET grant_id = 'g'",
        "UPDATE requests SET decided_by = 'bob'",
    ],
)
async def test_the_database_refuses_what_the_domain_never_does(house: Any, statement: str) -> None:
    """Transitions are guarded twice."""
    await house.alice.asks("alice")
    with pytest.raises(IntegrityError):
        async with house.test.house.database.begin() as connection:
            await connection.exec_driver_sql(statement)
