"""Wall clocks that jump, under load: nothing that is promised hangs on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from drills.cluster import DrillCluster
from drills.story import Drill, perform, set_of
from drills.table import Row

HOUR_S = 3600
HELD_S = 10.0
SLACK_S = 60.0


@dataclass(slots=True)
class Stepped:
    """A process's wall clock jumps, and jumps back."""

    name: str
    ahead_s: int

    async def inject(self, cluster: DrillCluster) -> None:
        await cluster.do(cluster.containers.set_clock, self.name, self.ahead_s)

    async def felt(self, cluster: DrillCluster) -> bool:
        """Its answers show the other time."""
        return abs(await cluster.do(cluster.containers.ahead_s, self.name) - self.ahead_s) < SLACK_S

    async def heal(self, cluster: DrillCluster) -> None:
        await cluster.do(cluster.containers.set_clock, self.name, 0)
        await cluster.ready(self.name)


DRILLS = [
    Drill("clock of a node an hour ahead", Stepped("node1", HOUR_S), HELD_S),
    Drill("clock of a node an hour back", Stepped("node3", -HOUR_S), HELD_S),
    Drill("clock of a coordinator an hour ahead", Stepped("coordinator1", HOUR_S), HELD_S),
    Drill("clock of a coordinator an hour back", Stepped("coordinator2", -HOUR_S), HELD_S),
]


@pytest.mark.parametrize("drill", set_of(DRILLS))
async def test_clocks(shared_cluster: DrillCluster, record: Callable[[Row], None], drill: Drill) -> None:
    assert isinstance(drill.fault, Stepped)
    await shared_cluster.do(shared_cluster.containers.give_clock, drill.fault.name)
    await shared_cluster.ready(drill.fault.name)
    record(await perform(shared_cluster, drill))
