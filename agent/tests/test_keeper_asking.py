"""Asking for what no grant covers: the person, the request, the decision (as root, with throw-away users)."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from sojourn_agent.testing import Computer, Typist, a_computer, eventually, os_user
from sojourn_shared.clock import system_clock
from sojourn_shared.contracts import wire

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root elevates"),
]
ASK = ("--for", "5m", "--because", "the printer is stuck")


@pytest.fixture(scope="module")
def alice() -> Iterator[tuple[str, int]]:
    with os_user("sjalice") as user:
        yield user


@pytest.fixture
def computer() -> Iterator[Computer]:
    with a_computer() as computer:
        yield computer


def request_of(computer: Computer) -> wire.RequestReport:
    report = eventually(lambda: computer.server.of_kind(wire.RequestReport))[-1]
    assert isinstance(report, wire.RequestReport)
    return report


def approve(computer: Computer, asked: wire.RequestReport, **fields: Any) -> None:
    """As the server does: the decision is pushed, then the grant, arguments pinned, ready for its first use."""
    computer.server.decide(asked.id, status="approved", by_name="Carol", note="go on", duration_minutes=5, version=1)
    rule = wire.FileHashRule(sha256=asked.application.sha256 or "", arguments=list(asked.application.arguments or []))
    told: dict[str, Any] = {
        "users": wire.Users(names=[asked.user.name]),
        "request_id": asked.id,
        "starts": "first_use",
        "until": None,
        "duration_minutes": 5,
    }
    computer.server.grant(rule, **(told | fields))


def test_a_request_waits_and_runs_on_approval(computer: Computer, alice: tuple[str, int]) -> None:
    """The waiting command runs at once; only with the arguments that were approved."""
    name, uid = alice
    process = computer.popen(*ASK, "--", "/usr/bin/id", "-u", uid=uid)
    asked = request_of(computer)
    assert (asked.user.name, asked.duration_minutes, asked.justification) == (name, 5, "the printer is stuck")
    assert asked.application.arguments == ["-u"]
    approve(computer, asked)
    out, error = process.communicate(timeout=10)
    assert (process.returncode, out) == (0, b"0\n")
    assert b"approved by Carol for 5 minutes: go on" in error
    assert b"access ends in" not in error  # she has just been told how long it is
    other = computer.elevate("--no-wait", "--", "/usr/bin/id", "-g", uid=uid)
    assert other.status == 77
    assert "argument 1" in other.err


def test_a_decline_prints_its_note(computer: Computer, alice: tuple[str, int]) -> None:
    """77, and the words of the one who decided."""
    process = computer.popen(*ASK, "--", "/usr/bin/id", uid=alice[1])
    computer.server.decide(request_of(computer).id, status="declined", by_name="Carol", note="use the other one")
    _, error = process.communicate(timeout=10)
    assert process.returncode == 77
    assert b"declined by Carol: use the other one" in error


@pytest.mark.parametrize(("status", "exit"), [("cancelled", 77), ("expired", 77), ("refused", 78)])
def test_every_other_end_of_a_request_has_its_status(
    computer: Computer, alice: tuple[str, int], status: Any, exit: int
) -> None:
    """And a sentence."""
    process = computer.popen(*ASK, "--", "/usr/bin/id", uid=alice[1])
    computer.server.decide(request_of(computer).id, status=status, problem="the ticket is unknown")
    _, error = process.communicate(timeout=10)
    assert process.returncode == exit
    assert error.count(b"elevate: ") >= 2


def test_no_wait_stores_the_request_and_prints_its_id(computer: Computer, alice: tuple[str, int]) -> None:
    """76; the same line again is the same request, and once approved it runs."""
    first = computer.elevate("--no-wait", *ASK, "--", "/usr/bin/id", "-u", uid=alice[1])
    asked = request_of(computer)
    assert (first.status, first.out.strip()) == (76, asked.id)
    again = computer.elevate("--no-wait", *ASK, "--", "/usr/bin/id", "-u", uid=alice[1])
    assert (again.status, again.out.strip()) == (76, asked.id)
    assert len(computer.server.of_kind(wire.RequestReport)) == 1
    assert asked.id in computer.elevate("--status", uid=alice[1]).out
    approve(computer, asked)
    computer.catches_up()
    assert computer.elevate("--", "/usr/bin/id", "-u", uid=alice[1]).out == "0\n"


def test_ctrl_c_leaves_the_request_pending_and_the_same_line_rejoins_it(
    computer: Computer, alice: tuple[str, int]
) -> None:
    """130, and the line says how to rejoin or cancel."""
    process = computer.popen(*ASK, "--", "/usr/bin/id", "-u", uid=alice[1])
    asked = request_of(computer)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=10)
    assert process.returncode == 130
    assert f"elevate --cancel {asked.id}".encode() in error
    process = computer.popen("--", "/usr/bin/id", "-u", uid=alice[1])
    approve(computer, asked)
    out, _ = process.communicate(timeout=10)
    assert out == b"0\n"
    assert len(computer.server.of_kind(wire.RequestReport)) == 1


def test_a_request_can_be_cancelled_by_its_maker_only(computer: Computer, alice: tuple[str, int]) -> None:
    """The cancel is a signed report like the request."""
    asked_id = computer.elevate("--no-wait", *ASK, "--", "/usr/bin/id", uid=alice[1]).out.strip()
    assert computer.elevate("--cancel", asked_id, uid=64_001).status == 77
    assert computer.elevate("--cancel", asked_id, uid=alice[1]).status == 0
    assert eventually(lambda: computer.server.of_kind(wire.CancelReport))[0].request_id == asked_id


def test_one_user_cannot_fill_the_spool_with_requests(computer: Computer, alice: tuple[str, int]) -> None:
    """A loop without network ends in a sentence, and others still ask."""
    computer.server.delivers = False
    for number in range(20):
        assert computer.elevate("--no-wait", *ASK, "--", "/usr/bin/id", str(number), uid=alice[1]).status == 76
    told = computer.elevate("--no-wait", *ASK, "--", "/usr/bin/id", "more", uid=alice[1])
    assert told.status == 78
    assert "cancel one" in told.err


def test_a_joined_request_is_shown_under_its_first_id(computer: Computer, alice: tuple[str, int]) -> None:
    """The server knew of it already: the decision comes under that id."""
    process = computer.popen(*ASK, "--", "/usr/bin/id", uid=alice[1])
    asked = request_of(computer)
    computer.server.decide(asked.id, status="pending", joined="first", version=1, told=["Carol"])
    computer.server.decide("first", status="declined", note="no", by_name="Carol", version=2)
    _, error = process.communicate(timeout=10)
    assert process.returncode == 77
    assert b"request first is waiting" in error
    assert b"asked: Carol" in error


def test_a_request_made_offline_is_kept_and_sent(computer: Computer, alice: tuple[str, int]) -> None:
    """Also over a crash of the keeper: it was on disk before the person heard of it."""
    computer.kill()
    computer.start(connected=False)
    stored = computer.elevate("--no-wait", *ASK, "--", "/usr/bin/id", uid=alice[1])
    assert stored.status == 76
    assert computer.server.of_kind(wire.RequestReport) == []
    computer.kill()
    computer.start()
    assert request_of(computer).id == stored.out.strip()


def test_who_may_not_ask_is_told_why(computer: Computer, alice: tuple[str, int]) -> None:
    """The server's own words, before anything is asked of the person."""
    computer.server.terms = wire.TermsAnswer(
        allowed=False, longest_minutes=0, problem="you are not among those who may"
    )
    told = computer.elevate(*ASK, "--", "/usr/bin/id", uid=alice[1])
    assert told.status == 78
    assert "not among those who may" in told.err


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--for", "9h", "--because", "x"), "from 1 to 480 minutes"),
        (("--for", "5m", "--because", "a\nb"), "control characters"),
    ],
)
def test_a_reason_that_cannot_be_sent_is_refused(
    computer: Computer, alice: tuple[str, int], options: tuple[str, ...], why: str
) -> None:
    """78, with what is wrong."""
    told = computer.elevate(*options, "--", "/usr/bin/id", uid=alice[1])
    assert told.status == 78
    assert why in told.err


