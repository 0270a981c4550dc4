"""The tables of the ledger and every query on them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Index,
    LargeBinary,
    MetaData,
    Select,
    Table,
    Text,
    and_,
    func,
    or_,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import insert

from sojourn_shared.ledger import Checkpoint, Tree
from sojourn_shared.service import Transaction

from .domain import Arrival, Filter, Sight
from .ledger import Leaf, Node, Span, subtree_root

metadata = MetaData()


def _event_columns() -> list[Column[Any]]:
    return [
        Column("event_id", Text, nullable=False, unique=True),
        Column("type", Text, nullable=False),
        Column("time", DateTime(timezone=True), nullable=False),
        Column("actor_id", Text, nullable=False),
        Column("actor_name", Text, nullable=False),
        Column("policy_id", Text),
        Column("request_id", Text),
        Column("grant_id", Text),
        Column("computer_id", Text),
        Column("user_name", Text),
    ]


arrivals = Table(
    "arrivals",  # a queue: an arrival leaves it in the transaction that appends its entry
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=True),
    *_event_columns(),
    Column("told", LargeBinary, nullable=False),
)
computer_names = Table(
    "computer_names",  # so that a sentence says what people call a computer
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
)
ledger = Table(
    "ledger",  # append-only, without gaps: triggers refuse everything else
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    *_event_columns(),
    Column("recorded_at", DateTime(timezone=True), nullable=False),
    Column("line", LargeBinary, nullable=False),  # the bytes that were hashed
    Column("hashes", LargeBinary, nullable=False),  # the leaf's, then those of the perfect subtrees that it completes
    Column("note", Text),  # the signed checkpoint, in the last entry of each batch
    CheckConstraint("seq >= 0", name="ledger_from_zero"),
    CheckConstraint("length(hashes) > 0 AND length(hashes) % 32 = 0", name="ledger_whole_hashes"),
)
for _name, _column in (
    ("policy", ledger.c.policy_id),
    ("request", ledger.c.request_id),
    ("grant", ledger.c.grant_id),
    ("computer", ledger.c.computer_id),
    ("user", ledger.c.user_name),
):
    Index(f"ledger_by_{_name}", _column, ledger.c.seq, postgresql_where=_column.is_not(None))
Index("ledger_by_actor", ledger.c.actor_id, ledger.c.seq)
Index("ledger_by_actor_name", ledger.c.actor_name, ledger.c.seq)
Index("ledger_by_type", ledger.c.type, ledger.c.seq, postgresql_ops={"type": "text_pattern_ops"})
Index("ledger_by_time", ledger.c.time, postgresql_using="brin", postgresql_with={"autosummarize": True})
Index("ledger_by_record", ledger.c.recorded_at, postgresql_using="brin", postgresql_with={"autosummarize": True})

SEQUENCER_LOCK = 0x4C_45_44_47_45_52  # any number that all replicas share


@dataclass(frozen=True)
class Entry:
    """An entry as it is read: its line's bytes and its hashes."""

    seq: int
    time: datetime
    recorded_at: datetime
    line: bytes
    hashes: bytes


@dataclass(frozen=True)
class Waiting:
    """An arrival as the sequencer sees it."""

    id: int
    event_id: str
    told: bytes


@dataclass(frozen=True)
class End:
    """The right end of the ledger: its last entry, with the checkpoint signed for it."""

    size: int
    leaf_hash: bytes
    recorded_at: datetime
    note: str


