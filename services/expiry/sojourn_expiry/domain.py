"""Grants and runs: every transition that there is, as pure functions.

A grant's `status` is what the server says, its `delivery` what the computer confirmed: two things, side by side. Every
change bumps `version`. What changes nothing returns the very same object, and final states absorb: a late or repeated
message is no error.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal

from sojourn_shared.contracts import wire
from sojourn_shared.contracts.events import (
    Assignment,
    AssignmentsChanged,
    FixedDuration,
    RequestState,
    WindowDuration,
)

Status = Literal["scheduled", "ready", "active", "expired", "revoked"]
Delivery = Literal["pending", "applied", "failed", "ending", "ended", "unconfirmed"]
Starts = Literal["at_from", "first_use"]
ChildProcesses = Literal["allow", "same_package", "require_rule", "deny"]

FINAL: frozenset[Status] = frozenset({"expired", "revoked"})
ANNOUNCED = timedelta(days=7)
"""How long before its beginning a grant is put into the computer's document: for a computer that loses the network."""

# Reasons that the product itself gives; others are sentences of people.
SUPERSEDED = "superseded"
WITHDRAWN = "withdrawn"
RETURNED = "returned"
DECOMMISSIONED = "decommissioned"
DOCUMENT_FULL = "document_full"
REPORTED = "reported revoked by the computer"


@dataclass(frozen=True, kw_only=True)
class Revocation:
    """Who took a grant away, when and why. `superseded`: the policy's next revision stands beside it."""

    by: str
    by_name: str
    at: datetime
    reason: str
    grace_seconds: int = 0
    superseded: bool = False


@dataclass(frozen=True, kw_only=True)
class Grant:
    """The only thing that elevates: who, on which computer, which applications, from when, for how long.

    `starts: first_use`: `until` is None until the first use, and then first use + `duration`.
    """

    id: str
    version: int = 1
    status: Status
    delivery: Delivery = "pending"
    computer_id: str
    policy_id: str | None = None
    policy_name: str | None = None
    request_id: str | None = None
    assignment_id: str | None = None
    assignment_version: int | None = None
    revision: int | None = None
    users_all: bool = False
    user_names: tuple[str, ...] = ()
    from_: datetime
    until: datetime | None = None
    starts: Starts = "at_from"
    duration: timedelta | None = None
    take_up_until: datetime | None = None
    first_used_at: datetime | None = None
    rules: tuple[Mapping[str, Any], ...] = ()
    child_processes: ChildProcesses = "allow"
    run_as: str = "root"
    max_uses: int | None = None
    ticket_required: bool = False
    ends_with_application: bool = False
    applied_at: datetime | None = None
    ended_at: datetime | None = None
    revoked: Revocation | None = None
    failure: str | None = None
    created_at: datetime
    updated_at: datetime

    @property
    def is_final(self) -> bool:
        return self.status in FINAL

    @property
    def in_force(self) -> bool:
        """Usable, or over on the server while the computer has not confirmed the end."""
        return self.status in {"ready", "active"} or self.delivery == "ending"

    @property
    def only_user(self) -> str | None:
        """The one person whom this grant names; None when it names several, or all."""
        return self.user_names[0] if len(self.user_names) == 1 and not self.users_all else None


# --- opening ----------------------------------------------------------------------------------------------------------


def grant_for_assignment(assigned: Assignment, changed: AssignmentsChanged, *, id: str, now: datetime) -> Grant | None:
    """What a deployed policy gives one computer; None when its time is already over.

    A fixed duration that starts on deploy counts from the deploy, also for a computer that comes later: it gets what is
    left.
    """
    terms = changed.terms
    starts: Starts
    duration: timedelta | None
    take_up_until: datetime | None
    until: datetime | None
    match terms.duration:
        case FixedDuration(starts="on_deploy") as fixed:
            begins, starts = changed.deployed_at, "at_from"
            duration, take_up_until = timedelta(minutes=fixed.minutes), None
            until = begins + duration
        case FixedDuration() as fixed:
            begins, starts = changed.deployed_at, "first_use"
            duration, take_up_until, until = timedelta(minutes=fixed.minutes), fixed.take_up_until, None
        case WindowDuration() as window:
            begins, until, starts = window.from_, window.until, "at_from"
            duration, take_up_until = None, None
    last = until or take_up_until
    if last is not None and last <= now:
        return None
    return Grant(
        id=id,
        status=_status_at_opening(begins, starts, now),
        computer_id=assigned.computer_id,
        policy_id=changed.policy_id,
        policy_name=terms.policy_name,
        assignment_id=assigned.id,
        assignment_version=assigned.version,
        revision=changed.revision,
        users_all=terms.users.all,
        user_names=() if terms.users.all else tuple(terms.users.names),
        from_=begins,
        until=until,
        starts=starts,
        duration=duration,
        take_up_until=take_up_until,
        rules=tuple(rule.model_dump(mode="json", exclude_none=True) for rule in terms.rules),
        child_processes=terms.child_processes,
        run_as=terms.run_as,
        max_uses=terms.max_uses,
        ticket_required=terms.ticket_required,
        created_at=now,
        updated_at=now,
    )


