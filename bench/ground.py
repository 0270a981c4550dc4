"""What the parts stand on. Each is started when the first part asks for it, and ended with the run."""

import importlib
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

from sojourn_embedded.demo.people import Administrator, Person, ThrowAwayUsers
from sojourn_embedded.demo.stack import Stack

if TYPE_CHECKING:
    from servers import Servers

USER = "sojourn-bench"
QUIET = 0.5
"""Load average of the last minute, from which on other work is likely to be measured along."""


class Ground:
    """`tell` says how far a part has come, `say` what stays to be read."""

    def __init__(self, tell: Callable[[str], None], say: Callable[[str], None]) -> None:
        self.tell = tell
        self.say = say
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    @cached_property
    def servers(self) -> "Servers":
        """A PostgreSQL that syncs and a NATS, without services."""
        # Loaded when asked for: what this process has loaded it shares with the stack whose memory is measured.
        opened: AbstractContextManager[Servers] = importlib.import_module("servers").servers()
        self.tell("starting PostgreSQL and NATS")
        return self._exit.enter_context(opened)

    @cached_property
    def stack(self) -> Stack:
        """A whole Sojourn, with a throw-away OS user. Needs root to elevate."""
        self.tell("starting a throw-away stack")
        self._exit.enter_context(ThrowAwayUsers(USER))
        return self._exit.enter_context(Stack())

    @cached_property
    def admin(self) -> Administrator:
        return self._exit.enter_context(Administrator(self.stack))

    @cached_property
    def user(self) -> Person:
        return Person(USER, self.stack)


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = next((line for line in _lines("/proc/meminfo") if line.startswith("MemTotal:")), "0 0").split()[1]
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": names[0] if names else platform.machine(),
        "memory_gib": round(int(memory) / 2**20),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "fdatasync_us": round(_fdatasync_us()),
        "load_before": round(os.getloadavg()[0], 2),
    }


def _fdatasync_us() -> float:
    """Median of 200 synced writes of 8 KiB where the throw-away folders lie: every commit waits for one of those."""
    with tempfile.TemporaryFile(buffering=0) as file:
        taken = []
        for _ in range(200):
            file.write(bytes(8192))
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            taken.append((time.perf_counter() - began) * 1e6)
    return statistics.median(taken)


def _lines(file: str) -> list[str]:
    try:
        return Path(file).read_text().splitlines()
    except OSError:
        return []
