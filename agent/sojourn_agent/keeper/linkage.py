"""The keeper's end of the socketpair to the link: starts it, starts it again, asks through it, and hands it reports.

Whatever the link does, the keeper goes on: nothing here waits, and a broken link is ended and replaced.
"""

import contextlib
import itertools
import logging
import os
import signal
import socket
import sqlite3
import sys
from collections.abc import Callable

from sojourn_agent.between import (
    Answer,
    Ask,
    Connected,
    Delivered,
    Frames,
    FromKeeper,
    FromLink,
    Report,
    Undelivered,
    pack,
)
from sojourn_agent.config import Config

from .loop import Loop, Timer
from .spool import Spool

log = logging.getLogger("sojourn.keeper")

_PER_KIND = 8
"""Reports of one kind handed to the link and not yet acknowledged; it sends those of a kind one after the other."""
_FORGET_AFTER = 0.5
"""Seconds in which acknowledgements are gathered before one step on disk."""
_NOBODY = 65534
_UNSENT_LIMIT = 64 * 1024 * 1024
"""Bytes that a link may leave unread before it is replaced."""

Then = Callable[[str | None], None]


class Linkage:
    """`on_message` gets what concerns neither answers nor deliveries; `on_start` is called for each new link."""

    def __init__(
        self,
        loop: Loop,
        config: Config,
        spool: Spool,
        *,
        given: socket.socket | None = None,
    ) -> None:
        self._loop = loop
        self._config = config
        self._spool = spool
        self._given = given
        self._end: socket.socket | None = None
        self._pid: int | None = None
        self._asks: dict[int, tuple[Then, Timer]] = {}
        self._number = itertools.count(1)
        self._on_way: set[str] = set()
        self._delivered: set[str] = set()
        self._pause = 0.5
        self._retry = 1.0
        self._retrying = False
        self.on_start: Callable[[], None] = lambda: None
        self.on_message: Callable[[FromLink], None] = lambda message: None
        self.connected = False
        self.why = "the link has not connected yet"

    def start(self) -> None:
        """Execute a link, or use the one given."""
        self._frames = Frames(FromLink)
        self._unsent = bytearray()
        if self._given is not None:
            self._end = self._given
        else:
            self._end = self._execute()
        self._end.setblocking(False)
        self._loop.watch(self._end.fileno(), self._on_readable)
        self.on_start()

    def send(self, message: FromKeeper) -> None:
        if self._end is not None:
            self._unsent += pack(message)
            self._write()

    def ask(self, ask: Ask, then: Then) -> None:
        """Put a question to the server; `then` gets the answer's text, or None after `timeout_ms` at the latest."""
        if not self.connected:
            then(None)
            return
        number = next(self._number)
        late = self._loop.after(ask.timeout_ms / 1000, lambda: self._answered(number, None))
        self._asks[number] = then, late
        self.send(Ask(ask=number, kind=ask.kind, body=ask.body, timeout_ms=ask.timeout_ms))

    def offer_reports(self) -> None:
        """Hand on what waits, oldest first."""
        if self.connected and not self._retrying:
            for report in self._spool.oldest(_PER_KIND, on_way=self._on_way, done=self._delivered):
                self._on_way.add(report.id)
                self.send(Report(report_id=report.id, kind=report.kind, jws=report.jws))

    def stop(self) -> None:
        """End the link for good."""
        self._lose(why="the agent stops")

    # --- the process --------------------------------------------------------------------------------------------------

    def _execute(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        arguments = [sys.executable, "-I", "-m", "sojourn_agent.link", "--fd", str(theirs.fileno())]
        if os.geteuid() == 0:
            uid = self._config.link_uid or _NOBODY
            arguments += ["--uid", str(uid), "--gid", str(self._config.link_gid or uid)]
        theirs.set_inheritable(True)
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
        self._pid = os.posix_spawn(
            sys.executable,
            arguments,
            environment,
            file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
            setsigmask=[],
            setsigdef=[signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP],
        )
        theirs.close()
        self._began = self._loop.after(60.0, self._stands)
        pid, pidfd = self._pid, os.pidfd_open(self._pid)

        def over() -> None:
            self._loop.unwatch(pidfd)
            os.close(pidfd)
            _, status = os.waitpid(pid, 0)
            log.warning("the link ended (status %s)", os.waitstatus_to_exitcode(status))
            if self._pid == pid:
                self._pid = None
                self._lose(why="the link ended")

        self._loop.watch(pidfd, over)
        return ours

    def _stands(self) -> None:
        self._pause = 0.5

    def _lose(self, why: str) -> None:
        """The link is gone or broken: forget it, end it, and start another after a pause. Grants go on meanwhile."""
        if self._end is None:
            return
        self._loop.unwatch(self._end.fileno())
        self._end.close()
        self._end = None
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            self._pid = None
        self._disconnected(why)
        if self._given is None and why != "the agent stops":
            self._began.cancel()
            self._loop.after(self._pause, self.start)
            self._pause = min(30.0, self._pause * 2)

    def _disconnected(self, why: str) -> None:
        self.connected, self.why = False, why
        self._on_way.clear()
        for number in list(self._asks):
            self._answered(number, None)

    # --- bytes --------------------------------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        if self._end is None:
            return
        try:
            chunk = self._end.recv(1 << 20)
            messages = self._frames.feed(chunk)
        except BlockingIOError:
            return
        except (OSError, ValueError) as error:  # msgspec's errors are ValueErrors
            log.error("the link says what cannot be read: %s", error)
            self._lose(why="the link is broken")
            return
        if not chunk:
            self._lose(why="the link ended")
        for message in messages:
            self._on_link(message)

    def _write(self) -> None:
        if self._end is None:
            return
        try:
            while self._unsent:
                del self._unsent[: self._end.send(self._unsent[: 1 << 20])]
        except BlockingIOError:
            if len(self._unsent) > _UNSENT_LIMIT:
                self._lose(why="the link does not read")
                return
        except OSError:
            self._lose(why="the link ended")
            return
        self._loop.want_write(self._end.fileno(), self._write if self._unsent else None)

    def _on_link(self, message: FromLink) -> None:
        match message:
            case Connected():
                if message.up:
                    self.connected, self.why = True, ""
                    self._retry, self._retrying = 1.0, False
                else:
                    self._disconnected(message.why)
                self.on_message(message)
                self.offer_reports()
            case Answer():
                self._answered(message.ask, message.body)
            case Delivered():
                self._on_way.discard(message.report_id)
                self._retry = 1.0
                if not self._delivered:
                    self._loop.after(_FORGET_AFTER, self._forget_delivered)
                self._delivered.add(message.report_id)
                self.offer_reports()
            case Undelivered():
                self._on_way.discard(message.report_id)
                self._offer_again(message.why)
            case _:
                self.on_message(message)

    def _forget_delivered(self) -> None:
        """Many at once: each step on disk costs milliseconds that an end might wait for."""
        try:
            self._spool.delivered(self._delivered)
            self._delivered.clear()
        except sqlite3.Error as error:  # a full disk: they are forgotten later
            log.warning("acknowledged reports cannot be forgotten now: %s", error)
            self._loop.after(30.0, self._forget_delivered)

    def _answered(self, number: int, body: str | None) -> None:
        if (waiting := self._asks.pop(number, None)) is not None:
            then, late = waiting
            late.cancel()
            then(body)

    def _offer_again(self, why: str) -> None:
        """All that came back is offered again in order, after a pause that doubles."""
        if self._retrying:
            return
        log.info("a report was not taken: %s", why)
        self._retrying = True

        def again() -> None:
            self._retrying = False
            self.offer_reports()

        self._loop.after(self._retry, again)
        self._retry = min(30.0, self._retry * 2)
