"""Values in etcd: array-like msgpack structs with integer ids and a format number in front. Pure.

Fields are only ever added at the end, with a default. `_ms` are milliseconds of cluster time since the epoch.
Which writer may write which row is in coordinator/README.md; it is what makes the compares few.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Literal, TypeVar

import msgspec

from copypool.protocol.api import AccessMode, AckRule, LocationState, OnCopyFailure, PoolType, SegmentRef
from copypool.protocol.internal import Refusal
from copypool.protocol.policies import Spread
from copypool.protocol.processes import ProcessState, ProcessVerb, VolumeIntent


class Row(msgspec.Struct, array_like=True):
    """Base of all rows."""


class PoolRow(Row):
    format: int
    id: int
    type: PoolType
    copy_pools: list[int] = []  #: of namespaces that name this primary pool and no copy pools
    spread: Spread = "host"  #: what locations here must not share with the extent's locations in other pools
    window: str = ""  #: cron expression, UTC: when copying into this pool may begin; "": always
    window_s: int = 0  #: how long it may then go on
    budget_bytes_s: int = 0  #: of all pulls into this pool together; 0: no limit
    description: str = ""


class NamespaceRow(Row):
    format: int
    id: int
    class_id: int  #: class of new extents
    state: str = "live"  #: `live` or `deleting`
    quota_bytes: int = 0  #: of its files' sizes; soft, checked when a lease is asked for; 0: none
    past_classes: list[int] = []  #: classes of older extents that may hold its records
    rewrite: bool = False  #: not read; a process says it
    class_since_ms: int = 0  #: when the class changed last; leases given out before live on for a minute; 0: never


class ClassRow(Row):
    """(primary pool, copy pools, ack rule); key = their canonical text, so equal classes have one id."""

    format: int
    id: int
    primary_pool: int
    copy_pools: list[int]
    ack: AckRule
    on_copy_failure: OnCopyFailure = "continue"  #: part of the ack rule `copy`


class NodeRow(Row):
    format: int
    id: int
    nonce_sha256: bytes  #: of the join nonce: a repeated join is recognised
    url: str
    zone: str
    host: str
    away_since_ms: int = 0  #: 0: not away; written by the HealthController, kept over leader changes
    maintenance_until_ms: int = 0
    maintenance_told_ms: int = 0  #: the `maintenance_until_ms` whose passing is in the event log
    stopping_epoch: int = 0  #: epoch of the session in which the node said that it stops; registration sets it to 0
    stopping_until_ms: int = 0  #: with it: when the node is expected back at the latest


class SessionRow(Row):
    """Only registration writes it; mod revision = epoch."""

    format: int
    lease: int
    nonce: bytes
    url: str
    since_ms: int


class CoordinatorRow(Row):
    format: int
    url: str
    since_ms: int


class VolumeRow(Row):
    format: int
    id: int
    uuid: bytes
    pool: int
    node: int
    epoch: int  #: of the label: a clone or rolled-back disk loses the compare
    access: AccessMode
    location_text: str = ""
    session: int = 0  #: epoch of the session that mounted it: a repeated mount is recognised
    claim: bytes = b""  #: nonce of the claim on the label: a claim that a dying process made is recognised
    limit_bytes: int = 0  #: its extents take no more room than this; 0: as much as its file system has
    access_reason: str = ""  #: why a program set the access mode; "": a person did
    access_since_ms: int = 0  #: when the access mode changed last; 0: never
    #: `drain`: its locations go elsewhere first; `discard`: they go as soon as another one is proven; `force`: they
    #: go. Written with the process that wants it; a volume with an intent takes no new bytes.
    intent: VolumeIntent = ""


class Location(Row):
    """One extent on one volume."""

    volume: int
    generation: int
    state: LocationState
    length: int  #: verified and fsync'd there; of the writer of an open extent: 0, `o/` knows
    records: int  #: records that end within `length`
    verified_ms: int = 0  #: last time every byte was read back and matched; 0: not yet
    changed_ms: int = 0
    evidence: str = ""  #: of a damaged or missing location
    bad_offset: int = -1  #: extent offset of a damaged location's first bad block, as its node found it; -1: not known
    before: LocationState | Literal[""] = ""  #: of a `dropping` one: its state before, which it has if it is to stay
    decided_ms: int = 0  #: of a `dropping` one: survivors were, and are, to be read back after this (A16)
    erasing: bool = False  #: its node was, or is about to be, told to delete it: it cannot stay any more
    stalled: str = ""  #: why its node gave its last pull up; "" once it goes on
    stalled_here: bool = False  #: with `stalled`: because of its own volume, so that another one may do


class Share(Row):
    """What one namespace put into an extent: who is concerned when the extent is behind, and up to where."""

    namespace: int  #: 0: the namespaces that have no share of their own, see `locations.SHARES_MAX`
    end: int  #: extent offset behind the last group with a record of it
    records: int
    payload_bytes: int  #: put in


class ExtentRow(Row):
    format: int
    class_id: int
    open: bool
    writer_node: int
    writer_volume: int
    epoch: int  #: of the writer's session
    opened_ms: int
    locations: list[Location]
    length: int = 0  #: sealed length
    records: int = 0
    payload_bytes: int = 0  #: put in
    group: int = -1  #: last committed group
    refusals: list[Refusal] = []  #: not noted by a later group
    digest: bytes = b""  #: of [0, length) once a holder has read it back
    sealed_ms: int = 0
    next_generation: int = 1
    dead_records: int = 0  #: deleted or overwritten, as folded from the counters so far
    dead_bytes: int = 0
    shares: list[Share] = []  #: by namespace; empty although there are records: written by an older version, unknown
    twin: int = 0  #: while open: generation of the location that gets every group with the writer; 0: none (any more)
    twin_node: int = 0  #: its node


class OpenRow(Row):
    """`o/<extent>`: what commits alone write."""

    format: int
    length: int
    group: int  #: last committed group, -1: none
    records: int
    payload_bytes: int
    uncopied_since_ms: int  #: time of the first commit past the shortest copy; 0: all copied as far as known
    refusals: list[Refusal] = []  #: of committed groups, not yet noted on disk
    shares: list[Share] = []  #: by namespace
    twin: int = 0  #: as in the extent's row; here it is never out of date


class FileFlag(IntEnum):
    """Bits of `FileRow.flags`."""

    tombstone = 1
    multipart = 2  #: `record` is a manifest record
    in_manifest = 4  #: the segments are only in the manifest record


class Replaced(Row):
    """A version that another one replaced: what recognises a late repeat of its write."""

    write_id: bytes
    version: int
    replaced_ms: int
    content: bytes = b""  #: what tells that write's content from another one's, see `judging`; b"": not kept


class FileRow(Row):
    """A file's version. At most 300 bytes in etcd with its key for a small file, so: arrays, ints, raw bytes."""

    format: int
    flags: int
    version: int
    size: int
    digest: bytes
    write_id: bytes
    record: SegmentRef  #: the record that made this version: its payload place; small files: their only segment
    header_bytes: int  #: the record's header stands this much before `record.offset`
    segments: list[SegmentRef] | None = None  #: of a multipart file, when at most 64
    recent: list[Replaced] | None = None  #: up to 64 versions replaced within the retry window, oldest first


