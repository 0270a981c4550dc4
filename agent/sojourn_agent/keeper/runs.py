"""The runs of this computer: started when they are on disk, ended whole, and looked for again afterwards.

This is the mechanics; `enforcement.py` says which run may go on.
"""

import logging
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

import msgspec

from sojourn_agent.packets import Deadline, Finish, Found, FromWarden, Go, Over, Tell
from sojourn_shared.clock import Clock, boottime
from sojourn_shared.contracts.wire import Application, Cause, EndedProcess, EndedRun, MovedReport, StartedReport, encode

from .children import ask
from .cover import NEVER_USED, Covered
from .leaves import NAMED, Containment, Leaf, kill_escaped
from .loop import CHANGED, Loop, Timer
from .names import Person
from .spool import Spool, TooLong
from .wardens import Warden

log = logging.getLogger("sojourn.keeper")

WARNINGS = (300, 60)
"""Seconds before the end at which the person is warned."""
_TREE_PATIENCE = 1.0
"""Seconds that what an application left behind may take to end by itself (the last of a pipe) before it is killed."""
_KILL_AGAIN = 0.02
_KILL_PATIENCE = 10.0
"""Seconds; then it is reported as not gone: something hangs in the kernel. It is killed on all the same."""
_WARDEN_PATIENCE = 8.0


class CannotStart(Exception):
    """The run was not started; the message is a sentence with what to do."""


@dataclass
class Run:
    """One elevated application. `until`: the moment of its end by time; `deadline`: the second of BOOTTIME that its
    warden was told. `cause` is set once it is ending."""

    run_id: str
    grant_id: str
    person: Person
    application: Application
    pid: int
    warden: Warden
    containment: Containment
    until: datetime | None = None
    deadline: float | None = None
    warned: set[int] = field(default_factory=set)
    exit_status: int | None = None
    cause: Cause | None = None
    why: str | None = None
    killed: dict[int, EndedProcess] = field(default_factory=dict)
    kill_began: float | None = None
    kill_ms: int | None = None
    empty: bool = False
    timer: Timer | None = None
    watched: int | None = None

    @property
    def is_ending(self) -> bool:
        return self.cause is not None


