"""How a request looks outside: in events, over REST, and to the person who waits at a computer."""

import hashlib
import json
from datetime import datetime

from sojourn_requests.domain import GRANT_LOST, MINUTE, Approval, Check, Closing, Decision, Request, Wish
from sojourn_shared.contracts import wire
from sojourn_shared.contracts.events import RequestState, Time


class RequestEntity(RequestState):
    """What is said of a request. `requested_by` is an account's or client's id, or `computer`; `closed` tells of a
    cancellation; `problem` why an approved request can never be used."""

    justification: str
    max_uses: int | None
    requested_by: str
    requested_by_name: str
    expires_at: Time
    approvals: tuple[Approval, ...]
    checks: tuple[Check, ...]
    decision: Decision | None = None
    closed: Closing | None
    problem: str | None
    created_at: Time
    updated_at: Time


def entity_of(request: Request) -> RequestEntity:
    wish = request.wish
    return RequestEntity(
        id=request.id,
        version=request.version,
        status=request.status,
        computer_id=wish.computer_id,
        user=wish.user,
        application=wish.application,
        duration_minutes=wish.duration // MINUTE,
        grant_id=request.grant_id,
        take_up_until=request.take_up_until,
        not_before=wish.not_before,
        ends_with_application=wish.ends_with_application,
        decision=request.decision,
        external_refs=list(wish.external_refs),
        justification=wish.justification,
        max_uses=wish.max_uses,
        requested_by=wish.asker.id,
        requested_by_name=wish.asker.name,
        expires_at=request.expires_at,
        approvals=request.approvals,
        checks=request.checks,
        closed=request.closing,
        problem=request.problem,
        created_at=request.created_at,
        updated_at=request.updated_at,
    )


def answer_for(request: Request, *, asked_as: str | None = None) -> wire.Decision:
    """How a request stands, for the person waiting. `asked_as`: the report that joined it."""
    decision, closing = request.decision, request.closing
    ended_by = decision or closing
    return wire.Decision(
        request_id=asked_as or request.id,
        version=request.version,
        status=request.status,
        note=decision.note if decision else closing.reason if closing else None,
        by_name=ended_by.by_name if ended_by else None,
        at=ended_by.at if ended_by else None,
        duration_minutes=(decision.duration_minutes if decision else None) or request.wish.duration // MINUTE,
        expires_at=request.expires_at,
        joined=request.id if asked_as else None,
        problem=GRANT_LOST[request.problem] if request.problem else None,
    )


def refusal(report_id: str, reason: str, at: datetime) -> wire.Decision:
    """The answer to a report that could not become a request; `problem` is the sentence that the person reads."""
    return wire.Decision(request_id=report_id, version=1, status="refused", problem=reason, at=at)


def twin_of(wish: Wish) -> bytes:
    """The same for wishes that are the same to whoever decides: computer, user, application and arguments."""
    facts = wish.application
    same = [wish.computer_id, wish.user, facts.path, facts.sha256, facts.arguments or []]
    return hashlib.sha256(json.dumps(same).encode()).digest()
