"""Writes, signs, stores and sends the documents of dirty computers; no lock is held while waiting for NATS.

A crash before the push is repaired three times over: by the note of what was pushed, by the computer's next heartbeat,
and by the dirty mark, which goes only with the commit of a newer document.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

import structlog

from sojourn_shared.contracts import wire
from sojourn_shared.service import House

from . import document
from .domain import Grant
from .keys import StateKeys
from .store import Tx, asking, computers, grants
from .store.computers import Computer, Signed
from .store.transaction import DOCUMENTS

log = structlog.get_logger(__name__)

PUSHED_AGAIN = 500  # at most, in one go
BATCH = 50  # one short transaction; at some 0.2 ms each, nobody waits long for a row
POLL_SECONDS = 1.0  # the wake-up call hurries; this guarantees, and finds what is to be signed again
NOTED_WITHIN = timedelta(seconds=2)  # a push that is not noted by then did not happen


async def run(house: House) -> None:
    """Publish for ever. Replicas share the work."""
    wake = house.database.woken(DOCUMENTS)
    keys: StateKeys = house.parts
    async with Tx.begin(house) as tx:
        await computers.mark_outdated_dirty(tx, epoch=keys.epoch, kid=keys.signer.kid)
    while True:
        unwritable: set[str] = set()  # tried again after the pause, and never in the way of the others
        while await publish_batch(house, unwritable):
            pass
        await push_again(house)
        await wake.wait(POLL_SECONDS)


async def publish_batch(house: House, unwritable: set[str]) -> int:
    """Write, sign and send up to BATCH documents; returns how many computers were looked at.

    Adds to `unwritable` those whose document cannot be written: they stay dirty.
    """
    async with Tx.begin(house) as tx:
        dirty = await computers.take_dirty(tx, limit=BATCH, but=unwritable)
        if not dirty:
            return 0
        held = await grants.in_documents(tx, [computer.id for computer in dirty])
        terms, max_offline = await asking.current(tx)
        signed: list[Signed] = []
        for computer in dirty:
            try:
                signed.append(
                    sign(
                        computer, held[computer.id], keys=house.parts, now=tx.now, terms=terms, max_offline=max_offline
                    )
                )
            except Exception as error:
                log.error("a document cannot be written", computer=computer.id, exc_info=error)
                unwritable.add(computer.id)
        if signed:
            await computers.store(tx, signed)
    await push(house, signed)
    return len(dirty)


async def push(house: House, documents: Sequence[Signed]) -> None:
    """Send each to its computer, and note what went out."""
    sent = [
        one
        for one in documents
        if await house.bus.push(one.computer_id, "revoke" if one.taken_away else "grant", one.jws.encode())
    ]
    if sent:
        await computers.note_pushed(house, sent)


async def push_again(house: House) -> None:
    """Send what was signed and, by a crash or while NATS was away, not sent."""
    if house.bus.up.is_set():
        waiting = await computers.unpushed(house, signed_before=house.clock() - NOTED_WITHIN, limit=PUSHED_AGAIN)
        await push(house, waiting)


def sign(
    computer: Computer,
    held: Sequence[tuple[Grant, int]],
    *,
    keys: StateKeys,
    now: datetime,
    terms: wire.Asking,
    max_offline: timedelta,
) -> Signed:
    """The computer's next document."""
    version = document.next_version(max(computer.version, computer.held_version), now)
    payload = document.build(
        computer.id,
        held,
        epoch=keys.epoch,
        version=version,
        now=now,
        max_offline=max_offline,
        asking=terms,
    )
    jws = keys.signer.sign(payload, "sojourn-state")
    if len(jws) > wire.DOCUMENT_LIMIT:
        raise ValueError(f"the document has {len(jws)} bytes, more than any agent takes ({wire.DOCUMENT_LIMIT})")
    decommissioned = computer.status == "decommissioned"  # nobody is going to hold it for long
    return Signed(
        computer_id=computer.id,
        epoch=keys.epoch,
        version=version,
        kid=keys.signer.kid,
        jws=jws,
        renew_at=None if decommissioned else computers.renewal_due(now, max_offline),
        taken_away=computer.taken_away,
    )
