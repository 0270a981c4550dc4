"""Runs from start to end, with a real keeper, real wardens and real processes (as root)."""

import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from sojourn_agent.config import write_config
from sojourn_agent.testing import Computer, a_computer, eventually
from sojourn_shared.clock import system_clock
from sojourn_shared.contracts import wire

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root elevates"),
]
BOB = 64_001
"""A uid that nobody has."""


@pytest.fixture
def computer() -> Iterator[Computer]:
    with a_computer() as computer:
        yield computer


def is_there(pid: int) -> bool:
    """Not as a zombie, which only waits for whoever adopted it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def sleeping(computer: Computer, seconds: str = "987") -> "subprocess.Popen[bytes]":
    """A run of `sleep`, which has begun."""
    before = len(computer.server.of_kind(wire.StartedReport))
    process: subprocess.Popen[bytes] = computer.popen("--", "/usr/bin/sleep", seconds, uid=BOB)
    eventually(lambda: len(computer.server.of_kind(wire.StartedReport)) > before)
    return process


def last_started(computer: Computer) -> wire.StartedReport:
    report = computer.server.of_kind(wire.StartedReport)[-1]
    assert isinstance(report, wire.StartedReport)
    return report


def test_a_covered_command_runs_as_root_and_is_reported(computer: Computer) -> None:
    """Its output and status are the application's own; the reports say who ran what under which grant."""
    grant = computer.grant()
    done = computer.elevate("--", "/usr/bin/id", "-u", uid=BOB)
    assert (done.status, done.out) == (0, "0\n")
    started, ended = last_started(computer), computer.ended(grant)
    assert (started.grant_id, started.user.uid, started.application.arguments) == (grant.id, BOB, ["-u"])
    assert (ended.cause, ended.runs[0].run_id, ended.runs[0].exit_status) == ("exited", started.run_id, 0)
    assert ended.runs[0].gone


def test_an_uncovered_command_is_refused_and_the_refusal_reported(computer: Computer) -> None:
    """Without a terminal and without a reason nothing can be asked."""
    computer.grant(wire.FolderPathRule(path="/opt"))
    done = computer.elevate("--no-wait", "--", "/usr/bin/id", uid=BOB)
    assert done.status == 77
    assert "does not lie" in done.err
    refused = eventually(lambda: computer.server.of_kind(wire.RefusedReport))[0]
    assert (refused.user.uid, refused.count, refused.reason) == (BOB, 1, "not-covered")


def test_it_looks_once_for_a_newer_document_before_it_says_no(computer: Computer) -> None:
    """A push that was lost costs one question, not a refusal."""
    version = computer.server.version
    grant = wire.Grant(
        id="late", users=wire.Users(all=True), from_=system_clock(), rules=[wire.FolderPathRule(path="/usr/bin")]
    )
    computer.server.grants["late"] = grant
    computer.server.sign()
    assert computer.agent()["document_version"] == version
    eventually(lambda: computer.elevate("--check", "--", "/usr/bin/id", uid=BOB).status == 0)


def test_revoking_ends_the_whole_tree_at_once(computer: Computer) -> None:
    """Double-forked and detached processes too; the person reads why, the report names every process."""
    grant = computer.grant()
    tree = "/usr/bin/sleep 987 & /usr/bin/setsid /usr/bin/sleep 988 & trap '' TERM HUP INT; echo ready; wait"
    process = computer.popen("--", "/bin/sh", "-c", tree, uid=BOB)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    began = time.monotonic()
    computer.server.revoke(grant, "lunch is over")
    _, error = process.communicate(timeout=5)
    assert process.returncode == 124
    assert b"lunch is over" in error
    assert time.monotonic() - began < 1
    ended = computer.ended(grant)
    assert ended.cause == "revoked"
    assert len(ended.runs[0].processes_ended) == 3
    assert not any(is_there(process.pid) for process in ended.runs[0].processes_ended)
    assert ended.runs[0].kill_ms is not None


def test_a_revoke_with_grace_warns_and_waits(computer: Computer) -> None:
    """The person may save their work; new starts are refused meanwhile."""
    grant = computer.grant()
    process = sleeping(computer)
    computer.server.revoke(grant, grace_seconds=1)
    computer.catches_up()
    assert process.poll() is None
    assert computer.elevate("--no-wait", "--", "/usr/bin/id", uid=BOB).status == 77
    _, error = process.communicate(timeout=5)
    assert process.returncode == 124
    assert b"It ends in 1 s" in error


