"""What policy hears: liveness from expiry, health from the computers themselves."""

from datetime import timedelta
from typing import Any

import pytest

from sojourn_shared.contracts import wire
from sojourn_shared.ids import new_id
from sojourn_shared.service import NotYet, Park
from sojourn_shared.service.testing import TestHouse

ROOT = [wire.StandingRight(user="bob", through="sudo")]
USERS = [wire.ComputerUser(name="bob", uid=1001)]


async def state(house: TestHouse, computer_id: str) -> dict[str, Any]:
    async with house.client() as admin:
        return dict((await admin.get(f"/computers/{computer_id}")).json())


async def test_liveness_is_copied_and_is_no_change_of_the_computer(house: TestHouse, agents: Any) -> None:
    """The later word wins, whichever arrives first; nothing is told further."""
    computer_id = await agents.enrolled()
    told = len(await house.events())
    for version, connected, shown in ((5, True, True), (3, False, True), (6, False, False), (7, True, True)):
        said = {"id": computer_id, "version": version, "connected": connected}
        change = "agent.connected" if connected else "agent.lost"
        await house.hears(change, said, service="expiry", id=computer_id)
        seen = await state(house, computer_id)
        assert (seen["connected"], seen["version"]) == (shown, 1)
    assert len(await house.events()) == told
    await agents.removes(computer_id)
    assert (await state(house, computer_id))["connected"] is False


async def test_only_expiry_says_who_is_connected(house: TestHouse, agents: Any) -> None:
    """Neither its own renewals, which come back by the bus, nor the word of another service."""
    computer_id = await agents.enrolled()
    await house.hears("agent.credentials_renewed", {"id": computer_id}, service="policy", id=computer_id)
    said = {"id": computer_id, "version": 9, "connected": True}
    await house.hears("agent.connected", said, service="gateway", id=computer_id)
    assert (await state(house, computer_id))["connected"] is False


async def test_liveness_of_a_computer_that_nobody_knows_is_nothing(house: TestHouse) -> None:
    """It is heard, and nothing comes of it."""
    stranger = new_id(house.clock())
    await house.hears(
        "agent.connected", {"id": stranger, "version": 1, "connected": True}, service="expiry", id=stranger
    )
    assert await house.events() == []


async def test_health_changes_a_computer_only_when_it_is_news(house: TestHouse, agents: Any) -> None:
    """Told once, by the computer itself; a repeat, the same again, a late one and a used id are not told."""
    machine = agents.machine()
    computer_id = await agents.enrolled(machine=machine)
    now = house.clock()
    first = machine.health(computer_id, now, users=USERS, standing_rights=ROOT, agent_version="0.2.0")
    for _ in range(2):
        await house.takes(computer_id, "health", first)
    same = machine.health(
        computer_id, now + timedelta(minutes=2), seq=3, users=USERS, standing_rights=ROOT, agent_version="0.2.0"
    )
    await house.takes(computer_id, "health", same)
    await house.takes(computer_id, "health", machine.health(computer_id, now + timedelta(minutes=1), seq=2))
    under_a_used_id = machine.health(computer_id, now + timedelta(minutes=3), seq=4, id="r3")
    await house.takes(computer_id, "health", under_a_used_id)
    (event,) = await house.events("computer.changed")
    assert (event.data.actor.kind, event.data.actor.id) == ("computer", computer_id)
    assert event.data.entity["standing_rights"] == [{"user": "bob", "through": "sudo"}]
    seen = await state(house, computer_id)
    assert (seen["version"], seen["agent_version"]) == (2, "0.2.0")


async def test_false_health_is_parked(house: TestHouse, agents: Any) -> None:
    """By another's key, of another computer, or another kind of report: never true, so not tried again."""
    machine, other = agents.machine(), agents.machine("other")
    computer_id, other_id = await agents.enrolled(machine=machine), await agents.enrolled(machine=other)
    now = house.clock()
    returned = wire.ReturnedReport(
        id="r9",
        seq=1,
        computer_id=computer_id,
        boot_id="b",
        at=now,
        grant_id="g",
        user=wire.ReportingUser(name="bob", uid=1001),
    )
    for jws in (
        other.health(computer_id, now),
        machine.health(other_id, now),
        machine.keeper.sign(wire.encode(returned), "sojourn-report"),
        machine.keeper.sign(b"{}", "sojourn-report"),
    ):
        with pytest.raises(Park):
            await house.takes(computer_id, "health", jws)
    assert await house.events("computer.changed") == []


async def test_health_of_a_computer_that_is_not_known_yet_waits(house: TestHouse, agents: Any) -> None:
    """It may be on its way: tried again, not parked."""
    stranger = new_id(house.clock())
    with pytest.raises(NotYet):
        await house.takes(stranger, "health", agents.machine().health(stranger, house.clock()))
