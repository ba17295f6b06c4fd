"""Wall clocks that jump, under load: nothing that is promised hangs on them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from drills.clocks import LeaderStepped, Stepped
from drills.cluster import DrillCluster
from drills.story import Drill, perform, set_of
from drills.table import Row

HOUR_S = 3600
HELD_S = 10.0
COORDINATORS = ("coordinator1", "coordinator2")


DRILLS = [
    Drill("clock of a node an hour ahead", Stepped("node1", HOUR_S), HELD_S, unknown_max=0),
    Drill("clock of a node an hour back", Stepped("node3", -HOUR_S), HELD_S, unknown_max=0),
    Drill("clock of a coordinator an hour ahead", Stepped("coordinator1", HOUR_S), HELD_S, unknown_max=0),
    Drill("clock of a coordinator an hour back", Stepped("coordinator2", -HOUR_S), HELD_S, unknown_max=0),
    Drill("clock of the leader an hour ahead", LeaderStepped(HOUR_S), HELD_S, unknown_max=0),
    Drill("clock of the leader an hour back", LeaderStepped(-HOUR_S), HELD_S, unknown_max=0),
]


@pytest.mark.parametrize("drill", set_of(DRILLS))
async def test_clocks(shared_cluster: DrillCluster, record: Callable[[Row], None], drill: Drill) -> None:
    for name in [drill.fault.name] if isinstance(drill.fault, Stepped) else COORDINATORS:
        await shared_cluster.do(shared_cluster.containers.give_clock, name)
        await shared_cluster.ready(name)
    record(await perform(shared_cluster, drill))
