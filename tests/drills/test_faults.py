"""A fault that does not come is told, whatever the cluster then does: drills prove their fault. No containers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import RemoteDisconnected
from pathlib import Path
from typing import Any, cast

import pytest

from copypool import Client
from drills import catalogs, faults, networks, soak, soundness
from drills.catalogs import KEPT_REVISIONS, MEMBERS, Compacted, LeaderMoved, QuorumLost
from drills.clocks import LeaderStepped, Stepped
from drills.cluster import DrillCluster
from drills.containers import Containers
from drills.disks import Disk
from drills.faults import Blackout, Both, EtcdLeaderKilled, Fault, Killed, LeaderKilled, Paused, RollingRestart
from drills.layout import Layout, Member, layout_of
from drills.networks import Cut, Lossy, Slow
from drills.releases import CURRENT
from drills.schedule import Planned
from drills.soak import Done, Soak, minima
from drills.upgrades import Replaced
from drills.volumes import Deleted, Failing, Flipped, Full, ReadOnly, Stale, Wiped
from kit.checker import Verdict
from kit.cluster import until
from kit.history import History, Kind, Outcome

pytestmark = pytest.mark.short

DISK_BYTES = 64 << 20
NODES = ("node1", "node2")


class Processes(Containers):
    """Processes of this machine in place of containers, with real disks and no network."""

    def __init__(self, folder: Path) -> None:
        super().__init__(tls=False)
        self.folder = folder
        self.layout = layout_of("198.18.0")
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self.volumes = {name: f"{name}-1" for name in NODES}
        self.steps_s: dict[str, int] = {}  #: of the wall clocks that were set
        self.images: dict[str, str] = {}
        self.rules: dict[str, list[str]] = {}  #: by which packets are dropped

    def pid(self, name: str) -> int:
        return self._running[name].pid if name in self._running else 0

    def start(self, name: str) -> None:
        if name not in self._running:
            self._running[name] = subprocess.Popen(["sleep", "600"])

    def kill(self, name: str) -> None:
        process = self._running.pop(name, None)
        if process is not None:
            process.kill()
            process.wait(timeout=10)

    def terminate(self, name: str) -> None:
        self.kill(name)

    def await_ready(self, names: object, timeout_s: float = 0.0) -> None:
        """They serve at once."""

    def in_network_of(self, name: str, *command: str) -> str:
        return "".join(f"{rule}\n" for rule in self.rules.get(name, ())) if "-S" in command else ""

    def set_clock(self, name: str, ahead_s: int) -> None:
        self.steps_s[name] = ahead_s

    def has_clock(self, name: str) -> bool:
        return name in self.steps_s

    def ahead_s(self, name: str) -> float:
        return self.steps_s.get(name, 0)

    def image(self, name: str) -> str:
        return self.images.get(name, "") if self.pid(name) else ""

    def end(self) -> None:
        """Kill all of them."""
        for name in [*self._running]:
            self.kill(name)


class Asked(DrillCluster):
    """A cluster whose leaders are known, and whose etcd is a number."""

    def __init__(self, containers: Processes) -> None:
        super().__init__(containers)
        self.processes = containers
        self.etcd_leads = "etcd1"
        self.transfers = True  #: whether etcd hands over when it is asked to
        self.revision = 1000
        self.compacted_at = 0

    async def leader(self) -> str:
        return NODES[0]

    async def etcd_leader(self) -> Member:
        return self.layout.member(self.etcd_leads)

    async def ask_etcd(self, member: Member, call: str, **fields: object) -> dict[str, Any]:
        match call:
            case "cluster/member/list":
                return {"members": [{"ID": each, "name": each} for each in MEMBERS]}
            case "maintenance/transfer-leadership" if self.transfers:
                self.etcd_leads = str(fields["targetID"])
            case "maintenance/status":
                return {"header": {"revision": str(self.revision)}}
            case "kv/compaction":
                self.compacted_at = int(str(fields["revision"]))
        return {"header": {}}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Asked]:
    monkeypatch.setattr(faults, "FELT_S", 0.5)
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
    await until(lambda: as_expected(cluster, ["etcd2 does not run", "node1 does not run"]), "both are told", within_s=5)


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


def soak_with(failed: tuple[Kind, str], while_there: str, faults_min: int = 0) -> Soak:
    """A soak of one fault of this kind at 10 to 20 s, under which one operation failed."""
    seconds = 0.0
    history = History(lambda: seconds)
    seconds = 15.0
    kind, error = failed
    history.complete(history.invoke(1, kind, "a"), Outcome.FAILED, error=error)
    run = Soak(1, 60.0, faults_min, verdict=Verdict(operations=1), operations=history.operations())
    run.faults.append(Done(Planned(1, while_there, Killed("node1"), 10.0, False), 10.0, 20.0))
    return run


@pytest.mark.parametrize("kind", ["node killed", "coordinator killed", "disk full", "cut", "etcd member killed"])
def test_a_read_that_failed_under_a_single_fault_breaks_a_promise(kind: str) -> None:
    run = soak_with((Kind.GET, "unavailable"), kind)
    assert not run.ok
    assert "1 reads failed that must not" in soak.report(run)


@pytest.mark.parametrize("kind", sorted(soak.MAY_FAIL_READS))
def test_a_read_that_failed_without_etcd_s_majority_is_excused_by_name(kind: str) -> None:
    run = soak_with((Kind.GET, "catalog_down"), kind)
    assert run.ok
    assert "no read failed under any single fault" in soak.report(run)
    run.faults[0].healed_s = 12.0
    assert not run.ok, "it failed after the fault was healed"


def test_a_refused_write_breaks_no_promise_and_is_kept_to_be_looked_at() -> None:
    run = soak_with((Kind.PUT, "conflict"), "cut")
    assert run.ok
    assert run.conflicts


def test_a_soak_that_did_less_than_was_asked_for_has_not_passed() -> None:
    run = soak_with((Kind.PUT, "conflict"), "cut", faults_min=2)
    assert not run.ok
    assert "2 faults" in soak.report(run)


def test_a_long_soak_has_minima() -> None:
    assert minima(30, None, None) == (200, 100_000)
    assert minima(3, None, None) == (0, 0)
    assert minima(30, 5, 0) == (5, 0)
