"""Policies with their revisions and assignments, computers, enrolment tokens."""

from alembic import op

from sojourn_shared.service.schema import frame_v1

revision = "0001"
down_revision = None


def upgrade() -> None:
    frame_v1(op)
    for statement in _TABLES.split(";"):
        if statement.strip():
            op.execute(statement)
    op.execute(_HISTORY)
    op.execute("CREATE TRIGGER revisions_kept BEFORE UPDATE OR DELETE ON revisions EXECUTE FUNCTION refuse_change()")


# What a policy said stays said: no bug and no careless hand rewrites it.
_HISTORY = """
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'revisions are never changed';
END $$
"""

_TABLES = """
CREATE TABLE policies (
    id text PRIMARY KEY, version integer NOT NULL, name_key text NOT NULL, status text NOT NULL,
    revision integer NOT NULL, deployed_revision integer, deployed_at timestamptz, body jsonb NOT NULL,
    created_by text NOT NULL, created_by_name text NOT NULL,
    created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL,
    CONSTRAINT policies_status CHECK (status IN ('draft', 'deployed', 'withdrawn', 'deleted')),
    CONSTRAINT policies_in_force CHECK (
        (status = 'deployed') = (deployed_revision IS NOT NULL)
        AND (deployed_revision IS NULL) = (deployed_at IS NULL)
    ),
    CONSTRAINT policies_deployed_revision CHECK (deployed_revision BETWEEN 1 AND revision)
);
CREATE UNIQUE INDEX policies_name ON policies (name_key) WHERE status <> 'deleted';
CREATE INDEX policies_by_creation ON policies (created_at, id);
CREATE INDEX policies_by_change ON policies (updated_at, id);
CREATE TABLE revisions (
    policy_id text REFERENCES policies, number integer, body jsonb NOT NULL, author jsonb NOT NULL,
    created_at timestamptz NOT NULL, PRIMARY KEY (policy_id, number)
);
CREATE TABLE computers (
    id text PRIMARY KEY, version integer NOT NULL, name text NOT NULL, name_key text NOT NULL,
    machine_id text NOT NULL, platform jsonb NOT NULL, agent_version text NOT NULL, link_public_key text NOT NULL,
    keeper_public_key text NOT NULL, offline_secret text NOT NULL, enrolled_at timestamptz NOT NULL,
    enrolled_with text NOT NULL, status text NOT NULL, labels jsonb NOT NULL, external_refs jsonb NOT NULL,
    guarantees jsonb NOT NULL, users jsonb NOT NULL, standing_rights jsonb NOT NULL,
    health_seq bigint NOT NULL, health_at timestamptz, connected boolean NOT NULL,
    created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL,
    CONSTRAINT computers_status CHECK (status IN ('enrolled', 'decommissioned'))
);
CREATE UNIQUE INDEX computers_machine ON computers (machine_id) WHERE status = 'enrolled';
CREATE UNIQUE INDEX computers_keeper ON computers (keeper_public_key) WHERE status = 'enrolled';
CREATE INDEX computers_name ON computers (name_key);
CREATE INDEX computers_by_creation ON computers (created_at, id);
CREATE INDEX computers_by_change ON computers (updated_at, id);
CREATE TABLE assignments (
    id text PRIMARY KEY, version integer NOT NULL, policy_id text NOT NULL REFERENCES policies,
    computer_id text NOT NULL REFERENCES computers, revision integer NOT NULL, state text NOT NULL,
    created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL,
    CONSTRAINT assignments_state CHECK (state IN ('present', 'absent')),
    CONSTRAINT assignments_one UNIQUE (policy_id, computer_id)
);
CREATE INDEX assignments_by_computer ON assignments (computer_id);
CREATE TABLE enrolment_tokens (
    id text PRIMARY KEY, version integer NOT NULL, name text NOT NULL, digest text NOT NULL,
    max_uses integer NOT NULL, uses integer NOT NULL, expires_at timestamptz NOT NULL, labels jsonb NOT NULL,
    computer_id text REFERENCES computers, created_by text NOT NULL, created_by_name text NOT NULL,
    created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL,
    CONSTRAINT enrolment_tokens_uses CHECK (uses BETWEEN 0 AND max_uses),
    CONSTRAINT enrolment_tokens_digest UNIQUE (digest)
);
CREATE INDEX enrolment_tokens_by_creation ON enrolment_tokens (created_at, id);
CREATE INDEX enrolment_tokens_by_change ON enrolment_tokens (updated_at, id)
"""
