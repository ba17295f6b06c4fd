"""What nodes and coordinators say to each other. Structs only; the HTTP mapping is in `routes`. Always msgpack.

Node -> coordinator calls carry `Authorization: Node <node id>:<credential hex>`; coordinator -> node commands carry
`Authorization: Command <hex>` (key `command` of that node) and, inside, the leader's term. Any coordinator answers any
node; only the leader gives commands. Structs are array-like: fields are only ever added at the end, with a default.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from copypool.protocol.api import AccessMode, AckRule, LocationState, OnCopyFailure, PoolType, SegmentRef
from copypool.protocol.capability import NodeKeys
from copypool.protocol.twins import TwinTarget

#: etcd takes 128 operations a transaction; the rest is for the extent, namespaces and fence rows.
GROUP_OPS_MAX = 120
EXTENT_SOFT_BYTES = 64 * 1024 * 1024  #: an extent this long takes no further group
OPEN_EXTENTS_MAX = 16  #: open extents per volume
EXTENT_HEADER_BYTES = 4096  #: offset of the first group; the shortest valid length of a location
PULL_COMMIT_BYTES = 16 * 1024 * 1024


#: Characters that a node tells of why a volume is not mounted.
UNMOUNTED_REASON_MAX = 500


class Internal(msgspec.Struct, array_like=True):
    """Base of the array-like structs below."""


class Done(Internal):
    """The answer to a report: taken in, nothing else to say."""


# -- joining, sessions, volumes ---------------------------------------------------------------
class JoinRequest(Internal):
    """POST /n/join with `Authorization: Join <join token>`: once in a node's life; safe to repeat with its nonce."""

    name: str
    nonce: bytes  #: 16 random bytes that the node wrote to its state folder before asking


class JoinReply(Internal):
    cluster_id: bytes  #: 16 bytes
    node_id: int
    credential: bytes
    command_key: bytes


class RegisterRequest(Internal):
    """POST /n/register: start a session. Compare-and-swap on `s/<node>`; fences every earlier epoch of this node."""

    node_id: int
    nonce: bytes  #: 16 random bytes of this process: a repeat of the same process is recognised
    url: str
    zone: str
    host: str
    software: str


class StopRequest(Internal):
    """POST /n/stop: the node is about to be stopped in order; is it its turn? The leader alone knows."""

    node_id: int
    for_s: int  #: it is back after this time at the latest
    anyway: bool  #: announce it even if it is not its turn


class StopReply(Internal):
    waits_for: list[str]  #: nodes that have to be back first, and nothing was announced; empty: it is announced
    leader: str = ""  #: nothing was decided: ask the coordinator with this base URL


class Peer(Internal):
    node_id: int
    name: str
    url: str


class RegisterReply(Internal):
    cluster_id: bytes
    epoch: int  #: mod revision of the registration
    ttl_s: int
    term: int
    keys: list[NodeKeys]
    cluster_time_ms: int
    coordinators: list[str]  #: base URLs


class VolumeReport(Internal):
    """State of one volume in a heartbeat."""

    volume: int
    free_bytes: int  #: available to new extents, reserve already taken off
    total_bytes: int
    open_extents: int
    queued_bytes: int
    probe_age_ms: int  #: age of the last good write + fsync probe
    read_only: bool  #: the node stopped writing to it (write error)
    unknown_extents: int
    extents: int
    stored_bytes: int
    access_since_ms: int = 0  #: the newest change of access that the node has heard of
    read_only_reason: str = ""  #: why the node stopped writing to it
    safe_mode: bool = False  #: it has seen a newer catalog than this one: nothing is written, cut or deleted there


class Unmounted(Internal):
    """A volume of a node's configuration that is not mounted, in a heartbeat."""

    volume: str  #: its name
    reason: str  #: at most `UNMOUNTED_REASON_MAX` characters


class ReadFault(Internal):
    """Failures that clients or pullers told us of, summed per second; it makes nobody mark anything."""

    extent: int
    volume: int
    reason: str
    count: int


