"""`sojourn up` itself is killed with -9 while events and reports wait: the next one on the same data goes on."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from sojourn_embedded.demo.people import Administrator, Person, ThrowAwayUsers, fixed, folder, only, specific
from sojourn_embedded.demo.stack import Stack, eventually

from .conftest import AS_ROOT, NAMES, RECOVERY_SECONDS, World, with_argument

BOB = "sj-fault-bob"
EVERYTHING = {"users": only(BOB), "duration": fixed(30), "access": specific(folder("/usr/bin"))}
WAITS = "98764"


@pytest.fixture
def kept() -> Iterator[Path]:
    """A data folder that every user may traverse, as pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="sojourn-fault-", ignore_cleanup_errors=True) as place:
        Path(place).chmod(0o711)
        yield Path(place) / "data"


def test_the_next_up_goes_on_with_everything(kept: Path, tmp_path: Path) -> None:
    """Not a process is left, the elevated one neither; what was answered stands, and what waited is told, once."""
    checkpoint = tmp_path / "checkpoint"
    with contextlib.ExitStack() as users:
        if AS_ROOT:
            users.enter_context(ThrowAwayUsers(BOB))
        with Stack("--data", str(kept)) as stack, Administrator(stack) as admin:
            world = World(stack, admin, None, Person(BOB, stack) if AS_ROOT else None)
            stood = before(world, checkpoint)
        with Stack("--data", str(kept)) as stack, Administrator(stack) as admin:
            again = World(stack, admin, None, Person(BOB, stack) if AS_ROOT else None, world.promised)
            assert admin.computer_id == world.admin.computer_id
            after(again, stood)
            again.is_proven(since=checkpoint)


def before(world: World, checkpoint: Path) -> dict[str, Any]:
    """Kill the launcher in full swing; returns what must be found again."""
    admin = world.admin
    used, withdrawn = (admin.deploys(next(NAMES), **EVERYTHING) for _ in range(2))
    for policy in (used, withdrawn):
        world.promise("policy", policy)
        if AS_ROOT:
            admin.grant_of(policy)
    world.keeps_checkpoint(checkpoint)
    with world.deaf("nats"), contextlib.ExitStack() as runs:
        if world.person:
            assert world.person.elevate("--", "/usr/bin/id", "-u").stdout == "0\n"
            runs.enter_context(world.person.elevating("--", "/usr/bin/sleep", WAITS))
            eventually(lambda: with_argument(WAITS, uid=0), 5, "the elevated sleep runs")
        deployed = world.promise("policy", admin.deploys(next(NAMES), **EVERYTHING))
        world.promise("policy", admin.post(f"/policies/{withdrawn['id']}/withdraw"))
        account = {"name": "Vi", "email": "vi@example.com", "roles": ["auditor"], "os_users": []}
        world.promise("account", admin.post("/accounts", account))
        processes = psutil.Process(world.stack.process.pid).children(recursive=True)
        assert len(processes) >= 8
        world.stack.process.kill()
        world.stack.process.wait()
        eventually(lambda: not with_argument(WAITS, uid=0), 5, "what ran elevated has ended")
    # NATS was stopped: it ends once it goes on
    eventually(lambda: not any(is_running(one) for one in processes), RECOVERY_SECONDS, "no process is left")
    return {"used": used, "withdrawn": withdrawn, "deployed": deployed, "account": account}


def after(world: World, stood: dict[str, Any]) -> None:
    """Everything is there, and what was on its way arrives."""
    world.converges("active", policy_id=stood["used"]["id"])
    world.converges("revoked", policy_id=stood["withdrawn"]["id"])
    world.converges("active", policy_id=stood["deployed"]["id"])
    assert stood["account"].items() <= next(one for one in world.all_of("/accounts") if one["name"] == "Vi").items()
    if world.person:
        assert world.person.elevate("--", "/usr/bin/id", "-u").stdout == "0\n"
        eventually(lambda: len(ended(world)) == 3, RECOVERY_SECONDS, "the server knows of three runs and their ends")
        assert sorted(run["cause"] for run in ended(world)) == ["agent_died", "exited", "exited"]
    world.is_whole()


def ended(world: World) -> list[Any]:
    return [run for run in world.all_of("/elevations") if run["ended_at"]]


def is_running(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False
