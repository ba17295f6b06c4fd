"""Three etcd members: any one of them may be killed, and writes and reads go on."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from copypool.dev.layout import Sizes
from kit.cluster import RealCluster, real_cluster, until
from kit.workload import Writers, all_read_back, working


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[RealCluster]:
    with real_cluster(Sizes(etcd=3, coordinators=2, primary_nodes=2, copy_nodes=1)) as cluster:
        yield cluster


async def test_writes_go_on_without_any_one_member(cluster: RealCluster) -> None:
    async with cluster.client() as client:
        writers = Writers(client, "quorum")
        async with working(writers, count=4):
            # One of the three leads, so each of them being lost covers that one.
            for member in ("etcd1", "etcd2", "etcd3"):
                await cluster.kill(member)
                more = partial(writers.acked_beyond, len(writers.acked) + 50)
                await until(more, f"writes go on without {member}", within_s=60)
                await cluster.start(member)
        assert await all_read_back(client, writers.acked) == []
        await until(lambda: cluster.is_green(client), "status is green again", within_s=60)
