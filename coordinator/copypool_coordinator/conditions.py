"""What conditional and range headers of a plain GET ask for, after RFC 9110. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from copypool.protocol.errors import RangeNotSatisfiable

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


def not_modified(headers: Mapping[str, str], etag: str) -> bool:
    """Whether `If-None-Match` names this version, so that a 304 without a body will do."""
    text = headers.get("If-None-Match")
    if text is None:
        return False
    return text.strip() == "*" or etag in [part.strip().removeprefix("W/") for part in text.split(",")]


def byte_range(headers: Mapping[str, str], etag: str, size_bytes: int) -> tuple[int, int] | None:
    """The bytes [start, stop) that are asked for; None: the whole file.

    Anything that is not one well-formed range of bytes is ignored, as is a range of another version (`If-Range`).

    Raises:
        RangeNotSatisfiable: the range lies outside the file.
    """
    text = headers.get("Range")
    if text is None or headers.get("If-Range", etag).strip() != etag:
        return None
    match = _RANGE.fullmatch(text.strip())
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        start, stop = size_bytes - min(int(match[2]), size_bytes), size_bytes
    else:
        start = int(match[1])
        stop = min(int(match[2]) + 1, size_bytes) if match[2] else size_bytes
        if match[2] and int(match[2]) < start:
            return None
    if start >= stop:
        raise RangeNotSatisfiable(f"{text!r} lies outside the file's {size_bytes} bytes", size=size_bytes)
    return start, stop
