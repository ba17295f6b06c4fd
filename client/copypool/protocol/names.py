"""Names at the edge: paths, namespace names, prefixes and user metadata, validated once, here.

Paths are NUL-free UTF-8 of 1 to 1,024 bytes, relative, without empty, `.` or `..` parts, and are never normalised:
two look-alikes are two files. `a` and `a/b` may both exist.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from copypool.protocol.errors import Invalid, TooLarge

PATH_MAX_BYTES = 1024
METADATA_MAX_BYTES = 4096
METADATA_MAX_ENTRIES = 64

_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")


def check_path(path: str) -> str:
    """Return `path` unchanged, or raise `Invalid` / `TooLarge` saying what is wrong with it."""
    try:
        size = len(path) if path.isascii() else len(path.encode("utf-8"))
    except UnicodeEncodeError as exc:
        raise Invalid("the path is not valid UTF-8: rename the file, or give it another name here") from exc
    if size > PATH_MAX_BYTES:
        raise TooLarge(f"the path is {size} bytes long; the limit is {PATH_MAX_BYTES}")
    if not path:
        raise Invalid("the path is empty")
    if "\0" in path:
        raise Invalid("the path contains a NUL byte")
    if path[0] == "/" or path[-1] == "/" or "//" in path:
        raise Invalid(f"the path {path[:80]!r} has an empty part: no leading, trailing or double slash")
    if "." in path and any(part in (".", "..") for part in path.split("/")):
        raise Invalid(f"the path {path[:80]!r} has a part '.' or '..'")
    return path


def check_prefix(prefix: str) -> str:
    """A listing prefix or token scope: empty, or like a path but a trailing slash is allowed."""
    if prefix:
        check_path(prefix.removesuffix("/"))
    return prefix


def check_name(name: str, what: str = "name") -> str:
    """Names of namespaces, pools, volumes, nodes, zones: 1-63 of `a-z 0-9 . _ -`, alphanumeric at both ends."""
    if not _NAME.fullmatch(name):
        raise Invalid(
            f"the {what} {name[:80]!r} is not valid: 1 to 63 of a-z, 0-9, '.', '_', '-', "
            "starting and ending with a letter or digit"
        )
    return name


def in_scope(path: str, prefix: str) -> bool:
    """Whether `path` lies under `prefix` at a path boundary: `team/a` covers `team/a` and `team/a/x`, not `team/ab`."""
    if not prefix:
        return True
    bare = prefix.removesuffix("/")
    return path == bare or path.startswith(bare + "/")


def check_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """User metadata: at most 64 entries and 4,096 bytes of keys and values together."""
    if len(metadata) > METADATA_MAX_ENTRIES:
        raise TooLarge(f"{len(metadata)} metadata entries; the limit is {METADATA_MAX_ENTRIES}")
    size = sum(len(key.encode()) + len(value.encode()) for key, value in metadata.items())
    if size > METADATA_MAX_BYTES:
        raise TooLarge(f"user metadata is {size} bytes; the limit is {METADATA_MAX_BYTES}")
    return dict(metadata)
