"""What clients say to coordinators and nodes. Structs only; the HTTP mapping is in `routes`.

Bodies are msgpack when `Content-Type: application/msgpack`, else JSON; answers follow `Accept` the same way.
Fields may be added at the end with a default; nothing is renamed or removed within a major version.
Sizes and offsets are bytes, `_ms` are milliseconds of cluster time since the epoch.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from copypool.protocol.protection import NamespaceProtection, PoolProtection, ScrubProgress

LOOKUP_MAX = 128  #: paths in one lookup
LIST_MAX = 1000  #: entries in one page
BATCH_MAX_ENTRIES = 1024  #: files in one batch request
BATCH_MAX_BYTES = 16 * 1024 * 1024  #: payload bytes in one batch request
SMALL_MAX_BYTES = 1024 * 1024  #: up to here a body shares groups with others and may go into a batch
PART_BYTES = 32 * 1024 * 1024  #: size of every part of a large file but the last
PART_MAX_BYTES = 64 * 1024 * 1024  #: the largest single body that a node takes
PARTS_MAX = 100_000
FILE_MAX_BYTES = PART_BYTES * PARTS_MAX
SEGMENTS_INLINE_MAX = 64  #: a file of more segments has them in its manifest record
WRITE_ID_BYTES = 8
ANY_VERSION = -1  #: as `if_version`: the file must exist, whatever its version

LocationState = Literal["copying", "good", "damaged", "missing", "dropping"]
PoolType = Literal["primary", "copy"]
AckRule = Literal["primary", "copy"]
OnCopyFailure = Literal["continue", "fail"]
AccessMode = Literal["readwrite", "readonly", "unavailable", "destroyed", "offsite"]


# -- writing ----------------------------------------------------------------------------------
class LeaseRequest(msgspec.Struct, omit_defaults=True):
    """Ask where to write. POST /rpc/lease, role writer."""

    namespace: str
    prefix: str = ""  #: the capability covers only this prefix
    count: int = 2  #: how many alternatives, on different nodes where possible; 1..8
    size_bytes: int = 0  #: expected size of one body
    avoid_nodes: list[int] = []  #: node ids that just failed the caller
    for_delete: bool = False  #: deletes only: a full volume keeps room for them


class WriteLease(msgspec.Struct):
    """A place to write and the right to do so: a hint, not a lock."""

    node_id: int
    node: str
    url: str  #: base URL of the node
    volume: int
    class_id: int
    namespace_id: int
    capability: str
    max_bytes: int
    expires_ms: int


class LeaseReply(msgspec.Struct):
    leases: list[WriteLease]  #: best first, never empty (`NoSpace` / `Unavailable` instead)
    cluster_time_ms: int


class SegmentRef(msgspec.Struct, array_like=True, frozen=True):
    """Where payload bytes are: `offset` is the extent offset of the first stripe header."""

    extent: int
    offset: int
    length: int  #: payload bytes


class Receipt(msgspec.Struct, omit_defaults=True):
    """What a node answers once bytes are fsync'd where stated and committed by an etcd quorum."""

    namespace: str
    path: str
    version: int
    size: int
    digest: str
    segment: SegmentRef | None  #: None for deletes
    volumes: list[str]  #: names of the volumes that hold it durably now
    ack: AckRule  #: the ack rule that was met
    replayed: bool = False  #: the write id had been applied before; nothing new was written
    header_bytes: int = 0


class BatchEntry(msgspec.Struct, omit_defaults=True):
    """Head of one file in a batch body: u32 little-endian head size, this as msgpack, then `size` payload bytes."""

    path: str
    size: int
    write_id: bytes
    first_sent_ms: int = 0
    digest: bytes = b""  #: when given, checked before anything is stored
    if_absent: bool = False
    metadata: dict[str, str] = {}
    if_version: int = 0  #: replace only this version; `ANY_VERSION`: any, but one must be there; 0: no condition


class BatchResult(msgspec.Struct, omit_defaults=True):
    """One per entry, in order: a receipt or an error."""

    receipt: Receipt | None = None
    code: str = ""
    message: str = ""
    retryable: bool = False


