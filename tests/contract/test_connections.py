"""Connections are bounded: who comes when all are taken is cut off, and finds room once another one has left."""

from __future__ import annotations

import asyncio
from pathlib import Path

from copypool.serving.heads import Asked
from kit.catalog_world import shared_etcd
from kit.coordinator_process import ADMIN, running_coordinator
from kit.eventually import eventually
from kit.fake_coordinator import running
from kit.node_process import quick_limits, running_node

GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"


async def connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = url.removeprefix("http://").partition(":")
    return await asyncio.open_connection(host, int(port))


async def answered(url: str) -> bool:
    """Whether a new connection gets an answer; False: it was cut off."""
    reader, writer = await connect(url)
    try:
        writer.write(GET)
        async with asyncio.timeout(60):
            return (await reader.read(12)).startswith(b"HTTP/1.1 200")
    except ConnectionError:
        return False
    finally:
        writer.close()


async def fill(url: str, limit: int) -> list[asyncio.StreamWriter]:
    """Connections that are served, until there are `limit` of them."""
    writers = []
    for _ in range(limit):
        reader, writer = await connect(url)
        writer.write(GET)
        assert (await reader.read(12)).startswith(b"HTTP/1.1 200")
        writers.append(writer)
    return writers


async def check_bound(url: str, limit: int) -> None:
    """Fill all places, be cut off, leave one place, be served."""
    writers = await fill(url, limit)
    try:
        assert not await answered(url)
        writers.pop().close()

        async def served() -> bool:
            return await answered(url)

        await eventually(served, "the place that was left is given to the next")
    finally:
        for writer in writers:
            writer.close()


async def test_a_node_cuts_off_who_comes_when_all_connections_are_taken(tmp_path: Path) -> None:
    async with running() as fake, running_node(tmp_path, fake, limits=quick_limits(connections=4)) as node:
        await check_bound(node.url, 4)


async def test_a_coordinator_cuts_off_who_comes_when_all_connections_are_taken() -> None:
    with shared_etcd() as endpoint:
        async with running_coordinator(endpoint, limits={"connections": 4}) as coordinator:
            await coordinator.http.close()
            await check_bound(coordinator.url, 4)


async def test_requests_that_come_in_one_turn_of_the_loop_keep_to_the_bound_of_requests_in_work() -> None:
    with shared_etcd() as endpoint:
        async with running_coordinator(endpoint, limits={"requests": 2}) as coordinator:
            front = coordinator.coordinator._front
            asked = Asked("GET", "/v1/files/default/none", {"Authorization": f"Bearer {ADMIN}"})
            found = [front.shortcut(asked) for _ in range(5)]  # as of five connections whose bytes came together
            told = await asyncio.gather(*[answering(asked) for answering in found if answering is not None])
            assert sorted(one.status for one in told if one is not None) == [404, 404, 429, 429, 429]
