"""What of a process's extents is on its way out: until when, and what becomes of it without the process. Pure.

A location that leaves is kept for the readers that were told of it (`drop_delay_ms`), so a process that empties a
volume has nothing done for minutes and yet nothing left to do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from copypool_coordinator.policy import Facts
from copypool_coordinator.protection import is_empty, may_leave, wanted_total
from copypool_coordinator.remaining import Left
from copypool_coordinator.rows import ExtentRow, Location, ProcessRow

if TYPE_CHECKING:
    from copypool_coordinator.view import ClusterView


class Departing(NamedTuple):
    """What is left of a process, and leaves by itself."""

    extents: int
    all: bool  #: nothing else is left
    until_ms: int  #: from then on the last of them may be deleted


def departing(view: ClusterView, facts: Facts, items: Sequence[Left]) -> Departing | None:
    """Of what is left (`remaining.left`) that which is on its way out; None when nothing is."""
    volumes = {one.extent: one.volume for one in items if one.volume}
    found = {
        extent: location.changed_ms
        for extent, volume in volumes.items()
        for location in view.extents[extent].row.locations
        if location.volume == volume and location.state == "dropping"
    }
    if not found:
        return None
    return Departing(len(found), len(found) == len(items), max(found.values()) + facts.policy.drop_delay_ms)


def after_cancelling(view: ClusterView, facts: Facts, row: ProcessRow) -> str:
    """What becomes of locations on their way out once nobody wants the volumes of the process empty; "": none is.

    Those that policy needs are called off (`repair`); those that were replaced, or may be erased already, go.
    """
    go = stay = 0
    for extent_row, location, committed in _dropping(view, facts, row):
        extent_class = view.classes.get(extent_row.class_id)
        wanted = 1 if extent_class is None else wanted_total(extent_class.row)
        needed = not is_empty(committed) and not may_leave(extent_row, location, committed, facts.counted, wanted)
        if needed and not location.erasing:
            stay += 1
        else:
            go += 1
    said = []
    if stay:
        said.append(f"{stay} locations that were on their way out are called off and stay")
    if go:
        said.append(f"{go} locations that are on their way out go all the same: others have all their bytes")
    return "; ".join(said)


def _dropping(view: ClusterView, facts: Facts, row: ProcessRow) -> Iterator[tuple[ExtentRow, Location, int]]:
    for volume in row.volumes:
        for extent in view.extents_by_volume.get(volume, ()):
            known = view.extents[extent].row
            committed = facts.committed(extent, known)
            for location in known.locations:
                if location.volume == volume and location.state == "dropping":
                    yield known, location, known.length if committed is None else committed
