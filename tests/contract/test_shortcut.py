"""One port, two ways to answer: what the short one does not know goes to aiohttp with the very bytes that came.

On both event loops: servers run on uvloop, tests on asyncio's.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop
from aiohttp import web

from copypool.serving.connections import BoundedServer, open_port, port_closed
from copypool.serving.heads import Asked, Told
from copypool.serving.shortcut import REMEMBERED_MAX, Answering, ShortcutConnection, Shortcuts
from kit.certificates import Authority
from kit.eventually import eventually

ASK = b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n"
LARGE = b"l" * 4_000_000


class Port:
    """A server: the short way takes `/short...` and `/large` once `gate` is open, but for `/short-not`."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.long_gate = asyncio.Event()
        self.long_gate.set()
        self.started = 0
        self.server: BoundedServer
        self.number = 0

    def shortcut(self, asked: Asked) -> Told | Answering | None:
        if asked.target.startswith("/at-once"):
            self.started += 1
            return Told(200, {"Way": "short"}, LARGE if asked.target.endswith("large") else asked.target.encode())
        return self._answer if asked.target.startswith(("/short", "/large")) else None

    async def _answer(self, asked: Asked) -> Told | None:
        self.started += 1
        await self.gate.wait()
        if asked.target == "/short-bug":
            raise ValueError("a bug")
        if asked.target == "/short-broken":
            return Told(200, {"Way": "a\nb"}, b"")
        if asked.target == "/short-not":
            return None
        return Told(200, {"Way": "short"}, LARGE if asked.target == "/large" else asked.target.encode())

    @property
    def stopping(self) -> bool:
        assert self.server._shortcuts is not None
        return self.server._shortcuts.closing

    @property
    def short_connections(self) -> set[ShortcutConnection]:
        assert self.server._shortcuts is not None
        return self.server._shortcuts.connections

    async def handle(self, request: web.BaseRequest) -> web.Response:
        await self.long_gate.wait()
        return web.Response(body=request.path.encode(), headers={"Way": "long"})


class Caller:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, *targets: str) -> None:
        self.writer.write(b"".join(ASK % target.encode() for target in targets))

    async def answer(self) -> tuple[str, bytes]:
        """The way it went, and the body."""
        async with asyncio.timeout(60):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            assert head[0] == "HTTP/1.1 200 OK"
            fields = dict(line.split(": ", 1) for line in head[1:-2])
            return fields["Way"], await self.reader.readexactly(int(fields["Content-Length"]))

    async def ended(self) -> bool:
        async with asyncio.timeout(60):
            try:
                return await self.reader.read() == b""
            except ConnectionError:
                return True


@asynccontextmanager
async def serving(
    connections_max: int = 10, idle_s: float = 30.0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Port]:
    port = Port()
    port.server = BoundedServer(
        port.handle,
        connections_max=connections_max,
        keepalive_timeout=idle_s,
        shortcut=port.shortcut,
        access_log=None,
    )
    site = await open_port(port.server, "127.0.0.1", 0, tls)
    port.number = site.sockets[0].getsockname()[1]
    try:
        yield port
    finally:
        site.close()
        port.server.pre_shutdown()
        await port.server.shutdown(1.0)
        await port_closed(site)
        await eventually(_is(lambda: port.server.open_connections == 0), "every connection is gone")


@asynccontextmanager
async def calling(port: Port, tls: ssl.SSLContext | None = None) -> AsyncIterator[Caller]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port.number, ssl=tls)
    try:
        yield Caller(reader, writer)
    finally:
        writer.close()


def _is(condition: Callable[[], bool]) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        return condition()

    return check


async def both_ways_on_one_connection(
    server: ssl.SSLContext | None = None, client: ssl.SSLContext | None = None
) -> None:
    async with serving(tls=server) as port, calling(port, client) as caller:
        for target, way in (
            ("/short/1", "short"),
            ("/at-once", "short"),
            ("/short/2", "short"),
            ("/other", "long"),
            ("/short/3", "long"),  # who once went the long way goes on there
        ):
            caller.send(target)
            assert await caller.answer() == (way, target.encode())


async def what_the_short_way_gives_up_is_asked_again() -> None:
    async with serving() as port, calling(port) as caller:
        caller.send("/short-not")
        assert await caller.answer() == ("long", b"/short-not")
        assert port.started == 1


async def a_request_in_pieces_is_whole_for_the_long_way() -> None:
    async with serving() as port, calling(port) as caller:
        whole = ASK % b"/short"
        caller.writer.write(whole[:20])
        await caller.writer.drain()
        await eventually(_is(lambda: port.server.open_connections == 1), "the connection is there")
        caller.writer.write(whole[20:])
        assert (await caller.answer())[1] == b"/short"


