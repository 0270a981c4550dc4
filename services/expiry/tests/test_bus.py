"""With the real NATS: a revoke answered over HTTP is at the computer a moment later, and what was missed arrives."""

import asyncio
import contextlib
import statistics
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import msgspec
import nats as nats_client
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from sojourn_expiry.app import SERVICE
from sojourn_shared.clock import system_clock
from sojourn_shared.contracts import wire
from sojourn_shared.ids import new_id
from sojourn_shared.service.nats_accounts import Key, agent_jwt
from sojourn_shared.service.testing import OpenHouse


@dataclass
class Agent:
    """A computer's connection, as its link makes it: its own subjects and nothing else."""

    computer: Any
    connection: Client
    pushes: "asyncio.Queue[Msg]"

    async def pushed(self, seconds: float = 10) -> tuple[str, str]:
        """The next push: its kind and its document."""
        async with asyncio.timeout(seconds):
            message = await self.pushes.get()
        return message.subject.rpartition(".")[2], message.data.decode()

    async def asks(self, kind: str, body: dict[str, Any]) -> bytes:
        answer = await self.connection.request(
            f"sojourn.agent.{self.computer.id}.ask.{kind}", msgspec.json.encode(body), timeout=5
        )
        return answer.data

    async def reports(self, kind: str, at: Any, **fields: Any) -> None:
        js = self.connection.jetstream(timeout=5)
        body = self.computer.report(kind, at, **fields).encode()
        await js.publish(f"sojourn.agent.{self.computer.id}.report.{kind}", body)


@contextlib.asynccontextmanager
async def agent_of(nats: Any, computer: Any) -> AsyncIterator[Agent]:
    key = Key.new("USER")
    issuer = nats.agent_issuer
    jwt = agent_jwt(issuer.seed, issuer.account, computer.id, key.id, system_clock())
    connection = await nats_client.connect(
        nats.url,
        user_jwt_cb=jwt.encode,
        signature_cb=key.sign,
        inbox_prefix=f"_INBOX_{computer.id}",
        reconnect_time_wait=0.1,
    )
    try:
        pushes: asyncio.Queue[Msg] = asyncio.Queue()
        for kind in ("grant", "revoke"):
            await connection.subscribe(f"sojourn.agent.{computer.id}.{kind}", cb=pushes.put)
        await connection.flush()
        yield Agent(computer, connection, pushes)
    finally:
        await connection.close()


@pytest.fixture
async def live(yard_of: Any, house_of: OpenHouse, nats: Any, keys: dict[str, Any]) -> AsyncIterator[Any]:
    """The service, running with its tasks."""
    settings = {name: keys[name] for name in ("state_keys", "key_set")}
    async with house_of(SERVICE, nats_url=nats.url, nats_creds=nats.creds("expiry"), **settings) as house:
        house.clock.at = system_clock()
        async with house.house.running():
            await house.house.bus.up.wait()
            yield yard_of(house)


async def test_a_revoke_over_http_is_pushed_at_once(live: Any, nats: Any) -> None:
    """From the answered revoke to the signed document at the computer: milliseconds, on the subject `revoke`."""
    pc = await live.enrol()
    async with agent_of(nats, pc) as agent, live.house.client() as admin:
        assert (await agent.pushed())[0] == "grant"
        taken = []
        for _ in range(20):
            grant_id = await live.approve(pc)
            assert (await agent.pushed())[0] == "grant"
            answer = await admin.post(f"/grants/{grant_id}/revoke", json={"reason": "no"})
            answered = time.perf_counter()
            kind, document = await agent.pushed()
            taken.append((time.perf_counter() - answered) * 1000)
            assert (answer.status_code, kind) == (200, "revoke")
            revoked = {grant.id: grant.revoked for grant in wire.read_grants(live.read(document), frozenset())}
            assert revoked[grant_id] is not None
    taken.sort()
    print(f"revoke answered → document at the computer: p50 {statistics.median(taken):.1f} ms, max {taken[-1]:.1f} ms")
    assert statistics.median(taken) < 100


