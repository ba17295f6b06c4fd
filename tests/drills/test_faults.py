"""A fault that does not come is told, whatever the cluster then does: drills prove their fault. No containers."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest

from copypool import Client
from drills import faults, soak
from drills.cluster import DrillCluster
from drills.containers import Containers
from drills.disks import Disk
from drills.faults import Both, EtcdLeaderKilled, Fault, Killed, LeaderKilled, Paused, RollingRestart
from drills.layout import layout_of
from drills.networks import Cut, Lossy
from drills.schedule import Planned
from drills.soak import Done, Soak, minima
from drills.volumes import Deleted, Failing, Flipped, Full, ReadOnly, Stale, Wiped
from kit.checker import Verdict
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
        return ""


class Asked(DrillCluster):
    """A cluster whose leaders are known."""

    async def leader(self) -> str:
        return NODES[0]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Asked]:
    monkeypatch.setattr(faults, "FELT_S", 0.5)
    containers = Processes(tmp_path)
    for name in NODES:
        containers.start(name)
    try:
        yield Asked(containers)
    finally:
        for name in NODES:
            containers.kill(name)


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
    ],
)
async def test_what_was_injected_is_felt_and_healed(cluster: Asked, make: Callable[[], Fault]) -> None:
    fault = make()
    async with faults.inflicted(cluster, fault):
        assert await fault.felt(cluster)
    assert [cluster.containers.process_state(name) not in ("", "T") for name in NODES] == [True, True]


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
