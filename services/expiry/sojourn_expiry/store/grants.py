"""Grants: opened, locked, changed with their event, and read for documents and lists."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from sqlalchemy import Column, Integer, bindparam, select, text, update
from sqlalchemy.dialects.postgresql import insert

from sojourn_expiry import domain
from sojourn_expiry.document import FRAME_BYTES, PAYLOAD_LIMIT, REVOKED_BYTES, size_on_wire
from sojourn_expiry.domain import Grant
from sojourn_shared.contracts.events import Actor, Links

from . import computers, rows
from .tables import assignments
from .tables import grants as table
from .transaction import Tx

OPENED = {"scheduled": "grant.scheduled", "ready": "grant.ready", "active": "grant.activated"}


async def open_(tx: Tx, grants: Sequence[Grant], *, taken_from: Collection[str] = ()) -> list[Grant]:
    """Store new grants with their events, and mark their computers dirty; returns those that are really new.

    One that a document has no room for, or whose computer was decommissioned, is opened as revoked, so that whoever
    waits for it hears why. `taken_from`: computers that lost a grant in this transaction; all computers are locked
    in one go, after all grants.
    """
    opened = await _insert(tx, grants)
    ids = {grant.computer_id for grant in opened}
    states = await computers.mark_dirty(tx, ids | set(taken_from), taken_away=taken_from)
    room = await _room(tx, ids)
    refused = {grant.id: domain.refused_at_opening(grant, reason) for grant, reason in _refusals(opened, states, room)}
    await _update(tx, list(refused.values()))
    opened = [refused.get(grant.id, grant) for grant in opened]
    for grant in opened:
        tell(tx, grant, OPENED.get(grant.status, "grant.revoked"), because=grant.failure)
    tx.wake_clock()
    return opened


async def _insert(tx: Tx, grants: Sequence[Grant]) -> list[Grant]:
    if not grants:
        return []
    values = [rows.of_grant(grant, tx.now) | {"wire_bytes": size_on_wire(grant)} for grant in _by_id(grants)]
    inserted = await tx.connection.execute(insert(table).on_conflict_do_nothing().returning(table.c.id), values)
    new = set(inserted.scalars())
    return [grant for grant in _by_id(grants) if grant.id in new]


def _refusals(opened: Sequence[Grant], states: dict[str, str], room: dict[str, int]) -> Iterable[tuple[Grant, str]]:
    """The newest grants give way: of these, the last ones."""
    for grant in reversed(opened):
        if states.get(grant.computer_id) == "decommissioned":
            yield grant, domain.DECOMMISSIONED
        elif room[grant.computer_id] < 0:
            room[grant.computer_id] += size_on_wire(grant)
            yield grant, domain.DOCUMENT_FULL


async def _room(tx: Tx, computer_ids: Iterable[str]) -> dict[str, int]:
    """Bytes that are left in each computer's document; less than 0 when it holds too much. The computers are locked."""
    found = await tx.connection.execute(_TAKEN, {"ids": list(computer_ids), "revoked": REVOKED_BYTES})
    return {row.computer_id: PAYLOAD_LIMIT - FRAME_BYTES - row.taken for row in found}


_TAKEN = text(
    "SELECT computer_id, sum(CASE WHEN status = 'revoked' THEN least(wire_bytes, CAST(:revoked AS int)) "
    "ELSE wire_bytes END) AS taken FROM grants WHERE computer_id = ANY(:ids) "
    "AND (status NOT IN ('expired', 'revoked') OR delivery = 'ending') GROUP BY computer_id"
)


async def lock(tx: Tx, ids: Iterable[str], *, computer_id: str | None = None) -> list[Grant]:
    """Those of the grants that exist, locked in the order of their ids; only of that computer when it is given."""
    query = select(table).where(table.c.id.in_(sorted(set(ids)))).order_by(table.c.id).with_for_update()
    if computer_id is not None:
        query = query.where(table.c.computer_id == computer_id)
    return [rows.to_grant(row) for row in await tx.connection.execute(query)]


async def exists(tx: Tx, grant_id: str) -> bool:
    """Whether there is such a grant, of whatever computer."""
    return bool((await tx.connection.execute(select(table.c.id).where(table.c.id == grant_id))).scalar())


async def lock_undelivered(tx: Tx, ids: Iterable[str], computer_id: str) -> list[Grant]:
    """Those of the computer's grants whose delivery a report of *applied* can change, locked."""
    query = (
        select(table)
        .where(table.c.id.in_(sorted(set(ids))), table.c.computer_id == computer_id)
        .where(table.c.delivery.in_(("pending", "failed")))
        .order_by(table.c.id)
        .with_for_update()
    )
    return [rows.to_grant(row) for row in await tx.connection.execute(query)]


async def lock_of_assignments(tx: Tx, assignment_ids: Iterable[str]) -> list[Grant]:
    """The grants of these assignments that are not over, locked."""
    query = (
        select(table)
        .where(table.c.assignment_id.in_(sorted(set(assignment_ids))), table.c.status.not_in(domain.FINAL))
        .order_by(table.c.id)
        .with_for_update()
    )
    return [rows.to_grant(row) for row in await tx.connection.execute(query)]


