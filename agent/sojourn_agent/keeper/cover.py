"""Which grant covers this person, this application, this moment: pure, and it says why not.

A `Use` is what the computer itself remembers of a grant: when it was first used, how often, and whether it is over.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sojourn_shared.contracts.wire import Application, Cause, Grant, UnreadableGrant
from sojourn_shared.matching import Match, match

from .document import Held


@dataclass(frozen=True)
class Use:
    """`over`: the cause for which the grant ended here, before its time; it never starts anything again."""

    first_used_at: datetime | None = None
    uses: int = 0
    over: Cause | None = None

    def once_more(self, now: datetime) -> "Use":
        return replace(self, first_used_at=self.first_used_at or now, uses=self.uses + 1)


NEVER_USED = Use()


@dataclass(frozen=True)
class Who:
    """The caller: `names` are all names that this computer knows for the uid."""

    uid: int
    names: frozenset[str]


@dataclass(frozen=True)
class Covered:
    grant: Grant
    match: Match
    at: datetime
    until: datetime | None
    """When the access ends by the grant's time if it is used `at` this moment; None: it has no end of its own."""


@dataclass(frozen=True)
class NotCovered:
    """`why`: a sentence on the grant that came nearest. `final`: no grant could change it, so nothing is asked."""

    why: str
    code: str = "not-covered"
    final: bool = False


def cover(
    held: Held, who: Who, application: Application, now: datetime, uses: Mapping[str, Use], *, but: str | None = None
) -> Covered | NotCovered:
    """The best grant in force for this: first those that lose nothing by it, of these the one that lasts longest.

    `but`: a grant that does not count (its run looks for another one).
    """
    found: list[Covered] = []
    nearest: tuple[int, str] = (0, "no grant on this computer names you")
    for grant in readable(held):
        if grant.id == but or not names_user(grant, who):
            continue
        use = uses.get(grant.id, NEVER_USED)
        if (why := not_enforceable(grant)) is not None:
            nearest = max(nearest, (2, f"{_called(grant)} cannot be enforced here: {why}"))
        elif (end := state_at(grant, use, now)) != "in force":
            nearest = max(nearest, (1, f"{_called(grant)} {_SENTENCES[end]}"))
        elif not isinstance(answer := match(grant.rules, application), Match):
            nearest = max(nearest, (4, answer.why))
        elif grant.max_uses is not None and grant.uses_before + use.uses >= grant.max_uses:
            nearest = max(nearest, (5, f"{_called(grant)} was used as often as it may be ({grant.max_uses})"))
        else:
            found.append(Covered(grant, answer, now, until_if_used(grant, use, now)))
    if not found:
        return NotCovered(nearest[1])
    return min(found, key=lambda covered: _cost(covered, uses))


def readable(held: Held) -> Iterable[Grant]:
    return (grant for grant in held.grants.values() if isinstance(grant, Grant))


def names_user(grant: Grant, who: Who) -> bool:
    return grant.users.all or not who.names.isdisjoint(grant.users.names)


def not_enforceable(grant: Grant | UnreadableGrant) -> str | None:
    """Why this agent must not act on a grant, or None: nothing is promised that is not kept."""
    if isinstance(grant, UnreadableGrant):
        return grant.reason
    if grant.child_processes != "allow":
        return f"child_processes “{grant.child_processes}” needs child_programs, which is observed only here"
    if grant.run_as != "root":
        return f"this agent runs applications as root only, not as “{grant.run_as}”"
    if grant.rule_sets:
        return "this agent does not take application groups yet"
    if grant.ticket_required and grant.request_id is None:
        return "this agent cannot ask for a ticket at the start of an application"
    if grant.starts == "first_use" and grant.until is None and grant.duration_minutes is None:
        return "it says neither an end nor a duration"
    return None


State = str
"""`in force`, or why not: `not begun`, `expired`, `not taken up`, `revoked`, `returned`, `over`."""


def state_at(grant: Grant, use: Use, now: datetime) -> State:
    if use.over is not None:
        return "returned" if use.over == "returned" else "over"
    if grant.revoked is not None:
        return "revoked"
    if now < grant.from_:
        return "not begun"
    end = ends_at(grant, use)
    if end is not None and now >= end:
        return "expired"
    if _waits_for_first_use(grant, use) and grant.take_up_until is not None and now >= grant.take_up_until:
        return "not taken up"
    return "in force"


def ends_at(grant: Grant, use: Use) -> datetime | None:
    """The end by time: the earlier of what the document says and of what follows from the first use here."""
    ends = [grant.until] if grant.until is not None else []
    if grant.starts == "first_use" and use.first_used_at is not None and grant.duration_minutes is not None:
        ends.append(use.first_used_at + timedelta(minutes=grant.duration_minutes))
    return min(ends, default=None)


def until_if_used(grant: Grant, use: Use, now: datetime) -> datetime | None:
    return ends_at(grant, use if use.first_used_at else replace(use, first_used_at=now))


def _waits_for_first_use(grant: Grant, use: Use) -> bool:
    return grant.starts == "first_use" and grant.until is None and use.first_used_at is None


def _cost(covered: Covered, uses: Mapping[str, Use]) -> tuple[bool, bool, float]:
    grant = covered.grant
    starts_clock = _waits_for_first_use(grant, uses.get(grant.id, NEVER_USED))
    lasts = covered.until.timestamp() if covered.until else float("inf")
    return starts_clock, grant.max_uses is not None, -lasts


def _called(grant: Grant) -> str:
    """As a person knows it: by its policy's name."""
    return (
        f"access by the policy “{grant.policy_name}”" if grant.policy_name else f"access by request {grant.request_id}"
    )


_SENTENCES = {
    "not begun": "has not begun",
    "expired": "is over: its time is up",
    "not taken up": "is over: it was not taken up in time",
    "revoked": "was revoked",
    "returned": "was given back",
    "over": "is over",
}
