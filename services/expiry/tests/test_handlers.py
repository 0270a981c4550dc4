"""What other services say becomes grants: once, in any order, and with what it replaces in the same document."""

from datetime import timedelta
from typing import Any

import pytest

from sojourn_shared.clock import rfc3339
from sojourn_shared.ids import new_id
from sojourn_shared.service import Park


async def test_an_assignment_opens_one_grant_per_version(yard: Any) -> None:
    """The event again, and the same assignment in another event, open nothing more; one that was revoked neither."""
    pc = await yard.enrol()
    event = await yard.assign(pc)
    (grant,) = await yard.grants()
    entity = event.data.entity
    await yard.house.hears("assignments.changed", entity, service="policy", id=event.subject, event_id=event.id)
    await yard.house.hears("assignments.changed", entity, service="policy", id=event.subject)
    async with yard.house.client() as admin:
        await admin.post(f"/grants/{grant['id']}/revoke", json={"reason": "no"})
    await yard.house.hears("assignments.changed", entity, service="policy", id=event.subject)
    assert [one["id"] for one in await yard.grants()] == [grant["id"]]


async def test_a_new_revision_supersedes_in_the_same_document(yard: Any) -> None:
    """The old grant is revoked as superseded, the new one stands beside it: runs can move."""
    pc = await yard.enrol()
    first = await yard.assign(pc)
    (old,) = await yard.grants()
    assigned = [first.data.entity["assignments"][0]["id"]]
    await yard.assign(pc, policy_id=first.subject, assignment_ids=assigned, version=2, revision=2)
    (new,) = [grant for grant in await yard.grants() if grant["id"] != old["id"]]
    written = await yard.granted(pc)
    assert set(written) == {old["id"], new["id"]}
    assert (written[old["id"]].revoked.superseded, written[old["id"]].rules) == (True, [])
    assert written[new["id"]].revoked is None
    assert new["revision"] == 2


async def test_a_withdrawal_ends_every_grant_of_it(yard: Any) -> None:
    """On all computers of the page; not superseded, so no run moves. An older page afterwards revives nothing."""
    pcs = [await yard.enrol(f"pc-{number}") for number in range(3)]
    first = await yard.assign(*pcs)
    assigned = [one["id"] for one in first.data.entity["assignments"]]
    await yard.assign(*pcs, policy_id=first.subject, assignment_ids=assigned, version=2, state="absent")
    await yard.house.hears("assignments.changed", first.data.entity, service="policy", id=first.subject)
    grants = await yard.grants(policy_id=first.subject)
    assert {(grant["status"], grant["revoked"]["reason"], grant["revoked"]["by_name"]) for grant in grants} == {
        ("revoked", "withdrawn", "Ada")
    }
    (written,) = (await yard.granted(pcs[0])).values()
    assert not written.revoked.superseded


async def test_an_absence_heard_first_opens_nothing_later(yard: Any) -> None:
    """Version 2 absent before version 1 present: the newer word stands."""
    pc, assigned = await yard.enrol(), [new_id(yard.now)]
    await yard.assign(pc, assignment_ids=assigned, version=2, state="absent")
    await yard.assign(pc, assignment_ids=assigned, version=1)
    assert await yard.grants() == []


async def test_a_grant_may_come_before_its_computer(yard: Any) -> None:
    """Events of one service may overtake each other when one is retried: the first document then holds the grant."""
    pc = yard.stranger()
    await yard.assign(pc)
    await yard.enrol(computer=pc)
    assert len(await yard.granted(pc)) == 1


async def test_what_is_over_at_its_deploy_opens_nothing(yard: Any) -> None:
    """A computer that joins after a fixed time ran out gets nothing; one that joins before gets what is left."""
    pc = await yard.enrol()
    deployed = yard.after(minutes=-45)
    await yard.assign(pc, deployed_at=deployed, duration={"type": "fixed", "minutes": 45})
    await yard.assign(pc, deployed_at=deployed, duration={"type": "fixed", "minutes": 60})
    (grant,) = await yard.grants()
    assert (grant["from"], grant["until"]) == (rfc3339(deployed), rfc3339(yard.after(minutes=15)))


async def test_a_request_is_granted_once_and_only_when_approved(yard: Any) -> None:
    """The approval again, and any state that is none, open nothing."""
    pc = await yard.enrol()
    grant_id = await yard.approve(pc)
    await yard.approve(pc, grant_id=grant_id)
    await yard.approve(pc, status="pending", decision=None)
    await yard.approve(pc, status="declined")
    assert [grant["id"] for grant in await yard.grants()] == [grant_id]
    assert await yard.changes("grant.ready") == ["grant.ready"]


