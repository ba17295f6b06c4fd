"""CopyController: copy debt. Every committed byte goes to every copy pool of its class, oldest debt first.

The work is known, not searched for: an extent is looked at when it changed or while it is off policy. Open extents
are followed as they grow. A copy that is damaged or missing is simply debt again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from copypool_coordinator.controllers.actions import Action
from copypool_coordinator.controllers.filling import fill
from copypool_coordinator.policy import Facts
from copypool_coordinator.rows import ExtentRow

if TYPE_CHECKING:
    from copypool_coordinator.view import ClusterView


def plan(view: ClusterView, facts: Facts, now_ms: int, extents: Iterable[int]) -> list[Action]:
    """The next step of every copy that these extents lack."""
    found: list[tuple[int, list[Action]]] = []
    for extent in extents:
        entry = view.extents.get(extent)
        if entry is None:
            continue
        standing = facts.standing(view, extent, entry.row)
        if standing is None:
            continue
        steps: list[Action] = []
        for pool in standing.copies:
            if pool.full or pool.debt_bytes:
                steps += fill(view, facts, now_ms, extent, entry.row, standing.committed, pool)
        if steps:
            found.append((debt_since_ms(facts, extent, entry.row), steps))
    found.sort(key=lambda item: item[0])
    return [action for _, steps in found for action in steps]


def debt_since_ms(facts: Facts, extent: int, row: ExtentRow) -> int:
    """Since when bytes of this extent wait for a copy; never younger than true (C14)."""
    sample = facts.opened.get(extent) if row.open else None
    if sample is not None and sample.uncopied_since_ms:
        return sample.uncopied_since_ms
    return row.opened_ms
