"""How well one extent is protected, and which of its locations may leave. Pure.

Owns invariant 5 (the last good location of a live byte is never deleted) and the meaning of "protected". Knows rows
and what is true of their volumes (`VolumeFacts`), nothing of etcd, of controllers, or of time but numbers passed in.

Every location is a prefix of the truth, so an extent's bytes are ordered by how far locations reach: a location may
go when enough *others* reach at least as far. One comparison of lengths thus answers for every byte range at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from copypool.protocol.internal import EXTENT_HEADER_BYTES
from copypool.protocol.policies import Spread
from copypool.protocol.processes import VolumeIntent
from copypool_coordinator import twins
from copypool_coordinator.rows import ClassRow, ExtentRow, Location
from copypool_coordinator.spreading import spread_out


@dataclass(frozen=True, slots=True)
class VolumeFacts:
    """What is true of one volume now."""

    volume: int
    name: str
    pool: int
    node: int
    up: bool  #: its node's session lives and its access lets it be read
    counted: bool  #: its good locations count as protection: up, or offsite
    writable: bool  #: up and readwrite
    destroyed: bool  #: declared lost by an operator
    host: str = ""  #: failure domains of its node; "": not known
    zone: str = ""
    spread: Spread = "host"  #: of its pool: what it must not share with locations in other pools
    intent: VolumeIntent = ""  #: not "": its locations count and are read, but are to be had elsewhere

    @property
    def leaving(self) -> bool:
        """Whether what it holds is to go elsewhere."""
        return self.intent != ""


@dataclass(frozen=True, slots=True)
class PoolStanding:
    """One extent in one pool of its class."""

    pool: int
    primary: bool
    full: tuple[Location, ...]  #: counted locations that hold every committed byte
    reach: int  #: longest counted good location in the pool, 0: none
    debt_bytes: int  #: committed bytes that no counted location of the pool holds
    staying: tuple[Location, ...] = ()  #: those of `full` that are not to go elsewhere


@dataclass(frozen=True, slots=True)
class Standing:
    """One extent against its class."""

    committed: int
    pools: tuple[PoolStanding, ...]  #: primary first, then the copy pools in the order of the class
    satisfied: bool  #: every pool has a full location, all of them on different nodes
    shared_node: bool  #: every pool has one, but two pools only have them on the same node
    spread: bool = True  #: satisfied, and in failure domains as its pools want them
    settled: bool = False  #: satisfied by staying locations alone: what is to go may go

    @property
    def primary(self) -> PoolStanding:
        """The standing in the class's primary pool."""
        return self.pools[0]

    @property
    def copies(self) -> tuple[PoolStanding, ...]:
        """The standing in its copy pools."""
        return self.pools[1:]


def is_empty(committed: int) -> bool:
    """Whether no group was ever committed: nothing to protect, copy or verify."""
    return committed <= EXTENT_HEADER_BYTES


def is_writer(row: ExtentRow, location: Location) -> bool:
    """Whether this is the location that commits still append to."""
    return row.open and location.volume == row.writer_volume


def is_appended(row: ExtentRow, location: Location) -> bool:
    """Whether every commit claims this location: the writer's, or its live twin. Nobody else may write to it."""
    return is_writer(row, location) or twins.is_live(row, location)


def reach(row: ExtentRow, location: Location, committed: int) -> int:
    """How many bytes of the extent this location claims: one that is appended to claims all that is committed."""
    if is_appended(row, location) and location.state == "good":
        return committed
    return min(location.length, committed)


def may_leave(
    row: ExtentRow,
    location: Location,
    committed_length: int,
    counted: Callable[[Location], bool],
    wanted: int,
    verified_since_ms: int = 0,
) -> bool:
    """Whether `location` may leave the row without taking the last good bytes of any range with it (invariant 5).

    Holds when `wanted` (at least 1) volumes have another good, counted location that reaches as far as this one
    claims to, whatever this one's own state is: damaged blocks may be the only ones left, and a prefix that was still
    being copied may be the longest. With `verified_since_ms` a survivor counts only if every byte of it was read back
    since then (a drop never trusts stale green). A location that is appended to never leaves: seal first.
    """
    if is_appended(row, location):
        return False
    claimed = reach(row, location, committed_length)
    if is_empty(claimed):
        return True
    survivors = {
        other.volume
        for other in row.locations
        if (other.volume, other.generation) != (location.volume, location.generation)
        and other.state == "good"
        and counted(other)
        and reach(row, other, committed_length) >= claimed
        and (verified_since_ms == 0 or other.verified_ms >= verified_since_ms)
    }
    return len(survivors) >= max(1, wanted)


def wanted_total(extent_class: ClassRow) -> int:
    """How many locations a class wants: one in its primary pool and one in each copy pool."""
    return 1 + len(extent_class.copy_pools)


def assess(
    row: ExtentRow,
    committed: int,
    extent_class: ClassRow,
    places: Mapping[int, VolumeFacts],
    moving_off: int | None = None,
) -> Standing:
    """The extent's standing: what it has, pool by pool, against one location in each pool on different nodes.

    A location counts when it is good, its volume is up or offsite, and for a full one it reaches `committed`. Those
    on a volume with an intent, and on the volume that this extent is `moving_off`, count until they are replaced.
    """
    pools = [_in_pool(row, committed, extent_class.primary_pool, True, places, moving_off)]
    pools += [_in_pool(row, committed, pool, False, places, moving_off) for pool in extent_class.copy_pools]
    if is_empty(committed):
        return Standing(committed, tuple(pools), satisfied=True, shared_node=False, settled=True)
    complete = all(pool.full for pool in pools)
    apart = complete and on_different_nodes([{places[each.volume].node for each in pool.full} for pool in pools])
    settled = all(pool.staying for pool in pools) and on_different_nodes(
        [{places[each.volume].node for each in pool.staying} for pool in pools]
    )
    spread = apart and spread_out([[places[each.volume] for each in pool.full] for pool in pools])
    return Standing(committed, tuple(pools), apart, complete and not apart, spread, settled)


def _in_pool(
    row: ExtentRow,
    committed: int,
    pool: int,
    primary: bool,
    places: Mapping[int, VolumeFacts],
    moving_off: int | None,
) -> PoolStanding:
    longest = 0
    full: list[Location] = []
    for location in row.locations:
        place = places.get(location.volume)
        if place is None or place.pool != pool or not place.counted or location.state != "good":
            continue
        claimed = reach(row, location, committed)
        longest = max(longest, claimed)
        if claimed >= committed:
            full.append(location)
    debt = 0 if is_empty(committed) else committed - max(longest, EXTENT_HEADER_BYTES)
    staying = tuple(each for each in full if not places[each.volume].leaving and each.volume != moving_off)
    return PoolStanding(pool, primary, tuple(full), longest, max(0, debt), staying)


def on_different_nodes(choices: Sequence[set[int]], taken: frozenset[int] = frozenset()) -> bool:
    """Whether one node can be picked from every set without picking one twice; sets are few and small."""
    if not choices:
        return True
    return any(on_different_nodes(choices[1:], taken | {node}) for node in choices[0] - taken)


def lacks_proof(row: ExtentRow, standing: Standing, now_ms: int, proof_life_ms: int) -> list[Location]:
    """Full, counted locations of a sealed extent that were never read back, or not within `proof_life_ms`.

    Those of an open extent are not asked for yet: its bytes are young, fsync'd by the writer, checked by the puller.
    """
    if row.open or is_empty(standing.committed):
        return []
    return [
        location
        for pool in standing.pools
        for location in pool.full
        if location.verified_ms == 0 or now_ms - location.verified_ms > proof_life_ms
    ]
