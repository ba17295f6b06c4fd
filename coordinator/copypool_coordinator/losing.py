"""What the loss of some volumes would mean, extent by extent and file by file. Pure; nothing is changed.

The world without them is the present one with their facts changed: `away` (their node does not answer) tells what
could not be read at once, `gone` (they never come back) what is lost and what would be rebuilt. The same functions
that status, repair and placement go by are asked about it, so a simulation cannot promise what they would deny.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from msgspec import structs

from copypool.protocol.api import SegmentRef
from copypool.protocol.drills import LossForecast, RebuildPlace
from copypool.protocol.processes import SKIPPED_MAX, SkippedEntry
from copypool_coordinator.offpolicy import look
from copypool_coordinator.placement import choose_destination
from copypool_coordinator.policy import Policy
from copypool_coordinator.protection import VolumeFacts, assess, is_appended, is_empty, reach
from copypool_coordinator.recovery import RangeOutlook, outlook_of_range, prospect
from copypool_coordinator.routing import end_of
from copypool_coordinator.rows import ExtentRow, OpenRow
from copypool_coordinator.spreading import are_apart

if TYPE_CHECKING:
    from copypool_coordinator.heartbeats import Loads, VolumeLoad
    from copypool_coordinator.protection import PoolStanding
    from copypool_coordinator.view import ClusterView

Places = Mapping[int, VolumeFacts]
#: Best first: where one segment is away, that another is doubtful makes no difference.
ORDER: tuple[RangeOutlook, ...] = ("readable", "doubtful", "away", "lost")


def without(places: Places, volumes: Collection[int], *, gone: bool) -> dict[int, VolumeFacts]:
    """The places when these volumes cannot be reached, or (`gone`) never will be again."""
    return {
        volume: replace(place, up=False, counted=False, writable=False, destroyed=place.destroyed or gone)
        if volume in volumes
        else place
        for volume, place in places.items()
    }


def outlook_of(row: ExtentRow, segment: SegmentRef, places: Places) -> RangeOutlook:
    """What a read of the segment, of a committed record, would meet."""
    end = end_of(segment)
    return outlook_of_range(row, segment.offset, end, max(end, row.length), places)[0]


def worst(outlooks: Iterable[RangeOutlook]) -> RangeOutlook:
    """Of a file: that of the segment which is worst off. Without segments there is nothing to lose."""
    return max(outlooks, key=ORDER.index, default="readable")


# -- extents -------------------------------------------------------------------------------------
class Room:
    """Where new locations would go, with what each one takes off the room that is left."""

    def __init__(self, view: ClusterView, loads: Loads, lost: Collection[int]) -> None:
        self._view = view
        self._loads: dict[int, VolumeLoad] = {volume: load for volume, load in loads.items() if volume not in lost}
        self._lost = lost
        self.loads: Loads = dict(self._loads)  #: as they are before anything is placed

    def take(self, row: ExtentRow, pool: int, committed: int, seed: int) -> int | None:
        """The volume for the extent as it will be sealed; None when no volume can take it."""
        stays = [each for each in row.locations if each.volume not in self._lost]
        sealed = structs.replace(row, locations=stays, open=False, length=committed)
        volume = choose_destination(sealed, pool, self._view, self._loads, seed)
        if volume is not None:
            self.fill(volume, committed)
        return volume

    def fill(self, volume: int, size: int) -> None:
        """So many bytes are on their way there."""
        load = self._loads.get(volume)
        if load is not None:
            report = structs.replace(load.report, free_bytes=load.report.free_bytes - size)
            self._loads[volume] = load._replace(report=report)


class Blocked(NamedTuple):
    """What could not be rebuilt, and why."""

    extent: int
    size: int
    records: int
    why: str


@dataclass(slots=True)
class Sum:
    """Extents, and bytes of them."""

    extents: int = 0
    bytes: int = 0

    def add(self, size_bytes: int) -> None:
        """Count one more."""
        self.extents += 1
        self.bytes += size_bytes


@dataclass(slots=True)
class Loss:
    """Sums over the extents on the lost volumes; what each means stands in `LossForecast`."""

    all: Sum = field(default_factory=Sum)
    served: Sum = field(default_factory=Sum)
    doubtful: Sum = field(default_factory=Sum)
    unavailable: Sum = field(default_factory=Sum)
    lost_bytes: int = 0
    before: int = 0
    under: Sum = field(default_factory=Sum)
    rebuild: dict[int, Sum] = field(default_factory=dict)  #: by volume that takes them
    crowded: int = 0
    blocked: list[Blocked] = field(default_factory=list)  #: the first of them
    blocked_sum: Sum = field(default_factory=Sum)
    namespaces: set[int] = field(default_factory=set)  #: of what is at risk; 0: any


class Losing:
    """Adds extents up. `places` are the present ones; `lost` the volumes that leave."""

    def __init__(
        self, view: ClusterView, places: Places, lost: Collection[int], room: Room, policy: Policy, now_ms: int
    ) -> None:
        self._view = view
        self._now = places
        self._away = without(places, lost, gone=False)
        self._gone = without(places, lost, gone=True)
        self._lost = lost
        self._room = room
        self._policy = policy
        self._now_ms = now_ms
        self.loss = Loss()

    def add(self, extent: int, row: ExtentRow, sample: OpenRow | None) -> None:
        """Take one extent in; `row` as far as its commit row `sample` bears it out (`twins.as_sampled`)."""
        committed = sample.length if row.open and sample is not None else row.length
        known = self._view.classes.get(row.class_id)
        if known is None or is_empty(committed) or (row.open and sample is None):
            return
        loss = self.loss
        loss.all.add(committed)
        self._reading(row, committed, sample)
        mark = look(self._view, row, sample, self._away, self._policy, self._now_ms)
        if mark is not None and mark.under_protected:
            loss.under.add(committed)
        standing = assess(row, committed, known.row, self._gone)
        taken: list[VolumeFacts] = [
            self._gone[each.volume] for pool in standing.pools for each in pool.full if each.volume in self._gone
        ]
        lacking = [pool for pool in standing.pools if not pool.full and any(self._here(row, pool.pool))]
        for pool in lacking:
            self._rebuild(extent, row, sample, committed, pool, taken)
        if mark is not None and mark.under_protected and not lacking:
            source = prospect(row, committed, self._gone)
            if source.outlook not in ("whole", "merge"):
                self._block(Blocked(extent, committed, _records(row, sample), source.why))

    def _here(self, row: ExtentRow, pool: int) -> list[bool]:
        """For each location of the pool that is not on its way out: whether it is on a volume that leaves.

        Bad ones too: their replacement would be made elsewhere, or cannot be made at all.
        """
        places = [self._now.get(each.volume) for each in row.locations if each.state != "dropping"]
        return [place.volume in self._lost for place in places if place is not None and place.pool == pool]

    def _reading(self, row: ExtentRow, committed: int, sample: OpenRow | None) -> None:
        loss = self.loss
        before, after = (prospect(row, committed, places).outlook for places in (self._now, self._away))
        if before in ("away", "lost"):
            loss.before += 1
            self._note_namespaces(row, sample)
        elif after == "whole":
            loss.served.add(committed)
        elif after == "merge":
            loss.doubtful.add(committed)
            self._note_namespaces(row, sample)
        else:
            self._note_namespaces(row, sample)
            loss.unavailable.add(committed - _longest(row, committed, self._away, up=True))
            loss.lost_bytes += committed - _longest(row, committed, self._gone, up=False)

    def _note_namespaces(self, row: ExtentRow, sample: OpenRow | None) -> None:
        at: ExtentRow | OpenRow = sample if row.open and sample is not None else row
        self.loss.namespaces.update(share.namespace for share in at.shares)
        if not at.shares:
            self.loss.namespaces.add(0)  # written by an older version: whose they are is not known

    def _rebuild(
        self,
        extent: int,
        row: ExtentRow,
        sample: OpenRow | None,
        committed: int,
        pool: PoolStanding,
        taken: list[VolumeFacts],
    ) -> None:
        loss = self.loss
        records = _records(row, sample)
        source = prospect(row, committed, self._gone)
        if source.outlook not in ("whole", "merge"):
            self._block(Blocked(extent, committed, records, source.why))
            return
        volume, size = self._growing(row, committed, pool.pool)
        if volume is None:
            volume = self._room.take(row, pool.pool, committed, seed=extent)
        else:
            self._room.fill(volume, size)
        if volume is None or volume not in self._gone:
            name = self._view.pools_by_id[pool.pool].name if pool.pool in self._view.pools_by_id else str(pool.pool)
            why = f"no volume of pool {name!r} on a node without a copy of it has room for it"
            self._block(Blocked(extent, committed, records, why))
            return
        place = self._gone[volume]
        loss.rebuild.setdefault(volume, Sum()).add(size)
        loss.crowded += not all(are_apart(place, other) for other in taken if other.pool != place.pool)
        taken.append(place)

    def _growing(self, row: ExtentRow, committed: int, pool: int) -> tuple[int | None, int]:
        """A location of the pool that only has to grow, and by how much; none: a new one needs all bytes."""
        best, length = None, 0
        for location in row.locations:
            place = self._gone.get(location.volume)
            if place is None or place.pool != pool or not place.writable or is_appended(row, location):
                continue
            if location.state in ("good", "copying") and (best is None or location.length > length):
                best, length = location.volume, location.length
        return best, committed - length

    def _block(self, blocked: Blocked) -> None:
        self.loss.blocked_sum.add(blocked.size)
        if len(self.loss.blocked) < SKIPPED_MAX:
            self.loss.blocked.append(blocked)


def _records(row: ExtentRow, sample: OpenRow | None) -> int:
    """Committed records; of an open extent its sample knows."""
    return sample.records if row.open and sample is not None else row.records


def _longest(row: ExtentRow, committed: int, places: Places, *, up: bool) -> int:
    """Up to where a location that can be read (`up`), or one that may come back, holds the extent."""
    return max(
        (
            reach(row, each, committed)
            for each in row.locations
            if each.state != "missing"
            and (place := places.get(each.volume)) is not None
            and not place.destroyed
            and (place.up or not up)
        ),
        default=0,
    )


# -- how fast ------------------------------------------------------------------------------------
class Repaired(NamedTuple):
    """One location that was made again."""

    began_ms: int
    ended_ms: int
    size: int


def measured_bytes_per_s(repairs: Sequence[Repaired]) -> float | None:
    """The rate while at least one repair was under way; None when nothing was rebuilt."""
    busy_ms = until_ms = 0
    for each in sorted(repairs):
        busy_ms += max(0, each.ended_ms - max(each.began_ms, until_ms))
        until_ms = max(until_ms, each.ended_ms)
    size = sum(each.size for each in repairs)
    return size * 1000 / max(1, busy_ms) if size else None


Rate: TypeAlias = tuple[float | None, str]  #: bytes per second, and where that is from
NO_RATE: Rate = (None, "")


def rate(view: ClusterView, pools: Collection[int], repairs: Sequence[Repaired]) -> Rate:
    """At which rate these pools would be filled again, and where that is from: past repairs, capped by budgets."""
    budgets = {
        entry.name: entry.row.budget_bytes_s
        for pool in pools
        if (entry := view.pools_by_id.get(pool)) is not None and entry.row.budget_bytes_s
    }
    budget = sum(budgets.values()) if budgets and len(budgets) == len(set(pools)) else 0
    named = "the budget of " + ", ".join(sorted(budgets))
    past = measured_bytes_per_s(repairs)
    if past is not None and (not budget or past <= budget):
        return past, f"measured: {len(repairs)} locations were made again lately"
    if budget and past is not None:
        return float(budget), f"{named}; past repairs were faster"
    if budget:
        return float(budget), f"{named}; nothing was rebuilt lately that could be measured"
    return None, "rate not known: nothing was rebuilt lately, and no pool that would be filled has a budget"


def forecast(
    view: ClusterView,
    node: str,
    places: Places,
    lost: Collection[int],
    losing: Losing,
    room: Room,
    speed: Rate,
    namespaces: list[str],
    warnings: list[str],
    now_ms: int,
    next_after: int = -1,
) -> LossForecast:
    """The sums as callers are told of them."""
    loss = losing.loss
    return LossForecast(
        node=node,
        volumes=sorted(places[volume].name for volume in lost if volume in places),
        extents=loss.all.extents,
        bytes=loss.all.bytes,
        served_extents=loss.served.extents,
        served_bytes=loss.served.bytes,
        doubtful_extents=loss.doubtful.extents,
        doubtful_bytes=loss.doubtful.bytes,
        unavailable_extents=loss.unavailable.extents,
        unavailable_bytes=loss.unavailable.bytes,
        lost_bytes=loss.lost_bytes,
        unavailable_before_extents=loss.before,
        under_protected_extents=loss.under.extents,
        under_protected_bytes=loss.under.bytes,
        rebuild_extents=sum(each.extents for each in loss.rebuild.values()),
        rebuild_bytes=sum(each.bytes for each in loss.rebuild.values()),
        places=[_place(view, places[volume], room, loss.rebuild[volume]) for volume in sorted(loss.rebuild)],
        crowded_extents=loss.crowded,
        blocked=[SkippedEntry(each.extent, each.size, each.records, each.why) for each in loss.blocked],
        blocked_extents=loss.blocked_sum.extents,
        blocked_bytes=loss.blocked_sum.bytes,
        bytes_per_s=speed[0],
        rate_from=speed[1],
        namespaces=namespaces,
        warnings=warnings,
        as_of_unix_s=now_ms / 1000,
        next_after=next_after,
    )


def _place(view: ClusterView, place: VolumeFacts, room: Room, taken: Sum) -> RebuildPlace:
    load = room.loads.get(place.volume)
    node, pool = view.nodes_by_id.get(place.node), view.pools_by_id.get(place.pool)
    return RebuildPlace(
        volume=place.name,
        pool=pool.name if pool is not None else str(place.pool),
        node=node.name if node is not None else str(place.node),
        host=place.host,
        zone=place.zone,
        extents=taken.extents,
        bytes=taken.bytes,
        free_bytes=load.report.free_bytes if load is not None else 0,
    )
