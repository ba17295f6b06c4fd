"""The one chooser of destinations that plans and previews go by: placement with what operators want left out."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping

from msgspec.structs import replace

from copypool_coordinator.heartbeats import Loads, VolumeLoad
from copypool_coordinator.orders import Orders
from copypool_coordinator.placement import choose_destination
from copypool_coordinator.policy import Chooser
from copypool_coordinator.rows import ExtentRow
from copypool_coordinator.view import ClusterView


def chooser(view: ClusterView, loads: Loads, orders: Orders, leaving: Collection[int] = ()) -> Chooser:
    """Where a new location goes, by what the nodes say now.

    Volumes that are given up or emptied (or would be: `leaving`) are no reason to avoid their node; those that a
    rebalance takes extents off get none.
    """
    usable: Mapping[int, VolumeLoad] = {
        volume: load for volume, load in loads.items() if volume not in orders.crowded and volume not in leaving
    }

    def choose(row: ExtentRow, pool: int) -> int | None:
        return choose_destination(_that_stay(view, row, leaving), pool, view, usable, random.getrandbits(32))

    return choose


def within_limits(view: ClusterView, loads: Loads) -> Loads:
    """The loads by the size limits of now: a node reports by those that it has heard of, some seconds ago.

    Walks the extents of volumes that have a limit.
    """
    found = dict(loads)
    for volume, load in loads.items():
        entry = view.volumes_by_id.get(volume)
        if entry is None or not entry.row.limit_bytes:
            continue
        used = sum(
            location.length
            for extent in view.extents_by_volume.get(volume, ())
            for location in view.extents[extent].row.locations
            if location.volume == volume and location.state != "missing"
        )
        free = max(0, min(load.report.free_bytes, entry.row.limit_bytes - used))
        found[volume] = load._replace(report=replace(load.report, free_bytes=free))
    return found


def _that_stay(view: ClusterView, row: ExtentRow, leaving: Collection[int]) -> ExtentRow:
    kept = [
        location
        for location in row.locations
        if location.volume not in leaving
        and (
            (volume := view.volumes_by_id.get(location.volume)) is None
            or (volume.row.access != "destroyed" and not volume.row.intent)
        )
    ]
    if len(kept) == len(row.locations):
        return row
    return replace(row, locations=kept)
