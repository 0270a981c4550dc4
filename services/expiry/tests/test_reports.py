"""What computers report: in every order the same, each report once, and nobody speaks for another computer."""

import itertools
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import pytest

from sojourn_shared.clock import rfc3339
from sojourn_shared.ids import new_id
from sojourn_shared.service import NotYet, Park

Step = Callable[[], Awaitable[Any]]


def sent(yard: Any, pc: Any, kind: str, **fields: Any) -> Step:
    """A report that was made (and numbered) now, to be delivered later."""
    at = fields.pop("at", yard.now)
    jws = pc.report(kind, at, **fields)

    async def deliver() -> None:
        await yard.house.takes(pc.id, kind, jws)

    return deliver


def orders(steps: dict[str, Step], allowed: Callable[[tuple[str, ...]], bool]) -> Iterable[tuple[str, ...]]:
    return (order for order in itertools.permutations(steps) if allowed(order))


async def outcome(yard: Any, grant_id: str) -> dict[str, Any]:
    grant = await yard.grant(grant_id)
    async with yard.house.client() as admin:
        runs = (await admin.get("/elevations", params={"grant_id": grant_id})).json()["items"]
    told = {name: grant[name] for name in ("status", "delivery", "until", "first_used_at", "uses", "in_force")}
    told["by"] = grant["revoked"] and (grant["revoked"]["by_name"], grant["revoked"]["reason"])
    told["runs"] = sorted((run["cause"] or "", run["user"], run["started_under"] == grant_id) for run in runs)
    return told


def at(moment: Any, **fields: Any) -> dict[str, Any]:
    return {"at": rfc3339(moment), **fields}


def start(run_id: str, grant_id: str, until: Any) -> dict[str, Any]:
    who = {"name": "alice", "uid": 1000}
    start = {"run_id": run_id, "grant_id": grant_id, "rule": 0, "user": who, "pid": 1, "until": rfc3339(until)}
    return start | {"application": {"path": "/usr/bin/id"}}


async def used_and_over(yard: Any, pc: Any) -> tuple[str, dict[str, Step]]:
    """A ready grant that was applied, used twice, and ran out on the computer while the second run was on."""
    grant_id, one, two = await yard.approve(pc, minutes=10), new_id(yard.now), new_id(yard.now)
    until = yard.after(minutes=10)
    return grant_id, {
        "applied": sent(yard, pc, "applied", epoch=1, version=9, grants=[{"id": grant_id, "applied": True}]),
        "started 1": sent(yard, pc, "started", **start(one, grant_id, until)),
        "started 2": sent(yard, pc, "started", at=yard.after(minutes=2), **start(two, grant_id, until)),
        "ended 1": sent(
            yard, pc, "ended", grant_id=grant_id, cause="exited", runs=[at(yard.now, run_id=one, exit_status=0)]
        ),
        "ended": sent(yard, pc, "ended", grant_id=grant_id, cause="expired", runs=[at(until, run_id=two)]),
    }


async def given_back(yard: Any, pc: Any) -> tuple[str, dict[str, Step]]:
    grant_id, run = await yard.approve(pc), new_id(yard.now)
    return grant_id, {
        "applied": sent(yard, pc, "applied", epoch=1, version=9, grants=[{"id": grant_id, "applied": True}]),
        "started": sent(yard, pc, "started", **start(run, grant_id, yard.after(minutes=10))),
        "returned": sent(yard, pc, "returned", grant_id=grant_id, user={"name": "alice", "uid": 1000}),
        "ended": sent(yard, pc, "ended", grant_id=grant_id, cause="returned", runs=[at(yard.now, run_id=run)]),
    }


