"""When a copy pool's window is open: against a count minute by minute, and at its edges."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from copypool.protocol.errors import Invalid
from copypool_coordinator.windows import check_window, window_state

DAY = datetime(2026, 3, 9, tzinfo=UTC)  # a Monday


def at(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def test_no_window_is_always_open() -> None:
    assert window_state("", 0, at(DAY)) == (True, 0)


def test_a_nightly_window_opens_and_closes_to_the_second() -> None:
    begins, ends = DAY.replace(hour=1), DAY.replace(hour=5)
    for moment, is_open, changes in (
        (begins - timedelta(seconds=1), False, begins),
        (begins, True, ends),
        (ends - timedelta(seconds=1), True, ends),
        (ends, False, begins + timedelta(days=1)),
    ):
        state = window_state("0 1 * * *", 4 * 3600, at(moment))
        assert state == (is_open, at(changes)), moment


def test_windows_that_overlap_or_touch_are_one() -> None:
    state = window_state("0 1-3 * * *", 3600, at(DAY.replace(hour=2)))
    assert state == (True, at(DAY.replace(hour=4)))
    assert window_state("*/30 * * * *", 3600, at(DAY)) == (True, 0), "never closes"


@given(
    hours=st.sets(st.integers(0, 23), min_size=1, max_size=5),
    minute=st.integers(0, 59),
    weekdays=st.sets(st.integers(0, 6), min_size=1, max_size=7),
    length_min=st.integers(1, 36 * 60),
    now_min=st.integers(0, 7 * 24 * 60),
)
@settings(max_examples=60, deadline=None)
def test_the_state_is_what_counting_minutes_gives(
    hours: set[int], minute: int, weekdays: set[int], length_min: int, now_min: int
) -> None:
    cron = f"{minute} {','.join(map(str, hours))} * * {','.join(map(str, weekdays))}"
    now = DAY + timedelta(minutes=now_min)

    def opens_at(moment: datetime) -> bool:
        return moment.minute == minute and moment.hour in hours and moment.isoweekday() % 7 in weekdays

    def is_open(moment: datetime) -> bool:
        return any(opens_at(moment - timedelta(minutes=back)) for back in range(length_min))

    state = window_state(cron, length_min * 60, at(now))
    assert state.open == is_open(now)
    if state.changes_ms:
        change = datetime.fromtimestamp(state.changes_ms / 1000, UTC)
        assert change > now
        assert is_open(change) != state.open
        assert is_open(change - timedelta(minutes=1)) == state.open


@pytest.mark.parametrize(
    ("cron", "length_s"),
    [("", 60), ("0 1 * *", 3600), ("61 1 * * *", 3600), ("0 1 * * *", 0), ("0 0 31 2 *", 3600), ("@daily", 3600)],
)
def test_what_makes_no_window_is_refused(cron: str, length_s: int) -> None:
    with pytest.raises(Invalid):
        check_window(cron, length_s)


@pytest.mark.parametrize(
    ("cron", "length_s", "message"),
    [("0 1 * * *", 0, "--window-for 4h"), ("99 1 * * *", 0, "is not valid"), ("0 1 * * *", 5, "not 5 s")],
)
def test_a_refused_window_says_what_is_wrong_with_it(cron: str, length_s: int, message: str) -> None:
    with pytest.raises(Invalid, match=message):
        check_window(cron, length_s)
