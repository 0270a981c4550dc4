"""What may happen to a request, and every pair of state and wish that is refused."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sojourn_requests import domain
from sojourn_requests.domain import (
    Account,
    AlreadyDecided,
    Asker,
    AskingDisabled,
    AskingSettings,
    Check,
    Decider,
    DurationOutOfRange,
    FactMissing,
    NoApprover,
    NotPending,
    OnBehalfOf,
    Person,
    Request,
    RequestLimit,
    SelfApproval,
    Surroundings,
    Terms,
    TicketRequired,
    Wish,
)
from sojourn_shared.contracts.events import Application, ExternalRef, Signature
from sojourn_shared.errors import DomainError, InvalidBody, NotPermitted

NOW = datetime(2026, 11, 2, 9, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)
HTOP = Application(path="/usr/bin/htop", executable="htop", sha256="ab" * 32, arguments=["-d", "5"])
SETTINGS = AskingSettings()
ALICE = Person.of(["account-alice"], ["alice"])
BOB = Decider(
    id="account-bob",
    name="Bob",
    person=Person.of(["account-bob"], ["bob"]),
    roles=frozenset({"approver"}),
    identified=True,
)
CAROL = replace(BOB, id="account-carol", name="Carol", person=Person.of(["account-carol"], ["carol"]))
APPROVER = Account(id="account-bob", name="Bob", roles=frozenset({"approver"}), os_users=("bob",))
FAILED = Check(name="enabled", passed=False, value=False, threshold=True, detail="Autonomous approval is off.")
PASSED = FAILED.model_copy(update={"passed": True})


def wish(**changes: Any) -> Wish:
    asked = Wish(
        computer_id="c1",
        user="alice",
        application=HTOP,
        duration=timedelta(minutes=30),
        justification="to see",
        asker=Asker(id="account-alice", name="Alice", account_ids=("account-alice",), os_users=("alice",)),
    )
    return replace(asked, **changes)


def around(**changes: Any) -> Surroundings:
    usual = Surroundings(settings=SETTINGS, twin=None, pending=0, approvers=[APPROVER], checks=(FAILED,))
    return replace(usual, **changes)


def pending(**changes: Any) -> Request:
    return domain.ask(wish(**changes), around(), id="r1", now=NOW)


def approve(request: Request, by: Decider = BOB, now: datetime = LATER, **terms: Any) -> Request:
    return domain.approve(
        request, by=by, parties=ALICE, terms=Terms(**terms), settings=SETTINGS, grant_id="g1", now=now
    )


def decline(request: Request, by: Decider = BOB, now: datetime = LATER, note: str = "no") -> Request:
    return domain.decline(request, by=by, parties=ALICE, note=note, settings=SETTINGS, now=now)


def cancel(request: Request, now: datetime = LATER) -> Request:
    return domain.cancel(request, by="account-alice", by_name="Alice", reason=None, now=now)


AFTER = NOW + timedelta(days=2)
STATES: dict[str, Request] = {
    "pending": pending(),
    "past its time": replace(pending(), expires_at=NOW + timedelta(minutes=1)),
    "approved": approve(pending()),
    "declined": decline(pending()),
    "cancelled": cancel(pending()),
    "expired": domain.expire(pending(), now=AFTER),
}
WISHES: dict[str, Callable[[Request], Request]] = {
    "approved by Bob": approve,
    "approved by Carol": lambda request: approve(request, CAROL),
    "approved by Bob for less": lambda request: approve(request, duration=timedelta(minutes=1)),
    "approved by nobody": lambda request: domain.approve_autonomously(
        replace(request, checks=(PASSED,)), settings=SETTINGS, grant_id="g2", now=LATER
    ),
    "declined by Bob": lambda request: decline(request, note="still no"),
    "declined by Carol": lambda request: decline(request, CAROL),
    "cancelled": cancel,
    "expired": lambda request: domain.expire(request, now=AFTER),
}
# What becomes of it: a status, an error, or None where nothing changes.
OUTCOMES: dict[str, tuple[Any, ...]] = {
    "approved by Bob": ("approved", NotPending, None, AlreadyDecided, NotPending, NotPending),
    "approved by Carol": ("approved", NotPending, AlreadyDecided, AlreadyDecided, NotPending, NotPending),
    "approved by Bob for less": ("approved", NotPending, AlreadyDecided, AlreadyDecided, NotPending, NotPending),
    "approved by nobody": ("approved", NotPending, AlreadyDecided, AlreadyDecided, NotPending, NotPending),
    "declined by Bob": ("declined", NotPending, AlreadyDecided, None, NotPending, NotPending),
    "declined by Carol": ("declined", NotPending, AlreadyDecided, AlreadyDecided, NotPending, NotPending),
    "cancelled": ("cancelled", NotPending, AlreadyDecided, AlreadyDecided, None, NotPending),
    "expired": ("expired", "expired", AlreadyDecided, AlreadyDecided, NotPending, NotPending),
}
PAIRS = [
    (state, what, outcome)
    for what, outcomes in OUTCOMES.items()
    for state, outcome in zip(STATES, outcomes, strict=True)
]


@pytest.mark.parametrize(("state", "what", "outcome"), PAIRS)
def test_every_state_meets_every_wish(state: str, what: str, outcome: Any) -> None:
    """Only what is pending, and in time, becomes anything; the same again changes nothing; the rest is refused."""
    request = STATES[state]
    if outcome is None:
        assert WISHES[what](request) is request
    elif isinstance(outcome, str):
        changed = WISHES[what](request)
        assert (changed.status, changed.version) == (outcome, request.version + 1)
    else:
        with pytest.raises(DomainError) as refused:
            WISHES[what](request)
        assert type(refused.value) is outcome


def test_who_comes_late_reads_who_decided_and_when() -> None:
    """409 names the decider and the time, for people and for programs."""
    with pytest.raises(AlreadyDecided, match=r"Bob approved it at 2026-11-02 10:00:00 UTC") as refused:
        decline(STATES["approved"], CAROL)
    assert refused.value.more == {"decided_by": "account-bob", "decided_at": "2026-11-02T10:00:00.000000Z"}


def test_a_request_cannot_expire_before_its_time() -> None:
    """The scheduler's statement has the same condition."""
    with pytest.raises(ValueError, match="not yet"):
        domain.expire(pending(), now=LATER)


