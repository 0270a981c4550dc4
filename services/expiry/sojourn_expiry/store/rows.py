"""Between rows and values: how a grant and a run are stored, and how each stands in an event."""

from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

from sojourn_expiry import domain
from sojourn_expiry.domain import Grant, Revocation, Run
from sojourn_shared.clock import rfc3339


def of_grant(grant: Grant, now: datetime) -> dict[str, Any]:
    """The columns of `grants`, but for `wire_bytes`."""
    return {
        "id": grant.id,
        "version": grant.version,
        "status": grant.status,
        "delivery": grant.delivery,
        "computer_id": grant.computer_id,
        "policy_id": grant.policy_id,
        "policy_name": grant.policy_name,
        "request_id": grant.request_id,
        "assignment_id": grant.assignment_id,
        "assignment_version": grant.assignment_version,
        "revision": grant.revision,
        "users_all": grant.users_all,
        "user_names": list(grant.user_names),
        "from_at": grant.from_,
        "until": grant.until,
        "starts": grant.starts,
        "duration_minutes": minutes(grant.duration),
        "take_up_until": grant.take_up_until,
        "first_used_at": grant.first_used_at,
        "rules": list(grant.rules),
        "child_processes": grant.child_processes,
        "run_as": grant.run_as,
        "max_uses": grant.max_uses,
        "ticket_required": grant.ticket_required,
        "ends_with_application": grant.ends_with_application,
        "applied_at": grant.applied_at,
        "ended_at": grant.ended_at,
        "revoked": revoked(grant.revoked),
        "failure": grant.failure,
        "due_at": domain.due_at(grant, now),
        "created_at": grant.created_at,
        "updated_at": grant.updated_at,
    }


CHANGING = (
    "version",
    "status",
    "delivery",
    "until",
    "first_used_at",
    "applied_at",
    "ended_at",
    "revoked",
    "failure",
    "due_at",
    "updated_at",
)
"""The columns that a transition can change; the others are said once, when the grant is opened."""


def to_grant(row: Any) -> Grant:
    fields = {name: getattr(row, name) for name in _AS_THEY_ARE}
    return Grant(
        **fields,
        user_names=tuple(row.user_names),
        from_=row.from_at,
        duration=None if row.duration_minutes is None else timedelta(minutes=row.duration_minutes),
        rules=tuple(row.rules),
        revoked=None if row.revoked is None else _revocation(row.revoked),
    )


_AS_THEY_ARE = (
    "id",
    "version",
    "status",
    "delivery",
    "computer_id",
    "policy_id",
    "policy_name",
    "request_id",
    "assignment_id",
    "assignment_version",
    "revision",
    "users_all",
    "until",
    "starts",
    "take_up_until",
    "first_used_at",
    "child_processes",
    "run_as",
    "max_uses",
    "ticket_required",
    "ends_with_application",
    "applied_at",
    "ended_at",
    "failure",
    "created_at",
    "updated_at",
)


def entity(grant: Grant) -> dict[str, Any]:
    """A grant in an event; `store.due` writes the same in SQL. The rules stand in the event that brought them."""
    return {
        "id": grant.id,
        "version": grant.version,
        "status": grant.status,
        "delivery": grant.delivery,
        "computer_id": grant.computer_id,
        "users": {"all": grant.users_all, "names": list(grant.user_names)},
        "policy_id": grant.policy_id,
        "policy_name": grant.policy_name,
        "revision": grant.revision,
        "request_id": grant.request_id,
        "from": rfc3339(grant.from_),
        "until": moment(grant.until),
        "starts": grant.starts,
        "duration_minutes": minutes(grant.duration),
        "take_up_until": moment(grant.take_up_until),
        "first_used_at": moment(grant.first_used_at),
        "child_processes": grant.child_processes,
        "run_as": grant.run_as,
        "max_uses": grant.max_uses,
        "applied_at": moment(grant.applied_at),
        "ended_at": moment(grant.ended_at),
        "revoked": revoked(grant.revoked),
        "failure": grant.failure,
        "created_at": rfc3339(grant.created_at),
        "updated_at": rfc3339(grant.updated_at),
    }


def revoked(revocation: Revocation | None) -> dict[str, Any] | None:
    return None if revocation is None else asdict(revocation) | {"at": rfc3339(revocation.at)}


def _revocation(stored: dict[str, Any]) -> Revocation:
    return Revocation(**stored | {"at": datetime.fromisoformat(stored["at"])})


def minutes(duration: timedelta | None) -> int | None:
    return None if duration is None else int(duration.total_seconds() // 60)


def moment(at: datetime | None) -> str | None:
    return None if at is None else rfc3339(at)


# --- runs -------------------------------------------------------------------------------------------------------------


def of_run(run: Run) -> dict[str, Any]:
    """The columns of `elevations`."""
    values = {name: getattr(run, name) for name in _OF_RUN}
    return values | {"user_name": run.user, "processes_ended": list(run.processes_ended), "escaped": list(run.escaped)}


def to_run(row: Any) -> Run:
    values = {name: getattr(row, name) for name in _OF_RUN}
    return Run(**values, user=row.user_name, processes_ended=row.processes_ended, escaped=row.escaped)


_OF_RUN = (
    "id",
    "version",
    "computer_id",
    "grant_id",
    "started_under",
    "uid",
    "application",
    "rule",
    "pid",
    "started_at",
    "moved_seq",
    "ended_at",
    "cause",
    "exit_status",
    "kill_ms",
    "gone",
    "created_at",
    "updated_at",
)


def run_entity(run: Run) -> dict[str, Any]:
    """A run in an event."""
    return {
        "id": run.id,
        "version": run.version,
        "computer_id": run.computer_id,
        "grant_id": run.grant_id,
        "user": run.user,
        "application": run.application,
        "rule": run.rule,
        "pid": run.pid,
        "started_at": moment(run.started_at),
        "ended_at": moment(run.ended_at),
        "cause": run.cause,
        "exit_status": run.exit_status,
        "processes_ended": list(run.processes_ended),
        "escaped": list(run.escaped),
        "kill_ms": run.kill_ms,
        "gone": run.gone,
        "created_at": rfc3339(run.created_at),
        "updated_at": rfc3339(run.updated_at),
    }
