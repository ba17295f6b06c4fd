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
