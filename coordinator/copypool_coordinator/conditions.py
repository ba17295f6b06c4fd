"""What conditional headers of a plain GET ask for, after RFC 9110. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

from copypool.protocol.conditions import whole_field
from copypool.protocol.versions import time_ms_of


def is_other(headers: Mapping[str, str], etag: str) -> bool:
    """Whether `If-Match` names other versions alone, so that this one must not be answered with (412)."""
    text = whole_field(headers, "If-Match")
    return text is not None and text.strip() != "*" and etag not in [part.strip() for part in text.split(",")]


def changed_since(headers: Mapping[str, str], version: int) -> bool:
    """Whether `If-Unmodified-Since` names a time before this version was stored (412); `If-Match` is the better one.

    `If-Modified-Since` is not looked at: of two versions of one second it would tell a client to keep the older one.
    """
    text = headers.get("If-Unmodified-Since")
    if text is None or "If-Match" in headers:
        return False
    try:
        since = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return False  # RFC 9110, 13.1.4: what is no date is ignored
    return time_ms_of(version) // 1000 > since.replace(tzinfo=since.tzinfo or UTC).timestamp()


def not_modified(headers: Mapping[str, str], etag: str) -> bool:
    """Whether `If-None-Match` names this version, so that a 304 without a body will do."""
    text = whole_field(headers, "If-None-Match")
    if text is None:
        return False
    return text.strip() == "*" or etag in [part.strip().removeprefix("W/") for part in text.split(",")]