class PartRow(Row):
    format: int
    version: int
    size: int
    digest: bytes
    write_id: bytes
    segment: SegmentRef


class UploadRow(Row):
    format: int
    path: str
    begun_ms: int


class TokenRow(Row):
    format: int
    name: str
    role: int
    namespace: str
    prefix: str
    expires_ms: int


class LeaderRow(Row):
    """Leased; its create revision is the term."""

    format: int
    name: str
    url: str


class ClusterRow(Row):
    format: int
    id: bytes
    created_ms: int
    brake_released_ms: int = 0  #: an operator believes in every absence before this time


class CountersRow(Row):
    """Sums since the coordinator's first start, flushed every 10 s; the sum over coordinators is the truth so far."""

    format: int
    files: int
    payload_bytes: int
    as_of_ms: int
    dead: dict[int, tuple[int, int]]  #: extent -> (records, payload bytes) deleted or overwritten since the last fold
    namespaces: dict[int, tuple[int, int]] = {}  #: namespace -> (files, bytes)


class ClockRow(Row):
    """Written by the leader every second; the mirror's sign of life."""

    format: int
    unix_ms: int
    worked_ms: int = 0  #: cluster time at which the controllers' last pass ended; 0: none yet
    trouble: str = ""  #: what the controllers cannot get done, as a sentence


class Skipped(Row):
    """One thing that a process could not do."""

    extent: int
    bytes: int
    records: int
    why: str


class ProcessRow(Row):
    """`x/<id>`: a long job. Made with the intents that it needs, in one transaction; kept up by the leader alone."""

    format: int
    verb: ProcessVerb
    what: str  #: what it is about, for people
    who: str  #: name of the token that asked
    created_ms: int
    volumes: list[int]  #: those it is about
    pools: list[int]  #: those it is about
    state: ProcessState = "running"
    total_extents: int = 0
    total_bytes: int = 0
    done_extents: int = 0
    done_bytes: int = 0
    updated_ms: int = 0
    ended_ms: int = 0
    outcome: str = ""  #: a sentence, once it has ended
    skipped: list[Skipped] = []  #: the first 100 of them
    skipped_total: int = 0
    access_before: list[AccessMode] = []  #: of `volumes`, when the process changed it: what a cancel gives back
    until_extent: int = -1  #: backup: later extents do not matter
    lengths: list[tuple[int, int]] = []  #: backup: (extent, committed length) of those that were open
    extents: list[int] = []  #: restore of a namespace or prefix: those that its files are in
    moves: list[tuple[int, int]] = []  #: rebalance: (extent, volume it goes off) now under way
    found: list[tuple[int, int]] = []  #: audit: (extent, generation) found bad, the first 10,000
    found_total: int = 0
    budget: list[tuple[int, int]] = []  #: rebalance: (volume, bytes that are still to go off it)
    fix: bool = False  #: audit: not done before all that was found is mended
    stuck_since_ms: int = 0  #: since when nothing of what is left can go on; 0: something can
    cancelled_by: str = ""  #: an operator's word; the leader ends the process
    known_bad: list[tuple[int, int]] = []  #: audit: (extent, generation) that were bad before it began
    progressed_ms: int = 0  #: when something more of it was done last; 0: not yet
    namespace: int = 0  #: rewrite: whose older extents get its present class


class EventRow(Row):
    format: int
    unix_ms: int
    kind: str
    who: str
    message: str
    extent: int = 0
    volume: str = ""
    node: str = ""
    cause: str = ""


FORMAT = 1
R = TypeVar("R", bound=Row)
_encoder = msgspec.msgpack.Encoder()
_decoders: dict[type[Row], msgspec.msgpack.Decoder[Row]] = {}


def encode(row: Row) -> bytes:
    """The value to put."""
    return _encoder.encode(row)


def decode(value: bytes, row: type[R]) -> R:
    """The row of a value."""
    decoder = _decoders.get(row)
    if decoder is None:
        decoder = _decoders[row] = msgspec.msgpack.Decoder(row)
    return decoder.decode(value)  # type: ignore[return-value]
