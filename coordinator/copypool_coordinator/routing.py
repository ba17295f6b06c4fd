"""Where a segment is read from, best place first. Pure.

The order, from the most to the least important:

1. the location reaches the end of the segment;
2. nothing is known against its bytes;
3. its node can be reached, and the caller has not just failed there;
4. `good` before `copying` (whose bytes up to its length are verified as well), before `dropping`, until it is erased;
5. the reader's zone; the shorter queue; the primary pool.

Places that are away or `damaged` come last and are never left out: bytes are checked on their way, so trying costs
time at worst, and a block that passes its checksum is right wherever it comes from. Only `offsite` volumes, which no
node has, are left out. Locations too short for the segment stand at the very end: the view may lag behind a copy.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from copypool.protocol.api import LocationState, PoolType, SegmentRef
from copypool.protocol.errors import CopypoolError, DigestMismatch
from copypool.protocol.stripes import FULL_STRIDE_BYTES, STRIPE_BYTES, prelude_bytes, stored_bytes
from copypool_coordinator import twins
from copypool_coordinator.heartbeats import Loads
from copypool_coordinator.rows import ExtentRow, FileFlag, FileRow, Location
from copypool_coordinator.view import ClusterView

_STATE_RANK: dict[LocationState, int] = {"good": 0, "copying": 1, "dropping": 2, "damaged": 3, "missing": 4}
#: Queues shorter than this are equally short.
_QUEUE_STEP_BYTES = 8 * 1024 * 1024


#: Reach of the writer of an open extent, whose length only `o/` knows: see `reach_of`.
UNBOUNDED = 1 << 62


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
    reach: int  #: extent offset up to which the location holds every committed byte
    given_up: bool = False  #: its volume was declared destroyed: it is not waited for

    def is_final(self, failure: CopypoolError) -> bool:
        """Whether this place, having failed a read like this, can never give those bytes.

        Bad bytes at a place whose node has found them bad itself, or no file. What did not answer may come back.
        """
        if self.given_up:
            return True
        if isinstance(failure, DigestMismatch):
            return self.state != "good"
        return "sent" not in failure.details and self.state in ("missing", "copying")


def end_of(segment: SegmentRef) -> int:
    """Extent offset just behind the segment's last stripe."""
    return segment.offset + stored_bytes(segment.length)


def segments_of(row: FileRow) -> Sequence[SegmentRef]:
    """The segments that the row itself names: of a file with a manifest only the manifest's payload."""
    if row.flags & FileFlag.multipart and not row.flags & FileFlag.in_manifest:
        return row.segments or ()
    return (row.record,)


def reach_of(location: Location, extent: ExtentRow) -> int:
    """How far this location reaches.

    The writer of an open extent, and its live twin, have their length in `o/`, which is not watched. But a row that
    names a segment was committed together with `o/`: whatever was committed, they hold. (A twin that ended a moment
    ago refuses what it does not hold, and the reader goes on elsewhere.)
    """
    appended = location.volume == extent.writer_volume or twins.is_live(extent, location)
    if extent.open and appended and location.state != "copying":
        return UNBOUNDED
    return location.length


def knows_enough(extent: ExtentRow | None, segment: SegmentRef) -> bool:
    """Whether a view with this row can answer for the segment: some location reaches its end.

    Else the view lags behind the row that named the segment, or ran ahead of it: read both in one transaction.
    """
    if extent is None:
        return False
    end = end_of(segment)
    for location in extent.locations:  # noqa: SIM110 - a generator costs more than the loop, on every lookup
        if reach_of(location, extent) >= end:
            return True
    return False


def rank(
    view: ClusterView,
    loads: Loads,
    extent: ExtentRow,
    *,
    zone: str = "",
    avoid_nodes: Collection[int] = (),
    suspects: Collection[int] = (),
) -> list[Place]:
    """Every place that has something of the extent, best first, whatever its length.

    `avoid_nodes` failed the caller a moment ago, `suspects` failed this coordinator. Offsite volumes are left out.
    """
    return [place for _, place in _ordered(view, loads, extent, zone, avoid_nodes, suspects)]


