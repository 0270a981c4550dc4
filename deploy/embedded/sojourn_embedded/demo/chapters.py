"""The chapters of the demo. Each does what it tells, measures it, and fails if it was not so."""

import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from sojourn_shared.clock import rfc3339, system_clock
from sojourn_shared.ledger import Checkpoint, LedgerAltered, NoteKey, open_checkpoint, verify_lines

from .people import EVERYBODY, Administrator, Person, Refusal, file_hash, fixed, folder, is_gone, only, specific
from .stack import Stack, eventually
from .telling import Telling


@dataclass(frozen=True)
class Cast:
    """Who takes part, and a folder for what they keep."""

    stack: Stack
    admin: Administrator
    alice: Person
    bob: Person
    folder: Path


def a_policy_takes_effect(cast: Cast, tell: Telling) -> None:
    """A policy: alice may run one application, for half an hour"""
    refused = cast.alice.elevate("--check", "--", "/usr/bin/id")
    assert refused.returncode == 77, refused
    tell.line("alice: elevate --check -- id → 77, nothing is granted yet")
    watch = Stopwatch()
    policy = cast.admin.deploys(
        "Who am I",
        description="alice may look who she is",
        users=only(cast.alice.name),
        duration=fixed(30),
        access=specific(file_hash("/usr/bin/id")),
    )
    tell.line("the administrator creates and deploys “Who am I”: user alice, 30 minutes, one file hash", watch.lap())
    cast.admin.grant_of(policy)
    tell.line("the computer has confirmed that it is in force", watch.lap())
    done = cast.alice.elevate("--", "/usr/bin/id", "-u")
    assert done.stdout == "0\n", done
    tell.line("alice: elevate -- id -u → 0: she is root for that program alone", watch.lap())
    assert cast.bob.elevate("--check", "--", "/usr/bin/id").returncode == 77
    assert cast.alice.elevate("--check", "--", "/usr/bin/cat").returncode == 77
    tell.line("bob is refused, and so is alice with another application")


def a_revoke_ends_the_tree(cast: Cast, tell: Telling) -> None:
    """A revoke: the whole process tree ends, and the computer says so"""
    policy = cast.admin.deploys("Tools", users=EVERYBODY, duration=fixed(30), access=specific(folder("/usr/bin")))
    grant = cast.admin.grant_of(policy)
    with cast.bob.at_a_terminal("--", "/usr/bin/sh", "-c", "sleep 987 & sleep 987 & sleep 987; true") as terminal:
        run = _running(cast, grant["id"])
        tell.line(f"bob runs a shell with three children as root, process {run['pid']}")
        cast.admin.post(f"/grants/{grant['id']}/revoke", {"reason": "wrong computer, sorry"})
        watch = Stopwatch()
        eventually(lambda: is_gone(run["pid"]), 5, "the tree is gone")
        tell.line("from the answer to the revoke until the tree is gone", watch.lap())
        status = terminal.ends()
        assert status == 124, (status, terminal.shown)
        tell.screen(terminal.shown)
        tell.line(f"bob's exit status is {status}")
    eventually(lambda: cast.admin.get(f"/grants/{grant['id']}")["delivery"] == "ended", 5, "the end is confirmed")
    over = cast.admin.elevations_of(grant["id"])[0]
    names = ", ".join(f"{one['name']} {one['pid']}" for one in over["processes_ended"])
    tell.line(f"the computer confirmed: {names} were ended, none escaped", watch.lap())


def a_window_ends_alone(cast: Cast, tell: Telling) -> None:
    """A window: it ends by itself, with every server part stopped"""
    starts = system_clock() + timedelta(seconds=1)
    ends = starts + timedelta(seconds=5)
    policy = cast.admin.deploys(
        "Five seconds",
        users=only(cast.bob.name),
        duration={"type": "window", "from": rfc3339(starts), "until": rfc3339(ends)},
        access=specific(file_hash("/usr/bin/sleep")),
    )
    check = ("--check", "--", "/usr/bin/sleep", "60")
    assert cast.bob.elevate(*check).returncode == 77
    eventually(lambda: cast.bob.elevate(*check).returncode == 0, 5, "the window opened")
    tell.line("refused before its time, allowed from then on", (system_clock() - starts).total_seconds())
    parts = ("policy", "requests", "expiry", "audit", "gateway", "nats")
    with cast.bob.elevating("--", "/usr/bin/sleep", "60") as elevate, ExitStack() as afterwards:
        _running(cast, cast.admin.grant_of(policy)["id"])
        cast.stack.signal(signal.SIGSTOP, *parts)
        afterwards.callback(cast.stack.signal, signal.SIGCONT, *reversed(parts))
        tell.line("NATS and all five services are stopped")
        assert elevate.wait(15) == 124
        late = (system_clock() - ends).total_seconds()
        tell.line("bob's program was ended by the computer alone, so long after the window's end", abs(late))


