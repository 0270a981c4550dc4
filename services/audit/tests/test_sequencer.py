"""The one writer: no gap, nothing twice, one order, whatever crashes and however many try."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

import asyncpg
import pytest

from sojourn_audit import sequencer
from sojourn_audit.app import SERVICE
from sojourn_audit.ledger import Altered, Signer
from sojourn_audit.store import SEQUENCER_LOCK
from sojourn_shared.contracts.events import Links
from sojourn_shared.ledger import verify_lines
from sojourn_shared.service import House
from sojourn_shared.signing import PrivateKey

from .conftest import Audit

LOCK_WAITERS = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    """Look until it is true, for at most 5 seconds."""
    async with asyncio.timeout(5):
        while not await true():
            await asyncio.sleep(0.01)


async def held_by_nobody_but(audit: Audit) -> asyncpg.Connection:
    """The sequencer's lock, held by the test: a batch that begins now waits for it."""
    url = audit.house.house.settings.database_url.get_secret_value()
    connection = await asyncpg.connect(url)
    await connection.execute("SELECT pg_advisory_lock($1)", SEQUENCER_LOCK)
    return connection


async def waiters(audit: Audit, count: int) -> None:
    async def are_there() -> bool:
        return len(await audit.sql(LOCK_WAITERS)) == count

    await until(are_there)


async def test_every_event_gets_the_next_place(audit: Audit) -> None:
    """From 0 without gaps, in the order of arrival, and the checkpoint covers them."""
    events = [await audit.hears(name=str(number)) for number in range(5)]
    assert await audit.sequences() == 5
    entries = await audit.entries()
    assert [(entry["seq"], entry["id"]) for entry in entries] == [(n, event.id) for n, event in enumerate(events)]
    assert verify_lines(await audit.lines(), await audit.checkpoint()) == 5
    assert await audit.sql("SELECT count(*) FROM arrivals") == [(0,)]


async def test_batches_give_the_same_tree_as_one(audit: Audit) -> None:
    """However events fall into batches; the recorded time never stands still nor goes back between them."""
    for size in (1, 2, 5, 1, 7):
        await audit.records(size)
        audit.house.clock.advance(timedelta(minutes=-1))  # somebody sets the clock back
    assert verify_lines(await audit.lines(), await audit.checkpoint()) == 16
    moments = [entry["recorded_at"] for entry in await audit.entries()]
    assert moments == sorted(moments)
    assert len(set(moments)) == 5


async def test_an_event_heard_again_is_not_recorded_again(audit: Audit) -> None:
    """Neither while the inbox knows it, nor after the inbox forgot it, nor while it still waits."""
    event = await audit.hears(name="once")

    async def again() -> None:
        await audit.house.hears(
            event.change, event.data.entity, service=event.service, id=event.subject, event_id=event.id
        )

    await again()
    await audit.sql("DELETE FROM inbox")
    await again()
    await audit.sequences()
    await again()
    await audit.sql("DELETE FROM inbox")
    await again()
    assert await audit.sequences() == 0
    assert [entry["id"] for entry in await audit.entries()] == [event.id]


async def test_an_older_state_is_recorded_too(audit: Audit) -> None:
    """Others act on the newest state only; the ledger keeps every event, in the order of arrival."""
    for version in (3, 1, 2):
        await audit.hears("policy.revised", id="01930000-0000-7000-8000-000000000001", version=version)
    await audit.sequences()
    assert [entry["data"]["version"] for entry in await audit.entries()] == [3, 1, 2]


async def test_sentences_call_computers_by_the_name_they_had(audit: Audit) -> None:
    """Learnt from the computer's own events, newest state wins; an unknown one by its id."""
    computer, other = (f"01930000-0000-7000-8000-00000000000{n}" for n in (1, 2))
    links = Links(computer_id=computer)
    await audit.hears("computer.enrolled", id=computer, links=links, name="web-1", version=1)
    await audit.hears("agent.lost", id=computer, links=links, service="expiry")
    await audit.hears("computer.changed", id=computer, links=links, name="web-2", version=3)
    await audit.hears("computer.changed", id=computer, links=links, name="web-1b", version=2)
    await audit.hears("agent.connected", id=computer, links=links, service="expiry")
    await audit.hears("agent.connected", id=other, links=Links(computer_id=other), service="expiry")
    await audit.sequences()
    assert [entry["summary"] for entry in await audit.entries() if entry["source"] == "expiry"] == [
        "The agent of web-1 is not heard of any more",
        "The agent of web-2 is connected",
        f"The agent of {other} is connected",
    ]