class Tx(Transaction):
    """A transaction on the ledger."""

    # --- arriving and sequencing

    async def first_times(self, event_ids: Sequence[str]) -> set[str]:
        """Record the ids of events in the inbox; returns those that were not there before."""
        unnest = text(
            "INSERT INTO inbox (id, received_at) SELECT id, :now FROM unnest(CAST(:ids AS text[])) AS id "
            "ON CONFLICT DO NOTHING RETURNING id"
        )
        # In order of the ids: two replicas that record the same ones wait for each other, never both.
        rows = await self.connection.execute(unnest, {"ids": sorted(set(event_ids)), "now": self.now})
        return {row.id for row in rows}

    async def add_arrivals(self, arrived: Sequence[Arrival]) -> None:
        """Keep arrivals until they are sequenced."""
        if arrived:
            rows = [_arrival_row(one) for one in arrived]
            await self.connection.execute(insert(arrivals).on_conflict_do_nothing(), rows)
            self.wake("arrivals")

    async def learn_name(self, computer_id: str, name: str, version: int) -> None:
        """Remember what a computer is called; an older word changes nothing."""
        said = insert(computer_names).values(id=computer_id, name=name, version=version)
        newest = {"name": said.excluded.name, "version": said.excluded.version}
        older = computer_names.c.version < said.excluded.version
        await self.connection.execute(said.on_conflict_do_update(index_elements=["id"], set_=newest, where=older))

    async def names_of(self, computer_ids: Iterable[str | None]) -> dict[str, str]:
        """What these computers are called, as far as it is known."""
        ids = [one for one in computer_ids if one]
        query = select(computer_names.c.id, computer_names.c.name).where(computer_names.c.id.in_(ids))
        return {row.id: row.name for row in await self.connection.execute(query)} if ids else {}

    async def become_sequencer(self) -> None:
        """Wait until no other replica appends; nobody else does until this transaction ends."""
        await self.connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": SEQUENCER_LOCK})

    async def waiting(self, limit: int) -> list[Waiting]:
        """The oldest arrivals, in the order in which they will stand in the ledger.

        One that stands there already is dropped: it was sent again so much later that its inbox row was forgotten.
        """
        while rows := await (await self.raw()).fetch(
            "SELECT id, event_id, told FROM arrivals ORDER BY id LIMIT $1", limit
        ):
            known = await self._known([row["event_id"] for row in rows])
            if known:
                await (await self.raw()).execute("DELETE FROM arrivals WHERE event_id = ANY($1)", list(known))
            new = [row for row in rows if row["event_id"] not in known]
            if new:
                return [Waiting(row["id"], row["event_id"], row["told"]) for row in new]
        return []

    async def append(
        self, waiting: Sequence[Waiting], leaves: Sequence[Leaf], recorded_at: datetime, note: str
    ) -> None:
        """Move arrivals into the ledger, one leaf for each; the last one carries the checkpoint."""
        await (await self.raw()).execute(
            _MOVE,
            [one.id for one in waiting],
            [leaf.seq for leaf in leaves],
            [leaf.line for leaf in leaves],
            [leaf.hashes for leaf in leaves],
            recorded_at,
            leaves[-1].seq,
            note,
        )
        self.wake("ledger")

    async def _known(self, event_ids: Sequence[str]) -> set[str]:
        rows = await (await self.raw()).fetch(
            "SELECT event_id FROM unnest($1::text[]) AS asked (event_id) "  # few beside the ledger: by its index
            "WHERE EXISTS (SELECT FROM ledger WHERE ledger.event_id = asked.event_id)",
            event_ids,
        )
        return {row["event_id"] for row in rows}

    # --- the tree

    async def end(self) -> End | None:
        """The right end of the ledger; None while it is empty."""
        row = await (await self.raw()).fetchrow(
            "SELECT seq, substr(hashes, 1, 32) AS leaf_hash, recorded_at, note FROM ledger ORDER BY seq DESC LIMIT 1"
        )
        return End(row["seq"] + 1, row["leaf_hash"], row["recorded_at"], row["note"]) if row else None

    async def note_at(self, size: int) -> str | None:
        """The checkpoint that was signed when the ledger had `size` entries; None when none was."""
        note: str | None = await (await self.raw()).fetchval("SELECT note FROM ledger WHERE seq = $1", size - 1)
        return note

    async def nodes(self, nodes: Iterable[Node]) -> dict[Node, bytes]:
        """The roots of perfect subtrees that are complete."""
        wanted = list(nodes)
        rows = await (await self.raw()).fetch(
            "SELECT seq, hashes FROM ledger WHERE seq = ANY($1)", [node.seq for node in wanted]
        )
        hashes = {row["seq"]: row["hashes"] for row in rows}
        return {node: subtree_root(hashes[node.seq], node.level) for node in wanted}

    async def peaks(self, size: int) -> list[bytes]:
        """The roots of the perfect subtrees that a tree of `size` consists of, from left to right."""
        nodes = Span(0, size).nodes()
        found = await self.nodes(nodes)
        return [found[node] for node in nodes]

    async def checkpoint(self, size: int) -> Checkpoint:
        """The checkpoint of the ledger as it was when it had `size` entries, unsigned."""
        return Checkpoint(size, Tree(size, await self.peaks(size)).root())

    async def path(self, spans: Sequence[Span]) -> list[bytes]:
        """The hash of each subtree."""
        found = await self.nodes(node for span in spans for node in span.nodes())
        return [span.hash(found) for span in spans]

    # --- reading

    async def entry(self, seq: int, sight: Sight) -> Entry | None:
        query = _entries(sight).where(ledger.c.seq == seq)
        row = (await self.connection.execute(query)).one_or_none()
        return _entry(row) if row else None

    async def newest(self, sight: Sight, wanted: Filter, *, before: int | None, limit: int) -> list[Entry]:
        """Entries with the newest first, only those before the entry `before`."""
        query = _entries(sight, wanted).order_by(ledger.c.seq.desc()).limit(limit)
        return await self._read(query if before is None else query.where(ledger.c.seq < before))

    async def following(
        self, sight: Sight, wanted: Filter, *, after: int, limit: int, recorded_after: datetime | None = None
    ) -> list[Entry]:
        """Entries in order, only those after the entry `after` (-1: all)."""
        query = _entries(sight, wanted).where(ledger.c.seq > after).order_by(ledger.c.seq).limit(limit)
        return await self._read(query.where(ledger.c.recorded_at > recorded_after) if recorded_after else query)

    async def lines(self, first: int, end: int) -> list[bytes]:
        """The lines of the entries from `first` to before `end`."""
        rows = await (await self.raw()).fetch(
            "SELECT line FROM ledger WHERE seq >= $1 AND seq < $2 ORDER BY seq", first, end
        )
        return [row["line"] for row in rows]

    async def policy_totals(self, policy_id: str) -> Mapping[str, Any] | None:
        """What the entries of one policy come to; None when there are none."""
        row = await (await self.raw()).fetchrow(_POLICY_TOTALS, policy_id)
        return row if row and row["events"] else None

    async def policy_name_line(self, policy_id: str) -> bytes | None:
        """The line of the newest entry that tells the policy's own state."""
        query = select(ledger.c.line).where(ledger.c.policy_id == policy_id, ledger.c.type.like("policy.%"))
        line: bytes | None = await self.connection.scalar(query.order_by(ledger.c.seq.desc()).limit(1))
        return line

    async def policy_story(self, policy_id: str, *, after: tuple[datetime, int] | None, limit: int) -> list[Entry]:
        """The entries of one policy in the order of the time at which they happened."""
        query = select(*_COLUMNS).where(ledger.c.policy_id == policy_id)
        if after:
            query = query.where(func.row(ledger.c.time, ledger.c.seq) > func.row(*after))
        return await self._read(query.order_by(ledger.c.time, ledger.c.seq).limit(limit))

    async def _read(self, query: Select[Any]) -> list[Entry]:
        return [_entry(row) for row in await self.connection.execute(query)]


