"""Processes that end `done`, or say why not, on real processes: rebalance, drain, move, restore, bytes bad twice.

What is not needed any more is deleted after 2 s here instead of 330 s.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import pytest

from copypool import Client
from copypool.protocol.processes import ProcessRequest
from kit.cluster import QUICK, RealCluster, real_cluster, until
from kit.workload import NAMESPACE, all_read_back

MIB = 1024 * 1024
EXTENTS = 8
SURPLUS_BYTES = 9 * MIB  #: three of the eight at least, in however many extents they are
LIMIT = 100 * MIB
TUNING = msgspec.structs.replace(QUICK, drop_delay_s=2)
PRIMARIES, COPIES = ("node1-a", "node2-a"), ("node3-a", "node4-a")


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[RealCluster]:
    """Two primary and two copy nodes."""
    with real_cluster(tuning=TUNING) as cluster:
        yield cluster


@pytest.fixture
async def cluster(shared_cluster: RealCluster) -> AsyncIterator[RealCluster]:
    """Every story leaves the cluster whole: all its volumes take bytes."""
    yield shared_cluster
    for volume in PRIMARIES:
        await shared_cluster.cli("move", "data", volume, "--end")
        assert (await shared_cluster.cli("volume", "update", volume, "--access", "readwrite", "--limit", "0")).code == 0


@pytest.fixture
async def client(cluster: RealCluster) -> AsyncIterator[Client]:
    async with cluster.client() as client:
        yield client


async def several_extents(client: Client, prefix: str, seed: int) -> dict[str, bytes]:
    """Files of some MiB, stored at once: each holds an extent of its own meanwhile, most have one for themselves."""
    files = {f"{prefix}/{number}": random.Random(seed + number).randbytes(3 * MIB) for number in range(EXTENTS)}
    await asyncio.gather(*(client.put(NAMESPACE, path, content) for path, content in files.items()))
    return files


async def green(cluster: RealCluster, client: Client) -> None:
    await until(lambda: cluster.is_green(client), "status is green", within_s=60)


async def run(cluster: RealCluster, *command: str, code: int = 0) -> dict[str, Any]:
    """Run a verb to its end; how it ended."""
    ended = await cluster.cli(*command, "--json")
    assert ended.code == code, ended
    found = json.loads(ended.out)
    assert isinstance(found, dict)
    return found


async def extents_on(client: Client, volume: str) -> int:
    return {each.name: each.extents for each in await client.volumes()}[volume]


async def test_a_rebalance_moves_the_surplus_and_ends_done(cluster: RealCluster, client: Client) -> None:
    assert (await cluster.cli("volume", "update", "node2-a", "--access", "readonly")).code == 0
    files = await several_extents(client, "rebalance", seed=1)
    for volume in PRIMARIES:
        assert (await cluster.cli("volume", "update", volume, "--limit", str(LIMIT))).code == 0
    assert (await cluster.cli("volume", "update", "node2-a", "--access", "readwrite")).code == 0
    await green(cluster, client)
    request = ProcessRequest("rebalance", pool="primary")

    async def sealed_surplus() -> bool:
        return (await client.operator.preview(request)).bytes >= SURPLUS_BYTES

    await until(sealed_surplus, "the surplus is known", within_s=60)
    ended = await run(cluster, "rebalance", "primary")
    assert ended["state"] == "done", ended
    assert ended["done_bytes"] >= SURPLUS_BYTES

    async def moved() -> bool:
        return {each.name: each.stored_bytes for each in await client.volumes()}["node2-a"] >= SURPLUS_BYTES

    await until(moved, "the other volume tells of what came to it", within_s=60)
    await green(cluster, client)

    async def even() -> bool:
        return (await client.operator.preview(request)).bytes == 0

    await until(even, "nothing is left to move once the nodes have told their sizes", within_s=60)
    assert await all_read_back(client, files) == []


async def test_a_drain_ends_done_and_after_its_end_new_data_is_copied_at_once(
    cluster: RealCluster, client: Client
) -> None:
    files = await several_extents(client, "drain", seed=2)
    ended = await run(cluster, "drain", "node", "node1")
    assert ended["state"] == "done", ended
    await green(cluster, client)
    # Nothing but the other primary volume is left, so this one goes nowhere: that is said, and nothing is begun.
    refused = await cluster.cli("drain", "node", "node2", "--json")
    assert refused.code == 6, refused
    assert (refused.code, "nothing was begun" in json.loads(refused.err)["message"]) == (6, True), refused
    assert (await cluster.cli("drain", "node", "node1", "--end")).code == 0
    new = await several_extents(client, "after", seed=3)
    assert (await client.wait_copied(timeout_s=60)).done
    assert await all_read_back(client, files | new) == []


async def test_a_move_and_then_a_restore_of_its_destination_end_done(cluster: RealCluster, client: Client) -> None:
    files = await several_extents(client, "move", seed=4)
    ended = await run(cluster, "move", "data", "node2-a")
    assert ended["state"] == "done", ended
    assert (await cluster.cli("move", "data", "node2-a", "--end")).code == 0

    ended = await run(cluster, "restore", "volume", "node1-a", "--yes")
    assert ended["state"] == "done", ended

    async def all_on_the_other() -> bool:
        return await extents_on(client, "node1-a") == 0 < await extents_on(client, "node2-a")

    await until(all_on_the_other, "every coordinator knows", within_s=60)
    assert await all_read_back(client, files) == []


async def test_bytes_that_are_bad_twice_are_named_by_the_restore_that_cannot_make_them() -> None:
    """On a cluster of its own, for it loses bytes for good."""
    with real_cluster(tuning=msgspec.structs.replace(TUNING, process_patience_s=10)) as cluster:
        async with cluster.client() as client:
            await check_bad_twice(cluster, client)


async def check_bad_twice(cluster: RealCluster, client: Client) -> None:
    files = await several_extents(client, "twice", seed=5)
    await green(cluster, client)
    (segment,) = (await client.stat(NAMESPACE, "twice/0")).segments
    places = {location.volume: location.offset for location in segment.locations}
    (primary,) = set(places) & set(PRIMARIES)
    assert len(places) == 2
    for volume, offset in places.items():
        cluster.flip(volume.removesuffix("-a"), segment.extent, offset + 70_000)

    ended = await run(cluster, "restore", "volume", primary, "--yes", code=3)
    assert (ended["state"], ended["skipped_total"]) == ("incomplete", 1), ended
    ((extent, _, _, why),) = ended["skipped"]
    assert extent == segment.extent
    assert any(volume in why for volume in COPIES), why
    del files["twice/0"]
    assert await all_read_back(client, files) == []
