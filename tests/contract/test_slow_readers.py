"""Who reads slowly blames nobody: the time that a reader takes is not the server's. Real sockets on loopback."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import pytest
import uvloop
from aiohttp import web
from aiohttp.client_proto import ResponseHandler

from copypool.protocol.api import SegmentRef
from copypool.protocol.errors import Unavailable
from copypool.protocol.internal import ProgressReport, PullCommand, PullSource
from copypool.tls import TlsFiles, client_context, server_context
from copypool.transport import BodyStream, Timeouts, Transport
from copypool_coordinator import keys, node_link, slow_clients
from copypool_coordinator.capabilities import Mint
from copypool_coordinator.config import Limits
from copypool_coordinator.node_link import NodeLink
from copypool_coordinator.rows import FORMAT, SessionRow
from copypool_node import pull
from kit.certificates import Authority
from kit.eventually import eventually
from kit.fake_coordinator import running
from kit.little_view import LittleView
from kit.node_process import running_node
from kit.played_server import serving_connections

NODE = 1
STRANGER = 77  #: a node id that no heartbeat names: its URL is taken from the command
QUIET_S = 0.2  #: how long a server may be silent here
TIMEOUTS = Timeouts(first_byte_s=QUIET_S, stall_s=QUIET_S)
MIB = 1024 * 1024
PIECE_BYTES = 512 * 1024  #: of a relayed file; TLS holds as much back before it makes a writer wait
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"


class Server:
    """Answers each GET of any connection with `body`, and can stand still amid it."""

    def __init__(self, size_bytes: int) -> None:
        self.body = os.urandom(size_bytes)
        self.stops_at: int | None = None
        self.url = ""
        self.ports: list[int] = []  #: of the connections
        self.requests = 0
        self._writer: asyncio.StreamWriter | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.ports.append(writer.get_extra_info("peername")[1])
        while True:
            await reader.readuntil(b"\r\n\r\n")
            self.requests += 1
            self._writer = writer
            writer.write(HEAD % len(self.body) + self.body[: self.stops_at])
            await writer.drain()

    def send_on(self) -> None:
        """Send what was held back; a little of it is there for the client before this returns."""
        assert self._writer is not None
        assert self.stops_at is not None
        left = self.body[self.stops_at :]
        with socket.socket(fileno=os.dup(self._writer.get_extra_info("socket").fileno())) as sending:
            sent = sending.send(left)
        self._writer.write(left[sent:])


@asynccontextmanager
async def serving(size_bytes: int) -> AsyncIterator[Server]:
    served = Server(size_bytes)
    async with serving_connections(served.serve) as served.url:
        yield served


def protocols(connector: aiohttp.BaseConnector | None) -> list[ResponseHandler]:
    """Of the connections in use."""
    assert connector is not None
    return list(connector._acquired)


async def held_up(connector: aiohttp.BaseConnector | None, size_bytes: int) -> None:
    """Until all bytes of the answer are here, and its reader has not taken them."""

    def full() -> bool:
        held = [each._payload for each in protocols(connector) if each._reading_paused]
        return any(payload is not None and payload.total_bytes == size_bytes for payload in held)

    await eventually(full, "the reader holds its connection up")


async def quiet() -> None:
    """Until whatever was set off before by a silence of `QUIET_S` has gone off: timers go off in their order."""
    await asyncio.sleep(QUIET_S * 1.5)


@pytest.fixture
async def link(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[NodeLink]:
    monkeypatch.setattr(node_link, "FIRST_BYTE_S", QUIET_S)
    monkeypatch.setattr(node_link, "STALL_S", QUIET_S)
    little = LittleView()
    link = NodeLink(little.view, Mint(bytes(32), 1), Limits(), None)
    yield link
    await link.close()


def place(link: NodeLink, server: Server) -> SegmentRef:
    """The server is node `NODE`; its body is this segment."""
    little = LittleView()
    little.put(keys.session(NODE), SessionRow(FORMAT, 1, b"", server.url, 0))
    link._view = little.view
    return SegmentRef(extent=1, offset=4096, length=len(server.body))


async def test_a_relay_with_a_slow_client_blames_no_node_for_its_next_read(link: NodeLink) -> None:
    """The client takes the last bytes of a segment late; the connection is used for another one a while later."""
    size_bytes = 2 * node_link._CHUNK_BYTES + 1  # the last byte is one too many for the buffer
    async with serving(size_bytes) as server:
        segment = place(link, server)
        for _ in range(3):
            async with link.stream(NODE, segment, 1, "", 0, segment.length) as chunks:
                await held_up(link.http.connector, size_bytes)
                assert b"".join([chunk async for chunk in chunks]) == server.body
            await quiet()
        assert not link.suspects()
        assert len(server.ports) == 1, "the connection is used again"


async def test_a_relay_finds_a_node_that_stops_amid_a_segment(link: NodeLink) -> None:
    """However slow its client was before."""
    async with serving(6 * node_link._CHUNK_BYTES) as server:
        segment = place(link, server)
        server.stops_at = 4 * node_link._CHUNK_BYTES
        got = bytearray()

        async def read() -> None:
            async with link.stream(NODE, segment, 1, "", 0, segment.length) as chunks:
                await eventually(lambda: protocols(link.http.connector)[0]._reading_paused, "the client is slow")
                await quiet()
                assert not link.suspects(), "the client takes this time"
                async for chunk in chunks:
                    got.extend(chunk)

        with pytest.raises(Unavailable) as caught:
            await read()
        assert caught.value.details["sent"], "it is told as a node that does not answer"
        assert link.suspects() == {NODE}
        assert got == server.body[: server.stops_at]


class Collecting:
    """Takes a body, whose every byte it is handed."""

    def __init__(self, size_bytes: int) -> None:
        self.got = bytearray()
        self._size_bytes = size_bytes

    @property
    def wanted_bytes(self) -> int:
        return min(MIB, self._size_bytes - len(self.got))

    def feed(self, data: bytes) -> list[bytes]:
        self.got += data
        return [data]


async def test_a_slow_consumer_of_the_sdk_blames_no_node_for_its_next_read() -> None:
    size_bytes = 2 * MIB + 1  # the last byte is one too many for the buffer
    async with serving(size_bytes) as server, Transport(timeouts=TIMEOUTS) as transport:
        for _ in range(3):
            stream = await transport.open(server.url, headers={})
            await held_up(transport._session.connector, size_bytes)
            await quiet()
            got = b""
            while piece := await stream.read():
                got += piece
            stream.close()
            assert got == server.body
            await quiet()
        assert len(server.ports) == 1, "the connection is used again"


async def test_a_consumer_that_stands_still_amid_a_long_body_goes_on() -> None:
    async with serving(24 * MIB) as server, Transport(timeouts=TIMEOUTS) as transport:
        for _ in range(2):
            stream = await transport.open(server.url, headers={})
            taker = Collecting(len(server.body))
            while taker.wanted_bytes:
                paused = len(taker.got) // (8 * MIB)
                await stream.read_through(taker)
                if len(taker.got) // (8 * MIB) > paused:
                    await quiet()
            stream.close()
            assert taker.got == server.body
        assert len(server.ports) == 1, "the connection is used again"


async def _read_while_the_loop_is_kept_busy(long: bool) -> None:
    size_bytes = 4 * MIB if long else MIB // 2
    async with serving(size_bytes) as server, Transport(timeouts=TIMEOUTS) as transport:
        server.stops_at = size_bytes - 1000
        stream = await transport.open(server.url, headers={})
        taker = Collecting(size_bytes)
        reading = asyncio.create_task(_read_all(stream, taker))
        await eventually(lambda: len(taker.got) == server.stops_at, "it waits for more")
        server.send_on()
        busy_until_s = time.monotonic() + 2 * QUIET_S
        while time.monotonic() < busy_until_s:
            pass  # as who computes between two pieces
        await reading
        stream.close()
        assert taker.got == server.body


async def _read_all(stream: BodyStream, taker: Collecting) -> None:
    while taker.wanted_bytes:
        await stream.read_through(taker)


@pytest.mark.parametrize("long", [True, False])
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_consumer_that_keeps_the_event_loop_busy_blames_no_node(run: Callable[..., None], long: bool) -> None:
    """The limit passes while nobody looks at the socket; the bytes are there."""
    run(_read_while_the_loop_is_kept_busy(long))


async def test_a_pull_that_is_slowed_by_its_budget_blames_no_source_for_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the last bytes late; the connection is used for another pull a while later."""
    monkeypatch.setattr(pull, "STALL_S", QUIET_S)
    buffer_bytes = 512 * 1024
    async with (
        running() as coordinator,
        running_node(tmp_path, coordinator, name="n1") as source,
        running_node(tmp_path, coordinator, name="n2", pool_type="copy") as to,
        serving(0) as server,
    ):
        taken_bytes = 0
        has_budget = asyncio.Event()

        async def take(size_bytes: int) -> None:
            nonlocal taken_bytes
            taken_bytes += size_bytes
            if taken_bytes == server.stops_at:
                await has_budget.wait()

        async def pull_more(name: str, *, held_back_bytes: int | None) -> int:
            """The source gets a file, and what its extent has more by that is to be pulled from the server."""
            before = coordinator.extents[1].length if 1 in coordinator.extents else 0
            await source.put(name, os.urandom(600_000))
            length = coordinator.extents[1].length
            server.body = source.extent_file(1).read_bytes()[before:length]
            server.stops_at = None if held_back_bytes is None else length - held_back_bytes
            listed = PullSource(STRANGER, server.url, length, "")
            await to.command("pull", PullCommand(1, 1, to.volume, 1, length, False, [], b"", [listed]))
            return length

        def brought(length: int) -> bool:
            found = coordinator.requests["progress"]
            return any(isinstance(one, ProgressReport) and one.finished and one.length == length for one in found)

        monkeypatch.setattr(to.node.puller._pace, "take", take)
        first = await pull_more("first", held_back_bytes=buffer_bytes + 1)  # one is too many for the buffer
        await eventually(lambda: taken_bytes == server.stops_at, "it waits for its budget")
        server.send_on()
        await held_up(to.node.session.link.http.connector, first)
        has_budget.set()
        await eventually(lambda: brought(first), "the first pull ends")
        await quiet()
        second = await pull_more("second", held_back_bytes=None)
        await eventually(lambda: brought(second), "the second pull ends")
        assert (server.requests, len(server.ports)) == (2, 1), "it was asked once for each, on one connection"


