"""What many of these tests stand on: a real etcd for each module, emptied for each test, and what runs on it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from kit.catalog_world import World, catalog_world, shared_etcd
from kit.coordinator_process import PlayedNode, Running, running_coordinator


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with shared_etcd() as found:
        yield found


@pytest.fixture
async def world(endpoint: str) -> AsyncIterator[World]:
    async with catalog_world(endpoint) as made:
        yield made


@pytest.fixture
async def coordinator(endpoint: str) -> AsyncIterator[Running]:
    # Nobody renews the sessions of nodes that a test plays: they have to outlast it.
    async with running_coordinator(endpoint, session_ttl_s=300) as running:
        yield running


@pytest.fixture
async def node(coordinator: Running) -> AsyncIterator[PlayedNode]:
    """A node with a session and an open extent, played by the test."""
    played = await PlayedNode.join(coordinator, "n1")
    try:
        await played.open()
        yield played
    finally:
        await played.close()
