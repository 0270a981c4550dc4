"""Autonomous approval: one pure function that judges a request, and keeps every check whatever comes of it.

What is not known fails its check and says so.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator

from sojourn_shared.clock import in_words, rfc3339
from sojourn_shared.contracts.events import Application, Body, Model, Name, Time, UserName

from .people import Person
from .settings import LONGEST_MINUTES, NoGroups, none_yet

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
LIMIT_SPAN = timedelta(hours=24)
"""`daily_limit_per_user` counts this far back: a calendar day would allow twice the limit around midnight."""


class Hours(Body):
    """A weekly time of day, by the wall clock of `time_zone`. `until` ≤ `from` ends on the day after."""

    days: Annotated[list[Day], Field(min_length=1, max_length=7)]
    from_: Annotated[str, Field(alias="from", pattern=r"^([01]\d|2[0-3]):[0-5]\d$")]
    until: Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")]
    time_zone: Name

    @field_validator("time_zone")
    @classmethod
    def _is_known(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("is no time zone that is known here: expected a name like Europe/Oslo") from None
        return name

    def include(self, now: datetime) -> bool:
        local = now.astimezone(ZoneInfo(self.time_zone))
        begins, ends = time.fromisoformat(self.from_), time.fromisoformat(self.until)
        clock = local.time()
        if begins < ends:
            return DAYS[local.weekday()] in self.days and begins <= clock < ends
        since_today = DAYS[local.weekday()] in self.days and clock >= begins
        since_yesterday = DAYS[local.weekday() - 1] in self.days and clock < ends
        return since_today or since_yesterday


class AutonomousSettings(Body):
    """`/settings/autonomous-approval`. Durations in minutes."""

    enabled: bool = False
    trusted_users: Annotated[tuple[UserName, ...], Field(max_length=1000)] = ()
    low_risk_application_group_ids: NoGroups = ()
    low_risk_after_approvals: None = None
    trusted_computer_group_ids: NoGroups = ()
    max_duration_minutes: Annotated[int, Field(ge=1, le=LONGEST_MINUTES, strict=True)] = 60
    require_verified_application: bool = True
    daily_limit_per_user: Annotated[int, Field(ge=0, le=10000, strict=True)] = 5
    cooldown_after_decline_minutes: Annotated[int, Field(ge=0, le=LONGEST_MINUTES, strict=True)] = 60
    computer_seen_within_minutes: Annotated[int, Field(ge=1, le=LONGEST_MINUTES, strict=True)] = 15
    hours: Hours | None = None

    @field_validator("low_risk_application_group_ids", "trusted_computer_group_ids")
    @classmethod
    def _no_groups(cls, ids: tuple[str, ...]) -> tuple[str, ...]:
        return none_yet(ids, "groups")

    @field_validator("low_risk_after_approvals", mode="before")
    @classmethod
    def _not_by_count(cls, count: object) -> object:
        if count is not None:
            raise ValueError("low-risk applications cannot be used yet: leave it null")
        return count


class TrustEntry(Model):
    """Who wrote a name into `trusted_users`, with all that was known to be that person. `os_users` None: unstated."""

    by: str
    by_name: str
    at: Time
    account_ids: tuple[str, ...]
    os_users: tuple[str, ...] | None


def trust_after(
    before: Mapping[str, TrustEntry], trusted_users: Sequence[str], author: TrustEntry
) -> dict[str, TrustEntry]:
    """The entries once `author` saved `trusted_users`: who wrote a name remains its author until it is removed."""
    return {name: before.get(name, author) for name in trusted_users}


class Check(Model):
    """One condition of autonomous approval, as it was at the moment of asking."""

    name: str
    passed: bool
    value: str | int | bool | None
    threshold: str | int | bool | None
    detail: str


@dataclass(frozen=True, kw_only=True)
class Known:
    """What the service knew when the request was made.

    `beneficiary`: the person who would be elevated. `connected` None: nothing was ever heard of the computer's agent.
    """

    beneficiary: Person
    trust: TrustEntry | None
    autonomous_approvals: int
    last_declined_at: datetime | None
    connected: bool | None
    last_seen_at: datetime | None


def judge(
    settings: AutonomousSettings,
    known: Known,
    *,
    user: str,
    application: Application,
    duration: timedelta,
    now: datetime,
) -> tuple[Check, ...]:
    """Every check, in a fixed order; the request is approved when all passed. Unchanged inputs give the same answer."""
    return (
        _enabled(settings),
        _trusted(settings, known, user),
        _short(settings, duration),
        _verified(settings, application),
        _within_limit(settings, known),
        _cooled_down(settings, known, now),
        _seen(settings, known, now),
        _in_hours(settings, now),
    )


def passes(checks: Sequence[Check]) -> bool:
    return bool(checks) and all(check.passed for check in checks)


def failures(checks: Sequence[Check]) -> Iterator[str]:
    return (check.detail for check in checks if not check.passed)


# --- one condition each -----------------------------------------------------------------------------------------------


def _enabled(settings: AutonomousSettings) -> Check:
    detail = "Autonomous approval is on." if settings.enabled else "Autonomous approval is off."
    return Check(name="enabled", passed=settings.enabled, value=settings.enabled, threshold=True, detail=detail)


def _trusted(settings: AutonomousSettings, known: Known, user: str) -> Check:
    def check(passed: bool, detail: str) -> Check:
        return Check(name="trusted_user", passed=passed, value=user, threshold=None, detail=detail)

    if user not in settings.trusted_users:
        return check(False, f"{user} is not among the trusted users.")
    if known.trust is None:
        return check(False, f"Who trusted {user} is not known.")
    if known.trust.os_users is None:
        return check(False, f"{known.trust.by_name} trusted {user}, and nobody has stated which OS users they are.")
    if Person.of(known.trust.account_ids, known.trust.os_users).is_also(known.beneficiary):
        return check(False, f"{user} was trusted by {known.trust.by_name}, the same person: that does not count.")
    return check(True, f"{user} is trusted, by {known.trust.by_name}.")


def _short(settings: AutonomousSettings, duration: timedelta) -> Check:
    minutes, most = int(duration / timedelta(minutes=1)), settings.max_duration_minutes
    passed = minutes <= most
    detail = f"{minutes} minutes were asked for, at most {most} pass."
    return Check(name="duration", passed=passed, value=minutes, threshold=most, detail=detail)


def _verified(settings: AutonomousSettings, application: Application) -> Check:
    signature = application.signature
    if not settings.require_verified_application:
        passed, detail = True, "Verified applications are not required."
    else:
        passed = signature.status == "verified"
        detail = {
            "verified": f"The application is verified{f' by {signature.by}' if signature.by else ''}.",
            "unsigned": "The application is signed by nobody.",
            "invalid": "The application's signature or package record does not fit the file.",
            "unknown": "Whether the application is verified is not known.",
        }[signature.status]
    threshold = "verified" if settings.require_verified_application else None
    return Check(name="verified", passed=passed, value=signature.status, threshold=threshold, detail=detail)


def _within_limit(settings: AutonomousSettings, known: Known) -> Check:
    count, limit = known.autonomous_approvals, settings.daily_limit_per_user
    detail = f"{count} autonomous approvals in the last 24 hours, the limit is {limit}."
    return Check(name="daily_limit", passed=count < limit, value=count, threshold=limit, detail=detail)


def _cooled_down(settings: AutonomousSettings, known: Known, now: datetime) -> Check:
    span = settings.cooldown_after_decline_minutes
    declined = known.last_declined_at
    if declined is None:
        passed, value, detail = True, None, "No request was declined before."
    else:
        passed, value = now - declined >= timedelta(minutes=span), rfc3339(declined)
        detail = f"The last decline was at {in_words(declined)}; {span} minutes must pass."
    return Check(name="cooldown_after_decline", passed=passed, value=value, threshold=span, detail=detail)


def _seen(settings: AutonomousSettings, known: Known, now: datetime) -> Check:
    span = settings.computer_seen_within_minutes
    value = rfc3339(known.last_seen_at) if known.last_seen_at else None
    if known.connected:
        passed, detail = True, "The computer is connected."
    elif known.last_seen_at is None:
        passed, detail = False, "When the computer was last seen is not known."
    else:
        passed = now - known.last_seen_at <= timedelta(minutes=span)
        detail = (
            f"The computer was last seen at {in_words(known.last_seen_at)}; it must have been within {span} minutes."
        )
    return Check(name="computer_seen", passed=passed, value=value, threshold=span, detail=detail)


def _in_hours(settings: AutonomousSettings, now: datetime) -> Check:
    if (hours := settings.hours) is None:
        detail = "At any time."
        return Check(name="hours", passed=True, value=rfc3339(now), threshold=None, detail=detail)
    threshold = f"{','.join(hours.days)} {hours.from_}–{hours.until} {hours.time_zone}"
    local = now.astimezone(ZoneInfo(hours.time_zone))
    value = f"{DAYS[local.weekday()]} {local:%H:%M}"
    passed = hours.include(now)
    detail = f"It is {value} there; {'within' if passed else 'outside'} {threshold}."
    return Check(name="hours", passed=passed, value=value, threshold=threshold, detail=detail)