async def test_a_pull_leaves_a_source_that_stops_amid_an_extent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull, "STALL_S", QUIET_S)
    async with (
        running() as coordinator,
        running_node(tmp_path, coordinator, name="n1") as source,
        running_node(tmp_path, coordinator, name="n2", pool_type="copy") as to,
        serving(0) as stopping,
        serving(0) as good,
    ):
        await source.put("f", os.urandom(600_000))
        length = coordinator.extents[1].length
        stopping.body = source.extent_file(1).read_bytes()[:length]
        stopping.stops_at = 100  # nothing of it is whole
        good.body = stopping.body
        listed = [PullSource(STRANGER, each.url, length, "") for each in (stopping, good)]
        await to.command("pull", PullCommand(1, 1, to.volume, 1, length, False, [], b"", listed))
        await eventually(lambda: bool(coordinator.requests["progress"]), "the pull ends")
        assert to.extent_file(1).read_bytes() == good.body
        assert (stopping.requests, good.requests) == (1, 1)


def _connected(port: int, context: ssl.SSLContext | None) -> socket.socket:
    """A client that has asked for the body, and whose buffer holds little of it; blocking."""
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * 1024)
    plain.settimeout(30.0)
    plain.connect(("127.0.0.1", port))
    client = plain if context is None else context.wrap_socket(plain, server_hostname="127.0.0.1")
    client.sendall(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    client.setblocking(False)
    return client


async def _relay_to_a_client_that_takes_little(files: TlsFiles | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes some bytes between two looks as long as `takes`, and then nothing more."""
    shown, known = None, None
    if files is not None:
        shown = await asyncio.to_thread(server_context, files, ask_clients=False)
        known = await asyncio.to_thread(client_context, files)
    client: socket.socket | None = None
    looks = 0
    takes = True
    told: list[str] = []
    really_taken_bytes = slow_clients._taken_bytes

    def look(transport: asyncio.Transport | None) -> int:
        nonlocal looks
        looks += 1
        taken_bytes = really_taken_bytes(transport)
        if takes and client is not None:
            with suppress(BlockingIOError, ssl.SSLWantReadError):
                for _ in range(4):
                    client.recv(16 * 1024)
        return taken_bytes

    async def relay(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal takes
        response = web.StreamResponse()
        response.content_length = 4 * PIECE_BYTES
        await response.prepare(request)
        try:
            for _ in range(2):
                await slow_clients.write_piece(request, response, bytes(PIECE_BYTES))
            told.append(f"went on {looks > 8}")
            takes = False
            for _ in range(2):
                await slow_clients.write_piece(request, response, bytes(PIECE_BYTES))
        except BaseException as error:
            told.append(repr(error))
            raise
        return response

    monkeypatch.setattr(slow_clients, "CLIENT_STALL_S", 0.05)
    monkeypatch.setattr(slow_clients, "_taken_bytes", look)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * 1024)
    listener.bind(("127.0.0.1", 0))
    handler = web.Server(relay)
    server = await asyncio.get_running_loop().create_server(handler, sock=listener, ssl=shown)
    try:
        client = await asyncio.to_thread(_connected, listener.getsockname()[1], known)
        await eventually(lambda: len(told) == 2, "the client is given up")
        assert told == ["went on True", "ConnectionResetError('the client takes no bytes')"]
    finally:
        if client is not None:
            client.close()
        server.close()
        await handler.shutdown(1.0)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_relay_s_client_may_take_a_few_bytes_at_a_time(
    run: Callable[..., None], tls: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is for one that takes none: a piece takes longer than that."""
    files = Authority(tmp_path).issue("server").files if tls else None
    run(_relay_to_a_client_that_takes_little(files, monkeypatch))
