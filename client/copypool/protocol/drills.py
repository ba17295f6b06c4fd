"""Drills that operators run on a production cluster: reading from copies alone, and what a node's loss would mean.

Structs only, as in `api`; all of these are POST /rpc/<name>, role operator. A drill changes nothing but the event log,
which keeps its result as evidence.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from copypool.protocol.insight import Problem
from copypool.protocol.processes import SKIPPED_MAX, SkippedEntry

SAMPLE_MAX = 100_000  #: files of one drill
LOSS_NAMES_MAX = 1_000  #: files that one page, and a whole report, names
DRILL_PROBLEMS_MAX = 20

#: Whether copies alone can give a file now. `whole`: each byte is held by a copy that can be reached; `away`: it is
#: held, but not within reach; `debt`: not copied yet; `none`: its policy wants no copies.
CopyState: TypeAlias = Literal["whole", "away", "debt", "none"]

#: What becomes of a file when a node leaves. `unavailable`: no program can read it while that node is away;
#: `doubtful`: only if what is marked damaged, or is on its way out, elsewhere still has its blocks.
LossState: TypeAlias = Literal["unavailable", "doubtful"]


# -- reading from copies ----------------------------------------------------------------------
class SampleRequest(msgspec.Struct, omit_defaults=True):
    """/rpc/drill_sample: one part of a seeded sample of the current files, of one namespace or of all.

    Every file is as likely as any other. The caller asks for part after part until it has enough.
    """

    count: int  #: files wanted in all
    seed: int
    namespace: str = ""
    part: int = 0


class SampledFile(msgspec.Struct):
    """One file of the sample, as it stood when the part was drawn."""

    namespace: str
    path: str
    version: int
    size: int
    copies: CopyState


class SampleReply(msgspec.Struct):
    files: list[SampledFile]
    next_part: int
    parts: int  #: of one round over the whole directory; the next round draws what this one left
    more: bool  #: what was read for this part holds files for a later round
    as_of_unix_s: float


class ReadDrill(msgspec.Struct):
    """What a drill read, from copies alone. /rpc/drill_read_done keeps it in the event log (answer `DrillKept`).

    Every sampled file is counted once: read, or for one reason not.
    """

    seed: int
    wanted: int  #: files asked for; fewer are there in a small cluster
    namespace: str = ""  #: "": all
    read_files: int = 0  #: every block passed its checksum, the whole its digest
    read_bytes: int = 0
    failed_files: int = 0  #: copies hold them, and did not give them
    away_files: int = 0  #: held by copies that cannot be reached now
    debt_files: int = 0  #: not copied yet
    debt_bytes: int = 0
    debt_oldest_s: float = 0.0  #: since the oldest of them was stored
    copyless_files: int = 0  #: their policy wants no copies
    replaced_files: int = 0  #: overwritten or deleted before they were read; nothing is wrong with them
    took_s: float = 0.0
    interrupted: bool = False  #: it was told to stop; what it had done is counted
    problems: list[Problem] = []  #: the first 20

    @property
    def files(self) -> int:
        """All that were sampled."""
        return self.read_files + self.replaced_files + self.unread_files

    @property
    def unread_files(self) -> int:
        """Those that copies alone could not give."""
        return self.failed_files + self.away_files + self.debt_files + self.copyless_files

    @property
    def passed(self) -> bool:
        """Whether every sampled file that is still there could be read from copies."""
        return not self.unread_files and not self.interrupted

    @property
    def bytes_per_s(self) -> float:
        """The achieved rate, pacing included."""
        return self.read_bytes / self.took_s if self.took_s > 0 else 0.0


class DrillKept(msgspec.Struct):
    event: str  #: id of the event that keeps the result


# -- losing a node ----------------------------------------------------------------------------
class LoseNodeRequest(msgspec.Struct, omit_defaults=True):
    """/rpc/drill_lose_node: a page of what the extents on a node's volumes would be without it. Changes nothing."""

    node: str
    after: int = -1  #: cursor: an extent
    taken: dict[str, int] = {}  #: bytes that volumes, by name, took in the pages before: that room is gone


class RebuildPlace(msgspec.Struct):
    """A volume that would take extents."""

    volume: str
    pool: str
    node: str
    host: str
    zone: str
    extents: int
    bytes: int
    free_bytes: int  #: now, before any of it


