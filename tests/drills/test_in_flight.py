"""Reads that are half-way when their node dies: every one goes on from a copy, and how long the reader waits for it."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter

import pytest

from copypool import Client
from copypool.protocol.digests import digest_of, format_digest
from drills.cluster import DrillCluster
from drills.layout import NAMESPACE, NODE_PORT
from drills.networks import filtered, unfiltered

FILES = 12
SIZE_BYTES = 12 << 20
READERS = 8  #: streams that are half-way when the node dies
ROUNDS = 6
PIECES_BEFORE = 2
THINK_S = 0.4  #: of a reader after each piece, so that it is still half-way


#: Its process dies on a machine that lives: the kernel there resets its connections, and refuses new ones.
RESET = "resets their connections"
#: Its machine goes: killed, a container takes its network with it, and nobody answers any more.
SILENT = "falls silent"


class Reader:
    """One stream, and how long it waited for each piece after the node's death."""

    def __init__(self, client: Client, path: str, digest: str) -> None:
        self.half_way = asyncio.Event()
        self.waited_s = 0.0  #: the longest time for one piece since `armed`
        self.armed = False
        self.ended = False
        self._client = client
        self._path = path
        self._digest = digest

    async def read(self) -> None:
        """Read to the end; the bytes must be those that were stored."""
        content = bytearray()
        pieces = 0
        async with await self._client.open(NAMESPACE, self._path) as stream:
            asked_s = time.monotonic()
            async for piece in stream:
                if self.armed:
                    self.waited_s = max(self.waited_s, time.monotonic() - asked_s)
                content += piece
                pieces += 1
                if pieces == PIECES_BEFORE:
                    self.half_way.set()
                await asyncio.sleep(THINK_S)
                asked_s = time.monotonic()
        self.ended = True
        assert format_digest(digest_of(bytes(content))) == self._digest


@pytest.mark.parametrize("how", [RESET, SILENT])
async def test_reads_in_flight(shared_cluster: DrillCluster, record_line: list[str], how: str) -> None:
    cluster = shared_cluster
    waits_ms: list[float] = []
    async with cluster.client() as client:
        await cluster.acknowledge(client, "copy", "fail")
        paths = [f"drills/in-flight/{number}" for number in range(FILES)]
        for number, path in enumerate(paths):
            await client.put(NAMESPACE, path, random.Random(number).randbytes(SIZE_BYTES))
        for _ in range(ROUNDS):
            await cluster.green(client, "green before the node is killed")
            waits_ms += await lost_under_readers(cluster, client, paths, how)
        await cluster.green(client, "green at the end")
    waits_ms.sort()
    median, p99 = waits_ms[len(waits_ms) // 2], waits_ms[int(len(waits_ms) * 0.99)]
    record_line.append(
        f"Reads half-way when their primary node {how}: {len(waits_ms)} of {SIZE_BYTES >> 20} MiB, 0 failed. "
        f"Longest wait for a piece: {median:.0f} ms in the median, {p99:.0f} ms at p99, {waits_ms[-1]:.0f} ms at most."
    )


async def lost_under_readers(cluster: DrillCluster, client: Client, paths: list[str], how: str) -> list[float]:
    """Take away the node that most of the files are read from; each reader's longest wait for a piece in ms."""
    places: dict[str, str] = {}
    digests: dict[str, str] = {}
    for path in paths:
        stat = await client.stat(NAMESPACE, path)
        digests[path] = stat.digest
        primaries = [place.node for segment in stat.segments for place in segment.locations if place.state == "good"]
        places[path] = next(node for node in primaries if cluster.layout.member(node).pool == "primary")
    ((victim, _),) = Counter(places.values()).most_common(1)
    there = [path for path in paths if places[path] == victim]
    readers = [
        Reader(client, there[number % len(there)], digests[there[number % len(there)]]) for number in range(READERS)
    ]
    tasks = [asyncio.create_task(reader.read()) for reader in readers]
    try:
        for reader in readers:
            await asyncio.wait_for(reader.half_way.wait(), 30)
        half_way = [reader for reader in readers if not reader.ended]
        for reader in half_way:
            reader.armed = True
        if how == RESET:
            await filtered(cluster, victim, [f"-p tcp --dport {NODE_PORT} -j REJECT --reject-with tcp-reset"])
        else:
            await cluster.kill(victim)
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await unfiltered(cluster, victim)
        await cluster.start(victim)
    assert half_way, "every read had ended before the node died: this drill drilled nothing"
    return [reader.waited_s * 1000 for reader in half_way]