def test_an_approval_narrows_what_was_asked() -> None:
    """Shorter, fewer uses, another rule, any arguments; the take-up time counts from the approval."""
    request = approve(
        pending(max_uses=3), duration=timedelta(minutes=5), match="folder_path", arguments="any", max_uses=1, note="ok"
    )
    decision = request.decision
    assert decision is not None
    assert (decision.duration_minutes, decision.max_uses, decision.note) == (5, 1, "ok")
    assert [rule.model_dump(exclude_none=True) for rule in decision.rules] == [
        {"type": "folder_path", "path": "/usr/bin", "recursive": False, "executable": "htop"}
    ]
    assert request.take_up_until == LATER + timedelta(minutes=SETTINGS.take_up_minutes)
    assert (request.grant_id, request.approvals[0].by, request.approvals[0].seat) == ("g1", "account-bob", "approver")


def test_what_may_start_later_may_be_taken_up_later() -> None:
    """The take-up time counts from `not_before` when that is later than the approval."""
    tomorrow = NOW + timedelta(days=1)
    request = approve(pending(not_before=tomorrow))
    assert request.take_up_until == tomorrow + timedelta(minutes=SETTINGS.take_up_minutes)


@pytest.mark.parametrize("minutes", [0, -1, 31])
def test_an_approval_is_never_longer_than_what_was_asked(minutes: int) -> None:
    """Nor is it nothing."""
    with pytest.raises(DurationOutOfRange, match="1 to 30"):
        approve(pending(), duration=timedelta(minutes=minutes))


def test_settings_that_became_stricter_hold_for_what_waits() -> None:
    """What was asked for eight hours cannot be approved for more than the settings allow by now."""
    strict = AskingSettings(default_minutes=10, longest_minutes=10)
    with pytest.raises(DurationOutOfRange, match="1 to 10"):
        domain.approve(pending(), by=BOB, parties=ALICE, terms=Terms(), settings=strict, grant_id="g", now=LATER)


def test_an_approval_allows_no_more_uses_than_asked() -> None:
    """Fewer, yes."""
    with pytest.raises(InvalidBody, match="fewer, not more"):
        approve(pending(max_uses=2), max_uses=3)


# --- who decides ------------------------------------------------------------------------------------------------------

