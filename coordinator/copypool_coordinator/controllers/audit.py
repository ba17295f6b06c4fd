"""AuditController: every sealed location is read back soon after it is written, and again within a scrub period.

A node reads its own work back by itself; this is what makes sure that it did. First readings are bounded by the
number under way per volume, later ones by a byte rate as well, so that scrubbing never fills a disk's queue.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from copypool_coordinator.controllers.actions import Action, Verify
from copypool_coordinator.policy import Facts, LocationKey
from copypool_coordinator.protection import is_empty
from copypool_coordinator.rows import ExtentRow, Location
from copypool_coordinator.scrubbing import due_after_ms, pause_ms

if TYPE_CHECKING:
    from copypool_coordinator.view import ClusterView


def plan(view: ClusterView, facts: Facts, now_ms: int, extents: Iterable[int]) -> list[Action]:
    """Locations to read back now, the longest unread first."""
    due: list[tuple[int, int, ExtentRow, Location]] = []
    for extent in extents:
        entry = view.extents.get(extent)
        if entry is None or entry.row.open or is_empty(entry.row.length):
            continue
        due += [
            (location.verified_ms, extent, entry.row, location)
            for location in entry.row.locations
            if is_due(facts, entry.row, location, now_ms)
        ]
    due.sort(key=lambda item: (not _is_asked_for(facts, item[3]), *item[:2]))
    actions: list[Action] = []
    for _, extent, row, location in due:
        key = LocationKey(extent, location.volume, location.generation)
        place = facts.places.get(location.volume)
        session = view.sessions.get(place.node) if place is not None and place.up else None
        if place is None or session is None or key in facts.memory.verifies:
            continue
        first = location.verified_ms == 0
        asked = _is_asked_for(facts, location)
        if asked:
            limit, why = facts.policy.urgent_verifies_per_volume, "an operator asked for it"
        elif first:
            limit, why = facts.policy.verifies_per_volume, "it was not read back yet"
        else:
            limit, why = 1, "its last reading is half a scrub period old"
            if now_ms < facts.memory.scrub_from_ms.get(location.volume, 0):
                continue
        if not facts.may_verify(location.volume, limit):
            continue
        routine = not first and not asked
        stored = facts.stored_bytes.get(location.volume, 0)
        rest_ms = pause_ms(facts.policy, stored, row.length) if routine else 0
        actions.append(Verify(key, place.node, session.mod_revision, row.length, True, routine, why, rest_ms))
    return actions


def is_due(facts: Facts, row: ExtentRow, location: Location, now_ms: int) -> bool:
    """Whether this location of a sealed extent should be read back now."""
    if location.state != "good" or location.length < row.length:
        return False
    if _is_asked_for(facts, location):
        return True
    if location.verified_ms == 0:
        return now_ms - max(row.sealed_ms, location.changed_ms) >= facts.policy.first_verify_delay_ms
    return now_ms - location.verified_ms >= due_after_ms(facts.policy)


def _is_asked_for(facts: Facts, location: Location) -> bool:
    """Whether an audit waits for this location."""
    return location.verified_ms < facts.orders.audits.get(location.volume, 0)
