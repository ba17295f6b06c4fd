"""The power of a node's disk is cut under load, again and again, on real file systems and a real process.

One batch is one volume: cut, kill -9, mount anew, start, judge, and on with the load. A fake coordinator in this
process is the catalog, which loses nothing: what it was told and what the disk holds must be the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from pathlib import Path

import aiohttp
import pytest

from copypool.protocol.digests import digest_of, parse_digest
from copypool.protocol.errors import CopypoolError
from copypool.protocol.internal import JoinRequest
from copypool_node.config import Limits
from kit.fake_coordinator import FakeCoordinator, running
from kit.judging import check_written, extent_files
from kit.node_daemon import NodeDaemon
from kit.node_process import NodeUnderTest
from kit.power import FS_KINDS, FsKind, PowerSupply
from power.figures import FIGURES, batches

MIB = 1024 * 1024
WRITERS = 6
LIMITS = Limits(
    heartbeat_s=0.5, verify_bytes_s=0, extent_soft_bytes=256 * 1024, commit_wait_s=3.0, label_revision_s=0.5
)


class Load:
    """Clients that write, overwrite, delete and stream; what they were told is noted."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.versions: dict[str, tuple[int, bytes]] = {}  #: path -> version and digest of the newest receipt
        self.acked = 0
        self._serial = 0

    async def run(self, node: NodeUnderTest) -> None:
        """Until it is cancelled."""
        await asyncio.gather(*(self._client(node, number) for number in range(WRITERS)))

    async def _client(self, node: NodeUnderTest, number: int) -> None:
        while True:
            with contextlib.suppress(CopypoolError, aiohttp.ClientError, TimeoutError, ConnectionError):
                await self._write(node, number)
                continue
            await asyncio.sleep(0.005)

    async def _write(self, node: NodeUnderTest, number: int) -> None:
        self._serial += 1
        path, kind = f"w{number}/{self.rng.randrange(12)}", self.rng.random()
        if kind < 0.1:
            receipt = await node.delete(path)
            self._note(path, receipt.version, digest_of(b""))
            return
        size = self.rng.randrange(MIB + 1, 6 * MIB) if kind < 0.15 else self.rng.randrange(0, 20_000)
        headers = {"If-None-Match": "*"} if kind > 0.85 else None
        receipt = await node.put(path, os.urandom(size), headers=headers)
        self._note(path, receipt.version, parse_digest(receipt.digest))

    def _note(self, path: str, version: int, digest: bytes) -> None:
        self.acked += 1
        if version > self.versions.get(path, (0, b""))[0]:
            self.versions[path] = (version, digest)


async def judge(coordinator: FakeCoordinator, volume: Path, load: Load, node: NodeUnderTest) -> None:
    """The disk holds what was acknowledged and what the catalog has, and nothing else."""
    for path, (version, digest) in load.versions.items():
        row = coordinator.files[1, path]
        assert row.version >= version, f"{path} went back"
        assert row.version > version or row.tombstone or row.digest == digest, path
    await asyncio.to_thread(check_written, volume, coordinator)
    turns = asyncio.Semaphore(16)

    async def read(path: str) -> None:
        row = coordinator.files[1, path]
        async with turns:
            _, content, _ = await node.get(row.segment, row.version)
        assert digest_of(content) == row.digest, path
        FIGURES.checked += 1

    await asyncio.gather(*(read(path) for (_, path), row in coordinator.files.items() if not row.tombstone))


def torn_tails(coordinator: FakeCoordinator, volume: Path) -> int:
    """Files that go on behind what was committed; none may end before it."""
    files, torn = extent_files(volume), 0
    for extent in coordinator.extents.values():
        if extent.group < 0:
            continue
        size = files[extent.id].stat().st_size
        assert size >= extent.length, f"extent {extent.id}: {extent.length} bytes are committed, {size} are there"
        torn += not extent.sealed and size > extent.length
    return torn


