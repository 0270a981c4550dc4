"""Autonomous approval as a pure function: each check alone, and what is not known."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from sojourn_requests import domain
from sojourn_requests.domain import AutonomousSettings, Check, Hours, Known, Person, TrustEntry
from sojourn_shared.contracts.events import Application, Signature

NOW = datetime(2026, 11, 2, 9, tzinfo=UTC)  # a Monday
ADA = TrustEntry(by="ada", by_name="Ada", at=NOW, account_ids=("ada",), os_users=("ada",))
OPEN: dict[str, Any] = {"enabled": True, "trusted_users": ["alice"]}
KNOWN: dict[str, Any] = {
    "beneficiary": Person.of(["account-alice"], ["alice"]),
    "trust": ADA,
    "autonomous_approvals": 0,
    "last_declined_at": None,
    "connected": True,
    "last_seen_at": NOW,
}
NAMES = [
    "enabled",
    "trusted_user",
    "duration",
    "verified",
    "daily_limit",
    "cooldown_after_decline",
    "computer_seen",
    "hours",
]


def judged(
    settings: dict[str, Any] | None = None,
    known: dict[str, Any] | None = None,
    minutes: int = 30,
    status: Any = "verified",
) -> dict[str, Check]:
    checks = domain.judge(
        AutonomousSettings.model_validate(OPEN | (settings or {})),
        Known(**(KNOWN | (known or {}))),
        user="alice",
        application=Application(path="/usr/bin/htop", signature=Signature(status=status)),
        duration=timedelta(minutes=minutes),
        now=NOW,
    )
    assert [check.name for check in checks] == NAMES
    return {check.name: check for check in checks}


def test_all_checks_pass_and_all_are_kept() -> None:
    """Each with its value, its threshold and a sentence."""
    checks = judged()
    assert domain.passes(list(checks.values()))
    assert all(check.detail.endswith(".") for check in checks.values())


FAILING: list[tuple[str, str, dict[str, Any]]] = [
    ("enabled", "is off", {"settings": {"enabled": False}}),
    ("trusted_user", "not among", {"settings": {"trusted_users": ["bob"]}}),
    ("trusted_user", "Who trusted alice is not known", {"known": {"trust": None}}),
    ("trusted_user", "nobody has stated", {"known": {"trust": ADA.model_copy(update={"os_users": None})}}),
    (
        "trusted_user",
        "the same person: that does not count",
        {"known": {"trust": ADA.model_copy(update={"account_ids": ("account-alice",)})}},
    ),
    (
        "trusted_user",
        "the same person: that does not count",
        {"known": {"trust": ADA.model_copy(update={"os_users": ("ALICE",)})}},
    ),
    ("duration", "61 minutes were asked for, at most 60", {"minutes": 61}),
    ("verified", "not known", {"status": "unknown"}),
    ("verified", "signed by nobody", {"status": "unsigned"}),
    ("verified", "does not fit", {"status": "invalid"}),
    ("daily_limit", "5 autonomous approvals", {"known": {"autonomous_approvals": 5}}),
    ("cooldown_after_decline", "60 minutes must pass", {"known": {"last_declined_at": NOW - timedelta(minutes=59)}}),
    ("computer_seen", "not known", {"known": {"connected": None, "last_seen_at": None}}),
    (
        "computer_seen",
        "within 15 minutes",
        {"known": {"connected": False, "last_seen_at": NOW - timedelta(minutes=16)}},
    ),
    (
        "hours",
        "outside",
        {"settings": {"hours": {"days": ["mon"], "from": "09:01", "until": "17:00", "time_zone": "UTC"}}},
    ),
]


@pytest.mark.parametrize(("name", "detail", "case"), FAILING)
def test_one_failing_check_alone_stops_it(name: str, detail: str, case: dict[str, Any]) -> None:
    """The others still stand as they were, and the failing one says why."""
    checks = judged(**case)
    assert [check.name for check in checks.values() if not check.passed] == [name]
    assert detail in checks[name].detail
    assert not domain.passes(list(checks.values()))


PASSING: list[tuple[str, dict[str, Any]]] = [
    ("duration", {"minutes": 60}),
    ("verified", {"status": "unknown", "settings": {"require_verified_application": False}}),
    ("daily_limit", {"known": {"autonomous_approvals": 4}}),
    ("cooldown_after_decline", {"known": {"last_declined_at": NOW - timedelta(minutes=60)}}),
    ("computer_seen", {"known": {"connected": False, "last_seen_at": NOW - timedelta(minutes=15)}}),
    (
        "hours",
        {"settings": {"hours": {"days": ["mon"], "from": "09:00", "until": "09:01", "time_zone": "UTC"}}},
    ),
]


@pytest.mark.parametrize(("name", "case"), PASSING)
def test_a_value_at_its_limit_passes(name: str, case: dict[str, Any]) -> None:
    """Limits are the last value that is allowed."""
    assert judged(**case)[name].passed


HOURS = Hours.model_validate({"days": ["mon", "fri"], "from": "22:00", "until": "02:00", "time_zone": "Europe/Oslo"})


@pytest.mark.parametrize(
    ("moment", "inside"),
    [
        ("2026-11-02T20:59:59Z", False),  # Monday 21:59:59 in Oslo
        ("2026-11-02T21:00:00Z", True),  # Monday 22:00
        ("2026-11-03T00:59:59Z", True),  # Tuesday 01:59:59, since Monday
        ("2026-11-03T01:00:00Z", False),  # Tuesday 02:00
        ("2026-11-03T21:30:00Z", False),  # Tuesday 22:30
        ("2026-11-06T23:30:00Z", True),  # Saturday 00:30, since Friday
        ("2026-07-06T20:00:00Z", True),  # Monday 22:00 in summer time
    ],
)
def test_hours_over_midnight_belong_to_the_day_they_start(moment: str, inside: bool) -> None:
    """By the wall clock of the time zone, summer and winter."""
    assert HOURS.include(datetime.fromisoformat(moment)) is inside


@pytest.mark.parametrize(
    "body",
    [
        {"trusted_computer_group_ids": ["01930000-0000-7000-8000-000000000001"]},
        {"low_risk_application_group_ids": ["01930000-0000-7000-8000-000000000001"]},
        {"low_risk_after_approvals": 3},
        {"hours": {"days": ["mon"], "from": "9:00", "until": "17:00", "time_zone": "UTC"}},
        {"hours": {"days": ["mon"], "from": "09:00", "until": "17:00", "time_zone": "Mars/Olympus"}},
        {"hours": {"days": ["mon"], "from": "09:00", "until": "17:00", "time_zone": "../../etc/passwd"}},
        {"max_duration_minutes": 0},
        {"anything": 1},
    ],
)
def test_settings_that_cannot_be_kept_are_refused(body: dict[str, Any]) -> None:
    """What cannot be used yet is not silently ignored."""
    with pytest.raises(ValidationError):
        AutonomousSettings.model_validate(body)


def test_a_name_keeps_its_author_until_it_is_removed() -> None:
    """Saving the list again takes over nobody else's entry; a name that left and came back has a new author."""
    bea = ADA.model_copy(update={"by": "bea", "by_name": "Bea"})
    first = domain.trust_after({}, ["alice"], ADA)
    second = domain.trust_after(first, ["alice", "bob"], bea)
    assert {name: one.by for name, one in second.items()} == {"alice": "ada", "bob": "bea"}
    gone = domain.trust_after(second, ["bob"], bea)
    assert domain.trust_after(gone, ["alice", "bob"], bea)["alice"].by == "bea"
