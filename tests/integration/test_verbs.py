"""Operators' verbs on real processes: backup, audit, drain, restore, delete, and several of them at once."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator

import pytest

from copypool import Client
from copypool.dev.layout import Sizes
from copypool.protocol.processes import ProcessInfo, ProcessRequest
from kit.cluster import RealCluster, real_cluster, until
from kit.workload import NAMESPACE, Readers, all_read_back, some_files, working

MIB = 1024 * 1024
EXTENTS = 4
SIZES = Sizes(primary_nodes=3, copy_nodes=2)  #: one primary node can be emptied while another is lost


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[RealCluster]:
    with real_cluster(SIZES) as cluster:
        yield cluster


async def done(client: Client, process: str, within_s: float = 60) -> ProcessInfo:
    """The process once it has ended."""
    async with asyncio.timeout(within_s):
        async for shown in client.operator.follow(process):
            last = shown
    return last


async def several_extents(client: Client, prefix: str, seed: int) -> dict[str, bytes]:
    """Files of some MiB, stored at once: each holds an extent of its own meanwhile."""
    files = {f"{prefix}/{number}": random.Random(seed + number).randbytes(3 * MIB) for number in range(EXTENTS)}
    await asyncio.gather(*(client.put(NAMESPACE, path, content) for path, content in files.items()))
    return files


async def on_volume(client: Client, files: dict[str, bytes], volume: str) -> dict[str, tuple[int, int]]:
    """Path -> (extent, offset) of the files that have a good location on this volume."""
    found = {}
    for path in files:
        (segment,) = (await client.stat(NAMESPACE, path)).segments
        for location in segment.locations:
            if location.volume == volume and location.state == "good":
                found[path] = (segment.extent, location.offset)
    return found


async def test_a_backup_copies_what_is_new_and_a_second_one_copies_nothing(
    cluster: RealCluster, client: Client
) -> None:
    """The copy nodes are away while files are stored, so that there is debt for a backup to pay."""
    await client.wait_copied(timeout_s=60)
    before = await cluster.pulled_bytes()
    for node in ("node4", "node5"):
        await cluster.stop(node)
    files = some_files("backup", 60, seed=1)
    await client.put_many(NAMESPACE, files.items())
    for node in ("node4", "node5"):
        await cluster.cont(node)
    first = json.loads((await cluster.cli("backup", "pool", "primary", "--json")).out)
    assert first["state"] == "done"
    after = await cluster.pulled_bytes()
    payload = sum(len(content) for content in files.values())
    assert after - before >= payload
    assert not (await client.status()).debt_bytes

    shown = json.loads((await cluster.cli("process", "list", "--json")).out)["items"]
    assert (first["id"], "backup", "done") in [(item["id"], item["verb"], item["state"]) for item in shown]
    assert json.loads((await cluster.cli("process", "show", first["id"], "--json")).out) == first
    below = await cluster.cli("restore", "--namespace", NAMESPACE, "--prefix", "backup", "--preview", "--json")
    assert (below.code, json.loads(below.out)["extents"]) == (0, 0), below
    assert (await cluster.cli("process", "show", "nonsense")).code == 5

    second = await cluster.cli("backup", "pool", "primary")
    assert (second.code, b"nothing to copy: 0 bytes" in second.out) == (0, True)
    assert await cluster.pulled_bytes() == after


async def test_an_audit_finds_every_flipped_extent_while_clients_read_and_write(
    cluster: RealCluster, client: Client
) -> None:
    files = await several_extents(client, "audit", seed=10)
    await client.wait_copied(timeout_s=60)
    await until(lambda: cluster.is_green(client), "all is proven", within_s=60)
    volumes = {volume.name: await on_volume(client, files, volume.name) for volume in await client.volumes()}
    volume, held = max(
        ((name, held) for name, held in volumes.items() if name in ("node4-a", "node5-a")), key=lambda it: len(it[1])
    )
    # Most of these extents are still open: the audit seals them, and what went bad before that counts as well.
    extents = dict(held.values())
    for extent, offset in extents.items():
        cluster.flip(volume.removesuffix("-a"), extent, offset + 70_000)

    readers = Readers(client, files)
    async with working(readers, count=2):
        running = await client.operator.start(ProcessRequest("audit", volume=volume, fix=True))
        await client.put_many(NAMESPACE, some_files("audit/meanwhile", 30, seed=3).items())
        ended = await done(client, running.id)
    assert readers.failures == []
    assert (ended.state, ended.found_damaged) == ("done", len(extents))
    assert "and mended" in ended.outcome
    again = await cluster.cli("audit", "volume", volume, "--json")
    assert (again.code, json.loads(again.out)["found_damaged"]) == (0, 0)
    assert await all_read_back(client, files) == []


async def test_a_move_a_restore_and_an_audit_together_under_reads() -> None:
    """On a cluster of its own, for it loses nodes for good."""
    with real_cluster(SIZES) as cluster:
        async with cluster.client() as client:
            await check_together(cluster, client)


async def check_together(cluster: RealCluster, client: Client) -> None:
    """Any pair is safe: one primary volume is emptied, another one is lost and rebuilt, a copy volume is read back."""
    files = some_files("together", 60, seed=5) | await several_extents(client, "together/large", seed=20)
    await client.put_many(NAMESPACE, some_files("together", 60, seed=5).items())
    await client.wait_copied(timeout_s=60)
    await until(lambda: cluster.is_green(client), "all is proven", within_s=60)

    previewed = await client.operator.preview(ProcessRequest("restore", node="node1"))
    dry = json.loads((await cluster.cli("drain", "node", "node2", "--dry-run", "--json")).out)
    assert (dry["blocked_extents"], previewed.blocked_extents) == (0, 0)
    assert set(previewed.sources) <= {"node2-a", "node3-a", "node4-a", "node5-a"}

    readers = Readers(client, files)
    async with working(readers, count=2):
        await until(lambda: readers.read_beyond(50), "readers are in the middle of it", within_s=60)
        await cluster.kill("node1")
        started = [
            await client.operator.start(request)
            for request in (
                ProcessRequest("restore", node="node1"),
                ProcessRequest("drain", node="node2"),
                ProcessRequest("audit", volume="node4-a"),
            )
        ]
        ended = [await done(client, process.id) for process in started]
        assert [process.state for process in ended] == ["done", "done", "done"], ended
        assert ended[0].total_bytes >= previewed.bytes, "what was restored is what was foretold"

        # Safe to stop means just that.
        await cluster.terminate("node2")
        at_stop = readers.reads
        await until(lambda: readers.read_beyond(at_stop + len(files)), "everything is read once more", within_s=60)
    assert readers.failures == []
    assert await all_read_back(client, files) == []
    volumes = {volume.name: volume for volume in await client.volumes()}
    assert volumes["node1-a"].extents == 0, "nothing is on the lost volume any more"
    removed = await cluster.cli("delete", "volume", "node1-a", "--yes")
    assert removed.code == 0, removed
    assert "node1-a" not in {volume.name for volume in await client.volumes()}
    assert await until(lambda: cluster.is_green(client), "status is green", within_s=60)

    # The last holder of something is not given away, and what would die is listed.
    for volume in ("node4-a", "node5-a"):
        assert (await cluster.cli("volume", "update", volume, "--access", "unavailable")).code == 0
    refused = await cluster.cli("delete", "volume", "node3-a", "--discard-data", "--yes", "--json")
    error = json.loads(refused.err)
    assert (refused.code, error["code"]) == (6, "conflict"), refused
    assert "may have bytes that are only on volume" in error["message"]
    assert volumes["node3-a"].extents > 0
    listed = await cluster.cli("delete", "volume", "node3-a", "--preview")
    assert (listed.code, b"refused as it is: volume 'node3-a'" in listed.out) == (0, True), listed
    assert b"would die   0 extents" not in listed.out
    assert await all_read_back(client, files) == []