def test_time_alone_ends_a_run_to_the_second_with_nobody_connected(computer: Computer) -> None:
    """No server, no link: the computer enforces the end by itself, and keeps the report."""
    end = system_clock() + timedelta(seconds=1.5)
    grant = computer.grant(until=end)
    process = sleeping(computer)
    computer.server.delivers = False
    assert process.wait(5) == 124
    assert abs((system_clock() - end).total_seconds()) < 0.5
    ended = computer.ended(grant)
    assert ended.cause == "expired"
    assert computer.agent()["reports_waiting"] >= 1


def test_a_first_use_starts_the_clock_and_is_on_disk_before_anything_runs(computer: Computer) -> None:
    """Killing the keeper right afterwards does not give the time back."""
    grant = computer.grant(starts="first_use", until=None, duration_minutes=5)
    process = sleeping(computer)
    until = last_started(computer).until
    assert until is not None
    computer.kill()
    assert process.wait(5) == 75
    computer.start()
    sleeping(computer)
    assert last_started(computer).until == until
    ended = [r for r in computer.server.of_kind(wire.EndedReport) if r.grant_id == grant.id]
    assert [r.cause for r in ended] == ["agent_died"]


def test_max_uses_is_counted_before_anything_runs(computer: Computer) -> None:
    """Two uses, and not a third, also over a restart of the keeper."""
    computer.grant(max_uses=2)
    assert computer.elevate("--", "/usr/bin/true", uid=BOB).status == 0
    computer.kill()
    computer.start()
    assert computer.elevate("--", "/usr/bin/true", uid=BOB).status == 0
    refused = computer.elevate("--no-wait", "--", "/usr/bin/true", uid=BOB)
    assert refused.status == 77
    assert "as often as it may" in refused.err


def test_a_run_moves_to_the_grant_that_extends_it(computer: Computer) -> None:
    """At the end of the first grant its run goes on under the second, and says so."""
    first = computer.grant(until=system_clock() + timedelta(seconds=1.5))
    process = sleeping(computer)
    second = computer.grant(wire.FolderPathRule(path="/usr/bin"), policy_name="more time")
    moved = eventually(lambda: computer.server.of_kind(wire.MovedReport))[0]
    assert (moved.from_, moved.to) == (first.id, second.id)
    assert computer.ended(first).runs == []
    assert process.poll() is None
    computer.server.revoke(second)
    _, error = process.communicate(timeout=5)
    assert process.returncode == 124
    assert b"goes on under" in error


def test_of_revokes_only_a_superseded_one_moves_a_run(computer: Computer) -> None:
    """The policy's next revision takes over; any other revoke ends, whatever else is granted."""
    first, second = computer.grant(), computer.grant(wire.FolderPathRule(path="/usr/bin/"))
    process = sleeping(computer)
    taken, other = (first, second) if last_started(computer).grant_id == first.id else (second, first)
    computer.server.revoke(taken, superseded=True)
    moved = eventually(lambda: computer.server.of_kind(wire.MovedReport))[0]
    assert (moved.from_, moved.to) == (taken.id, other.id)
    computer.grant()
    computer.server.revoke(other)
    assert process.wait(5) == 124


def test_a_grant_that_is_over_is_ended_without_runs_too(computer: Computer) -> None:
    """Also one that this computer never knew before: then it can leave the document."""
    over = computer.grant(until=system_clock() - timedelta(minutes=1))
    assert (computer.ended(over).cause, computer.ended(over).runs) == ("expired", [])
    unknown = wire.Grant(
        id="unknown", users=wire.Users(all=True), from_=system_clock(), child_processes="deny",
        revoked=wire.Revoked(at=system_clock(), reason="x"),
    )  # fmt: skip
    computer.server.grants["unknown"] = unknown
    computer.server.push()
    assert computer.ended(unknown).cause == "revoked"
    computer.server.push()
    computer.catches_up()
    assert len([r for r in computer.server.of_kind(wire.EndedReport) if r.grant_id == "unknown"]) == 1


