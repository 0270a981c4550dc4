"""Asking, and deciding on what was asked."""

from datetime import timedelta
from typing import Annotated, Literal

from fastapi import Depends, Query, Response
from pydantic import Field, field_validator, model_validator

from sojourn_requests import domain
from sojourn_requests.domain import (
    AlreadyDecided,
    ArgumentsMatch,
    Asker,
    Decider,
    DurationOutOfRange,
    FactMissing,
    Match,
    NotPending,
    OnBehalfOf,
    Request,
    SelfApproval,
    SuggestedRule,
    Terms,
    Wish,
)
from sojourn_requests.store import Filter, RequestEntity, Tx, entity_of, people
from sojourn_shared.contracts.events import Application, Body, ExternalRef, Id, Name, Text, Time, UserName
from sojourn_shared.errors import FieldError, InvalidBody, NotFound, NotPermitted
from sojourn_shared.ids import new_id
from sojourn_shared.service import (
    Caller,
    Page,
    Paging,
    Precondition,
    allow,
    if_match,
    paging,
    problems,
    router,
    set_etag,
    transaction,
)
from sojourn_shared.service.routing import PreconditionRequired, StaleVersion

routes = router("/requests", tags=["requests"])

Anybody = Annotated[Caller, Depends(allow())]
Asking = Annotated[Caller, Depends(allow("requester", "approver", "administrator"))]
Deciding = Annotated[Caller, Depends(allow("approver", "administrator"))]
TheTx = Annotated[Tx, Depends(transaction)]

Minutes = Annotated[int, Field(ge=-(10**9), le=10**9, strict=True)]
"""Any number that is one: the domain says which are allowed, and why."""
Uses = Annotated[int, Field(ge=1, le=10**6, strict=True)]
References = Annotated[list[ExternalRef], Field(max_length=20)]


class NewRequest(Body):
    """What is asked for. `application` holds the facts; they are taken as sent."""

    computer_id: Id
    user: UserName
    application: Application
    duration_minutes: Minutes
    justification: Text
    external_refs: References = Field(default_factory=list)
    not_before: Time | None = None
    max_uses: Uses | None = None
    ends_with_application: bool = False
    appeal_of: Id | None = None

    @field_validator("appeal_of")
    @classmethod
    def _no_appeals(cls, request_id: str | None) -> None:
        if request_id is not None:
            raise ValueError("an appeal cannot be made yet: ask again without it")


class ActsFor(Body):
    """The person for whom an API client decides: one of the two."""

    account_id: Id | None = None
    email: Name | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> "ActsFor":
        if (self.account_id is None) == (self.email is None):
            raise ValueError("name the person by account_id or by email, not both")
        return self


class NewApproval(Body):
    """What the approver narrows; everything may be left out."""

    note: Text | None = None
    duration_minutes: Minutes | None = None
    match: Match | None = None
    arguments: ArgumentsMatch = "exact"
    max_uses: Uses | None = None
    on_behalf_of: ActsFor | None = None

    def terms(self) -> Terms:
        minutes = self.duration_minutes
        return Terms(
            note=self.note,
            duration=None if minutes is None else timedelta(minutes=minutes),
            match=self.match,
            arguments=self.arguments,
            max_uses=self.max_uses,
        )


class NewDecline(Body):
    note: Text
    on_behalf_of: ActsFor | None = None


class NewCancellation(Body):
    note: Text | None = None


class RequestPatch(Body):
    external_refs: References


class RequestOut(RequestEntity):
    """A request. `suggested_rules` are what an approval can be made of, narrowest first."""

    computer_name: str | None
    console_url: str
    suggested_rules: list[SuggestedRule]


class RequestPage(Page[RequestOut]):
    pass


