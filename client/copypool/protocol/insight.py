"""What operators ask of the whole cluster: proof of protection, explanations, the event log, occupancy. Structs only.

`POST /rpc/<verb>` as in `api`, which this module builds upon. Long answers come by pages: the caller adds them up
(`Coverage.add`), sends `next_after` back as `after`, and is done when it is empty. Any coordinator takes any page.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from copypool.protocol.api import AccessMode, AckRule, Event, LocationState, PoolType

PROBLEMS_MAX = 20  #: examples in one page
#: What ends the trouble with an extent of which a block is bad everywhere: its bytes cannot be moved off it yet.
WAY_OUT = (
    "store the readable files of the extent again (`copypool query damaged --files` names those behind the block, "
    "`copypool query content VOLUME --files` all), delete the lost ones; the extent itself stays marked until there is "
    "`reclaim`"
)


# -- prove ------------------------------------------------------------------------------------
class CopyCount(msgspec.Struct):
    """Files and bytes that have exactly this many; a file has as many as its least covered byte."""

    count: int
    files: int
    bytes: int


class PoolCoverage(msgspec.Struct):
    """What the pool has of the scope."""

    pool: str
    type: PoolType
    files: int  #: wholly there
    bytes: int  #: there, once
    missing_files: int  #: wanted there by their class and not wholly there
    missing_bytes: int
    never_verified_bytes: int  #: there, sealed, and not read back yet at some location
    oldest_verified_unix_s: float | None  #: the longest ago that a sealed location of the scope was read back


class Problem(msgspec.Struct):
    """Something in the scope that is neither proven nor young."""

    what: str  #: a path, or `extent N`
    why: str


class Coverage(msgspec.Struct):
    """How well a scope is protected: good locations that count, as of the moment at which each page was read."""

    files: int = 0
    bytes: int = 0
    at_policy_files: int = 0
    at_policy_bytes: int = 0
    proven_files: int = 0  #: at policy, and every byte read back within two scrub periods
    proven_bytes: int = 0
    copies: list[CopyCount] = []  #: by good counted copies, from 0 on
    nodes: list[CopyCount] = []  #: by different nodes among them
    hosts: list[CopyCount] = []
    zones: list[CopyCount] = []
    pools: list[PoolCoverage] = []
    problems: list[Problem] = []
    young_files: int = 0  #: at policy, but bytes of them are young: fsync'd and checked, not read back yet
    young_bytes: int = 0

    @property
    def proven(self) -> bool:
        """Whether everything in the scope is proven to be where policy says."""
        return self.proven_files == self.files and self.proven_bytes == self.bytes

    @property
    def sound(self) -> bool:
        """Whether everything in the scope is where policy says, and proven or too young for that."""
        return self.proven_files + self.young_files == self.files and self.proven_bytes + self.young_bytes == self.bytes

    def add(self, other: Coverage, problems_max: int = PROBLEMS_MAX) -> None:
        """Take another page's coverage in."""
        for name in ("files", "bytes"):
            for field in (name, f"at_policy_{name}", f"proven_{name}", f"young_{name}"):
                setattr(self, field, getattr(self, field) + getattr(other, field))
        for name in ("copies", "nodes", "hosts", "zones"):
            setattr(self, name, _added(getattr(self, name), getattr(other, name)))
        self.pools = _added_pools(self.pools, other.pools)
        self.problems = [*self.problems, *other.problems][:problems_max]


def _added(one: list[CopyCount], other: list[CopyCount]) -> list[CopyCount]:
    sums: dict[int, CopyCount] = {}
    for each in (*one, *other):
        known = sums.setdefault(each.count, CopyCount(each.count, 0, 0))
        known.files += each.files
        known.bytes += each.bytes
    return [sums[count] for count in sorted(sums)]


def _added_pools(one: list[PoolCoverage], other: list[PoolCoverage]) -> list[PoolCoverage]:
    sums: dict[str, PoolCoverage] = {}
    for each in (*one, *other):
        known = sums.setdefault(each.pool, PoolCoverage(each.pool, each.type, 0, 0, 0, 0, 0, None))
        for name in ("files", "bytes", "missing_files", "missing_bytes", "never_verified_bytes"):
            setattr(known, name, getattr(known, name) + getattr(each, name))
        ages = [age for age in (known.oldest_verified_unix_s, each.oldest_verified_unix_s) if age is not None]
        known.oldest_verified_unix_s = min(ages, default=None)
    return sorted(sums.values(), key=lambda each: (each.type != "primary", each.pool))


class ProveRequest(msgspec.Struct, omit_defaults=True):
    """One page of a proof. POST /rpc/prove, role reader.

    Without a namespace the scope is the whole cluster, or the extents of one pool's classes, counted from the
    catalog's extents: files are records, bytes are stored bytes, dead ones included until they are reclaimed. With
    a namespace it is the current versions of its files under `prefix`, counted from the directory.
    """

    pool: str = ""
    namespace: str = ""
    prefix: str = ""
    after: str = ""


class ProveReply(msgspec.Struct):
    coverage: Coverage  #: of this page alone
    measure: Literal["extents", "files"]
    next_after: str  #: "" at the end
    as_of_unix_s: float