def _ordered(
    view: ClusterView,
    loads: Loads,
    extent: ExtentRow,
    zone: str,
    avoid_nodes: Collection[int],
    suspects: Collection[int],
) -> list[tuple[tuple[int, ...], Place]]:
    """The places with what they are ordered by, in the order of `_WHY_LATER`."""
    ranked: list[tuple[tuple[int, ...], Place]] = []
    for location in extent.locations:
        place = _place(view, location, extent)
        if place is None:
            continue
        node = view.nodes_by_id.get(place.node_id)
        load = loads.get(place.volume_id)
        order = (
            place.state in ("damaged", "missing") or location.erasing,
            not place.reachable,
            place.node_id in avoid_nodes or place.node_id in suspects,
            _STATE_RANK[place.state],
            bool(zone) and (node is None or node.row.zone != zone),
            0 if load is None else load.report.queued_bytes // _QUEUE_STEP_BYTES,
            place.pool_type != "primary",
            place.volume_id,
        )
        ranked.append((order, place))
    ranked.sort(key=_first)
    return ranked


#: Why a place stands behind another one, by the first element of its order that is greater.
_WHY_LATER = (
    "its bytes failed a check or are not there: tried last, since each block is checked on its way",
    "its node is away or its volume not readable: tried after all that can be reached",
    "its node failed a moment ago",
    "its location is not good (yet, or any more)",
    "it is in another zone than the reader",
    "more waits in its queue",
    "a primary stands before a copy when nothing else differs",
    "nothing tells them apart: the older volume stands first",
)


class Reasoned(NamedTuple):
    """A place and why it stands where it stands."""

    place: Place
    why: str


def explain(
    view: ClusterView,
    loads: Loads,
    extent: ExtentRow,
    segment: SegmentRef,
    *,
    zone: str = "",
    suspects: Collection[int] = (),
) -> list[Reasoned]:
    """The sources of a segment, in the very order in which a read tries them, each with its reason."""
    ranked = _ordered(view, loads, extent, zone, (), suspects)
    orders = {(place.volume_id, place.state, place.reach): order for order, place in ranked}
    found: list[Reasoned] = []
    before: tuple[int, ...] | None = None
    for place in sources([place for _, place in ranked], segment):
        order = orders[place.volume_id, place.state, place.reach]
        if place.reach < end_of(segment):
            why = "as far as is known it is too short for this segment: tried at the very end"
        elif before is None:
            why = "first: nothing speaks against it" if not any(order[:4]) else f"first, although {_later((), order)}"
        else:
            why = _later(before, order)
        before = order
        found.append(Reasoned(place, why))
    return found


def _later(before: tuple[int, ...], order: tuple[int, ...]) -> str:
    for index, why in enumerate(_WHY_LATER):
        if order[index] > (before[index] if before else 0):
            return why
    return _WHY_LATER[-1]


def _first(item: tuple[tuple[int, ...], Place]) -> tuple[int, ...]:
    return item[0]


def sources(ranked: Sequence[Place], segment: SegmentRef) -> list[Place]:
    """The places of a segment, best first: ranked ones that reach its end, then the others.

    Empty only when the extent has no location, or offsite ones alone.
    """
    end = end_of(segment)
    reaching = [place for place in ranked if place.reach >= end]
    if len(reaching) == len(ranked):
        return reaching
    return reaching + [place for place in ranked if place.reach < end]


def _place(view: ClusterView, location: Location, extent: ExtentRow) -> Place | None:
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
        reach=reach_of(location, extent),
        given_up=volume.row.access == "destroyed",
    )


def offsite(view: ClusterView, extent: ExtentRow) -> list[str]:
    """Volumes with something of the extent that no program can read, but people can bring back."""
    found = (view.volumes_by_id.get(location.volume) for location in extent.locations)
    return [volume.name for volume in found if volume is not None and volume.row.access == "offsite"]


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
