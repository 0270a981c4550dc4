"""Trusted time: what the server signed, carried on by BOOTTIME; no wall clock can move it back.

Pure: `Marks` are what lies on disk, `after_start` says what can be known from them when the keeper starts.
Moments are aware UTC, boot times seconds of CLOCK_BOOTTIME (which counts sleep).
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated

import msgspec

CLOCK_TOLERANCE = timedelta(seconds=5)
"""A clock this much behind the mark is still taken: the mark and the clock's own second are not written at once."""


class Marks(msgspec.Struct, frozen=True, kw_only=True):
    """What is written each minute: the highest trusted moment so far, and what BOOTTIME of which boot it was then."""

    boot_id: str
    boottime: Annotated[float, msgspec.Meta(ge=0, le=1e10)]
    now: Annotated[datetime, msgspec.Meta(tz=True)]
    confirmed: bool
    epoch: int = 0
    version: int = 0


@dataclass(frozen=True)
class Trusted:
    """The moment of BOOTTIME 0. `confirmed`: by the server's signature; else by this computer's clock alone."""

    origin: datetime
    confirmed: bool

    def now(self, boottime: float) -> datetime:
        return self.origin + timedelta(seconds=boottime)

    def boottime_of(self, moment: datetime) -> float:
        """When BOOTTIME shows `moment`."""
        return (moment - self.origin).total_seconds()

    def confirmed_by(self, server_time: datetime, boottime: float) -> "Trusted":
        """The later of what is held and a signed answer that arrived at `boottime`; never moves back what was signed.

        An unconfirmed clock is replaced, whichever way: only a signature makes a clock true.
        """
        origin = server_time - timedelta(seconds=boottime)
        if self.confirmed and origin <= self.origin:
            return self
        return Trusted(origin=origin, confirmed=True)


@dataclass(frozen=True)
class Suspended:
    """No time can be trusted until the server confirms one; nothing starts. `why` is a sentence."""

    why: str


def after_start(marks: Marks | None, *, boot_id: str, boottime: float, wall: datetime) -> Trusted | Suspended:
    """What time it is, as far as the marks and the computer's clock tell.

    Same boot: BOOTTIME goes on. After a reboot the later of the mark and the clock counts, so that what is left of
    a grant is the smaller of its rest at the last mark and its end by the clock. A clock behind the mark was moved
    back: suspended.
    """
    if marks is None:
        return Suspended("this computer has not yet heard the server's time")
    if marks.boot_id == boot_id:
        return Trusted(origin=marks.now - timedelta(seconds=marks.boottime), confirmed=marks.confirmed)
    if wall < marks.now - CLOCK_TOLERANCE:
        return Suspended("this computer's clock was moved back: waiting for the server's time")
    return Trusted(origin=max(wall, marks.now) - timedelta(seconds=boottime), confirmed=False)
