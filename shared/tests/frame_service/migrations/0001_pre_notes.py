"""The tables of the toy service."""

from alembic import op

from sojourn_shared.service.schema import frame_v1

revision = "0001"
down_revision = None


def upgrade() -> None:
    frame_v1(op)
    op.execute(
        "CREATE TABLE notes (id text PRIMARY KEY, version integer NOT NULL, words text NOT NULL, "
        "created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL)"
    )
