"""What the conditional headers of a write and the range of a read ask for, after RFC 9110 sections 13 and 14. Pure.

    If-None-Match: *        store only if there is no such file
    If-Match: "<version>"   replace or delete only this version, which the `ETag` of a GET names
    If-Match: *             replace or delete only if there is such a file

A condition that does not hold is `PreconditionFailed` (412) and nothing changes. What cannot be kept is refused: a
condition that is silently left out is a lost update.

    Range: bytes=A-B, A-, -N    these bytes; outside of the file is 416, malformed 400 (14.2 allows to reject it)
    several ranges, other units are ignored: the whole file is a right answer to both; so is the Range of a HEAD
    If-Range: "<version>"       only of this version, else the whole file; a redirected client says it again to the node
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import formatdate
from functools import lru_cache
from typing import NamedTuple, Protocol, runtime_checkable

from copypool.protocol.api import ANY_VERSION
from copypool.protocol.errors import Invalid, RangeNotSatisfiable
from copypool.protocol.versions import VERSION_MAX, time_ms_of

_TAG = re.compile(r'"([1-9][0-9]{0,18})"')

_RANGE = re.compile(r"bytes=\s*([0-9]*)-([0-9]*)\s*", re.IGNORECASE)
_SEVERAL = re.compile(r"bytes=[-0-9,\s]*[0-9][-0-9,\s]*,[-0-9,\s]*", re.IGNORECASE)
_RANGE_MAX_CHARACTERS = 256


@runtime_checkable
class _ManyLines(Protocol):
    """Headers that may have several lines of a name, as aiohttp's."""

    def getall(self, key: str) -> list[str]:
        """All lines of a name that is there."""


class WriteCondition(NamedTuple):
    """What must hold of the file before a write changes it."""

    if_absent: bool = False
    if_version: int = 0  #: the current version; `ANY_VERSION`: one must be there; 0: no condition


def etag_of(version: int) -> str:
    """The strong entity tag of a version: its bytes never change."""
    return f'"{version}"'


@lru_cache(4096)
def last_modified_of(version: int) -> str:
    """When a version was stored, as `Last-Modified` says it: cut to the second, so no sign that two are the same."""
    return formatdate(time_ms_of(version) // 1000, usegmt=True)


def write_condition(headers: Mapping[str, str]) -> WriteCondition:
    """The condition of a PUT or DELETE; `Invalid` when it cannot be kept, or the body is part of a file alone."""
    if "Content-Range" in headers:
        raise Invalid(
            "a body with Content-Range is part of a file, and would replace all of it: send the whole file, or use "
            "`copypool put`"
        )
    coding = whole_field(headers, "Transfer-Encoding")
    if coding is not None and coding.strip().lower() != "chunked":
        raise Invalid(f"the transfer coding {coding[:80]!r} is not known here, its bytes would be stored: chunked is")
    absent, match = whole_field(headers, "If-None-Match"), whole_field(headers, "If-Match")
    if headers.get("If-Unmodified-Since") is not None and match is None:
        raise Invalid("If-Unmodified-Since is too coarse to keep an update: send the ETag as If-Match")
    if absent is not None and absent.strip() != "*":
        raise Invalid("If-None-Match takes only `*` here")
    if absent is not None and match is not None:
        raise Invalid("If-Match and If-None-Match contradict each other")
    return WriteCondition(absent is not None, 0 if match is None else _version_of(match.strip()))


def _version_of(text: str) -> int:
    if text == "*":
        return ANY_VERSION
    tag = _TAG.fullmatch(text)
    if tag is None or int(tag[1]) > VERSION_MAX:
        raise Invalid("If-Match takes `*` or one ETag, in quotes, as a GET gave it")
    return int(tag[1])


def whole_field(headers: Mapping[str, str], name: str) -> str | None:
    """A header that holds a list, with all of its lines as one (RFC 9110, 5.3); None: it is not there."""
    line = headers.get(name)
    if line is None or not isinstance(headers, _ManyLines):
        return line
    return ", ".join(headers.getall(name))


def byte_range(headers: Mapping[str, str], etag: str, size_bytes: int) -> tuple[int, int] | None:
    """The bytes [start, stop) that are asked for; None: the whole file, as for a range of another version.

    Raises:
        RangeNotSatisfiable: they lie outside of the file.
        Invalid: it is no range.
    """
    text = headers.get("Range")
    if text is None or headers.get("If-Range", etag).strip() != etag:
        return None
    return _range_of(text.strip(), size_bytes)


def _range_of(text: str, size_bytes: int) -> tuple[int, int] | None:
    unit, separator, _ = text.partition("=")
    if separator and unit.lower() != "bytes":
        return None
    match = _RANGE.fullmatch(text) if len(text) <= _RANGE_MAX_CHARACTERS else None
    if match is None and _SEVERAL.fullmatch(text):
        return None
    if match is None or not (match[1] or match[2]):
        raise Invalid(f"the range {text[:80]!r} is none: bytes=FIRST-LAST, bytes=FIRST- or bytes=-LENGTH")
    if not match[1]:
        start, stop = size_bytes - min(int(match[2]), size_bytes), size_bytes
    else:
        start = int(match[1])
        stop = min(int(match[2]) + 1, size_bytes) if match[2] else size_bytes
        if match[2] and int(match[2]) < start:
            raise Invalid(f"the range {text[:80]!r} ends before it begins")
    if start >= stop:
        raise RangeNotSatisfiable(f"{text[:80]!r} lies outside the file's {size_bytes} bytes", length=size_bytes)
    return start, stop