class BatchReply(msgspec.Struct):
    results: list[BatchResult]


class PartRef(msgspec.Struct, array_like=True, frozen=True):
    """A stored part of an upload, as its receipt named it."""

    number: int
    version: int
    digest: bytes
    segment: SegmentRef


class CompleteRequest(msgspec.Struct, omit_defaults=True):
    """Make the parts of an upload one file. POST /v1/complete/{namespace}/{path} at a node."""

    upload: str  #: 32 hex digits, chosen at random by the client
    parts: list[PartRef]  #: numbers 0..n-1 in order; all but the last of one size
    size: int
    digest: bytes  #: of the whole file, in order
    write_id: bytes
    first_sent_ms: int = 0
    if_absent: bool = False
    metadata: dict[str, str] = {}
    if_version: int = 0  #: as in `BatchEntry`


# -- reading ----------------------------------------------------------------------------------
class LookupRequest(msgspec.Struct, omit_defaults=True):
    """Find files and where to read them. POST /rpc/lookup, role reader."""

    namespace: str
    paths: list[str]  #: 1..LOOKUP_MAX
    version: int = 0  #: only with one path: this version instead of the current one
    raw: bool = True  #: capabilities let the caller verify checksums itself
    avoid_nodes: list[int] = []
    zone: str = ""  #: the reader's failure domain: places there are nearest


class Source(msgspec.Struct):
    """One location to read a segment from."""

    node_id: int
    node: str
    url: str
    volume: str
    pool_type: PoolType
    state: LocationState
    reachable: bool
    capability: str
    given_up: bool = False  #: an operator declared its volume destroyed: it is not waited for


class SegmentPlan(msgspec.Struct):
    """One segment and its sources, best first; empty only when no location exists, or offsite ones alone."""

    extent: int
    offset: int
    length: int
    sources: list[Source]
    offsite: list[str] = []  #: volumes that no program can read, but people can bring back


class FileEntry(msgspec.Struct, omit_defaults=True):
    """One looked-up file.

    With `manifest`, `segments` is empty and the manifest's payload lists `SegmentRef`s (msgpack), to be resolved
    with `ResolveRequest`.
    """

    path: str
    version: int
    size: int
    digest: str
    segments: list[SegmentPlan]
    manifest: SegmentPlan | None = None
    header_bytes: int = 0  #: size of the record header in front of the first segment (or of the manifest)


class LookupResult(msgspec.Struct, omit_defaults=True):
    file: FileEntry | None = None
    code: str = ""  #: `not_found`, or another code
    message: str = ""


class LookupReply(msgspec.Struct):
    results: list[LookupResult]  #: one per path, in order
    cluster_time_ms: int


class ResolveRequest(msgspec.Struct, omit_defaults=True):
    """Sources for segments of a file whose manifest the caller has read. POST /rpc/resolve, role reader.

    The coordinator reads the file's row and its manifest's digest to make sure that the segments are this file's.
    """

    namespace: str
    path: str
    version: int
    first: int  #: index of the first wanted segment in the manifest
    count: int  #: 1..LOOKUP_MAX
    raw: bool = True
    avoid_nodes: list[int] = []
    zone: str = ""


class ResolveReply(msgspec.Struct):
    segments: list[SegmentPlan]
    total: int


class ListRequest(msgspec.Struct, omit_defaults=True):
    """One page of names in byte order. POST /rpc/list, role reader. Exact per page, not across pages."""

    namespace: str
    prefix: str = ""  #: any string prefix, trailing slash or not; the token's scope limits it as well
    delimiter: str = ""  #: "" or "/"
    after: str = ""  #: cursor: entries strictly after this name
    limit: int = LIST_MAX


class ListEntry(msgspec.Struct, omit_defaults=True):
    path: str
    version: int = 0  #: 0 for a common prefix
    size: int = 0
    digest: str = ""
    is_prefix: bool = False


class ListReply(msgspec.Struct):
    entries: list[ListEntry]
    next_after: str  #: cursor of the next page; empty at the end


