"""The one place that asks what time it is; everything else takes a clock, or a moment, as a parameter."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

Clock = Callable[[], datetime]
"""Answers the present moment, aware, in UTC."""


def system_clock() -> datetime:
    """The present moment as this machine believes it to be (aware, UTC)."""
    return datetime.now(UTC)


def boottime() -> float:
    """Seconds since this machine started, time asleep included; no wall clock moves it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class ManualClock:
    """A clock that a test moves by hand."""

    def __init__(self, at: datetime) -> None:
        self.at = at

    def __call__(self) -> datetime:
        return self.at

    def advance(self, by: timedelta) -> None:
        self.at += by


def rfc3339(moment: datetime) -> str:
    """`2026-11-24T10:13:39.250000Z`: always six decimals and `Z`, so that texts sort as moments do."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def in_words(moment: datetime) -> str:
    """A moment in a sentence for people: `2026-11-24 10:13:39 UTC`."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def milliseconds(moment: datetime) -> int:
    """Whole milliseconds since 1970."""
    return int(moment.timestamp() * 1000)
