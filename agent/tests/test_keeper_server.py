"""The keeper and its server: heartbeats, keys, lost messages, lost files, clocks and boots (as root)."""

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import nkeys
import pytest

from sojourn_agent import between
from sojourn_agent.keeper import refusals
from sojourn_agent.keeper.loop import Loop
from sojourn_agent.keeper.names import Names, Person
from sojourn_agent.keeper.spool import Spool
from sojourn_agent.keeper.state import State
from sojourn_agent.testing import Computer, a_computer, eventually
from sojourn_shared.clock import rfc3339, system_clock
from sojourn_shared.contracts import wire
from sojourn_shared.signing import PrivateKey, from_base64url, verify

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root elevates"),
]
BOB = 64_001


@pytest.fixture
def computer() -> Iterator[Computer]:
    with a_computer() as computer:
        yield computer


def heard(computer: Computer, kind: type[Any]) -> list[Any]:
    return [message for message in computer.server.heard if isinstance(message, kind)]


def beats(computer: Computer) -> list[wire.Heartbeat]:
    asks = [ask for ask in heard(computer, between.Ask) if ask.kind == "heartbeat"]
    return [msgspec.json.decode(ask.body, type=wire.Heartbeat) for ask in asks]


def test_a_heartbeat_on_connect_says_what_is_held_and_what_runs(computer: Computer) -> None:
    """Each with a nonce of its own."""
    grant = computer.grant(wire.FolderPathRule(path="/usr/bin"))
    computer.popen("--", "/usr/bin/sleep", "987", uid=BOB)
    run = eventually(lambda: computer.server.of_kind(wire.StartedReport))[0]
    count = len(beats(computer))
    computer.server.send(between.Connected(up=False, why="test"))
    computer.server.send(between.Connected(up=True))
    beat = eventually(lambda: beats(computer)[count:])[0]
    assert (beat.epoch, beat.version) == (1, computer.server.version)
    assert beat.running == [wire.RunningRun(run_id=run.run_id, grant_id=grant.id)]
    assert len({beat.nonce for beat in beats(computer)}) == len(beats(computer))


def test_an_unanswered_heartbeat_is_asked_again_soon(computer: Computer) -> None:
    """After a second, not after a minute."""
    computer.server.answers_heartbeats = False
    computer.server.send(between.Connected(up=False, why="test"))
    computer.server.send(between.Connected(up=True))
    count = len(beats(computer))
    eventually(lambda: len(beats(computer)) >= count + 2, 6)


def test_a_grant_whose_push_was_lost_comes_with_the_decision(computer: Computer) -> None:
    """A decision says approved and no grant came: the keeper asks at once."""
    grant = wire.Grant(
        id="g",
        users=wire.Users(all=True),
        from_=system_clock(),
        request_id="r",
        rules=[wire.FolderPathRule(path="/usr")],
    )
    computer.server.grants["g"] = grant
    computer.server.sign()
    computer.server.decide("r", status="approved")
    computer.catches_up()
    assert computer.elevate("--check", "--", "/usr/bin/id", uid=BOB).status == 0


def test_an_unknown_key_has_the_keys_renewed_and_the_document_fetched(computer: Computer) -> None:
    """Once; what the new set holds counts, and what it dropped counts no more."""
    computer.grant(wire.FolderPathRule(path="/usr/bin"))
    server = computer.server
    server.key = PrivateKey.generate()
    server.push()
    eventually(lambda: heard(computer, between.Renew))
    credentials = computer.state.need("credentials.json")
    server.send(between.NewCredentials(credentials=credentials, keys=server.key_set(epoch=2)))
    computer.catches_up()
    assert computer.elevate("--check", "--", "/usr/bin/id", uid=BOB).status == 0
    assert len(heard(computer, between.Renew)) == 1


def test_nonces_are_signed_and_nothing_else(computer: Computer) -> None:
    """The NATS server's with the link's key, the gateway's as a renewal with the keeper's own."""
    server = computer.server
    server.send(between.SignNonce(ask=7, nonce="Zm9vYmFyYmF6cXV4"))
    server.send(between.SignRenewal(ask=8, nonce="a-nonce-of-policy"))
    eventually(lambda: len(heard(computer, between.Signature)) == 2)
    answers = {message.ask: message.signature for message in heard(computer, between.Signature)}
    link = nkeys.from_seed(computer.state.need("link.seed").encode())
    assert link.verify(b"Zm9vYmFyYmF6cXV4", base64.b64decode(answers[7]))
    payload = verify(answers[8], "sojourn-renew", {computer.keeper_key.kid: computer.keeper_key.public})
    renewal = msgspec.json.decode(payload, type=wire.Renewal)
    assert (renewal.nonce, renewal.computer_id) == ("a-nonce-of-policy", computer.computer_id)
    assert renewal.link_public_key == link.public_key.decode()


def test_damaged_files_are_set_aside_and_fetched_again(computer: Computer) -> None:
    """Cut in half or overwritten: no crash loop, and no old document taken as new."""
    computer.grant(wire.FolderPathRule(path="/usr/bin"))
    computer.stop()
    for name in ("document.jws", "keys.jws", "marks.json"):
        path = computer.state.path(name)
        path.write_text(path.read_text()[:40])
    computer.state.path("spool.db").write_bytes(b"\xff" * 4096)
    computer.start(connected=False)
    assert computer.elevate("--no-wait", "--", "/usr/bin/id", uid=BOB).status == 77
    computer.server.send(
        between.NewCredentials(credentials=computer.state.need("credentials.json"), keys=computer.server.key_set())
    )
    computer.server.send(between.Connected(up=True))
    computer.catches_up()
    eventually(lambda: computer.elevate("--check", "--", "/usr/bin/id", uid=BOB).status == 0)
    aside = {path.name.split(".unusable")[0] for path in computer.config.state.glob("*.unusable-*")}
    assert aside == {"document.jws", "keys.jws", "marks.json", "spool.db"}


