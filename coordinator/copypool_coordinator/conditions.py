"""What conditional headers of a plain GET ask for, after RFC 9110. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from copypool.protocol.conditions import whole_field


def is_other(headers: Mapping[str, str], etag: str) -> bool:
    """Whether `If-Match` names other versions alone, so that this one must not be answered with (412)."""
    text = whole_field(headers, "If-Match")
    return text is not None and text.strip() != "*" and etag not in [part.strip() for part in text.split(",")]


def not_modified(headers: Mapping[str, str], etag: str) -> bool:
    """Whether `If-None-Match` names this version, so that a 304 without a body will do."""
    text = whole_field(headers, "If-None-Match")
    if text is None:
        return False
    return text.strip() == "*" or etag in [part.strip().removeprefix("W/") for part in text.split(",")]
