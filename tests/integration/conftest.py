"""One real cluster per module; every test finds it whole and leaves it so."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from copypool import Client
from kit.cluster import RealCluster, real_cluster


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[RealCluster]:
    with real_cluster() as cluster:
        yield cluster


@pytest.fixture
async def cluster(shared_cluster: RealCluster) -> AsyncIterator[RealCluster]:
    yield shared_cluster
    await shared_cluster.heal()


@pytest.fixture
async def client(cluster: RealCluster) -> AsyncIterator[Client]:
    async with cluster.client() as client:
        yield client
