"""Refusals are reported, but a loop must not grow the ledger: the first of a user at once, the others once a minute."""

import logging
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from sojourn_shared.contracts.wire import Application, RefusedReport

from .loop import Loop
from .names import Person
from .runs import cut, shortened
from .spool import Spool, TooLong

log = logging.getLogger("sojourn.keeper")

_MINUTE = 60.0
_NAMELESS = -1
"""All user ids without a name count as one: whoever may make user namespaces has tens of thousands."""
_DETAIL = 4000
"""Bytes in JSON of the sentence that the person read."""


@dataclass
class _Last:
    person: Person
    application: Application
    reason: str
    detail: str
    count: int = 0


class Refusals:
    """`on_stored` is called when a report was added."""

    def __init__(self, loop: Loop, spool: Spool, on_stored: Callable[[], None]) -> None:
        self._loop = loop
        self._spool = spool
        self._on_stored = on_stored
        self._minute: dict[int, _Last | None] = {}

    def add(self, person: Person, application: Application, reason: str, detail: str) -> None:
        """`reason`: a code; `detail`: the sentence that the person read."""
        said = _Last(person, shortened(application), reason, cut(detail, _DETAIL), 1)
        who = person.uid if person.why_unnamed is None else _NAMELESS
        if who not in self._minute:
            self._minute[who] = None
            self._loop.after(_MINUTE, lambda: self._over(who))
            self._report(said)
            return
        if (last := self._minute[who]) is not None:
            said.count += last.count
        self._minute[who] = said

    def _over(self, who: int) -> None:
        if (last := self._minute[who]) is None:
            del self._minute[who]
            return
        self._minute[who] = None
        self._loop.after(_MINUTE, lambda: self._over(who))
        self._report(last)

    def _report(self, last: _Last) -> None:
        if self._spool.full:
            return
        try:
            with self._spool.transaction():
                self._spool.report(
                    RefusedReport,
                    user=last.person.reporting,
                    application=last.application,
                    reason=last.reason,
                    detail=last.detail,
                    count=last.count,
                )
        except (sqlite3.Error, TooLong) as error:
            log.error("a refusal cannot be recorded: %s", error)
            return
        self._on_stored()
