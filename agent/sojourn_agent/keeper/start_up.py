"""What is left of an earlier keeper's runs is ended and reported before anybody new is let in."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sojourn_shared.clock import boottime, system_clock
from sojourn_shared.contracts.wire import EndedProcess, EndedReport, EndedRun

from .leaves import Leaves, kill_escaped
from .spool import Spool
from .state import State, Unusable

log = logging.getLogger("sojourn.keeper")

_PATIENCE = 2.0
"""Seconds for all left-over leaves to become empty; what hangs in the kernel must not keep the agent from starting."""


@dataclass(frozen=True)
class LeftOver:
    """By run: which processes were still there. `not_gone`: the runs of which something hangs in the kernel."""

    killed: Mapping[str, list[EndedProcess]]
    not_gone: frozenset[str]


def end_left_over(state: State, leaves: Leaves) -> LeftOver:
    """Kill every leaf that is there: before anything else can fail, since nobody watches them."""
    earlier = state.read("cgroup")
    left = leaves.left_over(*([Path(earlier)] if earlier else []))
    killed: dict[str, list[EndedProcess]] = {}
    for leaf in left:
        killed[leaf.folder.name] = leaf.processes()
        leaf.kill()
    patience = boottime() + _PATIENCE
    while not all(leaf.is_empty() for leaf in left) and boottime() < patience:
        time.sleep(0.001)
        for leaf in left:
            leaf.kill()
    not_gone = frozenset(leaf.folder.name for leaf in left if not leaf.is_empty())
    for leaf in left:
        leaf.remove()
    return LeftOver(killed, not_gone)


def report_left_over(left: LeftOver, state: State, leaves: Leaves, spool: Spool) -> None:
    """Also look for whoever carries the id of a run that was not reported as ended. Raises Unusable."""
    if leaves.parent is not None and state.read("cgroup") != str(leaves.parent):
        try:
            state.write("cgroup", str(leaves.parent))
        except OSError as error:  # the next keeper would not find what this one leaves
            raise Unusable(f"nothing can be written in {state.folder}: {error.strerror}") from None
    for run_id, grant_id in spool.runs().items():
        escaped = kill_escaped(run_id)
        log.warning("run %s was not ended by the keeper that started it", run_id)
        ended = EndedRun(
            run_id=run_id,
            processes_ended=left.killed.get(run_id, []),
            escaped=escaped,
            gone=run_id not in left.not_gone,
            at=system_clock(),
        )
        with spool.transaction():
            spool.report(EndedReport, grant_id=grant_id, cause="agent_died", runs=[ended])
            spool.drop_run(run_id)
