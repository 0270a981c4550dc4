"""One for each run: judges the file, becomes the parent of the application, relays its terminal, and sees it end.

Forked from the keeper. The main thread waits for the application, the caller, the keeper and the deadline, and never
touches relayed bytes: those move in threads of their own, so that a caller who stops reading delays no end.
"""

import contextlib
import ctypes
import fcntl
import os
import re
import resource
import select
import signal
import socket
import stat
import struct
import termios
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn, assert_never

import msgspec

from .keeper.children import close_all_but
from .keeper.judge import Cache, Caller, Judged, NotJudged, judge, lease_broken, secure_path
from .keeper.leaves import RUN_VARIABLE, Containment, Descent, Leaf, fork_into
from .keeper.loop import TimerFd
from .packets import (
    Deadline,
    Ended,
    Finish,
    Found,
    FromWarden,
    Go,
    Hello,
    NotFound,
    Over,
    Say,
    Started,
    Tell,
    ToClient,
    pack,
    read_more,
    read_to_warden,
)
from .terminal import Terminal

BACKSTOP = 0.25
"""Seconds after the deadline that the keeper has to end the run; then the warden does it alone."""

_MOST_DESCRIPTORS = 253
"""The kernel lets no more into one message."""
_SIGNALS = frozenset(
    {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT}
)
_FOREGROUND = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGQUIT})
"""Signals that a terminal would send to its whole foreground process group."""


@dataclass(frozen=True)
class Order:
    """What the keeper hands to a warden. `leaf`: the folder of the run's cgroup leaf; None: there is no cgroup here.

    `parked`: where the caller's descriptors lie, if a warden took them from the first packet before (`taken`), or are
    to be put. `descriptors`: the caller's 0, 1, 2 and working folder, once they are taken; the keeper never has them.
    """

    hello: Hello
    caller: Caller
    channel: socket.socket
    client: socket.socket
    parked: tuple[socket.socket, socket.socket]
    taken: bool
    caller_pidfd: int
    keeper_pidfd: int
    leaf: int | None
    run_id: str
    may_start: bool
    home: str
    shell: str
    nofile: tuple[int, int]
    descriptors: tuple[int, ...] = ()

    def kept(self) -> list[int]:
        ends = [self.channel, self.client, *self.parked]
        own = [end.fileno() for end in ends] + [self.caller_pidfd, self.keeper_pidfd]
        return own + ([self.leaf] if self.leaf is not None else [])