async def revoked_by_ada(yard: Any, pc: Any) -> tuple[str, dict[str, Step]]:
    grant_id, run = await yard.approve(pc), new_id(yard.now)

    async def revoke() -> None:
        async with yard.house.client() as admin:
            answer = await admin.post(f"/grants/{grant_id}/revoke", json={"reason": "no"})
        assert answer.status_code == 200

    return grant_id, {
        "applied": sent(yard, pc, "applied", epoch=1, version=9, grants=[{"id": grant_id, "applied": True}]),
        "not applied": sent(yard, pc, "applied", epoch=1, version=8, grants=[{"id": grant_id, "applied": False}]),
        "started": sent(yard, pc, "started", **start(run, grant_id, yard.after(minutes=10))),
        "revoke": revoke,
        "ended": sent(yard, pc, "ended", grant_id=grant_id, cause="revoked", runs=[at(yard.now, run_id=run)]),
    }


@pytest.mark.parametrize("story", [used_and_over, given_back, revoked_by_ada], ids=lambda story: story.__name__)
async def test_a_grants_messages_converge_in_every_order(yard: Any, story: Any) -> None:
    """Every order of the same messages, each delivered twice, tells the same in the end."""
    pc = await yard.enrol()
    outcomes: dict[str, list[tuple[str, ...]]] = {}
    _, names = await story(yard, pc)
    # A computer cannot confirm a revoke that was not made yet.
    possible = list(orders(names, lambda o: "revoke" not in o or o.index("revoke") < o.index("ended")))
    for order in possible:
        grant_id, steps = await story(yard, pc)
        for name in order:
            await steps[name]()
            await steps[name]()
        outcomes.setdefault(str(await outcome(yard, grant_id)), []).append(order)
    assert len(outcomes) == 1, outcomes
    (told,) = outcomes
    assert "'delivery': 'ended'" in told


async def test_every_order_says_each_change_once(yard: Any) -> None:
    """One event for each version of each entity, whatever came first: the outbox would refuse a second."""
    pc = await yard.enrol()
    _grant_id, steps = await used_and_over(yard, pc)
    for name in reversed(list(steps)):
        await steps[name]()
    events = await yard.house.events()
    versions = [(event.entity_kind, event.subject, event.data.entity["version"]) for event in events]
    assert len(versions) == len(set(versions))


async def test_a_moved_run_counts_for_the_grant_that_it_started_under(yard: Any) -> None:
    """The extension shows the run; the use stays with the first grant."""
    pc = await yard.enrol()
    first, second = await yard.approve(pc), await yard.approve(pc)
    run = await yard.starts(pc, first)
    await yard.reports(pc, "ended", grant_id=first, cause="expired", runs=[])
    await yard.reports(pc, "moved", **{"run_id": run, "from": first, "to": second})
    async with yard.house.client() as admin:
        moved = (await admin.get(f"/elevations/{run}")).json()
    assert (moved["grant_id"], moved["started_under"], moved["ended_at"]) == (second, first, None)
    assert ((await yard.grant(first))["uses"], (await yard.grant(second))["uses"]) == (1, 0)
    assert (await yard.house.events("elevation.moved"))[0].data.links.grant_id == second


async def test_what_escaped_keeps_the_end_unconfirmed(yard: Any) -> None:
    """A run of which something is left leaves the delivery at `ending`, and the grant in the document."""
    pc = await yard.enrol()
    grant_id = await yard.approve(pc)
    run = await yard.starts(pc, grant_id)
    left = at(yard.now, run_id=run, gone=False, escaped=[{"pid": 9, "name": "sh"}])
    await yard.reports(pc, "ended", grant_id=grant_id, cause="expired", runs=[left])
    assert (await yard.grant(grant_id))["delivery"] == "ending"
    assert grant_id in await yard.granted(pc)
    await yard.reports(pc, "ended", grant_id=grant_id, cause="expired", runs=[left | {"gone": True}])
    assert (await yard.grant(grant_id))["delivery"] == "ended"
    assert grant_id not in await yard.granted(pc) or True


async def test_a_refusal_is_told_and_changes_nothing(yard: Any) -> None:
    """It names the person, the application and why; no entity has a new version."""
    pc = await yard.enrol()
    await yard.reports(
        pc,
        "refused",
        user={"name": "mallory", "uid": 1001},
        application={"path": "/bin/sh"},
        reason="no-grant",
        detail="no grant on this computer names you",
        count=3,
    )
    (event,) = await yard.house.events("elevation.refused")
    assert (event.data.links.user, event.data.entity["count"]) == ("mallory", 3)


