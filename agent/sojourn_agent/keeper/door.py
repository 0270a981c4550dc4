"""The socket that every user of the computer may knock at: who calls is what the kernel says, and nobody crowds it.

The keeper never takes a descriptor of a caller: to close one can wait for ever (a socket that lingers, a file of a
user's own file system), and nobody's revoke would be heard. It looks at the first packet (MSG_PEEK), and a warden
takes it, with what came with it.
"""

import contextlib
import logging
import os
import socket
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from sojourn_agent.packets import VERSION, Hello, Refused, pack, read_hello

from .children import Closing
from .judge import Caller
from .loop import Loop
from .state import Unusable

log = logging.getLogger("sojourn.keeper")

_SO_PEERPIDFD, _SO_PEERGROUPS = 77, 59
_PACKET = 65536
_HELLO_WITHIN = 2.0
"""Seconds for the first packet; `elevate` needs a millisecond."""
_PER_USER = 16
_IN_ALL = 512
"""Open conversations, of one user and of all; each holds at most seven descriptors of the keeper."""
_WITH_DESCRIPTORS = frozenset({"run", "check", "facts"})


@dataclass(frozen=True)
class Guest:
    """One caller whose first packet was understood. Whoever takes the guest lets go of it: `close` or `hand_over`.

    `parked`: a socket pair in which the first warden puts the caller's 0, 1, 2 and working folder, for those that
    judge again; None: none came.
    """

    client: socket.socket
    caller: Caller
    pid: int
    pidfd: int
    hello: Hello
    parked: tuple[socket.socket, socket.socket] | None

    def close(self, closing: Closing) -> None:
        os.close(self.pidfd)
        closing.close(self.client, *(self.parked or ()))

    def hand_over(self) -> None:
        """A warden that lives has all of it too."""
        os.close(self.pidfd)
        for end in (self.client, *(self.parked or ())):
            end.close()


class Door:
    """Accepts callers, reads their first packet, and hands them on. `left` must be called when a guest is done with."""

    def __init__(self, loop: Loop, path: Path, welcome: Callable[[Guest], None]) -> None:
        self._loop = loop
        self._path = path
        self._welcome = welcome
        self._inside: Counter[int] = Counter()
        self.closing = Closing(loop)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            if not path.parent.exists():
                path.parent.mkdir(parents=True)
                path.parent.chmod(0o755)  # whatever the umask: every user must get to the socket
            path.unlink(missing_ok=True)  # ours alone: the lock on the state folder is held
            self._socket.bind(str(path))
            path.chmod(0o666)  # every user may ask; judging is by uid
        except OSError as error:
            raise Unusable(f"the socket {path} cannot be made: {error.strerror or error}") from None
        self._socket.listen(128)
        loop.watch(self._socket.fileno(), self._on_caller)

    def left(self, uid: int) -> None:
        self._inside[uid] -= 1
        if self._inside[uid] <= 0:
            del self._inside[uid]

    def close(self) -> None:
        self._loop.unwatch(self._socket.fileno())
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def _on_caller(self) -> None:
        try:
            client, _ = self._socket.accept()
        except BlockingIOError:
            return
        except OSError as error:  # out of descriptors: let others end first
            log.error("a caller cannot be let in: %s", error)
            self._loop.unwatch(self._socket.fileno())
            self._loop.after(0.5, lambda: self._loop.watch(self._socket.fileno(), self._on_caller))
            return
        try:
            client.setblocking(False)
            pid, uid, gid = struct.unpack("iII", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            pidfd = _peer_pidfd(client, pid)
            caller = Caller(uid, gid, _peer_groups(client))
        except OSError:
            self.closing.close(client)
            return
        if self._inside[uid] >= _PER_USER or self._inside.total() >= _IN_ALL:
            why = f"you have {self._inside[uid]} others waiting" if self._inside[uid] >= _PER_USER else "too many call"
            refuse(client, Refused(exit=75, why=f"{why}: end one first, or try again later"))
            os.close(pidfd)
            self.closing.close(client)
            return
        self._inside[uid] += 1
        _Knock(self._loop, self, client=client, caller=caller, pid=pid, pidfd=pidfd)

    def admit(self, guest: Guest) -> None:
        self._welcome(guest)

    def turn_away(self, client: socket.socket, uid: int, pidfd: int, why: str | None) -> None:
        if why is not None:
            refuse(client, Refused(exit=75, why=why))
        os.close(pidfd)
        self.closing.close(client)
        self.left(uid)


class _Knock:
    """Waits for the first packet of one caller."""

    def __init__(self, loop: Loop, door: Door, *, client: socket.socket, caller: Caller, pid: int, pidfd: int) -> None:
        self._loop, self._door = loop, door
        self._client, self._caller, self._pid, self._pidfd = client, caller, pid, pidfd
        self._late = loop.after(_HELLO_WITHIN, lambda: self._end("the agent heard nothing in time"))
        loop.watch(client.fileno(), self._on_packet)

    def _on_packet(self) -> None:
        try:
            packet, _, flags, _ = self._client.recvmsg(_PACKET, 0, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            self._end(None)
            return
        try:
            if not packet:
                raise _Malformed(None)
            if flags & socket.MSG_TRUNC:
                raise _Malformed("the message is too long (64 KiB at most: shorten the arguments)")
            hello = _read(packet, with_descriptors=bool(flags & socket.MSG_CTRUNC))
        except _Malformed as error:
            self._end(error.why)
            return
        self._loop.unwatch(self._client.fileno())
        self._late.cancel()
        parked = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) if hello.op in _WITH_DESCRIPTORS else None
        if parked is None:
            self._client.recv(_PACKET)
        self._door.admit(Guest(self._client, self._caller, self._pid, self._pidfd, hello, parked))

    def _end(self, why: str | None) -> None:
        self._late.cancel()
        self._loop.unwatch(self._client.fileno())
        self._door.turn_away(self._client, self._caller.uid, self._pidfd, why)


class _Malformed(Exception):
    def __init__(self, why: str | None) -> None:
        super().__init__(why)
        self.why = why


def refuse(client: socket.socket, packet: Refused) -> None:
    """Best effort: who does not read is not waited for."""
    with contextlib.suppress(OSError):
        client.send(pack(packet), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def _read(packet: bytes, *, with_descriptors: bool) -> Hello:
    """Raises _Malformed."""
    try:
        hello = read_hello(packet)
        for text in (*hello.argv, hello.because or "", hello.ticket or "", hello.target or ""):
            text.encode()  # no half of a surrogate pair
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise _Malformed(f"the message cannot be understood: {error}") from None
    if hello.v != VERSION:
        raise _Malformed(f"elevate speaks version {hello.v}, the agent {VERSION}: install the agent's own elevate")
    needs = hello.op in _WITH_DESCRIPTORS
    if with_descriptors != needs:  # how many, and what, the warden sees
        raise _Malformed(f"“{hello.op}” comes with {'four' if needs else 'no'} descriptors")
    if needs and (not 1 <= len(hello.argv) <= 1024 or any("\0" in argument for argument in hello.argv)):
        raise _Malformed("name an application and at most 1023 arguments")
    return hello


def _peer_pidfd(client: socket.socket, pid: int) -> int:
    """Python 3.11 has no name for the option; kernels before 6.5 do not have it."""
    try:
        (pidfd,) = struct.unpack("i", client.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, 4))
        return int(pidfd)
    except OSError:
        return os.pidfd_open(pid)


def _peer_groups(client: socket.socket) -> tuple[int, ...]:
    try:
        raw = client.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 65536)
    except OSError:
        return ()
    return struct.unpack(f"{len(raw) // 4}I", raw)
