"""The same bytes, cut anywhere, to a port with the short way and to one without: the answers are the same.

What a packet holds may decide how many requests are answered before a malformed one ends the connection, on both ways:
there, the answers of one are the first of the other's.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate, pairwise

import pytest
import uvloop
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from copypool.serving.connections import BoundedServer, open_port, port_closed
from copypool.serving.heads import Asked, Told
from copypool.serving.shortcut import Answering

_SHOWN = ("Accept", "Authorization", "If-Match", "Copypool-Write-Id", "Copypool-Metadata")
#: Whatever came before, this ends the connection: as a request, as the rest of a head or body, or as a malformed one.
_LAST = b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

_TARGETS = [
    *(b"/now/a", b"/task/a", b"/not/a", b"/long/a", b"/now/a%20b%00%2f?x=1&y=%c3%a4", b"/task//a", b"/now/a#b?c#d"),
    *(b"/now/;\"<>\\^`{|}[]~'", b"//now/a", b"/", b"*", b"now", b"http://x/now/a", b"/now/\xc3\xa4", b"/now/\xff"),
    *(b"/now/\x00", b"/now/\x7f", b"/now/a\tb", b"/now/a b", b"", b"/task/?", b"/now/%", b"/task/" + b"a" * 9000),
]
_HEADERS = [
    *(b"Accept: */*", b"accept:a\t ", b"Accept:", b"Authorization: Bearer t", b'If-Match: "1"', b"Cookie: a=b; c"),
    *(b"Copypool-Write-Id: 00ff", b"copypool-metadata:  a b ", b"Connection: keep-alive", b"Connection: Close"),
    *(b"Connection: keep-alive, close", b"Content-Length: 0", b"Content-Length: 3", b"Content-Length: 03"),
    *(b"Content-Length: +3", b"Content-Length:", b"Content-Length: 3, 3", b"Content-Length : 3", b"Content-Length: 3 "),
    *(b"Transfer-Encoding: identity", b"Expect: 100-continue", b"Upgrade: websocket"),
    *(b" folded", b"\tfolded", b": none", b"none", b"Cookie: a\x00b", b"Cookie: a\rb", b"Cookie: \xc3\xa4", b"Cookie"),
    *(b"X-Unknown: 1", b"Host: y", b"Range: bytes=0-1", b"Cookie: " + b"a" * 9000, b"Te: trailers", b"Content-Type: a"),
]


_ODDITIES = ["", "", "", "", "", "", "", "method", "target", "version", "field", "body", "host", "length", "end"]


@st.composite
def _requests(draw: st.DrawFn) -> bytes:
    """A request, in about half of all cases with one thing that is out of the ordinary."""
    oddity = draw(st.sampled_from(_ODDITIES))

    def one(name: str, usual: list[bytes], odd: list[bytes]) -> bytes:
        return draw(st.sampled_from(odd if oddity == name else usual))

    method = one("method", [b"GET", b"PUT"], [b"HEAD", b"POST", b"get", b"PU", b"OPTIONS", b"\r\nGET", b" GET", b""])
    target = one("target", _TARGETS[:7], _TARGETS[7:])
    version = one("version", [b"HTTP/1.1"], [b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.10", b"http/1.1", b"HTTP/1.1 ", b""])
    fields = draw(st.lists(st.sampled_from(_HEADERS[:9]), max_size=3, unique_by=lambda line: line[:6].lower()))
    if oddity == "field":
        fields.insert(draw(st.integers(0, len(fields))), draw(st.sampled_from(_HEADERS[9:])))
    if oddity != "host":
        fields.insert(0, b"Host: x")
    body = b"" if method == b"GET" else draw(st.sampled_from([b"", b"abc", b"\r\n", b"0\r\n\r\n"]))
    body += one("body", [b""], [b"abc", b"x", b"3\r\nabc\r\n0\r\n\r\n", b"\r\n", b"GET /now/b HTTP/1.1\r\n"])
    if method == b"PUT" and oddity != "length":
        fields.append(b"Content-Length: %d" % len(body))
    end = one("end", [b"\r\n"], [b"\n", b"\r", b"\r\r\n", b"\r\n "])
    return end.join([method + b" " + target + b" " + version, *fields, b"", b""]) + body


@st.composite
def _packets(draw: st.DrawFn) -> list[bytes]:
    requests = draw(st.lists(_requests(), min_size=1, max_size=4))
    requests *= draw(st.sampled_from([1, 1, 2]))  # what was read once is remembered
    data = b"".join(requests)
    cuts = {0, len(data)}
    if draw(st.booleans()):
        cuts |= set(accumulate(map(len, requests)))
    if draw(st.booleans()):
        lines = [match.start() for match in re.finditer(rb"\r|\n", data)]
        cuts |= set(draw(st.lists(st.sampled_from(lines) | st.integers(0, len(data)), max_size=4)))
    places = sorted(cuts)
    return [data[start:stop] for start, stop in pairwise(places)]


def _shown(method: str, target: str, headers: Mapping[str, str], body: bytes) -> bytes:
    told = [method, target, *(f"{name}={headers[name]}" for name in _SHOWN if name in headers)]
    return "\n".join(told).encode(errors="surrogateescape") + b"\n\n" + body


async def _ordinary(request: web.BaseRequest) -> web.Response:
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = await request.read()
    return web.Response(body=_shown(request.method, request.raw_path, request.headers, body), headers={"Way": "any"})


async def _answer(asked: Asked) -> Told | None:
    return None if asked.target.startswith("/not") else _told(asked)


def _told(asked: Asked) -> Told:
    body = _shown(asked.method, asked.target, asked.headers, asked.body)
    return Told(200, {"Way": "any", "Content-Type": "application/octet-stream"}, body)


class _Port:
    """One server; its shortcut counts, and is none if there shall be no short way."""

    def __init__(self, *, short: bool) -> None:
        self.taken = 0
        self.number = 0
        self._short = short
        self._server: BoundedServer
        self._site: asyncio.Server

    def _shortcut(self, asked: Asked) -> Told | Answering | None:
        self.taken += 1
        if asked.target.startswith("/now"):
            return _told(asked)
        return _answer if asked.target.startswith(("/task", "/not")) else None

    async def open(self) -> None:
        self._server = BoundedServer(
            _ordinary,
            connections_max=10,
            keepalive_timeout=30.0,
            shortcut=self._shortcut if self._short else None,
            access_log=None,
        )
        self._site = await open_port(self._server, "127.0.0.1", 0, None)
        self.number = self._site.sockets[0].getsockname()[1]

    async def close(self) -> None:
        self._site.close()
        self._server.pre_shutdown()
        await self._server.shutdown(1.0)
        await port_closed(self._site)


class _Caller(asyncio.Protocol):
    """Keeps all that comes, also when the connection is reset behind it."""

    def __init__(self) -> None:
        self.came = b""
        self.ended = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.came += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set()


async def _answers(port: _Port, packets: list[bytes]) -> list[tuple[list[bytes], bytes]]:
    """What the port answers to these packets and `_LAST`: lines of the head, and body; the connection ends."""
    async with asyncio.timeout(60):
        transport, caller = await asyncio.get_running_loop().create_connection(_Caller, "127.0.0.1", port.number)
        for packet in [*packets, _LAST]:
            if transport.is_closing():
                break
            transport.write(packet)
            for _ in range(3):
                await asyncio.sleep(0)  # the other end of the loopback gets its turn
        await caller.ended.wait()
        transport.close()
    undated = re.sub(rb"\r\nDate: [^\r]*", b"", caller.came)
    whole = [answer.partition(b"\r\n\r\n") for answer in undated.split(b"HTTP/1.1 ")[1:]]
    return [(sorted(head.split(b"\r\n")), body) for head, _, body in whole]


@contextmanager
def _ports(loop: Callable[[], asyncio.AbstractEventLoop]) -> Iterator[tuple[asyncio.Runner, _Port, _Port]]:
    with asyncio.Runner(loop_factory=loop) as runner:
        short, plain = _Port(short=True), _Port(short=False)
        runner.run(short.open())
        runner.run(plain.open())
        try:
            yield runner, short, plain
        finally:
            runner.run(short.close())
            runner.run(plain.close())


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_both_ways_answer_alike(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    with _ports(loop) as (runner, short, plain):

        @settings(max_examples=250)
        @given(_packets())
        def alike(packets: list[bytes]) -> None:
            one = runner.run(_answers(short, packets))
            other = runner.run(_answers(plain, packets))
            if one != other:
                fewer, more = sorted((one, other), key=len)
                assert fewer[-1:] == more[-1:]
                assert fewer[-1][0][0].startswith(b"400 ")
                assert fewer[:-1] == more[: len(fewer) - 1]

        alike()
        assert short.taken > 20
