"""Makes the machine match the document: who may go on, who must end, which grant is over, and when to look again.

`review` is the one place that decides, and may be called at any time: after a document, a change of the clock, the
end of a run, and at the next moment something is due. What it finds over, it ends first and reports second.
"""

import logging
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from sojourn_shared.clock import boottime
from sojourn_shared.contracts.wire import (
    ENDS_GRANT,
    AppliedGrant,
    AppliedReport,
    Cause,
    EndedReport,
    EndedRun,
    Grant,
    ReturnedReport,
    UnreadableGrant,
)
from sojourn_shared.matching import Match, match

from .cover import NEVER_USED, Covered, cover, ends_at, not_enforceable, state_at
from .document import Documents, Held
from .loop import Loop, Timer
from .names import Person
from .runs import WARNINGS, Run, Runs
from .spool import Spool
from .trusted import Trusted

log = logging.getLogger("sojourn.keeper")

_SAY_AGAIN = timedelta(minutes=10)
"""A document that still names a grant so long after its end was reported: the report is made again."""
_STORE_AGAIN = 5.0
_KILL_FIRST = 0.02
"""Seconds that writing to disk waits while processes are being killed: it would hold up the look at their end."""


class Enforcement:
    """`time` answers trusted time, or None while it is suspended. `observed_only`: why nothing can be elevated here."""

    def __init__(
        self,
        loop: Loop,
        documents: Documents,
        spool: Spool,
        runs: Runs,
        *,
        time: Callable[[], Trusted | None],
        observed_only: str | None,
    ) -> None:
        self._loop = loop
        self._documents = documents
        self._spool = spool
        self._runs = runs
        self._time = time
        self._observed_only = observed_only
        self._finished: dict[str, list[EndedRun]] = {}
        self._timer: Timer | None = None
        self.after_review: Callable[[], None] = lambda: None
        self.on_stored: Callable[[], None] = lambda: None
        runs.gone = self._on_gone

    # --- a new document -----------------------------------------------------------------------------------------------

    def take(self, held: Held) -> None:
        """Act on a document that was just taken: end what must end, then write it down, then confirm it."""
        self.review()
        if any(run.is_ending for run in self._runs.live.values()):
            self._loop.after(_KILL_FIRST, lambda: self._settle(held))
        else:
            self._settle(held)

    def _settle(self, held: Held) -> None:
        self._keep()
        now = self._now()
        applied = [
            AppliedGrant(id=grant.id, applied=(why := self.why_not_applied(held, grant)) is None, reason=why)
            for grant in held.grants.values()
            if not self._is_over(held, grant, now)
        ]
        kept = set(held.grants) | {run.grant_id for run in self._runs.live.values()}

        def store() -> None:
            self._spool.forget_uses(but=kept)
            self._spool.report(AppliedReport, epoch=held.document.epoch, version=held.document.version, grants=applied)

        self._store(store)

    def _keep(self) -> None:
        try:
            self._documents.keep()
        except OSError as error:  # a full disk: it is acted upon all the same, and fetched again after a restart
            log.error("the document cannot be written now: %s", error)
            self._loop.after(_STORE_AGAIN, self._keep)

    def why_not_applied(self, held: Held, grant: Grant | UnreadableGrant) -> str | None:
        """The reason for which a grant has no effect here, or None."""
        if self._observed_only:
            return self._observed_only
        if held.document.blocked:
            return "this agent does not take block lists yet, and elevates nothing while one is in force"
        return not_enforceable(grant)

    # --- what is due --------------------------------------------------------------------------------------------------

    def review(self) -> None:
        """Judge every run and every grant at this moment."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        time = self._time()
        if time is None:
            return
        now = time.now(boottime())
        for run in list(self._runs.live.values()):
            if not run.is_ending:
                self._review_run(run, now)
        if not any(run.is_ending for run in self._runs.live.values()):  # the last of them calls again
            self._report_over(now, confirmed=time.confirmed)
        if (due := min((moment for moment in self._moments(now) if moment > now), default=None)) is not None:
            self._timer = self._loop.at(time.boottime_of(due), self.review)
        self.after_review()

    def deadline_of(self, until: datetime | None) -> float | None:
        """The second of BOOTTIME at which a run ends by time: its own end, or the document's."""
        time, held = self._time(), self._documents.held
        assert time is not None
        assert held is not None
        ends = [end for end in (until, held.document.valid_until) if end is not None]
        return time.boottime_of(min(ends))

    def give_back(self, grant: Grant, person: Person) -> None:
        """The person wants it no more: over at once, and for good. Raises sqlite3.Error."""
        with self._spool.transaction():
            use = self._spool.uses.get(grant.id, NEVER_USED)
            self._spool.put_use(grant.id, replace(use, over="returned"))
            self._spool.report(ReturnedReport, grant_id=grant.id, user=person.reporting)
        self.review()
        self.on_stored()

    def _review_run(self, run: Run, now: datetime) -> None:
        held = self._documents.held
        if held is None:
            self._runs.end(run, "offline", "the computer's permissions were withdrawn; it asks for new ones")
            return
        if now >= held.document.valid_until:
            self._runs.end(run, "offline", "this computer has not heard from its server for too long")
            return
        grant = held.grants.get(run.grant_id)
        if not isinstance(grant, Grant) or self.why_not_applied(held, grant) is not None:
            self._runs.end(run, "revoked", "its grant is no longer in force")
            return
        use = self._spool.uses.get(grant.id, NEVER_USED)
        state = state_at(grant, use, now)
        if state == "revoked":
            self._review_revoked(run, grant, held, now)
        elif state == "expired":
            if not self._moved(run, held, now):
                # Only a signed time ends the grant itself; by the computer's own clock alone its runs end.
                confirmed = (time := self._time()) is not None and time.confirmed
                self._runs.end(run, "expired" if confirmed else "offline", "the time is over")
        elif state in ("returned", "over"):
            self._runs.end(run, "returned", "access was given back")
        elif not isinstance(match(grant.rules, run.application), Match):
            self._runs.end(run, "revoked", "its grant no longer covers this application")
        else:
            if (until := ends_at(grant, use)) != run.until:
                run.until = until
            self._runs.set_deadline(run, self.deadline_of(run.until))
            self._warn(run, held, now)

    def _review_revoked(self, run: Run, grant: Grant, held: Held, now: datetime) -> None:
        assert grant.revoked is not None
        if grant.revoked.superseded and self._moved(run, held, now):
            return
        end = _revoke_takes_effect(grant)
        if now >= end or not grant.revoked.grace_seconds:  # the server's clock may be a moment ahead of trusted time
            self._runs.end(run, "revoked", f"access was revoked: {grant.revoked.reason}")
        elif -1 not in run.warned:
            run.warned.add(-1)
            seconds = max(1, round((end - now).total_seconds()))
            self._runs.tell(run, f"access was revoked: {grant.revoked.reason}. It ends in {seconds} s: save your work")
            self._runs.set_deadline(run, self.deadline_of(end))

    def _moved(self, run: Run, held: Held, now: datetime) -> bool:
        covered = self._other_cover(run, held, now)
        if covered is None or not self._runs.move(run, covered, self.deadline_of(covered.until)):
            return False
        name = covered.grant.policy_name or covered.grant.id
        end = f"until {covered.until:%H:%M} UTC" if covered.until else "without an end of its own"
        self._runs.tell(run, f"the application goes on under “{name}”, {end}")
        self.on_stored()
        return True

    def _other_cover(self, run: Run, held: Held, now: datetime) -> Covered | None:
        covered = cover(held, run.person.who, run.application, now, self._spool.uses, but=run.grant_id)
        return covered if isinstance(covered, Covered) else None

    def _warn(self, run: Run, held: Held, now: datetime) -> None:
        if run.until is None:
            return
        left = (run.until - now).total_seconds()
        passed = {seconds for seconds in WARNINGS if left <= seconds + 0.05}
        if not passed - run.warned:
            return
        run.warned |= passed
        if self._other_cover(run, held, now) is None:
            minutes = min(passed) // 60
            self._runs.tell(run, f"access ends in {minutes} minute{'s' if minutes > 1 else ''}: save your work")

    # --- grants that are over -----------------------------------------------------------------------------------------

    def _report_over(self, now: datetime, *, confirmed: bool) -> None:
        """One `ended` for each grant that is over, as soon as nothing of it runs."""
        held = self._documents.held
        if held is None:
            return
        over: list[tuple[str, Cause]] = []
        for grant in held.grants.values():
            said = self._spool.said.get(grant.id)
            if said is not None and (now < said + _SAY_AGAIN or self._spool.waiting):
                continue
            cause = self._is_over(held, grant, now)
            if cause is None or self._runs.of_grant(grant.id) or (cause == "expired" and not confirmed):
                continue
            over.append((grant.id, cause))
        if over:
            self._store(lambda: self._store_over(over, now))

    def _store_over(self, over: list[tuple[str, Cause]], now: datetime) -> None:
        for grant_id, cause in over:
            runs = self._finished.get(grant_id, [])
            self._spool.report(EndedReport, grant_id=grant_id, cause=cause, runs=runs)
            self._spool.put_said(grant_id, now)
            for run in runs:
                self._spool.drop_run(run.run_id)

    def _is_over(self, held: Held, grant: Grant | UnreadableGrant, now: datetime) -> Cause | None:
        if isinstance(grant, UnreadableGrant):
            outline = held.outlines.get(grant.id)
            return outline.ended(now) if outline else None
        state = state_at(grant, self._spool.uses.get(grant.id, NEVER_USED), now)
        causes: dict[str, Cause] = {
            "revoked": "revoked",
            "expired": "expired",
            "not taken up": "expired",
            "returned": "returned",
        }
        return causes.get(state)

    def _on_gone(self, run: Run, ended: EndedRun) -> None:
        assert run.cause is not None
        cause, grant_id = run.cause, run.grant_id
        held = self._documents.held
        grant = held.grants.get(grant_id) if held else None
        if cause in ENDS_GRANT and grant is not None:
            self._finished.setdefault(grant_id, []).append(ended)  # told in the grant's one `ended`
        else:

            def store() -> None:
                self._spool.report(EndedReport, grant_id=grant_id, cause=cause, runs=[ended])
                self._spool.drop_run(run.run_id)
                if isinstance(grant, Grant) and grant.ends_with_application:
                    use = self._spool.uses.get(grant_id, NEVER_USED)
                    self._spool.put_use(grant_id, replace(use, over="returned"))

            self._store(store)
        self.review()

    def _store(self, step: Callable[[], None]) -> None:
        """Write down what has happened already. A full disk delays the words, never the deed."""
        try:
            with self._spool.transaction():
                step()
        except sqlite3.Error as error:
            log.error("reports cannot be written now (%s); tried again in %d s", error, _STORE_AGAIN)
            self._loop.after(_STORE_AGAIN, lambda: self._store(step))
            return
        for grant_id in self._spool.said:
            self._finished.pop(grant_id, None)
        self.on_stored()

    # --- time ---------------------------------------------------------------------------------------------------------

    def _moments(self, now: datetime) -> Iterator[datetime]:
        """All moments at which something may change by time alone."""
        held = self._documents.held
        if held is None:
            return
        yield held.document.valid_until
        for grant in held.grants.values():
            if not isinstance(grant, Grant) or grant.id in self._spool.said:
                continue
            yield grant.from_
            end = ends_at(grant, self._spool.uses.get(grant.id, NEVER_USED))
            yield from (moment for moment in (end, grant.take_up_until) if moment is not None)
            if grant.revoked is not None:
                yield _revoke_takes_effect(grant)
        for run in self._runs.live.values():
            if run.until is not None and not run.is_ending:
                yield from (run.until - timedelta(seconds=seconds) for seconds in WARNINGS)

    def _now(self) -> datetime:
        time = self._time()
        return time.now(boottime()) if time else datetime.min.replace(tzinfo=UTC)


def _revoke_takes_effect(grant: Grant) -> datetime:
    assert grant.revoked is not None
    return grant.revoked.at + timedelta(seconds=grant.revoked.grace_seconds)
