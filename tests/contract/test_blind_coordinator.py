"""A coordinator that cannot follow the catalog any more ends: it does not go on with a memory that grows stale."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from copypool.protocol.errors import BrokenInvariant
from copypool_coordinator import keys
from copypool_coordinator.etcd import put
from kit.catalog_world import World, catalog_world, shared_etcd


@pytest.fixture
async def world() -> AsyncIterator[World]:
    with shared_etcd() as endpoint:
        async with catalog_world(endpoint) as made:
            yield made


async def test_a_row_that_it_cannot_read_ends_it(world: World) -> None:
    blinded = asyncio.create_task(world.catalog.blinded())
    waits = asyncio.create_task(world.catalog.wait_for(lambda _: False, 60.0))
    await world.etcd.txn([], [put(keys.named(keys.POOL, "from-the-future"), b"no row of ours")])
    async with asyncio.timeout(60):
        with pytest.raises(BrokenInvariant, match=r"from-the-future.*a newer release wrote it.*blind"):
            await blinded
        with pytest.raises(BrokenInvariant, match="blind"):
            await waits
    with pytest.raises(BrokenInvariant):
        await world.catalog.wait_for(lambda _: False, 1.0)
