"""Queries on the copies of accounts, computers and agents."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, delete, func, or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from sojourn_requests.domain import DECIDING_ROLES, Account, Person, folded

from .tables import accounts, agents, computers


@dataclass(frozen=True)
class Computer:
    id: str
    name: str
    status: str
    keeper_public_key: str


async def person(connection: AsyncConnection, account_ids: Iterable[str | None], os_users: Iterable[str]) -> Person:
    """Everything that is known to be the same person as these, through as many accounts as it takes."""
    known = Person.of(account_ids, os_users)
    while True:
        query = select(accounts).where(
            or_(accounts.c.id.in_(known.account_ids), accounts.c.os_users_folded.overlap(list(known.os_users)))
        )
        wider = known.with_accounts(map(_account, (await connection.execute(query)).all()))
        if wider == known:
            return known
        known = wider


async def account(connection: AsyncConnection, *, id: str | None = None, email: str | None = None) -> Account | None:
    """The account of that id, or of that e-mail address without case; None when there is none, or more than one."""
    where = accounts.c.id == id if id is not None else func.lower(accounts.c.email) == (email or "").lower()
    rows = (await connection.execute(select(accounts).where(where).limit(2))).all()
    return _account(rows[0]) if len(rows) == 1 else None


async def approvers(connection: AsyncConnection, parties: Person, roles: Iterable[str]) -> list[Account]:
    """Who could decide on a request of `parties` in a seat open to `roles`, by name."""
    query = select(accounts).where(accounts.c.active, accounts.c.roles.overlap(list(DECIDING_ROLES)))
    found = map(_account, (await connection.execute(query.order_by(accounts.c.name, accounts.c.id))).all())
    return [one for one in found if one.may_decide_for(parties, frozenset(roles))]


async def owner_of(connection: AsyncConnection, os_user: str) -> Account | None:
    """The one account that is this OS user; None when none is, or several are."""
    query = select(accounts).where(accounts.c.os_users.contains([os_user])).limit(2)
    rows = (await connection.execute(query)).all()
    return _account(rows[0]) if len(rows) == 1 else None


async def keep_account(connection: AsyncConnection, one: Account) -> None:
    values = {
        "id": one.id,
        "name": one.name,
        "email": one.email,
        "roles": sorted(one.roles),
        "os_users": None if one.os_users is None else list(one.os_users),
        "os_users_folded": [folded(name) for name in one.os_users or ()],
        "everywhere": one.everywhere,
        "active": one.active,
    }
    await connection.execute(insert(accounts).values(values).on_conflict_do_update(index_elements=["id"], set_=values))


async def forget_account(connection: AsyncConnection, id: str) -> None:
    await connection.execute(delete(accounts).where(accounts.c.id == id))


def _account(row: Row[Any]) -> Account:
    return Account(
        id=row.id,
        name=row.name,
        email=row.email,
        roles=frozenset(row.roles),
        os_users=None if row.os_users is None else tuple(row.os_users),
        everywhere=row.everywhere,
        active=row.active,
    )


async def computer(connection: AsyncConnection, id: str, *, held: bool = False) -> Computer | None:
    """The computer of that id. `held`: it cannot be decommissioned here before this transaction ends."""
    query = select(computers.c.id, computers.c.name, computers.c.status, computers.c.keeper_public_key)
    query = query.where(computers.c.id == id)
    row = (await connection.execute(query.with_for_update(read=True) if held else query)).one_or_none()
    return Computer(*row) if row else None


async def computer_names(connection: AsyncConnection, ids: Iterable[str]) -> dict[str, str]:
    query = select(computers.c.id, computers.c.name).where(computers.c.id.in_(set(ids)))
    return {row.id: row.name for row in await connection.execute(query)}


async def keep_computer(connection: AsyncConnection, one: Computer) -> None:
    values = vars(one)
    await connection.execute(insert(computers).values(values).on_conflict_do_update(index_elements=["id"], set_=values))


async def liveness(connection: AsyncConnection, computer_id: str) -> tuple[bool | None, datetime | None]:
    """Whether the computer's agent is connected, and when it was last seen; None: never heard."""
    query = select(agents.c.connected, agents.c.last_seen_at).where(agents.c.computer_id == computer_id)
    row = (await connection.execute(query)).one_or_none()
    return (row.connected, row.last_seen_at) if row else (None, None)


async def keep_liveness(
    connection: AsyncConnection, computer_id: str, connected: bool, last_seen_at: datetime | None
) -> None:
    values = {"computer_id": computer_id, "connected": connected, "last_seen_at": last_seen_at}
    statement = insert(agents).values(values).on_conflict_do_update(index_elements=["computer_id"], set_=values)
    await connection.execute(statement)
