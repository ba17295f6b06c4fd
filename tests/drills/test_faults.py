"""A fault that does not come is told, whatever the cluster then does: drills prove their fault. No containers."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from http.client import RemoteDisconnected
from pathlib import Path
from typing import cast
from unittest.mock import create_autospec

import pytest

from copypool import Client
from copypool.protocol.errors import OutcomeUnknown
from drills import catalogs, clocks, faults, networks, soak, soundness
from drills.catalogs import KEPT_REVISIONS, Compacted, LeaderMoved, QuorumLost
from drills.clocks import LeaderStepped, Stepped
from drills.cluster import DrillCluster
from drills.disks import Disk
from drills.faults import Blackout, Both, EtcdLeaderKilled, Fault, Killed, LeaderKilled, Paused, RollingRestart
from drills.layout import Layout, Member
from drills.networks import Cut, Lossy, Slow
from drills.releases import CURRENT
from drills.schedule import Planned
from drills.soak import Soak
from drills.stand_ins import NODES, Asked, Processes
from drills.upgrades import Replaced
from drills.volumes import Deleted, Failing, Flipped, Full, ReadOnly, Stale, Wiped
from kit.cluster import until
from kit.history import History

pytestmark = pytest.mark.short

DISK_BYTES = 64 << 20


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Asked]:
    monkeypatch.setattr(faults, "FELT_S", 20.0)
    containers = Processes(tmp_path)
    for name in NODES:
        containers.start(name)
    try:
        yield Asked(containers)
    finally:
        containers.end()


@pytest.fixture
def disk(cluster: Asked, tmp_path: Path) -> Iterator[Disk]:
    """The disk of node1, with an extent file on it."""
    disk = Disk(tmp_path, "node1", DISK_BYTES)
    try:
        disk.make()
        (disk.data / "extents" / "0").mkdir(parents=True)
        (disk.data / "extents" / "0" / "1.ext").write_bytes(os.urandom(4096))
        cluster.containers.disks["node1"] = disk
        yield disk
    finally:
        disk.remove()


async def nothing(*_: object) -> None:
    """What an injection that does nothing does."""


@contextmanager
def idle(monkeypatch: pytest.MonkeyPatch, kind: type) -> Iterator[None]:
    """Injections of this kind do nothing."""
    with monkeypatch.context() as patch:
        patch.setattr(kind, "inject", nothing)
        yield


async def told(cluster: DrillCluster, fault: Fault) -> None:
    """It is said of a fault that it is not there."""
    await fault.inject(cluster)
    with pytest.raises(AssertionError, match="without it this drills nothing"):
        await faults.felt(cluster, fault, 0.3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Killed("node1"),
        LeaderKilled,
        EtcdLeaderKilled,
        lambda: Paused(["node1"]),
        lambda: RollingRestart(NODES),
        lambda: Cut(["node1"], ["node2"]),
        lambda: Lossy(["node1"], 0.5),
        lambda: Stepped("node1", 3600),
        lambda: LeaderStepped(-3600),
        LeaderMoved,
        lambda: Compacted("node1"),
        lambda: QuorumLost(NODES),
        Blackout,
        lambda: Replaced(CURRENT, NODES),
    ],
)
async def test_an_injection_that_does_nothing_is_told(
    cluster: Asked, monkeypatch: pytest.MonkeyPatch, make: Callable[[], Fault]
) -> None:
    with idle(monkeypatch, type(make())):
        await told(cluster, make())


async def test_one_of_two_that_does_not_come_is_told(cluster: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    with idle(monkeypatch, Paused):
        await told(cluster, Both(Killed("node1"), Paused(["node2"])))
        await cluster.start("node1")
    with idle(monkeypatch, Killed):
        fault = Both(Killed("node1"), Paused(["node2"]))
        await told(cluster, fault)
        await fault.second.heal(cluster)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Killed("node1"),
        LeaderKilled,
        lambda: Paused(["node1", "node2"]),
        lambda: RollingRestart(NODES),
        lambda: Both(Killed("node1"), Paused(["node2"])),
        lambda: Stepped("node1", 3600),
        lambda: LeaderStepped(-3600),
        LeaderMoved,
        lambda: QuorumLost(NODES),
        Blackout,
    ],
)
async def test_what_was_injected_is_felt_and_healed(cluster: Asked, make: Callable[[], Fault]) -> None:
    fault = make()
    async with faults.inflicted(cluster, fault):
        assert await fault.felt(cluster)
    assert [cluster.containers.process_state(name) not in ("", "T") for name in NODES] == [True, True]


# -- faults that come only in part ----------------------------------------------------------------
async def test_one_process_that_lives_through_a_blackout_is_told(cluster: Asked) -> None:
    await Blackout().inject(cluster)
    cluster.containers.start("etcd2")
    with pytest.raises(AssertionError, match="without it this drills nothing"):
        await faults.felt(cluster, Blackout(), 0.3)


async def test_a_member_of_etcd_that_lives_is_no_lost_quorum(cluster: Asked) -> None:
    fault = QuorumLost(NODES)
    await fault.inject(cluster)
    cluster.containers.start("node2")
    with pytest.raises(AssertionError, match="without it this drills nothing"):
        await faults.felt(cluster, fault, 0.3)


async def test_an_etcd_that_keeps_its_leader_is_told(cluster: Asked) -> None:
    cluster.transfers = False
    await told(cluster, LeaderMoved())


async def test_a_clock_that_is_set_and_does_not_step_is_told(cluster: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Processes, "ahead_s", lambda self, name: 1.0)
    await told(cluster, Stepped("node1", 3600))


async def test_a_clock_that_does_not_go_back_is_not_healed(cluster: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clocks, "HEALED_S", 0.3)
    monkeypatch.setattr(Processes, "ahead_s", lambda self, name: 3600.0)
    with pytest.raises(AssertionError, match="the clock of node1 is right again"):
        await Stepped("node1", 3600).heal(cluster)


@pytest.mark.parametrize("error", [RemoteDisconnected("closed"), ConnectionRefusedError("refused")])
async def test_a_process_that_does_not_answer_shows_no_step(
    cluster: Asked, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def ahead_s(self: Processes, name: str) -> float:
        raise error

    monkeypatch.setattr(Processes, "ahead_s", ahead_s)
    await told(cluster, Stepped("node1", 3600))


async def test_a_compaction_that_forgets_nothing_unseen_is_told(
    cluster: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogs, "MOVED_ON_S", 0.3)
    fault = Compacted("node1")
    await fault.inject(cluster)
    await faults.felt(cluster, fault)
    cluster.revision += KEPT_REVISIONS
    with pytest.raises(AssertionError, match="without it this drills nothing"):
        await fault.heal(cluster)
    assert cluster.containers.process_state("node1") != "T", "it sleeps on"


async def test_a_compaction_reaches_past_where_the_coordinator_slept(cluster: Asked) -> None:
    fault = Compacted("node1")
    async with faults.inflicted(cluster, fault):
        cluster.revision += KEPT_REVISIONS + 10
    assert cluster.compacted_at == 1010


async def test_a_release_that_was_put_in_place_of_one_member_alone_is_told(cluster: Asked) -> None:
    fault = Replaced(CURRENT, NODES)
    cluster.processes.images = {"node1": CURRENT.image("node"), "node2": "copypool-node:other"}
    with pytest.raises(AssertionError, match="without it this drills nothing"):
        await faults.felt(cluster, fault, 0.3)
    cluster.processes.images["node2"] = CURRENT.image("node")
    await faults.felt(cluster, fault)
    cluster.containers.kill("node2")
    assert not await fault.felt(cluster), "its process is down"


@pytest.mark.parametrize(("waits_s", "is_slow"), [([0.01, 3.9], False), ([4.1, None], False), ([4.1, 4.2], True)])
async def test_an_answer_that_is_fast_or_does_not_come_is_not_slow(
    cluster: Asked, monkeypatch: pytest.MonkeyPatch, waits_s: list[float | None], is_slow: bool
) -> None:
    monkeypatch.setattr(networks, "_answer_s", lambda cluster, name: dict(zip(NODES, waits_s, strict=True))[name])
    assert await Slow(NODES, 2000).felt(cluster) is is_slow


def test_who_does_not_answer_is_not_slow(cluster: Asked) -> None:
    with closing(socket.socket()) as free:  # bound, and nobody listens
        free.bind(("127.0.0.1", 0))
        host, port = free.getsockname()
        member = Member("node1", "node", f"{host}:{port}/")
        cluster.processes.layout = Layout((member,))
        assert networks._answer_s(cluster, "node1") is None


# -- what a drill leaves behind -------------------------------------------------------------------
async def all_up(cluster: Asked) -> None:
    for member in cluster.layout.members:
        cluster.containers.start(member.name)
    assert await soundness.traces_of(cluster) == []


async def test_a_process_that_a_drill_left_down_or_asleep_is_a_trace(cluster: Asked) -> None:
    await all_up(cluster)
    cluster.containers.kill("etcd2")
    cluster.containers.send("node1", signal.SIGSTOP)
    both = ["etcd2 does not run", "node1 does not run"]
    await until(lambda: as_expected(cluster, both), "both are told", within_s=60)


async def as_expected(cluster: Asked, beginnings: list[str]) -> bool:
    found = await soundness.traces_of(cluster)
    return len(found) == len(beginnings) and all(map(str.startswith, sorted(found), beginnings))


async def test_a_rule_or_a_clock_that_a_drill_left_is_a_trace(cluster: Asked) -> None:
    await all_up(cluster)
    cluster.processes.rules["coordinator1"] = ["-A DRILL -s 198.18.0.31/32 -j DROP"]
    cluster.containers.set_clock("node2", -3600)
    assert await as_expected(cluster, ["packets to coordinator1 are dropped", "the clock of node2 is wrong"])


async def test_a_drill_that_left_traces_fails(cluster: Asked) -> None:
    await all_up(cluster)
    cluster.containers.kill("node1")
    with pytest.raises(AssertionError, match="the drill has left traces: node1 does not run"):
        await soundness.sound(cluster)


class Refusing(Asked):
    """Green, and takes no writes."""

    @asynccontextmanager
    async def client(self, coordinators: Sequence[str] = (), write_deadline_s: float = 0.0) -> AsyncIterator[Client]:
        client = create_autospec(Client, instance=True)
        client.nodes.return_value = ["node1"]
        client.put.side_effect = OutcomeUnknown("nobody can tell")
        yield client


async def test_a_cluster_that_takes_no_writes_is_not_sound(cluster: Asked) -> None:
    with pytest.raises(AssertionError, match="8 of 8 files cannot be stored, read and deleted"):
        await soundness.used(Refusing(cluster.processes), "http://coordinator1")


@pytest.mark.parametrize("kind", [Full, ReadOnly, Failing, Wiped, Stale])
async def test_a_disk_that_stays_well_is_told(
    cluster: Asked, disk: Disk, monkeypatch: pytest.MonkeyPatch, kind: Callable[[str], Fault]
) -> None:
    with idle(monkeypatch, cast("type", kind)):
        await told(cluster, kind("node1"))


@pytest.mark.parametrize("kind", [Flipped, Deleted])
async def test_damage_that_damages_no_file_is_told(
    cluster: Asked, disk: Disk, kind: Callable[[str, int], Fault]
) -> None:
    for path in disk.extents():
        path.unlink()
    await told(cluster, kind("node1", 1))


@pytest.mark.parametrize(
    "fault", [Full("node1"), ReadOnly("node1"), Failing("node1"), Wiped("node1"), Stale("node1"), Flipped("node1", 1)]
)
async def test_a_disk_that_was_hurt_is_felt(cluster: Asked, disk: Disk, fault: Fault) -> None:
    assert not await fault.felt(cluster)
    await fault.inject(cluster)
    await faults.felt(cluster, fault)


async def test_a_filling_that_takes_nothing_is_told(
    cluster: Asked, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Disk, "fill", lambda self: None)
    await told(cluster, Full("node1"))


async def test_a_soak_ends_at_a_fault_that_does_not_come(cluster: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "FELT_S", 0.3)
    monkeypatch.setattr(soak, "schedule", lambda seed: iter([Planned(1, "node killed", Killed("node1"), 0.0, False)]))
    run = Soak(1, 60.0)
    with idle(monkeypatch, Killed), pytest.raises(AssertionError, match="without it this drills nothing"):
        await soak._hurt(cluster, cast("Client", None), History(), run)
    assert not run.faults
