"""Long bodies that a thread of the node sends past the event loop: the same bytes, the same ends."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from copypool.protocol.api import Receipt
from copypool.protocol.errors import DigestMismatch
from copypool.protocol.routes import CAPABILITY
from copypool.protocol.stripes import STRIPE_BYTES, StripeRange
from copypool_node import pouring
from copypool_node.disk import Disk
from copypool_node.reader import PlainBody
from kit.eventually import eventually
from kit.fake_coordinator import FakeCoordinator, running
from kit.node_process import NodeUnderTest, running_node

SIZE = 6 * STRIPE_BYTES + 12_345


@pytest.fixture
async def coordinator() -> AsyncIterator[FakeCoordinator]:
    async with running() as fake:
        yield fake


@pytest.fixture
async def node(tmp_path: Path, coordinator: FakeCoordinator) -> AsyncIterator[NodeUnderTest]:
    async with running_node(tmp_path, coordinator) as under_test:
        yield under_test


def request_of(node: NodeUnderTest, receipt: Receipt) -> bytes:
    segment = receipt.segment
    assert segment is not None
    capability = node.coordinator.read_capability(1, segment, receipt.version, raw=False)
    path = f"/v1/segments/{segment.extent}/{segment.offset}/{segment.length}?v={receipt.version}"
    return f"GET {path} HTTP/1.1\r\nHost: node\r\n{CAPABILITY}: {capability}\r\n\r\n".encode()


async def connect(node: NodeUnderTest) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """With a small buffer, so that the node soon finds the client slow."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", node.server.port))
    return await asyncio.open_connection(sock=client, limit=64 * 1024)


@pytest.fixture
def held_up(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How much was left each time that a client was too slow for a thread."""
    found: list[int] = []
    finish = pouring._finish

    async def noted(outlet: object, rest: memoryview, gone: object) -> None:
        if rest:
            found.append(len(rest))
        await finish(outlet, rest, gone)  # type: ignore[arg-type]

    monkeypatch.setattr(pouring, "_finish", noted)
    return found


async def test_a_slow_client_gets_every_byte_and_keeps_its_connection(node: NodeUnderTest, held_up: list[int]) -> None:
    body = os.urandom(SIZE)
    receipt = await node.put("long", body)
    reader, writer = await connect(node)
    descriptors = len(os.listdir("/proc/self/fd"))
    for turn in (1, 2):
        writer.write(request_of(node, receipt))
        await eventually(lambda turn=turn: len(held_up) >= turn, "the client is slower than the thread")  # type: ignore[misc]
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert await reader.readexactly(SIZE) == body
        del held_up[turn:]
    await eventually(lambda: node.node.metrics.in_work == 0, "both were answered")
    await eventually(lambda: len(os.listdir("/proc/self/fd")) <= descriptors, "descriptors were given back")
    writer.close()
    await writer.wait_closed()


async def test_a_client_that_goes_amid_a_body_leaves_nothing_behind(node: NodeUnderTest, held_up: list[int]) -> None:
    receipt = await node.put("long", os.urandom(SIZE))
    descriptors = len(os.listdir("/proc/self/fd"))
    _reader, writer = await connect(node)
    writer.write(request_of(node, receipt))
    await eventually(lambda: bool(held_up), "a body is under way")
    writer.transport.abort()
    await eventually(lambda: node.node.metrics.in_work == 0, "the request has ended")
    await eventually(lambda: len(os.listdir("/proc/self/fd")) <= descriptors, "its descriptors were given back")


async def test_a_client_that_takes_nothing_is_given_up(
    node: NodeUnderTest, held_up: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pouring, "LOOK_S", 0.02)
    monkeypatch.setattr(pouring, "TAKING_MAX_S", 0.1)
    receipt = await node.put("long", os.urandom(SIZE))
    reader, writer = await connect(node)
    writer.write(request_of(node, receipt))
    await eventually(lambda: bool(held_up), "the client is slower than the thread")
    await eventually(lambda: node.node.metrics.in_work == 0, "the request has ended")
    with pytest.raises(asyncio.IncompleteReadError):
        await reader.readexactly(SIZE + 10_000)
    writer.close()


async def test_a_node_that_stops_ends_what_is_under_way(
    tmp_path: Path, coordinator: FakeCoordinator, held_up: list[int]
) -> None:
    async with running_node(tmp_path, coordinator) as node:
        receipt = await node.put("long", os.urandom(SIZE))
        reader, writer = await connect(node)
        writer.write(request_of(node, receipt))
        await eventually(lambda: bool(held_up), "a body is under way")
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await reader.readexactly(SIZE + 10_000)
    writer.close()


async def test_a_piece_that_a_thread_cannot_have_is_asked_for_in_the_ordinary_way(
    node: NodeUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = os.urandom(SIZE)
    receipt = await node.put("long", body)
    load_now = PlainBody.load_now
    asked: list[int] = []

    def failing(self: PlainBody, disk: Disk, fd: int, piece: StripeRange, room: memoryview) -> memoryview:
        asked.append(piece.data_offset)
        if len(asked) % 5 == 0:
            raise DigestMismatch("this one not")
        return load_now(self, disk, fd, piece, room)

    monkeypatch.setattr(PlainBody, "load_now", failing)
    assert receipt.segment is not None
    assert (await node.get(receipt.segment, receipt.version))[1] == body
    assert len(asked) > SIZE // (256 * 1024) - 5
