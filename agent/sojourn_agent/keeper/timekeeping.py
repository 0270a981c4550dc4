"""Keeps trusted time: what the marks told at start, what the server signed since, and a new mark each minute."""

import logging
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import msgspec

from sojourn_shared.clock import boottime, system_clock
from sojourn_shared.contracts.wire import encode

from .document import Version
from .loop import ClockWatch, Loop, Timer
from .state import State
from .trusted import Marks, Suspended, Trusted, after_start

log = logging.getLogger("sojourn.keeper")

_YEARS = range(2000, 9000)
_EACH = 60.0
"""Seconds between marks: so much of a grant may be used twice if the computer loses power."""


class Timekeeping:
    """`trusted` is None while no time can be trusted, and `why_none` says why. `floor`: the highest document version
    ever held, written with the marks."""

    def __init__(self, loop: Loop, state: State, *, on_change: Callable[[], None]) -> None:
        self._loop = loop
        self._state = state
        self._on_change = on_change
        self._soon: Timer | None = None
        self.boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self.on_clock_changed: Callable[[], None] = lambda: None
        marks = self._read()
        self.floor: Version = (marks.epoch, marks.version) if marks else (0, 0)
        known = after_start(marks, boot_id=self.boot_id, boottime=boottime(), wall=system_clock())
        self.trusted: Trusted | None = known if isinstance(known, Trusted) else None
        self.why_none: str | None = known.why if isinstance(known, Suspended) else None
        self._watch = ClockWatch(loop, self._on_clock_set)
        loop.after(_EACH, self._each_minute)

    def confirm(self, server_time: datetime) -> None:
        """The server signed this time in answer to our nonce, and it has just arrived."""
        now = boottime()
        before = self.trusted
        fresh = Trusted(origin=server_time, confirmed=False)
        self.trusted = (before or fresh).confirmed_by(server_time, now)
        self.why_none = None
        if before is None or not before.confirmed:
            self.mark_soon()
        if self.trusted != before:
            self._on_change()

    def mark_soon(self) -> None:
        """Write the marks within a moment; many wishes are one writing."""
        if self._soon is None:
            self._soon = self._loop.after(0.05, self.mark)

    def mark(self) -> None:
        self._soon = None
        if self.trusted is None:
            return
        now = boottime()
        marks = Marks(
            boot_id=self.boot_id,
            boottime=now,
            now=self.trusted.now(now),
            confirmed=self.trusted.confirmed,
            epoch=self.floor[0],
            version=self.floor[1],
        )
        try:
            self._state.write("marks.json", encode(marks).decode())
        except OSError as error:
            log.error("the time cannot be marked on disk: %s", error)

    def offset_s(self) -> int:
        """How far this computer's clock is ahead of trusted time, in seconds."""
        if self.trusted is None:
            return 0
        return round((system_clock() - self.trusted.now(boottime())).total_seconds())

    def _each_minute(self) -> None:
        self._loop.after(_EACH, self._each_minute)
        self.mark()

    def _on_clock_set(self) -> None:
        log.warning("this computer's clock was set; it is now %d s from trusted time", self.offset_s())
        self.on_clock_changed()

    def _read(self) -> Marks | None:
        text = self._state.read("marks.json")
        if text is None:
            return None
        try:
            marks = msgspec.json.decode(text, type=Marks)
            if marks.now.year not in _YEARS:
                raise ValueError(f"nobody wrote this in the year {marks.now.year}")
            return marks
        except ValueError as error:  # msgspec's errors are ValueErrors
            self._state.set_aside("marks.json", str(error))
            return None