def main(order: Order, cache: Cache) -> None:
    """Judge; then, if there is something to run, wait for the keeper's word, run it, and see it end."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGIO])  # a broken lease is looked up, it must not kill
    try:
        order = replace(order, descriptors=_take(order))
        judged = judge(order.hello.argv[0], order.descriptors[3], order.caller, cache)
    except NotJudged as error:
        _send(order.channel, NotFound(exit=error.exit, code=error.code, why=error.why))
        return
    folder = _enter(order.descriptors[3])
    run = Run(order, judged) if order.may_start and judged.writable is None else None
    found = Found(
        application=judged.application,
        key=judged.key,
        hidden=judged.hidden,
        writable=judged.writable,
        pid=run.pid if run else None,
        in_leaf=run is not None and run.in_leaf,
        working_directory=folder,
    )
    _send(order.channel, found)
    if run is not None:
        if folder is None:
            _send(order.client, Say(text="the working folder cannot be entered: / is used instead"))
        run.serve()


def _take(order: Order) -> tuple[int, ...]:
    """The caller's descriptors: out of the first packet, or parked by an earlier warden. Raises NotJudged."""
    put, kept = order.parked
    source, flags = (kept, socket.MSG_PEEK) if order.taken else (order.client, 0)
    try:
        _, ancillary, _, _ = source.recvmsg(
            65536, socket.CMSG_SPACE(_MOST_DESCRIPTORS * 4), flags | socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
        )
    except OSError as error:
        raise NotJudged(75, "malformed", f"the message cannot be read ({error.strerror})") from None
    found: list[int] = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found += struct.unpack(f"{len(data) // 4}i", data[: len(data) // 4 * 4])
    if len(found) != 4:
        raise NotJudged(75, "malformed", f"{len(found)} descriptors came with “{order.hello.op}”")
    try:
        is_folder = stat.S_ISDIR(os.fstat(found[3]).st_mode)
    except OSError:  # a user's own file system tells root nothing
        is_folder = True
    if not is_folder:
        raise NotJudged(75, "malformed", "the fourth descriptor is no folder")
    if not order.taken:
        socket.send_fds(put, [b"."], found)
    return tuple(found)


class Run:
    """The application, first as a forked process that waits for the keeper's word, then executed."""

    def __init__(self, order: Order, judged: Judged) -> None:
        self._order = order
        self._judged = judged
        self._terminal = Terminal.of(order.descriptors, relay=order.hello.relay, size=order.hello.winsz)
        gate, self._gate = os.pipe2(os.O_CLOEXEC)
        self._trouble, trouble = os.pipe2(os.O_CLOEXEC)
        self.pid, self.in_leaf = _fork(order.leaf)
        if self.pid == 0:
            _become(order, judged, self._terminal, gate, trouble, keep=self._gate)
        os.close(gate)
        os.close(trouble)
        self._pidfd = os.pidfd_open(self.pid)
        self._timer = TimerFd()
        self._poll = select.poll()
        self._deadline: float | None = None
        self._late: float | None = None
        self._containment: Containment = Descent(order.run_id, os.getpid())
        self._exit_status: int | None = None
        self._why: str | None = None
        self._go_word: Go | None = None
        self._held_back = False
        self._executed = False
        self._over = False
        self._finished = False

    def serve(self) -> None:
        """Until the run has ended and the caller knows."""
        order = self._order
        readers = {
            order.channel.fileno(): self._on_keeper,
            order.keeper_pidfd: self._on_keeper_gone,
            self._timer.fd: self._on_time,
            self._pidfd: self._on_exit,
        }
        for fd in readers:
            self._poll.register(fd, select.POLLIN)
        callers = {
            order.client.fileno(): self._on_client,
            order.caller_pidfd: self._on_client_gone,
            self._trouble: self._on_executed,
            self._terminal.broken: self._on_client_gone,
        }
        self._readers = readers | callers  # the caller's are heard from `Go` on; until then the keeper hears them
        while not self._finished:
            for fd, _ in self._poll.poll():
                if fd in self._readers and not self._finished:
                    self._readers[fd]()

    # --- the keeper ---------------------------------------------------------------------------------------------------

    def _on_keeper(self) -> None:
        try:
            packet = self._order.channel.recv(65536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            self._on_keeper_gone()
            return
        message = read_to_warden(packet)
        match message:
            case Go():
                self._go(message)
            case Deadline():
                self._deadline = message.at
                self._set_timer()
            case Tell():
                _send(self._order.client, Say(text=message.text))
            case Finish():
                self._finish(message.exit, message.why)
            case _:
                assert_never(message)

    def _go(self, go: Go) -> None:
        self._deadline = go.deadline
        if go.leaf is not None:
            self._containment = Leaf.found(Path(go.leaf))
        else:
            _be_subreaper()
        self._go_word = go
        self._set_timer()
        for fd in (self._order.client.fileno(), self._order.caller_pidfd, self._trouble, self._terminal.broken):
            self._poll.register(fd, select.POLLIN)
        if lease_broken():
            self._held_back = True
            self._exit_status, self._why = 126, "the program's file is being changed: try again"
            os.close(self._gate)  # the waiting process ends unexecuted
            return
        with contextlib.suppress(BrokenPipeError):  # a revoke was faster, and has killed it
            os.write(self._gate, b"!")
        os.close(self._gate)

    def _on_keeper_gone(self) -> None:
        """The keeper died; or, before `Go`, it let the run be: then the waiting process ends with us."""
        if self._go_word is None:
            self._finished = True
            return
        self._end_all()
        self._finish(75, "the agent went away; the application was ended")

    # --- the application ----------------------------------------------------------------------------------------------

    def _on_executed(self) -> None:
        """The pipe closes when the program is executed, or says why it cannot be."""
        trouble = os.read(self._trouble, 4096)
        self._forget(self._trouble)
        if trouble:
            self._exit_status, self._why = 126, trouble.decode(errors="replace")
            return
        if self._held_back:
            return
        self._executed = True
        for fd in self._judged.leased:
            with contextlib.suppress(OSError):
                fcntl.fcntl(fd, 1024, fcntl.F_UNLCK)  # F_SETLEASE: whoever wants to write need not wait for the end
        with contextlib.suppress(OSError):
            os.close(self._judged.fd)
        go = self._go_word
        assert go is not None
        relay = self._order.hello.relay if self._terminal.reads else None
        _send(self._order.client, Started(run_id=go.run_id, grant_id=go.grant_id, pid=self.pid, relay=relay))
        self._terminal.start()

    def _on_exit(self) -> None:
        _, status = os.waitpid(self.pid, 0)
        self._forget(self._pidfd)
        if self._exit_status is None:
            code = os.waitstatus_to_exitcode(status)
            self._exit_status = code if code >= 0 else 128 - code
        self._say_over(Over(how="exited", exit_status=self._exit_status), 3.0)

    def _on_time(self) -> None:
        self._timer.clear()
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        if self._deadline is not None and now >= self._deadline + BACKSTOP:
            self._end_all()
            self._finish(124, "the access has ended")
        elif self._late is not None and now >= self._late:
            self._end_all()
            self._finish(None, self._why)
        else:
            self._set_timer()

    # --- the caller ---------------------------------------------------------------------------------------------------

    def _on_client(self) -> None:
        try:
            packet = self._order.client.recv(65536, socket.MSG_DONTWAIT)
            more = read_more(packet) if packet else None
        except BlockingIOError:
            return
        except (OSError, msgspec.MsgspecError):
            more = None
        if more is None:
            self._on_client_gone()
        elif more.sig is not None:
            self._pass_on(more.sig)
        elif more.winsz is not None:
            self._terminal.resize(*more.winsz)

    def _on_client_gone(self) -> None:
        """Whatever goes wrong on the caller's side ends the run."""
        for fd in (self._order.client.fileno(), self._order.caller_pidfd, self._terminal.broken):
            self._forget(fd)
        self._say_over(Over(how="client_gone"), 1.0)

    def _pass_on(self, number: int) -> None:
        if number not in _SIGNALS or self._exit_status is not None or not self._executed:
            return
        with contextlib.suppress(OSError):
            if number in _FOREGROUND and self._terminal.interrupts(number):
                return
            if number in _FOREGROUND and self._terminal.master is None:
                os.killpg(self.pid, number)  # it led its session, and is not reaped: the number is its own
            else:
                signal.pidfd_send_signal(self._pidfd, number)

    # --- the end ------------------------------------------------------------------------------------------------------

    def _say_over(self, over: Over, patience: float) -> None:
        if not self._over:
            self._over = True
            self._late = time.clock_gettime(time.CLOCK_BOOTTIME) + patience
            self._set_timer()
            _send(self._order.channel, over)

    def _end_all(self) -> None:
        """Without the keeper: kill until nothing is left (bounded: what hangs in the kernel cannot be ended)."""
        for attempt in range(2000):
            self._containment.kill()
            if attempt == 0:
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            if self._containment.is_empty():
                break
            time.sleep(0.001)
        self._containment.remove()

    def _finish(self, exit: int | None, why: str | None) -> None:
        self._terminal.drain(0.3 if exit is not None else 5.0)
        status = exit if exit is not None else self._exit_status
        ended = Ended(exit=75 if status is None else status, why=why or self._why)
        self._order.client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 0, 200_000))
        with contextlib.suppress(OSError):
            self._order.client.send(pack(ended), socket.MSG_NOSIGNAL)
        self._finished = True

    def _set_timer(self) -> None:
        due = [self._deadline + BACKSTOP] if self._deadline is not None else []
        due += [self._late] if self._late is not None else []
        self._timer.set(min(due, default=None))

    def _forget(self, fd: int) -> None:
        if self._readers.pop(fd, None) is not None:
            self._poll.unregister(fd)


def environment(told: Mapping[str, str], run_id: str, home: str, shell: str) -> dict[str, str]:
    """What the application finds: it starts empty, and takes of the caller's only names and values that cannot harm."""
    kept = {name: value for name, value in told.items() if (form := _form_of(name)) and form.fullmatch(value)}
    return kept | {
        "PATH": ":".join(secure_path()),
        "HOME": home,
        "USER": "root",
        "LOGNAME": "root",
        "SHELL": shell,
        RUN_VARIABLE: run_id,
    }


_PLAIN = re.compile(r"[A-Za-z0-9@._+,:-]{1,64}")
_ZONE = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,2}")
"""No dot and no leading slash: it names a file of the system's zone folder, and no other."""
_LOCALE_NAME = re.compile(r"LANG|LANGUAGE|LC_[A-Z]{1,32}")