def grant_for_request(request: RequestState, now: datetime) -> Grant:
    """What an approved request gives, under the id that the approval minted. Its clock starts at first use.

    Raises ValueError when the approval lacks what makes a grant.
    """
    if request.decision is None or request.grant_id is None:
        raise ValueError(f"request {request.id} is approved, but carries no decision or no grant_id")
    decision = request.decision
    minutes = decision.duration_minutes or request.duration_minutes
    begins = request.not_before or decision.at
    return Grant(
        id=request.grant_id,
        status=_status_at_opening(begins, "first_use", now) if request.not_before else "ready",
        computer_id=request.computer_id,
        request_id=request.id,
        user_names=(request.user,),
        from_=begins,
        starts="first_use",
        duration=timedelta(minutes=minutes),
        take_up_until=request.take_up_until,
        rules=tuple(rule.model_dump(mode="json", exclude_none=True) for rule in decision.rules),
        max_uses=decision.max_uses,
        ends_with_application=request.ends_with_application,
        created_at=now,
        updated_at=now,
    )


def _status_at_opening(begins: datetime, starts: Starts, now: datetime) -> Status:
    if begins > now:
        return "scheduled"
    return "ready" if starts == "first_use" else "active"


def refused_at_opening(grant: Grant, reason: str) -> Grant:
    """A grant that never leaves the server (`document_full`, `decommissioned`): over from the start, but told."""
    revocation = Revocation(by="expiry", by_name="Sojourn", at=grant.created_at, reason=reason)
    return replace(grant, status="revoked", delivery="failed", revoked=revocation, failure=reason)


# --- the clock --------------------------------------------------------------------------------------------------------


def due_at(grant: Grant, now: datetime) -> datetime | None:
    """When the clock has to look at this grant again; None: never."""
    match grant.status:
        case "scheduled":
            announced = grant.from_ - ANNOUNCED
            return announced if now < announced else grant.from_
        case "ready":
            return unheard_end(grant)
        case "active":
            return grant.until
        case "expired" | "revoked":
            return None


def unheard_end(grant: Grant) -> datetime | None:
    """When a ready grant ends although the computer said nothing: a first use made offline may still be on its way."""
    if grant.take_up_until is None or grant.duration is None:
        return None
    return grant.take_up_until + grant.duration


def turned_by_clock(grant: Grant, now: datetime) -> Grant:
    """One step of the clock; `store.due` makes the same one for many grants in a single statement."""
    match grant.status:
        case "scheduled" if grant.from_ <= now:
            return _changed(grant, now, status="ready" if grant.starts == "first_use" else "active")
        case "ready" if (end := unheard_end(grant)) is not None and end <= now:
            return _changed(grant, now, status="expired", delivery="ending")
        case "active" if grant.until is not None and grant.until <= now:
            return _changed(grant, now, status="expired", delivery="ending")
        case _:
            return grant


# --- taken away -------------------------------------------------------------------------------------------------------


def revoke(grant: Grant, revocation: Revocation) -> Grant:
    """Take a grant away; one that is over stays as it is. The computer has yet to confirm: delivery `ending`."""
    if grant.is_final:
        return grant
    return _changed(grant, revocation.at, status="revoked", delivery="ending", revoked=revocation)


def give_back(grant: Grant, *, by: str, by_name: str, at: datetime, now: datetime) -> Grant:
    """The person gives a grant back. When the computer's end of it came first, the person's name is added to it."""
    revocation = Revocation(by=by, by_name=by_name, at=at, reason=RETURNED)
    unnamed = grant.revoked is not None and grant.revoked.reason == RETURNED and grant.revoked.by == grant.computer_id
    if unnamed:
        return _changed(grant, now, revoked=revocation)
    if grant.is_final:
        return grant
    return _changed(grant, now, status="revoked", delivery="ending", revoked=revocation)


def decommission(grant: Grant, *, by: str, by_name: str, now: datetime) -> Grant:
    """The computer left: nobody will ever confirm the end of what it held."""
    if not grant.is_final:
        revocation = Revocation(by=by, by_name=by_name, at=now, reason=DECOMMISSIONED)
        return _changed(grant, now, status="revoked", delivery="unconfirmed", revoked=revocation)
    return _changed(grant, now, delivery="unconfirmed") if grant.delivery == "ending" else grant


# --- what the computer says -------------------------------------------------------------------------------------------


def applied(grant: Grant, *, applied: bool, reason: str | None, at: datetime, now: datetime) -> Grant:
    """The computer holds the grant, or cannot enforce it. *Applied* is never taken back by an older failure."""
    match grant.delivery:
        case "pending" | "failed" if applied and not grant.is_final:
            return _changed(grant, now, delivery="applied", applied_at=at, failure=None)
        case "pending" if not applied:
            return _changed(grant, now, delivery="failed", failure=reason or "the computer gave no reason")
        case _:
            return grant


