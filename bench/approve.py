"""An approval: from the approver's answer until the waiting application runs."""

from collections.abc import Iterator

from figures import Figure, quantile
from ground import Ground

from sojourn_shared.clock import system_clock

REQUESTS = 20


def measure(ground: Ground) -> Iterator[Figure]:
    from_answer, from_sending = [], []
    for count in range(REQUESTS):
        ground.tell(f"request {count + 1} of {REQUESTS}")
        answered, sent = approved(ground, count)
        from_answer.append(answered)
        from_sending.append(sent)
    yield Figure("answer to an approval → application runs, p50", quantile(from_answer, 0.5), "ms", "goal", 150)
    yield Figure("answer to an approval → application runs, p99", quantile(from_answer, 0.99), "ms")
    yield Figure("approval sent → application runs, p50", quantile(from_sending, 0.5), "ms")


def approved(ground: Ground, count: int) -> tuple[float, float]:
    """Milliseconds from the answer, and from the sending, of an approval until the application looked at its clock."""
    command = ("/usr/bin/date", f"+%s.%N {count}")  # other arguments each time: nothing covers it yet
    with ground.user.elevating("--for", "5m", "--because", "bench", "--", *command) as run:
        asked = ground.admin.pending(ground.user.name)
        sent = system_clock().timestamp()
        ground.admin.post(f"/requests/{asked['id']}/approve", {})
        answered = system_clock().timestamp()
        out, err = run.communicate(timeout=10)
        assert run.returncode == 0, err
    began = float(out.split()[0])
    return (began - answered) * 1000, (began - sent) * 1000
