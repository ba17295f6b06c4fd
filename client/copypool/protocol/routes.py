"""HTTP paths, headers and body codecs that clients, nodes and coordinators share.

Coordinator, for clients     POST /rpc/<verb>                     structs of `api`; `Authorization: Bearer <token>`
                             GET, HEAD, PUT, DELETE /v1/files/<namespace>/<path>   plain HTTP (curl -L)
                             GET /livez /readyz /metrics
                             GET /ui/...  the dashboard's files, no token; /ui/events  server-sent events
Coordinator, for nodes       POST /n/<verb>                       structs of `internal`
Node, for clients            PUT, DELETE /v1/files/<namespace id>/<path>      capability `w`
                             PUT /v1/parts/<namespace id>/<upload>/<number>/<path>   capability `w`
                             POST /v1/complete/<namespace id>/<path>          capability `w`; CompleteRequest
                             POST /v1/batch/<namespace id>                    capability `w`; batch framing
                             GET, HEAD /v1/segments/<extent>/<offset>/<length>?v=<version>   capability `r`, Range
                             GET /v1/record/<extent>/<offset>?v=<version>     capability `r` with header_bytes
                             GET /livez /readyz /readyz/reads /metrics
Node, for coordinators       POST /i/<verb>                       structs of `internal`
Node, for nodes              GET /i/raw/<extent>?from=&to=        capability `p`: raw bytes of the extent file

A capability travels in the header `Copypool-Capability`, or as `cap=` in the query (redirects of plain HTTP only). A
redirected PUT carries its write id the same way, as `wid=` and `sent=` (first sent, ms), since curl knows of neither,
and the namespace's name for its receipt as `ns=`.
A segment read with a raw capability answers `application/x-copypool-stripes`: for every stripe touched, its prelude
(header and table) and then the whole blocks that cover the range (see `stripes.split_range`). Else plain payload
bytes, verified by the node before they leave it.
"""

from __future__ import annotations

from typing import TypeVar
from urllib.parse import quote, unquote

import msgspec

from copypool.protocol.errors import Invalid

T = TypeVar("T")

MSGPACK = "application/msgpack"
JSON = "application/json"
STRIPES = "application/x-copypool-stripes"
OCTETS = "application/octet-stream"

CAPABILITY = "Copypool-Capability"
CAPABILITY_QUERY = "cap"  #: in redirects of plain HTTP
WRITE_ID_QUERY = "wid"  #: in redirected PUTs
FIRST_SENT_QUERY = "sent"  #: in redirected PUTs
NAMESPACE_QUERY = "ns"  #: in redirected PUTs: the name that the receipt says
WRITE_ID = "Copypool-Write-Id"  #: 16 hex digits; makes retries safe
FIRST_SENT = "Copypool-First-Sent"  #: ms of cluster time at which this write id was first sent
DIGEST = "Copypool-Digest"  #: `blake3:<hex>`; of the body in requests (checked), of the file in answers
VERSION = "Copypool-Version"
METADATA = "Copypool-Meta"  #: user metadata: JSON object of strings, percent-encoded
TRACE = "traceparent"  #: W3C Trace Context
#: In answers of `/i/raw`: the trace of the last write to the extent, which the pull goes on with.
TRACE_RESPONSE = "traceresponse"
READ_FROM = "Copypool-Read-From"  #: of a segment read
MEDIUM = "medium"  #: its value for bytes from the disk itself: past the page cache, which stays as it is

HEADERS_MAX_BYTES = 16 * 1024  #: of one field; what does not fit is refused with 400 / 431


def encode_path(path: str) -> str:
    """A path as it stands in a URL."""
    return quote(path, safe="/")


def decode_path(raw: str) -> str:
    """The path of a raw (still percent-encoded) URL part; `Invalid` when it is not UTF-8."""
    try:
        return unquote(raw, errors="strict")
    except UnicodeDecodeError as exc:
        raise Invalid("the path in the URL is not percent-encoded UTF-8") from exc


def encode_metadata(metadata: dict[str, str]) -> str:
    """Header value for user metadata."""
    return quote(msgspec.json.encode(metadata), safe="")


def decode_metadata(value: str) -> dict[str, str]:
    """User metadata from its header value."""
    try:
        return msgspec.json.decode(unquote(value, errors="strict"), type=dict[str, str])
    except (UnicodeDecodeError, msgspec.MsgspecError) as exc:
        raise Invalid(f"the header {METADATA} is not a percent-encoded JSON object of strings") from exc


def decode_body(content: bytes, content_type: str, struct: type[T]) -> T:
    """A request body as `struct`: msgpack when the content type says so, else JSON. `Invalid` says what is wrong."""
    try:
        if content_type.startswith(MSGPACK):
            return msgspec.msgpack.decode(content, type=struct)
        return msgspec.json.decode(content, type=struct)
    except msgspec.MsgspecError as exc:
        raise Invalid(f"the body is not a valid {struct.__name__}: {exc}") from exc


def encode_body(value: object, accept: str) -> tuple[bytes, str]:
    """An answer and its content type: msgpack when the caller accepts it by name, else JSON."""
    if MSGPACK in accept:
        return msgspec.msgpack.encode(value), MSGPACK
    return msgspec.json.encode(value), JSON