class HeartbeatRequest(Internal):
    """POST /n/heartbeat, every 3 s to every coordinator; one of them is asked to renew the lease."""

    node_id: int
    epoch: int
    renew: bool  #: exactly one coordinator a round gets True, and only while all probes are fresh
    volumes: list[VolumeReport]
    version_seen: int = 0  #: highest version minted or observed
    unmounted: list[Unmounted] = []  #: what operators should hear of, one entry a volume


class VolumeDirective(Internal):
    """What the catalog says of a volume of this node."""

    volume: int
    access: AccessMode
    pull_bytes_s: int = 0  #: this volume's share of its pool's bandwidth budget; 0: no limit
    limit_bytes: int = 0  #: its extents may take no more room than this; 0: no limit
    access_since_ms: int = 0  #: when the access mode changed last; 0: never


class HeartbeatReply(Internal):
    session_alive: bool  #: False: fenced; register again (new epoch), then seal
    cluster_time_ms: int
    term: int
    coordinators: list[str]
    peers: list[Peer]
    volumes: list[VolumeDirective]
    keys: list[NodeKeys]
    revision: int = 0  #: of the catalog, as far as this coordinator has seen it


class MountRequest(Internal):
    """POST /n/mount: claim a volume for this node; `label_epoch` is already written to its label and fsync'd."""

    node_id: int
    epoch: int
    name: str
    uuid: bytes  #: 16 bytes, of the label
    pool: str
    pool_type: PoolType
    #: Must be the catalog's epoch + 1, else `Conflict` (a clone or a rolled-back disk), but for two cases: equal to the
    #: catalog's epoch *and* with the nonce that the catalog keeps for it, this is the same claim said again; above it,
    #: the catalog went back: see `MountReply.epoch`.
    label_epoch: int
    nonce: bytes = b""  #: 16 random bytes, on the label beside the epoch: a claim whose reply was lost can be repeated


class MountReply(Internal):
    volume: int
    pool: int
    access: AccessMode
    catalog_revision: int  #: the node refuses a catalog below the highest revision on its label (safe mode)
    #: Of the volume, in the catalog now. Below `label_epoch` the claim was not taken down: safe mode. -1: not told.
    epoch: int = -1


# -- extents ----------------------------------------------------------------------------------
class ExtentClass(Internal):
    """(primary pool, copy pools, ack rule); names, for the extent header, so that volumes alone tell it."""

    class_id: int
    primary_pool: str
    copy_pools: list[str]
    ack: AckRule
    on_copy_failure: OnCopyFailure = "continue"


class OpenExtentRequest(Internal):
    """POST /n/open: a new extent on this volume. The rows exist when it answers; the file does not yet."""

    node_id: int
    epoch: int
    volume: int
    class_id: int
    avoid_nodes: list[int] = []  #: nodes whose twins just failed the caller: no twin there if there is another place


class OpenExtentReply(Internal):
    extent: int
    generation: int
    revision: int  #: of `o/<extent>`
    extent_class: ExtentClass
    twin: TwinTarget | None = None  #: ack rule `copy`: who gets every group too; None: nobody can


RecordKind = Literal["file", "tombstone", "part", "manifest", "config"]


class CommitEntry(Internal):
    """One record of a group, as its row needs it."""

    kind: RecordKind
    namespace: int
    path: str
    version: int
    size: int
    digest: bytes
    write_id: bytes
    first_sent_ms: int  #: when the client first sent this write id; 0: now
    segment: SegmentRef  #: payload place (length 0 for empty files and tombstones)
    header_bytes: int
    if_absent: bool
    capability: int  #: index into CommitRequest.capabilities
    upload: bytes = b""  #: kinds `part` and `manifest`: 16 bytes
    part: int = 0  #: kind `part`: its number
    segments: list[SegmentRef] = []  #: kind `manifest`: all parts in order
    part_versions: list[int] = []  #: kind `manifest`: versions of the named parts
    if_version: int = 0  #: the current version must be this one; `ANY_VERSION`: there must be a file; 0: no condition


class Claim(Internal):
    """Bytes that another node holds of this group (simultaneous write): its session is compared as well."""

    node_id: int
    epoch: int
    volume: int


