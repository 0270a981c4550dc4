"""The arrivals, the ledger, and what keeps the ledger append-only."""

from alembic import op

from sojourn_shared.service.schema import frame_v1

revision = "0001"
down_revision = None


def upgrade() -> None:
    frame_v1(op)
    for statement in (ARRIVALS, NAMES, LEDGER, *INDEXES, REFUSE, *REFUSALS, GAPLESS, NO_GAP, OWN_RIGHTS):
        op.execute(statement)


_EVENT = """
    event_id text NOT NULL UNIQUE, type text NOT NULL, "time" timestamptz NOT NULL,
    actor_id text NOT NULL, actor_name text NOT NULL,
    policy_id text, request_id text, grant_id text, computer_id text, user_name text
"""
ARRIVALS = f"CREATE TABLE arrivals (id bigserial PRIMARY KEY, {_EVENT}, told bytea NOT NULL)"
NAMES = "CREATE TABLE computer_names (id text PRIMARY KEY, name text NOT NULL, version bigint NOT NULL)"
LEDGER = f"""
CREATE TABLE ledger (
    seq bigint PRIMARY KEY CONSTRAINT ledger_from_zero CHECK (seq >= 0),
    {_EVENT},
    recorded_at timestamptz NOT NULL,
    line bytea NOT NULL,
    hashes bytea NOT NULL CONSTRAINT ledger_whole_hashes CHECK (length(hashes) > 0 AND length(hashes) % 32 = 0),
    note text
)
"""
INDEXES = [
    "CREATE INDEX ledger_by_policy ON ledger (policy_id, seq) WHERE policy_id IS NOT NULL",
    "CREATE INDEX ledger_by_request ON ledger (request_id, seq) WHERE request_id IS NOT NULL",
    "CREATE INDEX ledger_by_grant ON ledger (grant_id, seq) WHERE grant_id IS NOT NULL",
    "CREATE INDEX ledger_by_computer ON ledger (computer_id, seq) WHERE computer_id IS NOT NULL",
    "CREATE INDEX ledger_by_user ON ledger (user_name, seq) WHERE user_name IS NOT NULL",
    "CREATE INDEX ledger_by_actor ON ledger (actor_id, seq)",
    "CREATE INDEX ledger_by_actor_name ON ledger (actor_name, seq)",
    "CREATE INDEX ledger_by_type ON ledger (type text_pattern_ops, seq)",
    # Both moments grow with `seq`, but for late reports: a summary for each range of pages is enough.
    "CREATE INDEX ledger_by_time ON ledger USING brin (time) WITH (autosummarize = on)",
    "CREATE INDEX ledger_by_record ON ledger USING brin (recorded_at) WITH (autosummarize = on)",
]

# ALWAYS: also where replication's session mode would skip triggers.
REFUSE = """
CREATE FUNCTION ledger_refuses() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the ledger is append-only: % is refused', lower(TG_OP) USING ERRCODE = 'insufficient_privilege';
END $$
"""
REFUSALS = [
    """
    CREATE TRIGGER ledger_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_refuses()
    """,
    "ALTER TABLE ledger ENABLE ALWAYS TRIGGER ledger_append_only",
]
GAPLESS = """
CREATE FUNCTION ledger_follows() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    first bigint; last bigint; many bigint; before bigint;
BEGIN
    SELECT min(seq), max(seq), count(*) INTO first, last, many FROM added;
    SELECT coalesce(max(seq), -1) INTO before FROM ledger WHERE seq < first;
    IF many > 0 AND (first <> before + 1 OR last - first + 1 <> many) THEN
        RAISE EXCEPTION 'the ledger has no gap: after % comes %, not %', before, before + 1, first
            USING ERRCODE = 'check_violation', CONSTRAINT = 'ledger_without_gap';
    END IF;
    RETURN NULL;
END $$
"""
NO_GAP = (
    "CREATE TRIGGER ledger_without_gap AFTER INSERT ON ledger REFERENCING NEW TABLE AS added "
    "FOR EACH STATEMENT EXECUTE FUNCTION ledger_follows()"
)
# The owner can take these rights back; somebody who only gets a statement in cannot.
OWN_RIGHTS = "REVOKE UPDATE, DELETE, TRUNCATE ON ledger FROM CURRENT_USER"