FORBIDDEN: dict[str, tuple[Decider, type[DomainError]]] = {
    "the account that asked": (replace(BOB, person=Person.of(["account-alice"], ["bob"])), SelfApproval),
    "another account with the same OS user": (replace(BOB, person=Person.of(["other"], ["alice"])), SelfApproval),
    "the same OS user in other letters": (replace(BOB, person=Person.of(["other"], ["ALICE"])), SelfApproval),
    "somebody whose OS users nobody stated": (replace(BOB, identified=False), NotPermitted),
    "somebody without the role": (replace(BOB, roles=frozenset({"requester", "auditor"})), NotPermitted),
    "somebody of some computer groups": (replace(BOB, everywhere=False), NotPermitted),
    "oneself without stated OS users": (
        replace(BOB, person=Person.of(["account-alice"], []), identified=False),
        SelfApproval,
    ),
}


@pytest.mark.parametrize("who", FORBIDDEN)
@pytest.mark.parametrize("decide", [approve, decline])
def test_these_cannot_decide(who: str, decide: Callable[..., Request]) -> None:
    """Neither approve nor decline."""
    decider, error = FORBIDDEN[who]
    with pytest.raises(error):
        decide(pending(), decider)


def test_one_person_is_found_through_all_their_accounts() -> None:
    """Accounts that share an OS user are one person, and so is whoever shares one with these."""
    accounts = [
        Account(id="a1", name="Alice", os_users=("alice", "alice-adm")),
        Account(id="a2", name="Alice the administrator", os_users=("Alice-Adm", "root-alice")),
        Account(id="b", name="Bob", os_users=("bob",)),
        Account(id="n", name="Nobody knows", os_users=None),
    ]
    person = Person.of([], ["alice"])
    for _ in range(2):
        person = person.with_accounts(accounts)
    assert person.account_ids == {"a1", "a2"}
    assert "root-alice" in person.os_users
    assert not person.is_also(accounts[2].person)
    assert not person.is_also(accounts[3].person)


def test_a_client_that_passes_on_both_the_wish_and_the_decision_is_not_the_person() -> None:
    """An ITSM tool asks for one person and brings the approval of another; alone it decides nothing of its own."""
    asker = Asker(id="client", name="ITSM", account_ids=("client", "owner"), acted_for_another=True)
    acting = replace(BOB, id="client", on_behalf_of=OnBehalfOf(account_id="account-bob", name="Bob"))
    assert asker.only_passed_on(acting)
    assert not asker.only_passed_on(replace(acting, on_behalf_of=None))
    assert not asker.only_passed_on(replace(acting, id="another client"))
    assert not replace_asker(asker, acted_for_another=False).only_passed_on(acting)


def replace_asker(asker: Asker, **changes: Any) -> Asker:
    return asker.model_copy(update=changes)


# --- asking -----------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], type[DomainError]]] = {
    "asking is off": ({}, {"settings": AskingSettings(enabled=False)}, AskingDisabled),
    "asking is open to others": (
        {},
        {"settings": AskingSettings.model_validate({"who": {"all": False, "users": ["bob"]}})},
        AskingDisabled,
    ),
    "too long": ({"duration": timedelta(minutes=481)}, {}, DurationOutOfRange),
    "no time": ({"duration": timedelta(0)}, {}, DurationOutOfRange),
    "too short a reason": ({"justification": "why"}, {"settings": AskingSettings(justification_min=4)}, InvalidBody),
    "too far ahead": ({"not_before": NOW + timedelta(days=31)}, {}, InvalidBody),
    "facts too large": ({"application": HTOP.model_copy(update={"arguments": ["x" * 49152]})}, {}, InvalidBody),
    "no ticket": ({}, {"settings": AskingSettings(ticket="required")}, TicketRequired),
    "a ticket of another form": (
        {"external_refs": (ExternalRef(system="ticket", number="nonsense"),)},
        {"settings": AskingSettings(ticket_pattern=r"INC\d+")},
        TicketRequired,
    ),
    "too many": ({}, {"pending": 5}, RequestLimit),
    "nobody to decide": ({}, {"approvers": []}, NoApprover),
}


@pytest.mark.parametrize("why", REFUSED)
def test_this_cannot_be_asked(why: str) -> None:
    """Each with its own code."""
    changes, surroundings, error = REFUSED[why]
    with pytest.raises(error):
        domain.ask(wish(**changes), around(**surroundings), id="r", now=NOW)