# -- explain ----------------------------------------------------------------------------------
class ExplainRequest(msgspec.Struct, omit_defaults=True):
    """Where a file is and why. POST /rpc/explain, role reader."""

    namespace: str
    path: str
    version: int = 0
    zone: str = ""  #: the reader's, as in a lookup


class CopyExplained(msgspec.Struct):
    """One location of a segment."""

    volume: str
    pool: str
    pool_type: PoolType
    node: str
    host: str
    zone: str
    access: AccessMode
    generation: int
    state: LocationState
    reachable: bool
    counted: bool  #: it counts as protection of this segment: good, long enough, its volume is up or offsite
    held_bytes: int  #: payload of the segment that it holds
    verified_unix_s: float | None
    evidence: str
    rank: int  #: 1: read first; 0: no program can read there
    why: str  #: why it stands there in the order of reading


class SegmentExplained(msgspec.Struct):
    extent: int
    offset: int
    length: int
    sealed: bool
    primary_pool: str  #: of the extent's class, which may be older than the namespace's policy
    copy_pools: list[str]
    ack: AckRule
    copies: list[CopyExplained]  #: in the order in which a read would try them
    policy_met: bool
    proven: bool
    lacks: list[str]  #: what is missing to policy or proof, one sentence each
    doing: list[str]  #: what is being done about it, or what it waits for


class ExplainReply(msgspec.Struct):
    namespace: str
    path: str
    version: int
    size: int
    digest: str
    stored_unix_s: float
    segments: list[SegmentExplained]  #: at most `api.LOOKUP_MAX`
    segments_total: int
    policy_met: bool
    proven: bool
    notes: list[str]  #: what concerns the whole file


# -- the event log ----------------------------------------------------------------------------
class LogRequest(msgspec.Struct, omit_defaults=True):
    """Events that match, each before those that came later. POST /rpc/log, role operator."""

    after: str = ""  #: cursor: id of an event, or "" for the oldest
    since_unix_s: float = 0.0  #: with `after`: the later of the two
    kinds: list[str] = []  #: empty: all
    volume: str = ""
    node: str = ""
    extent: int = -1  #: -1: any
    limit: int = 200
    newest: bool = False  #: the last `limit` that match instead of the first; `after` and `since_unix_s` do not count


class LogReply(msgspec.Struct):
    events: list[Event]
    next_after: str  #: cursor behind what was looked at, matching or not
    more: bool  #: there is more to look at now


class ChainRequest(msgspec.Struct):
    """What led to an event and what followed from it. POST /rpc/log_chain, role operator."""

    id: str


class ChainReply(msgspec.Struct):
    events: list[Event]  #: causes first, oldest to newest; the event itself among them
    truncated: bool  #: more followed than one answer holds


# -- occupancy and content --------------------------------------------------------------------
class Occupancy(msgspec.Struct):
    """What one namespace has in one pool."""

    namespace: str  #: "(shared)": extents of so many namespaces that their shares are not known one by one
    pool: str
    pool_type: PoolType
    extents: int
    records: int  #: put in and there now; dead ones included until they are reclaimed
    payload_bytes: int
    uncopied_bytes: int  #: copy pools: not there yet, an upper bound where extents are shared


class OccupancyReply(msgspec.Struct):
    """POST /rpc/occupancy (`Empty`), role operator. From memory: every extent is looked at."""

    items: list[Occupancy]
    as_of_unix_s: float


class ContentRequest(msgspec.Struct, omit_defaults=True):
    """A page of what a volume holds. POST /rpc/content, role operator."""

    volume: str
    after: int = -1
    limit: int = 1000


class ContentEntry(msgspec.Struct):
    """One location on the volume."""

    extent: int
    generation: int
    state: LocationState
    length: int
    records: int
    open: bool
    good_elsewhere: int  #: other counted good locations that reach as far
    verified_unix_s: float | None
    namespaces: list[str]
    evidence: str


class ContentReply(msgspec.Struct):
    items: list[ContentEntry]
    next_after: int  #: -1: no more


class DamagedFilesRequest(msgspec.Struct, omit_defaults=True):
    """A page of the files that cannot simply be read, by a directory scan. POST /rpc/damaged_files, role operator.

    Nothing is scanned while no extent is in such a state.
    """

    namespace: str
    after: str = ""


class DamagedFile(msgspec.Struct):
    """A current version of which no location that can be reached is known to have every byte."""

    path: str
    version: int
    size: int
    outlook: Literal["away", "doubtful", "lost"]  #: it comes back with a node; only reading tells; it is gone
    extent: int  #: of the first segment that is as bad as that
    why: str


class DamagedFilesReply(msgspec.Struct):
    items: list[DamagedFile]
    scanned: int
    next_after: str


class ContentFilesRequest(msgspec.Struct, omit_defaults=True):
    """A page of the files with bytes on a volume, by a directory scan. POST /rpc/content_files, role operator."""

    volume: str
    namespace: str
    after: str = ""


class ContentFile(msgspec.Struct):
    path: str
    version: int
    size: int
    here_bytes: int  #: of its bytes on this volume


class ContentFilesReply(msgspec.Struct):
    items: list[ContentFile]
    scanned: int
    next_after: str
