"""The clock of grants: many that are due at once, with their events, beside one bare UPDATE of the same rows."""

import asyncio
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import asyncpg
import msgspec
from figures import Figure
from ground import Ground
from servers import Servers, house_of

from sojourn_expiry import scheduler
from sojourn_expiry.app import SERVICE
from sojourn_expiry.store import Tx
from sojourn_shared.contracts.wire import DocumentKey, KeySet
from sojourn_shared.service import House
from sojourn_shared.signing import PrivateKey, base64url

DUE = 20_000
ROUNDS = 3


def measure(ground: Ground) -> Iterator[Figure]:
    turned, bare = asyncio.run(both(ground.servers, ground.tell))
    yield Figure(f"{DUE:,} grants due at once, with their events", turned, "grants/s", "one bare UPDATE", bare)


async def both(servers: Servers, tell: Callable[[str], None]) -> tuple[float, float]:
    """Grants a second, as `expiry` turns them and by one statement that changes the same rows and tells nobody."""
    turned, bare = [], []
    async with expiry_house(servers) as house:
        for count in range(ROUNDS):
            tell(f"round {count + 1} of {ROUNDS}")
            await fill(house)
            began = time.perf_counter()
            while await scheduler.turn_batch(house):
                pass
            turned.append(DUE / (time.perf_counter() - began))
            await fill(house)
            began = time.perf_counter()
            async with house.database.begin() as connection:
                await connection.exec_driver_sql(_BARE)
            bare.append(DUE / (time.perf_counter() - began))
    return statistics.median(turned), statistics.median(bare)


async def fill(house: House) -> None:
    """Nothing but grants that are due."""
    async with Tx.begin(house) as tx:
        raw: asyncpg.Connection = await tx.raw()
        await tx.connection.exec_driver_sql("TRUNCATE grants, outbox")
        await raw.execute(_FILL, DUE)
    async with house.database.engine.connect() as connection:
        own = await connection.execution_options(isolation_level="AUTOCOMMIT")
        await own.exec_driver_sql("VACUUM (ANALYZE) grants")
        await own.exec_driver_sql("CHECKPOINT")


@contextlib.asynccontextmanager
async def expiry_house(servers: Servers) -> AsyncIterator[House]:
    with tempfile.TemporaryDirectory(prefix="sojourn-bench-") as name:
        folder = Path(name)
        root, signer = PrivateKey.generate(), PrivateKey.generate()
        (folder / f"{signer.kid}.seed").write_text(base64url(signer.seed))
        keys = KeySet(epoch=1, keys=[DocumentKey(kid=signer.kid, x=signer.public.text)])
        signed = root.sign(msgspec.json.encode(keys), "sojourn-keys")
        key_set = folder / "key-set.json"
        key_set.write_text(json.dumps({"root_key": root.public.text, "keys": signed}))
        async with house_of(servers, SERVICE, state_keys=folder, key_set=key_set) as house:
            yield house


_FILL = """
INSERT INTO grants (id, version, status, delivery, computer_id, policy_id, policy_name, revision, users_all, user_names,
    from_at, until, starts, rules, child_processes, run_as, ticket_required, ends_with_application, applied_at,
    wire_bytes, due_at, created_at, updated_at)
SELECT uuidv7()::text, 3, 'active', 'applied', md5((n % 1000)::text), md5('policy'), 'Printers', 4, false,
    ARRAY['user-' || n % 500], now() - interval '1 hour', now() - interval '1 second', 'at_from',
    jsonb_build_array(jsonb_build_object('type', 'file_hash', 'sha256', repeat('a', 64))), 'allow', 'root', false,
    false, now() - interval '1 hour', 400, now() - interval '1 second', now() - interval '1 hour',
    now() - interval '1 hour'
FROM generate_series(1, $1::int) AS n
"""
_BARE = (
    "UPDATE grants SET status = 'expired', delivery = 'ending', due_at = NULL, version = version + 1, "
    "updated_at = now() WHERE due_at <= now()"
)
