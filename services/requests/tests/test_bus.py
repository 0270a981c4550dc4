"""On the real bus: an agent's connection asks, a person decides, and the person waiting hears of it."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import msgspec

from sojourn_shared.contracts import wire

COMPUTER = "01930000-0000-7000-8000-0000000000c1"


class Listening:
    """What an agent's connection heard on its `decision` subject."""

    def __init__(self, client: Any) -> None:
        self._client, self._heard = client, asyncio.Queue[wire.Decision]()

    async def open(self) -> None:
        async def heard(message: Any) -> None:
            self._heard.put_nowait(msgspec.json.decode(message.data, type=wire.Decision))

        await self._client.subscribe(f"sojourn.agent.{COMPUTER}.decision", cb=heard)
        await self._client.flush()
        await self._client.flush()

    async def hears(self, status: str) -> wire.Decision:
        async with asyncio.timeout(10):
            while (decision := await self._heard.get()).status != status:
                pass
        return decision


async def eventually(what: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await what():
            await asyncio.sleep(0.02)


async def test_an_agent_asks_a_person_approves_and_the_agent_hears(bus_house: Any) -> None:
    """A signed report on the work queue, a decision over REST, a push, and the same answer when it is asked for."""
    house, agent = bus_house.house, await bus_house.agent(COMPUTER)
    waiting = Listening(agent)
    await waiting.open()
    async with house.test.house.running():
        report = house.wish_report()
        await agent.jetstream().publish(f"sojourn.agent.{COMPUTER}.report.request", house.signed(report).encode())
        assert (await waiting.hears("pending")).request_id == report.id
        approved = await house.bob.approves(report.id, note="go on")
        assert approved.status_code == 200
        heard = await waiting.hears("approved")
        assert (heard.request_id, heard.by_name, heard.note) == (report.id, "bob", "go on")
        question = wire.encode(wire.AskDecision(request_id=report.id))
        answer = await agent.request(f"sojourn.agent.{COMPUTER}.ask.decision", question, timeout=5)
        assert msgspec.json.decode(answer.data, type=wire.Decision) == heard
        question = wire.encode(wire.AskTerms(user="alice", application=wire.Application(path="/usr/bin/id")))
        answer = await agent.request(f"sojourn.agent.{COMPUTER}.ask.terms", question, timeout=5)
        assert msgspec.json.decode(answer.data, type=wire.TermsAnswer).approvers == ["ada", "bob", "carol"]


async def test_a_decision_made_while_the_bus_was_away_is_pushed_when_it_returns(bus_house: Any) -> None:
    """The service went down between its commit and the push: nothing is lost."""
    house = bus_house.house
    report = await house.takes(house.wish_report())
    await house.bob.declines(report.id, "not now")
    waiting = Listening(await bus_house.agent(COMPUTER))
    await waiting.open()
    async with house.test.house.running():
        assert (await waiting.hears("declined")).note == "not now"
        assert await house.told() == []


async def test_the_clock_is_woken_and_expires_what_is_due(bus_house: Any) -> None:
    """A new request wakes it; what is over by then expires, and its computer hears of it."""
    house = bus_house.house
    waiting = Listening(await bus_house.agent(COMPUTER))
    await waiting.open()
    async with house.test.house.running():
        first = (await house.alice.asks("alice")).json()["id"]
        house.clock.advance(timedelta(days=1))
        await house.alice.asks("alice", facts={"arguments": []})

        async def expired() -> bool:
            return bool((await house.bob.sees(first)).json()["status"] == "expired")

        await eventually(expired)
        assert (await waiting.hears("expired")).request_id == first
