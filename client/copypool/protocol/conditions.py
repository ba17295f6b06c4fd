"""What the conditional headers of a write ask for, after RFC 9110 section 13. Pure.

    If-None-Match: *        store only if there is no such file
    If-Match: "<version>"   replace or delete only this version, which the `ETag` of a GET names
    If-Match: *             replace or delete only if there is such a file

A condition that does not hold is `PreconditionFailed` (412) and nothing changes. What cannot be kept is refused: a
condition that is silently left out is a lost update.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from copypool.protocol.api import ANY_VERSION
from copypool.protocol.errors import Invalid
from copypool.protocol.versions import VERSION_MAX

_TAG = re.compile(r'"([1-9][0-9]{0,18})"')


class WriteCondition(NamedTuple):
    """What must hold of the file before a write changes it."""

    if_absent: bool = False
    if_version: int = 0  #: the current version; `ANY_VERSION`: one must be there; 0: no condition


def etag_of(version: int) -> str:
    """The strong entity tag of a version: its bytes never change."""
    return f'"{version}"'


def write_condition(headers: Mapping[str, str]) -> WriteCondition:
    """The condition of a PUT or DELETE; `Invalid` when it cannot be kept."""
    absent, match = headers.get("If-None-Match"), headers.get("If-Match")
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
