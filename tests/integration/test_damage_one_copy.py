"""With one copy node a damaged copy is replaced on its own volume; meanwhile its good blocks are needed (A15)."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from copypool import Client
from copypool.dev.layout import Sizes
from copypool.protocol.stripes import STRIPE_BYTES
from kit.cluster import RealCluster, real_cluster, until
from kit.workload import NAMESPACE


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[RealCluster]:
    with real_cluster(Sizes(copy_nodes=1)) as cluster:
        yield cluster


async def happened(client: Client, extent: int) -> set[tuple[str, str]]:
    """Kinds of the extent's events, with their volumes."""
    return {(event.kind, event.volume) async for event in client.events() if event.extent == extent}


async def test_a_damaged_copy_serves_its_good_blocks_while_its_replacement_grows(
    cluster: RealCluster, client: Client
) -> None:
    content = random.Random(12).randbytes(5 * STRIPE_BYTES)
    await client.put(NAMESPACE, "both", content)
    await client.wait_copied(timeout_s=60)
    (segment,) = (await client.stat(NAMESPACE, "both")).segments
    (primary,) = [location for location in segment.locations if location.pool_type == "primary"]
    (copy,) = [location for location in segment.locations if location.pool_type == "copy"]
    assert (await cluster.cli("audit", "volume", copy.volume)).code == 0, "sealed, and clean so far"

    cluster.flip(copy.node, segment.extent, copy.offset + 15_000_000)
    cluster.flip(primary.node, segment.extent, primary.offset + 6_000_000)
    # It reads the copy only: the replacement of the copy meets the primary's bad block half-way.
    found = await cluster.cli("audit", "volume", copy.volume, "--no-wait")
    assert found.code == 0, found

    async def marked() -> bool:
        """From now on, and not before, green means that it was mended."""
        assert await client.get(NAMESPACE, "both") == content
        return ("LocationDamaged", copy.volume) in await happened(client, segment.extent)

    await until(marked, "the copy is found to be damaged", within_s=60)

    async def mended() -> bool:
        assert await client.get(NAMESPACE, "both") == content
        return await cluster.is_green(client)

    await until(mended, "both are mended, and every read meanwhile is right", within_s=90)


async def test_a_rotten_source_of_a_repair_is_found_without_any_reader(cluster: RealCluster, client: Client) -> None:
    content = random.Random(13).randbytes(5 * STRIPE_BYTES)
    await client.put(NAMESPACE, "unread", content)
    await client.wait_copied(timeout_s=60)
    (segment,) = (await client.stat(NAMESPACE, "unread")).segments
    (primary,) = [location for location in segment.locations if location.pool_type == "primary"]
    (copy,) = [location for location in segment.locations if location.pool_type == "copy"]
    assert (await cluster.cli("audit", "volume", copy.volume)).code == 0
    cluster.flip(copy.node, segment.extent, copy.offset + 15_000_000)
    cluster.flip(primary.node, segment.extent, primary.offset + 6_000_000)

    assert (await cluster.cli("audit", "volume", copy.volume, "--no-wait")).code == 0

    async def primary_marked() -> bool:
        return ("LocationDamaged", primary.volume) in await happened(client, segment.extent)

    await until(primary_marked, "the puller's finding makes the source verify itself", within_s=60)
    await until(lambda: cluster.is_green(client), "both are mended", within_s=60)
    assert await client.get(NAMESPACE, "unread") == content