def test_what_cannot_be_enforced_is_said_to_be_not_applied(computer: Computer) -> None:
    """For that grant alone, with the reason."""
    good, bad = computer.grant(), computer.grant(child_processes="deny")
    applied = eventually(
        lambda: [r for r in computer.server.of_kind(wire.AppliedReport) if r.version == computer.server.version]
    )[0]
    answers = {grant.id: grant for grant in applied.grants}
    assert answers[good.id].applied
    assert not answers[bad.id].applied
    assert "observed only" in (answers[bad.id].reason or "")


def test_a_document_that_is_too_old_ends_what_runs(computer: Computer) -> None:
    """A computer off the network for ever does not elevate for ever; the grant itself is not over."""
    computer.grant()
    process = sleeping(computer)
    computer.server.valid_for = timedelta(seconds=1)
    computer.server.push()
    _, error = process.communicate(timeout=5)
    assert process.returncode == 124
    assert b"not heard from its server" in error
    assert computer.elevate("--no-wait", "--", "/usr/bin/id", uid=BOB).status == 77
    assert eventually(lambda: computer.server.of_kind(wire.EndedReport))[0].cause == "offline"


def test_a_computer_without_a_document_starts_nothing_until_a_heartbeat_was_answered(computer: Computer) -> None:
    """A document that was pushed is not enough: it may be an old one."""
    computer.grant()
    computer.stop()
    computer.state.path("document.jws").unlink()
    computer.server.answers_heartbeats = False
    computer.start(connected=False)
    computer.server.push()
    computer.catches_up()
    assert "not heard" in computer.elevate("--no-wait", "--", "/usr/bin/id", uid=BOB).err


def test_the_keeper_that_starts_ends_what_the_last_one_left(computer: Computer) -> None:
    """A leaf that nobody watches is killed before the first caller is let in."""
    leaf = Path(computer.agent()["leaves"]) / "01a20000-0000-7000-8000-000000000000"
    computer.kill()
    leaf.mkdir()
    orphan = subprocess.Popen(["/usr/bin/sleep", "987"], start_new_session=True)
    (leaf / "cgroup.procs").write_text(str(orphan.pid))
    computer.start()
    assert orphan.wait(5) == -9
    assert not leaf.exists()


def test_stopping_the_keeper_ends_and_reports_every_run(computer: Computer) -> None:
    """SIGTERM: nothing stays elevated, and the report is stored."""
    computer.grant()
    process = sleeping(computer)
    computer.stop()
    assert process.wait(5) == 75
    computer.start()
    assert eventually(lambda: computer.server.of_kind(wire.EndedReport))[-1].cause == "agent_died"


def test_an_edited_grant_ends_what_it_no_longer_covers(computer: Computer) -> None:
    """The same grant with other rules: the run is judged again."""
    grant = computer.grant()
    process = sleeping(computer)
    computer.server.grants[grant.id] = msgspec.structs.replace(grant, rules=[wire.FolderPathRule(path="/opt")])
    computer.server.push()
    assert process.wait(5) == 124


def test_what_an_application_leaves_behind_ends_with_it(computer: Computer) -> None:
    """Nothing stays elevated unattended; a pipe's last writer gets a moment to finish."""
    computer.grant()
    done = computer.elevate(
        "--", "/bin/sh", "-c", "(sleep 0.3; echo last) & /usr/bin/setsid /usr/bin/sleep 987 & exit 3", uid=BOB
    )
    assert (done.status, done.out) == (3, "last\n")
    ended = eventually(lambda: computer.server.of_kind(wire.EndedReport))[0]
    assert (ended.cause, [process.name for process in ended.runs[0].processes_ended]) == ("exited", ["sleep"])


def test_without_a_cgroup_runs_end_by_descent(computer: Computer) -> None:
    """Best effort, and the keeper says why: children, detached ones too, are found and killed."""
    computer.stop()
    write_config(replace(computer.config, cgroup_parent=Path("/proc/none")), computer.folder / "agent.toml")
    computer.start()
    assert "no cgroup v2 folder can be used" in computer.agent()["why_no_leaves"]
    grant = computer.grant()
    tree = "/usr/bin/sleep 987 & /usr/bin/setsid /usr/bin/sleep 988 & echo ready; wait"
    process = computer.popen("--", "/bin/sh", "-c", tree, uid=BOB)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    computer.server.revoke(grant)
    assert process.wait(5) == 124
    ended = computer.ended(grant).runs[0]
    assert len(ended.processes_ended) >= 3
    assert not any(is_there(process.pid) for process in ended.processes_ended)
