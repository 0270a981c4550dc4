"""On a real NATS: what an enrolled computer may do there, and that a deploy reaches the stream."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import nats as nats_client
import pytest
from nats.aio.client import Client

from sojourn_embedded.testing import TestNats
from sojourn_policy.app import SERVICE
from sojourn_shared.clock import ManualClock, system_clock
from sojourn_shared.ids import new_id
from sojourn_shared.service.testing import OpenHouse, TestHouse


@pytest.fixture
async def running(house_of: OpenHouse, policy_settings: dict[str, Any], nats: TestNats) -> AsyncIterator[TestHouse]:
    """The service with everything beside it, connected to NATS as policy."""
    settings = policy_settings | {
        "agent_issuer_seed": nats.agent_issuer.json(),
        "nats_url": nats.url,
        "nats_creds": nats.creds("policy"),
        "nats_public_urls": f"{nats.url}, nats://example.com:4222",
    }
    async with house_of(SERVICE, clock=ManualClock(system_clock()), **settings) as house, house.house.running():
        yield house


async def connected(answer: dict[str, Any], machine: Any, refusals: list[str]) -> Client:
    """The link of an enrolled computer."""

    async def on_error(error: Exception) -> None:
        refusals.append(str(error))

    client = Client()
    await client.connect(
        answer["credentials"]["nats_urls"][0],
        inbox_prefix=answer["credentials"]["inbox_prefix"],
        signature_cb=machine.link.sign,
        user_jwt_cb=lambda: bytearray(answer["credentials"]["jwt"].encode()),
        error_cb=on_error,
        allow_reconnect=False,
    )
    return client


async def test_an_enrolled_computer_hears_and_says_only_its_own(running: TestHouse, agents_of: Any) -> None:
    """Its credential connects, its own pushes and reports pass, and another computer's are refused."""
    agents = agents_of(running)
    machine = agents.machine()
    answer = (await agents.enrols(machine)).json()
    assert answer["credentials"]["nats_urls"][1] == "nats://example.com:4222"
    mine, other = answer["computer_id"], new_id(running.clock())
    refusals: list[str] = []
    client = await connected(answer, machine, refusals)
    try:
        for push in ("grant", "revoke", "decision"):
            await client.subscribe(f"sojourn.agent.{mine}.{push}")
        report = machine.health(mine, running.clock(), agent_version="9.9")
        stored = await client.request(f"sojourn.agent.{mine}.report.health", report.encode(), timeout=5)
        assert json.loads(stored.data)["stream"] == "REPORTS"
        assert refusals == []
        for subject in (f"sojourn.agent.{other}.grant", "sojourn.agent.*.revoke", "sojourn.events.>", ">"):
            await client.subscribe(subject)
        await client.publish(f"sojourn.agent.{other}.report.health", report.encode())
        await client.flush()
        await client.flush()  # a flush's PING may overtake what was buffered before it
        assert len(refusals) == 5
    finally:
        await client.close()
    async with running.client() as admin:
        await eventually(lambda: agent_version_is(admin, mine, "9.9"))


async def agent_version_is(admin: Any, computer_id: str, version: str) -> bool:
    return bool((await admin.get(f"/computers/{computer_id}")).json()["agent_version"] == version)


async def test_a_deploy_reaches_the_stream(
    running: TestHouse, agents_of: Any, nats: TestNats, body: Callable[..., dict[str, Any]]
) -> None:
    """The relay publishes `assignments.changed` under the event's own id, after the policy's own event."""
    computer_id = await agents_of(running).enrolled()
    async with running.client() as admin:
        policy = (await admin.post("/policies", json=body("P", computer_id))).json()
        assert (await admin.post(f"/policies/{policy['id']}/deploy")).status_code == 202
    watcher = await nats_client.connect(nats.url, user_credentials=str(nats.creds("provisioner")))
    try:
        subject = f"sojourn.events.policy.assignments.changed.{policy['id']}"
        js = watcher.jetstream()
        subscription = await js.subscribe(subject, ordered_consumer=True)
        message = await subscription.next_msg(timeout=10)
    finally:
        await watcher.close()
    event = json.loads(message.data)
    assert (message.headers or {})["Nats-Msg-Id"] == event["id"]
    entity = event["data"]["entity"]
    assert (entity["policy_id"], entity["revision"], entity["page"], entity["pages"]) == (policy["id"], 1, 1, 1)
    assert [(one["computer_id"], one["state"]) for one in entity["assignments"]] == [(computer_id, "present")]
    assert entity["terms"]["rules"] == policy["access"]["rules"]


async def eventually(condition: Callable[[], Any], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.05)
