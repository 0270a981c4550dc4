"""`/computers` on a real database."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from sojourn_shared.contracts import wire
from sojourn_shared.ids import new_id
from sojourn_shared.service.testing import TestHouse, person

Body = Callable[..., dict[str, Any]]


@pytest.fixture
async def admin(house: TestHouse) -> AsyncIterator[httpx.AsyncClient]:
    async with house.client() as client:
        yield client


async def test_a_computer_as_everybody_sees_it(house: TestHouse, admin: httpx.AsyncClient, agents: Any) -> None:
    """Neither its machine id, nor its link's key, nor its secret; the event says the same but for liveness."""
    machine = agents.machine()
    token = await agents.token(labels={"site": "oslo"})
    computer_id = (await agents.enrols(machine, token)).json()["computer_id"]
    answer = await admin.get(f"/computers/{computer_id}")
    assert answer.headers["etag"] == '"1"'
    assert answer.json() == {
        "id": computer_id,
        "version": 1,
        "name": "ws-042",
        "status": "enrolled",
        "connected": False,
        "platform": {"os": "linux", "distribution": "debian", "version": "12", "architecture": "x86_64"},
        "agent_version": "0.1.0",
        "keeper_public_key": machine.keeper.public.text,
        "labels": {"site": "oslo"},
        "external_refs": [],
        "guarantees": {"caller": {"word": "enforced", "why": "the kernel says who calls"}},
        "standing_rights": [],
        "created_at": "2026-11-02T09:00:00.000000Z",
        "updated_at": "2026-11-02T09:00:00.000000Z",
        "console_url": f"/computers/{computer_id}",
    }
    (event,) = await house.events("computer.enrolled")
    seen = {name: value for name, value in answer.json().items() if name not in {"connected", "console_url"}}
    assert event.data.entity == seen
    assert event.data.links.computer_id == computer_id


async def test_people_edit_what_they_say_of_it(house: TestHouse, admin: httpx.AsyncClient, agents: Any) -> None:
    """With If-Match; what was so already is no change."""
    url = f"/computers/{await agents.enrolled()}"
    patch = {"name": "reception", "labels": {"floor": "2"}, "external_refs": [{"system": "cmdb", "number": "42"}]}
    assert (await admin.patch(url, json=patch)).status_code == 428
    assert (await admin.patch(url, json=patch, headers={"If-Match": '"2"'})).status_code == 412
    edited = await admin.patch(url, json=patch, headers={"If-Match": '"1"'})
    assert (edited.status_code, edited.headers["etag"]) == (200, '"2"')
    assert edited.json()["labels"] == {"floor": "2"}
    assert (await admin.patch(url, json=patch, headers={"If-Match": '"2"'})).json() == edited.json()
    (event,) = await house.events("computer.changed")
    assert (event.data.entity["name"], event.data.actor.name) == ("reception", "Ada")
    for bad in ({}, {"name": ""}, {"labels": {"a b": "c"}}, {"labels": {"a": "\n"}}, {"status": "enrolled"}):
        answer = await admin.patch(url, json=bad, headers={"If-Match": "*"})
        assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid-body")


async def test_a_decommissioned_computer_loses_everything(
    house: TestHouse, admin: httpx.AsyncClient, agents: Any, body: Body
) -> None:
    """Its assignments become absent with it; it stays readable; again is 204 and no change."""
    computer_id, other = await agents.enrolled(), await agents.enrolled("other")
    policy = (await admin.post("/policies", json=body("P", computer_id, other))).json()
    await admin.post(f"/policies/{policy['id']}/deploy")
    url = f"/computers/{computer_id}"
    assert (await admin.delete(url)).status_code == 428
    assert (await admin.delete(url, headers={"If-Match": '"7"'})).status_code == 412
    for _ in range(2):
        assert (await admin.delete(url, headers={"If-Match": '"1"'})).status_code == 204
    assert (await admin.get(url)).json()["status"] == "decommissioned"
    changes = [event.change for event in await house.events()][-2:]
    assert changes == ["computer.decommissioned", "assignments.changed"]
    (assignment,) = (await house.events())[-1].data.entity["assignments"]
    assert (assignment["computer_id"], assignment["version"], assignment["state"]) == (computer_id, 2, "absent")
    gone = await admin.patch(url, json={"name": "n"}, headers={"If-Match": "*"})
    assert (gone.status_code, gone.json()["type"]) == (410, "/problems/gone")
    await admin.put(f"/policies/{policy['id']}", json=policy, headers={"If-Match": "*"})
    await admin.post(f"/policies/{policy['id']}/deploy")
    assert [one["computer_id"] for one in (await house.events())[-1].data.entity["assignments"]] == [other]


