"""What the supervisor keeps alive: programs, and services forked by the nursery. Each has the same few verbs."""

import contextlib
import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from .process import CannotStart, Identity, spawn


class Part(Protocol):
    """A process that is started, gets ready, and may end."""

    name: str
    pid: int | None
    log: Path

    def can_launch(self) -> bool:
        """Whether what it is made by is there."""

    def launch(self) -> None:
        """Start it; it is ready when `is_ready` says so. Raises CannotStart."""

    def is_ready(self) -> bool: ...

    def ended(self) -> str | None:
        """How it ended (`status 1`, `killed by SIGKILL`), or None while it runs."""

    def descriptor(self) -> int | None:
        """Becomes readable when `ended` may have something new to say."""

    def signal(self, by: signal.Signals) -> None: ...


class Program:
    """A part that is a child of this process."""

    def __init__(
        self, name: str, log: Path, start: Callable[[], subprocess.Popen[bytes]], is_ready: Callable[[], bool]
    ) -> None:
        self.name = name
        self.log = log
        self.pid: int | None = None
        self._start = start
        self._is_ready = is_ready
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
    """The launcher's side of the process that forks the services (`nursery.py`). Itself a part."""

    name = "nursery"

    def __init__(self, log: Path, lock: int) -> None:
        self.log = log
        self.pid: int | None = None
        self._lock = lock
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._ready = False
        self._ended: dict[int, str] = {}
        self._told: deque[dict[str, Any]] = deque()

    def can_launch(self) -> bool:
        return True

    def launch(self) -> None:
        if self._channel:
            self._channel.close()
        self._ready = False
        self._told.clear()
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # Executed, never forked from here: this process may have read secrets.
            self._process = spawn(
                [sys.executable, "-P", "-m", "sojourn_embedded.nursery", str(theirs.fileno())],
                Identity.caller(),
                log=self.log,
                dies_by=signal.SIGKILL,
                keep_open=(theirs.fileno(), self._lock),
            )
        self.pid = self._process.pid

    def is_ready(self) -> bool:
        self._listen(0)
        return self._ready and self.ended() is None

    def ended(self) -> str | None:
        if self._process is None:
            return "not started"
        return None if (status := self._process.poll()) is None else described(status)

    def descriptor(self) -> int | None:
        return self._channel.fileno() if self._channel and self.ended() is None else None

    def signal(self, by: signal.Signals) -> None:
        if self._process:
            self._process.send_signal(by)

    def start(self, service: str, environ: Mapping[str, str], identity: Identity, log: Path) -> int:
        """The pid of a fresh service. Raises CannotStart."""
        order = {"start": service, "environ": dict(environ), "uid": identity.uid, "gid": identity.gid, "log": str(log)}
        self._order(order)
        return int(self._answer(lambda told: told.get("started") == service, within=5)["pid"])

    def prepare(self, function: str, **arguments: object) -> Any:
        """Run a function of `prepare` there, where everything is imported. Raises CannotStart."""
        self._order({"prepare": function, "arguments": arguments})
        answer = self._answer(lambda told: told.get("prepared") == function, within=60)
        if "problem" in answer:
            raise CannotStart(f"{answer['problem']} (more in {self.log})")
        return answer["result"]

    def end_of(self, pid: int) -> str | None:
        """How the service with that pid ended; None while it runs."""
        self._listen(0)
        return self._ended.get(pid) or (f"its parent: {how}" if (how := self.ended()) else None)

    def _order(self, order: Mapping[str, object]) -> None:
        if self._channel is None or not self._ready:
            raise CannotStart("the services' parent is not there yet")
        try:
            self._channel.send(json.dumps(order).encode())
        except OSError as error:
            raise CannotStart(f"the services' parent has ended: {error.strerror}") from None

    def _answer(self, wanted: Callable[[dict[str, Any]], bool], within: float) -> dict[str, Any]:
        deadline = time.monotonic() + within
        while True:
            for told in list(self._told):
                if wanted(told):
                    self._told.remove(told)
                    return told
            if self.ended() or time.monotonic() > deadline:
                raise CannotStart(f"the services' parent does not answer (more in {self.log})")
            self._listen(0.2)

    def _listen(self, seconds: float) -> None:
        """Take what the nursery tells; wait for it at most `seconds`."""
        if self._channel is None:
            return
        while select.select([self._channel], [], [], seconds)[0]:
            try:
                packet = self._channel.recv(1 << 16)
            except OSError:
                return
            if not packet:
                return
            seconds, told = 0, json.loads(packet)
            if "ready" in told:
                self._ready = True
            elif "ended" in told:
                self._ended[told["pid"]] = described(told["status"])
            else:
                if "started" in told:
                    self._ended.pop(told["pid"], None)  # an older process had the same number
                self._told.append(told)


class Forked:
    """A service, forked by the nursery; ready when it answers `/health/ready`."""

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

    def can_launch(self) -> bool:
        return self._nursery.is_ready()

    def launch(self) -> None:
        self.pid = self._nursery.start(self.name, self._environ, self._identity, self.log)

    def is_ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=2)
        try:
            connection.request("GET", "/health/ready")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def ended(self) -> str | None:
        return "not started" if self.pid is None else self._nursery.end_of(self.pid)

    def descriptor(self) -> int | None:
        return None  # the nursery's speaks for all of them

    def signal(self, by: signal.Signals) -> None:
        if self.pid is not None and self.ended() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, by)


def described(status: int) -> str:
    """An exit status as `subprocess` has it, in words."""
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"status {status}"
