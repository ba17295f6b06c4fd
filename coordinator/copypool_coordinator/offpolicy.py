"""The index of extents off policy: which extents are not as their class wants, and by how much.

One per coordinator. It takes the view's changes in, looks at each changed extent once, and keeps a `Mark` for every
extent that is off policy and nothing for the others: so status and plans cost what is wrong, not what exists. Open
extents are looked at again whenever their sample changes; a slow round over everything is the safety net and notices
what only time changes (verifications that grow old).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from copypool_coordinator import twins
from copypool_coordinator.locations import before_drop
from copypool_coordinator.policy import Policy
from copypool_coordinator.protection import Standing, VolumeFacts, assess, is_appended, is_empty, lacks_proof
from copypool_coordinator.recovery import bad_everywhere
from copypool_coordinator.rows import ExtentRow, OpenRow
from copypool_coordinator.scrubbing import ScrubLedger

if TYPE_CHECKING:
    from copypool_coordinator.view import ClusterView

#: Extents looked at before the event loop gets a turn.
SLICE = 64
#: Extents of the safety round that one refresh looks at.
ROUND_SLICE = 64


class Mark(NamedTuple):
    """What is wrong with one extent. Bytes and counts; nothing is wrong with the fields that are 0."""

    debt: tuple[tuple[int, int], ...]  #: (copy pool, bytes)
    debt_since_ms: int  #: 0: no debt
    under_protected: bool  #: fewer good, counted locations than the class wants
    shared_node: bool
    no_primary: bool  #: no full, counted location in the primary pool
    damaged: int
    missing: int
    unread_bytes: int  #: at policy, never read back at some location
    stale_bytes: int  #: at policy, read back longer than two scrub periods ago at some location
    unavailable_files: int
    lost_files: int
    extra: int  #: locations that are not needed, or on their way in or out
    debt_records: tuple[tuple[int, int], ...] = ()  #: (copy pool, records not there)
    shared_domain: bool = False  #: at policy but for failure domains: several locations are in one
    leaving: int = 0  #: locations on volumes that are being emptied, or were given up
    doubtful_files: int = 0  #: that only damaged locations reach
    holed: bool = False  #: some block is bad on every location, whether a file that is left has bytes in it or not

    @property
    def debt_bytes(self) -> int:
        """Over all copy pools."""
        return sum(size for _, size in self.debt)


class OffPolicy:
    """Marks of all extents off policy, as of the last `refresh`."""

    def __init__(self) -> None:
        self.marks: dict[int, Mark] = {}  #: oldest first
        #: extents looked at since they were last taken from here; None while nobody plans by it
        self.looked: dict[int, None] | None = None
        self._queue: dict[int, None] = {}  #: changed, not looked at yet
        self._round: deque[int] = deque()
        self._lengths: dict[int, int] = {}  #: of open extents at the last look
        self._lock = asyncio.Lock()
        self.scrub = ScrubLedger()

    @property
    def pending(self) -> int:
        """Changed extents that were not looked at yet: while there are any, the sums are not the truth."""
        return len(self._queue)

    def again(self, extents: Iterable[int]) -> None:
        """Look at these once more."""
        self._queue.update(dict.fromkeys(extents))

    async def refresh(
        self,
        view: ClusterView,
        places: Mapping[int, VolumeFacts],
        opened: Mapping[int, OpenRow],
        policy: Policy,
        now_ms: int,
        limit: int,
    ) -> None:
        """Look at up to `limit` changed extents, and at a slice of all."""
        async with self._lock:
            self.again(view.take_dirty())
            self.again(extent for extent, row in opened.items() if self._lengths.get(extent) != row.length)
            self._lengths = {extent: row.length for extent, row in opened.items()}
            due = [*islice(self._queue, limit), *self._next_of_round(view)]
            for first in range(0, len(due), SLICE):
                for extent in due[first : first + SLICE]:
                    self._queue.pop(extent, None)
                    self._look(view, places, opened, policy, now_ms, extent)
                await asyncio.sleep(0)
            if self.looked is not None:
                self.looked.update(dict.fromkeys(due))

    def take_looked(self) -> list[int]:
        """What was looked at since the last call, for whoever plans."""
        taken, self.looked = self.looked or {}, {}
        return list(taken)

    def _next_of_round(self, view: ClusterView) -> Iterator[int]:
        if not self._round:
            self._round.extend(view.extents)
        for _ in range(min(ROUND_SLICE, len(self._round))):
            yield self._round.popleft()

    def _look(
        self,
        view: ClusterView,
        places: Mapping[int, VolumeFacts],
        opened: Mapping[int, OpenRow],
        policy: Policy,
        now_ms: int,
        extent: int,
    ) -> None:
        entry = view.extents.get(extent)
        self.scrub.note(extent, None if entry is None else entry.row, policy, now_ms)
        if entry is None:
            self.marks.pop(extent, None)
            return
        mark = look(view, entry.row, opened.get(extent), places, policy, now_ms)
        if mark is None:
            self.marks.pop(extent, None)
        else:
            self.marks[extent] = mark


def look(
    view: ClusterView,
    row: ExtentRow,
    sample: OpenRow | None,
    places: Mapping[int, VolumeFacts],
    policy: Policy,
    now_ms: int,
) -> Mark | None:
    """The extent's mark; None when it is as its class wants. An open extent without a sample has no mark yet."""
    extent_class = view.classes.get(row.class_id)
    if extent_class is None or (row.open and sample is None):
        return None
    row = twins.as_sampled(row, sample)
    committed = sample.length if row.open and sample is not None else row.length
    standing = assess(row, committed, extent_class.row, places)
    debt = tuple((pool.pool, pool.debt_bytes) for pool in standing.copies if pool.debt_bytes)
    since_ms = 0
    if debt:
        since_ms = sample.uncopied_since_ms if sample is not None and sample.uncopied_since_ms else row.opened_ms
    alive = [each for each in row.locations if not _given_up(places.get(each.volume))]
    unread, stale = _unproven(row, standing, policy, now_ms)
    gone = _NONE_GONE if standing.satisfied else _files_out_of_reach(row, sample, places)
    wanted = len(standing.pools)
    damaged = sum(1 for each in alive if each.state == "damaged")
    mark = Mark(
        debt=debt,
        debt_since_ms=since_ms,
        under_protected=not (standing.satisfied and standing.spread),
        shared_node=standing.shared_node,
        no_primary=not is_empty(committed) and not standing.primary.full,
        damaged=damaged,
        missing=sum(1 for each in alive if each.state == "missing"),
        unread_bytes=unread,
        stale_bytes=stale,
        unavailable_files=gone.unavailable,
        lost_files=gone.lost,
        extra=max(0, len(row.locations) - wanted),
        shared_domain=standing.satisfied and not standing.spread,
        debt_records=tuple((pool, _records_behind(row, sample, places, pool)) for pool, _ in debt),
        leaving=sum(1 for each in row.locations if _is_leaving(places.get(each.volume))),
        doubtful_files=gone.doubtful,
        holed=bool(damaged) and not standing.satisfied and bad_everywhere(row, committed, places) is not None,
    )
    return mark if any(mark) else None


