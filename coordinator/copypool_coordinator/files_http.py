"""Plain HTTP, `/v1/files/<namespace>/<path>`: what `curl -L` needs, without the SDK.

    GET     a small file comes from here: one joined lookup, one joined node read, the next place if that fails
            a larger one of one segment by redirect to the node that has it (307, the right to read it in the URL)
            several segments are streamed through, with failover
    PUT     by redirect to a node, before the body is read; larger files need the SDK (413 says so)
    DELETE  by a call to a node

Only nodes that answered a moment ago are named in a redirect, since plain clients do not fail over; otherwise bytes
are streamed through here. Capabilities in URLs live for a minute and name one version or one path; query strings are
never logged, and `Referrer-Policy` keeps them out of others' logs.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from contextlib import aclosing
from functools import lru_cache
from urllib.parse import quote

import msgspec
from aiohttp import web

from copypool.protocol.api import PART_MAX_BYTES, SMALL_MAX_BYTES, WRITE_ID_BYTES, Receipt
from copypool.protocol.capability import REDIRECT_LIFE_MS
from copypool.protocol.conditions import byte_range, etag_of, last_modified_of, write_condition
from copypool.protocol.digests import format_digest
from copypool.protocol.errors import (
    CopypoolError,
    Invalid,
    NotFound,
    OutcomeUnknown,
    Overloaded,
    PreconditionFailed,
    RangeNotSatisfiable,
    RetryLater,
    TooLarge,
    Unavailable,
)
from copypool.protocol.names import check_path
from copypool.protocol.routes import (
    CAPABILITY_QUERY,
    DIGEST,
    FIRST_SENT,
    FIRST_SENT_QUERY,
    MSGPACK,
    NAMESPACE_QUERY,
    OCTETS,
    VERSION,
    WRITE_ID,
    WRITE_ID_QUERY,
    decode_path,
    encode_path,
)
from copypool.protocol.tokens import Principal, Role
from copypool.serving.heads import Asked, Asks, Told, write_start
from copypool_coordinator.auth import Auth
from copypool_coordinator.capabilities import Mint
from copypool_coordinator.catalog import Catalog
from copypool_coordinator.conditions import changed_since, is_other, not_modified
from copypool_coordinator.exchange import answer, refuse
from copypool_coordinator.leasing import Leasing
from copypool_coordinator.locating import Located, Locator
from copypool_coordinator.node_link import NodeLink
from copypool_coordinator.routing import Place, end_of
from copypool_coordinator.rows import FileFlag
from copypool_coordinator.slow_clients import write_piece
from copypool_coordinator.streaming import Reading

PREFIX = "/v1/files/"
_DELETE_ANSWER_S = 5.0
_DELETE_LEASES = 3
_PRIVATE = {"Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}


class FilesHttp:
    """Handler of `/v1/files/`."""

    def __init__(
        self,
        catalog: Catalog,
        auth: Auth,
        mint: Mint,
        locator: Locator,
        leasing: Leasing,
        reading: Reading,
        link: NodeLink,
        *,
        streams: int,
    ) -> None:
        self._catalog = catalog
        self._auth = auth
        self._mint = mint
        self._locator = locator
        self._leasing = leasing
        self._reading = reading
        self._link = link
        self._streams_max = streams
        self._streams = 0

    @property
    def streams_ratio(self) -> float:
        """Share of the files that may be streamed at once that are."""
        return self._streams / self._streams_max

    async def handle(self, request: web.BaseRequest, target: str) -> web.StreamResponse:
        """Answer a request for `target`, the still encoded path behind the prefix."""
        method = request.method
        if method in ("GET", "HEAD"):
            return await self._get(request, await self._locator.find(*self._readable(request, target)))
        principal = self._auth.principal(request.headers.get("Authorization"), self._catalog.now_ms())
        namespace, _, raw_path = target.partition("/")
        path = check_path(decode_path(raw_path))
        if method == "PUT":
            principal.require(Role.writer, namespace, path)
            return self._put(request, principal, namespace, path)
        if method == "DELETE":
            principal.require(Role.writer, namespace, path)
            return await self._delete(request, principal, namespace, path)
        response = refuse(request, Invalid(f"{method} is not for files: GET, HEAD, PUT or DELETE"))
        response.set_status(405)
        response.headers["Allow"] = "GET, HEAD, PUT, DELETE"
        return response

    async def small(self, asked: Asked, target: str) -> Told | None:
        """As `handle` for a GET without range and condition; None: not a small file, nothing was answered."""
        namespace, path = self._readable(asked, target)
        row = await self._locator.row(namespace, path)
        if row.flags & FileFlag.multipart or row.size > SMALL_MAX_BYTES:
            return None
        payload = self._reading.kept(row)
        if payload is None:
            payload = await self._reading.small(await self._locator.locate(namespace, path, row, 0))
        headers, start = _whole(row.version, row.digest)
        return Told(200, headers, payload, start)

    def _readable(self, request: Asks, target: str) -> tuple[int, str]:
        """Id of the namespace and path, if the caller may read there."""
        principal = self._auth.principal(request.headers.get("Authorization"), self._catalog.now_ms())
        namespace, _, raw_path = target.partition("/")
        path = check_path(decode_path(raw_path))
        principal.require(Role.reader, namespace, path)
        return self._locator.namespace(namespace).id, path

    # -- GET ---------------------------------------------------------------------------------------
    async def _get(self, request: web.BaseRequest, located: Located) -> web.StreamResponse:
        row = located.row
        etag = etag_of(row.version)
        headers = _about(row.version, row.digest)
        asked = request.headers
        if is_other(asked, etag) or changed_since(asked, row.version):
            raise PreconditionFailed(f"{located.path!r}: the current version is {row.version}", version=row.version)
        if "If-None-Match" in asked and not_modified(asked, etag):
            return web.Response(status=304, headers=headers)
        headers |= _content(row.version)
        start, stop, status = 0, row.size, 200
        if "Range" in asked and request.method == "GET":
            try:
                wanted = byte_range(asked, etag, row.size)
            except RangeNotSatisfiable as error:
                response = refuse(request, error)
                response.headers["Content-Range"] = f"bytes */{row.size}"
                return response
            if wanted is not None:
                start, stop, status = *wanted, 206
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{row.size}"
        if request.method == "HEAD":
            headers["Content-Length"] = str(stop - start)
            return web.Response(status=status, headers=headers)
        single = not row.flags & FileFlag.multipart
        if single and row.size <= SMALL_MAX_BYTES:
            payload = await self._reading.small(located)
            return web.Response(body=payload[start:stop] if status == 206 else payload, status=status, headers=headers)
        if single:
            place = await self._nearest_alive(located)
            if place is not None:
                return self._redirect_read(located, place, headers)
        return await self._stream(request, located, start, stop, status, headers)

    async def _nearest_alive(self, located: Located) -> Place | None:
        """The best place, if a client that cannot fail over may be sent there."""
        (segment,) = located.segments
        places = self._locator.places(located, segment)
        if not places or not places[0].reachable or places[0].reach < end_of(segment) or places[0].state == "damaged":
            return None
        return places[0] if await self._link.answers(places[0].node_id) else None

    def _redirect_read(self, located: Located, place: Place, headers: dict[str, str]) -> web.Response:
        segment = located.segments[0]
        version = located.row.version
        capability = self._mint.read(
            place.node_id, segment, version, self._catalog.now_ms(), raw=False, life_ms=REDIRECT_LIFE_MS
        )
        target = f"/v1/segments/{segment.extent}/{segment.offset}/{segment.length}?v={version}"
        kept = {name: headers[name] for name in ("ETag", VERSION, DIGEST)}
        location = f"{place.url}{target}&{CAPABILITY_QUERY}={quote(capability, safe='')}"
        return web.Response(status=307, headers={**kept, **_PRIVATE, "Location": location})

    async def _stream(
        self,
        request: web.BaseRequest,
        located: Located,
        start: int,
        stop: int,
        status: int,
        headers: dict[str, str],
    ) -> web.StreamResponse:
        if self._streams >= self._streams_max:
            raise Overloaded(f"{self._streams} files are being streamed through here; the SDK reads from the nodes")
        self._streams += 1
        try:
            async with aclosing(self._reading.whole(located, start, stop)) as pieces:
                # Errors before the first byte still get a status of their own.
                first = await anext(pieces, b"")
                response = web.StreamResponse(status=status, headers=headers)
                response.content_length = stop - start
                await response.prepare(request)
                try:
                    await write_piece(request, response, first)
                    async for piece in pieces:
                        await write_piece(request, response, piece)
                except CopypoolError as error:
                    # The status line is out: only a cut connection tells the client that bytes are missing.
                    if request.transport is not None:
                        request.transport.abort()
                    raise ConnectionResetError(error.message) from error
                await response.write_eof()
                return response
        finally:
            self._streams -= 1

    # -- PUT and DELETE ----------------------------------------------------------------------------
    def _put(self, request: web.BaseRequest, principal: Principal, name: str, path: str) -> web.Response:
        namespace = self._locator.namespace(name)
        size = request.content_length
        if size is not None and size > PART_MAX_BYTES:
            raise TooLarge(
                f"a single PUT takes up to {PART_MAX_BYTES} bytes, this body has {size}: use `copypool put`, "
                "which sends larger files in parts"
            )
        write_condition(request.headers)  # the node keeps it: the client sends its headers there again
        (lease, *_) = self._leasing.leases(
            namespace,
            path,
            principal.name,
            count=1,
            size_bytes=size or 0,
            avoid_nodes=self._link.suspects(),
            exact=True,
        )
        write_id, first_sent = self._write_id(request)
        location = (
            f"{lease.url}/v1/files/{namespace.id}/{encode_path(path)}"
            f"?{CAPABILITY_QUERY}={quote(lease.capability, safe='')}"
            f"&{WRITE_ID_QUERY}={write_id}&{FIRST_SENT_QUERY}={first_sent}&{NAMESPACE_QUERY}={name}"
        )
        return web.Response(status=307, headers={**_PRIVATE, "Location": location})

    async def _delete(self, request: web.BaseRequest, principal: Principal, name: str, path: str) -> web.Response:
        namespace = self._locator.namespace(name)
        write_id, first_sent = self._write_id(request)
        headers = {WRITE_ID: write_id, FIRST_SENT: first_sent, "Accept": MSGPACK}
        if write_condition(request.headers).if_absent:
            raise Invalid("a delete of a file that must not exist: `If-None-Match` is for PUT")
        if "If-Match" in request.headers:
            headers["If-Match"] = request.headers["If-Match"]
        leases = self._leasing.leases(
            namespace,
            path,
            principal.name,
            count=_DELETE_LEASES,
            size_bytes=0,
            avoid_nodes=self._link.suspects(),
            for_delete=True,
            exact=True,
        )
        failure: CopypoolError | None = None
        unknown = False
        for lease in leases:
            try:
                content = await self._link.call(
                    lease.node_id,
                    "DELETE",
                    f"/v1/files/{namespace.id}/{encode_path(path)}",
                    capability=lease.capability,
                    headers=headers,
                    answer_s=_DELETE_ANSWER_S,
                )
                receipt = msgspec.msgpack.decode(content, type=Receipt)
                receipt.namespace = name
                return answer(request, receipt)
            except NotFound:
                if unknown:
                    # An earlier try may have been the one that deleted it.
                    raise OutcomeUnknown(f"{path!r} is gone; whether this request deleted it is not known") from None
                raise
            except (RetryLater, OutcomeUnknown) as error:
                # The same write id goes to the next node, so it is applied once at most.
                unknown = unknown or isinstance(error, OutcomeUnknown) or bool(error.details.get("sent"))
                failure = error
            except msgspec.MsgspecError as exc:
                failure, unknown = Unavailable(f"node {lease.node} answered with no receipt: {exc}"), True
        if unknown:
            raise OutcomeUnknown(
                f"no node told whether {path!r} is deleted: repeat with the same {WRITE_ID}"
            ) from failure
        assert failure is not None
        raise failure

    def _write_id(self, request: web.BaseRequest) -> tuple[str, str]:
        """The client's own write id and first-sent time, or new ones."""
        text = request.headers.get(WRITE_ID)
        if text is None:
            return secrets.token_hex(WRITE_ID_BYTES), str(self._catalog.now_ms())
        first_sent = request.headers.get(FIRST_SENT, "0")
        if len(text) != 2 * WRITE_ID_BYTES or not all(letter in "0123456789abcdefABCDEF" for letter in text):
            raise Invalid(f"the header {WRITE_ID} has {2 * WRITE_ID_BYTES} hex digits")
        if not (first_sent.isascii() and first_sent.isdigit() and len(first_sent) < 16):
            raise Invalid(f"the header {FIRST_SENT} is a time in milliseconds")
        return text, first_sent


def _about(version: int, digest: bytes) -> dict[str, str]:
    """Headers that name the version, of every answer about it."""
    return {
        "ETag": etag_of(version),
        VERSION: str(version),
        DIGEST: format_digest(digest),
        "Accept-Ranges": "bytes",
    }


def _content(version: int) -> dict[str, str]:
    """Headers of its bytes."""
    return {
        "Content-Type": OCTETS,
        "X-Content-Type-Options": "nosniff",
        "Last-Modified": last_modified_of(version),
    }


@lru_cache(4096)
def _whole(version: int, digest: bytes) -> tuple[Mapping[str, str], bytes]:
    """Headers of an answer with all of its bytes, also as they are sent."""
    headers = {**_about(version, digest), **_content(version)}
    return headers, write_start(200, headers)
