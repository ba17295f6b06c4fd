"""The power of etcd's disk is cut under commits: the catalog keeps every group that it has answered.

What is committed are groups of a node, through the catalog's own transactions. Whoever had no answer repeats the
identical commit afterwards, as a node does, and lands at most once.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path

import pytest

from copypool.protocol.errors import CatalogDown, CopypoolError, OutcomeUnknown, Unavailable
from copypool.protocol.internal import CommitEntry
from copypool_coordinator.rows import FileRow
from kit.catalog_world import TestNode, World, Writer, allowed, catalog_world
from kit.etcd_process import EtcdMember, free_ports
from kit.power import FS_KINDS, FsKind, PowerSupply
from power.figures import FIGURES, batches

WRITERS = 4
RECONNECT_S = 60.0


class Committing:
    """One writer that commits group after group, and remembers what it was answered."""

    def __init__(self, world: World, writer: Writer, rng: random.Random) -> None:
        self.world = world
        self.writer = writer
        self.rng = rng
        self.acked: dict[str, int] = {}  #: path -> version
        self.groups = 0
        self.pending: tuple[list[CommitEntry], object] | None = None

    async def run(self) -> None:
        """Until it is cancelled, or etcd is gone."""
        with contextlib.suppress(CopypoolError):
            while True:
                await self.commit()

    async def commit(self) -> None:
        """The next group, or the one that had no answer once more."""
        if self.pending is None:
            paths = {f"{self.writer.extent}/{self.rng.randrange(40)}" for _ in range(self.rng.randrange(1, 8))}
            entries = [self.writer.put(path) for path in sorted(paths)]
            self.pending = (entries, self.writer.request(*entries))
        entries, request = self.pending
        reply = await self.world.catalog.commit(request, allowed)  # type: ignore[arg-type]
        self.writer.took(request, reply)  # type: ignore[arg-type]
        self.pending = None
        self.groups += 1
        for entry, result in zip(entries, reply.results, strict=True):
            assert result.outcome == "committed", result
            self.acked[entry.path] = result.version

    async def commit_again(self) -> None:
        """Until what was under way has an answer: etcd has just come back."""
        async with asyncio.timeout(RECONNECT_S):
            while self.pending is not None:
                with contextlib.suppress(CatalogDown, OutcomeUnknown, Unavailable):
                    await self.commit()
                    continue
                await asyncio.sleep(0.05)

    async def check(self) -> None:
        """Every path has the version that was answered last."""
        found: list[FileRow | None] = []
        wanted = [(self.writer.namespace, path, 0) for path in self.acked]
        for start in range(0, len(wanted), 100):
            found += await self.world.catalog.lookup(wanted[start : start + 100])
        for (path, version), row in zip(self.acked.items(), found, strict=True):
            assert row is not None, f"{path} is gone"
            assert row.version == version, path
            FIGURES.checked += 1


async def cut_under_commits(disk: PowerSupply, etcd: EtcdMember, writers: list[Committing], rng: random.Random) -> None:
    """Commit for a while, cut the power in the midst of it, and start etcd on what is left."""
    running = [asyncio.create_task(one.run()) for one in writers]
    try:
        await asyncio.sleep(rng.uniform(0.05, 0.6))
        etcd.stop()
        disk.cut()
    finally:
        await asyncio.to_thread(etcd.end_blocking)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    FIGURES.canaries_lost += await asyncio.to_thread(disk.restore)
    FIGURES.cuts[f"{disk.kind} (etcd)"] += 1
    await asyncio.to_thread(etcd.start_blocking, f"{etcd.name}={etcd.peer_url}", "http")
    await asyncio.to_thread(etcd.await_ready_blocking)


async def keep_alive(world: World, node: TestNode) -> None:
    """The node's heart: its session outlives the cuts."""
    while True:
        with contextlib.suppress(CopypoolError):
            await world.catalog.renew(node.node_id, node.epoch)
        await asyncio.sleep(1.0)


@pytest.mark.parametrize("seeds", batches(10), ids=lambda seeds: f"seeds{seeds[0]}-{seeds[-1]}")
@pytest.mark.parametrize("kind", FS_KINDS)
async def test_the_catalog_keeps_every_answered_group(tmp_path: Path, kind: FsKind, seeds: list[int]) -> None:
    with PowerSupply(tmp_path, kind) as disk:
        etcd = EtcdMember("m0", disk.path, free_ports(3), [])
        etcd.log_path = tmp_path / "etcd.log"
        try:
            etcd.start_blocking(f"m0={etcd.peer_url}", "http")
            await asyncio.to_thread(etcd.await_ready_blocking)
            async with catalog_world(etcd.endpoint) as world:
                node = await world.node("n1")
                heart = asyncio.create_task(keep_alive(world, node))
                rng = random.Random(seeds[0])
                writers = [Committing(world, await world.writer(node), rng) for _ in range(WRITERS)]
                try:
                    for seed in seeds:
                        rng.seed(seed)
                        before = sum(one.groups for one in writers)
                        await cut_under_commits(disk, etcd, writers, rng)
                        FIGURES.acked += sum(one.groups for one in writers) - before
                        for one in writers:
                            await one.commit_again()
                            await one.check()
                finally:
                    heart.cancel()
                    await asyncio.gather(heart, return_exceptions=True)
        except BaseException as exc:
            exc.add_note(f"{kind}, batch {seeds[0]}-{seeds[-1]}")
            raise
        finally:
            await asyncio.to_thread(etcd.end_blocking)
