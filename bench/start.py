"""Starting everything, with nothing kept and with everything kept; and the memory that it takes."""

import importlib
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from figures import Figure
from ground import Ground
from processes import pss_mib

from sojourn_embedded.demo.stack import Stack
from sojourn_embedded.owners import SERVICES

ROUNDS = 3
SETTLE_SECONDS = 1.5  # until memory is looked at: what only the start needed has been given back then
COLD_LIMIT, WARM_LIMIT, MEMORY_LIMIT = 6, 4, 300


def measure(ground: Ground) -> Iterator[Figure]:
    cold, warm = [], []
    for count in range(ROUNDS):
        ground.tell(f"sojourn up, cold and warm: {count + 1} of {ROUNDS}")
        with tempfile.TemporaryDirectory(prefix="sojourn-bench-") as name:
            os.chmod(name, 0o711)
            data = Path(name) / "data"
            cold.append(started(data))
            warm.append(started(data))
    apart = importlib.import_module("separate").started(ground, ROUNDS, SETTLE_SECONDS)
    for name, runs, limit, peer in (("cold", cold, COLD_LIMIT, apart.cold), ("warm", warm, WARM_LIMIT, apart.warm)):
        seconds = statistics.median(one.seconds for one in runs)
        yield Figure(f"sojourn up, {name}: until all is ready", seconds, "s", "limit", limit)
        yield Figure("", seconds, "s", f"its five services alone, as five processes, {name}", peer)
    if apart.memory is None:
        ground.say("start: memory is not measured: root alone may look into the agent's (sudo make bench)")
        return
    for name, runs in (("cold", cold), ("warm", warm)):
        memory = statistics.median(one.everything for one in runs)
        yield Figure(f"memory of all together after a {name} start", memory, "MiB", "limit", MEMORY_LIMIT)
    memory = statistics.median(one.services for one in cold)
    yield Figure("  of which the five services", memory, "MiB", "as five processes", apart.memory)
    yield Figure("  of which PostgreSQL", statistics.median(one.postgres for one in cold), "MiB")
    yield Figure("  of which the agent", statistics.median(one.agent for one in cold), "MiB")


@dataclass(frozen=True)
class Started:
    """How long a start took, and proportional memory in MiB afterwards if we are root."""

    seconds: float
    everything: float = 0
    services: float = 0
    agent: float = 0
    postgres: float = 0


def started(data: Path) -> Started:
    """`sojourn up` on a folder, which is kept."""
    with Stack("--data", str(data)) as stack:
        if os.geteuid() != 0:
            return Started(stack.start_seconds)
        time.sleep(SETTLE_SECONDS)
        parts = {part: pss_mib(pid) for part, pid in stack.ready["pids"].items()}
        return Started(
            seconds=stack.start_seconds,
            everything=pss_mib(stack.process.pid),  # the launcher and all below it
            services=sum(parts[name] for name in SERVICES),
            agent=parts["agent"],
            postgres=parts["postgres"],
        )
