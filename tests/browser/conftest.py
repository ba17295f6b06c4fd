"""One real cluster and one browser per module, on a loop that lives as long; what the tests of the dashboard share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect

from copypool import Client
from kit.browser import WITHIN_MS, chromium
from kit.cluster import RealCluster, real_cluster

expect.set_options(timeout=WITHIN_MS)


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[RealCluster]:
    with real_cluster() as cluster:
        yield cluster


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="module")
async def cluster(shared_cluster: RealCluster) -> AsyncIterator[RealCluster]:
    yield shared_cluster
    await shared_cluster.heal()


@pytest_asyncio.fixture(loop_scope="module")
async def client(cluster: RealCluster) -> AsyncIterator[Client]:
    async with cluster.client() as client:
        yield client


@pytest.fixture
def url(shared_cluster: RealCluster) -> str:
    return f"{shared_cluster.plan.of('coordinator')[0].url}/ui"


@pytest.fixture
def token(shared_cluster: RealCluster) -> str:
    return shared_cluster.layout.admin_token.read_text().strip()
