"""What holds the processes of a run together: a cgroup v2 leaf named like the run, or, without one, descent in /proc.

A leaf is killed whole by the kernel, whatever its processes do; descent is *best effort*, by nature a race.
"""

import contextlib
import ctypes
import itertools
import logging
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Protocol

from sojourn_agent.config import Config
from sojourn_shared.contracts.wire import EndedProcess

log = logging.getLogger("sojourn.keeper")

RUN_VARIABLE = "SOJOURN_RUN"
"""In the environment of every elevated process: how one that left its leaf is found."""

NAMED = 500
"""Processes named in a report; a fork bomb must fit into one."""


class Containment(Protocol):
    """All processes of one run."""

    def add(self, pid: int) -> None: ...
    def processes(self) -> list[EndedProcess]:
        """At most NAMED of them: to name thousands takes longer than to kill them."""

    def kill(self) -> None:
        """Kill all that there is now; the caller asks `is_empty` until it is true, and kills again meanwhile."""

    def is_empty(self) -> bool: ...
    def changes(self) -> int | None:
        """A descriptor to watch with `loop.CHANGED`, closed by `remove`; None: there is nothing to watch."""

    def remove(self) -> None: ...


class Leaf:
    """A cgroup v2 leaf. Made with its folder; survives the keeper, so that the next one finds it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._events: int | None = None
        self._descriptor: int | None = None
        folder.mkdir(parents=True)

    @classmethod
    def found(cls, folder: Path) -> "Leaf":
        """One that is there already."""
        leaf = cls.__new__(cls)
        leaf.folder, leaf._events, leaf._descriptor = folder, None, None
        return leaf

    def descriptor(self) -> int:
        """The folder, open for `fork_into`; closed by `remove`."""
        if self._descriptor is None:
            self._descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return self._descriptor

    def add(self, pid: int) -> None:
        (self.folder / "cgroup.procs").write_text(str(pid))

    def processes(self) -> list[EndedProcess]:
        pids = (pid for folder in self._all() for pid in _numbers(folder / "cgroup.procs"))
        some = itertools.islice(pids, NAMED)
        return [EndedProcess(pid=pid, name=name) for pid in some if (name := _name(pid)) is not None]

    def kill(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            (self.folder / "cgroup.kill").write_text("1")

    def is_empty(self) -> bool:
        try:
            return "populated 0" in (self.folder / "cgroup.events").read_text()
        except FileNotFoundError:
            return True

    def changes(self) -> int | None:
        if self._events is None:
            self._events = os.open(self.folder / "cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        return self._events

    def remove(self) -> None:
        for fd in (self._events, self._descriptor):
            if fd is not None:
                os.close(fd)
        self._events = self._descriptor = None
        for folder in reversed(list(self._all())):  # an application may have made groups of its own in there
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _all(self) -> Iterator[Path]:
        yield self.folder
        for folder, below, _ in os.walk(self.folder):
            yield from (Path(folder, name) for name in below)


class Descent:
    """The descendants of a warden, and whoever carries the run's id: where no cgroup can be written to."""

    def __init__(self, run_id: str, warden: int) -> None:
        self._run_id = run_id
        self._warden = warden
        self._roots: set[int] = set()

    def add(self, pid: int) -> None:
        self._roots.add(pid)

    def processes(self) -> list[EndedProcess]:
        found = {pid for pid in _descendants(self._roots | {self._warden}) if pid != self._warden}
        found |= set(carriers(self._run_id))
        return [EndedProcess(pid=pid, name=name) for pid in sorted(found) if (name := _name(pid)) is not None]

    def kill(self) -> None:
        victims = self.processes()
        for number in (signal.SIGSTOP, signal.SIGKILL):  # first stop all, so that none forks while we go round
            for process in victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, number)

    def is_empty(self) -> bool:
        return not self.processes()

    def changes(self) -> int | None:
        return None

    def remove(self) -> None:
        return


class Leaves:
    """Where the leaves of this agent lie. `why_none`: no cgroup can be written to here, and the reason."""

    def __init__(self, config: Config) -> None:
        self.parent: Path | None = None
        self.why_none: str | None = None
        try:
            self.parent = config.cgroup_parent or find_parent(config.computer_id)
            self.parent.mkdir(parents=True, exist_ok=True)
            trial = Leaf(self.parent / "trial")
            try:
                if not (trial.folder / "cgroup.kill").exists():
                    raise OSError("the kernel has no cgroup.kill (it came with Linux 5.14)")
            finally:
                trial.remove()
        except (OSError, ValueError) as error:
            self.why_none = f"no cgroup v2 folder can be used: {error}"
            self.parent = None

    def make(self, run_id: str) -> Leaf:
        """Raises OSError."""
        assert self.parent is not None
        return Leaf(self.parent / run_id)

    def close(self) -> None:
        """Remove what is empty, the parent too: a computer that is no longer kept shows no trace of it."""
        if self.parent is not None:
            for folder in (*(leaf.folder for leaf in self.left_over()), self.parent):
                with contextlib.suppress(OSError):
                    folder.rmdir()

    def left_over(self, *parents: Path) -> list[Leaf]:
        """The leaves that are there at start: nobody watches them."""
        known = {parent for parent in (self.parent, *parents) if parent is not None and parent.is_dir()}
        return [Leaf.found(folder) for parent in known for folder in parent.iterdir() if folder.is_dir()]


