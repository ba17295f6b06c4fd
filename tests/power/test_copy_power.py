"""The power of a copy node's disk is cut while it is the twin of extents that are written and pulls others.

The writer and the catalog are in this process and lose nothing; the copy node is a process of its own. What a receipt
says of the copy, what a commit has claimed for it and what it has reported itself is there afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from pathlib import Path

import aiohttp
import pytest

from copypool.protocol.api import Receipt
from copypool.protocol.digests import digest_of, format_digest
from copypool.protocol.errors import CopypoolError
from copypool.protocol.internal import ExtentClass, PullCommand, PullSource
from copypool_node.config import Limits
from kit.eventually import eventually
from kit.fake_coordinator import FakeCoordinator, running
from kit.judging import check_prefix, extent_files
from kit.node_daemon import NodeDaemon
from kit.node_process import NodeUnderTest, quick_limits, running_node
from kit.power import FS_KINDS, FsKind, PowerSupply
from power.figures import FIGURES, batches

MIB = 1024 * 1024
WRITERS = 4
WRITER_LIMITS = quick_limits(extent_soft_bytes=512 * 1024, twin_timeout_s=1.0)
COPY_LIMITS = Limits(heartbeat_s=0.5, verify_bytes_s=0, label_revision_s=0.5)
GENERATION = 5  #: of locations that are pulled from the beginning


class Pair:
    """A writer that acknowledges once the copy has it too, and the copy node."""

    def __init__(self, coordinator: FakeCoordinator, writer: NodeUnderTest, rng: random.Random) -> None:
        self.coordinator = coordinator
        self.writer = writer
        self.rng = rng
        self.both: dict[str, Receipt] = {}  #: path -> newest receipt, if it names the copy

    async def write(self) -> None:
        """Until it is cancelled."""
        serial = 0
        while True:
            serial += 1
            path = f"{self.rng.randrange(30)}"
            size = self.rng.randrange(MIB, 5 * MIB) if self.rng.random() < 0.05 else self.rng.randrange(1, 30_000)
            with contextlib.suppress(CopypoolError, aiohttp.ClientError):
                receipt = await self.writer.put(path, os.urandom(size))
                if receipt.version > getattr(self.both.get(path), "version", 0):
                    self.both.pop(path, None)
                    if receipt.ack == "copy":
                        self.both[path] = receipt
                FIGURES.acked += receipt.ack == "copy"

    async def lead(self, copy: NodeUnderTest) -> None:
        """What the leader does: tell the copy node to bring up whatever it has not got. Until it is cancelled."""
        while True:
            for extent in list(self.coordinator.extents):
                with contextlib.suppress(CopypoolError, aiohttp.ClientError):
                    await self.tell(copy, extent)
            await asyncio.sleep(0.05)

    async def tell(self, copy: NodeUnderTest, extent: int) -> None:
        """One pull, unless the copy is a live twin or nothing was committed."""
        row = self.coordinator.extents[extent]
        if row.twin is not None or row.group < 0:
            return
        held = self.coordinator.copies.setdefault((extent, copy.volume), (GENERATION, "copying", 0))
        ids = self.writer.node.session.node_id, copy.node.session.node_id
        source = PullSource(ids[0], self.writer.url, row.length, self.coordinator.pull_capability(*ids, extent))
        command = PullCommand(
            1, extent, copy.volume, held[0], row.length, row.sealed, list(row.refusals), b"", [source]
        )
        await copy.command("pull", command)

    def check_claims(self, volume: Path, volume_id: int) -> None:
        """What the catalog believes of the copy's disk is true."""
        files = extent_files(volume)
        for extent, row in self.coordinator.extents.items():
            _, state, length = self.coordinator.copies.get((extent, volume_id), (0, "", 0))
            if row.twin is not None and row.group >= 0:
                state, length = "live twin", row.length
            if length:
                assert extent in files, f"extent {extent} ({state}) is gone"
                check_prefix(files[extent], self.writer.extent_file(extent), extent, length)

    async def check_receipts(self, copy: NodeUnderTest) -> None:
        """The copy serves what was acknowledged as being there."""
        for receipt in self.both.values():
            assert receipt.segment is not None
            _, content, _ = await copy.get(receipt.segment, receipt.version)
            assert format_digest(digest_of(content)) == receipt.digest
            FIGURES.checked += 1


