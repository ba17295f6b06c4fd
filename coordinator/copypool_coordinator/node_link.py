"""Calls from this coordinator to nodes: commands, joined small reads, streams. aiohttp's exceptions end here.

Every call has a deadline: connect 1 s, first byte 2 s, 1 s between bytes; the time that whoever takes the bytes lets
pass is his, not the node's. A node that did not answer is a *suspect*
for some seconds: routes put it behind the others, so that one dead node costs one timeout and not one per request.
Nothing else follows from it: a suspect's locations are neither unavailable nor damaged.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import aiohttp
import msgspec
from yarl import URL

from copypool.answer_timers import until_end
from copypool.protocol.api import Empty, SegmentRef
from copypool.protocol.errors import CopypoolError, DigestMismatch, Unavailable, from_response
from copypool.protocol.internal import Done, ReadItem, ReadManyItem, ReadManyReply, ReadManyRequest, RecordInfo
from copypool.protocol.routes import CAPABILITY, MSGPACK, TRACE
from copypool.telemetry import tracing
from copypool_coordinator.batching import Batcher
from copypool_coordinator.capabilities import Mint
from copypool_coordinator.config import Limits
from copypool_coordinator.view import ClusterView

T = TypeVar("T")

CONNECT_S = 1.0
FIRST_BYTE_S = 2.0
STALL_S = 1.0
SUSPECT_S = 5.0
#: An answer this young proves that a node can be reached.
_PROVEN_S = 0.25
_PROBE_S = 0.5
READ_MANY_ITEMS = 128
READ_MANY_BYTES = 4 * 1024 * 1024
#: The largest answer to a command.
REPLY_MAX_BYTES = 64 * 1024 * 1024
_CHUNK_BYTES = 256 * 1024


class NodeLink:
    """One coordinator's connections to all nodes. For one event loop; close it."""

    def __init__(self, view: ClusterView, mint: Mint, limits: Limits, tls: ssl.SSLContext | None) -> None:
        self._view = view
        self._mint = mint
        self._limits = limits
        connector = aiohttp.TCPConnector(limit=1024, limit_per_host=64, ssl=tls if tls is not None else True)
        self.http = aiohttp.ClientSession(
            connector=connector, auto_decompress=False, read_bufsize=_CHUNK_BYTES, middlewares=(until_end,)
        )
        self._suspects: dict[int, float] = {}
        self.on_suspect: Callable[[], None] = _nothing  #: called whenever a node becomes a suspect
        self._answered: dict[int, float] = {}  #: node -> monotonic time of its last answer
        self._reads: dict[int, Batcher[ReadItemKey, ReadManyItem]] = {}
        self._encoder = msgspec.msgpack.Encoder()
        self._read_many = msgspec.msgpack.Decoder(ReadManyReply)

    async def close(self) -> None:
        """Drop every connection; calls under way fail."""
        for batcher in self._reads.values():
            await batcher.close()
        await self.http.close()

    @property
    def reads_ratio(self) -> float:
        """How full the fullest node's queue of small reads is."""
        return max((each.waiting for each in self._reads.values()), default=0) / self._limits.node_read_queue

    # -- who -------------------------------------------------------------------------------------
    def url_of(self, node_id: int) -> str:
        """Base URL of a node; `Unavailable` when it is not known."""
        session = self._view.sessions.get(node_id)
        if session is not None:
            return session.row.url
        node = self._view.nodes_by_id.get(node_id)
        if node is None or not node.row.url:
            raise Unavailable(f"node {node_id} is not known here")
        return node.row.url

    def suspects(self) -> frozenset[int]:
        """Nodes that did not answer this coordinator a moment ago."""
        if not self._suspects:
            return frozenset()
        now_s = time.monotonic()
        for node_id in [node_id for node_id, until_s in self._suspects.items() if until_s <= now_s]:
            del self._suspects[node_id]
        return frozenset(self._suspects)

    def suspect(self, node_id: int) -> None:
        """The node did not answer."""
        self._answered.pop(node_id, None)
        self.on_suspect()
        self._suspects[node_id] = time.monotonic() + SUSPECT_S

    async def answers(self, node_id: int) -> bool:
        """Whether the node answered within `_PROVEN_S`, or answers now: a client may be sent there."""
        if time.monotonic() - self._answered.get(node_id, -_PROVEN_S) < _PROVEN_S:
            return True
        if node_id in self.suspects():
            return False
        try:
            await self._exchange(
                node_id, "GET", f"{self.url_of(node_id)}/livez", headers={}, data=None, answer_s=_PROBE_S
            )
        except CopypoolError as error:
            return not isinstance(error, Unavailable)
        return True

    # -- commands --------------------------------------------------------------------------------
    async def send(
        self, node_id: int, verb: str, command: msgspec.Struct, reply: type[T], *, answer_s: float = FIRST_BYTE_S
    ) -> T:
        """Give node `node_id` the command `POST /i/<verb>` and return its answer.

        Commands are safe to repeat, so a lost answer is `Unavailable` like a refused connection: say it again.
        Raises the node's own error (`Fenced` for an old term).
        """
        url = f"{self.url_of(node_id)}/i/{verb}"
        headers = {"Authorization": f"Command {self._mint.command_key(node_id).hex()}"}
        headers |= {"Content-Type": MSGPACK, "Accept": MSGPACK}
        content = await self._exchange(
            node_id, "POST", url, headers=headers, data=self._encoder.encode(command), answer_s=answer_s
        )
        if reply is Empty or reply is Done:
            return reply()  # nothing to say in either form
        try:
            return msgspec.msgpack.decode(content, type=reply)
        except msgspec.MsgspecError as exc:
            raise Unavailable(f"node {node_id} answered {verb} with something else: {exc}") from exc

    async def call(
        self,
        node_id: int,
        method: str,
        target: str,
        *,
        capability: str,
        headers: dict[str, str],
        answer_s: float = FIRST_BYTE_S,
    ) -> bytes:
        """One client-side call with a capability, without a body; `target` begins with `/` and is encoded."""
        url = self.url_of(node_id) + target
        return await self._exchange(
            node_id, method, url, headers={CAPABILITY: capability, **headers}, data=None, answer_s=answer_s
        )

    async def record(self, node_id: int, segment: SegmentRef, version: int, capability: str) -> RecordInfo:
        """The record header in front of a segment: whose it is, user metadata."""
        content = await self.call(
            node_id,
            "GET",
            f"/v1/record/{segment.extent}/{segment.offset}?v={version}",
            capability=capability,
            headers={"Accept": MSGPACK},
        )
        try:
            return msgspec.msgpack.decode(content, type=RecordInfo)
        except msgspec.MsgspecError as exc:
            raise Unavailable(f"node {node_id} answered with no record header: {exc}") from exc

    async def _exchange(
        self,
        node_id: int,
        method: str,
        url: str,
        *,
        headers: dict[str, str],
        data: bytes | None,
        answer_s: float,
    ) -> bytes:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=answer_s)
        try:
            async with (
                asyncio.timeout(CONNECT_S + 4 * answer_s),
                self.http.request(
                    method,
                    URL(url, encoded=True),
                    headers={**headers, TRACE: tracing.outgoing()},
                    data=data,
                    timeout=timeout,
                    allow_redirects=False,
                ) as response,
            ):
                if (response.content_length or 0) > REPLY_MAX_BYTES:
                    raise Unavailable(f"node {node_id} answers with {response.content_length} bytes")
                content = await response.read()
                self._answered[node_id] = time.monotonic()
                if response.status >= 400:
                    raise from_response(response.status, content, response.content_type)
                return content
        except aiohttp.ClientConnectorError as exc:
            self.suspect(node_id)
            raise Unavailable(f"node {node_id} cannot be reached: {exc}", sent=False) from exc
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            self.suspect(node_id)
            raise Unavailable(f"node {node_id} does not answer: {str(exc) or type(exc).__name__}", sent=True) from exc

    # -- reads -----------------------------------------------------------------------------------
    async def read_small(self, node_id: int, segment: SegmentRef) -> bytes:
        """The payload of a small segment, verified by the node; joined with others for the same node.

        Raises:
            Unavailable: the node does not answer.
            DigestMismatch: its bytes there are bad; it knows.
            CopypoolError: what the node says instead (it has no such bytes).
        """
        batcher = self._reads.get(node_id)
        if batcher is None:
            batcher = self._reads[node_id] = self._new_batcher(node_id)
        item = await batcher.submit((segment.extent, segment.offset, segment.length))
        if item.code:
            if item.code == DigestMismatch.code:
                raise DigestMismatch(f"node {node_id}: extent {segment.extent} is damaged at {segment.offset}")
            raise Unavailable(f"node {node_id} cannot read extent {segment.extent}: {item.code}")
        if len(item.payload) != segment.length:
            raise Unavailable(f"node {node_id} sent {len(item.payload)} of {segment.length} bytes")
        return item.payload

    def _new_batcher(self, node_id: int) -> Batcher[ReadItemKey, ReadManyItem]:
        if len(self._reads) > 2 * len(self._view.nodes_by_id) + 16:
            for known in [known for known, batcher in self._reads.items() if batcher.idle]:
                del self._reads[known]

        async def read_many(keys: Sequence[ReadItemKey]) -> Sequence[ReadManyItem]:
            request = ReadManyRequest([ReadItem(extent, offset, length) for extent, offset, length in keys])
            return (await self.send(node_id, "read-many", request, ReadManyReply)).items

        return Batcher(
            f"reads of node {node_id}",
            read_many,
            batch=READ_MANY_ITEMS,
            flying=self._limits.node_reads,
            queue=self._limits.node_read_queue,
            weigh=_length_of,
            weight=READ_MANY_BYTES,
        )

    @asynccontextmanager
    async def stream(
        self, node_id: int, segment: SegmentRef, version: int, capability: str, start: int, stop: int
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Payload bytes [start, stop) of a segment, verified by the node, in chunks, with a stall limit.

        Raises `Unavailable` when the stream breaks or stalls; what was yielded before is good.
        """
        url = f"{self.url_of(node_id)}/v1/segments/{segment.extent}/{segment.offset}/{segment.length}?v={version}"
        headers = {CAPABILITY: capability, TRACE: tracing.outgoing()}
        part = start > 0 or stop < segment.length
        if part:
            headers["Range"] = f"bytes={start}-{stop - 1}"
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=FIRST_BYTE_S)
        try:
            async with self.http.get(
                URL(url, encoded=True), headers=headers, timeout=timeout, allow_redirects=False
            ) as response:
                if response.status >= 400:
                    raise from_response(response.status, await response.content.read(64 * 1024), response.content_type)
                if response.status != (206 if part else 200):
                    raise Unavailable(f"node {node_id} answers {response.status} to a read from byte {start}")
                yield self._chunks(response, stop - start)
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            self.suspect(node_id)
            sent = not isinstance(exc, aiohttp.ClientConnectorError)
            raise Unavailable(f"node {node_id} broke off a read: {str(exc) or type(exc).__name__}", sent=sent) from exc

    async def _chunks(self, response: aiohttp.ClientResponse, left: int) -> AsyncIterator[bytes]:
        while left > 0:
            async with asyncio.timeout(STALL_S):
                chunk = await response.content.readany()
            if not chunk:
                raise aiohttp.ClientPayloadError(f"the stream ended {left} bytes early")
            left -= len(chunk)
            if left < 0:
                raise aiohttp.ClientPayloadError("the stream is longer than the segment")
            yield chunk


ReadItemKey = tuple[int, int, int]  #: extent, offset, length


def _nothing() -> None:
    """Nobody listens."""


def _length_of(key: ReadItemKey) -> int:
    return key[2]