class LocationInfo(msgspec.Struct):
    """Where one copy of a segment is and what is known of it."""

    pool: str
    pool_type: PoolType
    volume: str
    node: str
    offset: int
    length: int  #: payload bytes of this segment that this location holds
    state: LocationState
    reachable: bool
    verified_unix_s: float | None  #: last time every byte was read back and matched; None: not yet


class SegmentInfo(msgspec.Struct):
    extent: int
    offset: int
    length: int
    sealed: bool
    locations: list[LocationInfo]


class StatRequest(msgspec.Struct, omit_defaults=True):
    """Everything about one file. POST /rpc/stat, role reader."""

    namespace: str
    path: str
    version: int = 0


class StatReply(msgspec.Struct):
    namespace: str
    path: str
    version: int
    stored_unix_s: float
    size: int
    digest: str
    segments: list[SegmentInfo]
    metadata: dict[str, str]
    older_versions: list[int]  #: newest first, at most 100
    metadata_read: bool = True  #: False: no location could be read now, so `metadata` is empty for that reason


# -- administration ---------------------------------------------------------------------------
class NamespaceSpec(msgspec.Struct, omit_defaults=True):
    """POST /rpc/namespace_create, role admin. Answer: NamespaceInfo."""

    name: str
    primary_pool: str = "primary"
    copy_pools: list[str] | None = None  #: None: as the primary pool says
    ack: AckRule = "primary"
    on_copy_failure: OnCopyFailure = "continue"  #: ack rule `copy`, and no copy can be written: acknowledge, or refuse
    quota_bytes: int = 0  #: of its files' sizes together; 0: none


class NamespaceInfo(msgspec.Struct):
    name: str
    id: int
    primary_pool: str
    copy_pools: list[str]
    ack: AckRule
    on_copy_failure: OnCopyFailure = "continue"
    quota_bytes: int = 0


class TokenSpec(msgspec.Struct, omit_defaults=True):
    """POST /rpc/token_create, role admin. Answer: TokenReply; the token is shown this once."""

    name: str
    role: Literal["reader", "writer", "operator", "admin"]
    namespace: str = ""
    prefix: str = ""
    life_s: int = 0


class TokenReply(msgspec.Struct):
    name: str
    token: str


class TokenRevoke(msgspec.Struct):
    """POST /rpc/token_revoke, role admin."""

    name: str


class Empty(msgspec.Struct):
    """A request or answer without content."""


class NodeInfo(msgspec.Struct):
    name: str
    id: int
    #: `up`: its session lives; `silent`: it lives still, but the node has missed three heartbeats at who answers
    state: Literal["up", "away", "silent"]
    zone: str
    host: str
    url: str
    epoch: int
    away_since_unix_s: float | None
    volumes: int
    free_bytes: int
    total_bytes: int
    heartbeat_age_s: float | None  #: as seen by the coordinator that answers; None: not heard since that started
    maintenance_until_unix_s: float | None = None  #: announced absence: what it holds is not rebuilt until then
    #: `away` and without a volume: nothing is missing with it, its name is free; `status` leaves it out
    taken_out: bool = False


class VolumeInfo(msgspec.Struct):
    name: str
    id: int
    pool: str
    pool_type: PoolType
    node: str
    access: AccessMode
    reachable: bool
    free_bytes: int
    total_bytes: int
    extents: int
    stored_bytes: int
    damaged: int
    unknown_extents: int  #: extent files without a row: kept, never deleted by a program
    intent: str = ""  #: `drain`, `discard` or `force` while, and after, a process empties it


class PoolInfo(msgspec.Struct):
    name: str
    id: int
    type: PoolType
    volumes: int
    nodes: int
    extents: int
    stored_bytes: int
    debt_bytes: int  #: copy pools: bytes of their classes not yet good here


class NodeList(msgspec.Struct):
    """Answer of POST /rpc/nodes (`Empty`), role operator."""

    items: list[NodeInfo]


