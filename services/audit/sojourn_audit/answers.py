"""Answers that are longer than one transaction: the stream, the export, the time line as CSV. Each in short pieces."""

import asyncio
import csv
import io
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from typing import Any

from sojourn_shared.service import House

from .domain import Filter, Sight, read_line
from .store import Entry, Tx

PIECE = 500  # entries for each read: about half a megabyte in memory
HEARTBEAT_SECONDS = 15.0  # below the 30 to 60 s after which proxies cut a silent connection
STREAM_SECONDS = 300.0  # a role that was taken away, or a service that wants to stop, waits no longer
RETRY_MS = 2000


async def watched(
    house: House, sight: Sight, wanted: Filter, after: int, told: Callable[[Entry], str]
) -> AsyncIterator[bytes]:
    """Entries after `after` that somebody may read and asks for, as server-sent events, as they come."""
    clock = asyncio.get_running_loop().time
    end = clock() + STREAM_SECONDS
    yield b"retry: %d\n\n" % RETRY_MS
    while clock() < end:
        size = house.parts.feed.size  # taken before the look: what comes meanwhile is looked for again
        async with Tx.begin(house, read_only=True) as tx:
            entries = await tx.following(sight, wanted, after=after, limit=PIECE)
        for entry in entries:
            yield f"id: {entry.seq}\ndata: {told(entry)}\n\n".encode()
        if len(entries) == PIECE:
            after = entries[-1].seq
            continue
        after = max(after, size - 1, *(entry.seq for entry in entries))
        if not await house.parts.feed.beyond(size, min(HEARTBEAT_SECONDS, end - clock())):
            yield b": nothing new\n\n"


async def exported(house: House, size: int) -> AsyncIterator[bytes]:
    """The lines of the first `size` entries."""
    for first in range(0, size, PIECE):
        async with Tx.begin(house, read_only=True) as tx:
            lines = await tx.lines(first, min(first + PIECE, size))
        yield b"".join(line + b"\n" for line in lines)


_COLUMNS = ("seq", "time", "type", "summary", "actor", "user", "computer_id", "grant_id", "request_id", "id")


async def policy_csv(house: House, policy_id: str) -> AsyncIterator[bytes]:
    """The time line of a policy, RFC 4180, with a header."""
    yield _rows([_COLUMNS])
    after: tuple[datetime, int] | None = None
    while True:
        async with Tx.begin(house, read_only=True) as tx:
            entries = await tx.policy_story(policy_id, after=after, limit=PIECE)
        if entries:
            yield _rows([[_cell(_told(entry).get(name)) for name in _COLUMNS] for entry in entries])
        if len(entries) < PIECE:
            return
        after = (entries[-1].time, entries[-1].seq)


def _told(entry: Entry) -> dict[str, Any]:
    line = read_line(entry.line)
    return line | {"actor": line["actor"]["name"]}


def _cell(value: Any) -> str:
    """A cell that no spreadsheet takes for a formula: what users may have written starts with a quote then."""
    words = "" if value is None else str(value)
    return "'" + words if words.startswith(("=", "+", "-", "@", "\t", "\r")) else words


def _rows(rows: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()
