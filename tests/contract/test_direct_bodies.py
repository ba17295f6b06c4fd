"""Long bodies that a thread of the SDK receives straight from the socket: the same bytes, the same failures."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import uvloop

from copypool.transport import BodyStream, LinkFailed, Timeouts, Transport
from kit.eventually import eventually
from kit.played_server import serving_connections

SIZE = 20 * 1024 * 1024 + 17
BODY = os.urandom(1024 * 1024) * (SIZE // (1024 * 1024)) + b"x" * 17
PIECE_BYTES = 1024 * 1024
PATIENT = Timeouts(first_byte_s=60.0, stall_s=60.0)  #: a machine that pauses is no server that does

Send = Callable[[asyncio.StreamWriter], Awaitable[None]]


class Collecting:
    """Takes a body whole."""

    def __init__(self) -> None:
        self.got = bytearray()

    @property
    def wanted_bytes(self) -> int:
        return min(PIECE_BYTES, SIZE - len(self.got))

    def feed(self, data: bytes) -> list[bytes]:
        self.got += data
        return [data]


@asynccontextmanager
async def serving(send: Send) -> AsyncIterator[tuple[str, list[int]]]:
    """A server that answers every GET by `send`; its URL, and the ports that clients came from."""
    ports: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ports.append(writer.get_extra_info("peername")[1])
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n".encode())
            await send(writer)

    async with serving_connections(serve) as url:
        yield f"{url}/long", ports


async def whole(writer: asyncio.StreamWriter) -> None:
    writer.write(BODY)
    await writer.drain()


async def half(writer: asyncio.StreamWriter) -> None:
    writer.write(BODY[: SIZE // 2])
    await writer.drain()


async def read_all(stream: BodyStream, taker: Collecting) -> None:
    while taker.wanted_bytes:
        await stream.read_through(taker)


async def _read_twice() -> None:
    async with serving(whole) as (url, ports), Transport(timeouts=PATIENT) as transport:
        for _ in range(2):
            stream = await transport.open(url, headers={})
            taker = Collecting()
            await read_all(stream, taker)
            stream.close()
            assert taker.got == BODY
        assert len(ports) == 1, "the connection is used again"


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_body_is_received_whole_and_its_connection_is_used_again(run: Callable[..., None]) -> None:
    run(_read_twice())


async def _failing(send: Send, timeouts: Timeouts) -> tuple[LinkFailed, bytes]:
    """How the read of a body that `send` does not send whole fails, and what was taken before."""
    async with serving(send) as (url, _), Transport(timeouts=timeouts) as transport:
        stream = await transport.open(url, headers={})
        taker = Collecting()
        with pytest.raises(LinkFailed) as caught:
            await read_all(stream, taker)
        stream.close()
    return caught.value, bytes(taker.got)


async def test_a_body_that_stalls_is_given_up() -> None:
    failure, got = await _failing(half, Timeouts(stall_s=2.0))
    assert failure.reason == "stall"
    assert got == BODY[: SIZE // 2], "all that came was taken before"


async def test_a_body_that_ends_early_is_an_error() -> None:
    async def half_and_end(writer: asyncio.StreamWriter) -> None:
        await half(writer)
        writer.close()
        await writer.wait_closed()

    failure, got = await _failing(half_and_end, PATIENT)
    assert failure.reason == "error"
    assert got == BODY[: len(got)]


async def test_a_read_that_is_cancelled_gives_its_descriptors_back() -> None:
    async with serving(half) as (url, _), Transport(timeouts=PATIENT) as transport:
        before = len(os.listdir("/proc/self/fd"))
        stream = await transport.open(url, headers={})
        taker = Collecting()
        reading = asyncio.create_task(read_all(stream, taker))
        await eventually(lambda: len(taker.got) == SIZE // 2, "the stream stands still")
        assert stream._direct is not None, "it has the connection"
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        stream.close()
        await eventually(lambda: len(os.listdir("/proc/self/fd")) <= before, "descriptors were given back")