async def test_two_sequencers_at_once_give_one_order(audit: Audit) -> None:
    """Both are made to wait for the lock with the same arrivals before them; one takes all, the other finds none."""
    for _ in range(20):
        await audit.hears()
    other = House(SERVICE, audit.house.house.settings, audit.house.clock)
    lock = await held_by_nobody_but(audit)
    try:
        both = asyncio.gather(
            sequencer.sequence_batch(audit.house.house, audit.house.house.parts.signer),
            sequencer.sequence_batch(other, other.parts.signer),
        )
        await waiters(audit, 2)
    finally:
        await lock.close()
    assert sorted(await both) == [0, 20]
    await other.database.close()
    assert verify_lines(await audit.lines(), await audit.checkpoint()) == 20


async def test_two_sequencers_take_turns(audit: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    """While events go on arriving, two replicas write one ledger: every event once, no gap, one chain."""
    monkeypatch.setattr(sequencer, "BATCH", 3)
    other = House(SERVICE, audit.house.house.settings, audit.house.clock)
    arrive = asyncio.gather(*(audit.hears() for _ in range(40)))
    done = 0
    while not arrive.done() or (await audit.sql("SELECT count(*) FROM arrivals"))[0][0]:
        done += sum(
            await asyncio.gather(
                *(sequencer.sequence_batch(house, house.parts.signer) for house in (audit.house.house, other))
            )
        )
    await arrive
    await other.database.close()
    assert done == 40
    assert verify_lines(await audit.lines(), await audit.checkpoint()) == 40
    assert len({entry["id"] for entry in await audit.entries()}) == 40


async def test_a_batch_cut_off_is_done_whole_by_the_next(audit: Audit) -> None:
    """The connection dies after the arrivals were committed and before they were sequenced: none lost, none twice."""
    await audit.records(3)
    events = [await audit.hears() for _ in range(4)]
    lock = await held_by_nobody_but(audit)
    try:
        batch = asyncio.create_task(sequencer.sequence_batch(audit.house.house, audit.house.house.parts.signer))
        await waiters(audit, 1)
        await audit.sql("SELECT pg_terminate_backend(pid) FROM (" + LOCK_WAITERS + ") AS waiting")
    finally:
        await lock.close()
    with pytest.raises(Exception, match=r"terminat|closed"):
        await batch
    assert len(await audit.entries()) == 3
    assert await audit.sequences() == 4
    assert [entry["id"] for entry in await audit.entries()][3:] == [event.id for event in events]
    assert verify_lines(await audit.lines(), await audit.checkpoint()) == 7


async def altered(audit: Audit, statement: str) -> None:
    """What only somebody with the rights of the database's owner can do."""
    await audit.sql("ALTER TABLE ledger DISABLE TRIGGER ALL")
    await audit.sql(statement)
    await audit.sql("ALTER TABLE ledger ENABLE ALWAYS TRIGGER ledger_append_only")


async def test_nothing_is_appended_to_a_ledger_that_is_not_the_signed_one(audit: Audit) -> None:
    """A stored subtree was changed: the sequencer stops with a reason, and the events wait."""
    await audit.records(4)
    await altered(audit, "UPDATE ledger SET hashes = set_byte(hashes, 70, get_byte(hashes, 70) # 1) WHERE seq = 3")
    await audit.hears()
    with pytest.raises(Altered, match="4 entries"):
        await audit.sequences()
    assert await audit.sql("SELECT count(*) FROM arrivals") == [(1,)]


async def test_nothing_is_appended_after_a_forged_checkpoint(audit: Audit) -> None:
    """The last entry was removed and the note rewritten, which nobody can sign: the sequencer stops."""
    await audit.records(1)
    await audit.records(1)
    await altered(audit, "UPDATE ledger SET note = replace(note, E'\\n2\\n', E'\\n1\\n')")
    await audit.hears()
    with pytest.raises(Altered, match="cannot be believed"):
        await audit.sequences()


async def test_a_new_key_goes_on_where_the_old_one_stopped(audit: Audit) -> None:
    """After the ledger's key was changed, the old note's tree is still compared; the new key signs from here on."""
    await audit.records(3)
    await audit.hears()
    signer = Signer(PrivateKey.generate())
    assert await sequencer.sequence_batch(audit.house.house, signer) == 1
    assert signer.key.public.kid != audit.house.house.parts.signer.key.public.kid
    await altered(audit, "UPDATE ledger SET hashes = set_byte(hashes, 70, get_byte(hashes, 70) # 1) WHERE seq = 3")
    await audit.hears()
    with pytest.raises(Altered, match="4 entries"):
        await audit.sequences()
