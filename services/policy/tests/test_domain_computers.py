"""Who may enrol as what, what changes a computer, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sojourn_policy.domain import computers as domain
from sojourn_policy.domain.computers import (
    AlreadyEnrolled,
    Computer,
    ComputerGuarantee,
    ComputerPlatform,
    ComputerUser,
    Enrolment,
    Gone,
    Health,
    StandingRight,
    Token,
    TokenRefused,
    TokenSpent,
)
from sojourn_shared.contracts.events import Actor, ExternalRef
from sojourn_shared.errors import DomainError, InvalidBody

NOW = datetime(2026, 11, 24, 10, 0, tzinfo=UTC)
LATER = NOW + timedelta(minutes=5)
ADA = Actor(kind="account", id="a", name="Ada")
ENFORCED = ComputerGuarantee(word="enforced", why="tried")


def token_of(**changes: Any) -> Token:
    made = domain.create_token(
        name="t", max_uses=1, expires_at=None, labels={"site": "oslo"}, bound_to=None, by=ADA, now=NOW
    )
    return replace(made, **changes)


def asked(machine: str = "m", keeper: str = "k", link: str = "l", name: str = "ws") -> Enrolment:
    return Enrolment(
        name=name,
        machine_id=machine,
        platform=ComputerPlatform(os="linux", distribution="debian", version="12", architecture="x86_64"),
        agent_version="1",
        link_public_key=link,
        keeper_public_key=keeper,
        guarantees={"caller": ENFORCED},
    )


def enrol(asked_for: Enrolment, token: Token, *claimants: Computer, now: datetime = NOW) -> tuple[Computer, Token]:
    return domain.enrol(asked_for, token, claimants, new_secret="s", now=now)


TOKEN = token_of()
COMPUTER, USED = enrol(asked(), TOKEN)
GONE = domain.decommission(COMPUTER, now=NOW)
BOUND = token_of(computer_id=COMPUTER.id)

# --- tokens and enrolment ---------------------------------------------------------------------------------------------


def test_a_token_lives_a_day_unless_told_otherwise() -> None:
    """And at most a year."""
    assert TOKEN.expires_at == NOW + timedelta(hours=24)
    for end in (NOW, NOW - timedelta(seconds=1), NOW + timedelta(days=367)):
        with pytest.raises(InvalidBody) as refusal:
            domain.create_token(name="t", max_uses=1, expires_at=end, labels={}, bound_to=None, by=ADA, now=NOW)
        assert refusal.value.errors[0].pointer == "/expires_at"


def test_no_token_is_bound_to_a_decommissioned_computer() -> None:
    """It is out for ever."""
    with pytest.raises(Gone):
        domain.create_token(name="t", max_uses=1, expires_at=None, labels={}, bound_to=GONE, by=ADA, now=NOW)


def test_a_new_computer_uses_the_token_and_has_its_labels() -> None:
    """Labels come from the token, never from the computer."""
    assert (COMPUTER.version, COMPUTER.status, COMPUTER.offline_secret) == (1, "enrolled", "s")
    assert COMPUTER.labels == {"site": "oslo"}
    assert (USED.uses, USED.version, USED.is_spent) == (1, 2, True)


def test_a_repeat_changes_nothing() -> None:
    """The token that it was enrolled with, though spent, and another one, which is not used by it."""
    assert enrol(asked(name="other"), USED, COMPUTER) == (COMPUTER, USED)
    fresh = token_of()
    assert enrol(asked(), fresh, COMPUTER) == (COMPUTER, fresh)
    assert enrol(asked(), BOUND, COMPUTER) == (COMPUTER, BOUND)


def test_a_bound_token_gives_a_reinstalled_machine_its_id() -> None:
    """New keys and a new secret; the name and labels that people gave stay; its reports count from the start."""
    old = replace(COMPUTER, name="renamed", labels={"floor": "2"}, health_seq=9, health_at=NOW)
    anew, used = enrol(asked("m2", "k2", "l2"), BOUND, old, now=LATER)
    assert (anew.id, anew.version, anew.name, anew.labels) == (
        old.id,
        2,
        "renamed",
        {"floor": "2", "site": "oslo"},
    )
    assert (anew.machine_id, anew.keeper_public_key, anew.link_public_key) == ("m2", "k2", "l2")
    assert (anew.health_seq, anew.health_at, anew.enrolled_at, used.uses) == (0, None, LATER, 1)


OTHER = enrol(asked("m9", "k9", "l9", name="other"), token_of())[0]


@pytest.mark.parametrize(
    ("attempt", "error"),
    [
        (lambda: enrol(asked("new"), TOKEN, now=TOKEN.expires_at), TokenRefused),
        (lambda: enrol(asked(), USED, COMPUTER, now=USED.expires_at), TokenRefused),
        (lambda: enrol(asked("new"), USED), TokenSpent),
        (lambda: enrol(asked(), token_of(uses=1), COMPUTER), TokenSpent),
        (lambda: enrol(asked(keeper="k2"), TOKEN, COMPUTER), AlreadyEnrolled),
        (lambda: enrol(asked(link="l2"), TOKEN, COMPUTER), AlreadyEnrolled),
        (lambda: enrol(asked(machine="m2"), TOKEN, COMPUTER), AlreadyEnrolled),
        (lambda: enrol(asked(keeper="k2"), USED, COMPUTER), AlreadyEnrolled),
        (lambda: enrol(asked("m9", "k9", "l9"), BOUND, COMPUTER, OTHER), AlreadyEnrolled),
        (lambda: enrol(asked("m9", "k2", "l2"), BOUND, COMPUTER, OTHER), AlreadyEnrolled),
        (lambda: enrol(asked("m2", "k2"), replace(BOUND, uses=1), COMPUTER), TokenSpent),
        (lambda: enrol(asked(), BOUND, GONE), Gone),
    ],
    ids=[
        "expired",
        "expired, repeated",
        "spent",
        "spent on another, repeated",
        "another keeper",
        "another link",
        "a copied key",
        "another keeper, spent",
        "bound, but this is another computer",
        "bound, but another computer's machine",
        "bound, spent",
        "bound to one that is gone",
    ],
)
def test_who_is_not_enrolled(attempt: Callable[[], Any], error: type[DomainError]) -> None:
    """Each refusal, with its error."""
    with pytest.raises(error):
        attempt()


# --- what becomes of it -----------------------------------------------------------------------------------------------


def test_people_say_what_a_computer_is() -> None:
    """What is given replaces; the same again changes nothing."""
    refs = [ExternalRef(system="cmdb", number="42")]
    edited = domain.edit(COMPUTER, now=LATER, name="n", labels={"a": "b"}, external_refs=refs)
    assert (edited.version, edited.name, edited.labels, edited.external_refs) == (2, "n", {"a": "b"}, refs)
    assert domain.edit(edited, now=LATER, name="n", labels={"a": "b"}, external_refs=refs) is edited
    assert domain.edit(edited, now=LATER, labels={}).name == "n"


def test_a_computer_leaves_once() -> None:
    """Again: unchanged."""
    assert (GONE.status, GONE.version) == ("decommissioned", 2)
    assert domain.decommission(GONE, now=LATER) is GONE


@pytest.mark.parametrize(
    "change", [lambda: domain.edit(GONE, now=LATER, name="n"), lambda: domain.renew_link(GONE, "l")]
)
def test_who_left_is_kept_as_it_was(change: Callable[[], Computer]) -> None:
    """Neither edited nor renewed."""
    with pytest.raises(Gone):
        change()


def health(seq: int = 1, at: datetime = NOW, **changes: Any) -> Health:
    said: dict[str, Any] = {"guarantees": {"caller": ENFORCED}, "users": [], "standing_rights": []}
    return Health(seq=seq, at=at, **said | changes)


ALICE, BOB = ComputerUser(name="alice", uid=1000), ComputerUser(name="bob", uid=1001)
SUDO = StandingRight(user="bob", through="sudo")


def test_health_that_says_nothing_new_is_no_new_version() -> None:
    """Only its number is kept; the order of users means nothing."""
    heard = domain.report_health(COMPUTER, health(), now=LATER)
    assert (heard.version, heard.health_seq, heard.health_at) == (1, 1, NOW)
    first = domain.report_health(COMPUTER, health(users=[BOB, ALICE]), now=LATER)
    again = domain.report_health(first, health(2, users=[ALICE, BOB]), now=LATER)
    assert (first.version, again.version, again.users) == (2, 2, [ALICE, BOB])


@pytest.mark.parametrize(
    "news",
    [
        {"guarantees": {"caller": ComputerGuarantee(word="absent", why="gone")}},
        {"users": [ALICE]},
        {"standing_rights": [SUDO]},
        {"agent_version": "2"},
    ],
)
def test_health_that_says_something_new_is_a_new_version(news: dict[str, Any]) -> None:
    """Of guarantees, users, standing rights or the agent."""
    heard = domain.report_health(COMPUTER, health(**news), now=LATER)
    assert (heard.version, heard.updated_at) == (2, LATER)


def test_a_late_report_changes_nothing_and_a_lost_count_is_news() -> None:
    """Reports may be delivered again out of order; a computer that lost its spool counts from 1."""
    heard = domain.report_health(COMPUTER, health(5, LATER, users=[ALICE]), now=LATER)
    assert domain.report_health(heard, health(4, NOW), now=LATER) is heard
    assert domain.report_health(heard, health(5, LATER), now=LATER) is heard
    anew = domain.report_health(heard, health(1, LATER + timedelta(minutes=1)), now=LATER)
    assert (anew.users, anew.health_seq) == ([], 1)


def test_who_left_is_not_heard() -> None:
    """A report under way when the computer was decommissioned."""
    assert domain.report_health(GONE, health(users=[ALICE]), now=LATER) is GONE
