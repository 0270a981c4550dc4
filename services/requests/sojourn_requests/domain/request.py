"""A request for elevation and everything that may happen to it. Read this first.

pending ─▶ approved | declined | cancelled | expired        (the last four are final)
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from sojourn_shared.clock import in_words, rfc3339
from sojourn_shared.contracts.events import Application, ExternalRef, Model, RequestDecision, Time
from sojourn_shared.errors import FieldError, InvalidBody, NotPermitted

from .autonomous import Check, failures, passes
from .errors import (
    AlreadyDecided,
    AskingDisabled,
    DurationOutOfRange,
    NoApprover,
    NotPending,
    RequestLimit,
    SelfApproval,
    TicketRequired,
)
from .people import Account, Asker, Decider, OnBehalfOf, Person
from .rules import ArgumentsMatch, Match, rule_for, usual_match
from .settings import AskingSettings

Status = Literal["pending", "approved", "declined", "cancelled", "expired"]
FARTHEST_START = timedelta(days=30)
FACTS_LIMIT = 48 * 1024
"""Bytes of an application's facts as JSON: what fits into a report. Events carry them twice, and NATS takes 1 MiB."""
MINUTE = timedelta(minutes=1)


class Approval(Model):
    """A filled seat."""

    by: str
    by_name: str
    seat: str
    at: Time
    note: str | None = None


class Decision(RequestDecision):
    """The one decision. `by` is an account's id, an API client's, or `autonomous`; a decline has no terms."""

    on_behalf_of: OnBehalfOf | None = None
    match: Match | None = None
    arguments: ArgumentsMatch | None = None
    checks: tuple[Check, ...] = ()


