"""etcd is gone: names cannot be looked up and say so at once, what runs goes on, and all resumes by itself."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable

import aiohttp
import pytest
from yarl import URL

from copypool import Client
from copypool.protocol.errors import CatalogDown, OutcomeUnknown
from copypool.writing import WRITE_DEADLINE_S
from kit.cluster import RealCluster, until
from kit.workload import NAMESPACE

MIB = 1024 * 1024
STOP_S = 30.0  #: from SIGTERM to SIGKILL
#: An etcd election is waited out, at the node and in the SDK (3 s together); a call that does not know etcd to be away
#: goes on to its deadline.
FAST_S = WRITE_DEADLINE_S / 2


async def timed(work: Awaitable[object]) -> float:
    """Seconds until it ends with `CatalogDown`."""
    started = time.monotonic()
    with pytest.raises(CatalogDown):
        await work
    return time.monotonic() - started


async def test_without_etcd_every_write_says_so_fast_and_all_resumes(cluster: RealCluster, client: Client) -> None:
    """Through leases from before and new ones, the SDK, the command line and plain HTTP."""
    await client.put(NAMESPACE, "away/kept", b"kept")
    admin = {"Authorization": f"Bearer {cluster.layout.admin_token.read_text().strip()}"}
    files = f"{cluster.plan.process('coordinator1').url}/v1/files/{NAMESPACE}"
    async with aiohttp.ClientSession(headers=admin) as session:
        async with session.put(f"{files}/away/plain", data=b"x", allow_redirects=False) as response:
            redirect = response.headers["Location"]
        await cluster.kill("etcd1")

        async def known() -> bool:
            """A write that meets the dying etcd may have been applied for all that anybody knows, and says so."""
            try:
                await client.put(NAMESPACE, "away/first", b"x")
            except OutcomeUnknown:
                return False
            except CatalogDown:
                return True
            raise AssertionError("a write was acknowledged without etcd")

        await until(known, "the loss of etcd is known", within_s=60)
        assert await timed(client.put(NAMESPACE, "away/put", b"x")) < FAST_S
        assert await timed(client.put(NAMESPACE, "away/large", bytes(2 * MIB))) < FAST_S
        assert await timed(client.delete(NAMESPACE, "away/kept")) < FAST_S
        assert await timed(client.put_many(NAMESPACE, [("away/m1", b"1"), ("away/m2", b"2")])) < FAST_S
        async with cluster.client() as fresh:
            assert await timed(fresh.put(NAMESPACE, "away/fresh", b"x")) < FAST_S
        for method, url in (
            ("PUT", redirect),
            ("PUT", f"{files}/away/plain"),
            ("DELETE", f"{files}/away/kept"),
        ):
            started = time.monotonic()
            async with session.request(method, URL(url, encoded=True), data=b"x") as response:
                assert (response.status, (await response.json())["code"]) == (503, "catalog_down"), url
            assert time.monotonic() - started < FAST_S
        stored = await cluster.cli("put", "-", f"{NAMESPACE}/away/cli", stdin=b"x")
        assert (stored.code, "etcd" in stored.err) == (7, True), stored

        started = time.monotonic()
        await asyncio.to_thread(cluster.supervisor.terminate, "node1", STOP_S)
        assert time.monotonic() - started < STOP_S, "it had to be killed"
        await cluster.start("etcd1")
        await cluster.start("node1")

    async def resumed() -> bool:
        await client.put(NAMESPACE, "away/again", b"again")
        return await client.get(NAMESPACE, "away/kept") == b"kept"

    await until(resumed, "everything resumes by itself", within_s=60)
    listed = {entry.path async for entry in client.list(NAMESPACE, "away/")}
    assert listed - {"away/first"} == {"away/kept", "away/again"}


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
        assert time.monotonic() - started < FAST_S
        shown = await cluster.cli("status")
        assert (shown.code, b"catalog_down" in shown.out.splitlines()[0]) == (3, True), shown

        async for piece in pieces:
            received += piece
    assert received == content

    await cluster.start("etcd1")

    async def resumed() -> bool:
        await client.put(NAMESPACE, "down/after", b"after")
        return await client.get(NAMESPACE, "down/small") == b"small"

    await until(resumed, "everything resumes by itself", within_s=60)
    await client.wait_copied(timeout_s=60)
