"""Attacks of an unprivileged user, of a lying broker and of a dying agent on the endpoint (as root).

Group numbers are those of the endpoint's list of hostile cases, of which First light takes 1 to 4, 12 to 15 and 22.
"""

import array
import contextlib
import json
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sojourn_agent import between
from sojourn_agent.keeper.leaves import carriers
from sojourn_agent.testing import Computer, FakeServer, Typist, a_computer, as_user, eventually
from sojourn_shared.clock import system_clock
from sojourn_shared.contracts import wire
from sojourn_shared.signing import PrivateKey

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root elevates, and only root is another user"),
]
MALLORY, BOB = 64_002, 64_001
ANYTHING = wire.FolderPathRule(path="/usr/bin")
HOSTILE_TREE = """
trap '' TERM HUP INT QUIT
(trap '' TERM HUP; setsid sh -c 'trap "" TERM HUP; sleep 986 & sleep 985' &) &
setsid sh -c 'kill -STOP $$; sleep 984' &
sh -c 'while :; do sleep 0.01 & done' &
echo ready
while :; do sleep 1; done
"""
"""Double-forked, detached, deaf to signals, stopped, and forking for ever."""


@pytest.fixture
def computer() -> Iterator[Computer]:
    with a_computer() as computer:
        yield computer


@pytest.fixture
def trusted() -> Iterator[Path]:
    """A folder whose whole path is root's alone."""
    folder = Path(tempfile.mkdtemp(prefix="sojourn-test-", dir="/opt"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def run_of(computer: Computer) -> wire.StartedReport:
    report = eventually(lambda: computer.server.of_kind(wire.StartedReport))[-1]
    assert isinstance(report, wire.StartedReport)
    return report


def survivors(computer: Computer) -> list[int]:
    """Living processes of the last run, wherever they are."""
    return [pid for pid in carriers(run_of(computer).run_id) if _state(pid) not in "ZX"]


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return "X"


def none_left(computer: Computer, seconds: float) -> None:
    eventually(lambda: not survivors(computer), seconds)


def knock(computer: Computer, body: dict[str, Any], *, descriptors: bool = True) -> socket.socket:
    """A caller of one's own making."""
    caller = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    caller.settimeout(10)
    caller.connect(str(computer.config.socket))
    told = {"v": 1, "op": "run", "env": {}, "argv": ["/usr/bin/id", "-u"]} | body
    rights = []
    if descriptors:
        null, folder = os.open("/dev/null", os.O_RDWR), os.open("/", os.O_PATH | os.O_DIRECTORY)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null, null, null, folder]))]
    caller.sendmsg([json.dumps(told).encode()], rights)
    return caller


# --- 1: a lie about who calls ---------------------------------------------------------------------------------------


def test_1_a_uid_in_the_message_is_not_believed(computer: Computer) -> None:
    """The caller is what the kernel says: the grant is root's, and the message says root."""
    computer.grant(ANYTHING, users=wire.Users(names=["root"]))

    def lie() -> int:
        told = {"uid": 0, "user": "root", "gid": 0, "no_wait": True, "env": {"USER": "root", "SUDO_UID": "0"}}
        with knock(computer, told) as caller:
            answer = json.loads(caller.recv(65536))
        return 0 if (answer["type"], answer["exit"]) == ("refused", 77) else 1

    assert as_user(MALLORY, lie) == 0
    refused = eventually(lambda: computer.server.of_kind(wire.RefusedReport))[0]
    assert refused.user.uid == MALLORY


def test_1_a_socket_handed_to_another_user_stays_the_first_ones(computer: Computer) -> None:
    """Who connected is asked, whoever writes into the connection."""
    computer.grant(ANYTHING, users=wire.Users(names=["root"]))
    ours, theirs = socket.socketpair()
    if (mallory := os.fork()) == 0:
        os.setresuid(MALLORY, MALLORY, MALLORY)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as caller:
            caller.connect(str(computer.config.socket))
            socket.send_fds(theirs, [b"x"], [caller.fileno()])
        ours.close()
        theirs.recv(1)
        os._exit(0)
    _, (fd,), _, _ = socket.recv_fds(ours, 1, 1)
    with socket.socket(fileno=fd) as caller:
        caller.settimeout(10)
        null, folder = os.open("/dev/null", os.O_RDWR), os.open("/", os.O_PATH | os.O_DIRECTORY)
        body = json.dumps({"v": 1, "op": "run", "argv": ["/usr/bin/id"], "no_wait": True}).encode()
        socket.send_fds(caller, [body], [null, null, null, folder])
        assert json.loads(caller.recv(65536))["exit"] == 77
    ours.close()
    theirs.close()
    os.waitpid(mallory, 0)


