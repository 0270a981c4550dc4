"""The tables; `migrations/` makes them, and a test compares the two."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from sojourn_shared.service.schema import moment

metadata = MetaData()


grants = Table(
    "grants",
    metadata,
    Column("id", Text, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("status", Text, nullable=False),
    Column("delivery", Text, nullable=False),
    Column("computer_id", Text, nullable=False),
    Column("policy_id", Text),
    Column("policy_name", Text),
    Column("request_id", Text),
    Column("assignment_id", Text),
    Column("assignment_version", Integer),
    Column("revision", Integer),
    Column("users_all", Boolean, nullable=False),
    Column("user_names", ARRAY(Text), nullable=False),
    moment("from_at", nullable=False),
    moment("until"),
    Column("starts", Text, nullable=False),
    Column("duration_minutes", Integer),
    moment("take_up_until"),
    moment("first_used_at"),
    Column("rules", JSONB, nullable=False),
    Column("child_processes", Text, nullable=False),
    Column("run_as", Text, nullable=False),
    Column("max_uses", Integer),
    Column("ticket_required", Boolean, nullable=False),
    Column("ends_with_application", Boolean, nullable=False),
    moment("applied_at"),
    moment("ended_at"),
    Column("revoked", JSONB(none_as_null=True)),
    Column("failure", Text),
    Column("wire_bytes", Integer, nullable=False),  # what it takes in a document
    moment("due_at"),  # when the clock looks at it again
    moment("created_at", nullable=False),
    moment("updated_at", nullable=False),
    # One grant for each version of an assignment: one that was revoked or is over is not opened again.
    UniqueConstraint("assignment_id", "assignment_version", name="grants_one_per_assignment_version"),
    CheckConstraint(
        "status IN ('scheduled', 'ready', 'active', 'expired', 'revoked')", name="grants_status_is_a_status"
    ),
    CheckConstraint(
        "CASE WHEN status IN ('expired', 'revoked') THEN delivery IN ('ending', 'ended', 'unconfirmed') "
        "OR (status = 'revoked' AND delivery = 'failed') ELSE delivery IN ('pending', 'applied', 'failed') END",
        name="grants_delivery_fits_status",
    ),
    CheckConstraint("(status = 'revoked') = (revoked IS NOT NULL)", name="grants_revoked_says_by_whom"),
    CheckConstraint("status <> 'active' OR until IS NOT NULL", name="grants_active_has_an_end"),
    CheckConstraint(
        "starts = 'at_from' OR (starts = 'first_use' AND coalesce(duration_minutes, 0) > 0)",
        name="grants_first_use_has_a_duration",
    ),
    CheckConstraint("status <> 'ready' OR starts = 'first_use'", name="grants_ready_waits_for_first_use"),
    CheckConstraint(
        "starts = 'at_from' OR (until IS NULL) = (first_used_at IS NULL)", name="grants_first_use_sets_the_end"
    ),
    CheckConstraint("(delivery = 'ended') = (ended_at IS NOT NULL)", name="grants_ended_says_when"),
    Index("grants_due", "due_at", postgresql_where=text("due_at IS NOT NULL")),
    Index(
        "grants_in_documents",
        "computer_id",
        postgresql_where=text("status NOT IN ('expired', 'revoked') OR delivery IN ('ending', 'unconfirmed')"),
    ),
    Index("grants_by_creation", "created_at", "id"),
    Index("grants_by_update", "updated_at", "id"),
    Index("grants_of_computer", "computer_id", "created_at"),
    Index("grants_of_policy", "policy_id", "computer_id", postgresql_where=text("policy_id IS NOT NULL")),
    Index("grants_of_request", "request_id", postgresql_where=text("request_id IS NOT NULL")),
    Index("grants_of_users", "user_names", postgresql_using="gin"),
)

assignments = Table(
    "assignments",
    metadata,
    Column("id", Text, primary_key=True),
    Column("version", Integer, nullable=False),  # the newest that was acted on
    Column("state", Text, nullable=False),
    Column("computer_id", Text, nullable=False),
    Column("policy_id", Text, nullable=False),
    Column("revision", Integer, nullable=False),
    CheckConstraint("state IN ('present', 'absent')", name="assignments_state_is_a_state"),
)

computers = Table(
    "computers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("keeper_public_key", Text, nullable=False),
    Column("guarantees", JSONB, nullable=False),
    # The document: the newest that was signed, and when the next one is to be.
    Column("epoch", Integer, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("kid", Text),
    Column("document", Text),
    moment("signed_at"),
    moment("sign_at"),  # NULL: never again
    Column("taken_away", Boolean, nullable=False),  # since the newest document: the next goes out as `.revoke`
    Column("pushed_version", BigInteger, nullable=False),
    # What the computer said that it holds.
    Column("held_version", BigInteger, nullable=False),
    Column("applied_epoch", Integer, nullable=False),
    Column("applied_version", BigInteger, nullable=False),
    moment("created_at", nullable=False),
    moment("updated_at", nullable=False),
    CheckConstraint("status IN ('enrolled', 'decommissioned')", name="computers_status_is_a_status"),
    CheckConstraint("(version = 0) = (document IS NULL)", name="computers_version_is_of_a_document"),
    Index("computers_to_sign", "sign_at", postgresql_where=text("sign_at IS NOT NULL")),
    Index("computers_to_push", "signed_at", postgresql_where=text("pushed_version < version")),
)

elevations = Table(
    "elevations",
    metadata,
    Column("id", Text, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("computer_id", Text, nullable=False),
    Column("grant_id", Text, nullable=False),
    Column("started_under", Text),
    Column("user_name", Text),
    Column("uid", BigInteger),
    Column("application", JSONB(none_as_null=True)),
    Column("rule", JSONB(none_as_null=True)),
    Column("pid", Integer),
    moment("started_at"),
    Column("moved_seq", BigInteger),
    moment("ended_at"),
    Column("cause", Text),
    Column("exit_status", Integer),
    Column("processes_ended", JSONB, nullable=False),
    Column("escaped", JSONB, nullable=False),
    Column("kill_ms", Integer),
    Column("gone", Boolean),
    moment("created_at", nullable=False),
    moment("updated_at", nullable=False),
    CheckConstraint("(ended_at IS NULL) = (cause IS NULL)", name="elevations_end_has_a_cause"),
    CheckConstraint("(started_at IS NULL) = (started_under IS NULL)", name="elevations_start_has_a_grant"),
    Index("elevations_of_grant", "grant_id"),
    Index("elevations_uses", "started_under", "started_at", postgresql_where=text("started_under IS NOT NULL")),
    Index("elevations_by_creation", "created_at", "id"),
    Index("elevations_by_update", "updated_at", "id"),
    Index("elevations_running", "computer_id", postgresql_where=text("ended_at IS NULL")),
)

stray_ends = Table(
    "stray_ends",
    metadata,
    # A computer ended a grant that is not known here: the database was restored to a time before it.
    Column("computer_id", Text, primary_key=True),
    Column("grant_id", Text, primary_key=True),
    Column("cause", Text, nullable=False),
    moment("at", nullable=False),
)

liveness = Table(
    "liveness",
    metadata,
    Column("computer_id", Text, primary_key=True),
    Column("connected", Boolean, nullable=False),
    Column("said_version", BigInteger, nullable=False),  # of the newest agent.connected or agent.lost
    moment("last_seen_at", nullable=False),
    Column("boot_id", Text, nullable=False),
    Column("agent_version", Text, nullable=False),
    Column("running", JSONB, nullable=False),
    Index("liveness_to_watch", "last_seen_at", postgresql_where=text("connected")),
)

requests_settings = Table(
    "requests_settings",
    metadata,
    Column("id", SmallInteger, primary_key=True),
    Column("asking", JSONB, nullable=False),
    Column("max_offline_hours", Integer, nullable=False),
    CheckConstraint("id = 1", name="requests_settings_is_one_row"),
)
