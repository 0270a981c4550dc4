"""What this computer can really promise: each promise is tried on a dummy child, and never read off a version.

Takes a fraction of a second, and forks: the keeper asks in a child of its own.
"""

import contextlib
import fcntl
import os
import select
import signal
import socket
import struct
import termios
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Literal, NoReturn, Self

from sojourn_shared.clock import boottime
from sojourn_shared.contracts.wire import Guarantee

from .keeper.leaves import RUN_VARIABLE, Containment, Descent, Leaf, find_parent
from .keeper.loop import TimerFd
from .rights import NOBODY, computer_users, standing_rights

__all__ = ["PROMISES", "computer_users", "probe", "standing_rights"]

PROMISES = (
    "caller",
    "judge",
    "start",
    "end_running",
    "end_if_agent_dies",
    "end_starts_if_agent_dies",
    "child_programs",
    "clock",
)
WITHIN = 2.0
"""Seconds that a dummy gets to do what is asked of it."""

_SO_PEERPIDFD = 77  # Python 3.11 has no name for it
_F_SETLEASE = 1024
_NEED_ROOT = frozenset({"judge", "start", "end_running", "end_if_agent_dies", "end_starts_if_agent_dies"})


def probe(cgroup_parent: Path | None = None) -> dict[str, Guarantee]:
    """Each promise with its word and the reason; the same again as long as the computer is the same.

    Leaves are made in `cgroup_parent`, or where the keeper would make them. Never raises: what cannot be tried is
    *absent*, and says what went wrong.
    """
    with _Containments(cgroup_parent) as containments:
        tries: dict[str, Callable[[], Guarantee]] = {
            "caller": _caller,
            "judge": _judge,
            "start": _start,
            "end_running": lambda: _end_running(containments),
            "end_if_agent_dies": lambda: _end_if_agent_dies(containments),
            "end_starts_if_agent_dies": _end_starts_if_agent_dies,
            "child_programs": _child_programs,
            "clock": _clock,
        }
        found = {}
        for promise in PROMISES:
            if promise in _NEED_ROOT and os.geteuid() != 0:
                found[promise] = _say("observed only", "the agent does not run as root: it elevates nothing here")
                continue
            try:
                found[promise] = tries[promise]()
            except (OSError, ValueError) as error:
                found[promise] = _say("absent", f"it was tried and failed: {error}")
        return found


# --- who asks, what is run, how it starts -----------------------------------------------------------------------------


def _caller() -> Guarantee:
    """A dummy of another user connects to a socket: does the kernel say who it is?"""
    uid = NOBODY if os.geteuid() == 0 else os.geteuid()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind("")  # the kernel chooses an abstract name, which needs no folder
        listener.listen()
        listener.settimeout(WITHIN)
        address = listener.getsockname()

        def connect() -> None:
            if os.geteuid() == 0:
                os.setresuid(uid, uid, uid)
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
                asking.connect(address)
                signal.pause()

        with _Dummy(connect) as dummy, listener.accept()[0] as connection:
            pid, told, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if (pid, told) != (dummy.pid, uid):
                return _say("absent", f"process {dummy.pid} of uid {uid} asked, the kernel said {pid} of uid {told}")
            try:
                os.close(connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD))
            except OSError:
                return _say("best effort", "the kernel names the caller's user, but its process by a number only")
    return _say("enforced", "the kernel names the caller's user and hands out its process; no message is believed")


