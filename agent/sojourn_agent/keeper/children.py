"""What may hang is asked in a forked child with a time limit: name services, a walk through /proc, probes."""

import contextlib
import fcntl
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import msgspec

from .loop import Loop

log = logging.getLogger("sojourn.keeper")

_PIPE_SIZE = 1024 * 1024
_F_SETPIPE_SZ = 1031


def ask(loop: Loop, question: Callable[[], Any], limit: float, then: Callable[[bytes | None], None]) -> None:
    """Call `question` in a child; `then` gets its answer as JSON, or None when it failed or took over `limit` s."""
    inlet, outlet = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    fcntl.fcntl(outlet, _F_SETPIPE_SZ, _PIPE_SIZE)
    pid = os.fork()
    if pid == 0:
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


def leave(act: Callable[[], None], keep: Iterable[int]) -> NoReturn:
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


def _answer(question: Callable[[], Any], outlet: int) -> None:
    os.write(outlet, msgspec.json.encode(question()))
