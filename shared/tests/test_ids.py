"""Ids sort as they were made, and times have one spelling."""

from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID

from sojourn_shared.clock import ManualClock, boottime, milliseconds, rfc3339, system_clock
from sojourn_shared.ids import is_id, new_id

NOW = datetime(2026, 11, 24, 10, 13, 39, 250_000, tzinfo=UTC)


def test_an_id_is_a_version_7_uuid_of_its_moment() -> None:
    """48 bits of milliseconds, version 7, the RFC's variant, canonical lower case."""
    made = UUID(new_id(NOW))
    assert made.version == 7
    assert made.variant == "specified in RFC 4122"
    assert made.int >> 80 == milliseconds(NOW)


def test_later_ids_sort_later_and_none_comes_twice() -> None:
    """Texts of ids sort by the millisecond in which they were made."""
    moments = [NOW + timedelta(milliseconds=number) for number in range(1000)]
    ids = [new_id(moment) for moment in moments]
    assert ids == sorted(ids)
    assert len({new_id(NOW) for _ in range(1000)}) == 1000


def test_only_the_canonical_spelling_is_an_id() -> None:
    """Another spelling of the same UUID is refused: subjects and paths carry one."""
    made = new_id(NOW)
    assert is_id(made)
    for other in (made.upper(), f"{{{made}}}", made.replace("-", ""), made + " ", "*", ">", ""):
        assert not is_id(other)


def test_times_have_one_spelling_that_sorts() -> None:
    """Always UTC, six decimals and `Z`, whatever the zone or the fraction."""
    assert rfc3339(NOW) == "2026-11-24T10:13:39.250000Z"
    assert rfc3339(NOW.replace(microsecond=0)) == "2026-11-24T10:13:39.000000Z"
    assert rfc3339(NOW.astimezone(timezone(timedelta(hours=5, minutes=30)))) == rfc3339(NOW)


def test_a_manual_clock_moves_by_hand() -> None:
    """A test's clock stands still until it is moved; the system's is aware and in UTC."""
    clock = ManualClock(NOW)
    assert clock() == clock() == NOW
    clock.advance(timedelta(minutes=5))
    assert clock() == NOW + timedelta(minutes=5)
    assert system_clock().utcoffset() == timedelta(0)
    assert boottime() <= boottime()
