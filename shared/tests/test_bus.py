"""The bus against the real NATS: events go out once and come in once, whatever is stopped in between."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nats as nats_client
import pytest
from nats.aio.client import Client
from sqlalchemy import MetaData, text

from sojourn_shared.clock import system_clock
from sojourn_shared.contracts import events
from sojourn_shared.ids import new_id
from sojourn_shared.service import House, Park, Service, ServiceSettings, Transaction, inbox
from sojourn_shared.service.bus import ASKS_AT_ONCE
from sojourn_shared.service.nats_accounts import Key, agent_jwt
from sojourn_shared.service.testing import OpenHouse, TestHouse

heard: list[tuple[str, str]] = []
failing: set[str] = set()


async def on_anything(event: events.Event, tx: Transaction) -> None:
    if event.subject in failing:
        raise RuntimeError("this one always fails")
    heard.append((tx.house.name, event.subject))


def service(name: str) -> Service:
    return Service(
        name=name,
        title=name,
        settings=ServiceSettings,
        metadata=MetaData(),
        migrations=Path(__file__).parent / "frame_service" / "migrations",
        transaction=Transaction,
        routers=[],
        hears={"policy": on_anything} if name == "expiry" else {},
    )


async def eventually(holds: Callable[[], Awaitable[bool] | bool], seconds: float = 10) -> None:
    """Return as soon as `holds`; fail after `seconds`."""
    async with asyncio.timeout(seconds):
        while True:
            answer = holds()
            if answer if isinstance(answer, bool) else await answer:
                return
            await asyncio.sleep(0.01)


@pytest.fixture
async def pair(house_of: OpenHouse, nats: Any) -> AsyncIterator[tuple[TestHouse, TestHouse]]:
    """A service that speaks and one that hears, both running."""
    heard.clear()
    failing.clear()
    options = [{"nats_url": nats.url, "nats_creds": nats.creds(name)} for name in ("policy", "expiry")]
    async with (
        house_of(service("policy"), **options[0]) as speaker,
        house_of(service("expiry"), **options[1]) as hearer,
        speaker.house.running(),
        hearer.house.running(),
    ):
        await asyncio.gather(speaker.house.bus.up.wait(), hearer.house.bus.up.wait())
        yield speaker, hearer


async def say(house: House, *, version: int = 1) -> str:
    async with Transaction.begin(house) as tx:
        policy_id = new_id(tx.now)
        tx.emit("policy.created", id=policy_id, entity={"id": policy_id, "version": version}, version=version)
    return policy_id


async def waiting(house: House) -> int:
    async with house.database.begin() as connection:
        found = await connection.execute(text("SELECT count(*) FROM outbox WHERE published_at IS NULL"))
        return int(found.scalar_one())


async def test_what_commits_here_is_heard_there(pair: tuple[TestHouse, TestHouse]) -> None:
    """An event reaches the other service once, and the outbox is empty afterwards."""
    speaker, _ = pair
    said = [await say(speaker.house) for _ in range(20)]
    await eventually(lambda: len([one for one in heard if one[1] in said]) == 20)
    assert await waiting(speaker.house) == 0


async def test_an_outage_of_nats_loses_nothing(pair: tuple[TestHouse, TestHouse], nats: Any) -> None:
    """What is said while NATS is down waits in the outbox, and arrives with no action of anybody."""
    speaker, _ = pair
    nats.stop()
    try:
        said = await say(speaker.house)
        assert await waiting(speaker.house) == 1
    finally:
        nats.start()  # not in a thread: the server ends with the thread that started it
    await eventually(lambda: any(one[1] == said for one in heard), 20)
    assert [one[1] for one in heard].count(said) == 1


async def test_a_message_that_fails_blocks_nobody(pair: tuple[TestHouse, TestHouse]) -> None:
    """The next event is handled while the failing one waits for its next try."""
    speaker, _ = pair
    failing.add(bad := await say(speaker.house))
    good = await say(speaker.house)
    await eventually(lambda: any(one[1] == good for one in heard))
    failing.clear()
    await eventually(lambda: any(one[1] == bad for one in heard))


async def test_what_is_no_event_is_parked_with_its_reason(pair: tuple[TestHouse, TestHouse]) -> None:
    """A message that can never be handled is set aside at once, where an operator finds it."""
    speaker, hearer = pair
    await speaker.house.bus.publish("sojourn.events.policy.policy.created.x", b"junk", "junk-1")

    async def parked() -> bool:
        async with hearer.house.database.begin() as connection:
            rows = (await connection.execute(text("SELECT reason FROM parked"))).all()
        return len(rows) == 1 and "not an event" in rows[0].reason

    await eventually(parked)


async def link_of(nats: Any, computer_id: str) -> Client:
    """A connection with the credential of that computer's link."""
    key, issuer = Key.new("USER"), nats.agent_issuer
    jwt = agent_jwt(issuer.seed, issuer.account, computer_id, key.id, system_clock())
    return await nats_client.connect(
        nats.url, user_jwt_cb=jwt.encode, signature_cb=key.sign, inbox_prefix=f"_INBOX_{computer_id}"
    )


async def test_what_one_computer_forges_fills_no_table(house_of: OpenHouse, nats: Any) -> None:
    """Reports that its keeper never signed are set aside only so far; the next honest one is taken."""
    computer_id = new_id(system_clock())
    taken: list[bytes] = []

    async def take(_computer_id: str, body: bytes, _tx: Transaction) -> None:
        if body.startswith(b"forged"):
            raise Park("signed by nobody")
        taken.append(body)

    options = {"nats_url": nats.url, "nats_creds": nats.creds("expiry")}
    async with (
        house_of(replace(service("expiry"), takes={"refused": take}), **options) as house,
        house.house.running(),
    ):
        agent = await link_of(nats, computer_id)
        subject = f"sojourn.agent.{computer_id}.report.refused"
        for number in range(inbox.PARKED_OF_ONE + 20):
            await agent.jetstream().publish(subject, b"forged %d" % number)
        await agent.jetstream().publish(subject, b"true")
        await eventually(lambda: taken == [b"true"], 20)
        async with house.house.database.begin() as connection:
            kept = (await connection.execute(text("SELECT count(*) FROM parked"))).scalar_one()
        assert kept == inbox.PARKED_OF_ONE
        await agent.close()


async def test_a_flood_of_questions_waits_outside(house_of: OpenHouse, nats: Any) -> None:
    """One computer that asks without end takes no memory here, and everybody is answered once there is room."""
    free = asyncio.Event()

    async def answer(_computer_id: str, _body: bytes, _house: House) -> bytes:
        await free.wait()
        return b"answered"

    computer_id = new_id(system_clock())
    options = {"nats_url": nats.url, "nats_creds": nats.creds("expiry")}
    async with (
        house_of(replace(service("expiry"), answers={"heartbeat": answer}), **options) as house,
        house.house.running(),
    ):
        await house.house.bus.up.wait()
        agent = await link_of(nats, computer_id)
        ask, before = f"sojourn.agent.{computer_id}.ask.heartbeat", len(asyncio.all_tasks())
        for _ in range(5 * ASKS_AT_ONCE):
            await agent.publish(ask, b"{}", reply=f"_INBOX_{computer_id}.nobody")
        await agent.flush()
        await eventually(lambda: len(asyncio.all_tasks()) >= before + ASKS_AT_ONCE)
        await asyncio.sleep(0.2)  # what would come too many would come now
        assert len(asyncio.all_tasks()) < before + ASKS_AT_ONCE + 20
        free.set()
        assert (await agent.request(ask, b"{}", timeout=5)).data == b"answered"
        await agent.close()