# --- 2: a grant that is not this user's, or not now -------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"users": wire.Users(names=["root"])},
        {"until": system_clock() - timedelta(seconds=1)},
        {"from_": system_clock() + timedelta(hours=1), "until": system_clock() + timedelta(hours=2)},
        {"revoked": wire.Revoked(at=system_clock(), reason="x")},
        {"starts": "first_use", "until": None, "duration_minutes": 5, "take_up_until": system_clock()},
    ],
    ids=["another user's", "expired", "not begun", "revoked", "not taken up"],
)
def test_2_a_grant_that_is_not_in_force_for_the_caller_starts_nothing(computer: Computer, fields: Any) -> None:
    """77, and nothing was executed."""
    computer.grant(ANYTHING, **fields)
    assert computer.elevate("--no-wait", "--", "/usr/bin/id", uid=MALLORY).status == 77
    assert computer.server.of_kind(wire.StartedReport) == []


# --- 3, 4: another file between judging and executing -----------------------------------------------------------------


def test_3_a_swapped_name_runs_the_judged_file_or_nothing(computer: Computer, trusted: Path) -> None:
    """While a name flips between two files as fast as it can, no run shows what the other would do.

    (The folder is an administrator's who is careless with names: an attacker could not even write there.)
    """
    good, evil, name = trusted / "good", trusted / "evil", trusted / "tool"
    good.write_text("#!/bin/sh\necho good\n")
    evil.write_text("#!/bin/sh\necho EVIL\n")
    for file in (good, evil):
        file.chmod(0o755)
    os.link(good, name)
    digest = computer.elevate("--facts", "--", str(good), uid=BOB).out.split("sha256")[1].split()[0]
    computer.grant(wire.FileHashRule(sha256=digest))
    flipping = os.fork()
    if flipping == 0:
        while os.getppid() != 1:
            for file in (evil, good):
                with contextlib.suppress(OSError):
                    os.link(file, trusted / "next")
                    (trusted / "next").rename(name)
    try:
        seen = set()
        for _ in range(25):
            done = computer.elevate("--no-wait", "--", str(name), uid=BOB)
            seen.add((done.status, done.out))
    finally:
        os.kill(flipping, signal.SIGKILL)
        os.waitpid(flipping, 0)
    assert not any("EVIL" in out for _, out in seen), seen
    assert seen <= {(0, "good\n"), (77, ""), (126, ""), (127, "")}


def test_3_a_link_of_the_users_leads_to_what_is_judged(computer: Computer, trusted: Path) -> None:
    """A link may lie anywhere; what it leads to must be trusted, and links in trusted folders lead out of them."""
    computer.grant(wire.FolderPathRule(path=str(trusted)), wire.FolderPathRule(path="/usr/bin", executable="id"))
    mine = Path(tempfile.mkdtemp(prefix="sojourn-mallory-"))
    mine.chmod(0o755)
    try:
        shutil.copy("/usr/bin/id", mine / "evil")
        os.chown(mine / "evil", MALLORY, MALLORY)
        os.chown(mine, MALLORY, MALLORY)
        (trusted / "app").symlink_to(mine / "evil")
        (mine / "link").symlink_to("/usr/bin/id")
        refused = computer.elevate("--no-wait", "--", str(trusted / "app"), uid=MALLORY)
        assert refused.status == 77
        assert "can change /tmp" in refused.err
        assert computer.elevate("--", str(mine / "link"), "-u", uid=MALLORY).out == "0\n"
        around = f"{trusted}/../../{mine}/evil"
        assert computer.elevate("--no-wait", "--", around, uid=MALLORY).status == 77
    finally:
        shutil.rmtree(mine)


