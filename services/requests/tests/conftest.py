"""A house of requests with people in it: what they do reads as what they do."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import asyncpg
import httpx
import msgspec
import pytest
from nats.aio.client import Client

from sojourn_requests.app import SERVICE
from sojourn_requests.store import Tx
from sojourn_shared.clock import ManualClock, rfc3339, system_clock
from sojourn_shared.contracts import wire
from sojourn_shared.ids import new_id
from sojourn_shared.service import Caller
from sojourn_shared.service.nats_accounts import Key, agent_jwt
from sojourn_shared.service.testing import START, OpenHouse, TestHouse, person
from sojourn_shared.signing import PrivateKey

COMPUTER = "01930000-0000-7000-8000-0000000000c1"
FACTS = {
    "path": "/usr/bin/htop",
    "executable": "htop",
    "sha256": "ab" * 32,
    "size": 1000,
    "vendor": "Debian",
    "product": "htop",
    "version": "3.2",
    "package": "htop 3.2",
    "signature": {"status": "verified", "by": "Debian"},
    "arguments": ["-d", "5"],
    "platform": "linux",
}


class Somebody:
    """A person with a token, and what they can do."""

    def __init__(self, house: "Household", caller: Caller) -> None:
        self.house, self.caller = house, caller
        self.id = caller.id

    async def asks(self, user: str, /, minutes: int = 30, facts: dict[str, Any] | None = None, **more: Any) -> Any:
        body = {
            "computer_id": COMPUTER,
            "user": user,
            "application": FACTS | (facts or {}),
            "duration_minutes": minutes,
            "justification": "I must see what runs",
        }
        return await self.posts("/requests", body | more)

    async def approves(self, request_id: str, **terms: Any) -> httpx.Response:
        return await self.posts(f"/requests/{request_id}/approve", terms)

    async def declines(self, request_id: str, note: str = "not today", **more: Any) -> httpx.Response:
        return await self.posts(f"/requests/{request_id}/decline", {"note": note, **more})

    async def cancels(self, request_id: str) -> httpx.Response:
        return await self.posts(f"/requests/{request_id}/cancel", {})

    async def sees(self, request_id: str) -> httpx.Response:
        return await self.gets(f"/requests/{request_id}")

    async def posts(self, path: str, body: Any, **headers: str) -> httpx.Response:
        async with self.house.client(self.caller) as client:
            return await client.post(path, json=body, headers=headers)

    async def gets(self, path: str, **query: Any) -> httpx.Response:
        async with self.house.client(self.caller) as client:
            return await client.get(path, params=query)

    async def changes(self, path: str, **changes: Any) -> httpx.Response:
        """Read, change, put back."""
        async with self.house.client(self.caller) as client:
            read = await client.get(path)
            return await client.put(path, json=read.json() | changes, headers={"If-Match": read.headers["etag"]})


@dataclass
class Household:
    """The service, a computer with its keeper, and people: alice asks; bob and carol approve; ada administers."""

    test: TestHouse
    keeper: PrivateKey
    alice: Somebody = None  # type: ignore[assignment]
    bob: Somebody = None  # type: ignore[assignment]
    carol: Somebody = None  # type: ignore[assignment]
    ada: Somebody = None  # type: ignore[assignment]
    _seq: int = 0

    @property
    def clock(self) -> Any:
        return self.test.clock

    def client(self, caller: Caller) -> httpx.AsyncClient:
        return self.test.client(caller)

    async def moves_in(self, name: str, *roles: str, os_users: tuple[str, ...] | None = None, **more: Any) -> Somebody:
        """A new account, with the OS user of the same name unless told otherwise; the gateway tells of it."""
        somebody = self.stranger(name, *roles, os_users=os_users, **more)
        if somebody.caller.kind == "account":
            await self.hears_account(somebody.caller)
        return somebody

    def stranger(self, name: str, *roles: str, os_users: tuple[str, ...] | None = None, **more: Any) -> Somebody:
        """Somebody of whom the gateway told nothing here; only their token speaks."""
        return Somebody(self, replace(person(name, *roles, os_users=os_users), **more))

    async def hears_account(self, caller: Caller, version: int = 1, **more: Any) -> None:
        said = {
            "id": caller.id,
            "version": version,
            "name": caller.name,
            "email": f"{caller.name}@example.org",
            "roles": sorted(caller.roles),
            "computer_group_ids": caller.computer_group_ids,
            "os_users": caller.os_users,
            "active": True,
        }
        await self.test.hears("account.created", said | more, service="gateway", id=caller.id)

    async def hears_computer(self, computer_id: str = COMPUTER, version: int = 1, status: str = "enrolled") -> None:
        said = {
            "id": computer_id,
            "version": version,
            "name": "pc-7",
            "status": status,
            "keeper_public_key": self.keeper.public.text,
        }
        await self.test.hears("computer.enrolled", said, service="policy", id=computer_id)

    async def hears_agent(self, connected: bool, version: int = 1, computer_id: str = COMPUTER) -> None:
        said = {"id": computer_id, "version": version, "connected": connected, "last_seen_at": rfc3339(self.clock())}
        await self.test.hears("agent.connected" if connected else "agent.lost", said, service="expiry", id=computer_id)

    def report(self, kind: type[Any], **fields: Any) -> Any:
        self._seq += 1
        common = {"id": new_id(self.clock()), "seq": self._seq, "computer_id": COMPUTER, "boot_id": "b"}
        return kind(**(common | {"at": self.clock()} | fields))

    def wish_report(self, user: str = "alice", minutes: int = 5, **more: Any) -> wire.RequestReport:
        facts = wire.Application(path="/usr/bin/id", executable="id", sha256="cd" * 32, arguments=["-u"])
        fields = {
            "user": wire.ReportingUser(name=user, uid=1000),
            "application": facts,
            "duration_minutes": minutes,
            "justification": "need it",
        }
        report: wire.RequestReport = self.report(wire.RequestReport, **(fields | more))
        return report

    def signed(self, report: Any, key: PrivateKey | None = None) -> str:
        return (key or self.keeper).sign(wire.encode(report), "sojourn-report")

    async def takes(self, report: Any, key: PrivateKey | None = None) -> Any:
        kind = report.__struct_config__.tag
        await self.test.takes(COMPUTER, kind, self.signed(report, key))
        return report

    async def told(self) -> list[wire.Decision]:
        """What waits to be pushed to the computer, oldest first; it is taken away."""
        async with Tx.begin(self.test.house) as tx:
            rows = await tx.take_pushes()
        return [msgspec.json.decode(row.body, type=wire.Decision) for row in rows]

    async def trusts(self, *users: str, by: Somebody | None = None, **settings: Any) -> None:
        """Autonomous approval is on for these users, trusted by Ada unless told otherwise; their computer is there."""
        await self.hears_agent(connected=True)
        answer = await (by or self.ada).changes(
            "/settings/autonomous-approval", enabled=True, trusted_users=list(users), **settings
        )
        assert answer.status_code == 200, answer.text

    async def events_of(self, request_id: str) -> list[str]:
        return [event.change for event in await self.test.events() if event.subject == request_id]

    @contextlib.asynccontextmanager
    async def row_held(self, request_id: str, *, until_waiting: int) -> AsyncIterator[None]:
        """Hold a request's row until that many transactions wait for a lock; what the block starts then races."""
        holder = await asyncpg.connect(self.test.house.database._dsn)
        try:
            async with holder.transaction():
                await holder.execute("SELECT FROM requests WHERE id = $1 FOR UPDATE", request_id)
                yield
                await self.somebody_waits(until_waiting)
        finally:
            await holder.close()

    async def somebody_waits(self, count: int = 1) -> None:
        """Return once that many transactions wait for a lock."""
        watcher = await asyncpg.connect(self.test.house.database._dsn)
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        try:
            async with asyncio.timeout(10):
                while await watcher.fetchval(waiting) < count:
                    await asyncio.sleep(0.01)
        finally:
            await watcher.close()


