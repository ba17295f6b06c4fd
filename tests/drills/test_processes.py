"""Processes that die, freeze, and are restarted, under load."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from drills.cluster import DrillCluster
from drills.faults import Both, EtcdLeaderKilled, Killed, LeaderKilled, Paused, RollingRestart
from drills.story import Drill, perform, set_of
from drills.table import Row

LOST_S = 12.0  #: longer than session and grace: what was there is made again elsewhere
AWAY_S = 3.0  #: shorter: it comes back in time

DRILLS = [
    Drill("primary node killed, back soon", Killed("node1"), AWAY_S),
    Drill("primary node lost", Killed("node1"), LOST_S, lost=["node1"], short=True),
    Drill("copy node lost", Killed("node3"), LOST_S, lost=["node3"]),
    Drill("coordinator killed", Killed("coordinator2"), AWAY_S),
    Drill("leader killed", LeaderKilled(), AWAY_S, short=True),
    Drill("etcd member killed", Killed("etcd2"), AWAY_S),
    Drill("etcd leader killed", EtcdLeaderKilled(), AWAY_S),
    Drill("node and coordinator killed", Both(Killed("node2"), Killed("coordinator1")), AWAY_S),
    Drill("node and etcd member lost", Both(Killed("node2"), Killed("etcd1")), LOST_S, lost=["node2"]),
    Drill("primary node paused beyond its lease", Paused(["node1"]), LOST_S, lost=["node1"], short=True),
    Drill("copy node paused beyond its lease", Paused(["node4"]), LOST_S, lost=["node4"]),
    Drill("coordinator paused", Paused(["coordinator1"]), LOST_S),
    Drill("rolling restart of everything", RollingRestart(), 0.0),
]


@pytest.mark.parametrize("drill", set_of(DRILLS))
async def test_processes(shared_cluster: DrillCluster, record: Callable[[Row], None], drill: Drill) -> None:
    record(await perform(shared_cluster, drill))