def test_4_a_file_that_is_being_written_is_not_run(computer: Computer, trusted: Path) -> None:
    """A writer that was there before makes it refuse; one that comes later is held up until the file is executed."""
    tool = trusted / "tool"
    shutil.copy("/usr/bin/id", tool)
    computer.grant(wire.FolderPathRule(path=str(trusted)))
    with tool.open("r+b"):
        told = computer.elevate("--no-wait", "--", str(tool), "-u", uid=BOB)
    assert told.status == 126
    assert "open for writing" in told.err
    assert computer.elevate("--", str(tool), "-u", uid=BOB).out == "0\n"


def test_4_an_in_place_rewrite_in_the_gap_never_runs(computer: Computer, trusted: Path) -> None:
    """The same inode is rewritten as often as the kernel lets it be: what was not judged does not run."""
    tool = trusted / "tool"
    good, evil = b"#!/bin/sh\necho good\n", b"#!/bin/sh\necho EVIL\n"
    tool.write_bytes(good)
    tool.chmod(0o755)
    digest = computer.elevate("--facts", "--", str(tool), uid=BOB).out.split("sha256")[1].split()[0]
    computer.grant(wire.FileHashRule(sha256=digest))
    writing = os.fork()
    if writing == 0:
        while os.getppid() != 1:
            for content in (evil, good):
                with contextlib.suppress(OSError):
                    fd = os.open(tool, os.O_WRONLY | os.O_NONBLOCK)
                    os.pwrite(fd, content, 0)
                    os.close(fd)
                time.sleep(0.001)
    try:
        outs = {computer.elevate("--no-wait", "--", str(tool), uid=BOB).out for _ in range(25)}
    finally:
        os.kill(writing, signal.SIGKILL)
        os.waitpid(writing, 0)
    assert outs <= {"good\n", ""}


# --- 12: a tree that does not want to end -----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["expiry", "revoke"])
def test_12_the_most_stubborn_tree_ends_whole(computer: Computer, how: str) -> None:
    """Nothing of it is left a moment later, and everybody is told within a second."""
    end = system_clock() + timedelta(seconds=1.5) if how == "expiry" else None
    grant = computer.grant(ANYTHING, until=end)
    process = computer.popen("--", "/bin/sh", "-c", HOSTILE_TREE, uid=MALLORY)
    assert process.stdout.readline() == b"ready\n"
    if how == "revoke":
        eventually(lambda: len(survivors(computer)) > 8)  # all of them have come up
        end = system_clock()
        computer.server.revoke(grant)
    process.communicate(timeout=10)
    assert process.returncode == 124
    none_left(computer, 1)
    assert end is not None
    assert (system_clock() - end).total_seconds() < 1.5
    run = computer.ended(grant).runs[0]
    assert run.gone
    assert run.escaped == []
    assert len(run.processes_ended) > 3


# --- 13: a terminal that is not read ----------------------------------------------------------------------------------


def test_13_a_stalled_terminal_delays_no_end(computer: Computer) -> None:
    """The person stops reading while the application writes: the relay waits, the timer does not."""
    end = system_clock() + timedelta(seconds=1.5)
    computer.grant(ANYTHING, until=end)
    typist = Typist(computer, "--", "/usr/bin/yes", uid=MALLORY)  # nobody reads its terminal
    run_of(computer)
    none_left(computer, 4)
    assert (system_clock() - end).total_seconds() < 1
    typist.process.kill()
    os.close(typist.terminal)


def test_13_ctrl_s_delays_no_end(computer: Computer) -> None:
    """Output that the person has stopped is output that they do not read."""
    end = system_clock() + timedelta(seconds=1.5)
    computer.grant(ANYTHING, until=end)
    typist = Typist(computer, "--", "/usr/bin/yes", uid=MALLORY)
    typist.sees("y")
    typist.types("\x13")
    none_left(computer, 4)
    assert (system_clock() - end).total_seconds() < 1
    assert typist.leaves() == 124


def test_13_a_full_pipe_delays_no_end(computer: Computer) -> None:
    """The application itself hangs in its write; it is killed there."""
    end = system_clock() + timedelta(seconds=1.5)
    computer.grant(ANYTHING, until=end)
    process = computer.popen("--", "/usr/bin/yes", uid=MALLORY)
    run_of(computer)
    assert process.wait(5) == 124
    none_left(computer, 1)
    assert (system_clock() - end).total_seconds() < 1


# --- 14: a caller that goes away, in every way ------------------------------------------------------------------------


