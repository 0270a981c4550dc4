"""Starting a program under a uid of its own, so that it ends when its parent does."""

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

# Loaded before any fork: a child between fork and exec must not import.
_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36

SMALL = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""For glibc's malloc, in processes that have hardly any threads: freed memory goes back to the system sooner."""


class CannotStart(Exception):
    """A part cannot start; the message is a sentence for the person at the terminal, and says what to do."""


@dataclass(frozen=True)
class Identity:
    """Whom a part runs as. Numeric: no OS user is created, and none of these needs one."""

    uid: int
    gid: int

    @classmethod
    def caller(cls) -> "Identity":
        return cls(os.geteuid(), os.getegid())

    @property
    def is_caller(self) -> bool:
        return self.uid == os.geteuid()

    def drop(self) -> None:
        """Become this identity for good. In a child, before it reads any secret."""
        if not self.is_caller:
            os.setgroups([])
            os.setgid(self.gid)
            os.setuid(self.uid)


def spawn(
    argv: Sequence[str | Path],
    identity: Identity,
    *,
    log: Path,
    dies_by: signal.Signals,
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
    keep_open: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start `argv` as `identity`; it gets `dies_by` when this process is gone. Output is appended to `log`."""
    parent = os.getpid()
    with append_to(log) as out:
        return subprocess.Popen(
            [str(part) for part in argv],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={"PATH": os.defpath, "LANG": "C.UTF-8", **(environ or {})},
            cwd=folder or "/",
            pass_fds=keep_open,
            # A session of its own: Ctrl-C at the terminal reaches the launcher alone, which ends the parts in order.
            start_new_session=True,
            preexec_fn=lambda: die_with(parent, dies_by),  # noqa: PLW1509 - the launcher has one thread
            user=None if identity.is_caller else identity.uid,
            group=None if identity.is_caller else identity.gid,
            extra_groups=None if identity.is_caller else (),
        )


def die_with(parent: int, by: signal.Signals) -> None:
    """Have this process receive `by` when `parent` ends. Call it after a change of uid, which would clear it."""
    _libc.prctl(_PR_SET_PDEATHSIG, int(by))
    if os.getppid() != parent:  # it ended before we asked
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends (PR_SET_CHILD_SUBREAPER)."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def call_this_process(name: str) -> None:
    """What `top` and `ps -o comm` show: at most 15 characters."""
    _libc.prctl(_PR_SET_NAME, name.encode()[:15])


def append_to(log: Path) -> IO[bytes]:
    """A log that only its owner reads; never through a symbolic link."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    return os.fdopen(descriptor, "ab")


def end(process: subprocess.Popen[bytes], by: signal.Signals, *, within: float) -> None:
    """Ask a process to end by a signal, and kill it after `within` seconds."""
    if process.poll() is not None:
        return
    process.send_signal(by)
    try:
        process.wait(within)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_until(
    ready: Callable[[], bool], process: subprocess.Popen[bytes], *, within: float, name: str, log: Path
) -> None:
    """Return as soon as `ready()`. Raises CannotStart, with the end of the log, if it ends or takes too long."""
    deadline = time.monotonic() + within
    while not ready():
        if process.poll() is not None:
            raise CannotStart(f"{name} ended with status {process.returncode}: {last_lines(log)} ({log})")
        if time.monotonic() > deadline:
            raise CannotStart(f"{name} is not ready after {within:.0f} s: {last_lines(log)} ({log})")
        time.sleep(0.005)


def last_lines(log: Path, count: int = 3) -> str:
    try:
        return " / ".join(log.read_text(errors="replace").splitlines()[-count:])
    except OSError:
        return "it wrote no log"
