"""Cuts, loss and delay, under load."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from drills.cluster import DrillCluster
from drills.networks import Cut, Lossy, Slow
from drills.story import Drill, perform, set_of
from drills.table import Row

HELD_S = 10.0  #: beyond the session and the grace
NODES = ("node1", "node2", "node3", "node4")
COORDINATORS = ("coordinator1", "coordinator2")
ETCD = ("etcd1", "etcd2", "etcd3")

DRILLS = [
    Drill("node cut off from the coordinators", Cut(["node1"], COORDINATORS), HELD_S),
    Drill("node hears no coordinator, one way", Cut(COORDINATORS, ["node1"], both_ways=False), HELD_S),
    Drill("coordinators hear no node, one way", Cut(["node2"], COORDINATORS, both_ways=False), HELD_S),
    Drill("primary nodes cut off from copy nodes", Cut(["node1", "node2"], ["node3"]), HELD_S),
    Drill("coordinator cut off from etcd", Cut(["coordinator1"], ETCD), HELD_S, short=True),
    Drill("one etcd member cut off", Cut(["etcd1"], [*COORDINATORS, "etcd2", "etcd3"]), HELD_S),
    Drill("zones cut off from each other", Cut(["node1", "node3"], ["node2", "node4"]), HELD_S),
    Drill("a fifth of the packets to nodes lost", Lossy(NODES, 0.2), HELD_S),
    Drill("a tenth of the packets to coordinators lost", Lossy(COORDINATORS, 0.1), HELD_S),
    Drill("a tenth of the packets to etcd lost", Lossy(ETCD, 0.1), HELD_S),
    Drill("slow node: 2 s each way", Slow(["node1"], 2000), HELD_S),
    Drill("far node: 60 ms, jitter 30 ms", Slow(["node2"], 60, 30), HELD_S),
    Drill("far coordinator: 60 ms, jitter 30 ms", Slow(["coordinator1"], 60, 30), HELD_S),
]


@pytest.mark.parametrize("drill", set_of(DRILLS))
async def test_networks(shared_cluster: DrillCluster, record: Callable[[Row], None], drill: Drill) -> None:
    record(await perform(shared_cluster, drill))
    if isinstance(drill.fault, Cut | Lossy):
        assert drill.fault.stopped, "no packet was lost: this drill drilled nothing"