def _form_of(name: str) -> re.Pattern[str] | None:
    if name in ("TERM", "COLORTERM") or _LOCALE_NAME.fullmatch(name):
        return _PLAIN
    return _ZONE if name == "TZ" else None


def _fork(leaf: int | None) -> tuple[int, bool]:
    """The child's pid (0: we are it), and whether it is in the leaf already."""
    if leaf is not None:
        with contextlib.suppress(OSError):  # a kernel or a filter without clone3: the keeper moves it
            return fork_into(leaf), True
    return os.fork(), False


def _become(order: Order, judged: Judged, terminal: Terminal, gate: int, trouble: int, *, keep: int) -> NoReturn:
    """In the child: wait for the keeper's word, then be the application. `keep`: the gate's other end, to be closed."""
    os.close(keep)
    try:
        os.setsid()
        if os.read(gate, 1) != b"!":
            os._exit(0)
        _execute(order, judged, terminal, trouble)
    except OSError as error:
        os.write(trouble, f"{order.hello.argv[0]} cannot be executed: {error.strerror}".encode())
    except BaseException as error:
        os.write(trouble, f"{order.hello.argv[0]} cannot be executed: {error}".encode())
    finally:
        os._exit(126)


def _execute(order: Order, judged: Judged, terminal: Terminal, trouble: int) -> None:
    env = environment(order.hello.env, order.run_id, order.home, order.shell)
    sources = [_source(order.descriptors[number], terminal) for number in (0, 1, 2)]
    if terminal.slave is not None:
        fcntl.ioctl(terminal.slave, termios.TIOCSCTTY, 0)
    # Out of the way first, so that no source is overwritten before it was used.
    high = [fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, 10) for source in sources]
    for number, source in enumerate(high):
        os.dup2(source, number, inheritable=True)
    program = judged.fd
    if judged.script:  # its interpreter opens it again, as /dev/fd/N
        os.set_inheritable(program, True)
    close_all_but([program, trouble])
    os.umask(0o022)
    os.setgroups([0])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    resource.setrlimit(resource.RLIMIT_NOFILE, order.nofile)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("0")
    _default_signals()
    os.execve(program, [judged.name, *order.hello.argv[1:]], env)  # noqa: S606 - there is no shell, on purpose


