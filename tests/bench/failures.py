"""Cases of failure: processes that are killed while the cluster is in use."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from dataclasses import dataclass

from bench.copypool_side import NAMESPACE
from bench.frame import CaseFailed, Found, Gauge, Ground, awaited
from bench.results import at_most
from copypool import Client
from copypool.dev.layout import Sizes, Tuning
from copypool.protocol.errors import CopypoolError
from copypool_coordinator.leader import LEASE_S
from kit.cluster import RealCluster, real_cluster, until

READERS = 64
FILES = 8
FILE_BYTES = 32 * 1024 * 1024
READER_BYTES_S = 2 * 1024 * 1024  #: what each reader takes: the cores are not what is measured
WATCHED_S = 6.0  #: after the kill: longer than what was read ahead lasts; then readers take all they can get
POLL_S = 0.01
#: A dead node stays a member: nothing is rebuilt while readers are watched.
_STAYS = Tuning(grace_s=3600, session_ttl_s=5, idle_seal_s=1.0)


# -- a primary dies amid reads ------------------------------------------------------------------
@dataclass
class Reading:
    """What one reader saw."""

    waits: list[tuple[float, float]]  #: (end, length) of every wait for a next piece, in seconds
    error: str = ""

    def gap_ms(self, killed_s: float) -> float:
        """The longest wait that ended after the kill, or was under way at the end of the watch."""
        return (
            max((length for end, length in self.waits if killed_s < end and end - length < killed_s + WATCHED_S)) * 1000
        )


def _kill_primary(ground: Ground, found: Found) -> None:
    with real_cluster(Sizes(1, 1, 1, 1), _STAYS) as cluster:
        awaited(_read_through_kills(cluster, 1 if ground.plan.quick else 5, found))


async def _read_through_kills(cluster: RealCluster, kills: int, found: Found) -> None:
    gaps_ms: list[float] = []
    failed: list[str] = []
    async with cluster.client() as client:
        for number in range(FILES):
            await client.put(NAMESPACE, f"read/{number}", os.urandom(FILE_BYTES))
        await client.wait_copied(timeout_s=60)
        for _ in range(kills):
            readings = [Reading([]) for _ in range(READERS)]
            watched = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                for number, reading in enumerate(readings):
                    group.create_task(_read(client, f"read/{number % FILES}", reading, watched))
                await _all_begun(readings)
                await cluster.kill("node1")
                killed_s = time.monotonic()
                await asyncio.sleep(WATCHED_S)
                watched.set()
            failed += [each.error for each in readings if each.error]
            gaps_ms += [each.gap_ms(killed_s) for each in readings]
            await cluster.start("node1")
    gaps_ms.sort()
    found.figure("gap, p50", gaps_ms[len(gaps_ms) // 2], "ms")
    found.figure("gap, p99", gaps_ms, "ms", value=gaps_ms[int(len(gaps_ms) * 0.99)])
    found.figure("failed reads", len(failed))
    if failed:
        found.say(failed[0])


async def _read(client: Client, path: str, reading: Reading, watched: asyncio.Event) -> None:
    """Read a file to its end, which compares its digest; at READER_BYTES_S until `watched`."""
    begun_s = asked_s = time.monotonic()
    taken = 0
    try:
        async with await client.open(NAMESPACE, path) as stream:
            asked_s = time.monotonic()
            async for piece in stream:
                came_s = time.monotonic()
                reading.waits.append((came_s, came_s - asked_s))
                taken += len(piece)
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, begun_s + taken / READER_BYTES_S - came_s)):
                        await watched.wait()
                asked_s = time.monotonic()
        if taken != FILE_BYTES:
            reading.error = f"{taken} bytes of {FILE_BYTES}"
    except CopypoolError as exc:
        reading.error = str(exc) or type(exc).__name__


async def _all_begun(readings: list[Reading]) -> None:
    """Every reader is in the middle of its file."""
    deadline_s = time.monotonic() + 20
    while not all(len(each.waits) >= 2 for each in readings):
        if time.monotonic() > deadline_s:
            raise CaseFailed("not all readers have begun within 20 s")
        await asyncio.sleep(POLL_S)


# -- the leader dies ------------------------------------------------------------------------------
def _kill_leader(ground: Ground, found: Found) -> None:
    with real_cluster(Sizes(1, 2, 1, 1), _STAYS) as cluster:
        awaited(_lead_through_kills(cluster, 1 if ground.plan.quick else 6, found))


async def _lead_through_kills(cluster: RealCluster, kills: int, found: Found) -> None:
    until_leads_s: list[float] = []
    until_works_s: list[float] = []
    async with cluster.client() as client:

        async def leader() -> str:
            return (await client.status()).leader

        for number in range(kills):
            before = await until(leader, "one leads", within_s=30)
            await cluster.kill(before)
            killed_s = time.monotonic()
            # What a leader is for: bytes that nobody else would copy.
            await client.put(NAMESPACE, f"led/{number}", os.urandom(4096))
            await _leads_other_than(client, before)
            until_leads_s.append(time.monotonic() - killed_s)
            await client.wait_copied(timeout_s=30)
            until_works_s.append(time.monotonic() - killed_s)
            await cluster.start(before)
    found.figure("until another leads", sorted(until_leads_s), "s", value=max(until_leads_s))
    found.figure("until its work is done", sorted(until_works_s), "s", value=max(until_works_s))


async def _leads_other_than(client: Client, before: str) -> None:
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s:
        try:
            if (await client.status()).leader not in ("", before):
                return
        except CopypoolError:
            pass  # the killed one was asked first
        await asyncio.sleep(POLL_S)
    raise CaseFailed("no other leader within 30 s")


CASES = (
    Gauge(
        "kill-primary",
        f"kill -9 of the primary's node amid {READERS} reads",
        _kill_primary,
        (at_most(250, figure="gap, p99"), at_most(0, figure="failed reads")),
        note=f"the SDK's streams of 32 MiB, each taken at {READER_BYTES_S >> 20} MiB/s until {WATCHED_S:g} s after the "
        "kill, then as fast as it comes; digests compared; a gap is a reader's longest wait for a next piece in that "
        "time, what is read ahead included as in any use; all readers of five kills",
    ),
    Gauge(
        "kill-leader",
        "kill -9 of the leader",
        _kill_leader,
        (at_most(LEASE_S + 2, figure="until its work is done"),),
        note=f"the worst of six; its lease is {LEASE_S} s; work is done when a file put after the kill has its copy",
    ),
)
