"""The database keeps the truth by itself: what the domain would never write, it refuses."""

from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError


@pytest.mark.parametrize(
    ("change", "constraint"),
    [
        ("status = 'gone'", "grants_status_is_a_status"),
        ("status = 'expired', delivery = 'applied'", "grants_delivery_fits_status"),
        ("delivery = 'ended', ended_at = now()", "grants_delivery_fits_status"),
        ("status = 'revoked', delivery = 'ending'", "grants_revoked_says_by_whom"),
        ("revoked = '{}'", "grants_revoked_says_by_whom"),
        ("until = NULL", "grants_active_has_an_end"),
        ("status = 'ready'", "grants_ready_waits_for_first_use"),
        ("starts = 'first_use', first_used_at = now(), duration_minutes = NULL", "grants_first_use_has_a_duration"),
        ("starts = 'first_use'", "grants_first_use_sets_the_end"),
        ("status = 'expired', delivery = 'ended'", "grants_ended_says_when"),
    ],
)
async def test_the_database_refuses_what_cannot_be(yard: Any, change: str, constraint: str) -> None:
    """Each rule by its name."""
    pc = await yard.enrol()
    await yard.assign(pc)
    with pytest.raises(IntegrityError, match=constraint):
        async with yard.house.house.database.begin() as connection:
            await connection.execute(text(f"UPDATE grants SET {change}"))


async def test_a_final_grant_stays_final(yard: Any) -> None:
    """Not even a statement by hand revives it."""
    pc = await yard.enrol()
    grant_id = await yard.approve(pc)
    async with yard.house.client() as admin:
        await admin.post(f"/grants/{grant_id}/revoke", json={"reason": "no"})
    with pytest.raises(IntegrityError, match="stays so"):
        async with yard.house.house.database.begin() as connection:
            await connection.execute(text("UPDATE grants SET status = 'ready', delivery = 'applied', revoked = NULL"))
