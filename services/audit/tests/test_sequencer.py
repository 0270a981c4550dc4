"""The one writer: no gap, nothing twice, one order, whatever crashes and however many try."""

import asyncio

import asyncpg
import pytest

from sojourn_audit import sequencer
from sojourn_audit.ledger import Altered
from sojourn_audit.store import SEQUENCER_LOCK
from sojourn_shared.ledger import verify_lines
from sojourn_shared.service import House

from .conftest import Audit


async def test_every_event_gets_the_next_place(audit: Audit) -> None:
    """From 0 without gaps, in the order of arrival, and the checkpoint covers them."""
    events = [await audit.hears(name=str(number)) for number in range(5)]
    assert await audit.sequences() == 5
    entries = await audit.entries()
    assert [(entry["seq"], entry["id"]) for entry in entries] == [(n, event.id) for n, event in enumerate(events)]
    assert verify_lines(await audit.lines(), await audit.checkpoint()) == 5
    assert await audit.sql("SELECT count(*) FROM arrivals") == [(0,)]
