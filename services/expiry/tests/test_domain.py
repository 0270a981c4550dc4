"""Every transition of a grant and every one that must not be; what a run is, whatever the order of its reports."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as some

from sojourn_expiry import domain
from sojourn_expiry.domain import Grant, Revocation, Run
from sojourn_shared.contracts import wire
from sojourn_shared.contracts.events import Assignment, AssignmentsChanged, RequestState

NOW = datetime(2026, 11, 2, 9, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
REVOCATION = Revocation(by="ada", by_name="Ada", at=NOW, reason="no more")

# Every pair of status and delivery that may be; the database refuses all others.
PAIRS = [
    *itertools.product(("scheduled", "ready", "active"), ("pending", "applied", "failed")),
    *itertools.product(("expired", "revoked"), ("ending", "ended", "unconfirmed")),
    ("revoked", "failed"),  # opened as revoked: never sent
]


def grant(status: str = "active", delivery: str = "applied", **fields: Any) -> Grant:
    first_use = fields.pop("first_use", status == "ready")
    times: dict[str, Any] = {"from_": NOW + HOUR if status == "scheduled" else NOW - HOUR, "starts": "at_from"}
    if first_use:
        times |= {"starts": "first_use", "duration": HOUR, "take_up_until": NOW + 8 * HOUR}
    if not first_use or status == "active":
        times |= {"until": times["from_"] + 2 * HOUR}
    if status == "revoked":
        times |= {"revoked": REVOCATION}
    if delivery == "ended":
        times |= {"ended_at": NOW}
    return Grant(
        id="g",
        computer_id="c",
        status=status,  # type: ignore[arg-type]
        delivery=delivery,  # type: ignore[arg-type]
        user_names=("alice",),
        created_at=NOW,
        updated_at=NOW,
        **times | fields,
    )


Act = Callable[[Grant], Grant]
ACTS: dict[str, Act] = {
    "revoke": lambda g: domain.revoke(g, REVOCATION),
    "give back": lambda g: domain.give_back(g, by="alice", by_name="alice", at=NOW, now=NOW),
    "decommission": lambda g: domain.decommission(g, by="ada", by_name="Ada", now=NOW),
    "applied": lambda g: domain.applied(g, applied=True, reason=None, at=NOW, now=NOW),
    "not applied": lambda g: domain.applied(g, applied=False, reason="no cgroup", at=NOW, now=NOW),
    "reported expired": lambda g: domain.over_as_reported(g, cause="expired", at=NOW, now=NOW),
    "reported revoked": lambda g: domain.over_as_reported(g, cause="revoked", at=NOW, now=NOW),
    "reported returned": lambda g: domain.over_as_reported(g, cause="returned", at=NOW, now=NOW),
    "run exited": lambda g: domain.over_as_reported(g, cause="exited", at=NOW, now=NOW),
    "confirmed": lambda g: domain.end_confirmed(g, cause="revoked", at=NOW, gone=True, now=NOW),
    "confirmed, but something is left": lambda g: domain.end_confirmed(g, cause="revoked", at=NOW, gone=False, now=NOW),
    "clock, nothing due": lambda g: domain.turned_by_clock(g, NOW),
    "clock, all is over": lambda g: domain.turned_by_clock(g, NOW + 100 * HOUR),
}


def expected(act: str, status: str, delivery: str) -> tuple[str, str]:
    """What the States of the architecture say."""
    final = status in {"expired", "revoked"}
    match act:
        case "revoke" | "give back" | "reported revoked" | "reported returned" if not final:
            return "revoked", "ending"
        case "reported expired" if not final:
            return "expired", "ending"
        case "decommission" if not final:
            return "revoked", "unconfirmed"
        case "decommission" if delivery == "ending":
            return status, "unconfirmed"
        case "applied" if delivery in {"pending", "failed"} and not final:
            return status, "applied"
        case "not applied" if delivery == "pending":
            return status, "failed"
        case "confirmed" if delivery == "ending":
            return status, "ended"
        case "clock, all is over" if status == "scheduled":
            return "active", delivery  # one step at a time; the next one ends it
        case "clock, all is over" if not final:
            return "expired", "ending"
        case _:
            return status, delivery


@pytest.mark.parametrize(("status", "delivery"), PAIRS)
@pytest.mark.parametrize("act", ACTS)
def test_every_transition_and_every_forbidden_one(act: str, status: str, delivery: str) -> None:
    """What may change does, by one version; what must not returns the very same grant. Final states absorb."""
    before = grant(status, delivery)
    after = ACTS[act](before)
    assert (after.status, after.delivery) == expected(act, status, delivery)
    if (after.status, after.delivery) == (status, delivery):
        assert after is before
    else:
        assert after.version == before.version + 1


def test_all_states_are_tried() -> None:
    """A state that is added is noticed here."""
    assert {status for status, _ in PAIRS} == set(get_args(domain.Status))
    assert {delivery for _, delivery in PAIRS} == set(get_args(domain.Delivery))


@pytest.mark.parametrize(
    ("starts", "turned"), [("at_from", "active"), ("first_use", "ready")], ids=["by itself", "at first use"]
)
def test_a_scheduled_grant_begins_at_its_time(starts: str, turned: str) -> None:
    """Not a moment before; one that starts at first use becomes ready."""
    scheduled = grant("scheduled", "pending", first_use=starts == "first_use")
    assert domain.turned_by_clock(scheduled, scheduled.from_ - timedelta(microseconds=1)) is scheduled
    assert domain.turned_by_clock(scheduled, scheduled.from_).status == turned


def test_a_ready_grant_unheard_waits_for_a_first_use_that_may_be_on_its_way() -> None:
    """It ends at `take_up_until` + duration; without a limit never."""
    ready = grant("ready", "applied")
    end = NOW + 9 * HOUR
    assert domain.due_at(ready, NOW) == end
    assert domain.turned_by_clock(ready, end - timedelta(seconds=1)) is ready
    assert domain.turned_by_clock(ready, end).status == "expired"
    assert domain.due_at(replace(ready, take_up_until=None), NOW) is None


def test_a_grant_is_announced_seven_days_before() -> None:
    """The clock looks at it then, to have it put into the document, and again when it begins."""
    far = grant("scheduled", "pending", from_=NOW + timedelta(days=9))
    assert domain.due_at(far, NOW) == NOW + timedelta(days=2)
    assert domain.due_at(far, NOW + timedelta(days=2)) == far.from_


def test_a_first_use_starts_the_clock_once() -> None:
    """Active until first use + duration; a second start, and a repeat, change nothing."""
    used = domain.used(grant("ready"), at=NOW, until=NOW + HOUR, now=NOW)
    assert (used.status, used.first_used_at, used.until) == ("active", NOW, NOW + HOUR)
    assert domain.used(used, at=NOW + HOUR / 2, until=NOW + HOUR, now=NOW) is used
    assert domain.used(used, at=NOW, until=NOW + HOUR, now=NOW) is used


def test_a_start_changes_nothing_where_the_clock_starts_by_itself() -> None:
    """A window's end is the window's."""
    window = grant("active")
    assert domain.used(window, at=NOW, until=NOW + 9 * HOUR, now=NOW) is window


@pytest.mark.parametrize("status", ["expired", "revoked"])
def test_a_late_first_use_revives_nothing(status: str) -> None:
    """The grant learns when it was used, and stays final."""
    over = grant(status, "ending", first_use=True)
    late = domain.used(over, at=NOW - HOUR, until=NOW, now=NOW)
    assert (late.status, late.delivery, late.until) == (status, "ending", NOW)


def test_no_computer_gives_itself_more_time() -> None:
    """An end later than the start + duration, or than the take-up allows, is cut."""
    assert domain.used(grant("ready"), at=NOW, until=NOW + 9 * HOUR, now=NOW).until == NOW + HOUR
    late = domain.used(grant("ready"), at=NOW + 20 * HOUR, until=NOW + 21 * HOUR, now=NOW)
    assert late.until == NOW + 9 * HOUR


def test_who_gave_back_is_named_when_the_computers_word_came_first() -> None:
    """The end by cause `returned` knows no person; the report of the return adds one, once."""
    over = domain.over_as_reported(grant(), cause="returned", at=NOW, now=NOW)
    named = domain.give_back(over, by="alice", by_name="alice", at=NOW, now=NOW)
    assert named.revoked is not None
    assert named.revoked.by_name == "alice"
    assert domain.give_back(named, by="bob", by_name="bob", at=NOW, now=NOW) is named


# --- time -------------------------------------------------------------------------------------------------------------


@given(
    minutes=some.integers(1, 43200),
    starts=some.lists(some.integers(0, 43200 * 60), min_size=1, max_size=6),
    order=some.randoms(use_true_random=False),
)
def test_the_time_granted_is_the_time_had(minutes: int, starts: list[int], order: Any) -> None:
    """Reports of starts in any order, repeated: the access lasts exactly its minutes from the first use."""
    duration = timedelta(minutes=minutes)
    ready = grant("ready", duration=duration, take_up_until=NOW + timedelta(days=60))
    first = NOW + timedelta(seconds=min(starts))
    reports = [NOW + timedelta(seconds=second) for second in starts if timedelta(seconds=second) < duration] or [first]
    if first not in reports:
        reports.append(first)
    reports += reports[:2]
    order.shuffle(reports)
    for at in reports:
        ready = domain.used(ready, at=at, until=first + duration, now=NOW)
    assert ready.first_used_at == first
    assert ready.until == first + duration


@given(minutes=some.integers(1, 43200), late=some.integers(0, 43200))
def test_a_computer_that_comes_late_gets_what_is_left(minutes: int, late: int) -> None:
    """Counted from the deploy, for all computers alike; nothing left → nothing opened."""
    changed = assignments({"type": "fixed", "minutes": minutes})
    now = NOW + timedelta(minutes=late)
    opened = domain.grant_for_assignment(changed.assignments[0], changed, id="g", now=now)
    if late >= minutes:
        assert opened is None
    else:
        assert opened is not None
        assert opened.until == NOW + timedelta(minutes=minutes)


# --- opening ----------------------------------------------------------------------------------------------------------


def assignments(duration: dict[str, Any], **terms: Any) -> AssignmentsChanged:
    given_terms = {"policy_name": "P", "users": {"names": ["alice"]}, "rules": [], "duration": duration}
    return AssignmentsChanged.model_validate(
        {"policy_id": "p", "revision": 1, "deployed_at": NOW, "page": 1, "pages": 1, "terms": given_terms | terms}
        | {"assignments": [Assignment(id="a", version=1, computer_id="c", state="present")]}
    )


WINDOW = {"type": "window", "from": NOW + HOUR, "until": NOW + 2 * HOUR}


@pytest.mark.parametrize(
    ("duration", "now", "status"),
    [
        ({"type": "fixed", "minutes": 60}, NOW, "active"),
        ({"type": "fixed", "minutes": 60, "starts": "on_first_use"}, NOW, "ready"),
        ({"type": "fixed", "minutes": 60, "starts": "on_first_use", "take_up_until": NOW + HOUR}, NOW, "ready"),
        ({"type": "fixed", "minutes": 60, "starts": "on_first_use", "take_up_until": NOW}, NOW, None),
        (WINDOW, NOW, "scheduled"),
        (WINDOW, NOW + HOUR, "active"),
        (WINDOW, NOW + 2 * HOUR, None),
    ],
)
def test_a_policy_opens_by_its_duration(duration: dict[str, Any], now: datetime, status: str | None) -> None:
    """Fixed: active at once, or ready; a window: scheduled until it begins; over already: not at all."""
    changed = assignments(duration)
    opened = domain.grant_for_assignment(changed.assignments[0], changed, id="g", now=now)
    assert (opened.status if opened else None) == status


def test_an_approval_opens_under_the_id_that_it_minted() -> None:
    """With what was decided: rules, duration, uses; for the one who asked; scheduled when it may not begin yet."""
    said = {
        "id": "r",
        "version": 2,
        "status": "approved",
        "computer_id": "c",
        "user": "alice",
        "application": {"path": "/bin/id"},
        "duration_minutes": 30,
        "grant_id": "g",
        "decision": {"by": "ada", "by_name": "Ada", "at": NOW, "duration_minutes": 5, "max_uses": 2},
    }
    opened = domain.grant_for_request(RequestState.model_validate(said), NOW)
    assert (opened.id, opened.status, opened.duration, opened.max_uses) == ("g", "ready", timedelta(minutes=5), 2)
    assert (opened.only_user, opened.starts) == ("alice", "first_use")
    later = domain.grant_for_request(RequestState.model_validate(said | {"not_before": NOW + HOUR}), NOW)
    assert (later.status, later.from_) == ("scheduled", NOW + HOUR)
    with pytest.raises(ValueError, match="no grant_id"):
        domain.grant_for_request(RequestState.model_validate(said | {"grant_id": None}), NOW)


# --- runs -------------------------------------------------------------------------------------------------------------


def report(kind: type[Any], seq: int = 1, **fields: Any) -> Any:
    return kind(id="x", seq=seq, computer_id="c", boot_id="b", at=NOW, **fields)


STARTED = report(
    wire.StartedReport,
    run_id="r",
    grant_id="A",
    rule=0,
    user=wire.ReportingUser(name="alice", uid=1000),
    application=wire.Application(path="/bin/id"),
    pid=1,
    until=None,
)
END = wire.EndedRun(run_id="r", exit_status=0, at=NOW)
STEPS: dict[str, Callable[[Run | None], Run]] = {
    "started": lambda run: domain.run_started(run, STARTED, {"path": "/bin/id"}, NOW),
    "moved A→B": lambda run: domain.run_moved(run, report(wire.MovedReport, 1, run_id="r", from_="A", to="B"), NOW),
    "moved B→C": lambda run: domain.run_moved(run, report(wire.MovedReport, 2, run_id="r", from_="B", to="C"), NOW),
    "ended": lambda run: domain.run_ended(run, END, report(wire.EndedReport, grant_id="C", cause="exited"), NOW),
}


@pytest.mark.parametrize("order", list(itertools.permutations(STEPS)), ids=", ".join)
def test_a_run_is_the_same_in_whatever_order_it_was_reported(order: tuple[str, ...]) -> None:
    """Started under A, moved to B and C, ended under C; each report twice."""
    run: Run | None = None
    for step in order:
        run = STEPS[step](run)
        assert STEPS[step](run) is run
    assert run is not None
    assert (run.started_under, run.grant_id, run.user, run.cause, run.exit_status) == ("A", "C", "alice", "exited", 0)


def test_an_end_is_told_again_only_when_it_became_true() -> None:
    """First something was left, then the computer looked again and it was gone."""
    left = wire.EndedRun(run_id="r", gone=False, at=NOW)
    ended = report(wire.EndedReport, grant_id="A", cause="revoked")
    run = domain.run_ended(None, left, ended, NOW)
    gone = domain.run_ended(run, replace_gone(left), ended, NOW)
    assert (run.gone, gone.gone) == (False, True)
    assert domain.run_ended(gone, left, ended, NOW) is gone


def replace_gone(end: wire.EndedRun) -> wire.EndedRun:
    return wire.EndedRun(run_id=end.run_id, gone=True, at=end.at)