def _default_signals() -> None:
    """Every disposition and the mask. The C library keeps 32 and 33 to itself; whoever started the agent may still
    have had them ignored, and what is ignored stays so through every exec: the kernel is asked directly."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    if (sigaction := _RT_SIGACTION.get(os.uname().machine)) is not None:
        default = (ctypes.c_ulong * 4)()  # SIG_DFL, no flags, no restorer, an empty mask of 8 bytes
        for hidden in (32, 33):
            ctypes.CDLL(None).syscall(sigaction, hidden, default, None, ctypes.c_size_t(8))
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


_RT_SIGACTION = {"x86_64": 13, "aarch64": 134}


def _source(fd: int, terminal: Terminal) -> int:
    return terminal.slave if terminal.slave is not None and os.isatty(fd) else fd


def _enter(folder: int) -> str | None:
    """Make the caller's folder the working directory; its path, or None when it cannot be entered."""
    try:
        os.fchdir(folder)
        return os.readlink("/proc/self/cwd").encode(errors="replace").decode()
    except OSError:
        os.chdir("/")
        return None


def _send(to: socket.socket, packet: ToClient | FromWarden) -> None:
    """Best effort: a caller who does not read, or a keeper that is gone, must not stop the warden."""
    with contextlib.suppress(OSError):
        to.send(pack(packet), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def _be_subreaper() -> None:
    """Without a cgroup: processes whose parents are gone become children of the warden, where they are found."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
