"""What time it is, whatever happened to clocks and boots."""

from datetime import UTC, datetime, timedelta

from sojourn_agent.keeper.trusted import Marks, Suspended, Trusted, after_start

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def marks(**fields: object) -> Marks:
    told = {"boot_id": "boot-1", "boottime": 1000.0, "now": NOON, "confirmed": True} | fields
    return Marks(**told)  # type: ignore[arg-type]


def started(left: Marks | None, *, boot_id: str = "boot-1", boottime: float = 1000.0, wall: datetime = NOON) -> Trusted:
    answer = after_start(left, boot_id=boot_id, boottime=boottime, wall=wall)
    assert isinstance(answer, Trusted), answer
    return answer


def test_without_marks_nothing_is_known() -> None:
    """A computer that never heard the server has no time to trust, whatever its clock says."""
    assert isinstance(after_start(None, boot_id="boot-1", boottime=1.0, wall=NOON), Suspended)


def test_in_the_same_boot_the_clock_does_not_matter() -> None:
    """BOOTTIME goes on from the mark; a clock a year off changes nothing."""
    for wall in (NOON - timedelta(days=365), NOON + timedelta(days=365)):
        trusted = started(marks(), boottime=1060.0, wall=wall)
        assert trusted.now(1060.0) == NOON + MINUTE
        assert trusted.confirmed


def test_after_a_reboot_the_later_of_mark_and_clock_counts() -> None:
    """So the rest of a grant is the smaller of its rest at the mark and its end by the clock."""
    later = started(marks(), boot_id="boot-2", boottime=10.0, wall=NOON + MINUTE)
    assert (later.now(10.0), later.confirmed) == (NOON + MINUTE, False)
    slow = started(marks(), boot_id="boot-2", boottime=10.0, wall=NOON - timedelta(seconds=4))
    assert slow.now(10.0) == NOON


def test_a_clock_behind_the_mark_suspends() -> None:
    """Set back by more than a moment: nothing starts until the server says what time it is."""
    answer = after_start(marks(), boot_id="boot-2", boottime=10.0, wall=NOON - timedelta(seconds=6))
    assert isinstance(answer, Suspended)
    assert "clock was moved back" in answer.why


def test_signed_time_never_moves_back() -> None:
    """The maximum over all answers, each carried on by BOOTTIME."""
    trusted = Trusted(origin=NOON, confirmed=True)
    assert trusted.confirmed_by(NOON + timedelta(seconds=50), 60.0) is trusted  # older than what is known
    assert trusted.confirmed_by(NOON + timedelta(seconds=70), 60.0).now(60.0) == NOON + timedelta(seconds=70)


def test_an_unconfirmed_clock_is_replaced_by_the_first_signature() -> None:
    """Also backwards: a clock set to next year by mistake must not end everything for good."""
    wrong = Trusted(origin=NOON + timedelta(days=365), confirmed=False)
    right = wrong.confirmed_by(NOON, 60.0)
    assert (right.now(60.0), right.confirmed) == (NOON, True)


def test_boottime_of_is_the_inverse_of_now() -> None:
    """The second of BOOTTIME at which a timer must fire."""
    trusted = Trusted(origin=NOON, confirmed=True)
    assert trusted.boottime_of(trusted.now(1234.5)) == 1234.5
