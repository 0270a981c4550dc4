"""The keeper's loop: what is cancelled takes no room for long."""

from sojourn_agent.keeper.loop import Loop
from sojourn_shared.clock import boottime


def test_cancelled_timers_do_not_gather() -> None:
    """Each start and each end of a run sets a timer for next week and cancels the one before."""
    loop = Loop()
    kept = [loop.after(3600.0, lambda: None) for _ in range(10)]
    for _ in range(20_000):
        loop.after(604_800.0, lambda: None).cancel()
    assert len(loop._due) < 3000
    assert sum(timer.call is not None for _, _, timer in loop._due) == len(kept)


def test_timers_are_due_in_their_order_however_many_were_cancelled() -> None:
    """Also when the cancelled ones have just been thrown out."""
    loop, fired, soon = Loop(), list[int](), boottime() + 0.2
    for number in (3, 1, 2):
        loop.at(soon + number / 1000, lambda number=number: fired.append(number))
        for _ in range(2000):
            loop.after(604_800.0, lambda: None).cancel()
    loop.at(soon + 0.01, loop.stop)
    loop.run()
    assert fired == [1, 2, 3]