async def cut_under_load(disk: PowerSupply, daemon: NodeDaemon, node: NodeUnderTest | None, load: Load) -> bool:
    """Let the load run for a while (or the start, when there is no node yet), cut the power, kill the process, mount
    anew. Whether the cut has lost what was written just before it and not synced."""
    running_load = None if node is None else asyncio.create_task(load.run(node))
    try:
        await asyncio.sleep(load.rng.uniform(0.02, 0.8) if node else load.rng.uniform(0.2, 1.2))
        daemon.freeze()
        disk.cut()
    finally:
        await daemon.kill()
        if running_load is not None:
            running_load.cancel()
            await asyncio.gather(running_load, return_exceptions=True)
    return await asyncio.to_thread(disk.restore)


async def one_cut(
    disk: PowerSupply, daemon: NodeDaemon, coordinator: FakeCoordinator, load: Load, *, first: bool
) -> None:
    """The power goes and comes back; the node starts anew and is judged. With `first` its first start is cut short."""
    node = None if first else await daemon.ready()
    before = load.acked
    FIGURES.canaries_lost += await cut_under_load(disk, daemon, node, load)
    FIGURES.cuts[disk.kind] += 1
    FIGURES.acked += load.acked - before
    FIGURES.torn += torn_tails(coordinator, daemon.volume)
    coordinator.end_session(1)
    daemon.launch()
    node = await daemon.ready()
    await judge(coordinator, daemon.volume, load, node)


@pytest.mark.parametrize("seeds", batches(10), ids=lambda seeds: f"seeds{seeds[0]}-{seeds[-1]}")
@pytest.mark.parametrize("kind", FS_KINDS)
async def test_a_node_keeps_what_it_acknowledged(tmp_path: Path, kind: FsKind, seeds: list[int]) -> None:
    async with running() as coordinator, aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as http:
        with PowerSupply(tmp_path, kind) as disk:
            daemon = NodeDaemon(tmp_path, disk.path, coordinator, http, limits=LIMITS)
            load = Load(random.Random(seeds[0]))
            daemon.launch()
            try:
                for seed in seeds:
                    load.rng.seed(seed)
                    await one_cut(disk, daemon, coordinator, load, first=seed == seeds[0])
                joins = {one.nonce for one in coordinator.requests["join"] if isinstance(one, JoinRequest)}
                assert len(joins) == 1, "it joined as one node, although its first start was cut short"
            except BaseException as exc:
                exc.add_note(f"{kind}, seed {seed} of {seeds[0]}-{seeds[-1]}\n{daemon.story()}")
                raise
            finally:
                await daemon.kill()


#: A node whose disk says "synced" and syncs nothing.
LIAR = (
    "from copypool_node.disk import Disk\n"
    "Disk.sync_data = lambda self, fd: None\n"
    "from copypool_node.__main__ import main\n"
    "main()\n"
)


@pytest.mark.parametrize("kind", FS_KINDS)
async def test_the_judge_notices_a_node_that_does_not_sync(tmp_path: Path, kind: FsKind) -> None:
    async with running() as coordinator, aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as http:
        with PowerSupply(tmp_path, kind) as disk:
            daemon = NodeDaemon(tmp_path, disk.path, coordinator, http, limits=LIMITS, program=("-c", LIAR))
            load = Load(random.Random(1))
            daemon.launch()
            try:
                for _ in range(5):
                    node = await daemon.ready()
                    await cut_under_load(disk, daemon, node, load)
                    try:
                        torn_tails(coordinator, daemon.volume)
                    except (AssertionError, KeyError):
                        return
                    coordinator.end_session(1)
                    daemon.launch()
                    node = await daemon.ready()
                    try:
                        await judge(coordinator, daemon.volume, load, node)
                    except (AssertionError, KeyError, CopypoolError):
                        return
            finally:
                await daemon.kill()
    raise AssertionError("five power cuts, and nothing was missed")
