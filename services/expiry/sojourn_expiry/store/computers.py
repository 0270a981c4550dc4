"""Computers as this service knows them, and the document of each: dirty, signed, pushed."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import bindparam, case, select, text, update
from sqlalchemy.dialects.postgresql import insert

from sojourn_shared.contracts.events import ComputerState
from sojourn_shared.service import House

from .tables import computers as table
from .transaction import Tx

# A dirty computer's moment lies in the past for every replica's clock, and what is taken away comes first.
_TAKEN_AWAY = datetime(1970, 1, 1, tzinfo=UTC)
_DIRTY = datetime(1971, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class Computer:
    """A computer and its newest document (`version` 0: none was signed yet)."""

    id: str
    name: str
    status: str
    keeper_public_key: str
    guarantees: dict[str, Any]
    epoch: int
    version: int
    document: str | None
    held_version: int
    applied_epoch: int
    applied_version: int
    taken_away: bool
    updated_at: datetime


_FIELDS = [table.c[name] for name in Computer.__dataclass_fields__]


async def get(tx: Tx, computer_id: str) -> Computer | None:
    row = (await tx.connection.execute(select(*_FIELDS).where(table.c.id == computer_id))).one_or_none()
    return None if row is None else Computer(**row._mapping)


async def hear(tx: Tx, state: ComputerState) -> None:
    """Store what `policy` says of a computer; a new one is dirty: its first document is to be written.

    One that is enrolled again gets a document again.
    """
    said = {
        "name": state.name,
        "status": state.status,
        "keeper_public_key": state.keeper_public_key,
        "guarantees": state.guarantees,
        "updated_at": tx.now,
    }
    nothing_yet = {
        "epoch": 0,
        "version": 0,
        "sign_at": _DIRTY,
        "taken_away": False,
        "pushed_version": 0,
        "held_version": 0,
        "applied_epoch": 0,
        "applied_version": 0,
        "created_at": tx.now,
    }
    statement = insert(table).values(id=state.id, **said, **nothing_yet)
    sign_at = case((table.c.status != statement.excluded.status, _DIRTY), else_=table.c.sign_at)
    await tx.connection.execute(
        statement.on_conflict_do_update(index_elements=[table.c.id], set_=said | {"sign_at": sign_at})
    )
    tx.wake_publisher()


async def mark_dirty(tx: Tx, ids: Iterable[str], *, taken_away: Collection[str] = ()) -> dict[str, str]:
    """The documents of these computers are to be written anew; locks their rows in the order of their ids.

    `taken_away`: those that lose something; their documents go out first, and as `.revoke`. Returns each one's status.
    """
    wanted = sorted(set(ids) | set(taken_away))
    if not wanted:
        return {}
    found = await tx.connection.execute(
        _MARK_DIRTY, {"ids": wanted, "taken": sorted(taken_away), "dirty": _DIRTY, "first": _TAKEN_AWAY}
    )
    tx.wake_publisher()
    return {row.id: row.status for row in found}


_MARK_DIRTY = text(
    "WITH locked AS (SELECT id FROM computers WHERE id = ANY(:ids) ORDER BY id FOR NO KEY UPDATE) "
    "UPDATE computers c SET taken_away = c.taken_away OR c.id = ANY(:taken), "
    "sign_at = least(c.sign_at, CASE WHEN c.id = ANY(:taken) THEN CAST(:first AS timestamptz) "
    "ELSE CAST(:dirty AS timestamptz) END) "
    "FROM locked WHERE c.id = locked.id RETURNING c.id, c.status"
)


async def mark_all_dirty(tx: Tx) -> None:
    await _mark_where(tx, "status = 'enrolled'", {})


async def mark_outdated_dirty(tx: Tx, *, epoch: int, kid: str) -> None:
    """Documents signed in an older epoch, or by a key that signs no more, are to be signed anew."""
    await _mark_where(tx, "version > 0 AND (epoch <> :epoch OR kid <> :kid)", {"epoch": epoch, "kid": kid})


async def _mark_where(tx: Tx, condition: str, values: dict[str, Any]) -> None:
    await tx.connection.execute(
        text(
            f"WITH locked AS (SELECT id FROM computers WHERE {condition} ORDER BY id FOR NO KEY UPDATE) "  # noqa: S608  # ours
            "UPDATE computers c SET sign_at = least(c.sign_at, CAST(:dirty AS timestamptz)) "
            "FROM locked WHERE c.id = locked.id"
        ),
        values | {"dirty": _DIRTY},
    )
    tx.wake_publisher()


# --- signing and sending ----------------------------------------------------------------------------------------------


async def take_dirty(tx: Tx, *, limit: int, but: Collection[str] = ()) -> list[Computer]:
    """Computers whose document is to be signed, locked; those that another replica has in hand are left to it."""
    query = (
        select(*_FIELDS)
        .where(table.c.sign_at <= tx.now)
        .order_by(table.c.sign_at, table.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True, key_share=True)
    )
    if but:
        query = query.where(table.c.id.not_in(but))
    return [Computer(**row._mapping) for row in await tx.connection.execute(query)]


@dataclass(frozen=True, kw_only=True)
class Signed:
    """A document as it is stored and sent. `renew_at`: when it is to be signed again though nothing changed."""

    computer_id: str
    epoch: int
    version: int
    kid: str
    jws: str
    renew_at: datetime | None
    taken_away: bool


async def store(tx: Tx, documents: Sequence[Signed]) -> None:
    """Keep the documents; their computers are clean from then on."""
    await tx.connection.execute(
        _STORE,
        [
            {
                "key": one.computer_id,
                "new_epoch": one.epoch,
                "new_version": one.version,
                "new_kid": one.kid,
                "new_document": one.jws,
                "new_signed_at": tx.now,
                "new_sign_at": one.renew_at,
            }
            for one in documents
        ],
    )


_STORE = (
    update(table)
    .where(table.c.id == bindparam("key"))
    .values(
        {name: bindparam(f"new_{name}") for name in ("epoch", "version", "kid", "document", "signed_at", "sign_at")}
        | {"taken_away": False}
    )
)


async def note_pushed(house: House, documents: Sequence[Signed]) -> None:
    """Remember what went out: after a crash between commit and push, the rest is sent again."""
    versions = {one.computer_id: one.version for one in documents}
    async with house.database.begin() as connection:
        await connection.execute(
            text(
                "UPDATE computers c SET pushed_version = p.version FROM "
                "(SELECT id, CAST(version AS bigint) FROM unnest(CAST(:ids AS text[]), CAST(:versions AS text[])) "
                "AS p (id, version) ORDER BY id) p WHERE c.id = p.id AND c.pushed_version < p.version"
            ),
            {"ids": list(versions), "versions": [str(one) for one in versions.values()]},
        )


async def unpushed(house: House, *, signed_before: datetime, limit: int) -> list[Signed]:
    """Documents that were signed a while ago, and of which nobody noted that they went out."""
    async with house.database.begin(read_only=True) as connection:
        found = await connection.execute(
            select(table.c.id, table.c.epoch, table.c.version, table.c.kid, table.c.document)
            .where(table.c.pushed_version < table.c.version, table.c.signed_at < signed_before)
            .order_by(table.c.signed_at)
            .limit(limit)
        )
        return [
            Signed(
                computer_id=row.id,
                epoch=row.epoch,
                version=row.version,
                kid=row.kid,
                jws=row.document,
                renew_at=None,
                taken_away=True,  # which it was is forgotten: the agent reads both alike
            )
            for row in found
        ]


def renewal_due(now: datetime, max_offline: timedelta) -> datetime:
    """A document is signed again at half its life, so that one that is lost does not end anything."""
    return now + max_offline / 2


# --- what the computer holds ------------------------------------------------------------------------------------------


async def holds_newer(tx: Tx, computer_id: str, version: int) -> None:
    """The computer holds a version that was never signed here (an old database was restored): go above it."""
    await tx.connection.execute(
        text("UPDATE computers SET held_version = greatest(held_version, :version) WHERE id = :id"),
        {"id": computer_id, "version": version},
    )
    await mark_dirty(tx, [computer_id])


async def has_applied(tx: Tx, computer_id: str, epoch: int, version: int) -> None:
    await tx.connection.execute(
        text(
            "UPDATE computers SET applied_epoch = :epoch, applied_version = :version WHERE id = :id "
            "AND (applied_epoch, applied_version) < (:epoch, :version)"
        ),
        {"id": computer_id, "epoch": epoch, "version": version},
    )
