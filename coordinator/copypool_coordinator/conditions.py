"""What conditional and range headers of a plain GET ask for, after RFC 9110. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from copypool.protocol import conditions


def not_modified(headers: Mapping[str, str], etag: str) -> bool:
    """Whether `If-None-Match` names this version, so that a 304 without a body will do."""
    text = headers.get("If-None-Match")
    if text is None:
        return False
    return text.strip() == "*" or etag in [part.strip().removeprefix("W/") for part in text.split(",")]


def byte_range(headers: Mapping[str, str], etag: str, size_bytes: int) -> tuple[int, int] | None:
    """The bytes [start, stop) that are asked for; None: the whole file, as for a range of another version.

    Raises as `conditions.byte_range` of the protocol does.
    """
    text = headers.get("Range")
    if text is None or headers.get("If-Range", etag).strip() != etag:
        return None
    return conditions.byte_range(text, size_bytes)