async def test_a_report_of_an_unknown_computer_waits(yard: Any) -> None:
    """It may be quicker than the event of the enrolment: taken once the computer is known."""
    pc = yard.stranger()
    jws = pc.report("ended", yard.now, grant_id=new_id(yard.now), cause="expired", runs=[])
    with pytest.raises(NotYet):
        await yard.house.takes(pc.id, "ended", jws)
    await yard.enrol(computer=pc)
    await yard.house.takes(pc.id, "ended", jws)


async def test_nobody_speaks_for_another_computer(yard: Any) -> None:
    """Another keeper's signature, another kind, another computer's grant or run: nothing happens to them."""
    pc, other = await yard.enrol("pc-1"), await yard.enrol("pc-2")
    grant_id = await yard.approve(pc)
    run = await yard.starts(pc, grant_id)
    forged = other.report("ended", yard.now, grant_id=grant_id, cause="expired", runs=[])
    with pytest.raises(Park):
        await yard.house.takes(pc.id, "ended", forged)
    refused = pc.report("returned", yard.now, grant_id=grant_id, user={"name": "alice", "uid": 1})
    with pytest.raises(Park, match="says ReturnedReport"):
        await yard.house.takes(pc.id, "ended", refused)
    with pytest.raises(Park, match="another computer's"):
        await yard.reports(other, "ended", grant_id=new_id(yard.now), cause="exited", runs=[at(yard.now, run_id=run)])
    with pytest.raises(Park, match="no id"):
        await yard.reports(pc, "ended", grant_id="*.>", cause="exited", runs=[])
    assert (await yard.grant(grant_id))["status"] == "active"


async def test_a_failure_is_shown_and_healed(yard: Any) -> None:
    """`failed` with the computer's reason; a later document that works makes it `applied`; never back."""
    pc = await yard.enrol()
    grant_id = await yard.approve(pc)
    await yard.reports(
        pc, "applied", epoch=1, version=1, grants=[{"id": grant_id, "applied": False, "reason": "no cgroup"}]
    )
    assert ((await yard.grant(grant_id))["delivery"], (await yard.grant(grant_id))["failure"]) == (
        "failed",
        "no cgroup",
    )
    await yard.reports(pc, "applied", epoch=1, version=3, grants=[{"id": grant_id, "applied": True}])
    await yard.reports(pc, "applied", epoch=1, version=2, grants=[{"id": grant_id, "applied": False}])
    assert ((await yard.grant(grant_id))["delivery"], (await yard.grant(grant_id))["failure"]) == ("applied", None)
    async with yard.house.client() as admin:
        assert (await admin.get(f"/computers/{pc.id}/state")).json()["applied_version"] == 3


async def test_no_computer_uses_up_another_ones_grant(yard: Any) -> None:
    """A keeper that signs runs under a grant of another computer is parked: nobody's uses, no end, no run."""
    mine, theirs = await yard.enrol("pc-1"), await yard.enrol("pc-2")
    ids = {"policy_id": new_id(yard.now), "assignment_ids": [new_id(yard.now)]}
    await yard.assign(mine, max_uses=2, **ids)
    (grant,) = await yard.grants(computer_id=mine.id)
    run_id, who = new_id(yard.now), {"name": "mallory", "uid": 1}
    for kind, said in {
        "started": start(run_id, grant["id"], yard.after(minutes=5)),
        "moved": {"run_id": run_id, "from": new_id(yard.now), "to": grant["id"]},
        "ended": {"grant_id": grant["id"], "cause": "revoked", "runs": [at(yard.now, run_id=run_id)]},
        "returned": {"grant_id": grant["id"], "user": who},
    }.items():
        with pytest.raises(Park, match="another computer"):
            await yard.reports(theirs, kind, **said)
    after = await yard.grant(grant["id"])
    assert (after["uses"], after["last_used_at"], after["version"]) == (0, None, grant["version"])
    assert [one.change for one in await yard.house.events() if one.change.startswith("elevation.")] == []
