"""Grants, the computers with their documents, runs, and liveness."""

from alembic import op

from sojourn_shared.service.schema import frame_v1

revision = "0001"
down_revision = None


def upgrade() -> None:
    frame_v1(op)
    for statement in _TABLES.split(";\n\n"):
        op.execute(statement)
    op.execute(_FINAL_STAYS)
    op.execute(
        "CREATE TRIGGER grants_final_stays BEFORE UPDATE ON grants FOR EACH ROW WHEN (OLD.status IN ('expired', "
        "'revoked') AND NEW.status IS DISTINCT FROM OLD.status) EXECUTE FUNCTION refuse_revival()"
    )


_FINAL_STAYS = """
CREATE FUNCTION refuse_revival() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'grant % is %, and stays so', OLD.id, OLD.status USING ERRCODE = 'check_violation';
END $$
"""

_TABLES = """
CREATE TABLE grants (
    id text PRIMARY KEY, version integer NOT NULL, status text NOT NULL, delivery text NOT NULL,
    computer_id text NOT NULL, policy_id text, policy_name text, request_id text,
    assignment_id text, assignment_version integer, revision integer,
    users_all boolean NOT NULL, user_names text[] NOT NULL,
    from_at timestamptz NOT NULL, until timestamptz, starts text NOT NULL, duration_minutes integer,
    take_up_until timestamptz, first_used_at timestamptz,
    rules jsonb NOT NULL, child_processes text NOT NULL, run_as text NOT NULL, max_uses integer,
    ticket_required boolean NOT NULL, ends_with_application boolean NOT NULL,
    applied_at timestamptz, ended_at timestamptz, revoked jsonb, failure text,
    wire_bytes integer NOT NULL, due_at timestamptz,
    created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL,
    CONSTRAINT grants_one_per_assignment_version UNIQUE (assignment_id, assignment_version),
    CONSTRAINT grants_status_is_a_status CHECK (status IN ('scheduled', 'ready', 'active', 'expired', 'revoked')),
    CONSTRAINT grants_delivery_fits_status CHECK (
        CASE WHEN status IN ('expired', 'revoked') THEN delivery IN ('ending', 'ended', 'unconfirmed')
        OR (status = 'revoked' AND delivery = 'failed') ELSE delivery IN ('pending', 'applied', 'failed') END),
    CONSTRAINT grants_revoked_says_by_whom CHECK ((status = 'revoked') = (revoked IS NOT NULL)),
    CONSTRAINT grants_active_has_an_end CHECK (status <> 'active' OR until IS NOT NULL),
    CONSTRAINT grants_first_use_has_a_duration CHECK (
        starts = 'at_from' OR (starts = 'first_use' AND coalesce(duration_minutes, 0) > 0)),
    CONSTRAINT grants_ready_waits_for_first_use CHECK (status <> 'ready' OR starts = 'first_use'),
    CONSTRAINT grants_first_use_sets_the_end CHECK (
        starts = 'at_from' OR (until IS NULL) = (first_used_at IS NULL)),
    CONSTRAINT grants_ended_says_when CHECK ((delivery = 'ended') = (ended_at IS NOT NULL))
);

CREATE INDEX grants_due ON grants (due_at) WHERE due_at IS NOT NULL;

CREATE INDEX grants_in_documents ON grants (computer_id)
    WHERE status NOT IN ('expired', 'revoked') OR delivery IN ('ending', 'unconfirmed');

CREATE INDEX grants_by_creation ON grants (created_at, id);

CREATE INDEX grants_by_update ON grants (updated_at, id);

CREATE INDEX grants_of_computer ON grants (computer_id, created_at);

CREATE INDEX grants_of_policy ON grants (policy_id, computer_id) WHERE policy_id IS NOT NULL;

CREATE INDEX grants_of_request ON grants (request_id) WHERE request_id IS NOT NULL;

CREATE INDEX grants_of_users ON grants USING gin (user_names);

CREATE TABLE assignments (
    id text PRIMARY KEY, version integer NOT NULL, state text NOT NULL, computer_id text NOT NULL,
    policy_id text NOT NULL, revision integer NOT NULL,
    CONSTRAINT assignments_state_is_a_state CHECK (state IN ('present', 'absent'))
);

CREATE TABLE computers (
    id text PRIMARY KEY, name text NOT NULL, status text NOT NULL, keeper_public_key text NOT NULL,
    guarantees jsonb NOT NULL,
    epoch integer NOT NULL, version bigint NOT NULL, kid text, document text, signed_at timestamptz,
    sign_at timestamptz, taken_away boolean NOT NULL, pushed_version bigint NOT NULL,
    held_version bigint NOT NULL, applied_epoch integer NOT NULL, applied_version bigint NOT NULL,
    created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL,
    CONSTRAINT computers_status_is_a_status CHECK (status IN ('enrolled', 'decommissioned')),
    CONSTRAINT computers_version_is_of_a_document CHECK ((version = 0) = (document IS NULL))
);

CREATE INDEX computers_to_sign ON computers (sign_at) WHERE sign_at IS NOT NULL;

CREATE INDEX computers_to_push ON computers (signed_at) WHERE pushed_version < version;

CREATE TABLE elevations (
    id text PRIMARY KEY, version integer NOT NULL, computer_id text NOT NULL, grant_id text NOT NULL,
    started_under text, user_name text, uid bigint, application jsonb, rule jsonb, pid integer,
    started_at timestamptz, moved_seq bigint, ended_at timestamptz, cause text, exit_status integer,
    processes_ended jsonb NOT NULL, escaped jsonb NOT NULL, kill_ms integer, gone boolean,
    created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL,
    CONSTRAINT elevations_end_has_a_cause CHECK ((ended_at IS NULL) = (cause IS NULL)),
    CONSTRAINT elevations_start_has_a_grant CHECK ((started_at IS NULL) = (started_under IS NULL))
);

CREATE INDEX elevations_of_grant ON elevations (grant_id);

CREATE INDEX elevations_uses ON elevations (started_under, started_at) WHERE started_under IS NOT NULL;

CREATE INDEX elevations_by_creation ON elevations (created_at, id);

CREATE INDEX elevations_by_update ON elevations (updated_at, id);

CREATE INDEX elevations_running ON elevations (computer_id) WHERE ended_at IS NULL;

CREATE TABLE stray_ends (
    computer_id text, grant_id text, cause text NOT NULL, at timestamptz NOT NULL,
    PRIMARY KEY (computer_id, grant_id)
);

CREATE TABLE liveness (
    computer_id text PRIMARY KEY, connected boolean NOT NULL, said_version bigint NOT NULL,
    last_seen_at timestamptz NOT NULL, boot_id text NOT NULL, agent_version text NOT NULL, running jsonb NOT NULL
);

CREATE INDEX liveness_to_watch ON liveness (last_seen_at) WHERE connected;

CREATE TABLE requests_settings (
    id smallint PRIMARY KEY, asking jsonb NOT NULL, max_offline_hours integer NOT NULL,
    CONSTRAINT requests_settings_is_one_row CHECK (id = 1)
)
"""
