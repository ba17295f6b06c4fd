"""Cluster time over coordinators whose wall clocks differ."""

from __future__ import annotations

from copypool_coordinator.core import CLOCK_BACK_MS, ClusterClock

HOUR_MS = 3_600_000


class Wall:
    """A wall clock turned by hand."""

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms

    def read(self) -> int:
        return self.now_ms


def test_a_wrong_clock_follows_the_leaders() -> None:
    wall = Wall(10 * HOUR_MS)
    clock = ClusterClock(wall.read)
    assert clock.now_ms() == 10 * HOUR_MS, "nobody was heard yet"
    clock.heard(9 * HOUR_MS)
    assert clock.now_ms() <= 9 * HOUR_MS + CLOCK_BACK_MS
    wall.now_ms += 5_000
    assert clock.now_ms() == 9 * HOUR_MS + 5_000


def test_no_leader_moves_cluster_time_back() -> None:
    fast, right = ClusterClock(Wall(10 * HOUR_MS).read), ClusterClock(Wall(9 * HOUR_MS).read)
    right.heard(fast.to_write_ms())
    assert right.now_ms() == 10 * HOUR_MS
    assert right.to_write_ms() == 10 * HOUR_MS, "it leads now"


def test_time_does_not_go_back_by_the_delay_of_a_row() -> None:
    wall = Wall(HOUR_MS)
    clock = ClusterClock(wall.read)
    before = clock.now_ms()
    clock.heard(HOUR_MS - 20)
    assert clock.now_ms() == before
