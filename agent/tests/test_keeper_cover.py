"""Which grant covers whom, what and when; and why not."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sojourn_agent.keeper.cover import Covered, NotCovered, Use, Who, cover, ends_at, not_enforceable, state_at
from sojourn_agent.keeper.document import Held
from sojourn_shared.contracts.wire import (
    Application,
    Document,
    FolderPathRule,
    Grant,
    Revoked,
    Users,
    VendorRule,
)

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
ALICE = Who(1001, frozenset({"alice"}))
HTOP = Application(path="/usr/bin/htop", executable="htop", arguments=["-d", "5"], platform="linux")
UNUSED = Use()


def a_grant(**fields: Any) -> Grant:
    told = {
        "id": "g1",
        "users": Users(names=["alice"]),
        "from_": NOON - HOUR,
        "until": NOON + HOUR,
        "rules": [FolderPathRule(path="/usr/bin")],
    }
    return Grant(**(told | fields))


def held(*grants: Grant) -> Held:
    document = Document(v=1, computer_id="c", epoch=1, version=1, issued_at=NOON, valid_until=NOON + 24 * HOUR)
    return Held(document, {grant.id: grant for grant in grants}, {}, "", "")


def covered(*grants: Grant, who: Who = ALICE, application: Application = HTOP, uses: Any = None) -> Any:
    return cover(held(*grants), who, application, NOON, uses or {})


def test_a_grant_in_force_covers_its_user_and_application() -> None:
    """And says by which rule, and until when."""
    answer = covered(a_grant())
    assert isinstance(answer, Covered)
    assert (answer.match.index, answer.until) == (0, NOON + HOUR)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"users": Users(names=["bob"])}, "names you"),
        ({"from_": NOON + HOUR, "until": NOON + 2 * HOUR}, "has not begun"),
        ({"until": NOON, "policy_name": "Tools"}, "access by the policy “Tools” is over: its time is up"),
        ({"until": NOON}, "time is up"),
        ({"revoked": Revoked(at=NOON, reason="x")}, "was revoked"),
        ({"starts": "first_use", "until": None, "duration_minutes": 5, "take_up_until": NOON}, "not taken up"),
        ({"rules": [FolderPathRule(path="/opt")]}, "does not lie"),
        ({"max_uses": 2, "uses_before": 2}, "as often as it may"),
        ({"child_processes": "deny"}, "observed only"),
        ({"run_as": "postgres"}, "as root only"),
        ({"rule_sets": ["00"]}, "application groups"),
        ({"rules": [VendorRule(vendor="Debian")]}, "vendor is not known on this computer"),
    ],
)
def test_what_does_not_cover_says_why(fields: dict[str, Any], why: str) -> None:
    """Each for one reason, named in the sentence."""
    answer = covered(a_grant(**fields))
    assert isinstance(answer, NotCovered)
    assert why in answer.why


def test_until_is_exclusive_and_from_is_inclusive() -> None:
    """At the second of the end it is over; at the second of the beginning it has begun."""
    assert state_at(a_grant(until=NOON), UNUSED, NOON) == "expired"
    assert state_at(a_grant(from_=NOON), UNUSED, NOON) == "in force"


def test_a_first_use_starts_the_clock_once() -> None:
    """The end follows from the first use here, or the document's, whichever is earlier."""
    grant = a_grant(starts="first_use", until=None, duration_minutes=30)
    assert ends_at(grant, UNUSED) is None
    used = UNUSED.once_more(NOON)
    assert ends_at(grant, used.once_more(NOON + HOUR)) == NOON + timedelta(minutes=30)
    told = a_grant(starts="first_use", until=NOON + timedelta(minutes=10), duration_minutes=30)
    assert ends_at(told, used) == NOON + timedelta(minutes=10)


def test_after_its_first_use_it_needs_no_taking_up() -> None:
    """`take_up_until` is for the first use alone."""
    grant = a_grant(starts="first_use", until=None, duration_minutes=30, take_up_until=NOON)
    assert state_at(grant, UNUSED, NOON) == "not taken up"
    assert state_at(grant, Use(first_used_at=NOON - timedelta(minutes=1), uses=1), NOON) == "in force"


def test_uses_here_add_to_those_before() -> None:
    """`max_uses` counts over all revisions and users."""
    grant = a_grant(max_uses=3, uses_before=1)
    assert isinstance(covered(grant, uses={"g1": Use(uses=1)}), Covered)
    assert isinstance(covered(grant, uses={"g1": Use(uses=2)}), NotCovered)


def test_the_grant_that_loses_least_is_taken() -> None:
    """A running clock before one that would start, unlimited before counted, the longest of equals."""
    waiting = a_grant(id="waiting", starts="first_use", until=None, duration_minutes=600)
    counted = a_grant(id="counted", max_uses=5, until=NOON + 5 * HOUR)
    short, long = a_grant(id="short", until=NOON + HOUR), a_grant(id="long", until=NOON + 2 * HOUR)
    names = []
    grants = [waiting, counted, short, long]
    while grants:
        answer = covered(*grants)
        names.append(answer.grant.id)
        grants = [grant for grant in grants if grant.id != answer.grant.id]
    assert names == ["long", "short", "counted", "waiting"]


def test_a_nameless_user_is_covered_by_grants_for_all_only() -> None:
    """A uid that looks like a name is none."""
    nameless = Who(61234, frozenset())
    assert isinstance(covered(a_grant(users=Users(names=["61234"])), who=nameless), NotCovered)
    assert isinstance(covered(a_grant(users=Users(all=True)), who=nameless), Covered)


def test_what_was_given_back_stays_over() -> None:
    """The computer remembers it, whatever the document still says."""
    assert state_at(a_grant(), Use(over="returned"), NOON) == "returned"


def test_a_ticket_at_the_start_cannot_be_asked_for() -> None:
    """Only where the request had it already."""
    assert not_enforceable(a_grant(ticket_required=True)) is not None
    assert not_enforceable(a_grant(ticket_required=True, request_id="r")) is None
