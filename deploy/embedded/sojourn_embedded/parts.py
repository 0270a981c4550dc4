"""What the supervisor keeps alive: programs, and services forked by the nursery. Each has the same few verbs."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from .process import SMALL, CannotStart, Identity, end, last_lines, spawn


class Part(Protocol):
    """A process that is started, gets ready, and may end."""

    name: str
    pid: int | None
    log: Path

    def can_launch(self) -> bool:
        """Whether what it is made by is there yet. Raises CannotStart."""

    def launch(self) -> None:
        """Start it; it is ready when `is_ready` says so. Raises CannotStart."""

    def is_ready(self) -> bool: ...

    def is_stuck(self) -> bool:
        """Whether it runs, does not do its work, and a new start would help."""

    def ended(self) -> str | None:
        """How it ended (`status 1`, `killed by SIGKILL`), or None while it runs."""

    def descriptor(self) -> int | None:
        """Becomes readable when `ended` may have something new to say."""

    def signal(self, by: signal.Signals) -> None: ...


class Program:
    """A part that is a child of this process."""

    def __init__(
        self,
        name: str,
        log: Path,
        start: Callable[[], subprocess.Popen[bytes]],
        is_ready: Callable[[], bool],
        is_stuck: Callable[[], bool] = lambda: False,
    ) -> None:
        self.name = name
        self.log = log
        self.pid: int | None = None
        self._start = start
        self._is_ready = is_ready
        self._is_stuck = is_stuck
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd: int | None = None

    def can_launch(self) -> bool:
        return True

    def launch(self) -> None:
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
        self._process = self._start()
        self.pid = self._process.pid
        self._pidfd = os.pidfd_open(self.pid)

    def is_ready(self) -> bool:
        return self._is_ready()

    def is_stuck(self) -> bool:
        return self._is_stuck()

    def ended(self) -> str | None:
        if self._process is None:
            return "not started"
        return None if (status := self._process.poll()) is None else described(status)

    def descriptor(self) -> int | None:
        return self._pidfd if self.ended() is None else None

    def signal(self, by: signal.Signals) -> None:
        if self._process:
            self._process.send_signal(by)  # does nothing once it was reaped


class Nursery:
    """The launcher's side of the process that forks the services (`nursery.py`). It is there while somebody needs it.

    A service that it forked is our child, not its: it may go at any time, and its memory with it.
    """

    def __init__(self, log: Path, lock: int) -> None:
        self.log = log
        self._lock = lock
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._needed_by: set[str] = set()
        self._ready = False

    def need(self, name: str) -> bool:
        """Whether it is ready for `name`; loads it if it is not there. Raises CannotStart if it cannot be loaded."""
        self._needed_by.add(name)
        if self._process is None:
            self._load()
        return self._is_ready(wait=0)

    def wait(self) -> None:
        """Return when it is ready. Raises CannotStart."""
        deadline = time.monotonic() + 60
        while not self._is_ready(wait=0.2):
            if time.monotonic() > deadline:
                raise CannotStart(f"The services are not loaded after a minute (more in {self.log})")

    def release(self, name: str) -> None:
        """`name` needs it no more; without anybody who does, it ends."""
        self._needed_by.discard(name)
        if not self._needed_by:
            self.dismiss()

    def dismiss(self) -> None:
        if self._process and self._channel:
            self._channel.close()  # it leaves when it reads that
            end(self._process, signal.SIGTERM, within=5)
        self._process = self._channel = None
        self._ready = False

    def start(self, service: str, environ: Mapping[str, str], identity: Identity, log: Path) -> int:
        """The pid of a fresh service, a child of this process. Raises CannotStart."""
        owner = {"uid": identity.uid, "gid": identity.gid}
        order = {"start": service, "environ": dict(environ), "parent": os.getpid(), "log": str(log), **owner}
        return int(self._ask(order, within=10)["started"])

    def prepare(self, function: str, **arguments: object) -> Any:
        """Run a function of `prepare` there, where everything is imported. Raises CannotStart."""
        answer = self._ask({"prepare": function, "arguments": arguments}, within=60)
        if "problem" in answer:
            raise CannotStart(f"{answer['problem']} (more in {self.log})")
        return answer["prepared"]

    def _load(self) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # Executed, never forked from here: this process may have read secrets.
            self._process = spawn(
                [sys.executable, "-P", "-m", "sojourn_embedded.nursery", str(theirs.fileno())],
                Identity.caller(),
                log=self.log,
                dies_by=signal.SIGKILL,
                keep_open=(theirs.fileno(), self._lock),
                environ=SMALL,
            )

    def _is_ready(self, wait: float) -> bool:
        if not self._ready:
            self._ready = "ready" in (self._hear(wait) or ())
        return self._ready

    def _ask(self, order: Mapping[str, object], within: float) -> dict[str, Any]:
        if self._channel is None or not self._ready:
            raise CannotStart("the services are not loaded")
        try:
            self._channel.send(json.dumps(order).encode())
        except OSError as error:
            self.dismiss()
            raise CannotStart(f"the services have to be loaded again ({error.strerror})") from None
        if (answer := self._hear(within)) is None:
            self.dismiss()
            raise CannotStart(f"no answer after {within:.0f} s (more in {self.log})")
        return answer

    def _hear(self, wait: float) -> dict[str, Any] | None:
        """The next thing it tells within `wait` seconds. Raises CannotStart if it has ended."""
        assert self._channel
        if not select.select([self._channel], [], [], wait)[0]:
            return None
        try:
            packet = self._channel.recv(1 << 16)
        except ConnectionResetError:
            packet = b""
        if not packet:
            self.dismiss()
            raise CannotStart(f"The services cannot be loaded: {last_lines(self.log, 1)} (more in {self.log})")
        return dict(json.loads(packet))


class Forked:
    """A service, forked by the nursery and ours since; ready when it answers `/health/ready`."""

    def __init__(
        self, name: str, nursery: Nursery, environ: Mapping[str, str], *, identity: Identity, log: Path, port: int
    ) -> None:
        self.name = name
        self.log = log
        self.pid: int | None = None
        self._nursery = nursery
        self._environ = environ
        self._identity = identity
        self._port = port
        self._pidfd: int | None = None
        self._how = "not started"

    def can_launch(self) -> bool:
        return self._nursery.need(self.name)

    def launch(self) -> None:
        self.pid = self._nursery.start(self.name, self._environ, self._identity, self.log)
        self._pidfd = os.pidfd_open(self.pid)

    def is_ready(self) -> bool:
        ready = _answers(self._port, "/health/ready")
        if ready:
            self._nursery.release(self.name)
        return ready

    def is_stuck(self) -> bool:
        return False

    def ended(self) -> str | None:
        if self.pid is None or self._pidfd is None:
            return self._how
        try:
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return None
        except ChildProcessError:  # the one between us is just leaving
            return None
        _, status = os.waitpid(self.pid, 0)
        os.close(self._pidfd)
        self._pidfd, self._how = None, described(os.waitstatus_to_exitcode(status))
        return self._how

    def descriptor(self) -> int | None:
        return self._pidfd if self.ended() is None else None

    def signal(self, by: signal.Signals) -> None:
        if self.pid is not None and self.ended() is None:
            os.kill(self.pid, by)


def _answers(port: int, path: str) -> bool:
    """Whether a GET there is answered with 200. (An HTTP library would be 5 MiB of this small process.)"""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
            return connection.recv(12) == b"HTTP/1.1 200"
    except OSError:
        return False


def described(status: int) -> str:
    """An exit status as `subprocess` has it, in words."""
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"status {status}"
