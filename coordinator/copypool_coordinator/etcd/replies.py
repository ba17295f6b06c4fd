"""What comes back from etcd, as plain data.

`KeyValue` is a named tuple: a lookup of 128 rows makes 128 of them, and a frozen dataclass costs three times as
much to make.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias


class KeyValue(NamedTuple):
    """One row, as of the revision of the reply that carries it."""

    key: bytes
    #: empty in a keys-only read
    value: bytes
    #: revision of the write that made the row
    create_revision: int
    #: revision of the last write
    mod_revision: int
    #: number of writes since it was made, from 1
    version: int
    #: lease id, 0 = none
    lease: int


@dataclass(frozen=True, slots=True)
class TxnResult:
    """The branch that ran, and what it read."""

    #: every compare held, so `success` ran; otherwise `failure`
    succeeded: bool
    #: the store's revision after the transaction; the mod-revision of every row it wrote
    revision: int
    #: one entry per operation of the branch that ran: the rows of a get, nothing for a put or delete
    responses: list[tuple[KeyValue, ...]]


@dataclass(frozen=True, slots=True)
class RangeResult:
    """One page of a range."""

    rows: tuple[KeyValue, ...]
    #: the limit cut the page off
    more: bool
    #: the store's revision when the page was read (not the revision that was asked for)
    revision: int
    #: rows in the whole range, beyond the limit too; etcd counts them in any case
    count: int


@dataclass(frozen=True, slots=True)
class EndpointStatus:
    """What one etcd member says of itself; with `error` set, the rest is empty."""

    endpoint: str
    version: str = ""
    db_size_bytes: int = 0
    db_in_use_bytes: int = 0
    is_leader: bool = False
    revision: int = 0
    raft_term: int = 0
    #: cluster-wide alarms ("NOSPACE alarm member:..."), as etcd words them
    alarms: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class Listed:
    """The whole content of the mirrored ranges at `revision`: replaces everything known before."""

    rows: tuple[KeyValue, ...]
    revision: int
    #: why it was listed (again), for logs and metrics: "start", "compacted", "cancelled", "silent", ...
    reason: str


@dataclass(frozen=True, slots=True)
class Changed:
    """What became of one range's rows up to `revision`, since the event before.

    Whole revisions only. A batch may span several; a key is named once, with its last state, so that puts and
    deletes may be applied in any order.
    """

    revision: int
    puts: list[KeyValue]
    deletes: list[bytes]


MirrorEvent: TypeAlias = Listed | Changed