def a_request_is_decided(cast: Cast, tell: Telling) -> None:
    """A request: alice asks, the administrator decides, her command runs"""
    command = ("/usr/bin/head", "-n", "1", "/etc/shadow")
    asking = ("--for", "5m", "--because", "the printer is stuck")
    watch = Stopwatch()
    with cast.alice.at_a_terminal(*asking, "--", *command) as terminal:
        asked = cast.admin.pending(cast.alice.name)
        tell.line(f"pending: {asked['user']}, {' '.join(command)}, 5 minutes, “{asked['justification']}”", watch.lap())
        facts = asked["application"]
        if facts["package"]:
            signature = facts["signature"]["status"]
            tell.line(f"the approver sees its package: {facts['package']} by {facts['vendor']}, {signature}")
        cast.admin.post(f"/requests/{asked['id']}/approve", {"note": "go on"})
        watch.lap()
        status = terminal.ends()
        assert status == 0, (status, terminal.shown)
        tell.line("from the approval until her waiting command had run", watch.lap())
        tell.screen(terminal.shown)
    other = cast.alice.elevate("--check", "--", "/usr/bin/head", "-n", "2", "/etc/shadow")
    assert other.returncode == 77, other
    tell.line("the arguments are pinned: `head -n 2` is still refused")
    with cast.alice.at_a_terminal(*asking, "--", "/usr/bin/tail", "-n1", "/etc/shadow") as terminal:
        cast.admin.post(f"/requests/{cast.admin.pending(cast.alice.name)['id']}/decline", {"note": "ask the help desk"})
        status = terminal.ends()
        assert status == 77, (status, terminal.shown)
        tell.line("another one is declined: status 77, and she reads why")
        tell.screen(terminal.shown)


def approved_without_a_person(cast: Cast, tell: Telling) -> None:
    """Autonomous approval: decided at once, with every check on record"""
    cast.admin.put(
        "/settings/autonomous-approval",
        enabled=True,
        trusted_users=[cast.alice.name],
        require_verified_application=False,
        max_duration_minutes=10,
        cooldown_after_decline_minutes=0,
    )
    watch = Stopwatch()
    done = cast.alice.elevate("--for", "5m", "--because", "routine", "--", "/usr/bin/wc", "-l", "/etc/shadow")
    assert done.returncode == 0, done
    tell.line("alice asks, nobody has to decide, and her command has run", watch.lap())
    decided = cast.admin.get("/requests", user=cast.alice.name, status="approved")["items"][0]
    assert decided["decision"]["by"] == "autonomous"
    for check in decided["decision"]["checks"]:
        tell.line(f"{check['name']}: {check['detail']}")
    with cast.alice.elevating("--for", "60m", "--because", "longer", "--", "/usr/bin/nl", "/etc/shadow"):
        asked = cast.admin.pending(cast.alice.name)
        failed = [check for check in asked["checks"] if not check["passed"]]
        tell.line(f"an hour goes to people: {failed[0]['detail']}")
        cast.admin.post(f"/requests/{asked['id']}/decline", {"note": "shorter, please"})


def lost_and_found(cast: Cast, tell: Telling) -> None:
    """Outages: everything converges with no action of anybody"""
    watch = Stopwatch()
    nats = cast.stack.pid("nats")
    cast.stack.signal(signal.SIGKILL, "nats")
    policy = cast.admin.deploys(
        "After the outage", users=only(cast.bob.name), duration=fixed(5), access=specific(file_hash("/usr/bin/nproc"))
    )
    tell.line("NATS is killed; a policy is deployed all the same", watch.lap())
    eventually(lambda: cast.bob.elevate("--check", "--", "/usr/bin/nproc").returncode == 0, 20, "it is in force")
    assert cast.stack.pid("nats") != nats
    tell.line("NATS was started again, services and agent reconnected, the policy is in force", watch.lap())
    grant = cast.admin.grant_of(policy)
    keeper = cast.stack.pid("agent")
    cast.stack.signal(signal.SIGSTOP, "agent")
    cast.admin.post(f"/grants/{grant['id']}/revoke", {"reason": "while nobody listened"})
    cast.stack.signal(signal.SIGKILL, "agent")
    watch.lap()
    eventually(lambda: cast.admin.get(f"/grants/{grant['id']}")["delivery"] == "ended", 20, "the revoke is confirmed")
    assert cast.stack.pid("agent") != keeper
    tell.line("the agent is killed, its grant revoked meanwhile: back again, it confirms the end", watch.lap())


