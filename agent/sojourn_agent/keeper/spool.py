"""What must not be lost, in SQLite with `synchronous=FULL`: reports until acknowledged, first uses, runs, requests.

A report is numbered, signed and stored in the transaction of what it reports. Nothing is ever dropped: at the limit
the keeper starts nothing new (`full`), and ends go on being stored.
"""

import sqlite3
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec

from sojourn_agent.between import LONGEST_REPORT
from sojourn_shared.clock import Clock, rfc3339
from sojourn_shared.contracts.wire import REPORT_KINDS, Application, Report, Wire, encode
from sojourn_shared.ids import new_id
from sojourn_shared.signing import PrivateKey

from .cover import Use
from .state import State, Unusable

LIMIT = 10_000
"""Reports waiting; a computer that elevates a hundred times a day is offline for a month before it is reached."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS reports (
    place INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, jws TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS reports_of_kind ON reports (kind, place);
CREATE TABLE IF NOT EXISTS numbers (kind TEXT PRIMARY KEY, seq INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS uses (
    grant_id TEXT PRIMARY KEY, first_used_at TEXT, uses INTEGER NOT NULL DEFAULT 0, over TEXT, said_at TEXT);
CREATE TABLE IF NOT EXISTS runs (run_id TEXT PRIMARY KEY, grant_id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS requests (
    request_id TEXT PRIMARY KEY, uid INTEGER NOT NULL, asked_at TEXT NOT NULL, application BLOB NOT NULL,
    minutes INTEGER NOT NULL, status TEXT NOT NULL, version INTEGER NOT NULL, joined TEXT);
CREATE INDEX IF NOT EXISTS requests_of_user ON requests (uid, status);
"""
_OLDEST = "SELECT place, id, kind, jws FROM reports WHERE kind = ? ORDER BY place LIMIT ?"
_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_KEPT = timedelta(days=35)
"""How long a decided request is remembered, for `elevate --status`."""


@dataclass(frozen=True)
class Waiting:
    """A report that the server has not acknowledged."""

    id: str
    kind: str
    jws: str


@dataclass(frozen=True)
class Asked:
    """A request made on this computer; `joined`: the earlier request that the server made it part of."""

    request_id: str
    uid: int
    asked_at: datetime
    application: Application
    minutes: int
    status: str
    version: int
    joined: str | None

    @property
    def known_as(self) -> str:
        return self.joined or self.request_id