class Runs:
    """`gone` is called when nothing of a run is left, or after `_KILL_PATIENCE`."""

    def __init__(self, loop: Loop, spool: Spool, now: Clock) -> None:
        self._loop = loop
        self._spool = spool
        self._now = now
        self.live: dict[str, Run] = {}
        self.gone: Callable[[Run, EndedRun], None] = lambda run, ended: None

    def of_grant(self, grant_id: str) -> list[Run]:
        return [run for run in self.live.values() if run.grant_id == grant_id]

    def start(
        self,
        run_id: str,
        warden: Warden,
        found: Found,
        *,
        containment: Containment,
        person: Person,
        covered: Covered,
        deadline: float | None,
    ) -> Run:
        """Let a judged and waiting process go: first its use, the run and its report are on disk. Raises CannotStart.

        `found.application` has the arguments. `deadline`: seconds of BOOTTIME. The run owns `containment` from now on.
        """
        assert found.pid is not None
        grant_id = covered.grant.id
        try:
            if not found.in_leaf:
                containment.add(found.pid)
            with self._spool.transaction():
                self._spool.put_use(grant_id, self._spool.uses.get(grant_id, NEVER_USED).once_more(covered.at))
                self._spool.put_run(run_id, grant_id)
                self._spool.report(
                    StartedReport,
                    run_id=run_id,
                    grant_id=grant_id,
                    rule=covered.match.index,
                    user=person.reporting,
                    application=shortened(found.application),
                    pid=found.pid,
                    until=covered.until,
                )
        except (OSError, sqlite3.Error, TooLong) as error:
            warden.let_be()
            self.discard(containment)
            log.error("run %s was not started: %s", run_id, error)
            raise CannotStart(f"it cannot be recorded on this computer ({error}): tell its administrator") from None
        run = Run(run_id, grant_id, person, found.application, found.pid, warden, containment)
        run.until, run.deadline, run.warned = covered.until, deadline, _needless(covered)
        self.live[run_id] = run
        warden.on_message = partial(self._on_warden, run)
        warden.on_death = partial(self._on_warden_death, run)
        leaf = str(containment.folder) if isinstance(containment, Leaf) else None
        warden.send(Go(run_id=run_id, grant_id=grant_id, deadline=deadline, leaf=leaf))
        return run

    def end(self, run: Run, cause: Cause, why: str) -> None:
        """Kill all of it now. The first cause stands."""
        if run.is_ending:
            return
        run.cause, run.why = cause, why
        run.kill_began = boottime()
        self._kill(run)
        self._watch(run)
        self._look(run)

    def move(self, run: Run, covered: Covered, deadline: float | None) -> bool:
        """The run goes on under another grant; False when that could not be written down."""
        grant_id = covered.grant.id
        try:
            with self._spool.transaction():
                use = self._spool.uses.get(grant_id, NEVER_USED).once_more(covered.at)
                self._spool.put_use(grant_id, use)
                self._spool.put_run(run.run_id, grant_id)
                self._spool.report(MovedReport, run_id=run.run_id, from_=run.grant_id, to=grant_id)
        except sqlite3.Error as error:
            log.error("run %s was not moved to grant %s: %s", run.run_id, grant_id, error)
            return False
        run.grant_id, run.until, run.warned = grant_id, covered.until, _needless(covered)
        self.set_deadline(run, deadline)
        return True

    def set_deadline(self, run: Run, deadline: float | None) -> None:
        if deadline != run.deadline:
            run.deadline = deadline
            run.warden.send(Deadline(at=deadline))

    def tell(self, run: Run, text: str) -> None:
        run.warden.send(Tell(text=text))

    def discard(self, containment: Containment) -> None:
        """Nothing runs in there, or soon: remove it."""
        if containment.is_empty():
            containment.remove()
        else:
            self._loop.after(0.05, lambda: self.discard(containment))

    # --- the end ------------------------------------------------------------------------------------------------------

    def _on_warden(self, run: Run, message: FromWarden) -> None:
        if not isinstance(message, Over) or run.is_ending or run.empty:
            return
        if message.how == "client_gone":
            self.end(run, "client_gone", "its terminal is gone")
            return
        run.exit_status = message.exit_status
        if run.containment.is_empty():
            run.cause = "exited"
            self._on_empty(run)
            return
        # What it left behind may end by itself, for a moment; then it is ended: nothing stays elevated unattended.
        self._watch(run)
        run.timer = self._loop.after(_TREE_PATIENCE, lambda: self.end(run, "exited", "its last processes were ended"))

    def _on_warden_death(self, run: Run) -> None:
        if not run.empty:
            self.end(run, "agent_died", "its warden died")

    def _kill(self, run: Run) -> None:
        for process in run.containment.processes():
            run.killed.setdefault(process.pid, process)
        run.containment.kill()

    def _watch(self, run: Run) -> None:
        if run.watched is None and (changes := run.containment.changes()) is not None:
            run.watched = changes
            self._loop.watch(changes, lambda: self._look(run), CHANGED)

    def _look(self, run: Run) -> None:
        """Called whenever the leaf changed, and often while it is being killed."""
        if run.empty:
            return
        if run.containment.is_empty():
            if run.cause is None:
                run.cause = "exited"
            self._on_empty(run)
        elif run.kill_began is not None:
            if boottime() - run.kill_began > _KILL_PATIENCE:
                self._on_empty(run, gone=False)
                return
            self._kill(run)
            self._again(run)

    def _again(self, run: Run) -> None:
        if run.timer is not None:
            run.timer.cancel()
        run.timer = self._loop.after(_KILL_AGAIN, lambda: self._look(run))

    def _on_empty(self, run: Run, *, gone: bool = True) -> None:
        run.empty = True
        if run.kill_began is not None:
            run.kill_ms = max(1, round((boottime() - run.kill_began) * 1000))
        if run.timer is not None:
            run.timer.cancel()
        if run.watched is not None:
            self._loop.unwatch(run.watched)
            run.watched = None
        if gone:
            run.containment.remove()
        else:
            self._chase(run.containment)
        run.warden.send(_last_word(run))
        self._loop.after(_WARDEN_PATIENCE, run.warden.kill)
        at = self._now()
        # A walk through /proc takes as long as there are processes: a child goes.
        ask(self._loop, partial(kill_escaped, run.run_id), 10.0, lambda found: self._on_searched(run, found, gone, at))

    def _chase(self, containment: Containment) -> None:
        """Reported as not gone, and killed until it is."""
        if containment.is_empty():
            containment.remove()
        else:
            containment.kill()
            self._loop.after(1.0, lambda: self._chase(containment))

    def _on_searched(self, run: Run, found: bytes | None, gone: bool, at: datetime) -> None:
        escaped = msgspec.json.decode(found, type=list[EndedProcess]) if found is not None else []
        del self.live[run.run_id]
        ended = EndedRun(
            run_id=run.run_id,
            exit_status=run.exit_status,
            processes_ended=list(run.killed.values())[:NAMED],
            escaped=escaped[:NAMED],
            kill_ms=run.kill_ms,
            gone=gone and found is not None,
            at=at,
        )
        self.gone(run, ended)


def _last_word(run: Run) -> Finish:
    """The contract's exit status: the application's own, 124 when the access ended, 75 when the agent failed."""
    count = len(run.killed)
    tail = f" ({count} process{'es' if count != 1 else ''} ended)" if count else ""
    if run.cause == "exited" or (run.exit_status is not None and run.cause != "client_gone"):
        return Finish(exit=None, why=f"{run.why}{tail}" if run.why else None)
    return Finish(exit=75 if run.cause == "agent_died" else 124, why=f"{run.why}{tail}")


_CUT = "… (cut)"
_LONG = 8000
"""Bytes in JSON of all arguments that go into a report of a run or a refusal; the rest is cut, and said to be."""


def shortened(application: Application) -> Application:
    """The same facts with texts that fit into a report."""
    arguments, left = [], _LONG
    for argument in application.arguments or []:
        if (size := len(encode(argument)) + 1) > left:
            arguments.append(argument[: left // 6] + _CUT)
            break
        arguments.append(argument)
        left -= size
    folder = application.working_directory
    return msgspec.structs.replace(
        application, arguments=arguments, working_directory=None if folder is None else cut(folder, _LONG // 2)
    )


def cut(text: str, most: int) -> str:
    """`text`, or as much of it as surely takes `most` bytes in JSON, where one character may become six."""
    return text if len(encode(text)) <= most else text[: most // 6] + _CUT


def _needless(covered: Covered) -> set[int]:
    """The warnings that would come right at the start: the person has just been told the time."""
    if covered.until is None:
        return set()
    left = (covered.until - covered.at).total_seconds()
    return {seconds for seconds in WARNINGS if left <= seconds + 30}