async def test_an_approval_without_what_makes_a_grant_is_parked(yard: Any) -> None:
    """It can never become one, and must not block those behind it."""
    pc = await yard.enrol()
    with pytest.raises(Park, match="no decision"):
        await yard.approve(pc, decision=None)
    with pytest.raises(Park, match="duration_minutes"):
        await yard.approve(pc, duration_minutes="an hour")


async def test_a_decommissioned_computer_loses_everything(yard: Any) -> None:
    """Every grant is revoked, nobody will confirm it; its last document says so; a later approval is refused."""
    pc = await yard.enrol()
    await yard.assign(pc)
    one, two = (await yard.grants())[0]["id"], await yard.approve(pc)
    async with yard.house.client() as admin:
        await admin.post(f"/grants/{two}/revoke", json={"reason": "no"})
    await yard.say_computer(pc, version=2, status="decommissioned")
    for grant_id in (one, two):
        grant = await yard.grant(grant_id)
        assert (grant["status"], grant["delivery"]) == ("revoked", "unconfirmed")
    written = await yard.granted(pc)
    assert {grant_id: grant.revoked is not None for grant_id, grant in written.items()} == {one: True, two: True}
    late = await yard.grant(await yard.approve(pc))
    assert (late["status"], late["delivery"], late["failure"]) == ("revoked", "failed", "decommissioned")
    assert late["id"] not in await yard.granted(pc)
    assert (await yard.house.events("grant.revoked"))[-1].data.entity["revoked"]["reason"] == "decommissioned"


async def test_what_a_document_has_no_room_for_is_opened_as_revoked(yard: Any) -> None:
    """The newest give way, whoever waits hears why, and revoking makes room again."""
    pc = await yard.enrol()
    rules = [{"type": "folder_path", "path": f"/opt/{'x' * 900}/{number}"} for number in range(85)]
    for _ in range(3):
        await yard.assign(pc, rules=rules)
        yard.pass_time(seconds=1)
    grants = sorted(await yard.grants(), key=lambda grant: grant["created_at"] + grant["id"])
    assert [grant["status"] for grant in grants] == ["active", "active", "revoked"]
    assert (grants[2]["failure"], grants[2]["delivery"]) == ("document_full", "failed")
    written = await yard.granted(pc)
    assert set(written) == {grants[0]["id"], grants[1]["id"]}
    async with yard.house.client() as admin:
        await admin.post(f"/grants/{grants[0]['id']}/revoke", json={"reason": "x" * 2000})
    await yard.assign(pc, rules=rules)
    assert len([grant for grant in (await yard.granted(pc)).values() if grant.revoked is None]) == 2


async def test_settings_reach_every_document(yard: Any) -> None:
    """What a person is told before asking, and how long a document holds; until heard, the defaults."""
    pc = await yard.enrol()
    await yard.documents()
    before = await yard.document(pc)
    assert (before.asking.longest_minutes, before.valid_until - before.issued_at) == (480, timedelta(hours=168))
    said = {"id": "requests", "version": 3, "longest_minutes": 60, "max_offline_hours": 24, "ticket": "required"}
    await yard.house.hears("settings.changed", said, service="requests", id="requests")
    other = {"id": "autonomous-approval", "version": 4, "enabled": True}
    await yard.house.hears("settings.changed", other, service="requests", id="autonomous-approval")
    assert await yard.documents() == 1
    after = await yard.document(pc)
    assert (after.asking.longest_minutes, after.asking.ticket) == (60, "required")
    assert after.valid_until - after.issued_at == timedelta(hours=24)


async def test_uses_count_over_all_revisions_of_a_policy(yard: Any) -> None:
    """`uses_before` is what other grants of the policy had on this computer; a late report of a use adds to it."""
    pc = await yard.enrol()
    first = await yard.assign(pc, max_uses=3)
    (old,) = await yard.grants()
    await yard.starts(pc, old["id"])
    assigned = [first.data.entity["assignments"][0]["id"]]
    await yard.assign(pc, policy_id=first.subject, assignment_ids=assigned, version=2, revision=2, max_uses=3)
    (new,) = [grant for grant in await yard.grants() if grant["id"] != old["id"]]
    assert (await yard.granted(pc))[new["id"]].uses_before == 1
    await yard.starts(pc, old["id"])
    assert (await yard.granted(pc))[new["id"]].uses_before == 2
