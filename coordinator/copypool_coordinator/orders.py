"""What running processes ask of the controllers, gathered once a pass. Pure.

A process says what is wanted; the controllers do it beside everything else they do. So no verb has a copying or
dropping path of its own, and any two of them together are as safe as one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from copypool_coordinator.view import ClusterView


@dataclass(frozen=True, slots=True)
class Orders:
    """The sum of all running processes."""

    #: Volume -> time since when every location there is to be read back.
    audits: Mapping[int, int] = field(default_factory=dict)
    urgent_pools: frozenset[int] = frozenset()  #: what is away there is not waited for
    urgent_extents: frozenset[int] = frozenset()
    moves: Mapping[int, int] = field(default_factory=dict)  #: extent -> volume it goes off
    crowded: frozenset[int] = frozenset()  #: volumes that a rebalance takes extents off: none go there

    #: Pools that an operator's backup or restore copies into now, window or not.
    backups: frozenset[int] = frozenset()

    def urgent(self, extent: int, pool: int) -> bool:
        """Whether an operator asked for this extent to be whole in this pool now, whoever may come back."""
        return pool in self.urgent_pools or extent in self.urgent_extents


def gather(view: ClusterView) -> Orders:
    """The orders of all processes that run now; of two audits of a volume the younger one decides."""
    audits: dict[int, int] = {}
    pools: set[int] = set()
    extents: set[int] = set()
    moves: dict[int, int] = {}
    crowded: set[int] = set()
    backups: set[int] = set()
    for entry in view.processes.values():
        row = entry.row
        if row.state != "running" or row.cancelled_by:
            continue
        if row.verb == "audit":
            for volume in row.volumes:
                audits[volume] = max(audits.get(volume, 0), row.created_ms)
        elif row.verb == "restore":
            pools.update(row.pools)
            extents.update(row.extents)
            lost = [view.volumes_by_id[volume].row.pool for volume in row.volumes if volume in view.volumes_by_id]
            backups.update(row.pools, lost)
        elif row.verb == "backup":
            backups.update(row.pools)
        elif row.verb == "rebalance":
            moves.update(dict(row.moves))
            crowded.update(row.volumes)
    return Orders(audits, frozenset(pools), frozenset(extents), moves, frozenset(crowded), frozenset(backups))
