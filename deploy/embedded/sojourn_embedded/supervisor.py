"""Starts parts, starts those that die again, and ends all of them in order."""

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from .parts import Part
from .process import CannotStart, adopt_orphans, last_lines

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 30.0  # seconds between two attempts; doubled each time
STEADY = 60.0  # seconds up after which the next end is a first one again
CHECK_EVERY = 5.0  # seconds, whether what is up does its work
LOOK_EVERY = 0.02  # seconds, while something gets ready
SLOW = 60.0  # seconds; a part that needs longer is ended and started again
ATTEMPTS_AT_FIRST = 3  # a part that never got ready is wrong in a way that more attempts do not cure


class Stopped(Exception):
    """Somebody asked this process to end."""


@dataclass
class _Watch:
    part: Part
    state: str  # "starting", "up", "waiting"
    since: float
    pause: float = FIRST_PAUSE
    attempts: int = 1
    was_up: bool = False
    checked: float = 0.0


class Supervisor:
    """`say(text)` tells people one line; `changed()` is called whenever a part's pid is another and it is ready."""

    def __init__(self, say: Callable[[str], None], changed: Callable[[], None]) -> None:
        self._say = say
        self._changed = changed
        self._watches: dict[str, _Watch] = {}
        self._began = time.monotonic()
        self._asked_to_stop = False
        self._wake, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        adopt_orphans()  # services are forked by a process that leaves

    @contextmanager
    def heeding_signals(self) -> Iterator[None]:
        """SIGTERM, SIGINT and SIGHUP raise Stopped as soon as parts are looked at again."""

        def stop(_signal: int, _frame: FrameType | None) -> None:
            self._asked_to_stop = True
            os.write(self._waker, b"x")

        heeded = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # under nohup the terminal may go
            heeded.append(signal.SIGHUP)
        before = {each: signal.signal(each, stop) for each in heeded}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def launch(self, *parts: Part) -> None:
        """Start parts and watch them from now on. Raises CannotStart."""
        for part in parts:
            part.launch()
            self._watches[part.name] = _Watch(part, "starting", time.monotonic())

    def wait_for(self, *names: str) -> None:
        """Return when all of these are up. Raises CannotStart if one ends again and again, and Stopped."""
        self._look_at_all()
        while any(self._watches[name].state != "up" for name in names):
            self._sleep()
            self._look_at_all()

    def run(self) -> None:
        """Watch until somebody asks to stop. Raises Stopped."""
        while True:
            self._look_at_all()
            self._sleep()

    def stop(self, *stages: tuple[Sequence[str], signal.Signals, float]) -> None:
        """End parts in stages: these names, by this signal, within so many seconds, then by SIGKILL."""
        for names, by, within in stages:
            parts = [self._watches[name].part for name in names if name in self._watches]
            for part in parts:
                part.signal(by)
            _wait_for_the_end(parts, within)
            for part in parts:
                part.signal(signal.SIGKILL)
            _wait_for_the_end(parts, 5)

    def _look_at_all(self) -> None:
        self._bury_strangers()
        if self._asked_to_stop:
            raise Stopped
        now = time.monotonic()
        for watch in list(self._watches.values()):
            self._look(watch, now)

    def _look(self, watch: _Watch, now: float) -> None:
        part = watch.part
        if watch.state == "waiting":
            if now >= watch.since + watch.pause:
                self._again(watch, now)
        elif how := part.ended():
            self._down(watch, now, how)
        elif watch.state == "starting" and part.is_ready():
            seconds = time.monotonic() - (watch.since if watch.was_up else self._began)
            self._say(f"  {part.name:<10} ready{' again' if watch.was_up else '':<6} {seconds:6.2f} s   pid {part.pid}")
            watch.state, watch.since, watch.was_up = "up", now, True
            self._changed()
        elif watch.state == "up" and now > watch.checked + CHECK_EVERY:
            watch.checked = now
            if part.is_stuck():
                self._say(f"  {part.name:<10} runs, but does nothing; see {part.log}")
                part.signal(signal.SIGTERM)
        elif watch.state == "starting" and now > watch.since + SLOW:
            part.signal(signal.SIGKILL)
            self._down(watch, now, f"not ready after {SLOW:.0f} s")

    def _down(self, watch: _Watch, now: float, how: str) -> None:
        part = watch.part
        if not watch.was_up and watch.attempts >= ATTEMPTS_AT_FIRST:
            raise CannotStart(f"{part.name} does not start ({how}): {last_lines(part.log)} (more in {part.log})")
        if watch.state == "up" and now - watch.since > STEADY:
            watch.pause = FIRST_PAUSE
        self._say(f"  {part.name:<10} ended ({how}): starting again in {watch.pause:.1f} s; see {part.log}")
        watch.state, watch.since = "waiting", now

    def _again(self, watch: _Watch, now: float) -> None:
        try:
            if not watch.part.can_launch():
                return  # asked again at the next look
            watch.part.launch()
        except CannotStart as error:
            problem = str(error)
        else:
            problem = ""
        watch.pause = min(watch.pause * 2, LONGEST_PAUSE)
        watch.attempts += 1
        watch.state, watch.since = "starting", now
        if problem:
            self._down(watch, now, problem)

    def _bury_strangers(self) -> None:
        """Reap what was adopted and is no part: whatever a part left behind."""
        ours = {watch.part.pid for watch in self._watches.values()}
        with contextlib.suppress(ChildProcessError):
            while found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if found.si_pid in ours:
                    return  # its part will hear of it; the strangers' turn is next time
                os.waitpid(found.si_pid, 0)

    def _sleep(self) -> None:
        """Until there may be news."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        for watch in self._watches.values():
            if (descriptor := watch.part.descriptor()) is not None:
                poll.register(descriptor, select.POLLIN)
        now = time.monotonic()
        waits = [watch.since + watch.pause - now for watch in self._watches.values() if watch.state == "waiting"]
        if any(watch.state == "starting" for watch in self._watches.values()):
            waits.append(LOOK_EVERY)
        poll.poll(max(LOOK_EVERY, min(CHECK_EVERY, *waits)) * 1000 if waits else CHECK_EVERY * 1000)


def _wait_for_the_end(parts: Sequence[Part], within: float) -> None:
    deadline = time.monotonic() + within
    while any(part.ended() is None for part in parts) and time.monotonic() < deadline:
        time.sleep(LOOK_EVERY)
