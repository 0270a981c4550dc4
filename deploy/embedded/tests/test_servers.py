"""The servers are real, fresh, and closed to everyone who has no password or key."""

import asyncpg
import nats as nats_client
import pytest

from sojourn_embedded.testing import TestNats
from sojourn_shared.service.nats_accounts import DUTIES


async def test_postgres_is_real_and_asks_for_a_password(postgres_url: str) -> None:
    """The superuser gets in with the password, and nobody without it."""
    connection = await asyncpg.connect(postgres_url)
    assert (await connection.fetchval("show server_version")).startswith("18")
    await connection.close()
    user, _, rest = postgres_url.partition("@")
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(f"{user}x@{rest}")


async def test_nats_lets_each_service_in_and_keeps_streams_over_an_outage(nats: TestNats) -> None:
    """Every service says one event; after an outage of the server all of them are still there."""
    before = await _events(nats)
    for service in DUTIES:
        connection = await nats_client.connect(
            nats.url, user_credentials=str(nats.creds(service)), inbox_prefix=f"_INBOX_{service}", allow_reconnect=False
        )
        await connection.jetstream().publish(f"sojourn.events.{service}.thing.made.1", b"{}")
        await connection.close()
    nats.stop()
    nats.start()
    assert await _events(nats) == before + len(DUTIES)


async def _events(nats: TestNats) -> int:
    connection = await nats_client.connect(
        nats.url, user_credentials=str(nats.creds("provisioner")), allow_reconnect=False
    )
    count = (await connection.jetstream().stream_info("EVENTS")).state.messages
    await connection.close()
    return count
