"""One block that is bad on every location costs the files in it; the way out that is told for the others works."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest

from copypool import Client
from copypool.protocol.errors import DataLost
from kit.cluster import RealCluster, until
from kit.workload import NAMESPACE


async def test_files_beside_a_lost_block_are_protected_again_once_they_are_stored_again(
    cluster: RealCluster, client: Client
) -> None:
    contents = {f"beside/{number:02}": random.Random(number).randbytes(200_000) for number in range(12)}
    for path, content in contents.items():
        await client.put(NAMESPACE, path, content)
    await client.wait_copied(timeout_s=60)
    by_extent: defaultdict[int, list[tuple[int, str]]] = defaultdict(list)
    for path in contents:
        (segment,) = (await client.stat(NAMESPACE, path)).segments
        by_extent[segment.extent].append((segment.offset, path))
    extent, there = max(by_extent.items(), key=lambda item: len(item[1]))
    assert len(there) >= 3, by_extent
    paths = [path for _, path in sorted(there)]
    lost = paths[len(paths) // 2]
    (segment,) = (await client.stat(NAMESPACE, lost)).segments
    volumes = [location.volume for location in segment.locations]
    for location in segment.locations:
        cluster.flip(location.node, extent, location.offset + 100_000)
    for volume in volumes:
        assert (await cluster.cli("audit", "volume", volume, "--no-wait")).code == 0

    async def told() -> str:
        found = (await client.status()).reasons
        return next((reason for reason in found if "extents hold lost bytes" in reason), "")

    said = await until(told, "status says that bytes are lost", within_s=60)
    assert "store the readable files of the extent again" in said

    async def named_lost() -> bool:
        listed = {file.path: file.outlook async for _, file in client.insight.damaged_files([NAMESPACE])}
        return listed.get(lost) == "lost" and "lost" not in {listed.get(path) for path in paths if path != lost}

    await until(named_lost, "the one file that is lost is named, and no other", within_s=60)
    with pytest.raises(DataLost, match="`copypool status` says what to do"):
        await client.get(NAMESPACE, lost)
    explained = await client.insight.explain(NAMESPACE, lost)
    assert explained.segments[0].lacks[0].startswith("it is lost: the block at offset")
    for path in paths:
        if path != lost:
            content = await client.get(NAMESPACE, path)
            assert content == contents[path], "readable, on this side of the block or on that"
            await client.put(NAMESPACE, path, content)
    await client.delete(NAMESPACE, lost)

    async def protected() -> bool:
        return all([(await client.insight.explain(NAMESPACE, path)).policy_met for path in paths if path != lost])

    await until(protected, "what was stored again is where policy says", within_s=60)
    listed = [file.path async for _, file in client.insight.damaged_files([NAMESPACE])]
    assert listed == [], "no file is concerned any more"

    async def only_marked() -> bool:
        left = await client.status()
        return left.holed_extents == 1 and any("but no file that is left" in reason for reason in left.reasons)

    await until(only_marked, "the old extent stays marked, and status says that nothing is to be done", within_s=60)