def test_14_a_reset_ends_the_run(computer: Computer) -> None:
    """Sends, never reads, closes: the warden's writes fail, and the run ends."""
    computer.grant(ANYTHING)
    caller = knock(computer, {"argv": ["/usr/bin/sleep", "987"]})
    run_of(computer)
    caller.send(b'{"sig": 28}')
    caller.close()
    none_left(computer, 2)
    assert eventually(lambda: computer.server.of_kind(wire.EndedReport))[0].cause == "client_gone"


def test_14_a_killed_client_ends_the_run(computer: Computer) -> None:
    """`kill -9` of elevate; also while a child of it keeps the socket open."""
    computer.grant(ANYTHING)
    process = computer.popen("--", "/usr/bin/sleep", "987", uid=MALLORY)
    run_of(computer)
    process.kill()
    none_left(computer, 2)


def test_14_a_socket_kept_open_by_a_child_does_not_keep_the_run(computer: Computer) -> None:
    """The caller's process is watched, not only its connection."""
    computer.grant(ANYTHING)
    client = os.fork()
    if client == 0:
        caller = knock(computer, {"argv": ["/usr/bin/sleep", "987"]})
        caller.recv(65536)
        if os.fork() == 0:
            time.sleep(20)  # holds a copy of the socket
        os._exit(0)
    os.waitpid(client, 0)
    none_left(computer, 3)


def test_14_a_stopped_client_delays_no_end(computer: Computer) -> None:
    """SIGSTOP over the deadline."""
    end = system_clock() + timedelta(seconds=1.5)
    computer.grant(ANYTHING, until=end)
    process = computer.popen("--", "/usr/bin/sleep", "987", uid=MALLORY)
    run_of(computer)
    process.send_signal(signal.SIGSTOP)
    none_left(computer, 4)
    assert (system_clock() - end).total_seconds() < 1
    process.send_signal(signal.SIGCONT)
    assert process.wait(5) == 124


# --- 15: the agent dies -----------------------------------------------------------------------------------------------


def warden_of(computer: Computer) -> int:
    """The parent of the elevated process."""
    return int(Path(f"/proc/{run_of(computer).pid}/stat").read_text().rpartition(") ")[2].split()[1])


def test_15_a_killed_keeper_takes_its_runs_with_it(computer: Computer) -> None:
    """Its wardens end them at once; the person reads 75; the next keeper reports it."""
    computer.grant(ANYTHING)
    process = computer.popen("--", "/bin/sh", "-c", HOSTILE_TREE, uid=MALLORY)
    assert process.stdout.readline() == b"ready\n"
    run = run_of(computer)
    computer.kill()
    none_left(computer, 2)
    process.communicate(timeout=5)
    assert process.returncode == 75
    computer.start()
    ended = eventually(lambda: computer.server.of_kind(wire.EndedReport))[0]
    assert (ended.cause, ended.runs[0].run_id, ended.runs[0].gone) == ("agent_died", run.run_id, True)


def test_15_a_killed_warden_takes_its_run_with_it(computer: Computer) -> None:
    """The keeper sees it die, and ends what it held."""
    computer.grant(ANYTHING)
    process = computer.popen("--", "/bin/sh", "-c", HOSTILE_TREE, uid=MALLORY)
    assert process.stdout.readline() == b"ready\n"
    os.kill(warden_of(computer), signal.SIGKILL)
    none_left(computer, 2)
    process.communicate(timeout=5)
    assert process.returncode == 75
    assert eventually(lambda: computer.server.of_kind(wire.EndedReport))[0].cause == "agent_died"


def test_15_both_killed_at_once_leave_no_orphan_after_the_restart(computer: Computer) -> None:
    """The leaf's name is the record: the next keeper sweeps it before it lets anybody in."""
    computer.grant(ANYTHING)
    process = computer.popen("--", "/bin/sh", "-c", HOSTILE_TREE, uid=MALLORY)
    assert process.stdout.readline() == b"ready\n"
    warden = warden_of(computer)
    assert computer.keeper is not None
    os.kill(warden, signal.SIGSTOP)
    computer.kill()
    os.kill(warden, signal.SIGKILL)
    assert survivors(computer)
    computer.start()
    assert not survivors(computer)
    process.kill()
    ended = eventually(lambda: computer.server.of_kind(wire.EndedReport))[0]
    assert ended.cause == "agent_died"
    assert ended.runs[0].processes_ended


