"""What can be asked of etcd, as plain data: compares and operations of a transaction.

Named tuples, because a commit builds up to 120 of them and a group lookup 128.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple, TypeAlias

#: etcd refuses more than this many compares, and more operations than this in a branch.
TXN_MAX_OPS = 128
#: etcd's default `--max-request-bytes`.
REQUEST_MAX_BYTES = 1_572_864


class Target(Enum):
    """The property of a row that a compare looks at."""

    MOD = "mod"
    CREATE = "create"
    VALUE = "value"


class Compare(NamedTuple):
    """`target` of the row at `key` equals the operand; a missing row has revision 0."""

    target: Target
    key: bytes
    revision: int
    value: bytes


class Put(NamedTuple):
    """Write one row."""

    key: bytes
    value: bytes
    lease: int


class Delete(NamedTuple):
    """Delete one row, or the rows in [key, end)."""

    key: bytes
    end: bytes | None


class Get(NamedTuple):
    """Read one row, or the rows in [key, end)."""

    key: bytes
    end: bytes | None
    limit: int
    keys_only: bool


Op: TypeAlias = Put | Delete | Get


def mod_equals(key: bytes, revision: int) -> Compare:
    """The row was last written at `revision`; 0 means that it does not exist.

    This is the compare that fences: a row that was deleted or written again, even with the same value, fails it.
    """
    return Compare(Target.MOD, key, revision, b"")


def create_equals(key: bytes, revision: int) -> Compare:
    """The row was created at `revision` and lives since; 0 means that it does not exist. Later writes pass."""
    return Compare(Target.CREATE, key, revision, b"")


def value_equals(key: bytes, value: bytes) -> Compare:
    """The row exists and holds exactly `value`."""
    return Compare(Target.VALUE, key, 0, value)


def put(key: bytes, value: bytes, lease: int = 0) -> Op:
    """Write one row; with a `lease` it goes when the lease does."""
    return Put(key, value, lease)


def delete(key: bytes, end: bytes | None = None) -> Op:
    """Delete the row at `key`, or the rows in [key, end); no row is no error."""
    return Delete(key, None if end is None else bounded(key, end))


def get(key: bytes, end: bytes | None = None, *, limit: int = 0, keys_only: bool = False) -> Op:
    """Read the row at `key`, or at most `limit` (0: all) rows in [key, end), in key order."""
    return Get(key, None if end is None else bounded(key, end), limit, keys_only)


def bounded(key: bytes, end: bytes) -> bytes:
    """`end`, if [key, end) is a range that has an end.

    etcd reads an end of one zero byte as "everything from key on", and walks the whole range even under a limit.

    Raises:
        ValueError: the range is empty, reversed or open.
    """
    if end <= key or end == b"\0":
        raise ValueError(f"not a bounded range: [{key!r}, {end!r})")
    return end