def marked(computer: Computer, **changes: Any) -> None:
    """As if the last mark had been another."""
    marks = json.loads(computer.state.need("marks.json"))
    computer.state.write("marks.json", json.dumps(marks | changes))


def test_after_a_reboot_without_network_grants_go_on_and_end(computer: Computer) -> None:
    """By the computer's own clock, which ends runs; the grant itself ends only by a signed time."""
    grant = computer.grant(wire.FolderPathRule(path="/usr/bin"), until=system_clock() + timedelta(seconds=4))
    computer.stop()
    marked(computer, boot_id="an earlier boot")
    computer.start(connected=False)
    done = computer.elevate("--", "/usr/bin/sleep", "987", uid=BOB)
    assert done.status == 124
    assert computer.server.of_kind(wire.EndedReport) == []
    computer.server.send(between.Connected(up=True))
    eventually(lambda: len([r for r in computer.server.of_kind(wire.EndedReport) if r.grant_id == grant.id]) == 2)
    assert [r.cause for r in computer.server.of_kind(wire.EndedReport)] == ["offline", "expired"]


def test_a_clock_moved_back_over_a_reboot_starts_nothing_until_the_server_is_heard(computer: Computer) -> None:
    """The mark is ahead of the clock: somebody moved it."""
    computer.grant(wire.FolderPathRule(path="/usr/bin"))
    computer.stop()
    marked(computer, boot_id="an earlier boot", now=rfc3339(system_clock() + timedelta(hours=1)))
    computer.start(connected=False)
    refused = computer.elevate("--no-wait", "--", "/usr/bin/id", uid=BOB)
    assert refused.status == 77
    assert "clock was moved back" in refused.err
    computer.server.send(between.Connected(up=True))
    eventually(lambda: computer.elevate("--check", "--", "/usr/bin/id", uid=BOB).status == 0)


def test_the_servers_time_is_what_counts(computer: Computer) -> None:
    """A computer whose clock is an hour behind begins and ends with the server."""
    computer.server.offset = timedelta(hours=1)
    computer.server.send(between.Connected(up=False, why="test"))
    computer.server.send(between.Connected(up=True))
    eventually(lambda: computer.agent()["clock_offset_s"] <= -3599)
    grant = computer.grant(wire.FolderPathRule(path="/usr/bin"), until=system_clock() + timedelta(hours=1, seconds=1.5))
    done = computer.elevate("--", "/usr/bin/sleep", "987", uid=BOB)
    assert done.status == 124
    assert computer.ended(grant).cause == "expired"


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda computer: computer.state.path("keeper.seed").unlink(), "enrol this computer again"),
        (lambda computer: computer.state.write("keeper.seed", "short"), "holds no key"),
        (lambda computer: computer.state.write("link.seed", "SUnonsense"), "holds no nkey seed"),
        (lambda computer: None, "another keeper works in"),
    ],
    ids=["no seed", "a bad seed", "a bad link seed", "a second keeper"],
)
def test_a_keeper_that_cannot_begin_says_why_and_what_to_do(computer: Computer, spoil: Any, says: str) -> None:
    """One sentence, no trace, and nothing damaged."""
    if says != "another keeper works in":
        computer.stop()
    spoil(computer)
    told = [sys.executable, "-m", "sojourn_agent.main", "run", "--config", str(computer.folder / "agent.toml")]
    done = subprocess.run(told, capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_loop_of_refusals_is_one_report_a_minute(
    computer: Computer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first at once, all others of that minute summed."""
    for _ in range(3):
        computer.elevate("--no-wait", "--", "/usr/bin/id", uid=BOB)
    assert [report.count for report in computer.server.of_kind(wire.RefusedReport)] == [1]

    monkeypatch.setattr(refusals, "_MINUTE", 0.05)
    loop = Loop()
    spool = Spool(State(tmp_path), PrivateKey.generate(), "c", "boot", system_clock)
    summed = refusals.Refusals(loop, spool, lambda: None)
    for _ in range(5):
        summed.add(Person(BOB, ()), wire.Application(path="/usr/bin/id"), "not-covered", "no")
    loop.after(0.3, loop.stop)
    loop.run()
    payloads = [waiting.jws.split(".")[1] for waiting in spool.oldest(9)]
    reports = [msgspec.json.decode(from_base64url(payload), type=wire.Report) for payload in payloads]
    assert [report.count for report in reports if isinstance(report, wire.RefusedReport)] == [1, 4]
    spool.close()


def test_a_name_service_that_hangs_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop goes on meanwhile; after two seconds the answer is that there is none."""
    monkeypatch.setattr("pwd.getpwuid", lambda uid: time.sleep(60))
    loop, found, ticks = Loop(), [], []

    def tick() -> None:
        ticks.append(1)
        loop.after(0.05, tick)

    def answered(person: Person) -> None:
        found.append(person)
        loop.stop()

    Names(loop).find(BOB, answered)
    tick()
    loop.run()
    assert found[0].names == ()
    assert "does not answer" in found[0].why_unnamed
    assert len(ticks) > 20