async def lock_unconfirmed_of(tx: Tx, computer_id: str) -> list[Grant]:
    """What a computer may still hold: all but grants whose end it has confirmed."""
    query = (
        select(table)
        .where(table.c.computer_id == computer_id)
        .where(table.c.status.not_in(domain.FINAL) | (table.c.delivery == "ending"))
        .order_by(table.c.id)
        .with_for_update()
    )
    return [rows.to_grant(row) for row in await tx.connection.execute(query)]


async def save(
    tx: Tx, before: Grant, after: Grant, change: str, *, because: str | None = None, actor: Actor | None = None
) -> Grant:
    """Write what changed, with its event; nothing when `after` is the very same grant."""
    await save_all(tx, [(before, after, change)], because=because, actor=actor)
    return after


async def save_all(
    tx: Tx,
    changes: Iterable[tuple[Grant, Grant, str]],
    *,
    because: str | None = None,
    actor: Actor | None = None,
) -> None:
    """Triples of before, after and the event's name."""
    real = [(after, change) for before, after, change in changes if after is not before]
    await _update(tx, [after for after, _ in real])
    for after, change in real:
        tell(tx, after, change, because=because, actor=actor)
    if real:
        tx.wake_clock()


def tell(tx: Tx, grant: Grant, change: str, *, because: str | None = None, actor: Actor | None = None) -> None:
    tx.emit(
        change,
        id=grant.id,
        entity=rows.entity(grant),
        version=grant.version,
        links=links(grant),
        because=because,
        actor=actor,
    )


def links(grant: Grant) -> Links:
    return Links(
        policy_id=grant.policy_id,
        request_id=grant.request_id,
        grant_id=grant.id,
        computer_id=grant.computer_id,
        user=grant.only_user,
    )


async def _update(tx: Tx, grants: Sequence[Grant]) -> None:
    if grants:
        await tx.connection.execute(_UPDATE, [_new_values(grant, tx) for grant in grants])


def _new_values(grant: Grant, tx: Tx) -> dict[str, Any]:
    values = rows.of_grant(grant, tx.now)
    return {"key": grant.id} | {f"new_{name}": values[name] for name in rows.CHANGING}


_UPDATE = (
    update(table)
    .where(table.c.id == bindparam("key"))
    .values({name: bindparam(f"new_{name}") for name in rows.CHANGING})
)


# --- assignments ------------------------------------------------------------------------------------------------------


async def hear_assignments(tx: Tx, changed: Any) -> list[Any]:
    """Record each assignment of the page; returns those that are newer than what was heard of them."""
    values = [
        one.model_dump() | {"policy_id": changed.policy_id, "revision": changed.revision}
        for one in sorted(changed.assignments, key=lambda one: str(one.id))
    ]
    if not values:
        return []
    statement = insert(assignments)
    statement = statement.on_conflict_do_update(
        index_elements=[assignments.c.id],
        set_={name: statement.excluded[name] for name in ("version", "state", "computer_id", "policy_id", "revision")},
        where=assignments.c.version < statement.excluded.version,
    )
    news = set((await tx.connection.execute(statement.returning(assignments.c.id), values)).scalars())
    return [one for one in changed.assignments if one.id in news]


# --- documents --------------------------------------------------------------------------------------------------------


async def in_documents(tx: Tx, computer_ids: Sequence[str]) -> dict[str, list[tuple[Grant, int]]]:
    """For each computer the grants of its document, oldest first, each with the uses that its policy had before.

    Takes no lock: whoever changes a grant marks the computer dirty afterwards, and waits for its row.
    """
    found = await tx.connection.execute(
        _IN_DOCUMENTS, {"ids": list(computer_ids), "announced": tx.now + domain.ANNOUNCED}
    )
    result: dict[str, list[tuple[Grant, int]]] = {computer_id: [] for computer_id in computer_ids}
    for row in found:
        result[row.computer_id].append((rows.to_grant(row), row.uses_before))
    return result


# `max_uses` counts for each policy and computer, over all revisions and users.
_IN_DOCUMENTS = text(
    "SELECT g.*, CASE WHEN g.max_uses IS NULL OR g.policy_id IS NULL THEN 0 ELSE (SELECT count(*) FROM grants o "
    "JOIN elevations e ON e.started_under = o.id WHERE o.policy_id = g.policy_id AND o.computer_id = g.computer_id "
    "AND o.id <> g.id) END AS uses_before FROM grants g JOIN computers c ON c.id = g.computer_id "
    "WHERE g.computer_id = ANY(:ids) AND CASE WHEN g.status NOT IN ('expired', 'revoked') THEN g.from_at <= :announced "
    "ELSE g.delivery = 'ending' OR (g.delivery = 'unconfirmed' AND c.status = 'decommissioned') END "
    "ORDER BY g.computer_id, g.created_at, g.id"
).columns(*table.c, Column("uses_before", Integer))


def _by_id(grants: Iterable[Grant]) -> list[Grant]:
    return sorted(grants, key=lambda grant: grant.id)
