"""Cases of scale: many extents at a coordinator, many records at a node, the catalog's bytes per file."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import msgspec

from bench.copypool_side import NAMESPACE
from bench.frame import CaseFailed, Found, Gauge, Ground, awaited
from bench.results import at_most
from bench.samples import sample
from copypool import Client
from copypool.dev.layout import Sizes, Tuning
from copypool_coordinator import keys, rows
from copypool_coordinator.etcd import Etcd, EtcdSettings, Op, put
from copypool_coordinator.rows import ExtentRow
from kit.cluster import RealCluster, real_cluster, until

FIRST_EXTENT = 10_000_000  #: above all that the cluster gives out itself
TXN_OPS = 128
PASSES_S = 10.0  #: idle passes are counted for so long
STREAMS = 64
STREAM_BYTES = 16 * 1024 * 1024
RECORD_BYTES = 100
MIB = 1024 * 1024
#: Nodes keep their sessions while their only coordinator is away; heartbeats are as far apart as a probe may be old.
_TUNING = Tuning(grace_s=3600, session_ttl_s=45, idle_seal_s=1.0)


def _memory_mb(pid: int) -> float:
    """Resident memory, in 10^6 bytes, shared libraries included."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise CaseFailed(f"process {pid} is gone")


def _endpoint(cluster: RealCluster) -> str:
    return cluster.plan.of("etcd")[0].url.removeprefix("http://")


# -- extents at a coordinator -----------------------------------------------------------------------
def _many_extents(ground: Ground, found: Found) -> None:
    with real_cluster(Sizes(1, 1, 1, 1), _TUNING) as cluster:
        awaited(_coordinator(cluster, 5_000 if ground.plan.quick else 200_000, found))


async def _coordinator(cluster: RealCluster, extents: int, found: Found) -> None:
    async with cluster.client() as client:
        await client.put(NAMESPACE, "model", os.urandom(RECORD_BYTES))

        async def proven() -> bool:
            shown = await client.status()
            return not shown.unverified_bytes and not shown.debt_bytes and not shown.under_protected_extents

        await until(proven, "the model of all extents is proven", within_s=60)
    etcd = await Etcd.connect(EtcdSettings((_endpoint(cluster),)))
    try:
        await _multiply(etcd, extents)
    finally:
        await etcd.close()
    starts_s, memory_mb, passes_ms = [], [], []
    for _ in range(3):
        await cluster.kill("coordinator1")
        begun_s = time.monotonic()
        await cluster.start("coordinator1")
        starts_s.append(time.monotonic() - begun_s)
        passes_ms.append(await _idle_pass_ms(cluster))
        memory_mb.append(_memory_mb(cluster.supervisor.pid("coordinator1")))
    found.figure("start", sorted(starts_s), "s", value=max(starts_s))
    found.figure("idle pass", sorted(passes_ms), "ms", value=max(passes_ms))
    found.figure("memory", sorted(memory_mb), "MB", value=max(memory_mb))


async def _multiply(etcd: Etcd, extents: int) -> None:
    """Rows of extents that are as their class wants, each like the one that is there."""
    (kv, *_) = (await etcd.range(keys.CLUSTER + keys.EXTENT, keys.CLUSTER + b"e0", limit=1)).rows
    model = rows.decode(kv.value, ExtentRow)
    for start in range(0, extents, TXN_OPS):
        ops: list[Op] = []
        for number in range(start, min(start + TXN_OPS, extents)):
            row = msgspec.structs.replace(model, digest=os.urandom(32))
            ops.append(put(keys.extent(FIRST_EXTENT + number), rows.encode(row)))
        await etcd.txn([], ops)


async def _idle_pass_ms(cluster: RealCluster) -> float:
    """The mean pass of the leader's controllers once they have nothing to do any more."""
    url = cluster.plan.of("coordinator")[0].url

    async def passes_of(seconds: float) -> tuple[float, float]:
        count, total_s = await asyncio.to_thread(_passes, url)
        await asyncio.sleep(seconds)
        count_after, total_after_s = await asyncio.to_thread(_passes, url)
        return count_after - count, total_after_s - total_s

    async def idle() -> bool:
        count, total_s = await passes_of(3.0)
        # One a second, and each a fraction of it: a leader that has still extents to look at is at it all the time.
        return 0 < count <= 4 and total_s < 1

    await until(idle, "the leader has looked at every extent", within_s=90)
    count, total_s = await passes_of(PASSES_S)
    return 1000 * total_s / count


