"""`wait --copied`: is everything that was committed before a call in every copy pool of its class? Pure.

The first call takes marks: (extent, committed length) of every extent in debt. Later calls are done once every mark
is reached, whatever was written meanwhile. A debt that is paid stays paid, so marks only ever fall away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from copypool.protocol.api import CopiedReply
from copypool.protocol.errors import Invalid
from copypool_coordinator import twins
from copypool_coordinator.offpolicy import Mark
from copypool_coordinator.protection import VolumeFacts, assess
from copypool_coordinator.rows import ExtentRow, OpenRow
from copypool_coordinator.rpo import end_of_namespace

if TYPE_CHECKING:
    from copypool_coordinator.view import ClusterView

#: Marks in one request.
MARKS_MAX = 100_000


def take_marks(
    view: ClusterView, debts: Mapping[int, Mark], opened: Mapping[int, OpenRow], namespace: int | None = None
) -> list[list[int]]:
    """Marks of all that is not copied now, or of what a namespace may have in it.

    `opened` must have been read after the caller asked.
    """
    marks = []
    for extent, mark in debts.items():
        entry = view.extents.get(extent)
        if entry is None or not mark.debt:
            continue
        if namespace is None:
            marks.append([extent, _committed(extent, entry.row, opened)])
        elif end := end_of_namespace(entry.row, opened.get(extent), namespace):
            marks.append([extent, end])
    return marks


def check_marks(marks: Sequence[Sequence[int]]) -> None:
    """Refuse marks that no call gave out; raises `Invalid`."""
    if len(marks) > MARKS_MAX:
        raise Invalid(f"at most {MARKS_MAX} marks")
    if any(len(mark) != 2 or mark[0] < 0 or mark[1] < 0 for mark in marks):
        raise Invalid("a mark is a pair [extent, length], both 0 or more")


def unreached(
    view: ClusterView,
    marks: Sequence[Sequence[int]],
    places: Mapping[int, VolumeFacts],
    opened: Mapping[int, OpenRow],
) -> list[list[int]]:
    """The marks that some copy pool of the extent's class has not reached yet. An extent that is gone is copied."""
    left = []
    for extent, length in marks:
        entry = view.extents.get(extent)
        if entry is None:
            continue
        extent_class = view.classes.get(entry.row.class_id)
        if extent_class is None:
            left.append([extent, length])
            continue
        row = twins.as_sampled(entry.row, opened.get(extent))
        standing = assess(row, length, extent_class.row, places)
        if any(pool.debt_bytes for pool in standing.copies):
            left.append([extent, length])
    return left


def reply(left: list[list[int]], debts: Mapping[int, Mark]) -> CopiedReply:
    """The answer: done when no mark is left."""
    owed = [mark.debt_bytes for mark in debts.values() if mark.debt]
    return CopiedReply(not left, left, sum(owed), len(owed))


def _committed(extent: int, row: ExtentRow, opened: Mapping[int, OpenRow]) -> int:
    if not row.open:
        return row.length
    sample = opened.get(extent)
    return 0 if sample is None else sample.length
