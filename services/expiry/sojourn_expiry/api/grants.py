"""Grants: who may run what now, and taking it away."""

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import Depends, Query, Response
from pydantic import Field
from sqlalchemy import or_

from sojourn_expiry import domain
from sojourn_expiry.domain import Delivery, Grant, Revocation, Status
from sojourn_expiry.store import Tx, computers, lists
from sojourn_expiry.store import grants as store
from sojourn_expiry.store.lists import Sight
from sojourn_expiry.store.tables import grants as table
from sojourn_shared.contracts.events import Body, Id, Model, Text, Time, UserName
from sojourn_shared.errors import NotFound, NotPermitted
from sojourn_shared.service import Caller, Page, Paging, allow, paging, problems, set_etag
from sojourn_shared.service import router as new_router

from .sight import Console, TheTx, sight_of

router = new_router("/grants", tags=["grants"])

Reader = Annotated[Caller, Depends(allow())]
Revoker = Annotated[Caller, Depends(allow("administrator", "approver"))]


class NoSuchGrant(NotFound):
    """No grant of that id in the caller's sight."""


class GrantUsers(Model):
    all: bool
    names: list[str]


class RevokedOut(Model):
    by: str
    by_name: str
    at: Time
    reason: str
    grace_seconds: int = 0
    superseded: bool = False


class GrantOut(Model):
    """A grant, what the computer confirmed of it (`delivery`), and how it was used."""

    id: str
    version: int
    status: Status
    delivery: Delivery
    in_force: bool = Field(description="Active or ready, or over while the computer has not confirmed the end.")
    computer_id: str
    computer_name: str | None
    users: GrantUsers
    policy_id: str | None
    policy_name: str | None
    revision: int | None
    request_id: str | None
    from_: Time = Field(alias="from")
    until: Time | None
    starts: Literal["at_from", "first_use"]
    duration_minutes: int | None
    take_up_until: Time | None
    first_used_at: Time | None
    last_used_at: Time | None
    rules: list[dict[str, Any]]
    child_processes: str
    run_as: str
    max_uses: int | None
    uses: int
    ticket_required: bool
    ends_with_application: bool
    applied_at: Time | None
    ended_at: Time | None
    revoked: RevokedOut | None
    failure: str | None
    guarantees: dict[str, Any] | None = Field(description="What the computer can really do, found by doing it.")
    created_at: Time
    updated_at: Time
    console_url: str

    @classmethod
    def of(cls, row: Any, console: str) -> "GrantOut":
        """`row`: what `lists.grant` gives."""
        return cls.model_validate(
            row._asdict()
            | {
                "in_force": row.status in {"ready", "active"} or row.delivery == "ending",
                "users": {"all": row.users_all, "names": row.user_names},
                "from": row.from_at,
                "first_used_at": row.first_used_at or row.first_use,
                "console_url": f"{console}/just-in-time-access/active?grant_id={row.id}",
            }
        )


class GrantPage(Page[GrantOut]):
    pass


class GrantRevocation(Body):
    reason: Text
    grace_seconds: int = Field(0, ge=0, le=3600, description="What runs is warned, and ended after so many seconds.")


@router.get("")
async def list_grants(
    *,
    caller: Reader,
    tx: TheTx,
    console: Console,
    asked: Annotated[Paging, Depends(paging)],
    status: Annotated[list[Status] | None, Query()] = None,
    delivery: Annotated[list[Delivery] | None, Query()] = None,
    in_force: bool | None = None,
    computer_id: Id | None = None,
    user: UserName | None = None,
    policy_id: Id | None = None,
    request_id: Id | None = None,
) -> GrantPage:
    """Grants, newest first. `user` finds those that name that OS user."""
    conditions = lists.grants_in(sight_of(caller))
    if status:
        conditions.append(table.c.status.in_(status))
    if delivery:
        conditions.append(table.c.delivery.in_(delivery))
    if in_force is not None:
        now = or_(table.c.status.in_(("ready", "active")), table.c.delivery == "ending")
        conditions.append(now if in_force else ~now)
    if user is not None:
        conditions.append(table.c.user_names.contains([user]))
    for column, wanted in (("computer_id", computer_id), ("policy_id", policy_id), ("request_id", request_id)):
        if wanted is not None:
            conditions.append(table.c[column] == wanted)
    rows = await lists.grants_page(tx, asked, conditions)
    return GrantPage.model_validate(asked.page([GrantOut.of(row, console) for row in rows], _key(asked)))


@router.get("/{grant_id}", responses=problems(NoSuchGrant))
async def get_grant(grant_id: Id, caller: Reader, tx: TheTx, console: Console, response: Response) -> GrantOut:
    """One grant."""
    return _answer(await _find(tx, grant_id, sight_of(caller)), console, response)


@router.post("/{grant_id}/revoke", responses=problems(NoSuchGrant))
async def revoke_grant(
    *,
    grant_id: Id,
    body: GrantRevocation,
    caller: Revoker,
    tx: TheTx,
    console: Console,
    response: Response,
) -> GrantOut:
    """Take a grant away now. Of one that is over: the answer is what is.

    When this is answered the revoke is stored and on its way; `delivery` turns `ended` once the computer confirmed
    that nothing of it runs.
    """
    sight = sight_of(caller)
    grant = await _lock(tx, grant_id, sight)
    revocation = Revocation(
        by=caller.id, by_name=caller.name, at=tx.now, reason=body.reason, grace_seconds=body.grace_seconds
    )
    await _take_away(tx, grant, domain.revoke(grant, revocation), "grant.revoked", because=body.reason)
    return _answer(await _find(tx, grant_id, sight), console, response)


@router.post("/{grant_id}/return", responses=problems(NoSuchGrant, NotPermitted))
async def return_grant(grant_id: Id, caller: Reader, tx: TheTx, console: Console, response: Response) -> GrantOut:
    """Give one's own access back. Only a grant that names nobody else: one person does not end another's access."""
    sight = sight_of(caller)
    grant = await _lock(tx, grant_id, sight)
    if grant.users_all or not set(grant.user_names) <= set(caller.os_users or ()):
        raise NotPermitted("Only the one person whom a grant names can give it back.")
    after = domain.give_back(grant, by=caller.id, by_name=caller.name, at=tx.now, now=tx.now)
    await _take_away(tx, grant, after, "grant.returned")
    return _answer(await _find(tx, grant_id, sight), console, response)


async def _take_away(tx: Tx, grant: Grant, after: Grant, change: str, because: str | None = None) -> None:
    if after is grant:
        return
    await store.save(tx, grant, after, change, because=because)
    await computers.mark_dirty(tx, [grant.computer_id], taken_away=[grant.computer_id])


async def _lock(tx: Tx, grant_id: str, sight: Sight) -> Grant:
    """Raises NoSuchGrant also for what the caller may not see."""
    await _find(tx, grant_id, sight)
    (grant,) = await store.lock(tx, [grant_id])
    return grant


async def _find(tx: Tx, grant_id: str, sight: Sight) -> Any:
    row = await lists.grant(tx, grant_id, sight)
    if row is None:
        raise NoSuchGrant(f"There is no grant {grant_id}.")
    return row


def _answer(row: Any, console: str, response: Response) -> GrantOut:
    set_etag(response, row.version)
    return GrantOut.of(row, console)


def _key(asked: Paging) -> Any:
    def key(grant: GrantOut) -> tuple[datetime, str]:
        return (grant.updated_at if asked.updated_after else grant.created_at), grant.id

    return key
