"""Each part is killed with -9 at its worst moment: nothing that was answered is lost, and nothing happens twice."""

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from sojourn_embedded.demo.people import file_hash, fixed, folder, only, specific
from sojourn_embedded.demo.stack import eventually
from sojourn_shared.clock import system_clock
from sojourn_shared.ids import new_id

from .conftest import ALICE, AS_ROOT, NAMES, RECOVERY_SECONDS, World, with_argument

needs_root = pytest.mark.skipif(not AS_ROOT, reason="needs root: the agent elevates, for an OS user of this test")


@pytest.fixture(scope="module")
def first_checkpoint(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ledger's checkpoint before anything was killed, kept outside."""
    kept = tmp_path_factory.mktemp("outside") / "checkpoint"
    world.keeps_checkpoint(kept)
    return kept


# --- between commit and publish ---------------------------------------------------------------------------------------


def a_policy(world: World, *, deploy: bool = True) -> Any:
    """A policy for alice, who may look who she is."""
    body = {
        "name": next(NAMES),
        "targets": {"computer_ids": [world.admin.computer_id]},
        "users": only(ALICE),
        "duration": fixed(30),
        "access": specific(file_hash("/usr/bin/id")),
    }
    made = world.promise("policy", world.admin.post("/policies", body))
    return world.promise("policy", world.admin.post(f"/policies/{made['id']}/deploy")) if deploy else made


def a_request(world: World) -> Any:
    body = {
        "computer_id": world.admin.computer_id,
        "user": ALICE,
        "application": {"path": "/usr/bin/id", "sha256": "ab" * 32, "arguments": [next(NAMES)]},
        "duration_minutes": 5,
        "justification": "it is needed",
    }
    return world.promise("request", world.admin.post("/requests", body))


@dataclass
class Written:
    """What was answered while nothing could be published: paths, and what they must go on saying."""

    says: dict[str, dict[str, Any]] = field(default_factory=dict)
    grants: dict[str, str] = field(default_factory=dict)
    """Grants by their request or policy, and the status that they come to."""

    def add(self, path: str, entity: Any, *names: str) -> Any:
        self.says[f"{path}/{entity['id']}"] = {name: entity[name] for name in ("id", *names)}
        return entity


def policies_written(world: World) -> Callable[[], Written]:
    withdrawn = a_policy(world)
    world.admin.grant_of(withdrawn)

    def write() -> Written:
        written = Written()
        for _ in range(3):
            deployed = written.add("/policies", a_policy(world), "name", "status", "deployed_revision")
            written.grants[f"policy_id={deployed['id']}"] = "active"
        written.add("/policies", a_policy(world, deploy=False), "name", "status")
        gone = world.promise("policy", world.admin.post(f"/policies/{withdrawn['id']}/withdraw"))
        written.add("/policies", gone, "status")
        written.grants[f"policy_id={gone['id']}"] = "revoked"
        world.promise("enrolment_token", world.admin.post("/enrolment-tokens", {"name": next(NAMES)}))
        return written

    return write


def requests_written(world: World) -> Callable[[], Written]:
    def write() -> Written:
        written = Written()
        for decide in ("approve", "decline", "cancel", None):
            asked = a_request(world)
            if decide:
                who, body = (world.approver, {"note": "so be it"}) if decide != "cancel" else (world.admin, {})
                asked = world.promise("request", who.post(f"/requests/{asked['id']}/{decide}", body))
            if decide == "approve":
                written.grants[f"request_id={asked['id']}"] = "ready"
            written.add("/requests", asked, "status", "grant_id", "decision")
        settings = world.admin.get("/settings/requests")
        changed = world.admin.put("/settings/requests", longest_minutes=settings["longest_minutes"] + 1)
        written.says["/settings/requests"] = {"longest_minutes": changed["longest_minutes"]}
        return written

    return write


def grants_written(world: World) -> Callable[[], Written]:
    policies = [a_policy(world) for _ in range(3)]
    grants = [world.admin.grant_of(policy) for policy in policies]

    def write() -> Written:
        written = Written()
        for number, grant in enumerate(grants[:2]):
            ended = world.admin.post(f"/grants/{grant['id']}/revoke", {"reason": f"reason {number}"})
            written.add("/grants", world.promise("grant", ended), "status", "revoked")
            written.grants[f"policy_id={grant['policy_id']}"] = "revoked"
        written.grants[f"policy_id={grants[2]['policy_id']}"] = "active"
        return written

    return write


def accounts_written(world: World) -> Callable[[], Written]:
    def write() -> Written:
        written = Written()
        for _ in range(3):
            name = next(NAMES)
            body = {
                "name": name,
                "email": f"{name.replace(' ', '-')}@example.com",
                "roles": ["auditor"],
                "os_users": [],
            }
            account = world.promise("account", world.admin.post("/accounts", body))
            written.add("/accounts", account, "name", "email", "roles", "os_users")
            world.admin.post("/api-keys", {"name": "a key", "account_id": account["id"]})
        return written

    return write


WRITING = {
    "policy": policies_written,
    "requests": requests_written,
    "expiry": grants_written,
    "gateway": accounts_written,
}


@pytest.mark.parametrize(
    ("service", "and_nats"), [("policy", True), ("requests", False), ("expiry", True), ("gateway", False)]
)
def test_between_commit_and_publish(world: World, first_checkpoint: Path, service: str, and_nats: bool) -> None:
    """NATS is deaf, so that what was committed and answered waits; then the service dies: all of it comes through.

    What the service had sent is still in the socket. If NATS goes on it reads that, and the events that the new process
    publishes again must not be stored, or heard, twice. If NATS dies too that is gone, and must not count as published.
    """
    write = WRITING[service](world)
    with world.deaf("nats"):
        written = write()
        pid = world.kills(service)
        nats = world.kills("nats") if and_nats else 0
    world.is_back("nats", nats)
    world.is_back(service, pid)
    for path, said in written.says.items():
        found = world.admin.get(path)
        assert {name: found[name] for name in said} == said, path
    for where, status in written.grants.items():
        name, _, value = where.partition("=")
        world.converges(status, **{name: value})
    world.is_whole()


# --- in the middle of a burst -----------------------------------------------------------------------------------------

WISHES, WRITERS = 15, 4


@pytest.mark.parametrize("part", ["policy", "gateway", "audit", "nats", "postgres"])
def test_in_the_middle_of_a_burst(world: World, first_checkpoint: Path, part: str) -> None:
    """Writers that repeat what was not answered, each with its key, get each wish once, whoever dies meanwhile."""
    burst = f"burst {new_id(system_clock())}"
    answered: dict[str, str] = {}

    def writer(number: int) -> None:
        with httpx.Client(base_url=world.admin.http.base_url, headers=world.admin.http.headers, timeout=10) as client:
            for wish in range(WISHES):
                key = f"{burst} {number} {wish}"
                answered[key] = insistently(client, key)["id"]

    with ThreadPoolExecutor(WRITERS) as pool:
        writers = [pool.submit(writer, number) for number in range(WRITERS)]
        eventually(lambda: len(answered) >= WISHES or any(one.done() for one in writers), 20, "the writers write")
        pid = world.kills(part)
        assert len(answered) < WISHES * WRITERS, "it was to die while they write"
        for one in writers:
            one.result()
    world.is_back(part, pid)
    found = {token["name"]: token["id"] for token in world.all_of("/enrolment-tokens") if burst in token["name"]}
    assert found == answered
    world.promised |= {("enrolment_token", token_id, 1) for token_id in answered.values()}
    world.is_whole()
    told = [line["data"]["name"] for line in world.ledger() if line["type"] == "enrolment_token.created"]
    assert sorted(name for name in told if burst in name) == sorted(answered)


def insistently(client: httpx.Client, key: str) -> Any:
    """Ask for a token of that name until somebody answers; raises TimeoutError."""

    def ask() -> Any:
        try:
            answer = client.post("/enrolment-tokens", json={"name": key}, headers={"Idempotency-Key": key})
        except httpx.HTTPError:
            return None
        if answer.status_code == 201:
            return answer.json()
        assert answer.status_code in {409, 429, 503}, answer.text  # still running, too fast, not there: never a 500
        time.sleep(0.02)
        return None

    return eventually(ask, RECOVERY_SECONDS, f"{key} is answered")


# --- the agent --------------------------------------------------------------------------------------------------------


@needs_root
def test_the_keeper_dies_with_reports_that_nobody_has_heard(world: World, first_checkpoint: Path) -> None:
    """With NATS deaf, runs start and end; the keeper is killed: the server hears of each run, once, with its end."""
    assert world.person
    body = {"users": only(ALICE), "duration": fixed(30), "access": specific(folder("/usr/bin"))}
    policy = world.admin.deploys(next(NAMES), **body)
    grant = world.admin.grant_of(policy)
    with world.deaf("nats"):
        for _ in range(3):
            assert world.person.elevate("--", "/usr/bin/id", "-u").stdout == "0\n"
        with world.person.elevating("--", "/usr/bin/sleep", "98765") as waiting:
            eventually(lambda: with_argument("98765", uid=0), 5, "the elevated sleep runs")
            keeper = world.kills("agent")
            eventually(lambda: not with_argument("98765", uid=0), 5, "the run ends with its keeper")
            assert waiting.wait(10) == 75
    world.is_back("agent", keeper)

    def all_ended() -> bool:
        runs = world.admin.elevations_of(grant["id"])
        return len(runs) == 4 and all(run["ended_at"] for run in runs)

    eventually(all_ended, RECOVERY_SECONDS, "the server knows of four runs and their ends")
    runs = world.admin.elevations_of(grant["id"])
    assert sorted(run["cause"] for run in runs) == ["agent_died", "exited", "exited", "exited"]
    assert sorted(str(run["exit_status"]) for run in runs if run["cause"] == "exited") == ["0", "0", "0"]
    world.is_whole()
    told = [line["type"] for line in world.ledger() if line["grant_id"] == grant["id"]]
    assert told.count("elevation.started") == told.count("elevation.ended") == 4
    assert world.person.elevate("--", "/usr/bin/id", "-u").stdout == "0\n"


@needs_root
def test_a_revoke_reaches_a_keeper_that_was_killed_while_it_came(world: World, first_checkpoint: Path) -> None:
    """Stopped as the revoke is sent, then killed: the new keeper ends the grant, and says so once."""
    assert world.person
    grant = world.admin.grant_of(a_policy(world))
    keeper = world.stack.pid("agent")
    os.kill(keeper, signal.SIGSTOP)
    world.promise("grant", world.admin.post(f"/grants/{grant['id']}/revoke", {"reason": "while it was deaf"}))
    os.kill(keeper, signal.SIGKILL)
    world.is_back("agent", keeper)
    world.converges("revoked", policy_id=grant["policy_id"])
    world.is_whole()
    told = [line["type"] for line in world.ledger() if line["grant_id"] == grant["id"]]
    assert told.count("grant.revoked") == told.count("grant.ended") == 1


# --- after all of it --------------------------------------------------------------------------------------------------


def test_the_ledger_is_proven_from_before_to_after(world: World, first_checkpoint: Path) -> None:
    """By a checkpoint kept outside since before the first kill: every entry is there, and none was exchanged."""
    world.is_proven(since=first_checkpoint)
