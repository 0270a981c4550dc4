"""The database guards the ledger too: it only grows, without gaps, and the schema is the one in code."""

import pytest
import sqlalchemy.exc

from sojourn_shared.ledger import LedgerAltered, verify_lines

from .conftest import Audit
from .test_sequencer import altered


async def test_the_migrated_schema_is_the_one_in_code(audit: Audit) -> None:
    """A table changed in code without a migration is noticed here."""
    assert await audit.house.schema_differences() == []


async def in_one_transaction(audit: Audit, statements: str) -> None:
    async with audit.house.house.database.begin() as connection:
        for statement in statements.split("; "):
            await connection.exec_driver_sql(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger SET note = NULL",
        "UPDATE ledger SET line = line WHERE seq = 1",
        "DELETE FROM ledger WHERE seq = 2",
        "DELETE FROM ledger WHERE false",
        "TRUNCATE ledger",
        "TRUNCATE ledger CASCADE",
        "SET session_replication_role = replica; DELETE FROM ledger",
    ],
)
async def test_the_database_refuses_to_change_or_remove(audit: Audit, statement: str) -> None:
    """Update, delete and truncate are refused for everybody, the superuser of these tests included."""
    await audit.records(3)
    before = await audit.lines()
    with pytest.raises(sqlalchemy.exc.DBAPIError, match="append-only"):
        await in_one_transaction(audit, statement)
    assert await audit.lines() == before


async def test_the_services_own_role_cannot_change_the_ledger(audit: Audit) -> None:
    """Not even the owner has the rights, until it grants them to itself again: no slip and no injection does that."""
    rights = await audit.sql(
        "SELECT privilege_type FROM information_schema.role_table_grants "
        "WHERE table_name = 'ledger' AND grantee = current_user ORDER BY 1"
    )
    assert {row[0] for row in rights} >= {"INSERT", "SELECT"}
    assert {row[0] for row in rights}.isdisjoint({"UPDATE", "DELETE", "TRUNCATE"})


@pytest.mark.parametrize("seqs", [[4], [2], [3, 5]], ids=["a gap", "in use", "a gap inside"])
async def test_the_database_refuses_gaps(audit: Audit, seqs: list[int]) -> None:
    """Whoever inserts: after entry 2 comes entry 3."""
    await audit.records(3)
    with pytest.raises(sqlalchemy.exc.IntegrityError):
        await audit.sql(
            "INSERT INTO ledger (seq, event_id, type, time, actor_id, actor_name, recorded_at, line, hashes) "
            "SELECT seq, 'new ' || seq, 'x.y', now(), 'a', 'a', now(), '', decode(repeat('00', 32), 'hex') "
            "FROM unnest(CAST(:seqs AS bigint[])) AS seq",
            seqs=seqs,
        )


@pytest.mark.parametrize("seq", [0, 3, 6])
async def test_a_byte_altered_in_the_table_is_found_and_named(audit: Audit, seq: int) -> None:
    """By somebody with every right on the database, behind the service's back."""
    await audit.records(7)
    checkpoint = await audit.checkpoint()
    await altered(
        audit, f"UPDATE ledger SET line = overlay(line PLACING '\\x41' FROM length(line) - 5) WHERE seq = {seq}"
    )
    with pytest.raises(LedgerAltered) as caught:
        verify_lines(await audit.lines(), checkpoint)
    assert caught.value.seqs == (seq,)


async def test_a_removed_entry_is_found(audit: Audit) -> None:
    """From the middle or from the end: the lines are no longer those that were signed."""
    await audit.records(7)
    checkpoint = await audit.checkpoint()
    await altered(audit, "DELETE FROM ledger WHERE seq = 4")
    with pytest.raises(LedgerAltered, match="entry 4 is expected, says that it is entry 5"):
        verify_lines(await audit.lines(), checkpoint)
    await altered(audit, "DELETE FROM ledger WHERE seq > 3")
    with pytest.raises(LedgerAltered, match="7 entries were signed, but the lines end before entry 4"):
        verify_lines(await audit.lines(), checkpoint)
