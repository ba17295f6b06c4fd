"""How one pool of one extent is brought up to its class; what `copy` and `repair` share.

First what is there is finished, then what is away is waited for, then a new place is added. Nothing is taken away
here (invariant 6: new place good first, old place dropped after, by `repair`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from copypool_coordinator.controllers.actions import Action, CallOff, Pull, Reserve, Source
from copypool_coordinator.locations import before_drop
from copypool_coordinator.policy import Facts, LocationKey, absent_since_ms, patience_over
from copypool_coordinator.protection import PoolStanding, VolumeFacts, is_appended, reach
from copypool_coordinator.rows import ExtentRow, Location

if TYPE_CHECKING:
    from copypool_coordinator.view import ClusterView

#: Of the location that the extent is written to: its node seals and reads back its own extents.
FIRST_GENERATION = 1
#: Best sources first: one that is on its way out, or damaged, may still hold the block that the others lack, and the
#: puller checks every block.
_SOURCE_RANK = {"good": 0, "copying": 1, "dropping": 2, "damaged": 3}
_REPLACE_AT_ONCE = ("damaged", "missing")


def fill(
    view: ClusterView, facts: Facts, now_ms: int, extent: int, row: ExtentRow, committed: int, pool: PoolStanding
) -> list[Action]:
    """The next step towards a full, counted location in `pool`; nothing when there is one or none can be made."""
    here = [
        (location, place)
        for location in row.locations
        if (place := facts.places.get(location.volume)) is not None and place.pool == pool.pool
    ]
    if pool.staying:
        return _finish(view, facts, now_ms, extent, row, committed, pool)
    moving_off = facts.moving_off(extent)
    growing = [
        (location, place)
        for location, place in here
        if _can_grow(row, location, place) and location.volume != moving_off
    ]
    if growing:
        stalled = {
            location.generation
            for location, _ in growing
            if location.stalled_here
            or facts.memory.stalled(
                LocationKey(extent, location.volume, location.generation), location.length, facts.policy
            )
        }
        if len(stalled) == len(growing) and (elsewhere := _reserve(facts, extent, row, pool, here)):
            return elsewhere
        location, place = max(
            growing, key=lambda item: (item[0].generation not in stalled, item[0].length, -item[0].generation)
        )
        step = pull(view, facts, now_ms, extent, row, location, place, committed, repair=pool.primary)
        return [] if step is None else [step]
    urgent = facts.orders.urgent(extent, pool.pool)
    if not urgent and any(_waits(view, facts, now_ms, row, location, place, committed) for location, place in here):
        return []
    for location, place in here:
        if can_stay(location) and place.writable and location.volume != moving_off:
            key = LocationKey(extent, location.volume, location.generation)
            return [CallOff(key, "its pool needs a place for it again")]
    return _reserve(facts, extent, row, pool, here)


def can_stay(location: Location) -> bool:
    """Whether it is on its way out, holds sound bytes, and its drop can still be called off."""
    return location.state == "dropping" and not location.erasing and before_drop(location) in ("good", "copying")


def _can_grow(row: ExtentRow, location: Location, place: VolumeFacts) -> bool:
    return place.writable and location.state in ("copying", "good") and not is_appended(row, location)


def _finish(
    view: ClusterView, facts: Facts, now_ms: int, extent: int, row: ExtentRow, committed: int, pool: PoolStanding
) -> list[Action]:
    """Tell a copy that reached the end of a sealed extent that it is sealed: it writes its footer and reads it back."""
    actions: list[Action] = []
    for location in pool.full:
        place = facts.places[location.volume]
        written_here = location.volume == row.writer_volume and location.generation == FIRST_GENERATION
        if row.open or location.verified_ms or written_here or not place.writable:
            continue
        step = pull(view, facts, now_ms, extent, row, location, place, committed, repair=pool.primary)
        if step is not None:
            actions.append(step)
    return actions


def _waits(
    view: ClusterView,
    facts: Facts,
    now_ms: int,
    row: ExtentRow,
    location: Location,
    place: VolumeFacts,
    committed: int,
) -> bool:
    """Whether this location, which does not count now, is given time to come back before it is replaced."""
    if location.state in _REPLACE_AT_ONCE or location.state == "dropping" or place.destroyed:
        return False
    away_ms = absent_since_ms(view, place.volume, place.node, now_ms)
    if away_ms == 0:
        # Its node is there: an operator made it unavailable, or it takes no writes and cannot be finished.
        return location.state == "good" and reach(row, location, committed) >= committed and not place.up
    node = view.nodes_by_id.get(place.node)
    if reach(row, location, committed) < committed:
        patience_ms = min(facts.policy.debt_patience_ms, facts.policy.grace_ms)
        # Bytes without a copy are debt, and debt does not wait for the end of anybody's maintenance.
        return not patience_over(None, away_ms, patience_ms, now_ms)
    return bool(facts.brake) or not patience_over(node.row if node else None, away_ms, facts.policy.grace_ms, now_ms)


def _reserve(
    facts: Facts, extent: int, row: ExtentRow, pool: PoolStanding, here: list[tuple[Location, VolumeFacts]]
) -> list[Action]:
    """A new location on another node, or a new generation beside a damaged one when there is no other."""
    if not any(_useful(facts, row, location) for location in row.locations):
        return []
    damaged = next(((location, place) for location, place in here if location.state in _REPLACE_AT_ONCE), None)
    volume = facts.choose(without_volume(row, facts.orders.moves.get(extent)), pool.pool)
    if volume is None and damaged is not None and damaged[1].writable:
        volume = damaged[0].volume
    if volume is None or not facts.may_pull(volume):
        return []
    cause = None if damaged is None else LocationKey(extent, damaged[0].volume, damaged[0].generation)
    if damaged is not None:
        why = f"its location on {damaged[1].name} is {damaged[0].state}"
    elif here:
        place = here[0][1]
        if place.destroyed:
            why = f"{place.name}, where it was, was destroyed"
        elif pool.full:
            why = f"it is to go off {place.name}"
        else:
            why = f"the one begun on {place.name} stands still" if place.up else f"{place.name}, where it is, is away"
    else:
        why = "it has no location in this pool yet"
    return [Reserve(extent, volume, pool.pool, repair=pool.primary or bool(here), why=why, cause=cause)]


def without_volume(row: ExtentRow, volume: int | None) -> ExtentRow:
    """The row as if this volume held nothing of it: its node is no reason to stay away."""
    if volume is None:
        return row
    return replace(row, locations=[each for each in row.locations if each.volume != volume])


def _useful(facts: Facts, row: ExtentRow, location: Location) -> bool:
    """Whether something could be pulled from this location now."""
    place = facts.places.get(location.volume)
    return place is not None and place.up and is_source(location)


def is_source(location: Location) -> bool:
    """Whether its state lets bytes be pulled from it: there they are, or may be, and nobody deletes them."""
    if location.state == "dropping":
        return not location.erasing and before_drop(location) != "missing"
    return location.state in _SOURCE_RANK


def pull(
    view: ClusterView,
    facts: Facts,
    now_ms: int,
    extent: int,
    row: ExtentRow,
    location: Location,
    place: VolumeFacts,
    committed: int,
    *,
    repair: bool,
) -> Pull | None:
    """The command that moves this location on; None while the last one is at work or there is nothing to pull.

    A destination owns its pull, so it is told again only of something new: more bytes, the seal, a new session of
    its node, silence, or, after it gave up, another source.
    """
    policy, memory = facts.policy, facts.memory
    key = LocationKey(extent, location.volume, location.generation)
    sources = sources_for(facts, row, location, committed)
    best = max((source.length for source in sources), default=0)
    up_to = min(committed, max(best, location.length))
    sealed = not row.open and up_to == committed
    if up_to <= location.length and not sealed:
        return None
    session = view.sessions.get(place.node)
    if session is None:
        return None
    told = memory.pulls.get(key)
    if told is None:
        if extent not in memory.pulling.get(location.volume, ()) and not facts.may_pull(location.volume):
            return None
    elif told.epoch == session.mod_revision and now_ms - told.at_ms < (
        policy.given_up_repeat_ms if location.stalled else policy.repeat_ms
    ):
        news = bool(location.stalled and sessions_of(view, sources) - told.sources)
        news = news or (sealed and not told.sealed) or (up_to > told.up_to and now_ms - told.at_ms >= policy.follow_ms)
        if not news:
            return None
    return Pull(key, place.node, session.mod_revision, up_to, sealed, sources, repair)


def sessions_of(view: ClusterView, sources: tuple[Source, ...]) -> frozenset[tuple[int, int]]:
    """(node, epoch) of these sources: another one is worth another try."""
    return frozenset(
        (source.node, session.mod_revision)
        for source in sources
        if (session := view.sessions.get(source.node)) is not None
    )


def sources_for(facts: Facts, row: ExtentRow, destination: Location, committed: int) -> tuple[Source, ...]:
    """Every other location that holds bytes and can be reached, best first: good, longest, least busy last resort.

    Damaged ones and those that are to go stand at the end: the puller takes a block from there only if no other source
    has it, and checks it.
    """
    ranked = []
    for location in row.locations:
        place = facts.places.get(location.volume)
        same = (location.volume, location.generation) == (destination.volume, destination.generation)
        if place is None or not place.up or not is_source(location) or same:
            continue
        rank = _SOURCE_RANK[location.state]
        length = reach(row, location, committed)
        if length:
            ranked.append(((rank, -length, location.volume), Source(place.node, location.volume, length)))
    return tuple(source for _, source in sorted(ranked, key=lambda item: item[0]))
