"""Heartbeats and other questions: the time is signed, whoever holds less gets the document, and silence is noticed."""

import hashlib
from datetime import timedelta
from typing import Any

import msgspec

from sojourn_expiry.handlers import on_heartbeat, on_rules
from sojourn_expiry.liveness import SILENCE, lose_silent
from sojourn_shared.contracts import wire
from sojourn_shared.signing import verify


async def test_the_time_is_signed_over_the_agents_own_nonce(yard: Any) -> None:
    """For that computer, with the newest version: an old answer fits no new question."""
    pc = await yard.enrol()
    await yard.documents()
    answer = await yard.beat(pc, nonce="mine")
    payload = verify(answer.time, "sojourn-time", {yard.signer.kid: yard.signer.public})
    time = msgspec.json.decode(payload, type=wire.SignedTime)
    assert (time.computer_id, time.nonce, time.server_time) == (pc.id, "mine", yard.now)
    assert (time.epoch, time.version) == (1, (await yard.document(pc)).version)


async def test_whoever_holds_the_newest_gets_no_document(yard: Any) -> None:
    """Less, by version or by epoch, gets it; the same does not."""
    pc = await yard.enrol()
    assert (await yard.beat(pc)).document is None  # none was written yet
    await yard.documents()
    version = (await yard.document(pc)).version
    assert (await yard.beat(pc, version=version)).document is None
    assert (await yard.beat(pc, version=version - 1)).document is not None
    assert (await yard.beat(pc, version=version + 1, epoch=0)).document is not None


async def test_an_agent_that_holds_more_gets_a_document_above_it(yard: Any) -> None:
    """An old database was restored: the next document overtakes what the computer holds."""
    pc = await yard.enrol()
    await yard.documents()
    ahead = (await yard.document(pc)).version + 10**9
    assert (await yard.beat(pc, version=ahead)).document is None
    assert await yard.documents() == 1
    after = await yard.beat(pc, version=ahead)
    assert yard.read(after.document).version == ahead + 1


async def test_a_claimed_version_that_cannot_be_moves_nothing(yard: Any) -> None:
    """Heartbeats are not signed: whoever could send one cannot use the numbers up."""
    pc = await yard.enrol()
    await yard.documents()
    await yard.beat(pc, version=2**60)
    assert await yard.documents() == 0


async def test_what_is_no_heartbeat_and_who_is_unknown_gets_no_answer(yard: Any) -> None:
    """Nothing is stored of it either."""
    pc = await yard.enrol()
    house = yard.house.house
    for body in (b"", b"{}", b'{"nonce": 1}', b"\xff"):
        assert await on_heartbeat(pc.id, body, house) is None
    assert await yard.beat(pc, nonce="n" * 257) is None
    assert await yard.beat(yard.stranger()) is None
    assert await yard.changes() == []


async def test_no_rule_set_is_known_and_the_answer_says_so_at_once(yard: Any) -> None:
    """Empty bytes have another digest than was asked for: never taken for a set."""
    pc = await yard.enrol()
    digest = hashlib.sha256(b"a set").hexdigest()
    body = await on_rules(pc.id, wire.encode(wire.AskRules(digest=digest)), yard.house.house)
    assert body == b""
    assert hashlib.sha256(body).hexdigest() != digest


async def test_coming_and_going_is_said_once_each(yard: Any) -> None:
    """The first heartbeat connects, three missed ones lose, the next one connects again; others say nothing."""
    pc = await yard.enrol()
    began = yard.now
    await yard.beat(pc)
    yard.pass_time(seconds=60)
    await yard.beat(pc)
    yard.pass_time(seconds=SILENCE.total_seconds() - 1)
    assert await lose_silent(yard.house.house, began) == 0
    yard.pass_time(seconds=2)
    assert await lose_silent(yard.house.house, began) == 1
    assert await lose_silent(yard.house.house, began) == 0
    await yard.beat(pc)
    events = await yard.house.events()
    assert [event.change for event in events] == ["agent.connected", "agent.lost", "agent.connected"]
    versions = [event.data.entity["version"] for event in events]
    assert versions == sorted(set(versions))
    assert versions[1] == int(events[1].time.timestamp() * 1000)
    assert not events[1].data.entity["connected"]


async def test_silence_while_the_bus_was_down_loses_nobody(yard: Any) -> None:
    """Time counts from when this service could hear again."""
    pc = await yard.enrol()
    await yard.beat(pc)
    yard.pass_time(hours=1)
    back = yard.now - SILENCE + timedelta(seconds=1)
    assert await lose_silent(yard.house.house, back) == 0
    yard.pass_time(seconds=1)
    assert await lose_silent(yard.house.house, back) == 1
    assert await yard.changes("agent.lost") == ["agent.lost"]
    assert pc.id