async def requests_in_one_packet_are_answered_in_order() -> None:
    async with serving() as port, calling(port) as caller:
        caller.send("/short/1", "/short/2", "/other")
        assert [(await caller.answer())[1] for _ in range(3)] == [b"/short/1", b"/short/2", b"/other"]


async def requests_that_come_too_early_are_held(first: str = "/short/1") -> None:
    async with serving() as port, calling(port) as caller:
        port.gate.clear()
        caller.send(first)
        await eventually(_is(lambda: port.started == 1), "the first one is in work")
        caller.send("/short/2", "/other", "/short/3")
        await caller.writer.drain()
        port.gate.set()
        assert [(await caller.answer())[1].decode() for _ in range(4)] == [first, "/short/2", "/other", "/short/3"]


async def requests_behind_one_that_is_given_up_are_held() -> None:
    await requests_that_come_too_early_are_held("/short-not")


async def a_reader_that_is_slow_gets_one_answer_at_a_time() -> None:
    async with serving() as port, calling(port) as caller:
        caller.send("/large")
        await eventually(_is(lambda: port.started == 1), "it is in work")
        caller.send("/large")
        assert await caller.answer() == ("short", LARGE)
        assert await caller.answer() == ("short", LARGE)


async def answers_at_once_wait_for_a_slow_reader_too() -> None:
    async with serving() as port, calling(port) as caller:
        caller.send("/at-once/large")
        await eventually(_is(lambda: port.started == 1), "it is answered")
        caller.send("/at-once/large")
        assert await caller.answer() == ("short", LARGE)
        assert await caller.answer() == ("short", LARGE)


async def who_sends_on_and_on_is_held_back_on_the_long_way(
    server: ssl.SSLContext | None = None, client: ssl.SSLContext | None = None
) -> None:
    async with serving(tls=server) as port, calling(port, client) as caller:
        port.gate.clear()
        port.long_gate.clear()
        caller.send("/short-not")
        await eventually(_is(lambda: port.started == 1), "the first one is in work")
        caller.send(*["/other"] * 100)
        await caller.writer.drain()
        (early,) = port.short_connections
        await eventually(_is(lambda: bool(early._held)), "what follows is held")
        port.gate.set()
        await eventually(_is(lambda: bool(port.server.connections)), "aiohttp has the connection")
        (taken,) = port.server.connections
        caller.send(*["/other"] * 10_000)
        transport = taken.transport
        assert transport is not None
        await eventually(_is(lambda: not transport.is_reading()), "its queue is full, so nothing more is read")
        port.long_gate.set()
        assert [(await caller.answer())[1] for _ in range(10_101)] == [b"/short-not", *[b"/other"] * 10_100]


async def a_client_that_goes_leaves_nothing() -> None:
    async with serving() as port:
        port.gate.clear()
        async with calling(port) as caller:
            caller.send("/short/1")
            await eventually(_is(lambda: port.started == 1), "it is in work")
        await eventually(_is(lambda: port.server.open_connections == 0), "the connection is gone")
        port.gate.set()


async def who_is_silent_is_cut_off() -> None:
    async with serving(idle_s=1.0) as port, calling(port) as silent, calling(port) as other:
        other.send("/short/1")
        assert (await other.answer())[0] == "short"
        assert await silent.ended()
        assert await other.ended()


async def connections_of_both_ways_count_for_the_bound() -> None:
    async with serving(connections_max=2) as port, calling(port) as one, calling(port) as two:
        one.send("/short/1")
        two.send("/other")
        assert [(await each.answer())[0] for each in (one, two)] == ["short", "long"]
        assert port.server.open_connections == 2
        async with calling(port) as third:
            assert await third.ended()


async def a_server_that_stops_ends_what_is_idle_and_answers_what_is_in_work() -> None:
    async with serving() as port, calling(port) as idle, calling(port) as busy:
        idle.send("/short/1")
        await idle.answer()
        port.gate.clear()
        busy.send("/short/2")
        await eventually(_is(lambda: port.started == 2), "it is in work")
        port.server.pre_shutdown()
        assert await idle.ended()
        port.gate.set()
        assert await busy.answer() == ("short", b"/short/2")
        assert await busy.ended()


async def a_server_that_stops_gives_what_is_in_work_its_time() -> None:
    async with serving() as port, calling(port) as idle, calling(port) as busy:
        idle.send("/at-once")
        await idle.answer()
        port.gate.clear()
        busy.send("/short/1")
        await eventually(_is(lambda: port.started == 2), "it is in work")
        stopping = asyncio.create_task(port.server.shutdown(20.0))
        assert await idle.ended()
        port.gate.set()
        assert await busy.answer() == ("short", b"/short/1")
        assert await busy.ended()
        await stopping


