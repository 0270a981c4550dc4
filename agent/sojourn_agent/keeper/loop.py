"""The keeper's one loop: epoll, and timers on CLOCK_BOOTTIME, which counts sleep and which no wall clock moves.

Nothing in it may wait: what can hang (name services, file systems, probes) runs in a child (`children.py`).
"""

import ctypes
import heapq
import itertools
import logging
import os
import select
from collections.abc import Callable

from sojourn_shared.clock import boottime

log = logging.getLogger("sojourn.keeper")

READ = select.EPOLLIN | select.EPOLLRDHUP
GONE = select.EPOLLRDHUP
"""For a connection that another process reads: its other side has left."""
CHANGED = select.EPOLLPRI
"""For `cgroup.events`: the kernel says that the file reads differently now."""

Callback = Callable[[], None]

_CLOCK_BOOTTIME = 7
_ABSOLUTE = 1
_FEW = 1000
"""Timers."""
_libc = ctypes.CDLL(None, use_errno=True)


class TimerFd:
    """A descriptor that becomes readable when BOOTTIME shows a given second."""

    def __init__(self) -> None:
        self.fd = _libc.timerfd_create(_CLOCK_BOOTTIME, os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")

    def set(self, at: float | None) -> None:
        """`at`: seconds of BOOTTIME; one that has passed fires at once; None disarms."""
        nanoseconds = 0 if at is None else max(1, int(at * 1e9))
        spec = (ctypes.c_long * 4)(0, 0, nanoseconds // 10**9, nanoseconds % 10**9)
        if _libc.timerfd_settime(self.fd, _ABSOLUTE, spec, None) < 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def clear(self) -> None:
        """Read what made it readable."""
        try:
            os.read(self.fd, 8)
        except BlockingIOError:
            return


class Timer:
    """Something due at a second of BOOTTIME; `cancel` makes it never happen."""

    __slots__ = ("call",)

    def __init__(self, call: Callback) -> None:
        self.call: Callback | None = call

    def cancel(self) -> None:
        self.call = None


class Loop:
    """Calls back when descriptors are ready and timers are due, one after the other. A failing callback is logged:
    one caller's trouble must not end the runs of all others."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, Callback] = {}
        self._writers: dict[int, Callback] = {}
        self._due: list[tuple[float, int, Timer]] = []
        self._look_at = _FEW
        self._order = itertools.count()
        self._timerfd = TimerFd()
        self._running = False
        self.watch(self._timerfd.fd, self._timerfd.clear)

    def watch(self, fd: int, call: Callback, events: int = READ) -> None:
        self._epoll.register(fd, events)
        self._watched[fd] = call

    def want_write(self, fd: int, call: Callback | None) -> None:
        """Also call back when a watched descriptor takes bytes again; None: no more."""
        if (call is None) == (fd not in self._writers):
            return
        if call is None:
            del self._writers[fd]
        else:
            self._writers[fd] = call
        self._epoll.modify(fd, READ if call is None else READ | select.EPOLLOUT)

    def unwatch(self, fd: int) -> None:
        self._writers.pop(fd, None)
        if self._watched.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def at(self, second: float, call: Callback) -> Timer:
        timer = Timer(call)
        heapq.heappush(self._due, (second, next(self._order), timer))
        if len(self._due) >= self._look_at:  # cancelled ones that are due in a week would gather
            self._due = [due for due in self._due if due[2].call is not None]
            heapq.heapify(self._due)
            self._look_at = max(_FEW, 2 * len(self._due))
        return timer

    def after(self, seconds: float, call: Callback) -> Timer:
        return self.at(boottime() + seconds, call)

    def stop(self) -> None:
        self._running = False

    def run(self) -> None:
        self._running = True
        while self._turn():
            pass

    def _turn(self) -> bool:
        self._fire_due()
        if self._running:
            self._timerfd.set(self._due[0][0] if self._due else None)
            for fd, events in self._epoll.poll():
                if events & select.EPOLLOUT and (call := self._writers.get(fd)) is not None:
                    self._call(call)
                # An earlier callback of this turn may have unwatched this descriptor.
                if events & ~select.EPOLLOUT and (call := self._watched.get(fd)) is not None:
                    self._call(call)
                self._fire_due()  # between any two callbacks: a crowd of callers does not delay an end
        return self._running

    def _fire_due(self) -> None:
        now = boottime()
        while self._due and self._due[0][0] <= now:
            timer = heapq.heappop(self._due)[2]
            if timer.call is not None:
                call, timer.call = timer.call, None
                self._call(call)

    @staticmethod
    def _call(call: Callback) -> None:
        try:
            call()
        except Exception:
            log.exception("a step failed")


class ClockWatch:
    """Calls back when somebody sets the wall clock (a CLOCK_REALTIME timer that is cancelled by it)."""

    def __init__(self, loop: Loop, call: Callback) -> None:
        self._call = call
        self._fd = _libc.timerfd_create(0, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._arm()
        loop.watch(self._fd, self._on_ready)

    def _arm(self) -> None:
        far = (ctypes.c_long * 4)(0, 0, 1 << 40, 0)
        _libc.timerfd_settime(self._fd, _ABSOLUTE | 2, far, None)  # TFD_TIMER_CANCEL_ON_SET

    def _on_ready(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return
        except OSError:  # ECANCELED
            self._arm()
            self._call()
