"""What stands in the way of what a process has left. Pure; previews and runs go by the same functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import replace

from copypool.protocol.api import LocationState
from copypool_coordinator import reclassing
from copypool_coordinator.controllers.filling import can_stay, without_volume
from copypool_coordinator.policy import Facts
from copypool_coordinator.protection import (
    PoolStanding,
    Standing,
    is_empty,
    may_leave,
    reach,
    wanted_total,
)
from copypool_coordinator.recovery import prospect
from copypool_coordinator.remaining import Left, as_wanted, standing_wanted
from copypool_coordinator.rows import ExtentRow, Location

if TYPE_CHECKING:
    from copypool_coordinator.view import ClusterView

#: Why a location cannot be discarded while no other good one reaches as far, by its state.
_LAST: dict[LocationState, str] = {
    "good": "it is the last good location",
    "copying": "it is half-copied, and no good location reaches as far: it may hold bytes that are nowhere else",
    "damaged": "it is damaged, and no good location reaches as far: it may hold blocks that are nowhere else",
    "missing": "its file is missing, and no good location reaches as far: bring it back, or --force",
}


class Obstacle(NamedTuple):
    """Why an extent cannot go on now."""

    why: str
    final: bool = False  #: nothing that may come back would change it
    waits: bool = False  #: it goes on by itself, at a time that is known: a place is being freed


class Obstacles:
    """What stands in the way of extents; the same question is asked of placement once for equal extents.

    With `now_ms` a place that is not freed in time is waited for no longer.
    """

    def __init__(self, view: ClusterView, facts: Facts, now_ms: int = 0) -> None:
        self._view = view
        self._facts = facts
        self._now_ms = now_ms
        self._chosen: dict[tuple[int, int, tuple[int, ...]], bool] = {}

    def of(self, verb: str, one: Left) -> Obstacle | None:
        """Why this extent cannot go on now; None when it can, or is under way."""
        row = self._view.extents[one.extent].row
        if verb == "audit" and (obstacle := self._of_reading(one)) is not None:
            return obstacle
        if one.namespace and (obstacle := self._of_rewriting(one, row)) is not None:
            return obstacle
        row = as_wanted(self._view, self._facts, one)
        standing = standing_wanted(self._view, self._facts, one)
        if standing is None or is_empty(standing.committed):
            return None
        if verb == "audit" and not _mends(row, one):
            return None
        if one.pool:
            pools = [pool for pool in standing.pools if pool.pool == one.pool]
        else:
            pools = [pool for pool in standing.pools if not pool.staying]
        place = self._facts.places.get(one.volume)
        own = one.pool if place is None else place.pool
        pools.sort(key=lambda pool: pool.pool != own)  # what it is about is named first
        if row.open and not one.pool:
            needed = verb in ("move", "drain") and any(pool.pool == own for pool in pools)
            return self._of_sealing(one, row, own) if needed else None
        if verb == "delete":
            return self._of_discarding(one, row, standing.committed, pools)
        for pool in pools:
            obstacle = self._of_filling(one, row, standing.committed, pool)
            if obstacle is not None and own and pool.pool != own:
                first = f"it has to be whole in pool {self._pool(pool.pool)} too: "
                return obstacle._replace(why=first + obstacle.why)
            if obstacle is not None:
                return obstacle
        if one.volume and verb != "audit":
            return self._of_leaving(one, row, standing)
        return None

    def _of_sealing(self, one: Left, row: ExtentRow, pool: int) -> Obstacle | None:
        """Open, on a volume that it is to leave: it is sealed first, whatever becomes of it then; it needs a place."""
        return None if self._can_place(row, pool, one.volume) else self._of_waiting(row, pool, one.volume)

    def _of_reading(self, one: Left) -> Obstacle | None:
        place = self._facts.places.get(one.volume)
        if place is None or place.up:
            return None
        return Obstacle(f"volume {place.name} cannot be read now")

    def _of_rewriting(self, one: Left, row: ExtentRow) -> Obstacle | None:
        """Why an extent of a past class keeps it. Nothing changes that but another policy."""
        entry = self._view.namespaces_by_id.get(one.namespace)
        if entry is None or row.class_id == entry.row.class_id:
            return None
        is_open = row.open
        row = reclassing.as_sealed(row, self._facts.opened.get(one.extent))
        if row.open or reclassing.held_bytes(row, one.namespace) is None:
            return None  # nothing is known of it, or it is left alone once it is sealed
        verdict = reclassing.judge(self._view, row, entry.row.class_id)
        if verdict.moves_primary:
            return Obstacle(
                "it would have to move to another primary pool, which this version does not do", final=not is_open
            )
        if not verdict.others:
            return None
        known = (self._view.namespaces_by_id.get(each) for each in sorted(verdict.others))
        names = ", ".join(each.name for each in known if each is not None) or "others"
        why = f"it has records of namespaces with another policy ({names}) too: give them the same one"
        return Obstacle(why, final=not is_open)

    def _of_discarding(
        self, one: Left, row: ExtentRow, committed: int, pools: Sequence[PoolStanding]
    ) -> Obstacle | None:
        place = self._facts.places.get(one.volume)
        if place is None or place.intent == "force":
            return None
        for location in row.locations:
            if location.volume == one.volume and not may_leave(row, location, committed, self._facts.counted, 1):
                return None if location.state == "dropping" else Obstacle(_LAST[location.state])
        if (why := self._of_proving(one, row, committed, pools)) is not None:
            return why
        return None if place.up or place.destroyed else Obstacle(f"the node of volume {place.name} is away")

    def _of_proving(self, one: Left, row: ExtentRow, committed: int, pools: Sequence[PoolStanding]) -> Obstacle | None:
        """What counts besides it is offsite and cannot be read back, and no pool of these can be filled instead."""
        for location in row.locations:
            if location.volume != one.volume or may_leave(row, location, committed, self._proves(location), 1):
                continue
            if any(self._of_filling(one, row, committed, pool) is None for pool in pools):
                return None
            return Obstacle(f"only {self._offsite(row)} has it too, which is offsite: it cannot be read back there")
        return None

    def _offsite(self, row: ExtentRow) -> str:
        known = [self._facts.places[each.volume] for each in row.locations if each.volume in self._facts.places]
        return ", ".join(dict.fromkeys(place.name for place in known if place.counted and not place.up))

    def _proves(self, leaving: Location) -> Callable[[Location], bool]:
        """Whether a location can be read back before that one goes, or was since that began to go."""

        def proves(other: Location) -> bool:
            place = self._facts.places.get(other.volume)
            was_read = leaving.state == "dropping" and other.verified_ms >= max(1, leaving.decided_ms)
            return place is not None and place.counted and (place.up or was_read)

        return proves

    def _of_leaving(self, one: Left, row: ExtentRow, standing: Standing) -> Obstacle | None:
        place = self._facts.places.get(one.volume)
        extent_class = self._view.classes.get(row.class_id)
        if place is None or extent_class is None:
            return None
        if not place.up and not place.destroyed:
            return Obstacle(f"the node of volume {place.name} is away")
        wanted, committed = wanted_total(extent_class.row), standing.committed
        # What a pool still gets is read back as it is written; what is there already has to be read back.
        there = sum(1 for pool in standing.pools if pool.staying)
        for location in row.locations:
            if location.volume != one.volume or location.state == "dropping" or not there:
                continue
            offsite = may_leave(row, location, committed, self._facts.counted, there)
            if offsite and not may_leave(row, location, committed, self._proves(location), there):
                return Obstacle(f"{self._offsite(row)} has its copy and is offsite: it cannot be read back there first")
        if not standing.settled:
            return None
        for location in row.locations:
            if location.volume != one.volume or location.state == "dropping":
                continue
            if not may_leave(row, location, committed, self._facts.counted, wanted):
                return Obstacle("fewer other locations reach as far as its class wants")
        return None

    def _of_filling(self, one: Left, row: ExtentRow, committed: int, pool: PoolStanding) -> Obstacle | None:
        """Why this pool does not become whole: nothing to read, or nowhere to write."""
        facts = self._facts
        expected = prospect(row, committed, facts.places)
        if expected.outlook in ("away", "lost"):
            ends = "; its readable files can be stored again: `copypool status` says how" if expected.damaged else ""
            final = expected.outlook == "lost" and not expected.damaged
            return Obstacle(expected.why + ends, final=final)
        moving_off = facts.orders.moves.get(one.extent)
        elsewhere = self._can_place(row, pool.pool, moving_off)
        given_up: Obstacle | None = None
        for location in row.locations:
            place = facts.places.get(location.volume)
            if place is None or place.pool != pool.pool or location.volume == moving_off or not place.writable:
                continue
            if can_stay(location):
                return None
            if location.state == "dropping":
                continue
            if not location.stalled:
                if self._can_grow(row, location, committed):
                    return None
            elif not (location.stalled_here and elsewhere):
                why = f"{place.name} has {location.length} of its {committed} bytes: {location.stalled}"
                given_up = given_up or Obstacle(why)
        if given_up is not None or elsewhere:
            return given_up
        return self._of_waiting(row, pool.pool, moving_off)

    def _can_grow(self, row: ExtentRow, location: Location, committed: int) -> bool:
        """Whether it grows there, or a new generation can, at once or once an old one is gone."""
        if location.state not in ("damaged", "missing"):
            return location.state != "good" or reach(row, location, committed) < committed
        beside = (each for each in row.locations if each.volume == location.volume and each is not location)
        return all(each.state in ("damaged", "missing") for each in beside)

    def _of_waiting(self, row: ExtentRow, pool: int, moving_off: int | None) -> Obstacle:
        """There is no place now; whether there will be one as soon as a location that goes is gone."""
        going = [each for each in row.locations if each.state == "dropping"]
        left = replace(row, locations=[each for each in row.locations if each.state != "dropping"])
        if going and self._can_place(left, pool, moving_off):
            places = [self._facts.places[each.volume] for each in going if each.volume in self._facts.places]
            names = ", ".join(dict.fromkeys(place.name for place in places))
            why = f"its place is taken until its old location on {names} is deleted"
            policy = self._facts.policy
            until_ms = max(each.changed_ms for each in going) + policy.drop_delay_ms
            freed = self._now_ms <= until_ms and all(place.up or place.destroyed for place in places)
            return Obstacle(why, waits=freed)
        if not any(place.pool == pool and place.writable for place in self._facts.places.values()):
            return Obstacle(f"no volume of pool {self._pool(pool)} takes writes now: see `copypool volumes`")
        return Obstacle(f"no volume of pool {self._pool(pool)} on a node without a copy of it can take it")

    def _pool(self, pool: int) -> str:
        known = self._view.pools_by_id.get(pool)
        return repr(known.name) if known is not None else str(pool)

    def _can_place(self, row: ExtentRow, pool: int, moving_off: int | None) -> bool:
        volumes = tuple(sorted(each.volume for each in row.locations if each.volume != moving_off))
        key = (pool, row.length.bit_length(), volumes)
        known = self._chosen.get(key)
        if known is None:
            known = self._chosen[key] = self._facts.choose(without_volume(row, moving_off), pool) is not None
        return known


def _mends(row: ExtentRow, one: Left) -> bool:
    """Whether what an audit has left of this extent is a repair, not a reading."""
    return any(each.volume == one.volume and each.state in ("damaged", "missing") for each in row.locations)