class Refusal(Internal):
    """Record `index` of group `group` of this extent was refused: it is no file, although its bytes are there."""

    group: int
    index: int


class CommitRequest(Internal):
    """POST /n/commit: make one group visible: one etcd transaction for up to 120 operations.

    Safe to repeat as it is after a lost reply, through any coordinator: the revision of `o/` decides, and a group
    that has landed is recognised by its number and length.
    """

    node_id: int
    epoch: int
    extent: int
    revision: int  #: of `o/<extent>`, from the last reply
    group: int
    old_length: int
    new_length: int
    noted: list[Refusal]  #: refusals of earlier groups that this group's header notes on disk
    entries: list[CommitEntry]  #: each path at most once
    capabilities: list[str]  #: write capabilities of the clients, checked again per row
    #: The twin's, while it holds every group up to this one. A commit without it ends the twin: it becomes an ordinary
    #: copy of what it held before this group.
    claims: list[Claim] = []
    seal: bool = False  #: also seal the extent at new_length (in the same transaction)
    twin_failure: str = ""  #: why there is no claim any more, for people


EntryOutcome = Literal[
    "committed",  # the row is there; ack
    "replayed",  # this write id had been applied before, as `version`; this record is refused
    "conflict",  # `if_absent` or `if_version` and it is otherwise (`version` now, 0: none)
    "other_write",  # this write id has stored something else, as `version`
    "not_found",  # tombstone for a path that has no file
    "stale",  # version not above `version`, or implausible: append again with a higher one
    "contended",  # the path lost the race twice: append again in a group of its own
    "forbidden",  # capability does not cover it, or the namespace is gone
    "unknown_write",  # the write id is too old to tell whether it was applied
    "invalid",  # e.g. a manifest whose parts are not the upload's
]


class EntryResult(Internal):
    outcome: EntryOutcome
    version: int = 0
    message: str = ""
    crowded: bool = False  #: with `contended`: nobody raced it, its group's transaction had no room left


class CommitReply(Internal):
    revision: int  #: of `o/<extent>` now; of `e/<extent>` when it was sealed
    length: int
    results: list[EntryResult]  #: one per entry; every outcome but `committed` makes the record a refused one
    #: How many of the group replaced a file, each of which takes one more operation of etcd. -1: not told.
    replaced: int = -1


class SealRequest(Internal):
    """POST /n/seal: end an own extent at its committed length, whatever that is. Safe to repeat."""

    node_id: int
    epoch: int
    extent: int


class SealReply(Internal):
    """The truth about an extent that is sealed: cut to it, write the footer."""

    extent: int
    generation: int  #: of this node's location
    length: int
    refusals: list[Refusal]  #: not noted on disk by a later group
    group: int  #: last committed group, -1: none


class OwnExtentsRequest(Internal):
    """POST /n/extents: what the catalog says this node's volume holds, by pages of extent ids."""

    node_id: int
    epoch: int
    volume: int
    after: int = -1


class OwnExtent(Internal):
    extent: int
    generation: int
    state: LocationState
    length: int  #: of this location; of an open extent that this node writes: its committed length
    sealed: bool
    writer: bool  #: open and written by this volume (under an earlier epoch after a restart: seal it)


class OwnExtentsReply(Internal):
    extents: list[OwnExtent]
    next_after: int  #: -1: no more
    revision: int  #: catalog revision of the view that answered


class InventoryReport(Internal):
    """POST /n/inventory: what was found on the volume and does not agree with /n/extents.

    Only locations whose row is older than `revision` are judged; the node has looked at each file once more.
    """

    node_id: int
    epoch: int
    volume: int
    revision: int
    missing: list[int]  #: extents whose file is not there
    short: list[SegmentRef]  #: (extent, generation, actual length): shorter than the location claims


# -- copying, verifying, dropping -------------------------------------------------------------
class PullSource(Internal):
    node_id: int
    url: str
    length: int  #: of that location
    capability: str


