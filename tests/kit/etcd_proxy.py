"""A TCP proxy in front of one etcd member that understands just enough HTTP/2 to break things at exact places.

It counts the grpc messages that the server sends on a connection, and can cut the connection after the k-th, keep
replies back while requests pass, or be away altogether.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType

_FRAME_HEADER_BYTES = 9
_MESSAGE_HEADER_BYTES = 5
_DATA = 0


class _MessageCounter:
    """Counts whole grpc messages in the DATA frames of one connection."""

    def __init__(self) -> None:
        self._partial: dict[int, bytearray] = {}
        self.count = 0

    def take(self, stream_id: int, payload: bytes) -> None:
        held = self._partial.setdefault(stream_id, bytearray())
        held += payload
        while len(held) >= _MESSAGE_HEADER_BYTES:
            whole = _MESSAGE_HEADER_BYTES + int.from_bytes(held[1:_MESSAGE_HEADER_BYTES], "big")
            if len(held) < whole:
                return
            del held[:whole]
            self.count += 1


class EtcdProxy:
    """Forwards a loopback port to `upstream_port`; `cut_after(n)` tells after how many messages connection n ends.

    Connections are numbered from 0; None means that it is not cut.
    """

    def __init__(self, upstream_port: int, cut_after: Callable[[int], int | None] = lambda connection: None) -> None:
        self._upstream_port = upstream_port
        self._cut_after = cut_after
        self._server: asyncio.Server | None = None
        self._pipes: set[asyncio.Task[None]] = set()
        self.port = 0
        self.connections = 0
        self.cuts = 0
        self.messages = 0
        #: while set, requests reach etcd and its answers are thrown away
        self.swallow_replies = False
        self.swallowed_bytes = 0

    @property
    def endpoint(self) -> str:
        """host:port of the proxy."""
        return f"127.0.0.1:{self.port}"

    async def __aenter__(self) -> EtcdProxy:
        await self.resume()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.pause()

    async def resume(self) -> None:
        """Take connections (again), on the same port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def pause(self) -> None:
        """Refuse connections and cut those there are."""
        if self._server is not None:
            self._server.close()
            self._server = None
        pipes = list(self._pipes)
        for pipe in pipes:
            pipe.cancel()
        await asyncio.gather(*pipes, return_exceptions=True)

    async def _accept(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        number = self.connections
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._pipes.add(task)
        to_server = None
        up: asyncio.Task[None] | None = None
        try:
            server, to_server = await asyncio.open_connection("127.0.0.1", self._upstream_port)
            up = asyncio.create_task(_copy(client, to_server))
            await self._replies(server, to_client, self._cut_after(number))
        except (OSError, asyncio.IncompleteReadError):
            pass
        except asyncio.CancelledError:
            # asyncio's stream callback would log a cancelled handler as an error; pause() awaits the end only.
            pass
        finally:
            self._pipes.discard(task)
            if up is not None:
                up.cancel()
                await asyncio.gather(up, return_exceptions=True)
            for writer in (to_client, to_server):
                if writer is not None:
                    writer.transport.abort()

    async def _replies(
        self, server: asyncio.StreamReader, to_client: asyncio.StreamWriter, cut_after: int | None
    ) -> None:
        counter = _MessageCounter()
        while True:
            header = await server.readexactly(_FRAME_HEADER_BYTES)
            payload = await server.readexactly(int.from_bytes(header[:3], "big"))
            if self.swallow_replies:
                self.swallowed_bytes += len(header) + len(payload)
                continue
            to_client.write(header + payload)
            await to_client.drain()
            if header[3] == _DATA:
                before = counter.count
                counter.take(int.from_bytes(header[5:9], "big") & 0x7FFFFFFF, payload)
                self.messages += counter.count - before
                if cut_after is not None and counter.count >= cut_after:
                    self.cuts += 1
                    # A clean close, so that the bytes written above still arrive.
                    to_client.write_eof()
                    await asyncio.sleep(0)
                    to_client.close()
                    await to_client.wait_closed()
                    return


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
