"""Accounts, their keys, sessions and sign-in links; refusals that wait to be told."""

from alembic import op

from sojourn_shared.service.schema import frame_v1

revision = "0001"
down_revision = None


def upgrade() -> None:
    frame_v1(op)
    for statement in _TABLES.split(";"):
        op.execute(statement)


_TABLES = """
CREATE TABLE accounts (
    id text PRIMARY KEY, version integer NOT NULL, name text NOT NULL, email text, email_key text,
    roles text[] NOT NULL, os_users text[], is_first boolean NOT NULL,
    created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL,
    CONSTRAINT accounts_version CHECK (version >= 1),
    CONSTRAINT accounts_roles CHECK (roles <@ ARRAY['requester', 'approver', 'auditor', 'administrator'])
);
CREATE UNIQUE INDEX accounts_email ON accounts (email_key);
CREATE UNIQUE INDEX accounts_first ON accounts (is_first) WHERE is_first;
CREATE INDEX accounts_newest ON accounts (created_at, id);
CREATE INDEX accounts_updated ON accounts (updated_at, id);
CREATE TABLE api_keys (
    id text PRIMARY KEY, version integer NOT NULL, name text NOT NULL, digest bytea NOT NULL, created_by text NOT NULL,
    account_id text NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL,
    CONSTRAINT api_keys_digest CHECK (octet_length(digest) = 32)
);
CREATE UNIQUE INDEX api_keys_by_digest ON api_keys (digest);
CREATE INDEX api_keys_by_account ON api_keys (account_id);
CREATE INDEX api_keys_newest ON api_keys (created_at, id);
CREATE TABLE sessions (
    id text PRIMARY KEY, digest bytea NOT NULL, account_id text NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    created_at timestamptz NOT NULL, seen_at timestamptz NOT NULL
);
CREATE UNIQUE INDEX sessions_by_digest ON sessions (digest);
CREATE INDEX sessions_by_account ON sessions (account_id);
CREATE TABLE sign_in_links (
    digest bytea PRIMARY KEY, account_id text NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    created_at timestamptz NOT NULL, expires_at timestamptz NOT NULL, used_at timestamptz
);
CREATE INDEX sign_in_links_by_account ON sign_in_links (account_id);
CREATE TABLE refusals (
    source text NOT NULL, what text NOT NULL, minute timestamptz NOT NULL, count integer NOT NULL,
    CONSTRAINT refusals_pkey PRIMARY KEY (source, what, minute),
    CONSTRAINT refusals_what CHECK (what IN ('sign_in', 'api_key'))
)
"""
