"""Wishes by HTTP: who sees what, who may take what away, and what is answered when it was taken already."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import text

from sojourn_expiry.store import Tx
from sojourn_expiry.store import grants as store
from sojourn_shared.clock import rfc3339
from sojourn_shared.contracts import wire
from sojourn_shared.ids import new_id
from sojourn_shared.service import Caller
from sojourn_shared.service.testing import person

ALICE = person("Alice", "requester", os_users=("alice",))
BOB = person("Bob", "requester", os_users=("bob",))
NOBODY = person("Nemo", "requester", os_users=None)
CAROL = person("Carol", "approver")
DAVE = person("Dave", "auditor")


async def ask(yard: Any, caller: Caller | None, method: str, path: str, **options: Any) -> Any:
    async with yard.house.client(caller) as client:
        return await client.request(method, path, **options)


async def test_a_requester_sees_what_names_them_or_everybody(yard: Any) -> None:
    """Others' grants and runs do not exist for them, by list or by id; without OS users nothing does."""
    pc = await yard.enrol()
    hers, for_all = await yard.approve(pc), await yard.assign(pc, users={"all": True})
    run = await yard.starts(pc, hers)
    assert for_all is not None
    seen = {
        caller.name: len((await ask(yard, caller, "GET", "/grants")).json()["items"])
        for caller in (ALICE, BOB, NOBODY, CAROL, DAVE)
    }
    assert seen == {"Alice": 2, "Bob": 1, "Nemo": 0, "Carol": 2, "Dave": 2}
    for path in (f"/grants/{hers}", f"/elevations/{run}"):
        assert (await ask(yard, ALICE, "GET", path)).status_code == 200
        assert (await ask(yard, BOB, "GET", path)).status_code == 404
    assert len((await ask(yard, ALICE, "GET", "/elevations")).json()["items"]) == 1
    assert (await ask(yard, BOB, "GET", "/elevations")).json()["items"] == []


async def test_who_may_revoke(yard: Any) -> None:
    """Administrators and approvers; an approver who is limited to computer groups sees no other computer's."""
    pc = await yard.enrol()
    grant_id = await yard.approve(pc)
    limited = Caller(id=CAROL.id, kind="account", name="L", roles=CAROL.roles, computer_group_ids=(new_id(yard.now),))
    statuses = [
        (await ask(yard, caller, "POST", f"/grants/{grant_id}/revoke", json={"reason": "no"})).status_code
        for caller in (ALICE, DAVE, limited, None, CAROL)
    ]
    assert statuses == [403, 403, 404, 401, 200]
    assert (await yard.grant(grant_id))["revoked"]["by_name"] == "Carol"


async def test_a_repeated_revoke_answers_what_is(yard: Any) -> None:
    """By anybody, with another reason, and after the end: 200, and the first one's name stays."""
    pc = await yard.enrol()
    grant_id = await yard.approve(pc)
    path = f"/grants/{grant_id}/revoke"
    first = (await ask(yard, CAROL, "POST", path, json={"reason": "no", "grace_seconds": 30})).json()
    again = await ask(yard, person("Eve", "administrator"), "POST", path, json={"reason": "really"})
    assert (again.status_code, again.json()) == (200, first)
    assert (first["revoked"]["grace_seconds"], first["revoked"]["reason"]) == (30, "no")
    assert await yard.changes("grant.revoked") == ["grant.revoked"]
    assert (await ask(yard, CAROL, "POST", path, json={"reason": ""})).status_code == 422
    unknown = f"/grants/{new_id(yard.now)}/revoke"
    assert (await ask(yard, CAROL, "POST", unknown, json={"reason": "no"})).status_code == 404


async def test_a_person_gives_back_what_is_theirs_alone(yard: Any) -> None:
    """The holder, once; not another person, not what others hold too, not an administrator for them."""
    pc = await yard.enrol()
    hers = await yard.approve(pc)
    await yard.assign(pc, users={"names": ["alice", "bob"]})
    (shared,) = [grant["id"] for grant in await yard.grants() if grant["id"] != hers]
    assert (await ask(yard, BOB, "POST", f"/grants/{hers}/return")).status_code == 404
    assert (await ask(yard, ALICE, "POST", f"/grants/{shared}/return")).status_code == 403
    async with yard.house.client() as admin:
        assert (await admin.post(f"/grants/{hers}/return")).status_code == 403
    back = await ask(yard, ALICE, "POST", f"/grants/{hers}/return")
    assert (back.status_code, back.json()["status"], back.json()["delivery"]) == (200, "revoked", "ending")
    assert (await ask(yard, ALICE, "POST", f"/grants/{hers}/return")).json() == back.json()
    assert await yard.changes("grant.returned") == ["grant.returned"]


