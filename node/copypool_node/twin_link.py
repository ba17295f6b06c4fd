"""The writer's side of a twin: sends every group of one open extent to the node that holds the extent's twin.

Bytes go out in file order, each append once. The first one that does not succeed in time ends the twin for good: what
became of it is not known, and a later append could leave a hole. Whether the extent goes on without its twin is for
the caller (the class's `on_copy_failure`). aiohttp's exceptions end here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

import aiohttp
import msgspec

from copypool.protocol.errors import from_response
from copypool.protocol.internal import Claim
from copypool.protocol.routes import CAPABILITY, MSGPACK, OCTETS, TRACE
from copypool.protocol.twins import AppendReply, TwinTarget
from copypool.telemetry import tracing
from copypool_node.format import Buffer

if TYPE_CHECKING:
    from copypool_node.session import Session

PIECE_BYTES = 256 * 1024  #: handed to the socket at a time, so that a long group does not hold the loop


class TwinLink:
    """One extent's twin, as its writer sees it. One append at a time."""

    def __init__(self, target: TwinTarget, extent: int, header: bytes, session: Session, timeout_s: float) -> None:
        self.target = target
        self.failure = ""  #: why the twin has ended; empty: it holds everything that was appended
        self._extent = extent
        self._header: bytes | None = header  #: of the file; sent with the first group
        self._session = session
        self._timeout_s = timeout_s

    @property
    def volume(self) -> str:
        """Name of the twin's volume, for receipts."""
        return self.target.volume_name

    def end(self, why: str) -> None:
        """Append nothing more. Safe to repeat; the first reason stays."""
        self.failure = self.failure or why

    async def append(self, offset: int, buffers: Sequence[Buffer], *, sync: bool = True) -> Claim | None:
        """Send bytes that begin at `offset`; with `sync` they are checked and fsync'd there when it returns a claim.

        None: they are not, and the twin has ended (`failure`). Bounded by the timeout. When cancelled the twin ends.
        """
        if self.failure:
            return None
        if self._header is not None:
            buffers, offset, self._header = [self._header, *buffers], offset - len(self._header), None
        try:
            async with asyncio.timeout(self._timeout_s):
                reply = await self._send(offset, b"".join(buffers), sync=sync)
        except asyncio.CancelledError:
            self.end("the write was given up")
            raise
        except TimeoutError:
            self.end(f"{self.target.node} did not answer within {self._timeout_s:g} s")
        except (aiohttp.ClientError, OSError, msgspec.MsgspecError) as exc:
            self.end(f"{self.target.node} gave no answer: {str(exc) or type(exc).__name__}")
        else:
            if isinstance(reply, AppendReply):
                return Claim(self.target.node_id, reply.epoch, self.target.volume)
            self.end(f"{self.target.node} refused: {reply}")
        return None

    async def _send(self, offset: int, data: bytes, *, sync: bool) -> AppendReply | str:
        """The twin's answer, or why it refused."""
        peer = self._session.peers.get(self.target.node_id)
        base = self.target.url if peer is None else peer.url
        url = f"{base}/i/append/{self._extent}?offset={offset}&sync={int(sync)}"
        headers = {
            CAPABILITY: self.target.capability,
            "Content-Type": OCTETS,
            "Accept": MSGPACK,
            "Content-Length": str(len(data)),
            TRACE: tracing.outgoing(),
        }
        body = data if len(data) <= PIECE_BYTES else _pieces(data)
        async with self._session.link.http.post(url, data=body, headers=headers) as response:
            content = await response.read()
            if response.status >= 400:
                return from_response(response.status, content, response.content_type).message
        reply = msgspec.msgpack.decode(content, type=AppendReply)
        if reply.length != offset + len(data):
            return f"it stands at {reply.length}, not at {offset + len(data)}"
        return reply


async def _pieces(data: bytes) -> AsyncIterator[memoryview]:
    view = memoryview(data)
    for start in range(0, len(data), PIECE_BYTES):
        yield view[start : start + PIECE_BYTES]