def test_15_a_hanging_keeper_is_no_longer_life(computer: Computer) -> None:
    """SIGSTOP of the keeper over the deadline: the warden ends the run by itself."""
    end = system_clock() + timedelta(seconds=1.5)
    computer.grant(ANYTHING, until=end)
    process = computer.popen("--", "/usr/bin/sleep", "987", uid=MALLORY)
    run_of(computer)
    assert computer.keeper is not None
    computer.keeper.send_signal(signal.SIGSTOP)
    try:
        assert process.wait(5) == 124
        assert (system_clock() - end).total_seconds() < 1
        none_left(computer, 1)
    finally:
        computer.keeper.send_signal(signal.SIGCONT)


def test_15_a_hanging_warden_is_no_longer_life(computer: Computer) -> None:
    """SIGSTOP of the warden over the deadline: the keeper ends the run by its own timer."""
    end = system_clock() + timedelta(seconds=1.5)
    computer.grant(ANYTHING, until=end)
    process = computer.popen("--", "/usr/bin/sleep", "987", uid=MALLORY)
    run_of(computer)
    os.kill(warden := warden_of(computer), signal.SIGSTOP)
    try:
        none_left(computer, 4)
        assert (system_clock() - end).total_seconds() < 1
    finally:
        os.kill(warden, signal.SIGKILL)  # or it would stay as it is for ever, when its keeper is gone
    process.kill()


# --- 22: documents of others ------------------------------------------------------------------------------------------


def test_22_a_broker_can_delay_a_document_and_never_forge_one(computer: Computer) -> None:
    """A stranger's signature, another computer's document, another purpose, an altered byte: nothing starts."""
    server = computer.server
    stranger = FakeServer(computer.computer_id, PrivateKey.generate())
    grant = wire.Grant(id="evil", users=wire.Users(all=True), from_=system_clock(), rules=[ANYTHING])
    stranger.grants["evil"] = server.grants["evil"] = grant
    good = server.sign()
    head, payload, signature = good.split(".")
    forged = [
        stranger.sign(),
        server.sign(computer_id="01a20000-0000-7000-8000-000000000000"),
        server.key.sign(b'{"v": 1}', "sojourn-time"),
        f"{head}.{payload[:-4]}AAAA.{signature}",
        f"{head}.{payload}.{signature[:-4]}AAAA",
        "no document",
    ]
    before = computer.agent()["document_version"]
    server.answers_heartbeats = False
    for body in forged:
        server.push("grant", body)
        server.push("revoke", body)
    told = computer.elevate("--no-wait", "--", "/usr/bin/id", uid=MALLORY)
    assert told.status == 77
    assert computer.agent()["document_version"] == before


def test_22_a_replay_after_a_revoke_revives_nothing(computer: Computer) -> None:
    """The old document, again and as a heartbeat's answer; also after a restart, and with its file lost."""
    grant = computer.grant(ANYTHING)
    old = computer.server.document
    computer.server.revoke(grant)
    computer.catches_up()
    computer.server.push("grant", old)
    assert computer.elevate("--no-wait", "--", "/usr/bin/id", uid=MALLORY).status == 77
    eventually(lambda: json.loads(computer.state.read("marks.json") or "{}").get("version") == computer.server.version)
    computer.kill()
    computer.state.path("document.jws").unlink()
    computer.server.answers_heartbeats = False
    computer.start(connected=False)
    computer.server.send(between.Connected(up=True))
    computer.server.push("grant", old)
    assert computer.elevate("--no-wait", "--", "/usr/bin/id", uid=MALLORY).status == 77
    assert computer.agent()["document_version"] is None


def test_22_a_forged_or_old_time_moves_no_end(computer: Computer) -> None:
    """An answer to another question, or by another key, is no time: the end stays where it was."""
    end = system_clock() + timedelta(seconds=2)
    computer.grant(ANYTHING, until=end)
    computer.server.answers_heartbeats = False
    process = computer.popen("--", "/usr/bin/sleep", "987", uid=MALLORY)
    run_of(computer)
    beats = [m for m in computer.server.heard if isinstance(m, between.Ask) and m.kind == "heartbeat"]
    computer.server.offset = -timedelta(hours=1)
    for number in range(1, 50):
        computer.server.send(between.Answer(ask=number, body=computer.server.answer(beats[0].body)))
    assert process.wait(6) == 124
    assert abs((system_clock() - end).total_seconds()) < 1