@routes.post(
    "",
    status_code=201,
    responses={
        200: {"model": RequestOut, "description": "The same was asked before and is pending: this is it."},
        **problems(
            InvalidBody,
            NotPermitted,
            domain.AskingDisabled,
            DurationOutOfRange,
            domain.TicketRequired,
            domain.RequestLimit,
            domain.NoApprover,
        ),
    },
)
async def create_request(body: NewRequest, caller: Asking, tx: TheTx, response: Response) -> RequestOut:
    """Ask for elevation. Administrators, and API clients that may act for others, ask for anybody."""
    passed_on = caller.act_for and body.user not in (caller.os_users or ())
    if not (caller.has("administrator") or passed_on or body.user in (caller.os_users or ())):
        raise NotPermitted(f"{caller.name} can ask only for their own OS users, and {body.user} is none of them.")
    wish = Wish(
        computer_id=body.computer_id,
        user=body.user,
        application=body.application,
        duration=timedelta(minutes=body.duration_minutes),
        justification=body.justification,
        asker=Asker(
            id=caller.id,
            name=caller.name,
            account_ids=(caller.id, caller.owner_id) if caller.owner_id else (caller.id,),
            os_users=caller.os_users or (),
            acted_for_another=passed_on,
        ),
        external_refs=tuple(body.external_refs),
        not_before=body.not_before,
        max_uses=body.max_uses,
        ends_with_application=body.ends_with_application,
    )
    fresh = new_id(tx.now)
    request = await tx.ask(wish, id=fresh)
    if request.id != fresh:
        response.status_code = 200
    response.headers["Location"] = f"/api/v1/requests/{request.id}"
    return await _out(request, tx, response)


@routes.get("")
async def list_requests(
    *,
    caller: Anybody,
    tx: TheTx,
    asked: Annotated[Paging, Depends(paging)],
    status: Annotated[Literal["pending", "approved", "declined", "cancelled", "expired"] | None, Query()] = None,
    computer_id: Annotated[str | None, Query()] = None,
    user: Annotated[str | None, Query(description="The OS user who would be elevated.")] = None,
    ticket: Annotated[str | None, Query(description="Number of the external reference with system `ticket`.")] = None,
    q: Annotated[
        str | None, Query(max_length=200, description="A part of a user, computer, application, reason or reference.")
    ] = None,
) -> RequestPage:
    """The requests that the caller may see, newest first; requesters see their own."""
    visible_to = None if _sees_all(caller) else (_own_ids(caller), caller.os_users or ())
    wanted = Filter(status=status, computer_id=computer_id, user=user, ticket=ticket, q=q, visible_to=visible_to)
    rows = await tx.listed(wanted, asked)
    by_change = asked.updated_after is not None
    page = asked.page(rows, lambda one: (one.updated_at if by_change else one.created_at, one.id))
    names = await people.computer_names(tx.connection, [one.wish.computer_id for one in page["items"]])
    console = tx.house.settings.public_url
    items = [_shown(one, console, names.get(one.wish.computer_id)) for one in page["items"]]
    return RequestPage(items=items, next_cursor=page["next_cursor"])


@routes.get("/{request_id}", responses=problems(NotFound))
async def show_request(request_id: str, caller: Anybody, tx: TheTx, response: Response) -> RequestOut:
    """One request, with everything that is needed to judge it."""
    request = await tx.request(request_id)
    if request is None or not _sees(caller, request):
        raise NotFound(f"There is no request {request_id}.")
    return await _out(request, tx, response)


@routes.patch(
    "/{request_id}", responses=problems(NotFound, NotPermitted, PreconditionRequired, StaleVersion, InvalidBody)
)
async def change_request(
    *,
    request_id: str,
    body: RequestPatch,
    caller: Deciding,
    tx: TheTx,
    precondition: Annotated[Precondition, Depends(if_match)],
    response: Response,
) -> RequestOut:
    """Replace `external_refs`: an ITSM tool writes its number back. Nothing else of a request can be changed."""
    request = await _held(request_id, caller, tx)
    precondition.check(request.version)
    changed = domain.refer(request, body.external_refs, now=tx.now)
    return await _saved(request, changed, "request.changed", tx, response)


DECISION_ERRORS = (NotFound, NotPending, AlreadyDecided, SelfApproval, NotPermitted, domain.UnknownApprover)


@routes.post(
    "/{request_id}/approve", responses=problems(*DECISION_ERRORS, DurationOutOfRange, FactMissing, InvalidBody)
)
async def approve_request(
    request_id: str, caller: Deciding, tx: TheTx, response: Response, body: NewApproval | None = None
) -> RequestOut:
    """Approve a pending request. The grant follows by event, under the `grant_id` answered here."""
    body = body or NewApproval()
    request = await _held(request_id, caller, tx)
    by = await _decider(caller, body.on_behalf_of, tx)
    approved = domain.approve(
        request,
        by=by,
        parties=await tx.parties(request.wish, by),
        terms=body.terms(),
        settings=(await tx.asking_settings()).body,
        grant_id=new_id(tx.now),
        now=tx.now,
    )
    return await _saved(request, approved, "request.approved", tx, response)


