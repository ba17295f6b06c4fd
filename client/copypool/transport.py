"""HTTP out of the client: only this module and `answer_timers` know aiohttp. Foreign errors become ours at this seam.

It repeats nothing and chooses nobody; whoever calls decides where a failed request goes next.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import NamedTuple, Protocol, Self

import aiohttp
from aiohttp import payload
from aiohttp.abc import AbstractStreamWriter
from yarl import URL

from copypool.answer_timers import until_head
from copypool.direct_socket import DirectSocket
from copypool.failover import Reason
from copypool.protocol.errors import CopypoolError, Invalid, Unavailable, from_response
from copypool.protocol.routes import TRACE
from copypool.telemetry import tracing
from copypool.tls import LOOK_S, Chain

_PIECE_BYTES = 256 * 1024
_READ_BUFFER_BYTES = 1024 * 1024
_ERROR_MAX_BYTES = 64 * 1024
_DIRECT_MIN_BYTES = 1024 * 1024  #: what is left of a body when it is worth a thread
_PATIENCE_S = 0.005  #: a thread waits for bytes so long at most; longer waits are the loop's
_READY_MAX = 2  #: things made ready by a thread before they are handed out
#: Memory that was freed is used again up to this size. Without it glibc returns that of each long piece to the kernel,
#: and clearing fresh pages costs more than receiving into them: 650 to 840 us of the SDK's CPU per MiB read and checked
#: instead of 420 to 560, read as `make bench BENCH="--only stream-get"` does.
_KEPT_BYTES = 24 * 1024 * 1024
ANSWER_MAX_BYTES = 64 * 1024 * 1024  #: of one whole answer; longer ones are streams


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long each step may take before somebody else is asked."""

    connect_s: float = 1.0
    first_byte_s: float = 2.0  #: from the request to the first byte of a read
    stall_s: float = 1.0  #: between two reads from the socket
    rpc_answer_s: float = 4.0  #: of a coordinator
    write_answer_s: float = 6.0  #: of a node after the last body byte; then the same write id goes to another node


class LinkFailed(Unavailable):
    """Nothing usable came back over the wire."""

    def __init__(self, message: str, reason: Reason, *, sent: bool) -> None:
        super().__init__(message)
        self.reason = reason  #: as a read report names it
        self.sent = sent  #: the server may have received and carried out the request


class Answer(NamedTuple):
    """A whole answer with a status below 400."""

    status: int
    content_type: str
    content: bytes


class _Pieces(payload.Payload):
    """A body in memory, written in pieces, and as often as a retry needs it."""

    _autoclose = True

    def __init__(self, data: memoryview) -> None:
        super().__init__(data, content_type="application/octet-stream")
        self._size = len(data)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return bytes(self._value).decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        for at in range(0, len(self._value), _PIECE_BYTES):
            await writer.write(self._value[at : at + _PIECE_BYTES])

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        await self.write(writer)


def _body(data: bytes | bytearray | memoryview | None) -> bytes | payload.Payload | None:
    if data is None or (isinstance(data, bytes) and len(data) <= _PIECE_BYTES):
        return data
    return _Pieces(memoryview(data))


def _place(url: str) -> str:
    """Without the query, which may hold a capability."""
    return url.partition("?")[0][:200]


def _translate(error: Exception, url: str, *, sent: bool = True) -> CopypoolError:
    place = _place(url)
    if isinstance(error, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError):
        return Invalid(f"not a usable URL: {place!r}")
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError):
        return LinkFailed(f"TLS to {place} failed: {error}; check the profile's TLS files", "refused", sent=False)
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return LinkFailed(f"{place} did not accept a connection in time", "timeout", sent=False)
    if isinstance(error, aiohttp.ClientConnectorError):
        return LinkFailed(f"{place} refused the connection: {error.os_error}", "refused", sent=False)
    if isinstance(error, TimeoutError):
        return LinkFailed(f"{place} did not answer in time", "timeout", sent=sent)
    return LinkFailed(f"the connection to {place} broke: {type(error).__name__}: {error}", "error", sent=sent)


async def _read_bounded(response: aiohttp.ClientResponse, limit_bytes: int, url: str) -> bytes:
    pieces: list[bytes] = []
    left = limit_bytes
    while data := await response.content.readany():
        left -= len(data)
        if left < 0:
            raise LinkFailed(f"{url.partition('?')[0]} sent an answer above {limit_bytes} bytes", "error", sent=True)
        pieces.append(data)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