def test_22_the_keeper_signs_no_document_for_the_link(computer: Computer) -> None:
    """What the link may have signed are nonces; anything longer or stranger is refused."""
    for nonce in ("eyJhbGciOiJFZERTQSJ9.eyJ2IjoxfQ", "x" * 600, "a b", ""):
        computer.server.send(between.SignNonce(ask=1, nonce=nonce))
    eventually(lambda: len([m for m in computer.server.heard if isinstance(m, between.Signature)]) == 4)
    assert all(m.signature is None for m in computer.server.heard if isinstance(m, between.Signature))


@pytest.mark.parametrize(
    "fields",
    [
        {"until": datetime(2100, 1, 1)},
        {"duration_minutes": 10**15, "starts": "first_use", "until": None},
        {"revoked": wire.Revoked(at=system_clock(), reason="x", grace_seconds=10**15)},
    ],
    ids=["no zone", "an endless duration", "an endless grace"],
)
def test_22_a_grant_that_cannot_be_reckoned_with_keeps_no_other_alive(computer: Computer, fields: Any) -> None:
    """It is refused alone, and reported; the revoke in the same document ends what runs."""
    grant = computer.grant(ANYTHING)
    process = computer.popen("--", "/usr/bin/sleep", "987", uid=MALLORY)
    run_of(computer)
    strange = wire.Grant(
        **({"id": "strange", "users": wire.Users(all=True), "from_": system_clock(), "rules": [ANYTHING]} | fields)
    )
    computer.server.grants = {"strange": strange} | computer.server.grants
    computer.server.revoke(grant)
    assert process.wait(5) == 124
    applied = eventually(lambda: computer.server.of_kind(wire.AppliedReport)[2:])[0]
    assert all(not one.applied for one in applied.grants)
    assert computer.elevate("--no-wait", "--", "/usr/bin/id", uid=MALLORY).status == 77


# --- the door itself, as far as First light's cases lean on it --------------------------------------------------------


def test_the_door_stands_junk_and_crowds(computer: Computer) -> None:
    """Junk, no descriptors, wrong ones, too many callers: the next honest caller is served, and none leaks."""
    computer.grant(ANYTHING)
    assert computer.keeper is not None
    fds = Path(f"/proc/{computer.keeper.pid}/fd")
    eventually(lambda: not computer.agent()["running"])
    before = len(list(fds.iterdir()))

    def crowd() -> int:
        callers = []
        for _ in range(40):
            caller = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            caller.connect(str(computer.config.socket))
            callers.append(caller)
        junk = [b"junk", b"\0" * 100, b"[]", b'{"v": 9, "op": "run"}', b"x" * 65537]
        for caller, packet in zip(callers, junk, strict=False):
            with contextlib.suppress(OSError):
                caller.send(packet)
        for wrong in ({"argv": []}, {"argv": ["a\0b"]}, {"op": "format"}, {"argv": ["x"] * 2000}):
            with contextlib.suppress(OSError):
                knock(computer, wrong).close()
        with contextlib.suppress(OSError):
            knock(computer, {}, descriptors=False).close()
        return 0

    assert as_user(MALLORY, crowd) == 0
    assert computer.elevate("--", "/usr/bin/id", "-u", uid=BOB).out == "0\n"
    eventually(lambda: len(list(fds.iterdir())) <= before + 1)


def test_an_application_that_leaves_its_leaf_is_found_and_reported(computer: Computer) -> None:
    """Full root can leave its cgroup; it is looked for by the run's id, killed, and named."""
    grant = computer.grant(ANYTHING)
    root = Path(computer.agent()["leaves"]).parent
    script = f"sh -c 'echo $$ > {root}/cgroup.procs; exec sleep 987' & sleep 0.3; echo out; sleep 987"
    process = computer.popen("--", "/bin/sh", "-c", script, uid=MALLORY)
    assert process.stdout.readline() == b"out\n"
    computer.server.revoke(grant)
    assert process.wait(5) == 124
    run = computer.ended(grant).runs[0]
    assert [process.name for process in run.escaped] == ["sleep"]
    none_left(computer, 1)