def _judge() -> Guarantee:
    """Does a read lease hold up whoever wants to write to the judged file?"""
    import tempfile  # noqa: PLC0415 (0.7 MiB that the keeper, which imports this, need not hold)

    with tempfile.TemporaryDirectory(prefix="sojourn-probe-") as folder:
        file = Path(folder, "file")
        file.touch()

        def hold() -> None:
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGIO])  # it says that a writer came, and would kill
            fcntl.fcntl(os.open(file, os.O_RDONLY), _F_SETLEASE, fcntl.F_RDLCK)
            with contextlib.suppress(BlockingIOError):
                os.open(file, os.O_WRONLY | os.O_NONBLOCK)
                os._exit(3)
            os._exit(0 if signal.SIGIO in signal.sigpending() else 4)

        with _Dummy(hold) as dummy:
            status = dummy.wait()
    if status != 0:
        return _say("best effort", "no read lease can be had here: only the path's owners keep a judged file as it is")
    return _say("enforced", "the open file is judged, and a read lease holds up whoever wants to write to it")


def _start() -> Guarantee:
    """Execute a descriptor as root, in a session and terminal of its own."""
    program = os.path.realpath("/bin/true")

    def run() -> None:
        os.setsid()
        near, terminal = os.openpty()
        os.set_inheritable(near, True)  # or its closing would hang the program up
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        os.execve(os.open(program, os.O_RDONLY | os.O_CLOEXEC), ["true"], {})  # noqa: S606 (that is the trial)

    with _Dummy(run) as dummy:
        if (status := dummy.wait()) != 0:
            return _say("absent", f"{program}, executed by its descriptor, ended with {status} instead of 0")
    return _say("enforced", "the judged descriptor itself is executed, as root, in a session and terminal of its own")


# --- how it ends ------------------------------------------------------------------------------------------------------


def _end_running(containments: "_Containments") -> Guarantee:
    """A tree that ignores SIGTERM and has orphans: is it gone when it is ended?"""
    with containments.tree() as tree:
        began = boottime()
        tree.containment.kill()
        while not tree.is_gone(0.01):
            tree.containment.kill()
            if boottime() - began > WITHIN:
                return _say("absent", f"a tree of three processes was not gone after {WITHIN:g} s{tree.why}")
    return _say(tree.word, f"a tree of three processes that ignore signals was ended whole{tree.why}")


def _end_if_agent_dies(containments: "_Containments") -> Guarantee:
    """A dummy agent is killed: does the warden that watches it end the tree?"""
    with containments.tree() as tree, _Dummy(_wait) as agent:

        def watch() -> None:
            watched = os.pidfd_open(agent.pid)
            select.select([watched], [], [])
            while not tree.containment.is_empty():
                tree.containment.kill()

        with _Dummy(watch):
            os.kill(agent.pid, signal.SIGKILL)
            if not tree.is_gone(WITHIN):
                return _say("absent", f"a tree was not gone {WITHIN:g} s after its agent was killed{tree.why}")
    return _say(tree.word, f"an agent was killed, and its warden ended what ran{tree.why}")


def _end_starts_if_agent_dies() -> Guarantee:
    """A dummy agent is killed: can anything still be asked of its socket?"""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind("")
        listener.listen()
        address = listener.getsockname()
        with _Dummy(_wait) as agent:
            listener.close()  # only the dummy has it now
            os.kill(agent.pid, signal.SIGKILL)
            agent.wait()
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
                try:
                    asking.connect(address)
                except ConnectionRefusedError:
                    return _say("enforced", "only the agent starts anything: with it gone, its socket refuses everyone")
    return _say("absent", "a killed agent's socket still takes connections")


def _child_programs() -> Guarantee:
    return _say(
        "observed only",
        "what an elevated application starts is elevated too and ends with it; nothing here judges it or holds it back",
    )


def _clock() -> Guarantee:
    """Does a timer fire that no change of the clock moves, and that counts sleep?"""
    timer = TimerFd()
    timer.set(boottime() + 0.02)
    fired = select.select([timer.fd], [], [], WITHIN)[0]
    os.close(timer.fd)
    if not fired:
        return _say("absent", f"a timer of 20 ms had not fired after {WITHIN:g} s")
    return _say("enforced", "a timer on the time since boot fired: it counts sleep, and no clock moves it")


# --- dummies ----------------------------------------------------------------------------------------------------------

Word = Literal["enforced", "best effort", "observed only", "absent"]


