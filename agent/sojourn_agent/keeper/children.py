"""What may hang is asked in a forked child with a time limit: name services, a walk through /proc, probes."""

import contextlib
import fcntl
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import msgspec

from .loop import Loop

log = logging.getLogger("sojourn.keeper")

_PIPE_SIZE = 1024 * 1024
_F_SETPIPE_SZ = 1031
_GATHERED = 0.05
"""Seconds."""


def ask(loop: Loop, question: Callable[[], Any], limit: float, then: Callable[[bytes | None], None]) -> None:
    """Call `question` in a child; `then` gets its answer as JSON, or None when it failed or took over `limit` s."""
    try:
        inlet, outlet, pid = _forked(os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        log.error("no process can be made: %s", error)
        loop.after(0.0, lambda: then(None))
        return
    if pid == 0:
        fcntl.fcntl(outlet, _F_SETPIPE_SZ, _PIPE_SIZE)
        leave(lambda: _answer(question, outlet), keep=[outlet])
    os.close(outlet)
    pidfd = os.pidfd_open(pid)
    late = loop.after(limit, lambda: os.kill(pid, signal.SIGKILL))

    def over() -> None:
        late.cancel()
        loop.unwatch(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        answer = b""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(inlet, _PIPE_SIZE):
                answer += chunk
        os.close(inlet)
        then(answer if status == 0 else None)

    loop.watch(pidfd, over)


class Closing:
    """Closes sockets in which descriptors of callers may lie. Whoever closes those last may wait for ever (a socket
    that lingers, say), unless it exits: so a child has them last, and exits."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._ends: list[socket.socket] = []

    def close(self, *ends: socket.socket) -> None:
        """For the other side now, for this process in a moment: many are one child."""
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        if not self._ends:
            self._loop.after(_GATHERED, self._let_go)
        self._ends += ends

    def _let_go(self) -> None:
        try:
            inlet, outlet, pid = _forked(os.O_CLOEXEC)
        except OSError as error:
            log.error("no process can be made: %s", error)
            self._loop.after(1.0, self._let_go)
            return
        if pid == 0:  # the pipe ends when the keeper has let go
            leave(lambda: os.read(inlet, 1), keep=[inlet, *(end.fileno() for end in self._ends)])
        for end in self._ends:
            end.close()
        self._ends = []
        os.close(inlet)
        os.close(outlet)
        pidfd = os.pidfd_open(pid)

        def over() -> None:
            self._loop.unwatch(pidfd)
            os.close(pidfd)
            os.waitpid(pid, 0)

        self._loop.watch(pidfd, over)


def leave(act: Callable[[], object], keep: Iterable[int]) -> NoReturn:
    """Be a child of the keeper: its own session, default signals, no descriptor but 0, 1, 2 and `keep`; then `act`."""
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        close_all_but(keep)
        act()
    except BaseException:
        log.exception("a child of the keeper failed")
        os._exit(1)
    finally:
        with contextlib.suppress(Exception):
            sys.stderr.flush()
    os._exit(0)


def close_all_but(keep: Iterable[int]) -> None:
    """Close every descriptor above 2 that is not in `keep`."""
    at = 3
    for fd in sorted(fd for fd in keep if fd > 2):
        os.closerange(at, fd)
        at = fd + 1
    os.closerange(at, 1 << 24)  # the kernel does it in one call (close_range)


def _forked(flags: int) -> tuple[int, int, int]:
    """Both ends of a pipe, and the child's pid (0: we are it). Raises OSError, and nothing is left open then."""
    inlet, outlet = os.pipe2(flags)
    try:
        return inlet, outlet, os.fork()
    except OSError:
        os.close(inlet)
        os.close(outlet)
        raise


def _answer(question: Callable[[], Any], outlet: int) -> None:
    os.write(outlet, msgspec.json.encode(question()))