def _records_behind(row: ExtentRow, sample: OpenRow | None, places: Mapping[int, VolumeFacts], pool: int) -> int:
    """Committed records that no counted good location of the pool holds."""
    committed = sample.records if row.open and sample is not None else row.records
    there = max(
        (
            committed if is_appended(row, each) else each.records
            for each in row.locations
            if each.state == "good" and (place := places.get(each.volume)) and place.counted and place.pool == pool
        ),
        default=0,
    )
    return max(0, committed - there)


def _is_leaving(place: VolumeFacts | None) -> bool:
    return place is not None and (place.leaving or place.destroyed)


def _given_up(place: VolumeFacts | None) -> bool:
    return place is None or place.destroyed


def _unproven(row: ExtentRow, standing: Standing, policy: Policy, now_ms: int) -> tuple[int, int]:
    if not standing.satisfied:
        return 0, 0
    lacking = lacks_proof(row, standing, now_ms, policy.proof_life_ms)
    unread = standing.committed if any(each.verified_ms == 0 for each in lacking) else 0
    stale = standing.committed if any(each.verified_ms for each in lacking) else 0
    return unread, stale


class _Gone(NamedTuple):
    """Files of one extent that cannot simply be read."""

    unavailable: int  #: a location that is away has them
    doubtful: int  #: only damaged locations reach them
    lost: int  #: no location would, even if every node came back


_NONE_GONE = _Gone(0, 0, 0)


def _files_out_of_reach(row: ExtentRow, sample: OpenRow | None, places: Mapping[int, VolumeFacts]) -> _Gone:
    """Counted by records: those committed minus those that the longest location holds, as far as they are not dead."""
    committed = sample.records if row.open and sample is not None else row.records
    reachable = whole = existing = 0
    for location in row.locations:
        place = places.get(location.volume)
        if location.state == "missing" or location.erasing or place is None or place.destroyed:
            continue
        held = committed if is_appended(row, location) else min(location.records, committed)
        existing = max(existing, held)
        if location.state == "damaged" or (location.state == "dropping" and before_drop(location) == "damaged"):
            continue
        whole = max(whole, held)
        if place.up:
            reachable = max(reachable, held)
    live = max(0, committed - row.dead_records)
    lost = min(live, committed - existing)
    not_whole = min(live, committed - whole)
    return _Gone(min(live, committed - reachable) - not_whole, not_whole - lost, lost)