class PullCommand(Internal):
    """POST /i/pull at the destination: bring its location up to `up_to`. Idempotent; the node owns it from now on."""

    term: int
    extent: int
    volume: int
    generation: int
    up_to: int
    sealed: bool
    refusals: list[Refusal]  #: for the footer, when sealed
    digest: bytes  #: of the sealed extent, when known
    sources: list[PullSource]  #: best first


class ProgressReport(Internal):
    """POST /n/progress: the location holds verified, fsync'd bytes up to `length`."""

    node_id: int
    epoch: int
    extent: int
    volume: int
    generation: int
    length: int
    records: int  #: records that end within `length`
    finished: bool  #: reached the length it was told; counts as good
    verified: bool  #: sealed, and read back from the medium past the page cache


class PullGivenUp(Internal):
    """POST /n/given-up: a pull ended before its target, after all its tries; the leader asks again later."""

    node_id: int
    epoch: int
    extent: int
    volume: int
    generation: int
    length: int  #: verified, fsync'd bytes that are there
    why: str  #: for people
    here: bool  #: the volume is to blame (full, failing), not the sources: another place may do


class PullFault(Internal):
    """POST /n/fault: bytes that a puller got from another node failed their check. A hint: that node verifies."""

    node_id: int  #: the puller
    extent: int
    source_node: int


class VerifyCommand(Internal):
    """POST /i/verify: read every byte of this location up to `length` from the medium and report. Queued, paced."""

    term: int
    extent: int
    volume: int
    generation: int
    length: int
    sealed: bool
    cause: str = ""  #: event id that asked for it


class VerifyReport(Internal):
    """POST /n/verified."""

    node_id: int
    epoch: int
    extent: int
    volume: int
    generation: int
    length: int  #: how far the location was read
    good: bool
    digest: bytes  #: of [0, length) when good and sealed
    evidence: str  #: when bad: what failed, at which offset
    bad_offset: int = -1
    missing: bool = False  #: the file is not there
    cause: str = ""


class DropCommand(Internal):
    """POST /i/drop: delete exactly this generation. Answer `DropReply`; deleting what is gone is fine."""

    term: int
    extent: int
    volume: int
    generation: int


class DropReply(Internal):
    gone: bool


class SealCommand(Internal):
    """POST /i/seal: the extent was sealed by somebody else (fencing): cut to `length`, write the footer."""

    term: int
    extent: int
    volume: int
    generation: int
    length: int
    group: int
    refusals: list[Refusal]


# -- the configuration on every volume --------------------------------------------------------------
class Configuration(Internal):
    """What no record tells, so that the catalog can be rebuilt from volumes alone (A5): who is who, and policy.

    Client tokens are not in it: they are made anew after a rebuild.
    """

    cluster_id: bytes
    pools: list[tuple[str, int, PoolType]]  #: name, id, type
    classes: list[ExtentClass]
    namespaces: list[tuple[str, int, int, int, str]]  #: name, id, class id, quota in bytes, state
    nodes: list[tuple[str, int]]  #: name, id
    volumes: list[tuple[str, int, int, int]]  #: name, id, pool id, node id


class ConfigurationCommand(Internal):
    """POST /i/configuration: keep this beside the label; durable when answered. Safe to repeat; the newest stays."""

    term: int
    volume: int
    revision: int  #: catalog revision that it was read at
    content: bytes  #: `Configuration` as msgpack


# -- group reads ------------------------------------------------------------------------------
class ReadItem(Internal):
    extent: int
    offset: int
    length: int  #: <= SMALL_MAX_BYTES


class ReadManyRequest(Internal):
    """POST /i/read-many: many small payloads in one call. The node verifies each before it answers."""

    items: list[ReadItem]


class ReadManyItem(Internal):
    code: str  #: "" when `payload` is valid
    payload: bytes


class ReadManyReply(Internal):
    items: list[ReadManyItem]


class RecordInfo(msgspec.Struct, frozen=True):
    """What a record header tells; GET /v1/record/... at a node."""

    kind: RecordKind
    namespace: int
    path: str
    version: int
    metadata: dict[str, str]
