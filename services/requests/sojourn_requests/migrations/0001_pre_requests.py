"""Requests, their settings, and copies of computers, agents and accounts."""

from alembic import op

from sojourn_shared.service.schema import frame_v1

revision = "0001"
down_revision = None


def upgrade() -> None:
    frame_v1(op)
    for statement in _TABLES.split(";"):
        if statement.strip():
            op.execute(statement)


_TABLES = """
CREATE TABLE requests (
    id text PRIMARY KEY,
    version integer NOT NULL,
    status text NOT NULL,
    computer_id text NOT NULL,
    user_name text NOT NULL,
    application jsonb NOT NULL,
    twin bytea NOT NULL,
    duration_minutes integer NOT NULL,
    justification text NOT NULL,
    external_refs jsonb NOT NULL,
    requested_by text NOT NULL,
    asker jsonb NOT NULL,
    not_before timestamptz,
    max_uses integer,
    ends_with_application boolean NOT NULL,
    expires_at timestamptz NOT NULL,
    take_up_until timestamptz,
    approvals jsonb NOT NULL,
    checks jsonb NOT NULL,
    decision jsonb,
    decided_by text,
    decided_at timestamptz,
    closing jsonb,
    grant_id text UNIQUE,
    problem text,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    CONSTRAINT request_status CHECK (status IN ('pending', 'approved', 'declined', 'cancelled', 'expired')),
    CONSTRAINT request_grant_only_when_approved CHECK (
        (status = 'approved') = (grant_id IS NOT NULL) AND (status = 'approved') = (take_up_until IS NOT NULL)
    ),
    CONSTRAINT request_decision_only_when_decided CHECK (
        (status IN ('approved', 'declined')) = (decision IS NOT NULL)
        AND (decision IS NULL) = (decided_by IS NULL) AND (decision IS NULL) = (decided_at IS NULL)
    ),
    CONSTRAINT request_closing_only_when_cancelled CHECK ((status = 'cancelled') = (closing IS NOT NULL)),
    CONSTRAINT request_numbers CHECK (duration_minutes > 0 AND version > 0)
);
CREATE UNIQUE INDEX requests_one_pending_twin ON requests (twin) WHERE status = 'pending';
CREATE INDEX requests_pending ON requests (expires_at) WHERE status = 'pending';
CREATE INDEX requests_newest ON requests (created_at, id);
CREATE INDEX requests_changed ON requests (updated_at, id);
CREATE INDEX requests_by_user ON requests (user_name, decided_at);
CREATE INDEX requests_by_computer ON requests (computer_id, status);
CREATE INDEX requests_by_asker ON requests (requested_by);
CREATE TABLE report_answers (
    report_id text PRIMARY KEY,
    computer_id text NOT NULL,
    user_name text NOT NULL,
    joined text REFERENCES requests (id),
    problem text,
    detail text,
    created_at timestamptz NOT NULL,
    CONSTRAINT report_answer_is_one_of_two CHECK ((joined IS NULL) <> (problem IS NULL))
);
CREATE INDEX report_answers_by_request ON report_answers (joined);
CREATE TABLE decision_pushes (
    id bigserial PRIMARY KEY,
    computer_id text NOT NULL,
    body bytea NOT NULL
);
CREATE TABLE settings (
    id text PRIMARY KEY,
    version integer NOT NULL,
    body jsonb NOT NULL,
    trust jsonb NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    CONSTRAINT settings_id CHECK (id IN ('requests', 'autonomous-approval'))
);
INSERT INTO settings (id, version, body, trust, created_at, updated_at)
    VALUES ('requests', 1, '{}', '{}', now(), now()), ('autonomous-approval', 1, '{}', '{}', now(), now());
CREATE TABLE computers (
    id text PRIMARY KEY,
    name text NOT NULL,
    status text NOT NULL,
    keeper_public_key text NOT NULL
);
CREATE TABLE agents (
    computer_id text PRIMARY KEY,
    connected boolean NOT NULL,
    last_seen_at timestamptz
);
CREATE TABLE accounts (
    id text PRIMARY KEY,
    name text NOT NULL,
    email text,
    roles text[] NOT NULL,
    os_users text[],
    os_users_folded text[] NOT NULL,
    everywhere boolean NOT NULL,
    active boolean NOT NULL
);
CREATE INDEX accounts_by_os_user ON accounts USING gin (os_users_folded);
CREATE INDEX accounts_by_email ON accounts (lower(email))
"""