def _passes(url: str) -> tuple[float, float]:
    """Passes of the controllers since the coordinator's start, and what they took together, in seconds."""
    return sample(url, f"{_PASSES}_count"), sample(url, f"{_PASSES}_sum")


_PASSES = "copypool_coordinator_pass_seconds"


# -- records at a node ------------------------------------------------------------------------------
def _many_records(ground: Ground, found: Found) -> None:
    with real_cluster(Sizes(1, 1, 1, 1), _TUNING) as cluster:
        quick = ground.plan.quick
        awaited(_records(cluster, 10_000 if quick else 100_000, 20_000 if quick else 1_000_000, found), deadline_s=420)


async def _records(cluster: RealCluster, first: int, all_of_them: int, found: Found) -> None:
    endpoint = _endpoint(cluster)
    etcd = await Etcd.connect(EtcdSettings((endpoint,)))
    try:
        async with cluster.client() as client:
            before = await _settled_bytes(etcd, endpoint)
            await client.put_many(NAMESPACE, _records_of("counted", first))
            found.figure("etcd per file", (await _settled_bytes(etcd, endpoint) - before) / first, "B")
    finally:
        await etcd.close()
    async with cluster.client() as client:
        await client.put_many(NAMESPACE, _records_of("more", all_of_them - first))
        for number in range(STREAMS):
            await client.put(NAMESPACE, f"stream/{number}", os.urandom(STREAM_BYTES))
        starts_s = []
        for _ in range(3):
            await cluster.kill("node1")
            begun_s = time.monotonic()
            await cluster.start("node1")
            starts_s.append(time.monotonic() - begun_s)
        found.figure("start", sorted(starts_s), "s", value=max(starts_s))
        found.figure("memory at rest", _memory_mb(cluster.supervisor.pid("node1")), "MB")
        await cluster.terminate("node2")  # or reads would go to the copy as well
        found.figure("memory with streams", await _memory_under_streams(client, cluster.supervisor.pid("node1")), "MB")


def _records_of(folder: str, count: int) -> Iterator[tuple[str, bytes]]:
    pool = os.urandom(MIB)
    for number in range(count):
        start = number * 101 % (MIB - RECORD_BYTES)
        yield (
            f"{folder}/2026-11-22/{number // 1000:06d}/part-of-a-path-{number:011d}",
            pool[start : start + RECORD_BYTES],
        )


async def _memory_under_streams(client: Client, pid: int) -> float:
    """The most memory that was seen while all streams were read, one of them each."""
    seen_mb = [_memory_mb(pid)]

    async def read(number: int) -> None:
        async with await client.open(NAMESPACE, f"stream/{number}") as stream:
            seen_mb.extend([_memory_mb(pid) async for _ in stream])

    async with asyncio.TaskGroup() as group:
        for number in range(STREAMS):
            group.create_task(read(number))
    return max(seen_mb)


async def _settled_bytes(etcd: Etcd, endpoint: str) -> int:
    """Size of etcd's database once it holds nothing but the present rows: compacted, then defragmented."""
    deadline_s = time.monotonic() + 60
    (status,) = await etcd.status()
    await etcd.compact(status.revision)
    size, before = 0, -1
    while size != before:  # a compaction goes on for a while after its answer
        if time.monotonic() > deadline_s:
            raise CaseFailed("etcd's database does not come to rest within 60 s")
        await asyncio.sleep(1)
        async with grpc.aio.insecure_channel(endpoint) as channel:
            await channel.unary_unary("/etcdserverpb.Maintenance/Defragment")(b"", timeout=60)
        before, size = size, (await etcd.status())[0].db_in_use_bytes
    return size


CASES = (
    Gauge(
        "extents",
        "a coordinator with 200,000 extents",
        _many_extents,
        (at_most(50, figure="idle pass"), at_most(15, figure="start"), at_most(350, figure="memory")),
        note="rows made after one of a real extent, written into etcd; start: from kill -9 until it answers, the worst "
        "of three; pass: mean of 10 s with nothing to do, by its own histogram; memory: resident, while it leads",
        deadline_s=300,
    ),
    Gauge(
        "records",
        "a node with 1,000,000 records; etcd per small file",
        _many_records,
        (at_most(10, figure="start"), at_most(150, figure="memory with streams"), at_most(300, figure="etcd per file")),
        note="files of 100 bytes, paths of 56; start: from kill -9 until it takes writes, the worst of three; memory: "
        f"resident, the most seen while the SDK reads {STREAMS} files of 16 MiB at once; etcd: growth of it by "
        "100,000 files, compacted and defragmented before and after",
        deadline_s=480,
    ),
)
