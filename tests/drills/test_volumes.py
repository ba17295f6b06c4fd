"""Full, read-only, failing, damaged, wiped and stale disks, under load."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from drills.cluster import DrillCluster
from drills.story import Drill, perform, set_of
from drills.table import Row
from drills.volumes import Deleted, Failing, Flipped, Full, ReadOnly, Stale, Wiped

HELD_S = 8.0

DRILLS = [
    Drill("primary disk full", Full("node1"), HELD_S),
    Drill("copy disk full", Full("node3"), HELD_S),
    Drill("primary disk read-only", ReadOnly("node1"), HELD_S, short=True),
    Drill("copy disk read-only", ReadOnly("node4"), HELD_S),
    Drill("primary disk fails (EIO)", Failing("node2"), HELD_S),
    Drill("bits flipped on a primary disk", Flipped("node1", seed=1), 2.0, short=True),
    Drill("bits flipped on a copy disk", Flipped("node3", seed=2), 2.0),
    Drill("extent files deleted on a primary disk", Deleted("node2", seed=3), 2.0),
    Drill("extent files deleted on a copy disk", Deleted("node4", seed=4), 2.0),
    Drill("primary disk wiped", Wiped("node1"), HELD_S, short=True),
    Drill("older primary disk comes back", Stale("node2"), HELD_S),
]


@pytest.mark.parametrize("drill", set_of(DRILLS))
async def test_volumes(shared_cluster: DrillCluster, record: Callable[[Row], None], drill: Drill) -> None:
    record(await perform(shared_cluster, drill))
