"""The ledger: how fast it takes events, beside one SHA-256 for each and bare rows of the same bytes; how late it is."""

import asyncio
import contextlib
import hashlib
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

from figures import Figure, quantile
from ground import Ground
from servers import Servers, house_of
from sqlalchemy import MetaData

from sojourn_audit import sequencer
from sojourn_audit.app import SERVICE as AUDIT
from sojourn_audit.domain import arrival_of
from sojourn_audit.store import Tx
from sojourn_shared.clock import system_clock
from sojourn_shared.contracts.events import Actor, Event, EventData, Links
from sojourn_shared.ids import new_id
from sojourn_shared.service import House, Service, ServiceSettings, Transaction, inbox
from sojourn_shared.signing import PrivateKey, base64url

MANY = 20_000
HEARD = 1_000
THROUGH = 1_000
SINGLE = 200
SINGLE_EVERY_SECONDS = 0.02
BATCH = sequencer.BATCH

ADA = Actor(kind="account", id=new_id(system_clock()), name="Ada")


def measure(ground: Ground) -> Iterator[Figure]:
    figures = measure_all(ground.servers, ground.tell)
    with asyncio.Runner() as runner:
        while (figure := runner.run(anext(figures, None))) is not None:
            yield figure


async def measure_all(servers: Servers, tell_people: Callable[[str], None]) -> AsyncIterator[Figure]:
    tell_people(f"{MANY:,} events are sequenced")
    async with audit_house(servers) as audit:
        lines = await fill(audit, MANY)
        hashed, bare, sequenced = await sequence_beside_limits(audit, lines)
        size = f"{len(lines[0])} bytes, one core"
        yield Figure("limit: one SHA-256 of each event", hashed, "events/s", size)
        yield Figure(f"limit: bare rows of the same bytes, {BATCH} a commit", bare, "events/s")
        yield Figure("sequenced, indexed, signed", sequenced, "events/s", "bare rows", bare)
        yield Figure("", sequenced, "events/s", "one SHA-256", hashed)
        began = time.perf_counter()
        for _ in range(HEARD):
            event = an_event()
            await inbox.hear(audit, event.bus_subject, event.model_dump_json().encode())
        heard = HEARD / (time.perf_counter() - began)
        yield Figure("heard, one commit for each", heard, "events/s", "sequenced", sequenced)
    async with audit_house(servers) as audit, teller(servers) as policy, audit.running(), policy.running():
        tell_people("events of another service, through NATS")
        await tell(policy, 1)
        await in_ledger(audit, 1)
        began = time.perf_counter()
        for _ in range(THROUGH // 100):
            await tell(policy, 100)
        await in_ledger(audit, THROUGH + 1)
        through = THROUGH / (time.perf_counter() - began)
        yield Figure("committed elsewhere, through NATS, into the ledger", through, "events/s")
        lags = []
        for number in range(SINGLE):
            await tell(policy, 1)
            began = time.perf_counter()
            await in_ledger(audit, THROUGH + number + 2)
            lags.append((time.perf_counter() - began) * 1000)
            await asyncio.sleep(SINGLE_EVERY_SECONDS)
        for name, share in (("p50", 0.5), ("p99", 0.99)):
            yield Figure(f"committed elsewhere → in the signed ledger, {name}", quantile(lags, share), "ms")


def an_event() -> Event:
    """An approved request, of the size that such events have."""
    now = system_clock()
    ids = [new_id(now) for _ in range(4)]
    application = {"path": "/usr/bin/htop", "executable": "htop", "sha256": "0" * 64, "arguments": ["-d", "5"]}
    entity = {"id": ids[0], "version": 2, "status": "approved", "application": application, "user": "bob"}
    entity |= {"computer_id": ids[1], "duration_minutes": 30, "justification": "the nightly job eats the memory"}
    links = Links(request_id=ids[0], computer_id=ids[1], grant_id=ids[2], user="bob")
    data = EventData(actor=ADA, links=links, entity=entity)
    kind = "sojourn.request.approved"
    return Event(id=ids[3], source="sojourn/policy", type=kind, subject=ids[0], time=now, data=data)


async def fill(audit: House, count: int) -> list[bytes]:
    """So many arrivals that wait; returns what their lines will hold."""
    waiting = [arrival_of(an_event()) for _ in range(count)]
    for first in range(0, count, 1000):
        async with Tx.begin(audit) as tx:
            await tx.add_arrivals(waiting[first : first + 1000])
    return [one.told for one in waiting]


async def sequence_beside_limits(audit: House, lines: list[bytes]) -> tuple[float, float, float]:
    """Events a second: hashed, inserted bare, sequenced. Batch by batch in turn, so that all see the same machine."""
    async with Tx.begin(audit) as tx:
        await tx.connection.exec_driver_sql("CREATE TABLE bare (seq bigint PRIMARY KEY, line bytea NOT NULL)")
    hashing = inserting = sequencing = 0.0
    for first in range(0, len(lines), BATCH):
        batch = lines[first : first + BATCH]
        began = time.perf_counter()
        for line in batch:
            hashlib.sha256(line).digest()
        hashed = time.perf_counter()
        await insert_bare(audit, first, batch)
        inserted = time.perf_counter()
        await sequencer.sequence_batch(audit, audit.parts.signer)
        hashing += hashed - began
        inserting += inserted - hashed
        sequencing += time.perf_counter() - inserted
    return len(lines) / hashing, len(lines) / inserting, len(lines) / sequencing


async def insert_bare(audit: House, first: int, lines: list[bytes]) -> None:
    async with Tx.begin(audit) as tx:
        await tx.connection.exec_driver_sql("SELECT 1")  # begins the transaction
        rows = list(range(first, first + len(lines))), lines
        await (await tx.raw()).execute("INSERT INTO bare SELECT * FROM unnest($1::bigint[], $2::bytea[])", *rows)


async def tell(policy: House, count: int) -> None:
    """So many events, in one commit."""
    async with Transaction.begin(policy) as tx:
        for _ in range(count):
            event = an_event()
            tx.emit("request.approved", id=event.subject, entity=event.data.entity, version=2, links=event.data.links)


async def in_ledger(audit: House, size: int) -> None:
    if not await audit.parts.feed.beyond(size - 1, 60):
        raise TimeoutError(f"after a minute the ledger holds {audit.parts.feed.size} entries, not {size}")


@contextlib.asynccontextmanager
async def audit_house(servers: Servers) -> AsyncIterator[House]:
    key = base64url(PrivateKey.generate().seed)
    async with house_of(servers, AUDIT, ledger_key=key) as house:
        yield house


@contextlib.asynccontextmanager
async def teller(servers: Servers) -> AsyncIterator[House]:
    """A service that only tells: the frame's tables and its relay."""
    with tempfile.TemporaryDirectory(prefix="sojourn-bench-") as folder:
        Path(folder, "0001_pre_frame.py").write_text(
            "from alembic import op\nfrom sojourn_shared.service.schema import frame_v1\n"
            "revision, down_revision = '0001', None\n\n\ndef upgrade():\n    frame_v1(op)\n"
        )
        service = Service(
            name="policy",
            title="Teller",
            settings=ServiceSettings,
            metadata=MetaData(),
            migrations=Path(folder),
            transaction=Transaction,
            routers=[],
        )
        async with house_of(servers, service) as house:
            yield house
