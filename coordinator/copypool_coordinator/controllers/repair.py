"""RepairController: rebuilds lost primaries from copies, then takes away what is not needed any more.

First the new place, then the old one (invariant 6). A location is taken away in steps, each guarded by the row: it
was decided, every survivor was read back after that (A16), the last-copy rule holds (A4; checked again by the
transaction), it is `dropping` and read capabilities have died (A17), the rule is asked once more and the row says
`erasing`, its node deleted exactly that generation (A9), and only then it leaves the row. Until `erasing` it is called
off when what it was not needed beside goes bad, and it is a source of repair. A node that is away is waited for: a file
without a row would stay for ever.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from copypool_coordinator.controllers.actions import Action, BeginDrop, CallOff, Decide, FinishDrop, Forget, Verify
from copypool_coordinator.controllers.filling import fill
from copypool_coordinator.policy import Facts, LocationKey, absent_since_ms, patience_over
from copypool_coordinator.protection import Standing, is_appended, is_empty, may_leave, on_different_nodes, wanted_total
from copypool_coordinator.rows import ClassRow, ExtentRow, Location
from copypool_coordinator.spreading import spread_out

if TYPE_CHECKING:
    from copypool_coordinator.view import ClusterView


def plan(view: ClusterView, facts: Facts, now_ms: int, extents: Iterable[int]) -> list[Action]:
    """The next step for every extent that lacks its primary or has a location too many."""
    actions: list[Action] = []
    for extent in extents:
        entry = view.extents.get(extent)
        if entry is None:
            continue
        row = entry.row
        standing = facts.standing(view, extent, row)
        extent_class = view.classes.get(row.class_id)
        if standing is None or extent_class is None or row.open:
            continue
        actions += _go_on_dropping(view, facts, now_ms, extent, row, standing, extent_class.row)
        if not is_empty(standing.committed):
            actions += fill(view, facts, now_ms, extent, row, standing.committed, standing.primary)
        actions += _decide_early(facts, now_ms, extent, row)
        if standing.settled:
            actions += _drop_needless(view, facts, now_ms, extent, row, standing, extent_class.row)
        actions += _discard(view, facts, now_ms, extent, row, standing)
    return actions


def _go_on_dropping(
    view: ClusterView,
    facts: Facts,
    now_ms: int,
    extent: int,
    row: ExtentRow,
    standing: Standing,
    extent_class: ClassRow,
) -> list[Action]:
    """Locations that began to go: called off, waited for, or let go.

    Called off when too few others are left, not when they are merely away: then nothing is erased, and that is enough.
    """
    found: list[Action] = []

    def remains(other: Location) -> bool:
        return _remains(view, facts, now_ms, other)

    for location in row.locations:
        place = facts.places.get(location.volume)
        if location.state != "dropping" or place is None:
            continue
        key = LocationKey(extent, location.volume, location.generation)
        wanted = 1 if place.intent in ("discard", "force") else wanted_total(extent_class)
        forced = place.intent == "force"
        sure = location.erasing or forced
        if not sure and not may_leave(row, location, standing.committed, remains, wanted):
            found.append(CallOff(key, f"fewer than {wanted} others that reach as far are left"))
        elif place.destroyed:
            # Nothing is read there and nothing is deleted there: no reader to wait for.
            found.append(Forget(key, wanted, forced))
        elif place.up and now_ms - location.changed_ms >= facts.policy.drop_delay_ms:
            since_ms = max(1, location.decided_ms)
            if sure or may_leave(row, location, standing.committed, facts.counted, wanted, since_ms):
                found.append(FinishDrop(key, place.node, wanted, forced))
            else:
                found += _verify_survivors(view, facts, extent, row, standing, key, since_ms)
    return found


def _remains(view: ClusterView, facts: Facts, now_ms: int, location: Location) -> bool:
    """Whether this location counts, or is only waited for: away within the grace time, or by an operator's word."""
    place = facts.places.get(location.volume)
    if place is None or place.destroyed:
        return False
    away_ms = 0 if place.counted else absent_since_ms(view, place.volume, place.node, now_ms)
    node = view.nodes_by_id.get(place.node)
    return (
        not away_ms
        or bool(facts.brake)
        or not patience_over(node.row if node is not None else None, away_ms, facts.policy.grace_ms, now_ms)
    )


def _goes(facts: Facts, extent: int, location: Location) -> bool:
    """Whether this location is to be elsewhere: an operator's word, or a failure domain that it shares."""
    place = facts.places.get(location.volume)
    if place is None:
        return False
    return place.leaving or place.destroyed or facts.moving_off(extent) == location.volume


def _decide_early(facts: Facts, now_ms: int, extent: int, row: ExtentRow) -> list[Action]:
    """An operator's word is the decision: what is rebuilt and read back after it proves the survivors."""
    found: list[Action] = []
    for location in row.locations:
        key = LocationKey(extent, location.volume, location.generation)
        if location.state != "dropping" and _goes(facts, extent, location) and not _decided(facts, key, now_ms):
            found.append(Decide(key))
    return found


def _decided(facts: Facts, key: LocationKey, now_ms: int) -> int:
    """When it was decided that this location may go; 0: not yet, or too long ago."""
    decided_ms = facts.memory.decided.get(key, 0)
    return decided_ms if now_ms - decided_ms <= facts.policy.decision_life_ms else 0


