"""GET and HEAD of segments, and record headers. Own holdings only; needs no coordinator and no catalog."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from aiohttp.web import BaseRequest, Response, StreamResponse

from copypool.direct_socket import DirectSocket
from copypool.protocol.capability import ReadCapability
from copypool.protocol.conditions import byte_range, etag_of, last_modified_of
from copypool.protocol.errors import CopypoolError, Forbidden, NotFound
from copypool.protocol.internal import RecordInfo
from copypool.protocol.routes import CAPABILITY, MEDIUM, OCTETS, READ_FROM, STRIPES, VERSION
from copypool.serving.heads import Asked, Asks, Told, write_start
from copypool_node import requests
from copypool_node.format import decode_record_header
from copypool_node.pouring import POURED_MIN_BYTES, Body, Piece, pour
from copypool_node.reader import CHUNK_BYTES, RawBody, Reader, raw_runs, read_exactly
from copypool_node.requests import CapabilityDoor, reply

if TYPE_CHECKING:
    from copypool_node.metrics import Metrics

log = logging.getLogger(__name__)

#: Longer segments go the ordinary way, which sends them piece by piece.
SHORT_MAX_BYTES = 64 * 1024
#: What a request says is worked out once for so many requests; what may change meanwhile is looked at each time.
SEGMENTS_KEPT = 4096
_TARGET_KEPT_MAX_BYTES = 1024  #: longer targets are worked out each time


class _Segment(NamedTuple):
    """What a request for a whole segment says, and the right that it was found to show."""

    extent: int
    offset: int
    length: int
    text: str  #: of the capability
    capability: ReadCapability
    headers: dict[str, str]  #: of the answer
    start: bytes  #: the same, written


class ReadHandlers:
    """Handlers of requests that read what was stored."""

    def __init__(self, door: CapabilityDoor, reader: Reader, metrics: Metrics) -> None:
        self._door = door
        self._reader = reader
        self._metrics = metrics
        self._segments: dict[tuple[str, str | None], _Segment] = {}  #: by target and capability as they came

    async def get_segment(self, request: BaseRequest, rest: str, query: str) -> StreamResponse:
        """GET or HEAD /v1/segments/<extent>/<offset>/<length>?v=<version>."""
        extent, offset, length, capability = self._segment(request, rest, query)
        wanted = byte_range(request.headers, etag_of(capability.version), length) if request.method == "GET" else None
        start, stop = wanted if wanted is not None else (0, length)
        sources = await self._reader.sources(extent, offset, length)
        headers = _about(capability)
        if wanted is not None:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{length}"
        status = 200 if wanted is None else 206
        self._metrics.get_bytes += stop - start
        if capability.raw:
            headers["Content-Type"] = STRIPES
            runs = raw_runs(offset, length, start, stop)
            size = sum(run[1] for run in runs)
            medium = request.headers.get(READ_FROM) == MEDIUM
            if request.method != "HEAD" and len(runs) == 1 and size <= CHUNK_BYTES:
                content = await read_exactly(sources[0], *runs[0], from_medium=medium)
                return Response(body=content, status=status, headers=headers)
            body: Body[Any] = RawBody(sources[0], runs, from_medium=medium)
        else:
            headers["Content-Type"] = OCTETS
            size, medium = stop - start, False
            body = self._reader.plain(sources, offset, length, start, stop)
        if request.method == "HEAD":
            return Response(status=status, headers={**headers, "Content-Length": str(size)})
        return await _send(request, body, status, headers, size, poured=not medium)

    def get_cached(self, asked: Asked, prefix: str) -> Told | None:
        """As `get_short`, if nothing has to be waited for; None: ask there, also to be told what is wrong.

        `prefix` is that of the target, before the extent. Whether the right still holds, the door says each time.
        """
        key = asked.target, asked.headers.get(CAPABILITY)
        try:
            found = self._segments.get(key)
            if found is None or self._door.open(found.text) is not found.capability:
                found = self._read_target(asked, prefix)
                if len(asked.target) <= _TARGET_KEPT_MAX_BYTES:
                    self._segments[key] = found
        except CopypoolError:
            return None
        body = self._reader.cached(found.extent, found.offset, found.length, raw=found.capability.raw)
        if body is None:
            return None
        self._metrics.get_bytes += found.length
        return Told(200, found.headers, body, found.start)

    def _read_target(self, asked: Asked, prefix: str) -> _Segment:
        path, _, query = asked.target.partition("?")
        extent, offset, length, capability = self._segment(asked, path.removeprefix(prefix), query)
        text = requests.capability_text(asked, query)
        if len(self._segments) >= SEGMENTS_KEPT:
            self._segments.clear()
        headers = _whole(capability)
        return _Segment(extent, offset, length, text, capability, headers, write_start(200, headers))

    async def get_short(self, asked: Asked, rest: str, query: str) -> Told | None:
        """GET of a whole segment of at most `SHORT_MAX_BYTES`; None: a longer one, nothing was done."""
        extent, offset, length, capability = self._segment(asked, rest, query)
        if length > SHORT_MAX_BYTES:
            return None
        sources = await self._reader.sources(extent, offset, length)
        self._metrics.get_bytes += length
        if capability.raw:
            (run,) = raw_runs(offset, length, 0, length) or ((offset, 0),)
            body = await read_exactly(sources[0], *run)
        else:
            body = await self._reader.small(sources, offset, length)
        return Told(200, _whole(capability), body)

    def _segment(self, request: Asks, rest: str, query: str) -> tuple[int, int, int, ReadCapability]:
        """Extent, offset and length of what is asked for, and the right to read it."""
        pieces = rest.split("/")
        if len(pieces) != 3:
            raise NotFound("no such resource")
        extent = requests.number(pieces[0], "the extent")
        offset = requests.number(pieces[1], "the offset")
        length = requests.number(pieces[2], "the length")
        capability = self._open(request, query, extent, offset)
        if length != capability.length:
            raise Forbidden("the capability is for another segment")
        return extent, offset, length, capability

    async def get_record(self, request: BaseRequest, rest: str, query: str) -> Response:
        """GET /v1/record/<extent>/<offset>?v=<version>: what the record's header tells."""
        pieces = rest.split("/")
        if len(pieces) != 2:
            raise NotFound("no such resource")
        extent = requests.number(pieces[0], "the extent")
        offset = requests.number(pieces[1], "the offset")
        capability = self._open(request, query, extent, offset)
        if not 0 < capability.header_bytes <= offset:
            raise Forbidden("the capability does not cover the record's header")
        at = offset - capability.header_bytes
        failure: CopypoolError | None = None
        for holding in await self._reader.sources(extent, offset, 0):
            try:
                header = decode_record_header(await read_exactly(holding, at, capability.header_bytes), extent, at)
            except CopypoolError as exc:
                failure = failure or exc
                self._reader.report(holding, exc.message)
                continue
            if header.version != capability.version:
                raise NotFound("that record holds another version")
            info = RecordInfo(header.kind, header.namespace, header.path, header.version, header.metadata)
            return reply(request, info)
        raise failure if failure is not None else NotFound("no such record")

    def _open(self, request: Asks, query: str, extent: int, offset: int) -> ReadCapability:
        capability = self._door.open(requests.capability_text(request, query))
        if not isinstance(capability, ReadCapability):
            raise Forbidden("this capability does not allow reading")
        version = requests.parameter(query, "v")
        if (capability.extent, capability.offset) != (extent, offset) or str(capability.version) != version:
            raise Forbidden("the capability is for another segment")
        return capability


