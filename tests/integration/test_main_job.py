"""Store, copy incrementally, lose the primary, read on, rebuild: the job that everything else stands on."""

from __future__ import annotations

import random

from copypool import Client
from kit.cluster import RealCluster, until
from kit.workload import NAMESPACE, Readers, all_read_back, some_files, working

MIB = 1024 * 1024
#: Headers, checksum tables and footers: what a small record needs on disk beside its bytes, at most.
RECORD_OVERHEAD_BYTES = 1024


async def test_a_stored_file_is_soon_in_a_copy_pool_on_another_node(cluster: RealCluster, client: Client) -> None:
    content = random.Random(1).randbytes(300_000)
    stored = await client.put(NAMESPACE, "first/file", content)
    await client.wait_copied(timeout_s=60)

    shown = await client.stat(NAMESPACE, "first/file")
    assert (shown.version, shown.size, shown.digest) == (stored.version, len(content), stored.digest)
    for segment in shown.segments:
        good = [location for location in segment.locations if location.state == "good"]
        assert {location.pool_type for location in good} == {"primary", "copy"}
        assert len({location.node for location in good}) == len(good)
        assert all(location.length == segment.length for location in good)


async def test_a_second_pass_copies_nothing_and_new_files_exactly_themselves(
    cluster: RealCluster, client: Client
) -> None:
    await client.put_many(NAMESPACE, some_files("pass/one", 200, seed=2).items())
    await client.wait_copied(timeout_s=60)
    after_first = await cluster.pulled_bytes()

    await client.wait_copied(timeout_s=60)
    assert await cluster.pulled_bytes() == after_first

    new = some_files("pass/two", 50, seed=3)
    await client.put_many(NAMESPACE, new.items())
    await client.wait_copied(timeout_s=60)
    pulled = await cluster.pulled_bytes() - after_first
    payload = sum(len(content) for content in new.values())
    # A new extent brings its 4 KiB header with it; how many there are is a matter of pace.
    extents = {segment.extent for path in new for segment in (await client.stat(NAMESPACE, path)).segments}
    assert payload <= pulled <= payload + len(new) * RECORD_OVERHEAD_BYTES + len(extents) * 4096


async def test_a_primary_node_killed_in_the_middle_of_reads_fails_none_of_them(
    cluster: RealCluster, client: Client
) -> None:
    files = some_files("killed", 150, seed=4)
    files["killed/large"] = random.Random(5).randbytes(40 * MIB)
    await client.put_many(NAMESPACE, files.items())
    await client.wait_copied(timeout_s=60)

    readers = Readers(client, files)
    async with working(readers, count=4):
        await until(lambda: readers.read_beyond(100), "readers are in the middle of it", within_s=60)
        await cluster.kill("node1")
        at_kill = readers.reads
        await until(lambda: readers.read_beyond(at_kill + 3 * len(files)), "everything was read again", within_s=60)
    assert readers.failures == []

    # Rebuilt by itself on the primary node that is left, and proven.
    async def rebuilt() -> bool:
        shown = [await client.stat(NAMESPACE, path) for path in ("killed/00001.bin", "killed/large")]
        return all(
            any(
                location.node == "node2" and location.pool_type == "primary" and location.state == "good"
                for location in segment.locations
            )
            for stat in shown
            for segment in stat.segments
        )

    await until(rebuilt, "lost primaries are rebuilt on node2", within_s=60)
    await until(lambda: cluster.is_green(client), "status is green again", within_s=60)
    assert await all_read_back(client, files) == []
