"""What REST shows: grants and runs, one or a page, with what lies beside them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, Table, func, or_, select, true, tuple_

from sojourn_shared.service import Paging, settled_until

from .tables import computers, elevations, grants
from .transaction import Tx

Condition = ColumnElement[bool]


@dataclass(frozen=True)
class Sight:
    """Whose grants and runs a caller may see: everybody's, or those of these OS users."""

    everything: bool
    os_users: tuple[str, ...] = ()


def grants_in(sight: Sight) -> list[Condition]:
    if sight.everything:
        return []
    mine = grants.c.user_names.overlap(list(sight.os_users))
    return [or_(mine, grants.c.users_all) if sight.os_users else mine]


def elevations_in(sight: Sight) -> list[Condition]:
    return [] if sight.everything else [elevations.c.user_name.in_(sight.os_users)]


async def grant(tx: Tx, grant_id: str, sight: Sight) -> Row[Any] | None:
    """A grant's columns, with `computer_name, guarantees, uses, first_use, last_used_at`."""
    found = await tx.connection.execute(_grants().where(grants.c.id == grant_id, *grants_in(sight)))
    row: Row[Any] | None = found.one_or_none()
    return row


async def grants_page(tx: Tx, asked: Paging, conditions: Sequence[Condition]) -> Sequence[Row[Any]]:
    """Up to one more than the page: newest first, or by change when `updated_after` was asked."""
    return await _page(tx, _grants().where(*conditions), grants, asked)


async def elevation(tx: Tx, run_id: str, sight: Sight) -> Row[Any] | None:
    """A run's columns, with `computer_name`."""
    found = await tx.connection.execute(_elevations().where(elevations.c.id == run_id, *elevations_in(sight)))
    row: Row[Any] | None = found.one_or_none()
    return row


async def elevations_page(tx: Tx, asked: Paging, conditions: Sequence[Condition]) -> Sequence[Row[Any]]:
    return await _page(tx, _elevations().where(*conditions), elevations, asked)


def _grants() -> Select[Any]:
    used = (
        select(
            func.count().label("uses"),
            func.min(elevations.c.started_at).label("first_use"),
            func.max(elevations.c.started_at).label("last_used_at"),
        )
        .where(elevations.c.started_under == grants.c.id)
        .lateral("used")
    )
    return (
        select(
            grants,
            computers.c.name.label("computer_name"),
            computers.c.guarantees,
            used.c.uses,
            used.c.first_use,
            used.c.last_used_at,
        )
        .outerjoin(computers, computers.c.id == grants.c.computer_id)
        .join(used, onclause=true())
    )


def _elevations() -> Select[Any]:
    return select(elevations, computers.c.name.label("computer_name")).outerjoin(
        computers, computers.c.id == elevations.c.computer_id
    )


async def _page(tx: Tx, query: Select[Any], table: Table, asked: Paging) -> Sequence[Row[Any]]:
    if asked.updated_after is None:
        query = query.order_by(table.c.created_at.desc(), table.c.id.desc())
        if asked.cursor:
            query = query.where(tuple_(table.c.created_at, table.c.id) < asked.cursor)
    else:
        settled = await settled_until(tx.connection)
        query = query.where(table.c.updated_at > asked.updated_after, table.c.updated_at < settled)
        query = query.order_by(table.c.updated_at, table.c.id)
        if asked.cursor:
            query = query.where(tuple_(table.c.updated_at, table.c.id) > asked.cursor)
    rows: Sequence[Row[Any]] = (await tx.connection.execute(query.limit(asked.limit + 1))).all()
    return rows
