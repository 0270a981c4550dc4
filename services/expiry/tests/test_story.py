"""The life of a grant, from the deploy of a policy or the approval of a request to the computer's last word."""

from typing import Any

from sojourn_shared.ids import new_id


async def test_the_schema_is_the_one_in_code(yard: Any) -> None:
    """A table changed in code without a migration is noticed here."""
    assert await yard.house.schema_differences() == []


async def test_a_deployed_policy_reaches_the_computer(yard: Any) -> None:
    """Assignment, grant, document, confirmation: in force on both sides, and said in order."""
    pc = await yard.enrol()
    assert await yard.granted(pc) == {}
    await yard.assign(pc)
    (grant,) = await yard.grants()
    assert (grant["status"], grant["delivery"], grant["in_force"]) == ("active", "pending", True)
    (on_wire,) = (await yard.granted(pc)).values()
    assert (on_wire.id, on_wire.until) == (grant["id"], yard.after(minutes=60))
    document = await yard.document(pc)
    applied = [{"id": grant["id"], "applied": True}]
    await yard.reports(pc, "applied", epoch=1, version=document.version, grants=applied)
    assert (await yard.grant(grant["id"]))["delivery"] == "applied"
    assert await yard.changes() == ["agent.connected", "grant.activated", "grant.applied"]


async def test_a_revoke_is_confirmed_by_the_computer(yard: Any) -> None:
    """Revoked at once on the server; `ending` until the computer says that nothing of it is left."""
    pc = await yard.enrol()
    await yard.assign(pc)
    (grant,) = await yard.grants()
    run = await yard.starts(pc, grant["id"], until=yard.after(minutes=60))
    async with yard.house.client() as admin:
        answer = await admin.post(f"/grants/{grant['id']}/revoke", json={"reason": "wrong computer"})
    assert answer.status_code == 200
    assert (answer.json()["status"], answer.json()["delivery"]) == ("revoked", "ending")
    assert (await yard.granted(pc))[grant["id"]].revoked.reason == "wrong computer"
    end = {
        "run_id": run,
        "processes_ended": [{"pid": 4711, "name": "sleep"}],
        "kill_ms": 3,
        "at": "2026-11-02T09:00:01Z",
    }
    await yard.reports(pc, "ended", grant_id=grant["id"], cause="revoked", runs=[end])
    after = await yard.grant(grant["id"])
    assert (after["delivery"], after["in_force"], after["uses"]) == ("ended", False, 1)
    async with yard.house.client() as admin:
        (elevation,) = (await admin.get("/elevations", params={"grant_id": grant["id"]})).json()["items"]
    assert (elevation["cause"], elevation["processes_ended"]) == ("revoked", [{"pid": 4711, "name": "sleep"}])
    assert await yard.changes() == [
        "grant.activated",
        "elevation.started",
        "grant.revoked",
        "agent.connected",
        "elevation.ended",
        "grant.ended",
    ]


async def test_an_approved_request_starts_its_clock_at_first_use(yard: Any) -> None:
    """Ready costs no minute; the first run makes it active, and the document then carries the end."""
    pc = await yard.enrol()
    grant_id = await yard.approve(pc, minutes=10)
    assert (await yard.grant(grant_id))["status"] == "ready"
    yard.pass_time(hours=2)
    assert (await yard.granted(pc))[grant_id].until is None
    await yard.starts(pc, grant_id, until=yard.after(minutes=10))
    grant = await yard.grant(grant_id)
    assert (grant["status"], grant["uses"]) == ("active", 1)
    assert (await yard.granted(pc))[grant_id].until == yard.after(minutes=10)


async def test_an_unknown_grant_is_ended_without_harm(yard: Any) -> None:
    """A computer may know more than a restored database: its word is recorded."""
    pc = await yard.enrol()
    await yard.reports(pc, "ended", grant_id=new_id(yard.now), cause="expired", runs=[])
    assert await yard.changes() == []
