"""Requests and settings between their rows and the domain."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter
from sqlalchemy import Row

from sojourn_requests.domain import MINUTE, Approval, Asker, Check, Closing, Decision, Request, TrustEntry, Wish
from sojourn_shared.contracts.events import Application, ExternalRef, Model

from .shapes import twin_of

S = TypeVar("S", bound=Model)


@dataclass(frozen=True)
class Saved(Generic[S]):
    """Settings as they are saved. `trust`: who wrote each name into `trusted_users`."""

    body: S
    version: int
    created_at: datetime
    updated_at: datetime
    trust: dict[str, TrustEntry]


def row_of(request: Request) -> dict[str, Any]:
    wish, decision = request.wish, request.decision
    return {
        "id": request.id,
        "version": request.version,
        "status": request.status,
        "computer_id": wish.computer_id,
        "user_name": wish.user,
        "application": wish.application.model_dump(mode="json"),
        "twin": twin_of(wish),
        "duration_minutes": wish.duration // MINUTE,
        "justification": wish.justification,
        "external_refs": _refs.dump_python(wish.external_refs, mode="json"),
        "requested_by": wish.asker.id,
        "asker": wish.asker.model_dump(mode="json"),
        "not_before": wish.not_before,
        "max_uses": wish.max_uses,
        "ends_with_application": wish.ends_with_application,
        "expires_at": request.expires_at,
        "take_up_until": request.take_up_until,
        "approvals": _approvals.dump_python(request.approvals, mode="json"),
        "checks": _checks.dump_python(request.checks, mode="json"),
        "decision": decision.model_dump(mode="json") if decision else None,
        "decided_by": decision.by if decision else None,
        "decided_at": decision.at if decision else None,
        "closing": request.closing.model_dump(mode="json") if request.closing else None,
        "grant_id": request.grant_id,
        "problem": request.problem,
        "created_at": request.created_at,
        "updated_at": request.updated_at,
    }


def request_of(row: Row[Any]) -> Request:
    return Request(
        id=row.id,
        version=row.version,
        status=row.status,
        wish=Wish(
            computer_id=row.computer_id,
            user=row.user_name,
            application=Application.model_validate(row.application),
            duration=timedelta(minutes=row.duration_minutes),
            justification=row.justification,
            asker=Asker.model_validate(row.asker),
            external_refs=_refs.validate_python(row.external_refs),
            not_before=row.not_before,
            max_uses=row.max_uses,
            ends_with_application=row.ends_with_application,
        ),
        expires_at=row.expires_at,
        take_up_until=row.take_up_until,
        approvals=_approvals.validate_python(row.approvals),
        checks=_checks.validate_python(row.checks),
        decision=Decision.model_validate(row.decision) if row.decision else None,
        closing=Closing.model_validate(row.closing) if row.closing else None,
        grant_id=row.grant_id,
        problem=row.problem,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


_refs = TypeAdapter(tuple[ExternalRef, ...])
_approvals = TypeAdapter(tuple[Approval, ...])
_checks = TypeAdapter(tuple[Check, ...])
