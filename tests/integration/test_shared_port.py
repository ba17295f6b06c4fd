"""Two coordinators behind one port: connections are spread, and who has that address alone misses neither of them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest

from copypool import Client
from copypool.dev.layout import OPERATOR
from copypool.dev.probes import counter
from copypool.protocol.errors import CopypoolError
from copypool_coordinator.metrics import REQUESTS
from kit.cluster import RealCluster, until

FILES = 50
READERS = 16


@asynccontextmanager
async def client_of_the_shared_address(cluster: RealCluster) -> AsyncIterator[Client]:
    """An SDK client that knows no other address."""
    token = cluster.layout.admin_token.read_text().strip()
    async with await Client.connect(coordinators=[cluster.plan.shared_url], token=token) as client:
        yield client


@pytest.fixture
async def client(cluster: RealCluster) -> AsyncIterator[Client]:
    async with client_of_the_shared_address(cluster) as client:
        yield client


async def status_of(url: str) -> int:
    """Of a GET over a connection of its own."""
    async with aiohttp.ClientSession() as http, http.get(url) as response:
        return response.status


async def answered_by(cluster: RealCluster) -> dict[str, int]:
    """How many requests each coordinator that runs has answered since its start, besides those of nodes."""
    found = {}
    for process in cluster.plan.of("coordinator"):
        if cluster.supervisor.pid(process.name):
            files = cluster.layout.certificate(OPERATOR)
            found[process.name] = await asyncio.to_thread(counter, process, files, REQUESTS.name)
    return found


class Reading:
    """Many readers, each at it without a pause, until told to stop."""

    def __init__(self, client: Client, files: dict[str, bytes]) -> None:
        self._client = client
        self._files = files
        self._stop = False
        self.reads = 0
        self.failed: list[CopypoolError] = []

    async def during(self, story: Callable[[], Awaitable[None]], *, reads_after: int) -> None:
        """Read while the story goes on, and then `reads_after` times more."""
        readers = [asyncio.create_task(self._reader(number)) for number in range(READERS)]
        try:
            await until(lambda: self._past(READERS * 4), "reads go on", within_s=60)
            await story()
            before = self.reads
            await until(lambda: self._past(before + reads_after), "reads go on afterwards", within_s=60)
        finally:
            self._stop = True
            await asyncio.gather(*readers)

    async def _past(self, reads: int) -> bool:
        return self.reads >= reads

    async def _reader(self, number: int) -> None:
        paths = sorted(self._files)
        while not self._stop:
            number += 1
            path = paths[number % len(paths)]
            try:
                assert await self._client.get("default", path) == self._files[path]
            except CopypoolError as exc:
                self.failed.append(exc)
            self.reads += 1


async def stored(client: Client, folder: str) -> dict[str, bytes]:
    """Small files, by their paths."""
    files = {f"{folder}/{number}": os.urandom(2000) for number in range(FILES)}
    await client.put_many("default", files.items())
    return files


async def test_new_connections_are_spread_over_both(cluster: RealCluster) -> None:
    page = f"{cluster.plan.shared_url}/ui"
    before = await answered_by(cluster)
    for _ in range(64):
        assert await status_of(page) == 200
    after = await answered_by(cluster)
    assert set(after) == {"coordinator1", "coordinator2"}
    for name, requests in after.items():
        assert requests - before[name] >= 10, (before, after)


async def test_when_one_is_killed_the_other_gets_every_connection_and_no_read_fails(
    cluster: RealCluster, client: Client
) -> None:
    files = await stored(client, "killed")
    reading = Reading(client, files)

    async def kill() -> None:
        await cluster.kill("coordinator1")
        for _ in range(64):
            assert await status_of(f"{cluster.plan.shared_url}/readyz") == 200

    await reading.during(kill, reads_after=READERS * 20)
    assert reading.failed == []


async def test_no_read_fails_while_both_are_restarted_one_after_the_other(cluster: RealCluster, client: Client) -> None:
    files = await stored(client, "rolling")
    reading = Reading(client, files)

    async def restart() -> None:
        for process in cluster.plan.of("coordinator"):
            await cluster.terminate(process.name)
            await cluster.start(process.name)

    await reading.during(restart, reads_after=READERS * 20)
    assert reading.failed == []
    await until(lambda: cluster.is_green(client), "nodes are heard by both again", within_s=60)


async def test_writes_go_on_over_the_shared_address_while_one_is_killed(cluster: RealCluster, client: Client) -> None:
    contents = {f"written/{number}": os.urandom(500) for number in range(40)}
    for number, (path, content) in enumerate(contents.items()):
        if number == 20:
            await cluster.kill("coordinator2")
        await client.put("default", path, content)
    for path, content in contents.items():
        assert await client.get("default", path) == content