class _CloneArguments(ctypes.Structure):
    """`struct clone_args` of clone3(2)."""

    _fields_: ClassVar = [
        (name, ctypes.c_uint64)
        for name in (
            "flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size", "tls", "set_tid",
            "set_tid_size", "cgroup",
        )
    ]  # fmt: skip


_CLONE3, _CLONE_INTO_CGROUP = 435, 0x200000000
_libc = ctypes.PyDLL(None, use_errno=True)  # holds the interpreter's lock, as os.fork does


def fork_into(leaf: int) -> int:
    """Like os.fork, but the child is born in the leaf whose folder is open as `leaf`.

    To move a process into a cgroup takes the kernel 5 to 20 ms (it waits for every processor); this takes half of one.
    Only for a process with one thread. Raises OSError.
    """
    arguments = _CloneArguments(flags=_CLONE_INTO_CGROUP, exit_signal=signal.SIGCHLD, cgroup=leaf)
    ctypes.pythonapi.PyOS_BeforeFork()
    pid: int = _libc.syscall(_CLONE3, ctypes.byref(arguments), ctypes.sizeof(arguments))
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        return 0
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(ctypes.get_errno(), "clone3")
    return pid


def find_parent(computer_id: str) -> Path:
    """Below the cgroup that the keeper is in: under systemd that is the unit's own, delegated one. Below the topmost
    when a user could move what runs there out of its leaf: started by sudo, the keeper is in a cgroup of the desktop's,
    which is that user's.

    Raises ValueError when cgroup v2 is not mounted.
    """
    mount = None
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        fields, _, rest = line.partition(" - ")
        if rest.startswith("cgroup2 "):
            mount = Path(fields.split(" ")[4])
    if mount is None:
        raise ValueError("cgroup v2 is not mounted")
    own = next((line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")), "/")
    place = mount / own.lstrip("/")
    way = [folder for folder in (place, *place.parents) if folder.is_relative_to(mount)]
    if os.geteuid() == 0 and any(_is_users(folder) for folder in way):
        place = mount
    return place / f"sojourn-{computer_id}"


def _is_users(cgroup: Path) -> bool:
    """Whether somebody but root may move processes into it, and those below it."""
    try:
        found = [entry.stat() for entry in (cgroup, cgroup / "cgroup.procs")]
    except OSError:  # another namespace's view of it
        return True
    return any(entry.st_uid != 0 or entry.st_mode & (stat.S_IWGRP | stat.S_IWOTH) for entry in found)


def carriers(run_id: str) -> Iterator[int]:
    """The processes whose environment carries a run's id."""
    mark = f"{RUN_VARIABLE}={run_id}".encode()
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid() and mark in _environment(int(entry)):
            yield int(entry)


def kill_escaped(run_id: str) -> list[EndedProcess]:
    """Kill every process that carries the run's id and is still there, until none is; answers them."""
    escaped: dict[int, EndedProcess] = {}
    for _ in range(50):  # one that forks for ever outruns any walk through /proc: then `gone` is not claimed
        found = list(carriers(run_id))
        if not found:
            break
        for pid in found:
            with contextlib.suppress(OSError):
                pidfd = os.pidfd_open(pid)
                try:
                    if f"{RUN_VARIABLE}={run_id}".encode() in _environment(pid):  # the number may be another's by now
                        escaped.setdefault(pid, EndedProcess(pid=pid, name=_name(pid) or "?"))
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                finally:
                    os.close(pidfd)
    return list(escaped.values())


def _environment(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []


def _descendants(roots: set[int]) -> set[int]:
    parents = {int(pid): _parent(int(pid)) for pid in os.listdir("/proc") if pid.isdigit()}
    found = {pid for pid in roots if pid in parents}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _parent(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b") ")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return 0


def _name(pid: int) -> str | None:
    """None: it is gone, or a zombie that nothing can end any more."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            head, _, tail = file.read().rpartition(b") ")
    except OSError:
        return None
    return None if tail[:1] == b"Z" else head.partition(b"(")[2].decode(errors="replace")


def _numbers(path: Path) -> list[int]:
    try:
        return [int(line) for line in path.read_text().split()]
    except OSError:
        return []