async def test_lists_are_filtered(yard: Any) -> None:
    """By state, delivery, computer, person, policy, request, and whether it is in force."""
    pc, other = await yard.enrol("pc-1"), await yard.enrol("pc-2")
    event = await yard.assign(other, users={"names": ["bob"]})
    grant_id = await yard.approve(pc)
    request_id = (await yard.grant(grant_id))["request_id"]
    await ask(yard, CAROL, "POST", f"/grants/{grant_id}/revoke", json={"reason": "no"})
    ours = {"status": "revoked", "delivery": "ending", "computer_id": pc.id, "user": "alice", "request_id": request_id}
    for name, value in ours.items():
        assert [grant["id"] for grant in await yard.grants(**{name: value})] == [grant_id], name
    assert [grant["computer_id"] for grant in await yard.grants(policy_id=event.subject)] == [other.id]
    assert len(await yard.grants(in_force=True)) == 2
    assert len(await yard.grants(status=["revoked", "active"])) == 2
    assert await yard.grants(in_force=False) == []
    assert (await ask(yard, CAROL, "GET", "/grants?status=alive")).status_code == 422
    assert (await yard.grants(computer_id=pc.id))[0]["computer_name"] == "pc-1"


async def test_pages_and_changes_lose_nothing(yard: Any) -> None:
    """Walking by cursor sees each grant once; `updated_after` shows what changed, oldest change first."""
    pc = await yard.enrol()
    ids = set()
    for _ in range(5):
        ids.add(await yard.approve(pc))
        yard.pass_time(seconds=1)
    async with yard.house.client() as admin:
        seen, cursor = [], None
        while True:
            page = (await admin.get("/grants", params={"limit": 2} | ({"cursor": cursor} if cursor else {}))).json()
            seen += [grant["id"] for grant in page["items"]]
            if not (cursor := page["next_cursor"]):
                break
        since = rfc3339(yard.now)
        yard.pass_time(seconds=1)
        await admin.post(f"/grants/{seen[3]}/revoke", json={"reason": "no"})
        changed = (await admin.get("/grants", params={"updated_after": since})).json()["items"]
    assert (len(seen), set(seen)) == (5, ids)
    assert changed == [] or [grant["id"] for grant in changed] == [seen[3]]


async def test_a_computers_state(yard: Any) -> None:
    """What it should hold, what it confirmed, whether it is heard, what is in force and what runs."""
    pc = await yard.enrol()
    grant_id = await yard.approve(pc)
    run = await yard.starts(pc, grant_id)
    await yard.documents()
    await yard.beat(pc)
    state = (await ask(yard, DAVE, "GET", f"/computers/{pc.id}/state")).json()
    assert state["desired_version"] > state["applied_version"] == 0
    assert (state["connected"], state["last_seen_at"]) == (True, rfc3339(yard.now))
    assert [grant["id"] for grant in state["grants"]] == [grant_id]
    assert [one["id"] for one in state["running"]] == [run]
    assert (await ask(yard, ALICE, "GET", f"/computers/{pc.id}/state")).status_code == 403
    assert (await ask(yard, DAVE, "GET", f"/computers/{new_id(yard.now)}/state")).status_code == 404


COMPUTER = Caller(id="agent", kind="computer", name="agent", roles=frozenset())


async def fetch(yard: Any, pc: Any, body: dict[str, Any]) -> Any:
    return await ask(yard, COMPUTER, "POST", f"/computers/{pc.id}/document", json=body)


