"""A revoke: from the administrator's answer until the last process of the tree is gone."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from figures import Figure, quantile
from ground import Ground
from processes import Watched

from sojourn_agent.keeper.leaves import find_parent
from sojourn_embedded.demo.people import fixed, folder, only, specific

REVOKES = 30
SETTLE_SECONDS = 0.2  # so that what the start still reports is not measured along
TREE = ("/usr/bin/sh", "-c", "sleep 987 & sleep 987 & sleep 987 & echo $$; wait")
"""Four processes; it prints its number when all are there."""


def measure(ground: Ground) -> Iterator[Figure]:
    from_answer, from_sending, alone = [], [], []
    for count in range(REVOKES):
        ground.tell(f"revoke {count + 1} of {REVOKES}")
        answered, sent = revoked(ground, count)
        from_answer.append(answered)
        from_sending.append(sent)
        alone.append(killed_alone())
    what = "answer to a revoke → tree of 4 gone"
    p50, p99 = quantile(from_answer, 0.5), quantile(from_answer, 0.99)
    yield Figure(f"{what}, p50", p50, "ms", "goal", 100)
    yield Figure("", p50, "ms", "cgroup.kill alone, p50", quantile(alone, 0.5))
    yield Figure(f"{what}, p99", p99, "ms", "cgroup.kill alone, p99", quantile(alone, 0.99))
    yield Figure("revoke sent → tree of 4 gone, p50", quantile(from_sending, 0.5), "ms")


def revoked(ground: Ground, count: int) -> tuple[float, float]:
    """Milliseconds from the answer, and from the sending, of one revoke until its tree was gone."""
    policy = ground.admin.deploys(
        f"Bench {count}", users=only(ground.user.name), duration=fixed(30), access=specific(folder("/usr/bin"))
    )
    grant = ground.admin.grant_of(policy)
    with ground.user.elevating("--", *TREE) as run:
        assert run.stdout
        watched = tree(int(run.stdout.readline()))
        time.sleep(SETTLE_SECONDS)
        sent = time.perf_counter()
        ground.admin.post(f"/grants/{grant['id']}/revoke", {"reason": "bench"})
        answered = time.perf_counter()
        gone = watched.gone()
        assert run.wait(10) == 124, run.returncode
    return (gone - answered) * 1000, (gone - sent) * 1000


def killed_alone() -> float:
    """Milliseconds from writing to `cgroup.kill` until the same tree was gone."""
    with leaf() as place:
        enter = f"echo $$ > {place}/cgroup.procs; exec {TREE[0]} {TREE[1]} '{TREE[2]}'"
        run = subprocess.Popen(["/usr/bin/sh", "-c", enter], stdout=subprocess.PIPE, text=True)
        assert run.stdout
        watched = tree(int(run.stdout.readline()))
        began = time.perf_counter()
        (place / "cgroup.kill").write_text("1")
        gone = watched.gone()
        run.wait()
        run.stdout.close()
    return (gone - began) * 1000


def tree(pid: int) -> Watched:
    pids = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    assert len(pids) == 4, pids
    return Watched(pids)


@contextmanager
def leaf() -> Iterator[Path]:
    """A cgroup of our own, where an agent would make one."""
    place = find_parent("bench")
    place.mkdir()
    try:
        yield place
    finally:
        for _ in range(200):  # the kernel lets it go a moment after the last process
            try:
                place.rmdir()
                break
            except OSError:
                time.sleep(0.005)
