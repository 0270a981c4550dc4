"""The clock's own statements: whatever is due turns in one go, its events included, in the database.

The bodies of the events are made in SQL, field for field as `rows.entity` makes them (a test compares the two):
rows that travel to Python and back cost half of the speed.
"""

from datetime import datetime

from sqlalchemy import text

from . import computers
from .transaction import Tx

BATCH = 1000


async def next_moment(tx: Tx) -> datetime | None:
    """When something is due next; None: nothing ever."""
    found = await tx.connection.execute(text("SELECT min(due_at) FROM grants WHERE due_at IS NOT NULL"))
    moment: datetime | None = found.scalar_one()
    return moment


async def turn(tx: Tx, *, limit: int = BATCH) -> int:
    """Turn up to `limit` grants whose moment has come (scheduled → ready or active; active, ready → expired).

    Changes no document: computers know these moments. Grants that another transaction holds are left for the next
    time. Returns how many were turned.
    """
    raw = await tx.raw()
    turned: int = await raw.fetchval(_TURN, tx.now, limit, tx.trace, tx.actor.id, tx.actor.name)
    if turned:
        tx.wake("outbox")
    return turned


async def announce(tx: Tx, *, limit: int = BATCH) -> int:
    """Put grants that begin within seven days into their computers' documents. Returns how many."""
    found = await tx.connection.execute(_ANNOUNCE, {"now": tx.now, "limit": limit})
    computer_ids = [row.computer_id for row in found]
    await computers.mark_dirty(tx, computer_ids)
    return len(computer_ids)


_ANNOUNCE = text(
    "WITH near AS (SELECT id FROM grants WHERE due_at <= :now AND status = 'scheduled' AND from_at > :now "
    "ORDER BY id LIMIT :limit FOR UPDATE SKIP LOCKED) "
    "UPDATE grants g SET due_at = g.from_at FROM near WHERE g.id = near.id RETURNING g.computer_id"
)


def _moment(column: str) -> str:
    return f"""to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""


_ENTITY = f"""json_build_object(
    'id', id, 'version', version, 'status', status, 'delivery', delivery, 'computer_id', computer_id,
    'users', json_build_object('all', users_all, 'names', user_names),
    'policy_id', policy_id, 'policy_name', policy_name, 'revision', revision, 'request_id', request_id,
    'from', {_moment("from_at")}, 'until', {_moment("until")}, 'starts', starts,
    'duration_minutes', duration_minutes, 'take_up_until', {_moment("take_up_until")},
    'first_used_at', {_moment("first_used_at")}, 'child_processes', child_processes, 'run_as', run_as,
    'max_uses', max_uses, 'applied_at', {_moment("applied_at")}, 'ended_at', {_moment("ended_at")},
    'revoked', revoked, 'failure', failure,
    'created_at', {_moment("created_at")}, 'updated_at', {_moment("updated_at")})"""

_CHANGE = "CASE status WHEN 'active' THEN 'activated' ELSE status END"

# $1 now, $2 how many, $3 traceparent, $4 and $5 the actor's id and name
_TURN = f"""
WITH due AS (
    SELECT id FROM grants WHERE due_at <= $1 AND NOT (status = 'scheduled' AND from_at > $1)
    ORDER BY due_at, id LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED
), turned AS (
    UPDATE grants g SET
        status = CASE WHEN g.status <> 'scheduled' THEN 'expired'
                      WHEN g.starts = 'first_use' THEN 'ready' ELSE 'active' END,
        delivery = CASE WHEN g.status = 'scheduled' THEN g.delivery ELSE 'ending' END,
        due_at = CASE WHEN g.status <> 'scheduled' THEN NULL
                      WHEN g.starts = 'first_use'
                      THEN g.take_up_until + make_interval(mins => g.duration_minutes) ELSE g.until END,
        version = g.version + 1, updated_at = $1
    FROM due WHERE g.id = due.id RETURNING g.*, uuidv7()::text AS event_id
), told AS (
    INSERT INTO outbox (event_id, subject, entity, entity_id, version, body, created_at)
    SELECT event_id, 'sojourn.events.expiry.grant.' || {_CHANGE} || '.' || id, 'grant', id, version,
        convert_to(json_build_object(
            'specversion', '1.0', 'id', event_id, 'source', 'sojourn/expiry',
            'type', 'sojourn.grant.' || {_CHANGE}, 'subject', id, 'time', {_moment("$1::timestamptz")},
            'datacontenttype', 'application/json', 'traceparent', $3::text,
            'data', json_build_object(
                'actor', json_build_object('kind', 'system', 'id', $4::text, 'name', $5::text),
                'links', json_build_object(
                    'policy_id', policy_id, 'request_id', request_id, 'grant_id', id, 'computer_id', computer_id,
                    'user', CASE WHEN NOT users_all AND cardinality(user_names) = 1 THEN user_names[1] END),
                'because', NULL, 'entity', {_ENTITY})
        )::text, 'UTF8'), $1
    FROM turned ORDER BY id
)
SELECT count(*) FROM turned
"""  # noqa: S608  # made of the constants above