async def what_comes_to_aiohttp_while_the_server_stops_is_ended_too() -> None:
    async with serving() as port, calling(port) as busy:
        port.gate.clear()
        busy.send("/short-not")
        await eventually(_is(lambda: port.started == 1), "it is in work")
        stopping = asyncio.create_task(port.server.shutdown(20.0))
        await eventually(_is(lambda: port.stopping), "the server stops")
        port.gate.set()
        assert await busy.answer() == ("long", b"/short-not")
        assert await busy.ended()
        await stopping


async def who_comes_while_the_server_stops_is_sent_away() -> None:
    async with serving() as port:
        port.server.pre_shutdown()
        async with calling(port) as late:  # as one that was still shaking hands when the port was closed
            assert await late.ended()


async def a_server_that_cannot_wait_cuts_off() -> None:
    async with serving() as port, calling(port) as busy:
        port.gate.clear()
        busy.send("/short/1")
        await eventually(_is(lambda: port.started == 1), "it is in work")
        await port.server.shutdown(0.1)
        assert await busy.ended()


async def a_bug_cuts_off_its_connection_alone(target: str = "/short-bug") -> None:
    async with serving() as port, calling(port) as caller, calling(port) as other:
        caller.send(target)
        assert await caller.ended()
        other.send("/short/1")
        assert (await other.answer())[0] == "short"


async def an_answer_that_cannot_be_written_cuts_off_its_connection_alone() -> None:
    await a_bug_cuts_off_its_connection_alone("/short-broken")


class Unread(asyncio.Transport):
    """To a client that has not taken all of its answer, though it is too little to hold us back."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted = False

    def get_extra_info(self, name: str, default: object = None) -> object:
        return default

    def get_write_buffer_size(self) -> int:
        return 1

    def close(self) -> None:
        """Waits until the rest is taken."""

    def abort(self) -> None:
        self.aborted = True


async def who_does_not_take_its_answer_is_cut_off() -> None:
    loop = asyncio.get_running_loop()
    shortcuts = Shortcuts(lambda _: None, asyncio.Protocol, lambda: False, idle_s=0.01)
    connection, transport = ShortcutConnection(shortcuts, loop), Unread()
    connection.connection_made(transport)
    await eventually(_is(lambda: transport.aborted), "it is cut off")
    connection.connection_lost(None)


async def what_was_read_is_remembered_within_bounds() -> None:
    async with serving() as port, calling(port) as caller:
        shortcuts = port.server._shortcuts
        assert shortcuts is not None
        long = "/short" + "x" * 1024
        for target, headers in (("/short", ""), ("/short-traced", "traceparent: 00-1\r\n"), (long, "")):
            for _ in range(2):
                caller.writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode())
                assert await caller.answer() == ("short", target.encode())
        assert [asked.target for asked in shortcuts.remembered.values()] == ["/short"]
        for number in range(2 * REMEMBERED_MAX):
            shortcuts.remember(b"%d" % number, Asked("GET", f"/{number}", {}))
            assert len(shortcuts.remembered) <= REMEMBERED_MAX
            assert shortcuts.remembered[b"%d" % number].target == f"/{number}"


STORIES = [
    what_was_read_is_remembered_within_bounds,
    who_sends_on_and_on_is_held_back_on_the_long_way,
    who_comes_while_the_server_stops_is_sent_away,
    an_answer_that_cannot_be_written_cuts_off_its_connection_alone,
    who_does_not_take_its_answer_is_cut_off,
    both_ways_on_one_connection,
    what_the_short_way_gives_up_is_asked_again,
    a_request_in_pieces_is_whole_for_the_long_way,
    requests_in_one_packet_are_answered_in_order,
    requests_that_come_too_early_are_held,
    requests_behind_one_that_is_given_up_are_held,
    a_reader_that_is_slow_gets_one_answer_at_a_time,
    answers_at_once_wait_for_a_slow_reader_too,
    a_client_that_goes_leaves_nothing,
    who_is_silent_is_cut_off,
    connections_of_both_ways_count_for_the_bound,
    a_server_that_stops_ends_what_is_idle_and_answers_what_is_in_work,
    a_server_that_stops_gives_what_is_in_work_its_time,
    what_comes_to_aiohttp_while_the_server_stops_is_ended_too,
    a_server_that_cannot_wait_cuts_off,
    a_bug_cuts_off_its_connection_alone,
]


LOOPS = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])


@LOOPS
@pytest.mark.parametrize("story", [both_ways_on_one_connection, who_sends_on_and_on_is_held_back_on_the_long_way])
def test_both_ways_over_tls(
    story: Callable[..., Awaitable[None]], run: Callable[[Awaitable[None]], None], tmp_path: Path
) -> None:
    made = Authority(tmp_path).issue("server")
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(made.certificate, made.key)
    run(story(server, ssl.create_default_context(cafile=made.authority)))


@LOOPS
@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_the_short_way(story: Callable[[], Awaitable[None]], run: Callable[[Awaitable[None]], None]) -> None:
    run(story())