class LossForecast(msgspec.Struct):
    """The loss by extents; bytes are stored bytes, with checksums, dead records included until they are reclaimed.

    Rate, warnings and silent nodes come with the last page.
    """

    node: str
    volumes: list[str]
    extents: int  #: with a location there
    bytes: int  #: committed in them
    served_extents: int  #: whole elsewhere, on volumes that can be read now
    served_bytes: int
    doubtful_extents: int  #: only if several bad or leaving locations elsewhere together have every block
    doubtful_bytes: int
    unavailable_extents: int  #: bytes of them could not be read while the node is away
    unavailable_bytes: int  #: those bytes
    lost_bytes: int  #: of these: gone if the node never comes back
    unavailable_before_extents: int  #: that cannot be read whole already; not among the others
    under_protected_extents: int  #: fewer good locations than their class wants, or too close together, without it
    under_protected_bytes: int
    rebuild_extents: int  #: locations that would be made elsewhere
    rebuild_bytes: int
    places: list[RebuildPlace]
    crowded_extents: int  #: of these: only in a failure domain that they should not share
    blocked: list[SkippedEntry]  #: what could not be rebuilt, and why; the first 100
    blocked_extents: int
    blocked_bytes: int
    bytes_per_s: float | None  #: at which it would be rebuilt; None: not known
    rate_from: str  #: where that rate is from
    namespaces: list[str]  #: that may have files among the unavailable, doubtful and lost ones
    warnings: list[str]
    as_of_unix_s: float  #: of the first page
    next_after: int = -1  #: -1: no more
    #: Other nodes whose sessions live, so that what they hold counts, and that have missed three heartbeats.
    silent: list[str] = []

    def add(self, page: LossForecast) -> None:
        """Take the next page in."""
        for name in _SUMMED:
            setattr(self, name, getattr(self, name) + getattr(page, name))
        known = {place.volume: place for place in self.places}
        for place in page.places:
            if place.volume in known:
                known[place.volume].extents += place.extents
                known[place.volume].bytes += place.bytes
            else:
                self.places.append(place)
        self.blocked = [*self.blocked, *page.blocked][:SKIPPED_MAX]
        self.namespaces = sorted({*self.namespaces, *page.namespaces})
        self.bytes_per_s, self.rate_from = page.bytes_per_s, page.rate_from
        self.warnings, self.silent, self.next_after = page.warnings, page.silent, page.next_after

    @property
    def eta_s(self) -> float | None:
        """How long the rebuilding would take, after the grace time; None: not known."""
        if not self.rebuild_bytes:
            return 0.0
        return self.rebuild_bytes / self.bytes_per_s if self.bytes_per_s else None


_SUMMED = (
    *("extents", "bytes", "served_extents", "served_bytes", "doubtful_extents", "doubtful_bytes"),
    *("unavailable_extents", "unavailable_bytes", "lost_bytes", "unavailable_before_extents"),
    *("under_protected_extents", "under_protected_bytes", "rebuild_extents", "rebuild_bytes", "crowded_extents"),
    *("blocked_extents", "blocked_bytes"),
)


class LossFilesRequest(msgspec.Struct, omit_defaults=True):
    """/rpc/drill_lose_node_files: a page of a namespace's current files, judged one by one."""

    node: str
    namespace: str
    after: str = ""
    names: int = 100  #: at most so many are named, all are counted


class LossFile(msgspec.Struct):
    """A file that could not be read without the node."""

    namespace: str
    path: str
    version: int
    size: int
    digest: str
    state: LossState
    lost: bool  #: no other location, not even one that is away, holds all of it
    before: bool  #: it is so already, with the node there


class LossCounts(msgspec.Struct):
    """Files that the node's loss concerns."""

    unavailable_files: int = 0
    unavailable_bytes: int = 0
    lost_files: int = 0  #: of the unavailable ones: gone if the node never comes back
    lost_bytes: int = 0
    doubtful_files: int = 0
    doubtful_bytes: int = 0
    before_files: int = 0  #: of the unavailable ones: already so, with the node there

    def add(self, other: LossCounts) -> None:
        """Take another page's counts in."""
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class LossFilesReply(msgspec.Struct):
    counts: LossCounts  #: of this page
    files: list[LossFile]
    next_after: str  #: "" at the end


class LossReport(msgspec.Struct):
    """What the loss of a node would mean. /rpc/drill_lose_node_done keeps it in the event log (answer `DrillKept`)."""

    forecast: LossForecast
    counts: LossCounts
    files: list[LossFile]  #: the first of them

    @property
    def passed(self) -> bool:
        """Whether every file could still be read, and everything would be rebuilt where policy wants it."""
        found, counts = self.forecast, self.counts
        gone = counts.unavailable_files + counts.doubtful_files + found.doubtful_extents
        return not gone and not found.blocked_extents and not found.crowded_extents