def a_policy_is_written(cast: Cast, tell: Telling) -> None:
    """A policy: written, deployed, and refused by the computer for a reason"""
    watch = Stopwatch()
    policy = cast.admin.deploys(
        "Who am I", users=only(cast.alice.name), duration=fixed(30), access=specific(file_hash("/usr/bin/id"))
    )
    tell.line("the administrator creates and deploys “Who am I”", watch.lap())

    def failed() -> Any:
        found = cast.admin.get("/grants", policy_id=policy["id"])["items"]
        return found[0] if found and found[0]["delivery"] == "failed" else None

    grant = eventually(failed, 5, "the computer says that it cannot")
    tell.line(f"the computer says why it cannot be in force: {grant['failure']}", watch.lap())


def a_request_is_seen(cast: Cast, tell: Telling) -> None:
    """A request: asked on the computer, decided by another person"""
    approver = cast.admin.post(
        "/accounts", {"name": "approver", "email": "approver@example.com", "roles": ["approver"], "os_users": []}
    )
    key = cast.admin.post("/api-keys", {"name": "demo", "account_id": approver["id"]})["key"]
    tell.line(
        "whoever started this is the administrator, and nobody decides on their own request: an approver is named"
    )
    watch = Stopwatch()
    asking = ("--for", "5m", "--because", "to see", "--", "/usr/bin/head", "-n", "1", "/etc/shadow")
    with Administrator(cast.stack, key) as other, cast.alice.at_a_terminal(*asking) as terminal:
        asked = cast.admin.pending(cast.alice.name)
        tell.line(f"pending: {asked['user']}, 5 minutes, “{asked['justification']}”", watch.lap())
        try:
            cast.admin.post(f"/requests/{asked['id']}/approve")
        except Refusal as refusal:
            tell.line(f"the administrator, who asked, is refused: {refusal.code}", watch.lap())
        else:
            raise AssertionError("somebody decided on their own request")
        other.post(f"/requests/{asked['id']}/decline", {"note": "only a demo"})
        status = terminal.ends()
        assert status == 77, (status, terminal.shown)
        tell.line("the approver declines; elevate ends with 77", watch.lap())
        tell.screen(terminal.shown)


def the_ledger_is_proven(cast: Cast, tell: Telling) -> None:
    """The proof: nobody changed the record, and one altered byte is named"""
    watch = Stopwatch()
    note = cast.admin.http.get("/audit/checkpoint").text
    key = NoteKey.from_text(cast.admin.get("/audit/keys")["keys"][0])
    lines = cast.admin.http.get("/audit/export").content.splitlines()
    signed = open_checkpoint(note, [key])
    verify_lines(lines, signed)
    tell.line(f"{signed.size} events are exactly what was signed, checked with the public key alone", watch.lap())
    for entry in cast.admin.get("/audit/events", limit=200)["items"][::-1]:
        if entry["type"].removeprefix("sojourn.") in _TOLD:
            tell.screen(f"{entry['seq']:>4}  {entry['summary']}")
    at = signed.size // 2
    altered = bytearray(lines[at])
    altered[len(altered) // 2] ^= 1
    watch.lap()
    found = _altered([*lines[:at], bytes(altered), *lines[at + 1 :]], signed)
    assert found.seqs == (at,), found
    tell.line(f"one bit flipped in a copy of entry {at}: {found}", watch.lap())


Chapter = Callable[[Cast, Telling], None]
as_root: tuple[Chapter, ...] = (
    a_policy_takes_effect,
    a_revoke_ends_the_tree,
    a_window_ends_alone,
    a_request_is_decided,
    approved_without_a_person,
    lost_and_found,
    the_ledger_is_proven,
)
for_everybody: tuple[Chapter, ...] = (a_policy_is_written, a_request_is_seen, the_ledger_is_proven)
_TOLD = {"policy.deployed", "request.approved", "request.declined", "grant.revoked", "elevation.ended"}


class Stopwatch:
    """Measures laps in seconds."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def lap(self) -> float:
        began, self._began = self._began, time.monotonic()
        return self._began - began


def _running(cast: Cast, grant_id: str) -> Any:
    """The newest elevation under a grant, once it has been reported."""
    return eventually(lambda: cast.admin.elevations_of(grant_id), 5, "the start is reported")[0]


def _altered(lines: list[bytes], signed: Checkpoint) -> LedgerAltered:
    try:
        verify_lines(lines, signed)
    except LedgerAltered as error:
        return error
    raise AssertionError("an altered byte was not noticed")
