"""The client side of a storage node, in memory, with faults to switch on."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from copypool.protocol import routes, stripes
from copypool.protocol.api import ANY_VERSION, BatchReply, BatchResult, CompleteRequest, Receipt, SegmentRef
from copypool.protocol.capability import ReadCapability, check_write, open_capability
from copypool.protocol.conditions import write_condition
from copypool.protocol.digests import digest_of, format_digest, parse_digest
from copypool.protocol.errors import CopypoolError, DigestRefused, Forbidden, Invalid, NotFound, PreconditionFailed
from copypool.protocol.framing import decode_batch
from copypool.protocol.names import check_path
from kit.fake_server import FakeFile, FakeServer, answering, body_of, cut, reply

if TYPE_CHECKING:
    from kit.fake_cluster import FakeCluster


@dataclass
class Faults:
    """What goes wrong at a node. Byte numbers count the bytes of an answer's body."""

    refuse: bool = False  #: drop every connection as soon as a request is there
    error: CopypoolError | None = None  #: answer this to everything
    silent: bool = False  #: take the request and never answer
    delay_s: float = 0.0  #: before the first byte of a read
    cut_at: int | None = None  #: reads: drop the connection after that many bytes
    stall_at: int | None = None  #: reads: send no more after that many bytes
    flip_at: int | None = None  #: reads: flip a bit of that byte on its way
    lose_replies: int = 0  #: writes: carry out this many, and drop the connection instead of answering
    refuse_writes: int = 0  #: writes: answer `error_write` to this many
    error_write: CopypoolError | None = None
    entry_errors: int = 0  #: batches: answer `unavailable` for this many entries


