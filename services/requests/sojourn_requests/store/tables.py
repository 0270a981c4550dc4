"""The tables. Everything that is asked or compared has a column; what is only shown lies in JSON."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from sojourn_shared.service.schema import moment

metadata = MetaData()


requests = Table(
    "requests",
    metadata,
    Column("id", Text, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("status", Text, nullable=False),
    Column("computer_id", Text, nullable=False),
    Column("user_name", Text, nullable=False),
    Column("application", JSONB, nullable=False),
    Column("twin", LargeBinary, nullable=False),  # SHA-256 of computer, user, application and arguments
    Column("duration_minutes", Integer, nullable=False),
    Column("justification", Text, nullable=False),
    Column("external_refs", JSONB, nullable=False),
    Column("requested_by", Text, nullable=False),
    Column("asker", JSONB, nullable=False),
    moment("not_before"),
    Column("max_uses", Integer),
    Column("ends_with_application", Boolean, nullable=False),
    moment("expires_at", nullable=False),
    moment("take_up_until"),
    Column("approvals", JSONB, nullable=False),
    Column("checks", JSONB, nullable=False),
    Column("decision", JSONB(none_as_null=True)),
    Column("decided_by", Text),
    moment("decided_at"),
    Column("closing", JSONB(none_as_null=True)),
    Column("grant_id", Text, unique=True),
    Column("problem", Text),
    moment("created_at", nullable=False),
    moment("updated_at", nullable=False),
    CheckConstraint("status IN ('pending', 'approved', 'declined', 'cancelled', 'expired')", name="request_status"),
    CheckConstraint(
        "(status = 'approved') = (grant_id IS NOT NULL) AND (status = 'approved') = (take_up_until IS NOT NULL)",
        name="request_grant_only_when_approved",
    ),
    CheckConstraint(
        "(status IN ('approved', 'declined')) = (decision IS NOT NULL) "
        "AND (decision IS NULL) = (decided_by IS NULL) AND (decision IS NULL) = (decided_at IS NULL)",
        name="request_decision_only_when_decided",
    ),
    CheckConstraint("(status = 'cancelled') = (closing IS NOT NULL)", name="request_closing_only_when_cancelled"),
    CheckConstraint("duration_minutes > 0 AND version > 0", name="request_numbers"),
    # Two that wait for the same thing would be decided twice.
    Index("requests_one_pending_twin", "twin", unique=True, postgresql_where=text("status = 'pending'")),
    Index("requests_pending", "expires_at", postgresql_where=text("status = 'pending'")),
    Index("requests_newest", "created_at", "id"),
    Index("requests_changed", "updated_at", "id"),
    Index("requests_by_user", "user_name", "decided_at"),
    Index("requests_by_computer", "computer_id", "status"),
    Index("requests_by_asker", "requested_by"),
)

report_answers = Table(
    "report_answers",
    metadata,
    # A request report that made no request: refused, or joined to one that was pending.
    Column("report_id", Text, primary_key=True),
    Column("computer_id", Text, nullable=False),
    Column("user_name", Text, nullable=False),
    Column("joined", Text, ForeignKey("requests.id")),
    Column("problem", Text),
    Column("detail", Text),
    moment("created_at", nullable=False),
    CheckConstraint("(joined IS NULL) <> (problem IS NULL)", name="report_answer_is_one_of_two"),
    Index("report_answers_by_request", "joined"),
)

decision_pushes = Table(
    "decision_pushes",
    metadata,
    # What is still to be sent to a computer; a row goes when it was sent. The truth is asked for, not queued.
    Column("id", BigInteger, primary_key=True, autoincrement=True),
    Column("computer_id", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
)

settings = Table(
    "settings",
    metadata,
    Column("id", Text, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("body", JSONB, nullable=False),
    Column("trust", JSONB, nullable=False),  # who wrote each name into trusted_users
    moment("created_at", nullable=False),
    moment("updated_at", nullable=False),
    CheckConstraint("id IN ('requests', 'autonomous-approval')", name="settings_id"),
)

computers = Table(
    "computers",
    metadata,
    # A copy of what policy says.
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("keeper_public_key", Text, nullable=False),
)

agents = Table(
    "agents",
    metadata,
    # A copy of what expiry says of their liveness; apart from `computers`, because either may be heard first.
    Column("computer_id", Text, primary_key=True),
    Column("connected", Boolean, nullable=False),
    moment("last_seen_at"),
)

accounts = Table(
    "accounts",
    metadata,
    # A copy of what the gateway says.
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("email", Text),
    Column("roles", ARRAY(Text), nullable=False),
    Column("os_users", ARRAY(Text)),  # null: nobody stated them
    Column("os_users_folded", ARRAY(Text), nullable=False),
    Column("everywhere", Boolean, nullable=False),
    Column("active", Boolean, nullable=False),
    Index("accounts_by_os_user", "os_users_folded", postgresql_using="gin"),
    Index("accounts_by_email", text("lower(email)")),
)
