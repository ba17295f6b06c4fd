"""Cases of copying between nodes: how fast it is without a budget, and what readers notice of it."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

from bench.copypool_side import NAMESPACE
from bench.disk import DD
from bench.frame import CaseFailed, Contest, Found, Gauge, Ground, awaited
from bench.processes import ChildrenMeter, CpuMeter
from bench.results import OWN, Round, at_least, at_most
from bench.samples import sample
from copypool import Client
from copypool.dev.layout import Sizes, Tuning
from copypool.protocol.api import StatusReply
from copypool.protocol.errors import CopypoolError
from kit.cluster import RealCluster, real_cluster, until

MIB = 1024 * 1024
PIECE_BYTES = 32 * MIB
POLL_S = 0.05  #: `status` is not free, and asked on the same cores
SMALL_FILES = 400
READS_S = 100  #: reads begun each second, however long they take
READING_S = 6.0  #: before and after the rebuild
_DEADLINE_S = 150.0
_STAYS = Tuning(grace_s=3600, session_ttl_s=15, idle_seal_s=1.0)
_GOES = Tuning(grace_s=1, session_ttl_s=5, idle_seal_s=1.0)
_GOES_UNPACED = Tuning(grace_s=1, session_ttl_s=5, idle_seal_s=1.0, rebuild_bytes_s=0)


def _mib(ground: Ground) -> int:
    return 64 if ground.plan.quick else 768


def _pids(cluster: RealCluster) -> dict[str, int]:
    found = {process.name: cluster.supervisor.pid(process.name) for process in cluster.plan.processes}
    return {name: pid for name, pid in found.items() if pid}


async def _put(client: Client, mib: int) -> None:
    name = secrets.token_hex(4)
    for number in range(mib * MIB // PIECE_BYTES):
        await client.put(NAMESPACE, f"{name}/{number}", os.urandom(PIECE_BYTES))


async def _becomes(client: Client, what: str, holds: Callable[[StatusReply], bool]) -> None:
    deadline_s = time.monotonic() + _DEADLINE_S
    while not holds(shown := await client.status()):
        if time.monotonic() > deadline_s:
            raise CaseFailed(f"not within {_DEADLINE_S:g} s: {what}; {shown.reasons}")
        await asyncio.sleep(POLL_S)


# -- the disk ------------------------------------------------------------------------------------
def _dd(ground: Ground) -> Round:
    """As many bytes by `dd conv=fsync` into a new file, which stays until the case ends, as copies do."""
    mib = _mib(ground)
    source = ground.made(f"random{mib}", partial(_make_random, mib=mib))
    copy = ground.folder / f"dd-{secrets.token_hex(4)}"
    children, begun_s = ChildrenMeter(), time.monotonic()
    subprocess.run(
        ["dd", f"if={source}", f"of={copy}", "bs=4M", "conv=fsync", "status=none"], check=True, timeout=_DEADLINE_S
    )
    seconds = time.monotonic() - begun_s
    return Round(DD, mib, seconds, {"dd": children.read() * 1e6 / mib})


def _make_random(place: Path, mib: int) -> None:
    with place.open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(MIB))


# -- catching up ---------------------------------------------------------------------------------
def _catch_up(ground: Ground) -> Round:
    """A copy node that was away comes back and pulls what it is owed; ends when `status` knows of no debt."""
    with real_cluster(Sizes(1, 1, 1, 1), _STAYS) as cluster:
        return awaited(_caught_up(cluster, _mib(ground)))


async def _caught_up(cluster: RealCluster, mib: int) -> Round:
    async with cluster.client() as client:
        await cluster.terminate("node2")
        await _put(client, mib)
        await _sealed(cluster)
        await asyncio.to_thread(os.sync)
        await cluster.start("node2")
        meter, begun_s = CpuMeter(_pids(cluster)), time.monotonic()
        await _becomes(client, "no debt", lambda shown: not shown.debt_bytes)
        seconds = time.monotonic() - begun_s
        return Round(OWN, mib, seconds, meter.per_operation_us(mib))


async def _sealed(cluster: RealCluster) -> None:
    """Idle extents are sealed, so that copies are whole ones, read back before they count."""
    url = cluster.plan.process("node1").url

    async def all_sealed() -> bool:
        return not await asyncio.to_thread(sample, url, "copypool_node_volume_open_extents")

    await until(all_sealed, "idle extents are sealed", within_s=30)


# -- rebuilding ------------------------------------------------------------------------------------
def _rebuild(ground: Ground) -> Round:
    """A primary node is lost for good; ends when no extent lacks a location. Counted from its first byte."""
    with real_cluster(Sizes(1, 1, 2, 1), _GOES_UNPACED) as cluster:
        return awaited(_rebuilt(cluster, _mib(ground)))


async def _rebuilt(cluster: RealCluster, mib: int) -> Round:
    async with cluster.client() as client:
        await cluster.terminate("node2")
        await _fill(cluster, client, mib)
        await cluster.kill("node1")
        await _begins(cluster)
        meter, begun_s = CpuMeter(_pids(cluster)), time.monotonic()
        await _becomes(client, "nothing lacks a location", _whole)
        seconds = time.monotonic() - begun_s
        return Round(OWN, mib, seconds, meter.per_operation_us(mib))


async def _fill(cluster: RealCluster, client: Client, mib: int) -> None:
    """Bytes on node1, copied to node3; node2, which was down, is empty."""
    await _put(client, mib)
    await client.wait_copied(timeout_s=_DEADLINE_S)
    await until(partial(_at_policy, client), "all is at policy", within_s=60)
    await cluster.start("node2")
    await until(partial(_up, client, 3), "all nodes are up", within_s=30)
    await asyncio.to_thread(os.sync)


async def _begins(cluster: RealCluster) -> None:
    """The rebuilding has pulled its first bytes."""
    before = await cluster.pulled_bytes()
    deadline_s = time.monotonic() + 60
    while await cluster.pulled_bytes() <= before:
        if time.monotonic() > deadline_s:
            raise CaseFailed("no rebuild has begun within 60 s")
        await asyncio.sleep(POLL_S)


def _whole(shown: StatusReply) -> bool:
    return not shown.under_protected_extents


async def _at_policy(client: Client) -> bool:
    shown = await client.status()
    return not (shown.debt_bytes or shown.under_protected_extents)


async def _up(client: Client, count: int) -> bool:
    return sum(node.state == "up" for node in await client.nodes()) == count


# -- readers meanwhile ---------------------------------------------------------------------------
class Reads:
    """Small files read at a fixed rate, whether answers come or not."""

    def __init__(self, client: Client, paths: list[str]) -> None:
        self._client = client
        self._paths = paths
        self._begun = 0
        self.failed = 0

    async def during(self, work: Coroutine[Any, Any, None]) -> float:
        """Read until the work is done; the 99th of 100 answers, in ms."""
        times_ms: list[float] = []
        async with asyncio.TaskGroup() as group:
            task = group.create_task(work)
            next_s = time.monotonic()
            while not task.done():
                group.create_task(self._read(times_ms))
                next_s += 1 / READS_S
                await asyncio.sleep(max(0.0, next_s - time.monotonic()))
        return sorted(times_ms)[int(len(times_ms) * 0.99)]

    async def _read(self, times_ms: list[float]) -> None:
        self._begun += 1
        begun_s = time.monotonic()
        try:
            await self._client.get(NAMESPACE, self._paths[self._begun % len(self._paths)])
        except CopypoolError:
            self.failed += 1
        times_ms.append((time.monotonic() - begun_s) * 1000)


def _readers(ground: Ground, found: Found) -> None:
    with real_cluster(Sizes(1, 1, 2, 1), _GOES) as cluster:
        awaited(_read_meanwhile(cluster, _mib(ground), found))


async def _read_meanwhile(cluster: RealCluster, mib: int, found: Found) -> None:
    async with cluster.client() as client:
        paths = [f"small/{number}" for number in range(SMALL_FILES)]
        await cluster.terminate("node2")
        await client.put_many(NAMESPACE, [(path, os.urandom(4096)) for path in paths])
        await _fill(cluster, client, mib)
        reads = Reads(client, paths)
        idle_ms = [await reads.during(asyncio.sleep(READING_S))]
        await cluster.kill("node1")
        await _begins(cluster)
        busy_ms = await reads.during(_becomes(client, "nothing lacks a location", _whole))
        idle_ms.append(await reads.during(asyncio.sleep(READING_S)))
    found.figure("p99 idle, before and after", idle_ms, "ms", value=sum(idle_ms) / 2)
    found.figure("p99 meanwhile", busy_ms, "ms")
    found.figure("meanwhile by idle", busy_ms / (sum(idle_ms) / 2), "x")
    found.figure("failed reads", reads.failed)


CASES = (
    Contest(
        "catch-up",
        "a copy node that was away catches up, no budget",
        ((OWN, _catch_up), (DD, _dd)),
        (at_least(0.6, than=DD),),
        note="from the node's readiness until `status` knows of no debt: pulled, checked, fsync'd, read back from the "
        "medium, sealed; extents of 64 MiB; `dd` writes a new file each time, as copying does",
        unit="MiB",
        rounds_max=3,
        deadline_s=300,
    ),
    Contest(
        "rebuild",
        "a lost primary node is rebuilt from copies, no budget",
        ((OWN, _rebuild), (DD, _dd)),
        (at_least(0.6, than=DD),),
        note="from the first byte pulled until no extent lacks a location, each read back from the medium",
        unit="MiB",
        rounds_max=3,
        deadline_s=300,
    ),
    Gauge(
        "read-during-rebuild",
        f"4 KiB GET by the SDK, {READS_S}/s, during a rebuild with the default budget",
        _readers,
        (at_most(3, figure="meanwhile by idle"), at_most(0, figure="failed reads")),
        note="reads are begun at a fixed rate, whether answers come or not; the node of their primaries is dead; "
        "the budget is `limits.rebuild_bytes_s` of the node that rebuilds",
    ),
)
