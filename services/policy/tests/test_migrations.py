"""The schema that migrations make."""

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from sojourn_shared.service.testing import TestHouse


async def test_the_migrated_schema_is_the_one_in_code(house: TestHouse) -> None:
    """A table changed in code without a migration is noticed here."""
    assert await house.schema_differences() == []


async def test_a_revision_can_be_neither_changed_nor_removed(house: TestHouse) -> None:
    """Whoever reaches the database by mistake cannot rewrite what a policy said."""

    async def run(statement: str) -> None:
        async with house.house.database.begin() as connection:
            await connection.execute(text(statement))

    await run(
        "INSERT INTO policies (id, version, name_key, status, revision, body, created_by, created_by_name, created_at, "
        "updated_at) VALUES ('p', 1, 'p', 'draft', 1, '{}', 'a', 'A', now(), now())"
    )
    await run("INSERT INTO revisions VALUES ('p', 1, '{}', '{}', now())")
    for statement in ("UPDATE revisions SET body = '[]'", "DELETE FROM revisions"):
        with pytest.raises(DBAPIError, match="revisions are never changed"):
            await run(statement)