class VolumeList(msgspec.Struct):
    """Answer of POST /rpc/volumes (`Empty`), role operator."""

    items: list[VolumeInfo]


class PoolList(msgspec.Struct):
    """Answer of POST /rpc/pools (`Empty`), role operator."""

    items: list[PoolInfo]


class NamespaceList(msgspec.Struct):
    """Answer of POST /rpc/namespaces (`Empty`), role reader: the namespaces in the token's scope."""

    items: list[NamespaceInfo]


class StatusReply(msgspec.Struct, omit_defaults=False):
    """POST /rpc/status, role reader. The contract of `copypool status --json`."""

    healthy: bool  #: every live byte is where policy says, and read back in time or too young for that
    reasons: list[str]  #: why not, one sentence each; empty when healthy
    files: int
    bytes: int
    as_of_unix_s: float  #: age of the counters `files`, `bytes`, `unavailable_files`, `lost_files`
    debt_bytes: int
    debt_extents: int
    debt_oldest_s: float
    damaged_locations: int
    under_protected_extents: int  #: fewer good locations than the class wants, primary or copy
    unverified_bytes: int  #: at policy, but with a location whose bytes were not read back yet; young ones included
    unavailable_files: int  #: no reachable location now; a node that is away may bring them back
    lost_files: int  #: no location left at all, or only volumes that were given up
    nodes: list[NodeInfo]
    leader: str  #: name of the leading coordinator, or ""
    coordinator: str  #: who answers
    brake: str  #: why re-replication is held, or ""
    catalog_bytes: int  #: etcd database size
    pools: list[PoolProtection] = []
    namespaces: list[NamespaceProtection] = []  #: those in the token's scope
    warnings: list[str] = []  #: what this cluster could not protect against, though all is where policy says
    scrub: ScrubProgress | None = None
    catalog_down: bool = False  #: etcd does not answer: everything here is from memory, as of when it was last heard
    #: In extents of which every location is damaged: those whose blocks are good in one of them can be read.
    doubtful_files: int = 0
    empty: bool = False  #: no extent holds anything: there is nothing to be proven
    #: With a block that is bad on every location: bytes are lost, of which files only the directory tells.
    holed_extents: int = 0


class EventsRequest(msgspec.Struct, omit_defaults=True):
    """POST /rpc/events, role operator."""

    after: str = ""
    limit: int = 200


class Event(msgspec.Struct, omit_defaults=True):
    id: str  #: sorts by time
    unix_s: float
    kind: str  #: past tense, e.g. `LocationDamaged`
    who: str
    message: str
    extent: int = 0
    volume: str = ""
    node: str = ""
    cause: str = ""  #: id of the event that led to this one


class EventsReply(msgspec.Struct):
    events: list[Event]
    next_after: str


class DamagedEntry(msgspec.Struct):
    extent: int
    volume: str
    node: str
    generation: int
    since_unix_s: float
    evidence: str
    state: LocationState = "damaged"
    bad_offset: int = -1  #: extent offset of the first bad block, as its node found it; -1: not known, or all of it


class DamagedReply(msgspec.Struct):
    """POST /rpc/damaged, role operator."""

    locations: list[DamagedEntry]


class WaitCopied(msgspec.Struct, omit_defaults=True):
    """POST /rpc/copied, role reader: is everything committed before the call copied? Polled by `wait --copied`."""

    marks: list[list[int]] = []  #: empty: take marks now; else [extent, length] pairs to be reached by every copy pool
    namespace: str = ""  #: marks of what this namespace has committed; "": of everything


class CopiedReply(msgspec.Struct):
    done: bool
    marks: list[list[int]]
    debt_bytes: int
    debt_extents: int


class ReadReport(msgspec.Struct, array_like=True, frozen=True):
    """A client's report that a source failed; it makes the node verify, it never marks by itself."""

    extent: int
    volume: str
    node_id: int
    reason: Literal["refused", "timeout", "stall", "checksum", "error"]
    count: int


class ReportRequest(msgspec.Struct):
    """POST /rpc/report, role reader. At most 256 reports."""

    reports: list[ReadReport]
