"""A location that was not needed any more is needed again, for the others went bad: on real processes."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator

import pytest

from copypool import Client
from kit.cluster import RealCluster, real_cluster, until
from kit.workload import NAMESPACE, all_read_back

MIB = 1024 * 1024


@pytest.fixture
def cluster() -> Iterator[RealCluster]:
    """Two primary and two copy nodes; what is dropped stays for 330 s."""
    with real_cluster() as cluster:
        yield cluster


@pytest.fixture
async def client(cluster: RealCluster) -> AsyncIterator[Client]:
    async with cluster.client() as client:
        yield client


async def states(client: Client, path: str) -> dict[str, str]:
    """Volume -> state of the location that holds this one-segment file."""
    (segment,) = (await client.stat(NAMESPACE, path)).segments
    return {location.volume: location.state for location in segment.locations}


async def happened(cluster: RealCluster, kind: str) -> bool:
    """Whether the log has events of this kind."""
    answer = await cluster.cli("events", "--kind", kind)
    assert answer.code == 0, answer.err
    return kind.encode() in answer.out


async def test_bytes_that_go_bad_on_both_survivors_are_saved_by_the_location_that_was_to_go(
    cluster: RealCluster, client: Client
) -> None:
    """A node is lost, rebuilt elsewhere, back: what it has is `dropping`. Then both others rot in the same block."""
    files = {"rot": random.Random(1).randbytes(3 * MIB)}
    await client.put(NAMESPACE, "rot", files["rot"])
    await client.wait_copied(timeout_s=60)
    await until(lambda: cluster.is_green(client), "all is proven", within_s=60)
    (old,) = [volume for volume in await states(client, "rot") if volume in ("node1-a", "node2-a")]
    node = old.removesuffix("-a")
    await cluster.kill(node)

    async def rebuilt() -> bool:
        found = await states(client, "rot")
        return sum(state == "good" for volume, state in found.items() if volume != old) == 2

    await until(rebuilt, "the lost primary is rebuilt", within_s=60)
    await cluster.start(node)

    async def leaves() -> bool:
        return (await states(client, "rot"))[old] == "dropping"

    await until(leaves, "what came back is not needed", within_s=60)
    (segment,) = (await client.stat(NAMESPACE, "rot")).segments
    survivors = {each.volume: each.offset for each in segment.locations if each.volume != old}
    for volume, offset in survivors.items():
        cluster.flip(volume.removesuffix("-a"), segment.extent, offset + 70_000)
    for volume in survivors:
        begun = await cluster.cli("audit", "volume", volume, "--no-wait")
        assert begun.code == 0, begun

    async def kept() -> bool:
        return (await states(client, "rot"))[old] == "good"

    await until(kept, "the drop is called off", within_s=60)
    await until(lambda: cluster.is_green(client), "the others are made again from it", within_s=60)
    assert await all_read_back(client, files) == []
    await until(lambda: happened(cluster, "DropCalledOff"), "the log tells of it", within_s=60)