def test_nobody_is_needed_where_autonomous_approval_decides() -> None:
    """Every check passed: the request is made although nobody could approve it."""
    request = domain.ask(wish(), around(approvers=[], checks=(PASSED,)), id="r", now=NOW)
    approved = domain.approve_autonomously(request, settings=SETTINGS, grant_id="g", now=NOW)
    assert approved.decision is not None
    assert (approved.decision.by, approved.decision.checks, approved.approvals) == ("autonomous", (PASSED,), ())


def test_a_failed_check_is_never_approved_autonomously() -> None:
    """It is a fault of ours to try."""
    with pytest.raises(ValueError, match="Autonomous approval is off"):
        domain.approve_autonomously(pending(), settings=SETTINGS, grant_id="g", now=NOW)


def test_the_same_wish_again_is_the_request_that_waits() -> None:
    """Also when the limit of pending requests is reached."""
    twin = pending()
    assert domain.ask(wish(), around(twin=twin, pending=5), id="r2", now=NOW) is twin


def test_references_change_in_every_state_and_nothing_else_does() -> None:
    """An ITSM tool may write its number back after the decision."""
    ref = ExternalRef(system="ticket", number="INC1")
    for request in STATES.values():
        changed = domain.refer(request, [ref], now=AFTER)
        assert (changed.status, changed.version) == (request.status, request.version + 1)
        assert domain.refer(changed, [ref], now=AFTER) is changed


def test_only_an_approved_request_loses_its_grant_and_only_once() -> None:
    """The reason stays with it, for who asks later."""
    for state, request in STATES.items():
        lost = domain.lose_grant(request, "document_full", now=AFTER)
        assert (lost.problem == "document_full") == (state == "approved")
        assert domain.lose_grant(lost, "decommissioned", now=AFTER) is lost


# --- rules ------------------------------------------------------------------------------------------------------------

VERIFIED = HTOP.model_copy(
    update={"vendor": "Debian", "product": "htop", "signature": Signature(status="verified", by="Debian")}
)


def test_every_match_makes_the_narrowest_rule_of_its_kind() -> None:
    """Arguments are pinned, and what else is known beside the fact that was chosen."""
    pinned = {"arguments": ["-d", "5"]}
    rules = {one.match: one.rule.model_dump(exclude_none=True) for one in domain.suggested_rules(VERIFIED)}
    assert rules == {
        "file_hash": {"type": "file_hash", "sha256": "ab" * 32} | pinned,
        "verified_executable": {
            "type": "verified_executable", "executable": "htop", "product": "htop", "vendor": "Debian",
        } | pinned,
        "product": {"type": "product", "product": "htop", "vendor": "Debian", "verified": True} | pinned,
        "vendor": {"type": "vendor", "vendor": "Debian", "verified": True} | pinned,
        "folder_path": {"type": "folder_path", "path": "/usr/bin", "recursive": False, "executable": "htop"} | pinned,
    }  # fmt: skip


def test_only_what_the_facts_allow_is_suggested() -> None:
    """A path alone makes one rule; facts without arguments asked for none."""
    bare = Application(path="/usr/bin/bash")
    (only,) = domain.suggested_rules(bare)
    assert only.rule.model_dump() == {
        "type": "folder_path",
        "path": "/usr/bin",
        "recursive": False,
        "executable": "bash",
        "arguments": [],
    }
    assert [warning.code for warning in only.warnings] == ["is-root"]


def test_a_windows_path_is_taken_apart_its_own_way() -> None:
    """The folder is the drive's, the name what follows the last backslash."""
    rule = domain.rule_for(Application(path=r"C:\Tools\app.exe"), "folder_path", "exact")
    assert rule.model_dump(include={"path", "executable"}) == {"path": r"C:\Tools", "executable": "app.exe"}


@pytest.mark.parametrize("match", ["file_hash", "verified_executable", "product", "vendor"])
def test_a_rule_of_an_unknown_fact_is_refused(match: Any) -> None:
    """What the computer did not tell cannot be approved by; `unknown` is not verified."""
    with pytest.raises(FactMissing):
        approve(pending(application=Application(path="/usr/bin/htop")), match=match)


@pytest.mark.parametrize("status", ["unsigned", "invalid", "unknown"])
@pytest.mark.parametrize("match", ["verified_executable", "product", "vendor"])
def test_a_rule_that_could_never_match_is_refused(match: Any, status: Any) -> None:
    """These rules want a verified signature; without one the approval would be an empty promise."""
    facts = VERIFIED.model_copy(update={"signature": Signature(status=status)})
    with pytest.raises(FactMissing, match=status):
        domain.rule_for(facts, match, "exact")
