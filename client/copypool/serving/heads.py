"""Heads of plain HTTP/1.1 requests and answers as bytes: what the shortcut (`shortcut`) reads and writes. Pure.

Reading is a filter, not a parser: it knows one shape of request, and everything else is `None`, for aiohttp to judge.
So nothing here has to be lenient, and whatever frames a request differently (a body, an upgrade, a second request
behind the first, a folded line, a header told twice) never gets past the first look.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple

from aiohttp.http import SERVER_SOFTWARE
from aiohttp.web import Response

from copypool.protocol.errors import BrokenInvariant
from copypool.protocol.routes import TRACE

#: A longer head goes the ordinary way.
HEAD_MAX_BYTES = 8 * 1024

_LINE = re.compile(rb"GET (/[!-~]+) HTTP/1\.1")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([!-~](?:[\t -~]*[!-~])?)?[ \t]*")
#: Headers that an answer depends on, by their names in lower case.
_KEPT = {b"accept": "Accept", b"authorization": "Authorization", b"traceparent": TRACE}
#: Headers that change nothing here. A name in neither table sends the request the ordinary way.
_IGNORED = frozenset(
    b"accept-encoding accept-language cache-control cookie dnt forwarded from host origin pragma priority referer "
    b"tracestate user-agent via x-forwarded-for x-forwarded-host x-forwarded-proto x-real-ip x-request-id".split()
)


class Asked(NamedTuple):
    """A GET without a body and with nothing out of the ordinary."""

    target: str  #: as it stands in the request line: a path and perhaps a query, still encoded
    headers: Mapping[str, str]  #: those that an answer depends on, under their usual names
    method: str = "GET"


class Told(NamedTuple):
    """An answer with its whole body; headers without what every answer has (length, date, server)."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def response(self) -> Response:
        """The same for aiohttp."""
        return Response(status=self.status, headers=self.headers, body=self.body)


def split_head(data: bytes) -> tuple[str, bytes] | None:
    """Target and header block of a request that is a whole head and nothing else; None: not of that shape."""
    if len(data) > HEAD_MAX_BYTES or not data.startswith(b"GET /") or not data.endswith(b"\r\n\r\n"):
        return None
    line, _, block = data.partition(b"\r\n")
    found = _LINE.fullmatch(line)
    return None if found is None else (found[1].decode("ascii"), block)


def read_block(block: bytes) -> Mapping[str, str] | None:
    """The headers of a block that ends with an empty line; None: there is one that is not known here."""
    kept: dict[str, str] = {}
    seen: set[bytes] = set()
    for line in block[:-4].split(b"\r\n"):
        found = _FIELD.fullmatch(line)
        if found is None:
            return None
        name = found[1].lower()
        value = (found[2] or b"").decode("ascii")
        if name in seen:
            return None
        seen.add(name)
        if name in _KEPT:
            kept[_KEPT[name]] = value
        elif name == b"connection":
            if value.lower() != "keep-alive":
                return None
        elif name not in _IGNORED:
            return None
    return kept if b"host" in seen else None


def write_head(told: Told, now_unix_s: float) -> bytes:
    """Status line and headers of an answer on a connection that stays open, as aiohttp writes them."""
    lines = [f"HTTP/1.1 {told.status} {_REASONS[told.status]}"]
    lines += [f"{name}: {value}" for name, value in told.headers.items()]
    lines.append(f"Content-Length: {len(told.body)}\r\n{_always(int(now_unix_s))}\r\n\r\n")
    head = "\r\n".join(lines)
    if head.count("\n") != len(told.headers) + 5 or head.count("\r") != len(told.headers) + 5:
        raise BrokenInvariant(f"a header of an answer holds a line break: {head!r}")
    return head.encode("latin-1")


_REASONS = {status.value: status.phrase for status in HTTPStatus}


@lru_cache(2)
def _always(now_unix_s: int) -> str:
    return f"Date: {formatdate(now_unix_s, usegmt=True)}\r\nServer: {SERVER_SOFTWARE}"