_COLUMNS = (ledger.c.seq, ledger.c.time, ledger.c.recorded_at, ledger.c.line, ledger.c.hashes)


def _arrival_row(arrival: Arrival) -> dict[str, Any]:
    actor, links = arrival.actor, arrival.links
    row = {"event_id": arrival.event_id, "type": arrival.type, "time": arrival.time, "told": arrival.told}
    row |= {"actor_id": actor.id, "actor_name": actor.name, "user_name": links.user}
    return row | links.model_dump(exclude={"user"})


def _entry(row: Any) -> Entry:
    return Entry(row.seq, row.time, row.recorded_at, row.line, row.hashes)


def _entries(sight: Sight, wanted: Filter | None = None) -> Select[Any]:
    """Entries that somebody may read and asks for."""
    query = select(*_COLUMNS)
    if not sight.everything:
        query = query.where(or_(ledger.c.user_name.in_(sight.os_users), ledger.c.actor_id == sight.caller_id))
    if wanted is None:
        return query
    for name in ("policy_id", "request_id", "grant_id", "computer_id"):
        if (value := getattr(wanted, name)) is not None:
            query = query.where(ledger.c[name] == value)
    if wanted.user is not None:
        query = query.where(ledger.c.user_name == wanted.user)
    if wanted.actor is not None:
        query = query.where(or_(ledger.c.actor_id == wanted.actor, ledger.c.actor_name == wanted.actor))
    if wanted.type is not None:
        family = wanted.type.removesuffix("*")
        exactly = ledger.c.type == wanted.type
        query = query.where(ledger.c.type.startswith(family, autoescape=True) if family != wanted.type else exactly)
    moments = [ledger.c.time >= wanted.since] if wanted.since else []
    moments += [ledger.c.time < wanted.until] if wanted.until else []
    return query.where(and_(*moments)) if moments else query


MOMENT = timedelta(microseconds=1)
"""The smallest step between two moments in the ledger."""

_MOVE = """
WITH moved AS (DELETE FROM arrivals WHERE id = ANY($1::bigint[]) RETURNING *)
INSERT INTO ledger (
    seq, event_id, type, "time", actor_id, actor_name, policy_id, request_id, grant_id, computer_id, user_name,
    recorded_at, line, hashes, note
)
SELECT leaf.seq, event_id, type, "time", actor_id, actor_name, policy_id, request_id, grant_id, computer_id, user_name,
    $5, leaf.line, leaf.hashes, CASE WHEN leaf.seq = $6 THEN $7 END
FROM unnest($1::bigint[], $2::bigint[], $3::bytea[], $4::bytea[]) AS leaf (id, seq, line, hashes)
JOIN moved USING (id) ORDER BY leaf.seq
"""
_POLICY_TOTALS = """
WITH story AS (
    SELECT type, "time", grant_id, computer_id, user_name FROM ledger WHERE policy_id = $1
), counts AS (
    SELECT type, count(*) AS many FROM story GROUP BY type
)
SELECT count(*) AS events, min("time") AS first_at, max("time") AS last_at,
    count(DISTINCT grant_id) AS grants, count(DISTINCT computer_id) AS computers,
    count(*) FILTER (WHERE type = 'elevation.started') AS elevations,
    array_remove(array_agg(DISTINCT user_name), NULL) AS users,
    (SELECT coalesce(json_object_agg(type, many ORDER BY type), '{}') FROM counts)::text AS by_type
FROM story
"""
