"""How often one caller may call. Counted in this process: with several replicas each has its own count."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from sojourn_shared.clock import boottime
from sojourn_shared.errors import DomainError

MANY = 10_000  # callers remembered before those who have rested are forgotten


class RateLimited(DomainError):
    code, status, title = "rate-limited", 429, "Too many requests"


@dataclass(frozen=True)
class Left:
    """What is left to a caller, as the header fields of draft-ietf-httpapi-ratelimit-headers-10 say it."""

    policy: str
    burst: int
    rate: float
    left: float

    @property
    def wait(self) -> int:
        """Whole seconds until one more request is possible; 0 when it is now."""
        return 0 if self.left >= 1 else math.ceil((1 - self.left) / self.rate)

    @property
    def headers(self) -> dict[str, str]:
        full = math.ceil((self.burst - self.left) / self.rate)
        headers = {
            "RateLimit-Policy": f'"{self.policy}";q={self.burst};w={math.ceil(self.burst / self.rate)}',
            "RateLimit": f'"{self.policy}";r={max(0, int(self.left))};t={full}',
        }
        return headers | ({"Retry-After": str(self.wait)} if self.wait else {})


class Buckets:
    """A token bucket for each caller: `burst` requests at once, refilled with `rate` a second."""

    def __init__(self, policy: str, *, rate: float, burst: int, seconds: Callable[[], float] = boottime) -> None:
        self._policy, self._rate, self._burst, self._seconds = policy, rate, burst, seconds
        self._buckets: dict[str, tuple[float, float]] = {}  # caller: (what was left, when)

    def take(self, caller: str) -> tuple[Left, bool]:
        """What is left after this request, and whether it may pass."""
        now = self._seconds()
        left = self._left(caller, now)
        if passes := left >= 1:
            left -= 1
        self._buckets[caller] = (left, now)
        if len(self._buckets) > MANY:
            self._forget(now)
        return Left(self._policy, self._burst, self._rate, left), passes

    def _left(self, caller: str, now: float) -> float:
        left, at = self._buckets.get(caller, (float(self._burst), now))
        return min(self._burst, left + (now - at) * self._rate)

    def _forget(self, now: float) -> None:
        """Whoever has rested long enough to have a full bucket needs no entry; a crowd that has not starts afresh."""
        self._buckets = {one: kept for one, kept in self._buckets.items() if self._left(one, now) < self._burst - 1}
        if len(self._buckets) > MANY:
            self._buckets.clear()


class Limits:
    """The two limits: of callers who are known, and, by address, of those who are not."""

    def __init__(self, seconds: Callable[[], float] = boottime) -> None:
        self.callers = Buckets("caller", rate=100, burst=200, seconds=seconds)
        # An agent makes one such call in twelve hours; a whole office behind one address may enrol at once.
        self.strangers = Buckets("address", rate=20, burst=100, seconds=seconds)
