"""What is left of an earlier keeper's runs is ended and reported before anybody new is let in."""

import logging
import time
from pathlib import Path

from sojourn_shared.clock import boottime, system_clock
from sojourn_shared.contracts.wire import EndedProcess, EndedReport, EndedRun

from .leaves import Leaves, kill_escaped
from .spool import Spool
from .state import State

log = logging.getLogger("sojourn.keeper")

_PATIENCE = 2.0
"""Seconds for all left-over leaves to become empty; what hangs in the kernel must not keep the agent from starting."""


def sweep(state: State, leaves: Leaves, spool: Spool) -> None:
    """Kill every leaf that is there, and whoever carries the id of a run that was not reported as ended."""
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
    for leaf in left:
        leaf.remove()
    if leaves.parent is not None and earlier != str(leaves.parent):
        state.write("cgroup", str(leaves.parent))
    for run_id, grant_id in spool.runs().items():
        escaped = kill_escaped(run_id)
        log.warning("run %s was not ended by the keeper that started it", run_id)
        ended = EndedRun(
            run_id=run_id,
            processes_ended=killed.get(run_id, []),
            escaped=escaped,
            gone=all(leaf.is_empty() for leaf in left if leaf.folder.name == run_id),
            at=system_clock(),
        )
        with spool.transaction():
            spool.report(EndedReport, grant_id=grant_id, cause="agent_died", runs=[ended])
            spool.drop_run(run_id)
