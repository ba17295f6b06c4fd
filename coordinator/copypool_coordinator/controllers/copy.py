"""CopyController: copy debt. Every committed byte goes to every copy pool of its class, oldest debt first.

A pool whose window is closed gets nothing new meanwhile: the debt grows and is shown. What a node was told to pull
before the window closed it finishes, at most an extent per pull, and a full copy is still sealed and read back.
The work is known, not searched for: an extent is looked at when it changed or while it is off policy. Open extents
are followed as they grow. A copy that is damaged or missing is simply debt again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from copypool_coordinator.controllers.actions import Action, Reserve
from copypool_coordinator.controllers.filling import fill
from copypool_coordinator.policy import Facts
from copypool_coordinator.rows import ExtentRow

if TYPE_CHECKING:
    from copypool_coordinator.view import ClusterView


def plan(view: ClusterView, facts: Facts, now_ms: int, extents: Iterable[int]) -> list[Action]:
    """The next step of every copy that these extents lack."""
    known = [(extent, view.extents[extent].row) for extent in extents if extent in view.extents]
    # Places in the queues of the destinations are given out in this order.
    known.sort(key=lambda item: debt_since_ms(facts, *item))
    actions: list[Action] = []
    for extent, row in known:
        standing = facts.standing(view, extent, row)
        if standing is None:
            continue
        for pool in standing.copies:
            if pool.full or (pool.debt_bytes and pool.pool not in facts.closed):
                actions += fill(view, facts, now_ms, extent, row, standing.committed, pool)
                if actions and isinstance(actions[-1], Reserve) and actions[-1].extent == extent:
                    break  # where the next pool's location goes depends on where this one does
    return actions


def debt_since_ms(facts: Facts, extent: int, row: ExtentRow) -> int:
    """Since when bytes of this extent wait for a copy; never younger than true (C14)."""
    sample = facts.opened.get(extent) if row.open else None
    if sample is not None and sample.uncopied_since_ms:
        return sample.uncopied_since_ms
    return row.opened_ms
