"""etcd is gone: names cannot be looked up and say so at once, what runs goes on, and all resumes by itself."""

from __future__ import annotations

import random
import time

import pytest

from copypool import Client
from copypool.protocol.errors import CatalogDown
from kit.cluster import RealCluster, until
from kit.workload import NAMESPACE

MIB = 1024 * 1024


async def test_without_etcd_lookups_fail_fast_streams_go_on_and_everything_resumes(
    cluster: RealCluster, client: Client
) -> None:
    content = random.Random(8).randbytes(24 * MIB)
    await client.put(NAMESPACE, "down/large", content)
    await client.put(NAMESPACE, "down/small", b"small")

    async with await client.open(NAMESPACE, "down/large") as stream:
        pieces = aiter(stream)
        received = bytearray(await anext(pieces))
        await cluster.kill("etcd1")

        started = time.monotonic()
        with pytest.raises(CatalogDown):
            await client.get(NAMESPACE, "down/small")
        assert time.monotonic() - started < 10  # the SDK waits out an election, no longer

        async for piece in pieces:
            received += piece
    assert received == content

    await cluster.start("etcd1")

    async def resumed() -> bool:
        await client.put(NAMESPACE, "down/after", b"after")
        return await client.get(NAMESPACE, "down/small") == b"small"

    await until(resumed, "everything resumes by itself", within_s=30)
    await client.wait_copied(timeout_s=30)
