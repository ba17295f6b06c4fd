"""Failure domains: whether an extent's locations in different pools are apart, and which one should move. Pure.

Two locations in different pools must not share a node nor a host, nor a zone when one of the two pools is spread over
zones. Where that cannot be had, a location in the same domain is better than none: it is made, it counts as a copy,
and the extent is under-protected until a volume in another domain is there; then the location moves (B9).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from copypool_coordinator.rows import ExtentRow

if TYPE_CHECKING:
    from copypool_coordinator.protection import PoolStanding, Standing, VolumeFacts


def are_apart(one: VolumeFacts, other: VolumeFacts) -> bool:
    """Whether no failure domain that matters to their pools holds both. A domain without a name holds nothing else."""
    if one.node == other.node or (one.host and one.host == other.host):
        return False
    zones = "zone" in (one.spread, other.spread)
    return not (zones and one.zone and one.zone == other.zone)


def spread_out(choices: Sequence[Sequence[VolumeFacts]], taken: Sequence[VolumeFacts] = ()) -> bool:
    """Whether one volume can be picked from every sequence so that all are apart. They are few and short."""
    if not choices:
        return True
    return any(
        spread_out(choices[1:], (*taken, volume))
        for volume in choices[0]
        if all(are_apart(volume, other) for other in taken)
    )


def crowded(
    row: ExtentRow,
    standing: Standing,
    places: Mapping[int, VolumeFacts],
    choose: Callable[[ExtentRow, int], int | None],
) -> int | None:
    """The volume that a sealed extent should go off, because another volume of its pool would set it apart.

    None when the extent is spread out, some pool lacks it altogether, or no pool has a place that would be better.
    Copies move rather than primaries.
    """
    if row.open or standing.spread or not all(pool.full for pool in standing.pools):
        return None
    for pool in (*standing.copies, standing.primary):
        others = [places[each.volume] for other in standing.pools if other.pool != pool.pool for each in other.full]
        if not all(_apart_from(places[each.volume], others) for each in pool.full) and _better(
            row, pool, others, places, choose
        ):
            return pool.full[0].volume
    return None


def _better(
    row: ExtentRow,
    pool: PoolStanding,
    others: Sequence[VolumeFacts],
    places: Mapping[int, VolumeFacts],
    choose: Callable[[ExtentRow, int], int | None],
) -> bool:
    """Whether the pool has a place apart from all others: one that is being filled, or one that could be chosen."""
    there = [
        place for place in places.values() if place.pool == pool.pool and place.writable and _apart_from(place, others)
    ]
    if not there:
        return False
    held = {each.volume for each in row.locations if each.state in ("copying", "good")}
    if any(place.volume in held for place in there):
        return True
    volume = choose(row, pool.pool)
    return volume is not None and volume in places and _apart_from(places[volume], others)


def _apart_from(place: VolumeFacts, others: Sequence[VolumeFacts]) -> bool:
    return all(are_apart(place, other) for other in others)