def test_a_person_at_a_terminal_is_asked(computer: Computer, alice: tuple[str, int]) -> None:
    """For how long, and why; a wrong answer is asked again, with what would be right."""
    typist = Typist(computer, "--", "/usr/bin/id", "-u", uid=alice[1])
    typist.sees("for how long?")
    typist.types("soon\n")
    typist.sees("soon: say it like 30m, 2h or 1h30m")
    typist.types("9h\n")
    typist.sees("9h: it may be 8h at most")
    typist.types("10m\n")
    typist.sees("why?")
    typist.types(" \n")
    typist.sees("say why")
    typist.types("paper jam\n")
    asked = request_of(computer)
    assert (asked.duration_minutes, asked.justification) == (10, "paper jam")
    typist.sees("waiting for a decision")
    approve(computer, asked)
    typist.sees("\n0")
    assert typist.leaves() == 0


def test_giving_access_back_ends_it_for_good(computer: Computer, alice: tuple[str, int]) -> None:
    """What runs is ended, both reports say so, and it never starts again."""
    name, uid = alice
    mine = computer.grant(users=wire.Users(names=[name]))
    process = computer.popen("--", "/usr/bin/sleep", "987", uid=uid)
    eventually(lambda: computer.server.of_kind(wire.StartedReport))
    told = computer.elevate("--done", mine.id, uid=uid)
    assert told.status == 0
    assert process.wait(5) == 124
    assert eventually(lambda: computer.server.of_kind(wire.ReturnedReport))[0].grant_id == mine.id
    assert computer.ended(mine).cause == "returned"
    assert computer.elevate("--check", "--", "/usr/bin/id", uid=uid).status == 77


def test_a_grant_for_others_too_is_not_one_persons_to_give_back(computer: Computer, alice: tuple[str, int]) -> None:
    """The line says who can end it."""
    shared = computer.grant()
    told = computer.elevate("--done", shared.id, uid=alice[1])
    assert told.status == 77
    assert "administrator" in told.out


def test_names_are_judged_by_uid(computer: Computer, alice: tuple[str, int]) -> None:
    """The grant names the user; another user does not get it."""
    name, uid = alice
    computer.grant(users=wire.Users(names=[name]), until=None, from_=system_clock())
    assert computer.elevate("--check", "--", "/usr/bin/id", uid=uid).status == 0
    assert computer.elevate("--check", "--", "/usr/bin/id", uid=64_001).status == 77


def test_an_approval_that_can_never_be_in_force_is_no_endless_wait(computer: Computer, alice: tuple[str, int]) -> None:
    """The server says that the computer holds too many grants: she reads that, in words, and gets 77."""
    _, uid = alice
    process = computer.popen(*ASK, "--", "/usr/bin/id", uid=uid)
    asked = request_of(computer)
    computer.server.decide(asked.id, status="approved", by_name="Carol", problem="document_full", version=2)
    _, error = process.communicate(timeout=5)
    assert process.returncode == 77
    assert b"approved by Carol; but this computer holds too many grants" in error
