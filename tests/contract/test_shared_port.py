"""A coordinator's part of a shared port: only while it serves, with the bounds of its own port, not for nodes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from contextlib import closing
from functools import partial
from typing import TypeAlias

import pytest
import uvloop

from copypool.protocol.errors import Invalid
from copypool_coordinator.config import Secrets
from copypool_coordinator.metrics import Metrics
from copypool_coordinator.process import Coordinator
from copypool_coordinator.server import Front, listen
from kit.coordinator_process import ADMIN, JOIN, PlayedNode, Running, config_of, running_coordinator
from kit.etcd_process import free_ports
from kit.eventually import eventually

Runner: TypeAlias = Callable[[Coroutine[None, None, None]], None]

GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"


def url_of(port: int) -> str:
    return f"http://127.0.0.1:{port}"


async def connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port)


async def answered(port: int) -> bool:
    """Whether a new connection gets an answer; False: it was refused or cut off."""
    try:
        reader, writer = await connect(port)
    except ConnectionRefusedError:
        return False
    with closing(writer):
        writer.write(GET)
        try:
            async with asyncio.timeout(60):
                return (await reader.read(12)).startswith(b"HTTP/1.1 200")
        except ConnectionError:
            return False


async def connected(port: int) -> bool:
    """Whether somebody listens there."""
    try:
        _reader, writer = await connect(port)
    except ConnectionRefusedError:
        return False
    writer.close()
    return True


async def test_the_shared_port_is_open_once_the_coordinator_serves_and_closed_when_it_ends(endpoint: str) -> None:
    (port,) = free_ports(1)
    async with running_coordinator(endpoint, shared_port=port) as coordinator:
        async with coordinator.http.get(f"{url_of(port)}/readyz") as response:
            assert response.status == 200
        headers = {"Authorization": f"Bearer {ADMIN}"}
        async with coordinator.http.post(f"{url_of(port)}/rpc/namespaces", json={}, headers=headers) as response:
            assert response.status == 200
        assert coordinator.url != url_of(port)
    assert not await answered(port)


async def test_a_coordinator_that_does_not_serve_yet_gets_no_connection_of_the_shared_port() -> None:
    port, nobody = free_ports(2)
    coordinator = Coordinator(config_of(f"127.0.0.1:{nobody}", {"shared_port": port}), Secrets(b"m" * 32, ADMIN, JOIN))
    stop = asyncio.Event()
    task = asyncio.create_task(coordinator.run(stop))
    try:
        await eventually(lambda: coordinator._listener is not None, "its own port is open")
        assert await answered(int(coordinator.url.rpartition(":")[2]))
        assert not await answered(port)
    finally:
        stop.set()
        await task


async def test_both_ports_together_hold_no_more_connections_than_one(endpoint: str) -> None:
    (port,) = free_ports(1)
    async with running_coordinator(endpoint, shared_port=port, limits={"connections": 4}) as coordinator:
        await coordinator.http.close()
        own = int(coordinator.url.rpartition(":")[2])
        writers = []
        for number in range(4):
            reader, writer = await connect((own, port)[number % 2])
            writers.append(writer)
            writer.write(GET)
            assert (await reader.read(12)).startswith(b"HTTP/1.1 200")
        assert not await answered(own)
        assert not await answered(port)
        writers.pop().close()
        await eventually(partial(answered, own), "the place that was left is given to the next")
        for writer in writers:
            writer.close()


async def test_a_stop_closes_the_idle_connections_of_the_shared_port(endpoint: str) -> None:
    (port,) = free_ports(1)
    async with running_coordinator(endpoint, shared_port=port):
        reader, writer = await connect(port)
        writer.write(GET)
        assert (await reader.readuntil(b"alive\n")).startswith(b"HTTP/1.1 200")
    with closing(writer):
        async with asyncio.timeout(60):
            assert await reader.read() == b""


async def test_nodes_are_refused_at_the_shared_port_and_told_what_to_do(endpoint: str) -> None:
    (port,) = free_ports(1)
    async with running_coordinator(endpoint, shared_port=port) as coordinator:
        node = await PlayedNode.join(coordinator, "n1")
        try:
            by_shared_port = Running(coordinator.coordinator, coordinator.http)
            by_shared_port.url = url_of(port)
            node._coordinator = by_shared_port
            with pytest.raises(Invalid, match="own addresses in the node's `coordinators`"):
                await node.beat()
        finally:
            await node.close()


@pytest.mark.parametrize("taken_by", ["a listener", "one that is bound alone"])
async def test_a_port_that_somebody_else_does_not_share_is_refused_before_anything_starts(taken_by: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        if taken_by == "a listener":
            other.listen()
        port = other.getsockname()[1]
        coordinator = Coordinator(config_of("127.0.0.1:1", {"shared_port": port}), Secrets(b"m" * 32, ADMIN, JOIN))
        with pytest.raises(OSError, match=f"shared_port {port} at 127.0.0.1 is taken .* name another port"):
            await coordinator.run(asyncio.Event())


@pytest.mark.parametrize("loop", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_port_that_somebody_else_takes_before_the_coordinator_serves_is_refused(loop: Runner) -> None:
    """A port may be bound twice as long as nobody listens there: by coordinators that start together, say."""

    async def story() -> None:
        (port,) = free_ports(1)
        front = Front({}, Metrics(), requests_max=1, shared_port=port)
        listener = await listen(front, "127.0.0.1", 0, None, 1, port)
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(("127.0.0.1", port))
            other.listen()
            with pytest.raises(OSError, match=f"shared_port {port} at 127.0.0.1 is taken"):
                await listener.share()
        await listener.share()
        assert await connected(port)
        listener.leave_shared()
        await listener.share()
        assert not await connected(port), "left for good"
        await listener.close(front, 1.0)

    loop(story())


async def test_an_own_port_that_is_taken_leaves_the_shared_one_free() -> None:
    (port,) = free_ports(1)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        settings = {"shared_port": port, "listen_port": other.getsockname()[1]}
        coordinator = Coordinator(config_of("127.0.0.1:1", settings), Secrets(b"m" * 32, ADMIN, JOIN))
        with pytest.raises(OSError, match="in use"):
            await coordinator.run(asyncio.Event())
    with socket.socket() as next_one:
        next_one.bind(("127.0.0.1", port))
