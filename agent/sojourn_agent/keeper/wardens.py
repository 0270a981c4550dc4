"""A warden as the keeper sees it: a forked child, a channel of packets, and a pidfd that tells of its death."""

import contextlib
import os
import signal
import socket
from collections.abc import Callable

from sojourn_agent import warden
from sojourn_agent.packets import FromWarden, ToWarden, pack, read_from_warden

from .children import leave
from .judge import Cache
from .loop import Loop


class Warden:
    """Forked at once, judging. `on_message`, `on_death` may be replaced: first a conversation listens, then a run."""

    def __init__(
        self,
        loop: Loop,
        order: Callable[[socket.socket], warden.Order],
        cache: Cache,
        *,
        on_message: Callable[[FromWarden], None],
        on_death: Callable[[], None],
    ) -> None:
        self._loop = loop
        self.on_message = on_message
        self.on_death = on_death
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        told = order(theirs)
        self.pid = os.fork()
        if self.pid == 0:
            leave(lambda: warden.main(told, cache), keep=told.kept())
        theirs.close()
        self._pidfd = os.pidfd_open(self.pid)
        self._channel.setblocking(False)
        loop.watch(self._channel.fileno(), self._on_packet)
        loop.watch(self._pidfd, self._on_exit)

    def send(self, packet: ToWarden) -> None:
        """Best effort: a warden that does not listen is found out by what it fails to do."""
        with contextlib.suppress(OSError):
            self._channel.send(pack(packet), socket.MSG_NOSIGNAL)

    def let_be(self) -> None:
        """Before `Go`: nothing is to be run; the warden leaves, and with it the process that waits."""
        self._close()

    def kill(self) -> None:
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _on_packet(self) -> None:
        while self._channel.fileno() >= 0:
            try:
                packet = self._channel.recv(65536)
            except (BlockingIOError, ConnectionResetError):
                return
            if not packet:
                self._loop.unwatch(self._channel.fileno())
                return
            self.on_message(read_from_warden(packet))

    def _on_exit(self) -> None:
        self._on_packet()  # its last words first
        self._loop.unwatch(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        os.waitpid(self.pid, 0)
        self._close()
        self.on_death()

    def _close(self) -> None:
        if self._channel.fileno() >= 0:
            self._loop.unwatch(self._channel.fileno())
            self._channel.close()