def _discard(
    view: ClusterView, facts: Facts, now_ms: int, extent: int, row: ExtentRow, standing: Standing
) -> list[Action]:
    """Volumes whose data an operator discards: a location goes once another one as long was read back after that.

    Fewer may be left than the class wants, never none, unless it was forced.
    """
    found: list[Action] = []
    for location in row.locations:
        place = facts.places.get(location.volume)
        if place is None or place.intent not in ("discard", "force") or location.state == "dropping":
            continue
        key = LocationKey(extent, location.volume, location.generation)
        decided_ms = _decided(facts, key, now_ms)
        if not decided_ms or any(other.state == "dropping" for other in row.locations):
            continue
        if may_leave(row, location, standing.committed, facts.counted, 1, verified_since_ms=decided_ms):
            found.append(BeginDrop(key, "its volume's data is discarded", wanted=1))
        elif may_leave(row, location, standing.committed, facts.readable, 1):
            found += _verify_survivors(view, facts, extent, row, standing, key, decided_ms)
        elif place.intent == "force":
            found.append(BeginDrop(key, "an operator forced it", wanted=1, forced=True))
        break  # one after the other, each decided for itself
    return found


def _drop_needless(
    view: ClusterView,
    facts: Facts,
    now_ms: int,
    extent: int,
    row: ExtentRow,
    standing: Standing,
    extent_class: ClassRow,
) -> list[Action]:
    """One location at a time: decide, read the survivors back, begin to drop."""
    found = needless(view, facts, extent, row, standing)
    if found is None:
        return []
    location, why = found
    key = LocationKey(extent, location.volume, location.generation)
    decided_ms = _decided(facts, key, now_ms)
    if not decided_ms:
        return [] if _goes(facts, extent, location) else [Decide(key)]
    wanted = wanted_total(extent_class)
    if not may_leave(row, location, standing.committed, facts.counted, wanted):
        return []
    if may_leave(row, location, standing.committed, facts.counted, wanted, verified_since_ms=decided_ms):
        return [BeginDrop(key, why)]
    return _verify_survivors(view, facts, extent, row, standing, key, decided_ms)


def needless(
    view: ClusterView, facts: Facts, extent: int, row: ExtentRow, standing: Standing
) -> tuple[Location, str] | None:
    """The location of a settled extent that may go first, and why; None when all are needed.

    First what an operator wants elsewhere. Of two full locations in one pool the one goes whose node came back last:
    it is the one that was replaced. A choice once made is kept, so that two leaders or two passes do not take one each.
    """
    full = {(each.volume, each.generation) for pool in standing.pools for each in pool.full}
    candidates: list[tuple[tuple[int, ...], Location, str]] = []
    for location in row.locations:
        place = facts.places.get(location.volume)
        if place is None or location.state == "dropping" or is_appended(row, location):
            continue
        if not place.up and not place.destroyed:
            continue
        key = LocationKey(extent, location.volume, location.generation)
        pool = next((each for each in standing.pools if each.pool == place.pool), None)
        session = view.sessions.get(place.node)
        since_ms = 0 if session is None else session.row.since_ms
        order = (key not in facts.memory.decided, -since_ms, -location.volume, -location.generation)
        if place.destroyed:
            candidates.append(((0, *order), location, "its volume was destroyed and it has been replaced"))
        elif _goes(facts, extent, location):
            candidates.append(((0, *order), location, "it is to go off its volume and has been replaced"))
        elif (location.volume, location.generation) not in full:
            if pool is not None or location.state != "good":
                what = "short" if location.state == "good" else location.state
                candidates.append(((0, *order), location, f"it is {what} and has been replaced"))
            else:
                candidates.append(((2, *order), location, "its pool is none of its class"))
        elif pool is not None and len(pool.staying) > 1 and _apart_without(facts, standing, location):
            candidates.append(((1, *order), location, "its pool has another one"))
    if not candidates:
        return None
    _, location, why = min(candidates, key=lambda item: item[0])
    return location, why


def _apart_without(facts: Facts, standing: Standing, gone: Location) -> bool:
    """Whether every pool still has a location of its own, as far apart as they are now, once this one is gone."""
    left = [
        [
            facts.places[each.volume]
            for each in pool.staying
            if (each.volume, each.generation) != (gone.volume, gone.generation)
        ]
        for pool in standing.pools
    ]
    if standing.spread and not spread_out(left):
        return False
    return on_different_nodes([{place.node for place in places} for places in left])


def _verify_survivors(
    view: ClusterView,
    facts: Facts,
    extent: int,
    row: ExtentRow,
    standing: Standing,
    leaving: LocationKey,
    decided_ms: int,
) -> list[Action]:
    found: list[Action] = []
    for pool in standing.pools:
        for survivor in pool.full:
            key = LocationKey(extent, survivor.volume, survivor.generation)
            place = facts.places[survivor.volume]
            session = view.sessions.get(place.node)
            asked = facts.memory.verifies.get(key)
            if not place.up:
                continue  # offsite: it counts, and is not read
            if key == leaving or survivor.verified_ms >= decided_ms or session is None or asked is not None:
                continue
            if not facts.may_verify(survivor.volume, facts.policy.urgent_verifies_per_volume):
                continue
            found.append(
                Verify(
                    key, place.node, session.mod_revision, standing.committed, True, False, "another location may go"
                )
            )
    return found