@routes.post("/{request_id}/decline", responses=problems(*DECISION_ERRORS, InvalidBody))
async def decline_request(
    request_id: str, body: NewDecline, caller: Deciding, tx: TheTx, response: Response
) -> RequestOut:
    """Decline a pending request; the person waiting reads the note. One decline is final."""
    request = await _held(request_id, caller, tx)
    by = await _decider(caller, body.on_behalf_of, tx)
    declined = domain.decline(
        request,
        by=by,
        parties=await tx.parties(request.wish, by),
        note=body.note,
        settings=(await tx.asking_settings()).body,
        now=tx.now,
    )
    return await _saved(request, declined, "request.declined", tx, response)


@routes.post("/{request_id}/cancel", responses=problems(NotFound, NotPending, AlreadyDecided, NotPermitted))
async def cancel_request(
    request_id: str, caller: Asking, tx: TheTx, response: Response, body: NewCancellation | None = None
) -> RequestOut:
    """Take a pending request back: one's own, or, for an administrator, anybody's."""
    request = await _held(request_id, caller, tx)
    if not (caller.has("administrator") or _is_own(caller, request)):
        raise NotPermitted(f"{caller.name} did not ask for this: whoever decides on it can decline it.")
    cancelled = domain.cancel(
        request, by=caller.id, by_name=caller.name, reason=body.note if body else None, now=tx.now
    )
    return await _saved(request, cancelled, "request.cancelled", tx, response)


# --- who --------------------------------------------------------------------------------------------------------------


async def _decider(caller: Caller, acts_for: ActsFor | None, tx: Tx) -> Decider:
    """The caller, or the person a client acts for. Raises NotPermitted, UnknownApprover."""
    if acts_for is None:
        return Decider(
            id=caller.id,
            name=caller.name,
            person=await people.person(tx.connection, [caller.id, caller.owner_id], caller.os_users or ()),
            roles=caller.roles,
            identified=caller.os_users is not None,
            everywhere=caller.computer_group_ids is None,
        )
    if not caller.act_for:
        raise NotPermitted(f"{caller.name} may not act for others.")
    account = await people.account(tx.connection, id=acts_for.account_id, email=acts_for.email)
    if account is None or not account.active:
        sentence = "There is no one account of that id or e-mail address that is in use."
        raise domain.UnknownApprover(sentence, errors=[FieldError("/on_behalf_of", sentence)])
    os_users = [*(caller.os_users or ()), *(account.os_users or ())]
    person = await people.person(tx.connection, [caller.id, caller.owner_id, account.id], os_users)
    return Decider(
        id=caller.id,
        name=caller.name,
        person=person,
        roles=account.roles,
        identified=caller.os_users is not None and account.os_users is not None,
        everywhere=caller.computer_group_ids is None and account.everywhere,
        on_behalf_of=OnBehalfOf(account_id=account.id, name=account.name),
    )


async def _held(request_id: str, caller: Caller, tx: Tx) -> Request:
    """The request, held for a change. Raises NotFound when there is none, or it is out of the caller's sight."""
    request = await tx.request_for_update(request_id)
    if not _sees(caller, request):
        raise NotFound(f"There is no request {request_id}.")
    return request


def _sees(caller: Caller, request: Request) -> bool:
    return _sees_all(caller) or _is_own(caller, request)


def _sees_all(caller: Caller) -> bool:
    """Who is limited to computer groups sees nothing of others: no computer is in a group yet."""
    return caller.has("approver", "auditor", "administrator") and caller.computer_group_ids is None


def _is_own(caller: Caller, request: Request) -> bool:
    return request.wish.asker.id in _own_ids(caller) or request.wish.user in (caller.os_users or ())


def _own_ids(caller: Caller) -> list[str]:
    return [caller.id, caller.owner_id] if caller.owner_id else [caller.id]


# --- what is shown ----------------------------------------------------------------------------------------------------


async def _saved(before: Request, after: Request, change: str, tx: Tx, response: Response) -> RequestOut:
    """Save what changed, and show it; the same again is nothing new to say."""
    if after is not before:
        await tx.save(after, change)
    return await _out(after, tx, response)


async def _out(request: Request, tx: Tx, response: Response) -> RequestOut:
    set_etag(response, request.version)
    computer_id = request.wish.computer_id
    names = await people.computer_names(tx.connection, [computer_id])
    return _shown(request, tx.house.settings.public_url, names.get(computer_id))


def _shown(request: Request, console: str, computer_name: str | None) -> RequestOut:
    return RequestOut(
        **vars(entity_of(request)),
        computer_name=computer_name,
        console_url=f"{console}/just-in-time-access/requests#{request.id}",
        suggested_rules=domain.suggested_rules(request.wish.application),
    )
