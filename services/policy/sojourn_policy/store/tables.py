"""The tables of policy; `migrations/` makes them."""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData()


def _required(name: str, kind: Any, *more: Any, **options: Any) -> Column[Any]:
    return Column(name, kind, *more, nullable=False, **options)


def _entity(name: str, *columns: Any) -> Table:
    """A table of entities: read in pages by creation, and by change."""
    return Table(
        name,
        metadata,
        Column("id", Text, primary_key=True),
        _required("version", Integer),
        *columns,
        _required("created_at", DateTime(timezone=True)),
        _required("updated_at", DateTime(timezone=True)),
        Index(f"{name}_by_creation", "created_at", "id"),
        Index(f"{name}_by_change", "updated_at", "id"),
    )


policies = _entity(
    "policies",
    _required("name_key", Text),  # the newest revision's name, as names are compared
    _required("status", Text),
    _required("revision", Integer),
    Column("deployed_revision", Integer),
    Column("deployed_at", DateTime(timezone=True)),
    _required("body", JSONB),  # the newest revision's
    _required("created_by", Text),
    _required("created_by_name", Text),
    CheckConstraint("status IN ('draft', 'deployed', 'withdrawn', 'deleted')", name="policies_status"),
    CheckConstraint(
        "(status = 'deployed') = (deployed_revision IS NOT NULL) "
        "AND (deployed_revision IS NULL) = (deployed_at IS NULL)",
        name="policies_in_force",
    ),
    CheckConstraint("deployed_revision BETWEEN 1 AND revision", name="policies_deployed_revision"),
    Index("policies_name", "name_key", unique=True, postgresql_where=text("status <> 'deleted'")),
)

revisions = Table(
    "revisions",
    metadata,
    Column("policy_id", Text, ForeignKey("policies.id"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    _required("body", JSONB),
    _required("author", JSONB),
    _required("created_at", DateTime(timezone=True)),
)

computers = _entity(
    "computers",
    _required("name", Text),
    _required("name_key", Text),
    _required("machine_id", Text),
    _required("platform", JSONB),
    _required("agent_version", Text),
    _required("link_public_key", Text),
    _required("keeper_public_key", Text),
    _required("offline_secret", Text),
    _required("enrolled_at", DateTime(timezone=True)),
    _required("enrolled_with", Text),
    _required("status", Text),
    _required("labels", JSONB),
    _required("external_refs", JSONB),
    _required("guarantees", JSONB),
    _required("users", JSONB),
    _required("standing_rights", JSONB),
    _required("health_seq", BigInteger),
    Column("health_at", DateTime(timezone=True)),
    _required("connected", Boolean),  # a copy of what expiry says; no state of the computer
    CheckConstraint("status IN ('enrolled', 'decommissioned')", name="computers_status"),
    Index("computers_machine", "machine_id", unique=True, postgresql_where=text("status = 'enrolled'")),
    Index("computers_keeper", "keeper_public_key", unique=True, postgresql_where=text("status = 'enrolled'")),
    Index("computers_name", "name_key"),
)

assignments = Table(
    "assignments",
    metadata,
    Column("id", Text, primary_key=True),
    _required("version", Integer),
    _required("policy_id", Text, ForeignKey("policies.id")),
    _required("computer_id", Text, ForeignKey("computers.id")),
    _required("revision", Integer),  # the one whose terms it last carried
    _required("state", Text),
    _required("created_at", DateTime(timezone=True)),
    _required("updated_at", DateTime(timezone=True)),
    CheckConstraint("state IN ('present', 'absent')", name="assignments_state"),
    UniqueConstraint("policy_id", "computer_id", name="assignments_one"),
    Index("assignments_by_computer", "computer_id"),
)

enrolment_tokens = _entity(
    "enrolment_tokens",
    _required("name", Text),
    _required("digest", Text),  # SHA-256 of the token, hex
    _required("max_uses", Integer),
    _required("uses", Integer),
    _required("expires_at", DateTime(timezone=True)),
    _required("labels", JSONB),
    Column("computer_id", Text, ForeignKey("computers.id")),
    _required("created_by", Text),
    _required("created_by_name", Text),
    CheckConstraint("uses BETWEEN 0 AND max_uses", name="enrolment_tokens_uses"),
    UniqueConstraint("digest", name="enrolment_tokens_digest"),
)