def _say(word: Word, why: str) -> Guarantee:
    return Guarantee(word=word, why=why)


class _Dummy:
    """A forked child that does `act`, and is killed at the end of the block, or by its own alarm."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            _act(act)
        self._status: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def wait(self) -> int:
        """Its exit status, or minus the signal that ended it. Raises TimeoutError after WITHIN seconds."""
        pidfd = os.pidfd_open(self.pid)
        ended, _, _ = select.select([pidfd], [], [], WITHIN)
        os.close(pidfd)
        if not ended:
            raise TimeoutError(f"a dummy did not end within {WITHIN:g} s")
        self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status


def _act(act: Callable[[], None]) -> NoReturn:
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM, signal.SIGIO, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        signal.alarm(10)
        act()
        os._exit(0)
    except BaseException:
        os._exit(1)  # the parent judges by the status; a trace would only confuse who reads the log


def _wait() -> None:
    signal.pause()


class _Tree:
    """Three processes that ignore SIGTERM, two of them orphans; a pipe that all hold tells when the last is gone."""

    def __init__(self, containment: Containment, run_id: str, word: Word, why: str) -> None:
        self.containment, self.word, self.why = containment, word, why
        self._inlet, outlet = os.pipe()
        go, gate = os.pipe()

        def grow() -> None:
            os.read(go, 1)
            os.dup2(outlet, 1)
            os.closerange(3, 1024)
            script = "trap '' TERM; (sleep 9 & sleep 9 &); echo; read _"  # the alarm of ten seconds ends the first
            keep = os.open("/dev/null", os.O_RDONLY)
            os.dup2(keep, 2)
            os.execve("/bin/sh", ["sh", "-c", script], {RUN_VARIABLE: run_id, "PATH": "/usr/bin:/bin"})  # noqa: S606

        self._root = _Dummy(grow)
        os.close(outlet)
        os.close(go)
        containment.add(self._root.pid)
        os.write(gate, b"x")
        os.close(gate)

    def __enter__(self) -> Self:
        if not select.select([self._inlet], [], [], WITHIN)[0] or not os.read(self._inlet, 1):
            self.__exit__(None, None, None)
            raise OSError("a tree of dummy processes could not be started")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.containment.kill()
        self._root.__exit__(kind, error, at)
        self.is_gone(WITHIN)
        until = boottime() + WITHIN  # a process closes its pipe a moment before it leaves its cgroup
        while not self.containment.is_empty() and boottime() < until:
            select.select([], [], [], 0.001)
        self.containment.remove()
        os.close(self._inlet)

    def is_gone(self, within: float) -> bool:
        """Whether every process of the tree has ended, waiting for it `within` seconds."""
        return bool(select.select([self._inlet], [], [], within)[0])


class _Containments:
    """Leaves where the keeper would make them, or descent in /proc where it would have to."""

    def __init__(self, parent: Path | None) -> None:
        self._parent: Path | None = None
        self._made = False
        self._trees = 0
        self._why = ""
        try:
            self._parent = parent or find_parent(f"probe-{os.getpid()}")
            self._made = not self._parent.exists()
            self._parent.mkdir(exist_ok=True)
            Leaf(self._parent / f"probe-{os.getpid()}").remove()
        except (OSError, ValueError) as error:
            self.__exit__(None, None, None)
            self._parent = None
            self._why = (
                f"; without a writable cgroup ({error}) its processes are searched for in /proc, which is a race"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._parent and self._made:
            with contextlib.suppress(OSError):
                self._parent.rmdir()

    def tree(self) -> _Tree:
        self._trees += 1
        run_id = f"probe-{os.getpid()}-{self._trees}"
        if self._parent is None:
            nobody = -1  # a warden that is no process: only the tree's root and what came of it
            return _Tree(Descent(run_id, nobody), run_id, "best effort", self._why)
        return _Tree(Leaf(self._parent / run_id), run_id, "enforced", "")