class Closing(Model):
    """How a request ended without a decision. `reason` is a sentence for the person waiting."""

    by: str
    by_name: str
    at: Time
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What somebody asks for. `application` holds the facts as they were sent."""

    computer_id: str
    user: str
    application: Application
    duration: timedelta
    justification: str
    asker: Asker
    external_refs: tuple[ExternalRef, ...] = ()
    not_before: datetime | None = None
    max_uses: int | None = None
    ends_with_application: bool = False

    @property
    def ticket(self) -> str | None:
        return next((ref.number for ref in self.external_refs if ref.system == "ticket"), None)


@dataclass(frozen=True, kw_only=True)
class Request:
    """A wish and what became of it. `version` grows by one with each change.

    `grant_id` and `take_up_until` are known from the moment of approval. `problem` says why an approved request can
    never be used: its grant was ended by the product itself.
    """

    id: str
    version: int
    status: Status
    wish: Wish
    created_at: datetime
    updated_at: datetime
    expires_at: datetime
    take_up_until: datetime | None = None
    approvals: tuple[Approval, ...] = ()
    checks: tuple[Check, ...] = ()
    decision: Decision | None = None
    closing: Closing | None = None
    grant_id: str | None = None
    problem: str | None = None

    def status_at(self, now: datetime) -> Status:
        """A request past its time is expired, whether or not the scheduler came to say so."""
        return "expired" if self.status == "pending" and self.expires_at <= now else self.status


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What an approver narrows; None leaves what was asked, or is usual."""

    note: str | None = None
    duration: timedelta | None = None
    match: Match | None = None
    arguments: ArgumentsMatch = "exact"
    max_uses: int | None = None

    def duration_of(self, request: Request) -> timedelta:
        return request.wish.duration if self.duration is None else self.duration


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What stands around a wish: the requests that wait for the same user, who could decide, what the checks say."""

    settings: AskingSettings
    twin: Request | None
    pending: int
    approvers: Sequence[Account]
    checks: tuple[Check, ...]


# --- asking -----------------------------------------------------------------------------------------------------------


def ask(wish: Wish, around: Surroundings, *, id: str, now: datetime) -> Request:
    """A new pending request, or the one that already waits for the same computer, user, application and arguments.

    Raises AskingDisabled, DurationOutOfRange, InvalidBody, TicketRequired, RequestLimit, NoApprover.
    """
    settings = around.settings
    may_ask(wish.user, settings)
    if around.twin is not None:
        return around.twin
    if len(wish.application.model_dump_json().encode()) > FACTS_LIMIT:
        sentence = f"The application's facts are larger than {FACTS_LIMIT // 1024} KiB."
        raise InvalidBody(sentence, errors=[FieldError("/application", sentence)])
    _in_range(wish.duration, settings.longest_minutes * MINUTE, "the settings allow")
    if len(wish.justification.strip()) < settings.justification_min:
        sentence = f"The justification must have at least {settings.justification_min} characters."
        raise InvalidBody(sentence, errors=[FieldError("/justification", sentence)])
    if wish.not_before is not None and wish.not_before > now + FARTHEST_START:
        sentence = "not_before is more than 30 days ahead."
        raise InvalidBody(sentence, errors=[FieldError("/not_before", sentence)])
    _ticket_fits(wish.ticket, settings)
    if around.pending >= settings.max_pending_per_user:
        raise RequestLimit(f"{around.pending} requests of {wish.user} are pending: wait, or cancel one.")
    if not around.approvers and not passes(around.checks):
        raise no_approver(wish.user)
    return Request(
        id=id,
        version=1,
        status="pending",
        wish=wish,
        created_at=now,
        updated_at=now,
        expires_at=now + settings.pending_minutes * MINUTE,
        checks=around.checks,
    )


def may_ask(user: str, settings: AskingSettings) -> None:
    """Raises AskingDisabled."""
    if not settings.enabled:
        raise AskingDisabled("Asking for elevation is switched off.")
    if not settings.who.includes(user):
        raise AskingDisabled(f"Asking for elevation is not open to {user}.")


def no_approver(user: str) -> NoApprover:
    return NoApprover(
        f"Nobody could decide on a request of {user}: it takes an approver or administrator who is another person, "
        "and whose OS users somebody stated."
    )


def _ticket_fits(ticket: str | None, settings: AskingSettings) -> None:
    if ticket is None:
        if settings.ticket == "required":
            sentence = "A ticket is required: send it in external_refs, with system `ticket`."
            raise TicketRequired(sentence, errors=[FieldError("", sentence)])
    elif settings.ticket_pattern and not re.fullmatch(settings.ticket_pattern, ticket):
        sentence = f"The ticket {ticket} does not fit the pattern {settings.ticket_pattern}."
        raise TicketRequired(sentence, errors=[FieldError("/external_refs", sentence)])


def _in_range(duration: timedelta, longest: timedelta, whose: str) -> None:
    if not timedelta(0) < duration <= longest:
        sentence = f"{duration // MINUTE} minutes: {whose} 1 to {longest // MINUTE}."
        raise DurationOutOfRange(sentence, errors=[FieldError("/duration_minutes", sentence)])


# --- deciding ---------------------------------------------------------------------------------------------------------


def approve(
    request: Request,
    *,
    by: Decider,
    parties: Person,
    terms: Terms,
    settings: AskingSettings,
    grant_id: str,
    now: datetime,
) -> Request:
    """Approve a pending request under `grant_id`; the grant's clock starts at first use, not here.

    `parties` are those who asked and who would be elevated, all accounts and OS users that are known to be them.
    The same approval by the same decider again returns the request unchanged.

    Raises AlreadyDecided, NotPending, SelfApproval, NotPermitted, DurationOutOfRange, FactMissing, InvalidBody.
    """
    if _is_repeated_approval(request, by, terms):
        return request
    _must_be_pending(request, now)
    _may_decide(request, by, parties, settings)
    duration = terms.duration_of(request)
    _in_range(duration, min(request.wish.duration, settings.longest_minutes * MINUTE), "this request allows")
    match = terms.match or usual_match(request.wish.application)
    decision = Decision(
        by=by.id,
        by_name=by.name,
        on_behalf_of=by.on_behalf_of,
        at=now,
        note=terms.note,
        duration_minutes=duration // MINUTE,
        match=match,
        arguments=terms.arguments,
        rules=[rule_for(request.wish.application, match, terms.arguments)],
        max_uses=_fewer_uses(request, terms),
        checks=request.checks,
    )
    seat = Approval(by=by.id, by_name=by.name, seat=settings.seat.id, at=now, note=terms.note)
    return _approved(replace(request, approvals=(*request.approvals, seat)), decision, settings, grant_id, now)


AUTONOMOUS = "autonomous"


def approve_autonomously(request: Request, *, settings: AskingSettings, grant_id: str, now: datetime) -> Request:
    """Approve what was asked, as asked, because every check passed when it was made.

    Raises NotPending; ValueError when a check failed.
    """
    _must_be_pending(request, now)
    if not passes(request.checks):
        raise ValueError(f"a check failed: {'; '.join(failures(request.checks))}")
    wish = request.wish
    match = usual_match(wish.application)
    decision = Decision(
        by=AUTONOMOUS,
        by_name="Autonomous approval",
        at=now,
        duration_minutes=wish.duration // MINUTE,
        match=match,
        arguments="exact",
        rules=[rule_for(wish.application, match, "exact")],
        max_uses=wish.max_uses,
        checks=request.checks,
    )
    return _approved(request, decision, settings, grant_id, now)


def decline(
    request: Request, *, by: Decider, parties: Person, note: str, settings: AskingSettings, now: datetime
) -> Request:
    """Decline a pending request; one decline is final. The same decider again returns the request unchanged.

    Raises AlreadyDecided, NotPending, SelfApproval, NotPermitted.
    """
    if request.status == "declined" and _decided_it(request, by):
        return request
    _must_be_pending(request, now)
    _may_decide(request, by, parties, settings)
    decision = Decision(
        by=by.id, by_name=by.name, on_behalf_of=by.on_behalf_of, at=now, note=note, checks=request.checks
    )
    return _changed(request, now, status="declined", decision=decision)


def _approved(request: Request, decision: Decision, settings: AskingSettings, grant_id: str, now: datetime) -> Request:
    usable = max(now, request.wish.not_before or now)
    return _changed(
        request,
        now,
        status="approved",
        decision=decision,
        grant_id=grant_id,
        take_up_until=usable + settings.take_up_minutes * MINUTE,
    )


def _may_decide(request: Request, by: Decider, parties: Person, settings: AskingSettings) -> None:
    if by.person.is_also(parties):
        raise SelfApproval(f"{by.name} is, or answers for, one who asked: somebody else must decide.")
    if not by.identified:
        raise NotPermitted(f"Nobody has stated which OS users {by.name} is: another administrator does that.")
    if by.roles.isdisjoint(settings.seat.roles):
        raise NotPermitted(f"{by.name} fills no seat of this request: it takes {' or '.join(settings.seat.roles)}.")
    if not by.everywhere:
        raise NotPermitted(f"{by.name} is limited to computer groups, and this computer is in none of them.")


def _must_be_pending(request: Request, now: datetime) -> None:
    status = request.status_at(now)
    if status == "pending":
        return
    if (decision := request.decision) is not None:
        raise AlreadyDecided(
            f"{decision.by_name} {status} it at {in_words(decision.at)}.",
            decided_by=decision.by,
            decided_at=rfc3339(decision.at),
        )
    if (closing := request.closing) is not None:
        raise NotPending(f"It is {status}, by {closing.by_name} at {in_words(closing.at)}.")
    raise NotPending(f"It expired at {in_words(request.expires_at)}.")


def _is_repeated_approval(request: Request, by: Decider, terms: Terms) -> bool:
    decision = request.decision
    return (
        request.status == "approved"
        and decision is not None
        and _decided_it(request, by)
        and decision.duration_minutes == terms.duration_of(request) // MINUTE
        and decision.match == (terms.match or usual_match(request.wish.application))
        and decision.arguments == terms.arguments
        and decision.max_uses == (terms.max_uses or request.wish.max_uses)
    )


def _decided_it(request: Request, by: Decider) -> bool:
    decision = request.decision
    return decision is not None and (decision.by, decision.on_behalf_of) == (by.id, by.on_behalf_of)


def _fewer_uses(request: Request, terms: Terms) -> int | None:
    asked = request.wish.max_uses
    if terms.max_uses is not None and asked is not None and terms.max_uses > asked:
        sentence = f"{asked} uses were asked for: an approval can allow fewer, not more."
        raise InvalidBody(sentence, errors=[FieldError("/max_uses", sentence)])
    return terms.max_uses or asked


# --- other ends, other changes ----------------------------------------------------------------------------------------


def cancel(request: Request, *, by: str, by_name: str, reason: str | None, now: datetime) -> Request:
    """Take a pending request back; a cancelled one is returned unchanged. Raises AlreadyDecided, NotPending."""
    if request.status == "cancelled":
        return request
    _must_be_pending(request, now)
    return _changed(request, now, status="cancelled", closing=Closing(by=by, by_name=by_name, at=now, reason=reason))


def expire(request: Request, *, now: datetime) -> Request:
    """End a request that nobody decided in time. The scheduler says the same of many at once, in SQL.

    Raises AlreadyDecided, NotPending when it is not pending any more; ValueError before its time.
    """
    if request.status != "pending":
        _must_be_pending(request, now)
    if request.expires_at > now:
        raise ValueError(f"it expires at {rfc3339(request.expires_at)}, not yet")
    return _changed(request, now, status="expired")


def refer(request: Request, external_refs: Sequence[ExternalRef], *, now: datetime) -> Request:
    """Replace the records of other systems, in every state. Unchanged ones return the request unchanged."""
    refs = tuple(external_refs)
    if refs == request.wish.external_refs:
        return request
    return _changed(request, now, wish=replace(request.wish, external_refs=refs))


GRANT_LOST = {
    "document_full": "This computer holds too many grants: this one does not fit. Give some back, or ask for less.",
    "decommissioned": "This computer is not managed any more.",
}
"""Reasons that the product itself gives for a grant that cannot reach its computer, and what the person reads."""


def lose_grant(request: Request, problem: str, *, now: datetime) -> Request:
    """Note why (a key of GRANT_LOST) an approved request can never be used. Of others, and a second time, nothing is
    changed."""
    if request.status != "approved" or request.problem is not None:
        return request
    return _changed(request, now, problem=problem)


def _changed(request: Request, now: datetime, **changes: object) -> Request:
    return replace(request, version=request.version + 1, updated_at=now, **changes)  # type: ignore[arg-type]
