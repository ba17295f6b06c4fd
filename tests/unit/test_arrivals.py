"""Events that a reader of the growing log is shown: each once, in whatever order they become visible."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from copypool.protocol.api import Event
from copypool_coordinator.arrivals import OVERLAP_S, Arrivals, rewound, time_of
from copypool_coordinator.eventlog import first_id


def event(unix_s: float, salt: str = "a") -> Event:
    return Event(f"{first_id(unix_s)}0000{salt * 6}", unix_s, "NodeAway", "c1", "")


def read(log: list[Event], begin: str) -> list[Event]:
    return sorted((each for each in log if each.id > begin), key=lambda each: each.id)


def test_an_event_that_becomes_visible_after_later_ones_is_not_lost() -> None:
    arrivals = Arrivals(100, 1_000.0)
    early, late = event(1_001.0, "a"), event(1_002.0, "b")
    log = [late]
    arrivals.add(read(log, arrivals.begin))
    log.append(early)
    arrivals.add(read(log, arrivals.begin))
    assert arrivals.since(0) == [late, early]
    assert arrivals.since(1) == [early]


def test_who_is_too_slow_is_told_so() -> None:
    arrivals = Arrivals(2, 1_000.0)
    arrivals.add([event(1_001.0, each) for each in "abc"])
    assert arrivals.since(0) is None
    assert [each.id[-1] for each in arrivals.since(1) or []] == ["b", "c"]
    assert arrivals.since(3) == []


def test_a_cursor_that_is_taken_up_again_begins_before_its_event() -> None:
    cursor = rewound(event(1_000.0).id)
    assert cursor < event(1_000.0 - OVERLAP_S + 0.5).id
    assert cursor > event(1_000.0 - OVERLAP_S - 0.5).id
    with pytest.raises(ValueError, match="invalid literal"):
        time_of("no id at all")


@given(st.lists(st.tuples(st.floats(0, 60), st.floats(0, OVERLAP_S / 2)), max_size=40), st.integers(1, 10))
def test_all_that_becomes_visible_in_time_arrives_exactly_once(made: list[tuple[float, float]], every: int) -> None:
    """Each event is visible some time after its id was made; the log is read every so many seconds."""
    visible = [
        (1_000 + at + delay, Event(f"{first_id(1_000 + at)}{number:04x}aaaaaa", 1_000 + at, "K", "c", ""))
        for number, (at, delay) in enumerate(made)
    ]
    arrivals = Arrivals(1_000, 1_000.0)
    for now_s in range(1_000, 1_080 + every, every):
        arrivals.add(read([each for at, each in visible if at <= now_s], arrivals.begin))
    arrived = [each.id for each in arrivals.since(0) or []]
    assert sorted(arrived) == sorted(each.id for _, each in visible)