async def settle(test: TestHouse) -> Household:
    household = Household(test, PrivateKey.generate())
    household.alice = await household.moves_in("alice", "requester", os_users=("alice",))
    household.bob = await household.moves_in("bob", "approver", os_users=("bob",))
    household.carol = await household.moves_in("carol", "approver", os_users=("carol",))
    household.ada = await household.moves_in("ada", "administrator", os_users=("ada",))
    await household.hears_computer()
    return household


@pytest.fixture
async def house(house_of: OpenHouse) -> AsyncIterator[Household]:
    async with house_of(SERVICE) as test:
        assert test.clock() == START
        yield await settle(test)


@dataclass
class BusHouse:
    """The same on a real NATS: not running yet (`house.test.house.running()`), and agents that may connect."""

    house: Household
    nats: Any
    clients: list[Client]

    async def agent(self, computer_id: str) -> Client:
        """A connection with the credentials of that computer."""
        link, issuer = Key.new("USER"), self.nats.agent_issuer
        jwt = agent_jwt(issuer.seed, issuer.account, computer_id, link.id, system_clock())
        client = Client()
        self.clients.append(client)
        await client.connect(
            self.nats.url,
            inbox_prefix=f"_INBOX_{computer_id}",
            signature_cb=link.sign,
            user_jwt_cb=lambda: bytearray(jwt.encode()),
            allow_reconnect=False,
        )
        return client


@pytest.fixture
async def bus_house(house_of: OpenHouse, nats: Any) -> AsyncIterator[BusHouse]:
    clock = ManualClock(system_clock())
    async with house_of(SERVICE, clock=clock, nats_url=nats.url, nats_creds=nats.creds("requests")) as test:
        house = BusHouse(await settle(test), nats, [])
        try:
            yield house
        finally:
            for client in house.clients:
                await client.close()
