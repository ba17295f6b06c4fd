"""Heads of plain HTTP/1.1 requests and answers as bytes: what the shortcut (`shortcut`) reads and writes. Pure.

Reading is a filter, not a parser: it knows one shape of request, and everything else is `None`, for aiohttp to judge.
So nothing here has to be lenient, and whatever frames a request differently (chunks, an upgrade, a second request
behind the first, a folded line, a header told twice) never gets past the first look.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple, Protocol

from aiohttp.http import SERVER_SOFTWARE
from aiohttp.web import Response

from copypool.protocol.errors import BrokenInvariant
from copypool.protocol.routes import CAPABILITY, DIGEST, FIRST_SENT, METADATA, TRACE, WRITE_ID

#: A longer head goes the ordinary way.
HEAD_MAX_BYTES = 8 * 1024

_LINE = re.compile(rb"(GET|PUT) (/[!-~]+) HTTP/1\.1")
_NAME = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_BLOCK = re.compile(rb"(?:" + _NAME + rb":[\t -~]*\r\n)+\r\n")
_FIELD = re.compile(rb"([^:\r\n]+):[\t ]*([^\r\n]*)\r\n")
#: Headers that an answer depends on, by their names in lower case.
_KEPT = {
    name.lower().encode(): name
    for name in (
        *("Accept", "Authorization", "Content-Type", TRACE),
        *(CAPABILITY, DIGEST, FIRST_SENT, METADATA, WRITE_ID),
        *("If-Match", "If-None-Match", "If-Unmodified-Since"),
    )
}
_CONDITIONS = frozenset({"If-Match", "If-None-Match", "If-Unmodified-Since"})
#: Headers that change nothing here. A name in neither table sends the request the ordinary way.
_IGNORED = frozenset(
    b"accept-encoding accept-language cache-control cookie dnt forwarded from host origin pragma priority referer "
    b"tracestate user-agent via x-forwarded-for x-forwarded-host x-forwarded-proto x-real-ip x-request-id".split()
)
_LENGTH_DIGITS_MAX = 8


class Asks(Protocol):
    """A request as far as its answer depends on it: aiohttp's, or `Asked`."""

    @property
    def method(self) -> str:
        """GET, PUT, ..."""

    @property
    def headers(self) -> Mapping[str, str]:
        """By their usual names."""


class Asked(NamedTuple):
    """A whole request with nothing out of the ordinary: a GET without a body, or a PUT with all of it."""

    method: str  #: GET or PUT
    target: str  #: as it stands in the request line: a path and perhaps a query, still encoded
    headers: Mapping[str, str]  #: those that an answer depends on, under their usual names
    body: bytes = b""

    @property
    def conditional(self) -> bool:
        """Whether the answer depends on what is there."""
        return not _CONDITIONS.isdisjoint(self.headers)


class Block(NamedTuple):
    """The headers of a request."""

    kept: Mapping[str, str]
    length: int | None  #: as Content-Length says it; None: it is not there


class Told(NamedTuple):
    """An answer with its whole body; headers without what every answer has (length, date, server)."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    start: bytes = b""  #: status line and headers as `write_start` makes them, if they are at hand

    @classmethod
    def of(cls, response: Response) -> Told:
        """What aiohttp's answer tells; its body is here already."""
        assert isinstance(response.body, bytes)
        return cls(response.status, response.headers, response.body)

    def response(self) -> Response:
        """The same for aiohttp."""
        return Response(status=self.status, headers=self.headers, body=self.body)


def split_head(data: bytes) -> tuple[str, str, bytes, bytes] | None:
    """Method, target, header block (to its empty line) and what follows; None: not a whole head of that shape."""
    stop = data.find(b"\r\n\r\n", 0, HEAD_MAX_BYTES) + 4
    begin = data.find(b"\r\n", 0, stop) + 2
    if stop < 4 or begin >= stop - 2:
        return None
    found = _LINE.fullmatch(data, 0, begin - 2)
    return None if found is None else (found[1].decode(), found[2].decode(), data[begin:stop], data[stop:])


def read_block(block: bytes) -> Block | None:
    """The headers of a block; None: there is one that is not known here."""
    if _BLOCK.fullmatch(block) is None:
        return None
    kept: dict[str, str] = {}
    seen: set[bytes] = set()
    length: int | None = None
    for written, value in _FIELD.findall(block):
        name = written.lower()
        if name in seen:
            return None
        seen.add(name)
        usual = _KEPT.get(name)
        if usual is not None:
            kept[usual] = value.decode().rstrip("\t ")
        elif name == b"content-length":
            if not value.isdigit() or len(value) > _LENGTH_DIGITS_MAX:
                return None
            length = int(value)
        elif name == b"connection":
            if value.lower() != b"keep-alive":
                return None
        elif name not in _IGNORED:
            return None
    return Block(kept, length) if b"host" in seen else None


def fits(method: str, length: int | None, body: bytes) -> bool:
    """Whether these are all bytes of one request: no body of a GET, the whole one of a PUT, nothing behind it."""
    return length == len(body) if method == "PUT" else length is None and not body


def write_start(status: int, headers: Mapping[str, str]) -> bytes:
    """Status line and headers of an answer, as aiohttp writes them."""
    lines = [f"HTTP/1.1 {status} {_REASONS[status]}\r\n", *[f"{name}: {value}\r\n" for name, value in headers.items()]]
    start = "".join(lines)
    if start.count("\n") != len(lines) or start.count("\r") != len(lines):
        raise BrokenInvariant(f"a header of an answer holds a line break: {start!r}")
    return start.encode("latin-1")


def write_head(told: Told, now_unix_s: float) -> bytes:
    """The whole head of an answer on a connection that stays open."""
    start = told.start or write_start(told.status, told.headers)
    return b"%bContent-Length: %d\r\n%b" % (start, len(told.body), _always(int(now_unix_s)))


_REASONS = {status.value: status.phrase for status in HTTPStatus}


@lru_cache(2)
def _always(now_unix_s: int) -> bytes:
    return f"Date: {formatdate(now_unix_s, usegmt=True)}\r\nServer: {SERVER_SOFTWARE}\r\n\r\n".encode()