async def one_cut(disk: PowerSupply, daemon: NodeDaemon, pair: Pair) -> None:
    """Write and pull for a while, cut the copy's power, start it anew, judge."""
    copy = await daemon.ready()
    coordinator, node_id = pair.coordinator, copy.node.session.node_id
    coordinator.twins = [(node_id, copy.volume, "n2-a")]
    work = [asyncio.create_task(pair.write()) for _ in range(WRITERS)]
    work.append(asyncio.create_task(pair.lead(copy)))
    try:
        await asyncio.sleep(pair.rng.uniform(0.05, 0.8))
        daemon.freeze()
        disk.cut()
    finally:
        await daemon.kill()
        coordinator.end_session(node_id)
        coordinator.twins = []
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
    await eventually(lambda: pair.writer.node.volumes[0].report().queued_bytes == 0, "the writer has come to rest")
    FIGURES.canaries_lost += await asyncio.to_thread(disk.restore)
    FIGURES.cuts[f"{disk.kind} (copy)"] += 1
    await asyncio.to_thread(pair.check_claims, daemon.volume, copy.volume)
    daemon.launch()
    copy = await daemon.ready()
    await pair.check_receipts(copy)


async def all_finished(pair: Pair, daemon: NodeDaemon) -> None:
    """In the end every copy is whole."""
    copy = await daemon.ready()
    await pair.writer.node.volumes[0].lanes[1].stop("the end")
    for extent in pair.coordinator.extents:
        pair.coordinator.seal(extent)
    written = [row for row in pair.coordinator.extents.values() if row.group >= 0]
    for row in written:
        await pair.tell(copy, row.id)

    def whole() -> bool:
        held = [pair.coordinator.copies.get((row.id, copy.volume), (0, "", 0)) for row in written]
        return all(
            (state, length) == ("good", row.length) for (_, state, length), row in zip(held, written, strict=True)
        )

    await eventually(whole, "every copy is whole")
    await asyncio.to_thread(pair.check_claims, daemon.volume, copy.volume)


@pytest.mark.parametrize("seeds", batches(10), ids=lambda seeds: f"seeds{seeds[0]}-{seeds[-1]}")
@pytest.mark.parametrize("kind", FS_KINDS)
async def test_a_copy_keeps_what_it_was_claimed_for(
    tmp_path: Path, kind: FsKind, seeds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("copypool_node.twin_gate.CONTINUE_FIRST_S", 0.05)
    monkeypatch.setattr("copypool_node.twin_gate.CONTINUE_MAX_S", 0.05)
    async with running() as coordinator, aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as http:
        coordinator.extent_class = ExtentClass(1, "primary", ["copy"], "copy", "continue")
        with PowerSupply(tmp_path, kind) as disk:
            async with running_node(tmp_path, coordinator, limits=WRITER_LIMITS) as writer:
                daemon = NodeDaemon(
                    tmp_path, disk.path, coordinator, http, name="n2", pool_type="copy", limits=COPY_LIMITS
                )
                pair = Pair(coordinator, writer, random.Random(seeds[0]))
                daemon.launch()
                try:
                    for seed in seeds:
                        pair.rng.seed(seed)
                        await one_cut(disk, daemon, pair)
                    await all_finished(pair, daemon)
                except BaseException as exc:
                    exc.add_note(f"{kind}, seed {seed} of {seeds[0]}-{seeds[-1]}\n{daemon.story()}")
                    raise
                finally:
                    await daemon.kill()
