"""The tables that the frame keeps in every service's database. A change here needs a `frame_vN` step for migrations."""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

FRAME = MetaData()


def moment(name: str, **options: Any) -> Column[Any]:
    """A column of moments: aware, to the microsecond."""
    return Column(name, DateTime(timezone=True), **options)


outbox = Table(
    "outbox",
    FRAME,
    Column("id", BigInteger, primary_key=True, autoincrement=True),
    Column("event_id", Text, nullable=False, unique=True),
    Column("subject", Text, nullable=False),
    Column("entity", Text, nullable=False),
    Column("entity_id", Text, nullable=False),
    Column("version", BigInteger),
    Column("body", LargeBinary, nullable=False),
    moment("created_at", nullable=False),
    moment("published_at"),
    # One change, one event: a second event for the same version of an entity is a bug, and fails here.
    Index("outbox_one_event_per_version", "entity", "entity_id", "version", unique=True),
    Index("outbox_waiting", "id", postgresql_where=text("published_at IS NULL")),
)

inbox = Table(
    "inbox",
    FRAME,
    Column("id", Text, primary_key=True),  # an event's id, or `<computer id>/<report id>`
    moment("received_at", nullable=False),
    Index("inbox_by_age", "received_at"),
)

heard = Table(
    "heard",
    FRAME,
    Column("entity", Text, primary_key=True),
    Column("entity_id", Text, primary_key=True),
    Column("version", BigInteger, nullable=False),  # the newest state that was acted on
)

parked = Table(
    "parked",
    FRAME,
    Column("id", BigInteger, primary_key=True, autoincrement=True),
    Column("subject", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("reason", Text, nullable=False),
    Column("tries", Integer, nullable=False),
    moment("parked_at", nullable=False),
)

idempotency = Table(
    "idempotency",
    FRAME,
    Column("key", LargeBinary, primary_key=True),  # SHA-256 of caller, method, path and the key sent
    Column("body_digest", LargeBinary, nullable=False),
    Column("status", SmallInteger, nullable=False),
    Column("headers", JSONB, nullable=False),
    Column("body", LargeBinary, nullable=False),
    moment("created_at", nullable=False),
    Index("idempotency_by_age", "created_at"),
)

heartbeat = Table(
    "health",
    FRAME,
    Column("id", SmallInteger, primary_key=True),
    moment("written_at", nullable=False),
)


def frame_v1(op: Any) -> None:
    """The first step of every service's migrations: make the frame's tables as they were then."""
    for statement in _V1.split(";"):
        if statement.strip():
            op.execute(statement)


_V1 = """
CREATE TABLE outbox (
    id bigserial PRIMARY KEY, event_id text NOT NULL UNIQUE, subject text NOT NULL, entity text NOT NULL,
    entity_id text NOT NULL, version bigint, body bytea NOT NULL,
    created_at timestamptz NOT NULL, published_at timestamptz
);
CREATE UNIQUE INDEX outbox_one_event_per_version ON outbox (entity, entity_id, version);
CREATE INDEX outbox_waiting ON outbox (id) WHERE published_at IS NULL;
CREATE TABLE inbox (id text PRIMARY KEY, received_at timestamptz NOT NULL);
CREATE INDEX inbox_by_age ON inbox (received_at);
CREATE TABLE heard (entity text, entity_id text, version bigint NOT NULL, PRIMARY KEY (entity, entity_id));
CREATE TABLE parked (
    id bigserial PRIMARY KEY, subject text NOT NULL, body bytea NOT NULL, reason text NOT NULL,
    tries integer NOT NULL, parked_at timestamptz NOT NULL
);
CREATE TABLE idempotency (
    key bytea PRIMARY KEY, body_digest bytea NOT NULL, status smallint NOT NULL, headers jsonb NOT NULL,
    body bytea NOT NULL, created_at timestamptz NOT NULL
);
CREATE INDEX idempotency_by_age ON idempotency (created_at);
CREATE TABLE health (id smallint PRIMARY KEY, written_at timestamptz NOT NULL)
"""
