"""Where a segment is read from, best place first. Pure.

The order, from the most to the least important:

1. the location reaches the end of the segment and nothing is known against it;
2. its node can be reached, and the caller has not just failed there;
3. `good` before `copying` (whose bytes up to its length are verified as well), before `dropping`;
4. the reader's zone; the shorter queue; the primary pool.

Places that are away or `damaged` come last and are never left out: bytes are checked on their way, so trying costs
time at worst, and a block that passes its checksum is right wherever it comes from. Only `offsite` volumes, which no
node has, are left out. Locations too short for the segment stand at the very end: the view may lag behind a copy.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from copypool.protocol.api import LocationState, PoolType, SegmentRef
from copypool.protocol.stripes import FULL_STRIDE_BYTES, STRIPE_BYTES, prelude_bytes, stored_bytes
from copypool_coordinator.heartbeats import Loads
from copypool_coordinator.rows import ExtentRow, FileFlag, FileRow, Location, OpenRow
from copypool_coordinator.view import ClusterView

_STATE_RANK: dict[LocationState, int] = {"good": 0, "copying": 1, "dropping": 2, "damaged": 3, "missing": 4}
#: Queues shorter than this are equally short.
_QUEUE_STEP_BYTES = 8 * 1024 * 1024


class Place(NamedTuple):
    """One location with what a reader needs to get there."""

    node_id: int
    node: str
    url: str
    volume: str
    volume_id: int
    pool: str
    pool_type: PoolType
    state: LocationState
    reachable: bool
    long_enough: bool
    verified_ms: int
    length: int  #: file offset up to which this location is known to hold the extent


def end_of(segment: SegmentRef) -> int:
    """Extent offset just behind the segment's last stripe."""
    return segment.offset + stored_bytes(segment.length)


def segments_of(row: FileRow) -> Sequence[SegmentRef]:
    """The segments that the row itself names: of a file with a manifest only the manifest's payload."""
    if row.flags & FileFlag.multipart and not row.flags & FileFlag.in_manifest:
        return row.segments or ()
    return (row.record,)


def length_of(location: Location, extent: ExtentRow, opened: OpenRow | None, at_least: int) -> int:
    """How far this location reaches.

    The writer of an open extent has its length in `o/`, which is not watched; but a row that names a segment was
    committed together with `o/`, so the writer reaches `at_least` the end of that segment.
    """
    if extent.open and location.volume == extent.writer_volume and location.state != "copying":
        return max(location.length, opened.length if opened is not None else at_least)
    return location.length


def knows_enough(extent: ExtentRow | None, segment: SegmentRef) -> bool:
    """Whether a view with this row can answer for the segment: some location reaches its end.

    Else the view lags behind the row that named the segment, or ran ahead of it: read both in one transaction.
    """
    if extent is None:
        return False
    end = end_of(segment)
    return any(length_of(location, extent, None, end) >= end for location in extent.locations)


def order(
    view: ClusterView,
    loads: Loads,
    extent: ExtentRow,
    segment: SegmentRef,
    *,
    opened: OpenRow | None = None,
    zone: str = "",
    avoid_nodes: Collection[int] = (),
    suspects: Collection[int] = (),
) -> list[Place]:
    """Every place that may have the segment, best first; empty only when no location exists or all are offsite.

    `avoid_nodes` failed the caller a moment ago, `suspects` failed this coordinator.
    """
    end = end_of(segment)
    ranked: list[tuple[tuple[int, ...], Place]] = []
    for location in extent.locations:
        place = _place(view, location, length_of(location, extent, opened, end), end)
        if place is None:
            continue
        node = view.nodes_by_id.get(place.node_id)
        shunned = place.node_id in avoid_nodes or place.node_id in suspects
        load = loads.get(place.volume_id)
        rank = (
            not place.long_enough,
            place.state in ("damaged", "missing"),
            not place.reachable,
            shunned,
            _STATE_RANK[place.state],
            bool(zone) and (node is None or node.row.zone != zone),
            0 if load is None else load.report.queued_bytes // _QUEUE_STEP_BYTES,
            place.pool_type != "primary",
            place.volume_id,
        )
        ranked.append((rank, place))
    ranked.sort(key=_rank)
    return [place for _, place in ranked]


def _rank(item: tuple[tuple[int, ...], Place]) -> tuple[int, ...]:
    return item[0]


def _place(view: ClusterView, location: Location, length: int, end: int) -> Place | None:
    """The location as a place; None when nobody could go there."""
    volume = view.volumes_by_id.get(location.volume)
    if volume is None or volume.row.access == "offsite":
        return None
    node = view.nodes_by_id.get(volume.row.node)
    pool = view.pools_by_id.get(volume.row.pool)
    if node is None or pool is None:
        return None
    session = view.sessions.get(node.row.id)
    return Place(
        node_id=node.row.id,
        node=node.name,
        url=(session.row.url if session is not None else node.row.url),
        volume=volume.name,
        volume_id=volume.row.id,
        pool=pool.name,
        pool_type=pool.row.type,
        state=location.state,
        reachable=view.volume_reachable(volume.row.id),
        long_enough=length >= end,
        verified_ms=location.verified_ms,
        length=length,
    )


def describe(
    view: ClusterView, extent: ExtentRow, segment: SegmentRef, opened: Mapping[int, OpenRow]
) -> list[tuple[Place | None, Location, int]]:
    """Every location of a segment's extent, offsite ones too, and how many of the segment's payload bytes it holds."""
    end = end_of(segment)
    found = []
    for location in extent.locations:
        length = length_of(location, extent, opened.get(segment.extent), end)
        found.append((_place(view, location, length, end), location, held_bytes(segment, length)))
    return found


def held_bytes(segment: SegmentRef, length: int) -> int:
    """Payload bytes of the segment inside the first `length` bytes of its extent."""
    if length <= segment.offset:
        return 0
    full, rest = divmod(length - segment.offset, FULL_STRIDE_BYTES)
    payload = min(full * STRIPE_BYTES, segment.length)
    stripe = min(STRIPE_BYTES, segment.length - payload)
    if stripe <= 0:
        return segment.length
    return payload + min(stripe, max(0, rest - prelude_bytes(stripe)))
