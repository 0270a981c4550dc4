"""Who was heard when. No entity, no version of its own: only coming and going is said."""

from collections.abc import Sequence
from datetime import datetime

import msgspec
from sqlalchemy import select, text

from sojourn_shared.clock import milliseconds
from sojourn_shared.contracts import wire
from sojourn_shared.contracts.events import AgentState, Links

from .tables import liveness as table
from .transaction import Tx


async def heard(tx: Tx, computer_id: str, beat: wire.Heartbeat) -> None:
    """Note a heartbeat; the first one, and the first after `agent.lost`, says `agent.connected`."""
    values = {
        "id": computer_id,
        "now": tx.now,
        "boot": beat.boot_id,
        "agent": beat.agent_version,
        "running": msgspec.json.encode(beat.running).decode(),
        "version": milliseconds(tx.now),
    }
    returned = (await tx.connection.execute(_HEARD, values)).one()
    if returned.came:
        _tell(tx, "agent.connected", computer_id, returned.said_version, connected=True, last_seen_at=tx.now)


# One statement for a heartbeat; `old` is the row before (PostgreSQL 18), whatever other replicas did meanwhile.
_HEARD = text(
    "INSERT INTO liveness AS l (computer_id, connected, said_version, last_seen_at, boot_id, agent_version, running) "
    "VALUES (:id, true, :version, :now, :boot, :agent, CAST(:running AS jsonb)) "
    "ON CONFLICT (computer_id) DO UPDATE SET connected = true, last_seen_at = greatest(l.last_seen_at, :now), "
    "said_version = CASE WHEN l.connected THEN l.said_version ELSE greatest(l.said_version + 1, :version) END, "
    "boot_id = :boot, agent_version = :agent, running = CAST(:running AS jsonb) "
    "RETURNING said_version, NOT coalesce(old.connected, false) AS came"
)


async def lose(tx: Tx, *, silent_since: datetime, limit: int) -> Sequence[str]:
    """Say `agent.lost` of those that were not heard since then; returns their ids."""
    lost = (
        await tx.connection.execute(_LOSE, {"since": silent_since, "version": milliseconds(tx.now), "limit": limit})
    ).all()
    for row in lost:
        _tell(tx, "agent.lost", row.computer_id, row.said_version, connected=False, last_seen_at=row.last_seen_at)
    return [row.computer_id for row in lost]


_LOSE = text(
    "WITH silent AS (SELECT computer_id FROM liveness WHERE connected AND last_seen_at < :since "
    "ORDER BY last_seen_at LIMIT :limit FOR UPDATE SKIP LOCKED) "
    "UPDATE liveness l SET connected = false, said_version = greatest(l.said_version + 1, :version) "
    "FROM silent WHERE l.computer_id = silent.computer_id RETURNING l.computer_id, l.said_version, l.last_seen_at"
)


async def of(tx: Tx, computer_id: str) -> AgentState | None:
    row = (await tx.connection.execute(select(table).where(table.c.computer_id == computer_id))).one_or_none()
    if row is None:
        return None
    return AgentState(id=computer_id, version=row.said_version, connected=row.connected, last_seen_at=row.last_seen_at)


def _tell(tx: Tx, change: str, computer_id: str, version: int, *, connected: bool, last_seen_at: datetime) -> None:
    state = AgentState(id=computer_id, version=version, connected=connected, last_seen_at=last_seen_at)
    tx.emit(change, id=computer_id, entity=state, version=version, links=Links(computer_id=computer_id))
