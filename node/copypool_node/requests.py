"""What requests of clients say, checked at the edge: capabilities, names, write ids, ranges."""

from __future__ import annotations

from urllib.parse import parse_qs

import msgspec
from aiohttp.web import Response

from copypool.protocol import errors
from copypool.protocol.api import WRITE_ID_BYTES
from copypool.protocol.capability import Capability, NodeKeys, open_capability
from copypool.protocol.conditions import write_condition
from copypool.protocol.digests import parse_digest
from copypool.protocol.names import check_metadata
from copypool.protocol.routes import (
    CAPABILITY,
    CAPABILITY_QUERY,
    DIGEST,
    FIRST_SENT,
    FIRST_SENT_QUERY,
    JSON,
    METADATA,
    MSGPACK,
    WRITE_ID,
    WRITE_ID_QUERY,
    decode_metadata,
)
from copypool.serving.heads import Asks, Told
from copypool_node.session import Session

CAPABILITIES_KEPT = 4096
_QUERY_FIELDS_MAX = 16
_json = msgspec.json.Encoder()
_msgpack = msgspec.msgpack.Encoder()


class CapabilityDoor:
    """Opens capabilities; remembers those whose signature was checked, so that a reused one costs no HMAC."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._opened: dict[str, Capability] = {}
        self._keys: dict[int, NodeKeys] = {}

    def open(self, text: str) -> Capability:
        """The capability; `Forbidden` says why not."""
        session = self._session
        if session.keys is not self._keys:
            self._keys = session.keys
            self._opened.clear()
        now_ms = session.clock.now_ms()
        known = self._opened.get(text)
        if known is not None and known.expires_ms >= now_ms:
            return known
        if not text:
            raise errors.Forbidden(f"this needs a capability, in the header {CAPABILITY}")
        if not self._keys:
            raise errors.Unavailable("the node has no keys from the coordinators yet")
        capability = open_capability(text, self._keys, session.node_id, now_ms)
        if len(self._opened) >= CAPABILITIES_KEPT:
            self._opened.clear()
        self._opened[text] = capability
        return capability


def capability_text(request: Asks, query: str) -> str:
    """The wire form, from the header or (redirects of plain HTTP) the query."""
    text: str | None = request.headers.get(CAPABILITY)
    return text if text is not None else parameter(query, CAPABILITY_QUERY)


def parameter(query: str, name: str) -> str:
    """One query parameter; empty when it is not there."""
    if not query:
        return ""
    if "%" not in query and "+" not in query:  # nothing to decode: the usual query of a read, `v=<version>`
        fields = query.split("&")
        if len(fields) > _QUERY_FIELDS_MAX:
            raise errors.Invalid("the query has too many parameters")
        head = name + "="
        return next((field[len(head) :] for field in reversed(fields) if field.startswith(head) and field != head), "")
    try:
        values = parse_qs(query, max_num_fields=_QUERY_FIELDS_MAX).get(name)
    except ValueError as exc:
        raise errors.Invalid("the query has too many parameters") from exc
    return values[-1] if values else ""


def number(text: str, what: str) -> int:
    """A decimal number of a URL or header; `Invalid` otherwise."""
    if not text.isascii() or not text.isdigit() or len(text) > 19:
        raise errors.Invalid(f"{what} {text[:40]!r} is not a number")
    return int(text)


def write_id(request: Asks, query: str) -> bytes:
    """The required write id, from the header or (redirected PUTs) the query."""
    text = request.headers.get(WRITE_ID) or parameter(query, WRITE_ID_QUERY)
    try:
        value = bytes.fromhex(text)
    except ValueError as exc:
        raise errors.Invalid(f"the header {WRITE_ID} is not hexadecimal") from exc
    if len(value) != WRITE_ID_BYTES:
        raise errors.Invalid(f"the header {WRITE_ID} must have {2 * WRITE_ID_BYTES} hex digits: it makes retries safe")
    return value


def first_sent_ms(request: Asks, query: str) -> int:
    """When the write id was first sent; 0: now."""
    text = request.headers.get(FIRST_SENT) or parameter(query, FIRST_SENT_QUERY)
    return number(text, f"the header {FIRST_SENT}") if text else 0


def stated_digest(request: Asks) -> bytes:
    """The digest that the client says its body has; empty when it says none."""
    text = request.headers.get(DIGEST)
    return parse_digest(text) if text else b""


def metadata(request: Asks) -> dict[str, str]:
    """Checked user metadata."""
    text = request.headers.get(METADATA)
    return check_metadata(decode_metadata(text)) if text else {}


def if_absent(request: Asks) -> bool:
    """Whether the file must not exist: `If-None-Match: *`."""
    return write_condition(request.headers).if_absent


def if_version(request: Asks) -> int:
    """The version that a write wants to replace or delete (`If-Match`); see `conditions`."""
    return write_condition(request.headers).if_version


def reply(request: Asks, value: object, status: int = 200) -> Response:
    """An answer in the form that the caller accepts."""
    return told(request, value, status).response()


def told(request: Asks, value: object, status: int = 200) -> Told:
    """The same, before it is aiohttp's."""
    if MSGPACK in request.headers.get("Accept", ""):
        return Told(status, {"Content-Type": MSGPACK}, _msgpack.encode(value))
    return Told(status, {"Content-Type": JSON}, _json.encode(value))


def error_reply(request: Asks, error: errors.CopypoolError) -> Response:
    """The answer for an error."""
    response = reply(request, errors.to_body(error), error.http_status)
    if isinstance(error, errors.RangeNotSatisfiable) and "length" in error.details:
        response.headers["Content-Range"] = f"bytes */{error.details['length']}"
    if isinstance(error, errors.RetryLater):
        response.headers["Retry-After"] = "1"
    return response