def used(grant: Grant, *, at: datetime, until: datetime | None, now: datetime) -> Grant:
    """A run started at `at`, and the computer says that the grant ends at `until`.

    Only a grant that starts at first use learns from it. Reports come in any order, so the earliest end of all counts:
    it is that of the first use. A final grant learns its times, and stays final.
    """
    if grant.starts != "first_use" or grant.duration is None:
        return grant
    ends = [at + grant.duration, *(end for end in (until, unheard_end(grant)) if end is not None)]
    end = min(ends)
    if grant.until is not None and grant.until <= end:
        return grant
    status: Status = grant.status if grant.is_final else "active"
    return _changed(grant, now, status=status, first_used_at=end - grant.duration, until=end)


def over_as_reported(grant: Grant, *, cause: wire.Cause, at: datetime, now: datetime) -> Grant:
    """The computer says that the grant is over there, while it is in force here: the computer's word counts.

    It takes nothing but the computer's own rights away. Causes that end only runs change nothing.
    """
    if grant.is_final or cause not in wire.ENDS_GRANT:
        return grant
    if cause == "expired":
        return _changed(grant, now, status="expired", delivery="ending")
    reason = RETURNED if cause == "returned" else REPORTED
    revocation = Revocation(by=grant.computer_id, by_name=grant.computer_id, at=at, reason=reason)
    return _changed(grant, now, status="revoked", delivery="ending", revoked=revocation)


def end_confirmed(grant: Grant, *, cause: wire.Cause, at: datetime, gone: bool, now: datetime) -> Grant:
    """The computer says that a grant which is over is over there too; `gone`: and nothing of its runs is left."""
    if cause not in wire.ENDS_GRANT or grant.delivery != "ending" or not gone:
        return grant
    return _changed(grant, now, delivery="ended", ended_at=at)


def _changed(grant: Grant, now: datetime, **fields: Any) -> Grant:
    return replace(grant, version=grant.version + 1, updated_at=now, **fields)


# --- runs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Run:
    """One elevation: a process tree that runs elevated under a grant.

    What is known of it grows by reports that come in any order; None is what was not reported yet. `grant_id` is the
    grant that it runs under now, `started_under` the one that its use counts for. `moved_seq` orders its moves.
    """

    id: str
    version: int = 1
    computer_id: str
    grant_id: str
    started_under: str | None = None
    user: str | None = None
    uid: int | None = None
    application: Mapping[str, Any] | None = None
    rule: int | str | None = None
    pid: int | None = None
    started_at: datetime | None = None
    moved_seq: int | None = None
    ended_at: datetime | None = None
    cause: wire.Cause | None = None
    exit_status: int | None = None
    processes_ended: Sequence[Mapping[str, Any]] = ()
    escaped: Sequence[Mapping[str, Any]] = ()
    kill_ms: int | None = None
    gone: bool | None = None
    created_at: datetime
    updated_at: datetime


def run_started(run: Run | None, report: wire.StartedReport, application: Mapping[str, Any], now: datetime) -> Run:
    """`run` with its beginning; the grant that it was moved to, or ended under, stays."""
    if run is not None and run.started_at is not None:
        return run
    known = run or _heard_of(report.run_id, report.computer_id, report.grant_id, now)
    return replace(
        known,
        version=known.version + 1,
        updated_at=now,
        started_under=report.grant_id,
        user=report.user.name,
        uid=report.user.uid,
        application=application,
        rule=report.rule,
        pid=report.pid,
        started_at=report.at,
    )


def run_moved(run: Run | None, report: wire.MovedReport, now: datetime) -> Run:
    """`run` under the grant that covers it from now on; an older move, or one before the end, is told and past."""
    known = run or _heard_of(report.run_id, report.computer_id, report.to, now)
    if known.moved_seq is not None and known.moved_seq >= report.seq:
        return known
    grant_id = known.grant_id if known.ended_at is not None else report.to
    return replace(known, version=known.version + 1, updated_at=now, grant_id=grant_id, moved_seq=report.seq)


def run_ended(run: Run | None, end: wire.EndedRun, report: wire.EndedReport, now: datetime) -> Run:
    """`run` with its end. A second report of an end counts only when it says *gone* where the first could not."""
    known = run or _heard_of(end.run_id, report.computer_id, report.grant_id, now)
    if known.ended_at is not None and (known.gone or not end.gone):
        return known
    return replace(
        known,
        version=known.version + 1,
        updated_at=now,
        grant_id=report.grant_id,
        ended_at=end.at,
        cause=report.cause,
        exit_status=end.exit_status,
        processes_ended=[{"pid": one.pid, "name": one.name} for one in end.processes_ended],
        escaped=[{"pid": one.pid, "name": one.name} for one in end.escaped],
        kill_ms=end.kill_ms,
        gone=end.gone,
    )


def _heard_of(run_id: str, computer_id: str, grant_id: str, now: datetime) -> Run:
    return Run(id=run_id, version=0, computer_id=computer_id, grant_id=grant_id, created_at=now, updated_at=now)
