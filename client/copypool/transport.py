"""HTTP out of the client: the only module here that knows aiohttp. Foreign errors become ours at this seam.

It repeats nothing and chooses nobody; whoever calls decides where a failed request goes next.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self

import aiohttp
from aiohttp import payload
from aiohttp.abc import AbstractStreamWriter
from yarl import URL

from copypool.failover import Reason
from copypool.protocol.errors import CopypoolError, Invalid, Unavailable, from_response
from copypool.protocol.routes import TRACE
from copypool.telemetry import tracing
from copypool.tls import LOOK_S, Chain

_PIECE_BYTES = 256 * 1024
_READ_BUFFER_BYTES = 1024 * 1024
_ERROR_MAX_BYTES = 64 * 1024
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


def _translate(error: Exception, url: str, *, sent: bool = True) -> CopypoolError:
    place = url.partition("?")[0][:200]
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


class BodyStream:
    """The body of one answer, read piece by piece. Close it in any case; closing early drops the connection."""

    __slots__ = ("_response", "_stall_s", "_url", "content_type", "status")

    def __init__(self, response: aiohttp.ClientResponse, url: str, stall_s: float) -> None:
        self._response = response
        self._url = url
        self._stall_s = stall_s
        self.status = response.status
        self.content_type = response.headers.get("Content-Type", "")

    async def read(self, wait_s: float | None = None) -> bytes:
        """The next bytes, `b""` at the end. `LinkFailed` when none come for `wait_s` (default: the stall limit)."""
        content = self._response.content
        try:
            if data := content.read_nowait():
                return data
            async with asyncio.timeout(self._stall_s if wait_s is None else wait_s):
                return await content.readany()
        except TimeoutError as exc:
            place = self._url.partition("?")[0]
            raise LinkFailed(f"{place} sent nothing for a while", "stall", sent=True) from exc
        except (aiohttp.ClientError, OSError) as exc:
            raise _translate(exc, self._url) from exc

    def close(self) -> None:
        """Give the connection back if the body was read to its end, else drop it. Does not wait."""
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
