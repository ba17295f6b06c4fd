"""HealthController: who is away since when, and which extents must end because their writer cannot append any more.

A lost session stops writes and nothing else (A12): the absence is written down, so that a new leader goes on waiting
where the last one was, and the node's open extents are sealed at their committed length, fenced by its epoch. Reads
and locations stay as they are. A volume that refused a write becomes `readonly` until an operator says otherwise. Owns
no repair: that is for `repair` once the grace time is over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from copypool_coordinator.controllers.actions import Action, MarkAway, MarkReturned, SealExtent, SetReadonly
from copypool_coordinator.policy import Facts

if TYPE_CHECKING:
    from copypool_coordinator.view import ClusterView


def plan(view: ClusterView, facts: Facts) -> list[Action]:
    """Absences to write down or to end, volumes that refuse writes, and open extents to seal."""
    actions: list[Action] = []
    for node in view.nodes.values():
        away = not view.node_up(node.row.id)
        began = node.row.url or view.volumes_by_node.get(node.row.id)  # else it has joined a moment ago
        if away and node.row.away_since_ms == 0 and began:
            actions.append(MarkAway(node.row.id))
        elif not away and node.row.away_since_ms != 0:
            actions.append(MarkReturned(node.row.id))
    for volume_id, why in facts.failing.items():
        volume = view.volumes_by_id.get(volume_id)
        if volume is not None and volume.row.access == "readwrite":
            actions.append(SetReadonly(volume_id, why))
    for volume_id, extents in view.open_by_volume.items():
        place = facts.places.get(volume_id)
        for extent in extents:
            row = view.extents[extent].row
            session = view.sessions.get(row.writer_node)
            if session is None:
                actions.append(SealExtent(extent, fencing=True, why="its writer's session ended"))
            elif session.mod_revision != row.epoch:
                actions.append(SealExtent(extent, fencing=True, why="its writer has started anew"))
            elif place is None or not place.writable:
                actions.append(SealExtent(extent, fencing=False, why="a volume that it is written to takes no writes"))
    return actions