def _about(capability: ReadCapability) -> dict[str, str]:
    headers = {"Accept-Ranges": "bytes", VERSION: str(capability.version), "Referrer-Policy": "no-referrer"}
    if not capability.raw:  # for clients that know no more of a file than plain HTTP tells
        headers["ETag"] = etag_of(capability.version)
        headers["Last-Modified"] = last_modified_of(capability.version)
        headers["X-Content-Type-Options"] = "nosniff"
    return headers


def _whole(capability: ReadCapability) -> dict[str, str]:
    return {**_about(capability), "Content-Type": STRIPES if capability.raw else OCTETS}


async def _send(
    request: BaseRequest, body: Body[Piece], status: int, headers: dict[str, str], size: int, *, poured: bool
) -> StreamResponse:
    """Send a body; its first piece is read (and checked) before the status line, a later failure cuts the connection.

    `poured`: long ones may be sent by a thread (`pouring`).
    """
    piece = next(body.pieces, None)
    first = b"" if piece is None else await body.load(piece)
    if len(first) == size:
        return Response(body=bytes(first), status=status, headers=headers)
    response = StreamResponse(status=status, headers=headers)
    response.content_length = size
    await response.prepare(request)
    outlet = None
    if poured and size - len(first) >= POURED_MIN_BYTES and request.transport is not None:
        outlet = DirectSocket.of(request.transport)
    try:
        if outlet is not None:
            await _pour(request, response, body, outlet, first)
        else:
            await response.write(first)
            for piece in body.pieces:
                await response.write(await body.load(piece))
    except CopypoolError as exc:
        log.error("a read broke off: %s", exc)
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("the read was cut off: stored bytes failed their checksum") from exc
    finally:
        if outlet is not None:
            outlet.close()
    await response.write_eof()
    return response


async def _pour(
    request: BaseRequest, response: StreamResponse, body: Body[Piece], outlet: DirectSocket, first: bytes | memoryview
) -> None:
    """Send `first` through the transport and the rest past it; nothing waits in the transport then."""
    transport = request.transport
    assert transport is not None

    async def ordinary(data: bytes | memoryview) -> None:
        await response.write(data)
        await request.writer.drain()

    transport.set_write_buffer_limits(0)  # to write is to wait until the socket has it all
    try:
        await ordinary(first)
        await pour(body, outlet, ordinary, transport.is_closing)
    finally:
        if not transport.is_closing():
            transport.set_write_buffer_limits()
