"""Attacks of an unprivileged user on what all users of a computer share: the keeper's loop, its spool (as root)."""

import array
import contextlib
import json
import os
import shutil
import signal
import socket
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sojourn_agent.testing import Computer, a_computer, as_user, eventually, os_user
from sojourn_shared.contracts import wire

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root elevates, and only root is another user"),
]
MALLORY, BOB = 64_002, 64_001


@pytest.fixture
def computer() -> Iterator[Computer]:
    with a_computer() as computer:
        yield computer


def says(computer: Computer, body: dict[str, Any], *descriptors: int, seconds: float = 5) -> dict[str, Any]:
    """What the agent answers to a caller of one's own making."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as caller:
        caller.settimeout(seconds)
        caller.connect(str(computer.config.socket))
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        caller.sendmsg([json.dumps({"v": 1} | body).encode()], rights)
        answer: dict[str, Any] = json.loads(caller.recv(65536))
        return answer


def run(computer: Computer, body: dict[str, Any], folder: int | None = None) -> dict[str, Any]:
    null = os.open("/dev/null", os.O_RDWR)
    where = os.open("/", os.O_PATH | os.O_DIRECTORY) if folder is None else folder
    return says(computer, {"op": "run", "argv": ["/usr/bin/id"], "no_wait": True} | body, null, null, null, where)


# --- reports: every refusal is answered and told, and no loop fills the spool -----------------------------------------


def test_17_a_refusal_that_is_long_in_json_is_answered_and_reported(computer: Computer) -> None:
    """Control characters take six bytes each there, in arguments and in the names of folders."""
    top = Path(tempfile.mkdtemp(prefix="sojourn-deep-"))
    folder = os.open(top, os.O_PATH | os.O_DIRECTORY)
    top.chmod(0o755)
    for _ in range(14):
        os.mkdir("\x01" * 250, dir_fd=folder)
        folder = os.open("\x01" * 250, os.O_PATH | os.O_DIRECTORY, dir_fd=folder)
    try:
        told = {"argv": ["/usr/bin/id", "\x01" * 9000]}
        assert as_user(MALLORY, lambda: run(computer, told, folder)["exit"] != 77) == 0
    finally:
        os.close(folder)
        shutil.rmtree(top)
    refused = eventually(lambda: computer.server.of_kind(wire.RefusedReport))[0]
    assert refused.application.path == os.path.realpath("/usr/bin/id")


def test_17_many_nameless_users_are_refused_in_one_report(computer: Computer) -> None:
    """Who may make user namespaces has 65,536 user ids: a report for each would fill the spool in minutes."""
    for uid in range(200_000, 200_010):
        assert as_user(uid, lambda: run(computer, {})["exit"] != 77) == 0
    eventually(lambda: computer.server.of_kind(wire.RefusedReport))
    assert len(computer.server.of_kind(wire.RefusedReport)) == 1


def test_17_asking_and_cancelling_in_a_loop_does_not_fill_the_spool(computer: Computer) -> None:
    """A person has changed their mind twenty times in an hour: then they wait."""
    with os_user("sojloop") as (_, uid):

        def loop() -> int:
            for number in range(40):
                told = run(computer, {"argv": ["/usr/bin/id", str(number)], "because": "x", "minutes": 5})
                if told["type"] == "refused":
                    return 0 if (told["exit"], number) == (78, 20) else 1
                assert says(computer, {"op": "cancel", "target": told["request_id"]})["exit"] == 0
            return 1

        assert as_user(uid, loop) == 0


# --- the loop: nothing that a caller hands in holds up the keeper -----------------------------------------------------


def lingering() -> tuple[socket.socket, socket.socket]:
    """A socket whose last close waits for a minute, since it has bytes that its other side, the second, never reads."""
    near = socket.socket()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        near.connect(listener.getsockname())
        far, _ = listener.accept()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 60))
    near.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            near.send(b"x" * 65536)
    return near, far


def in_an_errand(caller: socket.socket, near: socket.socket) -> None:
    socket.send_fds(caller, [b'{"v": 1, "op": "status"}'], [near.fileno()])


def behind_an_errand(caller: socket.socket, near: socket.socket) -> None:
    """The first packet is honest, the second is never read."""
    caller.send(b'{"v": 1, "op": "status"}')
    try:
        socket.send_fds(caller, [b"{}"], [near.fileno()])
    except BrokenPipeError:  # the agent was faster
        near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))


def as_standard_input(caller: socket.socket, near: socket.socket, **fields: Any) -> None:
    null, folder = os.open("/dev/null", os.O_RDWR), os.open("/", os.O_PATH | os.O_DIRECTORY)
    body = {"v": 1, "op": "run", "argv": ["/usr/bin/id"], "no_wait": True} | fields
    socket.send_fds(caller, [json.dumps(body).encode()], [near.fileno(), null, null, folder])


def in_an_answer(caller: socket.socket, near: socket.socket) -> None:
    """While the person is asked for a reason."""
    as_standard_input(caller, near, no_wait=False, interactive=True)
    assert json.loads(caller.recv(65536))["type"] == "ask"
    socket.send_fds(caller, [b"{}"], [near.fileno()])


@pytest.mark.parametrize("hand_in", [in_an_errand, behind_an_errand, as_standard_input, in_an_answer])
def test_17_a_socket_that_lingers_holds_up_nobody(computer: Computer, hand_in: Any) -> None:
    """Its last close waits, and the caller has none of it any more: others are served, and revokes are heard."""
    grant = computer.grant(wire.FolderPathRule(path="/usr/bin"), users=wire.Users(names=["root"]))
    others = computer.popen("--", "/usr/bin/sleep", "987", uid=0)
    eventually(lambda: computer.server.of_kind(wire.StartedReport))
    with os_user("sojlinger") as (_, uid):
        done, doing = os.pipe()
        attacker = os.fork()
        if attacker == 0:
            signal.alarm(30)
            os.setresuid(uid, uid, uid)
            near, far = lingering()
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as caller:
                caller.settimeout(5)
                caller.connect(str(computer.config.socket))
                hand_in(caller, near)
                near.close()
                with contextlib.suppress(OSError):
                    caller.recv(65536)
            os.write(doing, b"!")
            signal.pause()
            far.close()
        try:
            assert os.read(done, 1) == b"!"
            began = time.monotonic()
            computer.agent()
            computer.server.revoke(grant)
            assert others.wait(5) == 124
            assert time.monotonic() - began < 2
        finally:
            os.kill(attacker, signal.SIGKILL)
            os.waitpid(attacker, 0)
            os.close(done)
            os.close(doing)
