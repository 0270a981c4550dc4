"""The wiring of the keeper, readable top to bottom: what it is made of, what it does at start, and whom it hears."""

import gc
import logging
import os
import resource
import signal
import socket
from datetime import datetime
from pathlib import Path

from sojourn_agent.config import Config
from sojourn_agent.packets import pack
from sojourn_shared.clock import boottime, system_clock
from sojourn_shared.contracts.wire import Application, Asking
from sojourn_shared.signing import PrivateKey, PublicKey, from_base64url

from . import start_up, wording
from .conversation import Conversation
from .cover import Covered, NotCovered, cover
from .document import Documents, Held, KeyRing
from .door import Door, Guest
from .enforcement import Enforcement
from .errands import ERRANDS
from .health import Health
from .judge import Key
from .leaves import Leaves
from .linkage import Linkage
from .loop import Loop
from .names import Names, Person
from .refusals import Refusals
from .requests import Requests
from .runs import Runs
from .server import Server
from .spool import Spool
from .state import State, Unusable
from .timekeeping import Timekeeping
from .trusted import Trusted

log = logging.getLogger("sojourn.keeper")

_FACTS_REMEMBERED = 1024
_DESCRIPTORS = 8192


class Keeper:
    """Everything of one agent. `link`: a socket whose other end plays the link (tests)."""

    def __init__(self, config: Config, *, link: socket.socket | None = None) -> None:
        self.config = config
        self.pidfd = os.pidfd_open(os.getpid())
        self.nofile = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.root_home = _home_of_root()
        self.observed_only = wording.NOT_ROOT if os.geteuid() != 0 else None
        self.cache: dict[Key, Application] = {}
        self.waiting: set[Conversation] = set()

        self.state = State(config.state)
        self._lock = self.state.lock()
        self.leaves = Leaves(config)
        self._left_over = start_up.end_left_over(self.state, self.leaves)
        key = _key(self.state)
        self.loop = Loop()
        self.timekeeping = Timekeeping(self.loop, self.state, on_change=self._on_time)
        keys = KeyRing(self.state, PublicKey.from_text(config.root_key))
        self.documents = Documents(self.state, config.computer_id, keys, floor=self.timekeeping.floor)
        self.spool = Spool(self.state, key, config.computer_id, self.timekeeping.boot_id, self.now)
        self.names = Names(self.loop)
        self.runs = Runs(self.loop, self.spool, self.now)
        self.enforcement = Enforcement(
            self.loop,
            self.documents,
            self.spool,
            self.runs,
            time=self.time,
            observed_only=self.observed_only,
        )
        self.enforcement.after_review = self._reconsider
        self.linkage = Linkage(self.loop, config, self.spool, given=link)
        self.enforcement.on_stored = self.linkage.offer_reports
        self.refusals = Refusals(self.loop, self.spool, self.linkage.offer_reports)
        self.health = Health(self)
        self.server = Server(self, keys, key)
        self.requests = Requests(self)
        self.linkage.on_start, self.linkage.on_message = self.server.greet, self.server.hear

    def run(self) -> None:
        """Until SIGTERM or SIGINT; then every run is ended, and reported."""
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (max(_DESCRIPTORS, self.nofile[0]), max(_DESCRIPTORS, self.nofile[1]))
        )
        start_up.report_left_over(self._left_over, self.state, self.leaves, self.spool)
        self.door = Door(self.loop, self.config.socket, self._welcome)
        woken = self._hear_signals()
        self.linkage.start()
        self.enforcement.review()
        log.info("keeping %s; socket %s", self.config.computer_id, self.config.socket)
        if self.observed_only:
            log.warning("%s", self.observed_only)
        gc.collect()
        gc.freeze()  # wardens are forked from here: what both only read stays one memory
        self.loop.run()
        woken.close()

    # --- what everybody here asks -------------------------------------------------------------------------------------

    def time(self) -> Trusted | None:
        """None while no time can be trusted."""
        return self.timekeeping.trusted

    def now(self) -> datetime:
        """The best clock there is, for dates of reports; what is allowed is judged by `time` alone."""
        trusted = self.timekeeping.trusted
        return trusted.now(boottime()) if trusted else system_clock()

    @property
    def asking(self) -> Asking:
        return self.documents.held.document.asking if self.documents.held else Asking()

    def cover(self, person: Person, application: Application) -> Covered | NotCovered:
        """Which grant covers this now."""
        trusted, held = self.timekeeping.trusted, self.documents.held
        if trusted is None:
            return NotCovered(self.timekeeping.why_none or "no time can be trusted")
        if held is None or self.server.must_hear:
            return NotCovered("this computer has not heard from its server yet")
        now = trusted.now(boottime())
        if now >= held.document.valid_until:
            return NotCovered(f"this computer has not heard from its server since {held.document.issued_at:%Y-%m-%d}")
        if held.document.blocked:
            why = "block lists are in force, which this agent does not take yet: it elevates nothing"
            return NotCovered(why, code="blocked", final=True)
        return cover(held, person.who, application, now, self.spool.uses)

    def remember(self, key: Key, application: Application) -> None:
        """Facts of a file on a trusted path; the oldest make room."""
        while len(self.cache) >= _FACTS_REMEMBERED:
            del self.cache[next(iter(self.cache))]
        self.cache[key] = application

    def on_started(self) -> None:
        """A run has begun: its end is due, and its report waits."""
        self.enforcement.review()
        self.linkage.offer_reports()

    def on_document(self, held: Held) -> None:
        """A newer document is held; act on it."""
        self.enforcement.take(held)
        self.timekeeping.floor = self.documents.floor
        self.timekeeping.mark_soon()

    # --- callers ------------------------------------------------------------------------------------------------------

    def _welcome(self, guest: Guest) -> None:
        errand = ERRANDS.get(guest.hello.op)
        if errand is None:
            Conversation(self, guest)
            return

        def named(person: Person) -> None:
            try:
                told = errand(self, person, guest.hello.target)
                guest.client.send(pack(told), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except OSError as error:
                log.info("an answer was not taken: %s", error)
            finally:
                guest.close(self.door.closing)
                self.door.left(guest.caller.uid)

        self.names.find(guest.caller.uid, named)

    def _reconsider(self) -> None:
        for conversation in list(self.waiting):
            conversation.reconsider()

    def _on_time(self) -> None:
        self.enforcement.review()

    # --- the end ------------------------------------------------------------------------------------------------------

    def _hear_signals(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
        signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)  # the byte on the socket is what is heard
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

        def heard() -> None:
            ours.recv(64)
            theirs.fileno()  # kept open as long as signals are heard
            self._stop()

        self.loop.watch(ours.fileno(), heard)
        return ours

    def _stop(self) -> None:
        """End every run, report it, and leave when all are gone (bounded)."""
        self.door.close()
        for run in list(self.runs.live.values()):
            self.runs.end(run, "agent_died", "the agent stops")
        patience = boottime() + 5.0

        def when_gone() -> None:
            if self.runs.live and boottime() < patience:
                self.loop.after(0.01, when_gone)
                return
            self.timekeeping.mark()
            self.linkage.stop()
            self.spool.close()
            self.leaves.close()
            self.loop.stop()

        when_gone()


def _key(state: State) -> PrivateKey:
    try:
        return PrivateKey(from_base64url(state.need("keeper.seed")))
    except ValueError as error:
        raise Unusable(f"{state.path('keeper.seed')} holds no key ({error}): enrol this computer again") from None


def _home_of_root() -> tuple[str, str]:
    """From the local file: no directory service is asked who root is."""
    for line in Path("/etc/passwd").read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split(":")
        if len(fields) >= 7 and fields[2] == "0":
            return fields[5] or "/", fields[6] or "/bin/sh"
    return "/root", "/bin/sh"
