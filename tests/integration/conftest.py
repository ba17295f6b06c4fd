"""One real cluster per module; every test finds it whole and leaves it so."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from copypool import Client
from kit.cluster import RealCluster, real_cluster, until


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[RealCluster]:
    with real_cluster() as cluster:
        yield cluster


@pytest.fixture
async def cluster(shared_cluster: RealCluster) -> AsyncIterator[RealCluster]:
    yield shared_cluster
    await shared_cluster.heal()
    async with shared_cluster.client() as client:
        await until(lambda: shared_cluster.is_at_rest(client), "no process runs any more", within_s=60)


@pytest.fixture
async def client(cluster: RealCluster) -> AsyncIterator[Client]:
    async with cluster.client() as client:
        yield client