async def test_filters(house: TestHouse, admin: httpx.AsyncClient, agents: Any) -> None:
    """By name in any case, words, labels, external number, liveness, status; a group is refused, not ignored."""
    first = await agents.enrolled("ws-1")
    second = await agents.enrolled("ws-2")
    third = await agents.enrolled("kiosk")
    patch = {"labels": {"site": "oslo", "floor": "2"}, "external_refs": [{"system": "cmdb", "number": "42"}]}
    await admin.patch(f"/computers/{first}", json=patch, headers={"If-Match": "*"})
    await admin.patch(f"/computers/{second}", json={"labels": {"site": "bergen"}}, headers={"If-Match": "*"})
    said = {"id": second, "version": 1, "connected": True}
    await house.hears("agent.connected", said, service="expiry", id=second)
    await agents.removes(third)

    async def found(query: str) -> set[str]:
        answer = await admin.get(f"/computers?{query}")
        assert answer.status_code == 200, answer.text
        return {item["id"] for item in answer.json()["items"]}

    assert await found("") == {first, second, third}
    assert await found("name=WS-1") == {first}
    assert await found("name=ws") == set()
    assert await found("q=WS-") == {first, second}
    assert await found(f"q={third}") == {third}
    assert await found("label=site") == {first, second}
    assert await found("label=site%3Doslo&label=floor") == {first}
    assert await found("label=site%3Doslo&label=floor%3D3") == set()
    assert await found("external_id=42") == {first}
    assert await found("connected=true") == {second}
    assert await found("connected=false&status=enrolled") == {first}
    assert await found("status=decommissioned") == {third}
    refused = await admin.get("/computers?group_id=x")
    assert (refused.status_code, "not available yet" in refused.text) == (422, True)


async def test_two_of_one_name_are_told_apart(admin: httpx.AsyncClient, agents: Any) -> None:
    """Names are not unique; ids are, and people can rename one."""
    twins = [await agents.enrolled("twin", agents.machine("twin", machine_id=number)) for number in "12"]
    assert {item["id"] for item in (await admin.get("/computers?name=twin")).json()["items"]} == set(twins)
    await admin.patch(f"/computers/{twins[1]}", json={"name": "twin-2"}, headers={"If-Match": "*"})
    assert [item["id"] for item in (await admin.get("/computers?name=twin")).json()["items"]] == [twins[0]]


async def test_users_are_as_the_computer_reported_them(house: TestHouse, admin: httpx.AsyncClient, agents: Any) -> None:
    """By name, in pages."""
    machine = agents.machine()
    computer_id = await agents.enrolled(machine=machine)
    assert (await admin.get(f"/computers/{computer_id}/users")).json() == {"items": [], "next_cursor": None}
    users = [wire.ComputerUser(name=name, uid=uid) for name, uid in (("carol", 1), ("alice", 2), ("bob", 3))]
    await house.takes(computer_id, "health", machine.health(computer_id, house.clock(), users=users))
    page = (await admin.get(f"/computers/{computer_id}/users?limit=2")).json()
    assert page["items"] == [{"name": "alice", "uid": 2}, {"name": "bob", "uid": 3}]
    rest = await admin.get(f"/computers/{computer_id}/users", params={"cursor": page["next_cursor"]})
    assert rest.json() == {"items": [{"name": "carol", "uid": 1}], "next_cursor": None}


async def test_who_may(house: TestHouse, agents: Any) -> None:
    """Administrators write; approvers and auditors read; requesters see no computers; strangers find nothing."""
    computer_id = await agents.enrolled()
    url = f"/computers/{computer_id}"
    for role, reads in (("approver", 200), ("auditor", 200), ("requester", 403)):
        async with house.client(person("Bea", role)) as caller:
            for path in ("/computers", url, f"{url}/users", "/enrolment-tokens"):
                assert (await caller.get(path)).status_code == reads
            for answer in (
                await caller.patch(url, json={"name": "n"}, headers={"If-Match": "*"}),
                await caller.delete(url, headers={"If-Match": "*"}),
                await caller.post("/enrolment-tokens", json={"name": "t"}),
                await caller.post("/computers/enrol", json={}),
                await caller.post(f"{url}/credentials", json={}),
            ):
                assert (answer.status_code, answer.json()["type"]) == (403, "/problems/not-permitted")
    async with house.client() as admin:
        for strange in (new_id(house.clock()), "enrol", "%00"):
            assert (await admin.get(f"/computers/{strange}")).status_code == 404
            assert (await admin.get(f"/computers/{strange}/users")).status_code == 404