class FakeNode(FakeServer):
    """One node with one volume; its extents are its disk."""

    def __init__(self, cluster: FakeCluster, node_id: int, primary: bool) -> None:
        super().__init__(f"node{node_id}")
        self.id = node_id
        self.primary = primary
        self.faults = Faults()
        self.extents: dict[int, bytearray] = {}
        self.reads: list[tuple[int, str]] = []  #: (extent, Range header) of every read that arrived
        self.capability_life_ms = 300_000
        self._cluster = cluster
        self._stopping = asyncio.Event()

    def routes(self) -> list[web.RouteDef]:
        """The node's endpoints for clients."""
        return [
            web.put("/v1/files/{ns}/{path:(?s:.+)}", answering(self._put)),
            web.delete("/v1/files/{ns}/{path:(?s:.+)}", answering(self._delete)),
            web.put("/v1/parts/{ns}/{upload}/{number}/{path:(?s:.+)}", answering(self._put_part)),
            web.post("/v1/complete/{ns}/{path:(?s:.+)}", answering(self._complete)),
            web.post("/v1/batch/{ns}", answering(self._batch)),
            web.get("/v1/segments/{extent}/{offset}/{length}", answering(self._read)),
        ]

    async def start(self) -> None:
        """Listen."""
        self._stopping.clear()
        await super().start()

    async def stop(self) -> None:
        """End the stalled requests, then the server."""
        self._stopping.set()
        await super().stop()

    # -- writes -------------------------------------------------------------------------------
    async def _put(self, request: web.Request) -> web.StreamResponse:
        data, namespace, path = await self._take_body(request)
        self._check_digest(request, data)
        condition = write_condition(request.headers)
        self._check_absent(condition.if_absent, namespace, path, request)
        self._check_version(condition.if_version, namespace, path)
        metadata = request.headers.get(routes.METADATA, "")
        file = FakeFile(
            version=0,
            size=len(data),
            digest=format_digest(digest_of(data)),
            segments=[self._cluster.store(self, data)],
            write_id=bytes.fromhex(request.headers[routes.WRITE_ID]),
            metadata=routes.decode_metadata(metadata) if metadata else {},
        )
        return self._acknowledge(request, self._commit(namespace, path, file))

    async def _delete(self, request: web.Request) -> web.StreamResponse:
        _, namespace, path = await self._take_body(request)
        write_id = bytes.fromhex(request.headers[routes.WRITE_ID])
        history = self._cluster.files.get((namespace, path), [])
        if not any(file.write_id == write_id for file in history):
            self._cluster.current(namespace, path)
            self._check_version(write_condition(request.headers).if_version, namespace, path)
        tombstone = FakeFile(0, 0, "", [], write_id, deleted=True)
        return self._acknowledge(request, self._commit(namespace, path, tombstone), 200)

    async def _put_part(self, request: web.Request) -> web.StreamResponse:
        data, _, path = await self._take_body(request)
        self._check_digest(request, data)
        segment = self._cluster.store(self, data)
        number = int(request.match_info["number"])
        self._cluster.parts[(request.match_info["upload"], number)] = segment
        version = self._cluster.clock.mint(self._cluster.now_ms())
        digest = format_digest(digest_of(data))
        return self._acknowledge(request, self._receipt(path, version, len(data), digest, segment))

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        _, namespace, path = await self._take_body(request)
        wanted = await body_of(request, CompleteRequest)
        for number, part in enumerate(wanted.parts):
            if part.number != number or self._cluster.parts.get((wanted.upload, number)) != part.segment:
                raise Invalid(f"part {number} is not one of the upload {wanted.upload}")
        self._check_absent(wanted.if_absent, namespace, path, request)
        self._check_version(wanted.if_version, namespace, path)
        refs = [part.segment for part in wanted.parts]
        manifest = None
        if len(refs) > self._cluster.inline_max:
            manifest = self._cluster.store(self, msgspec.msgpack.encode(refs))
        file = FakeFile(
            0, wanted.size, format_digest(wanted.digest), refs, wanted.write_id, manifest, dict(wanted.metadata)
        )
        return self._acknowledge(request, self._commit(namespace, path, file))

    async def _batch(self, request: web.Request) -> web.StreamResponse:
        await self._before_write(request)
        content = await request.read()
        namespace = int(request.match_info["ns"])
        results: list[BatchResult] = []
        for entry, payload in decode_batch(content):
            data = bytes(payload)
            try:
                self._check_capability(request, namespace, check_path(entry.path), len(data))
                self._cluster.writes.append((self.name, entry.write_id.hex(), str(entry.first_sent_ms)))
                if self.faults.entry_errors > 0:
                    self.faults.entry_errors -= 1
                    results.append(BatchResult(code="unavailable", message="not now", retryable=True))
                    continue
                if entry.digest and entry.digest != digest_of(data):
                    raise DigestRefused("the payload has another digest")
                if entry.if_absent:
                    self._check_absent(True, namespace, entry.path, None)
                file = FakeFile(
                    0, len(data), format_digest(digest_of(data)), [self._cluster.store(self, data)], entry.write_id
                )
                results.append(BatchResult(receipt=self._commit(namespace, entry.path, file)))
            except CopypoolError as exc:
                results.append(BatchResult(code=exc.code, message=exc.message, retryable=exc.retryable))
        return self._acknowledge(request, BatchReply(results))

    async def _take_body(self, request: web.Request) -> tuple[bytes, int, str]:
        await self._before_write(request)
        path = check_path(request.match_info["path"])
        namespace = int(request.match_info["ns"])
        self._cluster.in_flight += 1
        self._cluster.in_flight_max = max(self._cluster.in_flight_max, self._cluster.in_flight)
        try:
            data = await request.read()
        finally:
            self._cluster.in_flight -= 1
        self._check_capability(request, namespace, path, len(data))
        write_id, first_sent = request.headers[routes.WRITE_ID], request.headers[routes.FIRST_SENT]
        self._cluster.writes.append((self.name, write_id, first_sent))
        return data, namespace, path

    async def _before_write(self, request: web.Request) -> None:
        await self._before(request)
        if self.faults.refuse_writes > 0 and self.faults.error_write is not None:
            self.faults.refuse_writes -= 1
            await request.read()
            raise self.faults.error_write

    def _check_capability(self, request: web.Request, namespace: int, path: str, size_bytes: int) -> None:
        keys = {1: self._cluster.keys(self.id)}
        right = open_capability(request.headers[routes.CAPABILITY], keys, self.id, self._cluster.now_ms())
        check_write(right, namespace, path, size_bytes)

    def _check_digest(self, request: web.Request, data: bytes) -> None:
        stated = request.headers.get(routes.DIGEST)
        if stated is not None and parse_digest(stated) != digest_of(data):
            raise DigestRefused("the body has another digest")

    def _check_absent(self, if_absent: bool, namespace: int, path: str, request: web.Request | None) -> None:
        if not if_absent:
            return
        history = self._cluster.files.get((namespace, path), [])
        if request is not None and any(file.write_id.hex() == request.headers[routes.WRITE_ID] for file in history):
            return
        if history and not history[-1].deleted:
            raise PreconditionFailed(f"the file {path!r} exists", version=history[-1].version)

    def _check_version(self, if_version: int, namespace: int, path: str) -> None:
        history = self._cluster.files.get((namespace, path), [])
        current = history[-1].version if history and not history[-1].deleted else 0
        if if_version and if_version not in (current, ANY_VERSION if current else 0):
            raise PreconditionFailed(f"the file {path!r} has version {current}", version=current)

    def _commit(self, namespace: int, path: str, file: FakeFile) -> Receipt:
        stored, replayed = self._cluster.commit(namespace, path, file)
        segment = stored.segments[0] if stored.segments else None
        receipt = self._receipt(path, stored.version, stored.size, stored.digest, segment)
        receipt.replayed = replayed
        return receipt

    def _receipt(self, path: str, version: int, size: int, digest: str, segment: SegmentRef | None) -> Receipt:
        return Receipt("default", path, version, size, digest, segment, [f"{self.name}-v1"], "primary")

    def _acknowledge(self, request: web.Request, answer: object, status: int = 201) -> web.StreamResponse:
        if self.faults.lose_replies > 0:
            self.faults.lose_replies -= 1
            cut(request)
        return reply(request, answer, status)

    # -- reads --------------------------------------------------------------------------------
    async def _read(self, request: web.Request) -> web.StreamResponse:
        extent, offset, length = (int(request.match_info[name]) for name in ("extent", "offset", "length"))
        wanted = request.headers.get("Range", "")
        self.reads.append((extent, wanted))
        await self._before(request)
        keys = {1: self._cluster.keys(self.id)}
        right = open_capability(request.headers[routes.CAPABILITY], keys, self.id, self._cluster.now_ms())
        if not isinstance(right, ReadCapability) or (right.extent, right.offset, right.length) != (
            extent,
            offset,
            length,
        ):
            raise Forbidden("the capability is for another segment")
        if right.version != int(request.query["v"]):
            raise Forbidden("the capability is for another version")
        content = self.extents.get(extent)
        if content is None:
            raise NotFound(f"no extent {extent} here")
        start, stop = 0, length
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, stop = int(first), int(last) + 1
        body = bytearray()
        for part in stripes.split_range(offset, length, start, stop):
            body += content[part.prelude_offset - offset :][: part.prelude_bytes]
            body += content[part.data_offset - offset :][: part.data_bytes]
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), self.faults.delay_s)
        return await self._send(request, body, 206 if wanted else 200)

    async def _send(self, request: web.Request, body: bytearray, status: int) -> web.StreamResponse:
        faults = self.faults
        if faults.flip_at is not None and faults.flip_at < len(body):
            body[faults.flip_at] ^= 0x04
        response = web.StreamResponse(status=status, headers={"Content-Type": routes.STRIPES})
        response.content_length = len(body)
        await response.prepare(request)
        limit = min(at for at in (faults.cut_at, faults.stall_at, len(body)) if at is not None)
        for at in range(0, limit, 65_536):
            await response.write(bytes(body[at : min(at + 65_536, limit)]))
        if limit < len(body):
            if faults.stall_at is not None and faults.stall_at == limit:
                await self._stopping.wait()
            cut(request)
            return response
        await response.write_eof()
        return response

    async def _before(self, request: web.Request) -> None:
        if self.faults.refuse:
            cut(request)
            raise NotFound("the connection is gone")
        if self.faults.silent:
            await self._stopping.wait()
            cut(request)
        if self.faults.error is not None:
            await request.read()
            raise self.faults.error