class Spool:
    """`now` numbers and dates the reports: the keeper's best clock."""

    def __init__(self, state: State, key: PrivateKey, computer_id: str, boot_id: str, now: Clock) -> None:
        self._key = key
        self._computer_id = computer_id
        self._boot_id = boot_id
        self._now = now
        self.uses: dict[str, Use] = {}
        self.said: dict[str, datetime] = {}
        """When `ended` was reported of a grant."""
        self.is_new = False
        """Nothing is remembered of first uses: what the server has heard of them must be heard first."""
        try:
            self._open(state)
        except (sqlite3.Error, ValueError) as error:
            if not _is_damage(error):  # a full disk, a lock: what is stored is good, and must not be lost
                raise Unusable(f"the spool in {state.folder} cannot be used now: {error}") from None
            self._begin_anew(state, error)
        self.waiting: int = self._database.execute("SELECT count(*) FROM reports").fetchone()[0]

    @property
    def full(self) -> bool:
        return self.waiting >= LIMIT

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """One durable step: all of it is on disk afterwards, or none. What memory holds follows the disk."""
        self._database.execute("BEGIN IMMEDIATE")
        before = self.uses.copy(), self.said.copy(), self.waiting
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            self.uses, self.said, self.waiting = before
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise

    def close(self) -> None:
        self._database.close()

    # --- reports ------------------------------------------------------------------------------------------------------

    def report(self, kind: type[Wire], **fields: object) -> str:
        """Number, sign and store a report, inside a transaction; answers its id."""
        tag = str(kind.__struct_config__.tag)
        row = self._database.execute(
            "INSERT INTO numbers VALUES (?, 1) ON CONFLICT (kind) DO UPDATE SET seq = seq + 1 RETURNING seq", (tag,)
        ).fetchone()
        now = self._now()
        head = {"seq": row[0], "computer_id": self._computer_id, "boot_id": self._boot_id, "at": now}
        report: Report = kind(id=fields.pop("id", None) or new_id(now), **head, **fields)  # type: ignore[assignment]
        jws = self._key.sign(encode(report), "sojourn-report")
        if len(jws) > LONGEST_REPORT:
            raise TooLong(f"a report of {len(jws)} bytes; the limit is {LONGEST_REPORT}")
        self._database.execute("INSERT INTO reports (id, kind, jws) VALUES (?, ?, ?)", (report.id, tag, jws))
        self.waiting += 1
        return report.id

    def oldest(self, per_kind: int, *, on_way: Collection[str] = (), done: Collection[str] = ()) -> list[Waiting]:
        """The next reports to send, in the order in which they were made: of each kind at most `per_kind` at a time.

        A kind whose queue is full at the server holds up no other. `on_way` were handed on, `done` are only to be
        forgotten.
        """
        found: list[tuple[int, Waiting]] = []
        for kind in REPORT_KINDS:
            rows = self._database.execute(_OLDEST, (kind, per_kind + len(done)))
            window = [row for row in rows if row[1] not in done][:per_kind]
            found += [(place, Waiting(*rest)) for place, *rest in window if rest[0] not in on_way]
        return [waiting for _, waiting in sorted(found, key=lambda one: one[0])]

    def delivered(self, report_ids: Collection[str]) -> None:
        """The server has them; forgetting them late only means that they are sent again."""
        with self.transaction():
            for report_id in report_ids:
                self.waiting -= self._database.execute("DELETE FROM reports WHERE id = ?", (report_id,)).rowcount

    # --- uses and runs ------------------------------------------------------------------------------------------------

    def put_use(self, grant_id: str, use: Use) -> None:
        self._database.execute(
            "INSERT INTO uses (grant_id, first_used_at, uses, over) VALUES (?, ?, ?, ?) ON CONFLICT (grant_id)"
            " DO UPDATE SET first_used_at = excluded.first_used_at, uses = excluded.uses, over = excluded.over",
            (grant_id, rfc3339(use.first_used_at) if use.first_used_at else None, use.uses, use.over),
        )
        self.uses[grant_id] = use

    def put_said(self, grant_id: str, at: datetime) -> None:
        """`ended` was reported of this grant."""
        self._database.execute(
            "INSERT INTO uses (grant_id, said_at) VALUES (?, ?) ON CONFLICT (grant_id)"
            " DO UPDATE SET said_at = excluded.said_at",
            (grant_id, rfc3339(at)),
        )
        self.said[grant_id] = at

    def forget_uses(self, but: set[str]) -> None:
        """What is no longer in the document needs no memory."""
        for grant_id in (self.uses.keys() | self.said.keys()) - but:
            self._database.execute("DELETE FROM uses WHERE grant_id = ?", (grant_id,))
            self.uses.pop(grant_id, None)
            self.said.pop(grant_id, None)

    def put_run(self, run_id: str, grant_id: str) -> None:
        self._database.execute("INSERT OR REPLACE INTO runs VALUES (?, ?)", (run_id, grant_id))

    def drop_run(self, run_id: str) -> None:
        self._database.execute("DELETE FROM runs WHERE run_id = ?", (run_id,))

    def runs(self) -> dict[str, str]:
        """Run → grant of all that were started and not yet reported as ended."""
        return dict(self._database.execute("SELECT run_id, grant_id FROM runs"))

    # --- requests -----------------------------------------------------------------------------------------------------

    def put_request(self, asked: Asked) -> None:
        self._database.execute(
            "INSERT INTO requests VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (request_id)"
            " DO UPDATE SET status = excluded.status, version = excluded.version, joined = excluded.joined",
            (
                asked.request_id,
                asked.uid,
                rfc3339(asked.asked_at),
                encode(asked.application),
                asked.minutes,
                asked.status,
                asked.version,
                asked.joined,
            ),
        )
        self._database.execute("DELETE FROM requests WHERE asked_at < ?", (rfc3339(asked.asked_at - _KEPT),))

    def requests(self, *, uid: int | None = None, known_as: str | None = None) -> list[Asked]:
        """Newest first: of a user, or those that the server knows under one id."""
        rows = self._database.execute(
            "SELECT * FROM requests WHERE (?1 IS NULL OR uid = ?1) AND (?2 IS NULL OR request_id = ?2 OR joined = ?2)"
            " ORDER BY request_id DESC LIMIT 200",
            (uid, known_as),
        )
        return [
            Asked(row[0], row[1], _moment(row[2]), msgspec.json.decode(row[3], type=Application), *row[4:])
            for row in rows
        ]

    def _begin_anew(self, state: State, error: Exception) -> None:
        """Raises Unusable."""
        self.uses, self.said = {}, {}
        try:
            if hasattr(self, "_database"):
                self._database.close()
            state.set_aside("spool.db", str(error), self._now())
            for name in ("spool.db-wal", "spool.db-shm"):
                if state.path(name).exists():
                    state.set_aside(name, str(error), self._now())
            self._open(state)
        except (OSError, sqlite3.Error) as again:
            raise Unusable(f"the spool in {state.folder} cannot be used: {again}") from None

    def _open(self, state: State) -> None:
        self._database = sqlite3.connect(state.path("spool.db"), isolation_level=None, timeout=2)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.execute("PRAGMA cache_size = -512")
        if self._database.execute("PRAGMA quick_check").fetchone()[0] != "ok":
            raise ValueError("quick_check finds it damaged")
        self.is_new = self._database.execute("SELECT 1 FROM sqlite_master").fetchone() is None
        self._database.executescript(_SCHEMA)
        for grant_id, first, uses, over, said in self._database.execute("SELECT * FROM uses"):
            self.uses[grant_id] = Use(_moment(first) if first else None, uses, over)
            if said:
                self.said[grant_id] = _moment(said)


def _is_damage(error: Exception) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(error, ValueError) or (code is not None and code & 0xFF in _DAMAGE)


class TooLong(Exception):
    """The report would not fit into one message; the message says by how much."""


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)
