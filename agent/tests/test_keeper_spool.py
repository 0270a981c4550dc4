"""What must not be lost: reports, numbers, uses, requests."""

import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from sojourn_agent.keeper.cover import Use
from sojourn_agent.keeper.spool import Asked, Spool, TooLong
from sojourn_agent.keeper.state import State
from sojourn_shared.contracts import wire
from sojourn_shared.signing import PrivateKey, verify

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
KEY = PrivateKey.generate()


def opened(folder: Path) -> Spool:
    return Spool(State(folder), KEY, "c1", "boot-1", lambda: NOON)


def returned(spool: Spool, grant_id: str = "g") -> str:
    with spool.transaction():
        return spool.report(wire.ReturnedReport, grant_id=grant_id, user=wire.ReportingUser(name="alice", uid=1001))


def test_reports_are_signed_and_numbered_without_gaps_over_restarts(tmp_path: Path) -> None:
    """Each kind for itself, from 1; a number taken by a step that failed is taken again."""
    spool = opened(tmp_path)
    returned(spool)
    with pytest.raises(RuntimeError), spool.transaction():  # noqa: PT012 - the step fails after it reported
        spool.report(wire.ReturnedReport, grant_id="lost", user=wire.ReportingUser(name="alice", uid=1001))
        raise RuntimeError
    spool.close()
    spool = opened(tmp_path)
    returned(spool)
    reports = [verify(waiting.jws, "sojourn-report", {KEY.kid: KEY.public}) for waiting in spool.oldest(9)]
    seqs = [msgspec.json.decode(report, type=wire.Report).seq for report in reports]
    assert seqs == [1, 2]
    assert spool.waiting == 2


def test_only_what_was_acknowledged_is_forgotten(tmp_path: Path) -> None:
    """In the order in which they were made, without those on their way."""
    spool = opened(tmp_path)
    first, second = returned(spool), returned(spool)
    assert [waiting.id for waiting in spool.oldest(1)] == [first]
    assert spool.oldest(1, on_way={first}) == []
    assert [waiting.id for waiting in spool.oldest(2, on_way={first})] == [second]
    assert [waiting.id for waiting in spool.oldest(1, done={first})] == [second]
    spool.delivered({first})
    assert [waiting.id for waiting in spool.oldest(9)] == [second]


def test_a_kind_that_is_held_up_holds_up_no_other(tmp_path: Path) -> None:
    """However many of one kind wait, the next of every other kind is among those to send."""
    spool = opened(tmp_path)
    for _ in range(20):
        returned(spool)
    with spool.transaction():
        ended = spool.report(wire.EndedReport, grant_id="g", cause="expired")
    window = spool.oldest(8)
    assert [waiting.kind for waiting in window] == ["returned"] * 8 + ["ended"]
    assert window[-1].id == ended


def test_a_step_that_fails_leaves_memory_as_the_disk_is(tmp_path: Path) -> None:
    """A use that was not written down has not happened."""
    spool = opened(tmp_path)
    with pytest.raises(sqlite3.OperationalError), spool.transaction():  # noqa: PT012 - it fails after the use
        spool.put_use("g", Use(NOON, 1))
        raise sqlite3.OperationalError("disk full")
    assert spool.uses == {}
    with spool.transaction():
        spool.put_use("g", Use(NOON, 1))
        spool.put_said("g", NOON)
    spool.close()
    again = opened(tmp_path)
    assert (again.uses, again.said) == ({"g": Use(NOON, 1)}, {"g": NOON})
    with again.transaction():
        again.forget_uses(but=set())
    assert again.uses == {}


def test_a_damaged_file_is_set_aside(tmp_path: Path) -> None:
    """Named in the log, kept for people, and begun anew."""
    opened(tmp_path).close()
    (tmp_path / "spool.db").write_bytes(b"this is no database" * 100)
    spool = opened(tmp_path)
    returned(spool)
    assert spool.waiting == 1
    assert list(tmp_path.glob("spool.db.unusable-*"))


def test_a_report_longer_than_a_message_is_refused(tmp_path: Path) -> None:
    """And leaves neither a row nor a number behind."""
    spool = opened(tmp_path)
    with pytest.raises(TooLong), spool.transaction():
        spool.report(
            wire.ReturnedReport, grant_id="x" * 70_000, user=wire.ReportingUser(name="alice", uid=1001)
        )  # fmt: skip
    assert spool.waiting == 0
    assert returned(spool)


def test_a_request_is_found_under_both_of_its_names(tmp_path: Path) -> None:
    """Its own, and that of the earlier one that the server made it part of."""
    spool = opened(tmp_path)
    asked = Asked("r2", 1001, NOON, wire.Application(path="/usr/bin/id"), 5, "pending", 1, "r1")
    with spool.transaction():
        spool.put_request(asked)
    for name in ("r1", "r2"):
        assert spool.requests(known_as=name) == [asked]
    assert spool.requests(uid=1002) == []
    assert asked.known_as == "r1"