@cache
def _keep_freed_memory() -> None:
    """Once per process: freeing one large block, which was never touched, raises the bound from which on glibc returns
    memory at once (mallopt(3), M_MMAP_THRESHOLD), for the process as a whole; elsewhere it does nothing."""
    block = bytes(_KEPT_BYTES)
    del block


class Taker(Protocol):
    """Makes something of a body's bytes."""

    @property
    def wanted_bytes(self) -> int:
        """How many should come next, in one piece if they can; 0: it wants no more."""
        ...

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes; what became ready by them. Runs on a thread where there are many."""
        ...


class BodyStream:
    """The body of one answer, read piece by piece. Close it in any case; closing early drops the connection."""

    __slots__ = ("_direct", "_left_bytes", "_response", "_stall_s", "_url", "content_type", "status")

    def __init__(self, response: aiohttp.ClientResponse, url: str, stall_s: float) -> None:
        self._response = response
        self._url = url
        self._stall_s = stall_s
        self._direct: DirectSocket | None = None  #: has the connection once a long body is under way
        self._left_bytes = 0  #: to come by it
        self.status = response.status
        self.content_type = response.headers.get("Content-Type", "")

    async def read(self, wait_s: float | None = None) -> bytes:
        """The next bytes, `b""` at the end. `LinkFailed` when none come for `wait_s` (default: the stall limit)."""
        content = self._response.content
        try:
            if data := content.read_nowait():
                return data
            try:
                async with asyncio.timeout(self._stall_s if wait_s is None else wait_s):
                    return await content.readany()
            except TimeoutError:
                await asyncio.sleep(0)  # a loop that was kept busy looks at its sockets first: bytes may be there
                if (data := content.read_nowait()) or content.at_eof():
                    return data
                raise
        except TimeoutError as exc:
            raise self._stalled() from exc
        except (aiohttp.ClientError, OSError) as exc:
            raise _translate(exc, self._url) from exc

    async def read_through(self, taker: Taker) -> list[bytes]:
        """Feed the next bytes to `taker`; what it made of them. `LinkFailed` as `read`, and when the body ends early.

        What is left of a long body is received and fed by a thread, straight from the socket. Safe to cancel; the
        taker may be fed once more then.
        """
        if self._direct is None:
            data = await self.read()
            if not data:
                raise LinkFailed(f"{_place(self._url)} ended the body early", "error", sent=True)
            return [*taker.feed(data), *self._go_direct(taker)]
        while True:
            try:
                ready = await asyncio.to_thread(self._receive_now, self._direct, taker)
            except OSError as exc:
                raise _translate(exc, self._url) from exc
            if not self._left_bytes:
                self._give_back()
            if ready is not None:
                return ready
            if not await self._direct.readable(self._stall_s):
                raise self._stalled()

    def _go_direct(self, taker: Taker) -> list[bytes]:
        """Take the connection from aiohttp, if what is left of the body is long; what became ready by what aiohttp has.

        aiohttp reads nothing more from it then, and believes that the body goes on.
        """
        response = self._response
        content, connection = response.content, response.connection
        length = response.headers.get("Content-Length", "")
        if connection is None or not length.isdigit() or int(length) - content.total_bytes < _DIRECT_MIN_BYTES:
            return []
        protocol, transport = connection.protocol, connection.transport
        if protocol is None or transport is None or (direct := DirectSocket.of(transport)) is None:
            return []
        ready: list[bytes] = []
        try:
            while data := content.read_nowait():
                ready += taker.feed(data)
        except aiohttp.ClientError as exc:
            direct.close()
            raise _translate(exc, self._url) from exc
        _keep_freed_memory()
        protocol.pause_reading()
        self._left_bytes = int(length) - content.total_bytes
        self._direct = direct
        if not self._left_bytes:
            self._give_back()
        return ready

    def _receive_now(self, direct: DirectSocket, taker: Taker) -> list[bytes] | None:
        """On a thread, for a few milliseconds: what became ready; None: nothing came. OSError."""
        ready: list[bytes] | None = None
        until_s = time.monotonic() + _PATIENCE_S
        with direct.held() as held:
            while held and (wanted := min(taker.wanted_bytes, self._left_bytes)):
                data = direct.receive(wanted, until_s)
                if data == b"":
                    raise ConnectionResetError("the body ended early")
                if data is not None:
                    self._left_bytes -= len(data)
                    ready = [*(ready or ()), *taker.feed(data)]
                if data is None or len(ready or ()) >= _READY_MAX or time.monotonic() >= until_s:
                    break
        return ready

    def _give_back(self) -> None:
        """The body was received to its end: aiohttp may use the connection again."""
        if self._direct is not None:
            self._direct.close()
            self._direct = None
        self._response.content.feed_eof()

    def _stalled(self) -> LinkFailed:
        return LinkFailed(f"{_place(self._url)} sent nothing for a while", "stall", sent=True)

    def close(self) -> None:
        """Give the connection back if the body was read to its end, else drop it. Does not wait."""
        if self._direct is not None:
            self._direct.close()
            self._direct = None
        if self._response.content.at_eof():
            self._response.release()
        else:
            self._response.close()


class Transport:
    """Connections to coordinators and nodes. Make it inside a running loop; `close` it."""

    def __init__(
        self, *, tls: Chain | None = None, timeouts: Timeouts | None = None, connections_max: int = 256
    ) -> None:
        """Without `tls` the system's authorities are trusted. Files of `tls` are followed until `close`."""
        self.timeouts = timeouts or Timeouts()
        context: ssl.SSLContext | bool = tls.client if tls is not None else True
        self._following = asyncio.create_task(tls.follow(LOOK_S)) if tls is not None else None
        # Counts from the request on a connection that is there; being connected has its own limit.
        self._read_timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=self.timeouts.connect_s, sock_read=self.timeouts.first_byte_s
        )
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections_max, limit_per_host=connections_max // 2, ssl=context),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self.timeouts.connect_s),
            read_bufsize=_READ_BUFFER_BYTES,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent", "Accept-Encoding"),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection. Safe to repeat."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        await self._session.close()

    def _check_open(self) -> None:
        if self._session.closed:
            raise Invalid("the client is closed: make a new one")

    async def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        data: bytes | bytearray | memoryview | None = None,
        answer_s: float,
    ) -> Answer:
        """Send one request and read its whole answer.

        `answer_s` bounds the wait for the answer after the body was taken, and the stall while it is being sent or
        received. Raises the server's error for a status of 400 or above, `LinkFailed` when no whole answer came.
        """
        self._check_open()
        size_s = len(data) / 4_000_000 if data is not None else 0.0
        try:
            async with (
                asyncio.timeout(self.timeouts.connect_s + answer_s + size_s),
                self._session.request(
                    method,
                    URL(url, encoded=True),
                    headers={**headers, TRACE: tracing.outgoing()},
                    data=_body(data),
                    allow_redirects=False,
                ) as response,
            ):
                content = await _read_bounded(response, ANSWER_MAX_BYTES, url)
                content_type = response.headers.get("Content-Type", "")
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            raise _translate(exc, url) from exc
        if response.status >= 300:
            raise from_response(response.status, content, content_type)
        return Answer(response.status, content_type, content)

    async def open(self, url: str, *, headers: Mapping[str, str]) -> BodyStream:
        """GET a body as a stream; returns when the head of the answer is there (at most `first_byte_s`).

        Raises the server's error for a status of 400 or above, `LinkFailed` when it does not answer.
        """
        self._check_open()
        timeouts = self.timeouts
        try:
            async with asyncio.timeout(timeouts.connect_s + timeouts.first_byte_s):
                response = await self._session.get(
                    URL(url, encoded=True),
                    headers={**headers, TRACE: tracing.outgoing()},
                    allow_redirects=False,
                    timeout=self._read_timeout,
                    middlewares=(until_head,),
                )
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            raise _translate(exc, url) from exc
        if response.status < 300:
            return BodyStream(response, url, timeouts.stall_s)
        try:
            async with asyncio.timeout(timeouts.stall_s):
                content = await _read_bounded(response, _ERROR_MAX_BYTES, url)
        except (aiohttp.ClientError, OSError) as exc:
            raise _translate(exc, url) from exc
        finally:
            response.close()
        raise from_response(response.status, content, response.headers.get("Content-Type", ""))