async def test_a_document_over_https_needs_the_keepers_proof(yard: Any) -> None:
    """A nonce first; the keeper's signature over it opens the door once, for its own computer."""
    pc, other = await yard.enrol("pc-1"), await yard.enrol("pc-2")
    await yard.documents()

    async def proof(keeper: Any, nonce: str | None = None) -> dict[str, str]:
        nonce = nonce or (await fetch(yard, pc, {})).json()["nonce"]
        renewal = wire.Renewal(computer_id=pc.id, link_public_key="U", nonce=nonce)
        return {"renewal": keeper.sign(wire.encode(renewal), "sojourn-renew")}

    asked = await fetch(yard, pc, {})
    assert (asked.status_code, asked.json()["type"]) == (401, "/problems/unauthenticated")
    good = await proof(pc.keeper, asked.json()["nonce"])
    answer = await fetch(yard, pc, good)
    assert answer.status_code == 200
    assert yard.read(answer.json()["document"]).computer_id == pc.id
    assert answer.json()["keys"] == yard.key_set
    assert (await fetch(yard, pc, good)).status_code == 401
    assert (await fetch(yard, pc, await proof(other.keeper))).status_code == 401
    assert (await fetch(yard, pc, await proof(pc.keeper, "nonsense"))).status_code == 401
    await yard.say_computer(pc, version=2, status="decommissioned")
    assert (await fetch(yard, pc, await proof(pc.keeper))).status_code == 200
    assert (await ask(yard, ALICE, "POST", f"/computers/{pc.id}/document", json={})).status_code == 403


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/grant-revocations"), ("POST", "/simulations"), ("GET", "/policies/p/deployment")]
)
async def test_what_comes_later_is_absent(yard: Any, method: str, path: str) -> None:
    """404, and not in the OpenAPI document."""
    assert (await ask(yard, CAROL, method, path)).status_code == 404
    assert f"/api/v1{path}" not in yard.house.app.openapi()["paths"]


async def test_every_route_answers_401_without_the_gateways_token(yard: Any) -> None:
    """All of them, whatever is sent."""
    for path, methods in yard.house.app.openapi()["paths"].items():
        for method in methods:
            answer = await ask(yard, None, method, path.removeprefix("/api/v1").replace("{", "").replace("}", ""))
            assert answer.status_code == 401, (method, path)


# --- races ------------------------------------------------------------------------------------------------------------


async def race(yard: Any, grant_id: str, *acts: Any) -> list[Any]:
    """Hold the grant's row until all acts wait for it, then let them go."""
    async with Tx.begin(yard.house.house) as tx:
        await store.lock(tx, [grant_id])
        running = [asyncio.ensure_future(act) for act in acts]
        async with asyncio.timeout(10):
            while True:
                async with yard.house.house.database.begin() as connection:
                    waiting = await connection.execute(
                        text(
                            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
                            "AND datname = current_database()"
                        )
                    )
                if waiting.scalar_one() == len(acts):
                    break
                await asyncio.sleep(0.01)
    return list(await asyncio.gather(*running))


async def test_a_revoke_races_with_the_first_use(yard: Any) -> None:
    """Whoever is first, the grant is revoked, its document says so, and the run's use is counted."""
    pc = await yard.enrol()
    for turn in range(2):
        grant_id = await yard.approve(pc)
        revoke = ask(yard, CAROL, "POST", f"/grants/{grant_id}/revoke", json={"reason": "no"})
        use = yard.starts(pc, grant_id)
        acts = (revoke, use) if turn else (use, revoke)
        await race(yard, grant_id, *acts)
        grant = await yard.grant(grant_id)
        assert (grant["status"], grant["delivery"], grant["uses"]) == ("revoked", "ending", 1)
        assert (await yard.granted(pc))[grant_id].revoked is not None


async def test_a_revoke_races_with_the_confirmation(yard: Any) -> None:
    """A late *applied* never covers an end that is not confirmed."""
    pc = await yard.enrol()
    grant_id = await yard.approve(pc)
    revoke = ask(yard, CAROL, "POST", f"/grants/{grant_id}/revoke", json={"reason": "no"})
    applied = yard.reports(pc, "applied", epoch=1, version=1, grants=[{"id": grant_id, "applied": True}])
    await race(yard, grant_id, revoke, applied)
    grant = await yard.grant(grant_id)
    assert (grant["status"], grant["delivery"]) == ("revoked", "ending")


async def test_two_revokes_race_and_one_is_told(yard: Any) -> None:
    """Both are answered 200 with the same grant; one event names the one who was first."""
    pc = await yard.enrol()
    grant_id = await yard.approve(pc)
    path = f"/grants/{grant_id}/revoke"
    both = await race(
        yard,
        grant_id,
        ask(yard, CAROL, "POST", path, json={"reason": "one"}),
        ask(yard, person("Eve", "administrator"), "POST", path, json={"reason": "two"}),
    )
    assert [answer.status_code for answer in both] == [200, 200]
    assert both[0].json() == both[1].json()
    assert await yard.changes("grant.revoked") == ["grant.revoked"]
