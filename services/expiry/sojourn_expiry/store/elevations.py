"""Runs: what is known of each grows by reports, in any order."""

from collections.abc import Iterable
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert

from sojourn_expiry.domain import Grant, Run
from sojourn_shared.contracts import wire
from sojourn_shared.contracts.events import Actor, Links

from . import rows
from .tables import elevations as table
from .tables import stray_ends
from .transaction import Tx


async def lock(tx: Tx, ids: Iterable[str]) -> dict[str, Run]:
    """The runs that are known, by id, locked."""
    query = select(table).where(table.c.id.in_(sorted(set(ids)))).order_by(table.c.id).with_for_update()
    return {row.id: rows.to_run(row) for row in await tx.connection.execute(query)}


async def save(tx: Tx, before: Run | None, after: Run, change: str, *, grant: Grant | None, actor: Actor) -> None:
    """Write a run with its event; nothing when it did not change. `grant`: the one that it runs under, if known."""
    if after is before:
        return
    values = rows.of_run(after)
    changing = {name: value for name, value in values.items() if name not in {"id", "computer_id", "created_at"}}
    await tx.connection.execute(
        insert(table).values(values).on_conflict_do_update(index_elements=[table.c.id], set_=changing)
    )
    tx.emit(
        change,
        id=after.id,
        entity=rows.run_entity(after),
        version=after.version,
        links=Links(
            policy_id=grant.policy_id if grant else None,
            request_id=grant.request_id if grant else None,
            grant_id=after.grant_id,
            computer_id=after.computer_id,
            user=after.user,
        ),
        actor=actor,
    )


async def record_stray_end(tx: Tx, computer_id: str, grant_id: str, cause: wire.Cause, at: datetime) -> None:
    """A computer ended a grant that is not known here."""
    await tx.connection.execute(
        insert(stray_ends)
        .values(computer_id=computer_id, grant_id=grant_id, cause=cause, at=at)
        .on_conflict_do_nothing()
    )