async def test_a_computers_words_arrive_over_the_bus(live: Any, nats: Any) -> None:
    """Heartbeat answered, reports taken from the work queue; the events of it all leave the outbox."""
    pc = await live.enrol()
    async with agent_of(nats, pc) as agent:
        _, document = await agent.pushed()
        held = live.read(document).version
        beat = {"nonce": "n", "epoch": 1, "version": held, "boot_id": "b", "clock": "2026-11-02T09:00:00Z"}
        answer = msgspec.json.decode(await agent.asks("heartbeat", beat | {"agent_version": "1"}))
        assert answer["document"] is None
        assert await agent.asks("rules", {"digest": "0" * 64}) == b""
        grant_id = await live.approve(pc)
        await agent.pushed()
        run = new_id(live.now)
        who = {"name": "alice", "uid": 1000}
        start = {"run_id": run, "grant_id": grant_id, "rule": 0, "user": who, "pid": 1, "until": None}
        await agent.reports("applied", live.now, epoch=1, version=held, grants=[{"id": grant_id, "applied": True}])
        await agent.reports("started", live.now, **start, application={"path": "/usr/bin/id"})
        # An earlier test's pull may still be waiting on the server: what it is given comes again after 30 s.
        kind, document = await agent.pushed(45)
        assert kind == "grant"
        (grant,) = wire.read_grants(live.read(document), frozenset())
        assert isinstance(grant, wire.Grant)
        assert grant.until == live.after(minutes=10)
        assert (await live.grant(grant_id))["status"] == "active"


async def test_a_document_signed_before_a_crash_is_sent_afterwards(
    yard_of: Any, house_of: OpenHouse, nats: Any, keys: dict[str, Any]
) -> None:
    """The process died between commit and push: the next one sends what nobody noted as sent."""
    settings = {name: keys[name] for name in ("state_keys", "key_set")}
    async with house_of(SERVICE, nats_url=nats.url, nats_creds=nats.creds("expiry"), **settings) as house:
        house.clock.at = system_clock()
        yard = yard_of(house)
        pc = await yard.enrol()
        async with agent_of(nats, pc) as agent:
            assert await yard.documents() == 1  # committed; there is no bus yet to push it with
            house.clock.advance(timedelta(seconds=3))
            async with house.house.running():
                _, document = await agent.pushed()
                assert yard.read(document).computer_id == pc.id


async def test_after_an_outage_of_the_bus_everything_converges(live: Any, nats: Any) -> None:
    """A grant revoked while NATS is away: answered at once, and told in the answer to the agent's next heartbeat."""
    pc = await live.enrol()
    async with agent_of(nats, pc) as agent, live.house.client() as admin:
        await agent.pushed()
        grant_id = await live.approve(pc)
        held = live.read((await agent.pushed())[1]).version
        nats.stop()
        try:
            async with asyncio.timeout(10):
                while live.house.house.bus.up.is_set():
                    await asyncio.sleep(0.01)
            answer = await admin.post(f"/grants/{grant_id}/revoke", json={"reason": "no"})
            assert answer.status_code == 200
        finally:
            nats.start()
        beat = {"nonce": "n", "epoch": 1, "version": held, "boot_id": "b", "clock": "2026-11-02T09:00:00Z"}
        document = None
        async with asyncio.timeout(20):
            while document is None:  # as an agent does: unanswered again after a while
                with contextlib.suppress(nats_client.errors.Error, TimeoutError):
                    document = msgspec.json.decode(await agent.asks("heartbeat", beat | {"agent_version": "1"}))[
                        "document"
                    ]
                await asyncio.sleep(0.05)
        (grant,) = wire.read_grants(live.read(document), frozenset())
        assert isinstance(grant, wire.Grant)
        assert grant.revoked is not None
