"""What an extent's bytes can be made from: a whole location, blocks of several, one that is away, or nothing. Pure.

Previews, obstacles and status ask the same question here, so that none of them promises what the others deny. It is
answered from what nodes have found: a location is a verified prefix; a damaged one has every block but the bad ones,
of which the first is known. Whether several damaged locations together have every block is known only when it is tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from copypool.protocol.api import LocationState
from copypool_coordinator.controllers.filling import is_source
from copypool_coordinator.locations import before_drop
from copypool_coordinator.protection import VolumeFacts, reach
from copypool_coordinator.rows import ExtentRow, Location

Outlook = Literal["whole", "merge", "away", "lost"]
RangeOutlook = Literal["readable", "doubtful", "away", "lost"]

#: Best first, as sources of a pull: a damaged or leaving location is asked only for what no other one has.
_ORDER = {"good": 0, "copying": 1, "dropping": 2, "damaged": 3}


class Prospect(NamedTuple):
    """What can be expected of one extent."""

    outlook: Outlook
    volumes: tuple[int, ...]  #: whole: read first; merge: read together; away: waited for; lost: what is left
    why: str  #: a sentence unless it is whole
    damaged: bool = False  #: lost, unless a location is found better than it was marked


def prospect(row: ExtentRow, committed: int, places: Mapping[int, VolumeFacts]) -> Prospect:
    """Where all of the extent's committed bytes can come from, at best.

    A volume that was given up (`destroyed`) or left the catalog gives nothing.
    """
    here: list[Location] = []
    away: list[Location] = []
    for location in row.locations:
        place = places.get(location.volume)
        if place is None or place.destroyed or not is_source(location) or not reach(row, location, committed):
            continue
        (here if place.up else away).append(location)
    here.sort(key=lambda each: (_ORDER[each.state], -reach(row, each, committed), each.volume))
    volumes = tuple(dict.fromkeys(each.volume for each in here))
    for location in here:
        if location.state in ("good", "copying") and reach(row, location, committed) >= committed:
            return Prospect("whole", (location.volume,), "")
    names = _names(places, here)
    hole = _hole(row, here, committed)
    if hole is None:
        whole = [each for each in here if _state(each) == "good"]
        if whole and _hole(row, whole[:1], committed) is None:
            return Prospect("merge", volumes, f"only {_names(places, whole[:1])} has all of it, and is on its way out")
        return Prospect("merge", volumes, f"no whole location: only by merging good blocks of {names}")
    if away and _hole(row, [*here, *away], committed) is None:
        waited = tuple(dict.fromkeys(each.volume for each in away))
        what = "all of it" if not here else "what the others lack"
        return Prospect("away", waited, f"only {_names(places, away)} may hold {what}, and cannot be reached now")
    best = max((reach(row, each, committed) for each in here), default=0)
    if not here:
        return Prospect("lost", (), "no location holds its bytes any more")
    if best < committed:
        return Prospect("lost", volumes, f"its last {committed - best} bytes are gone")
    at = f"the block at offset {hole}" if hole >= 0 else "a block"
    bad = _names(places, [each for each in here if reach(row, each, committed) > hole])
    return Prospect("lost", volumes, f"{at} is bad on {bad}, and no other location has it", damaged=True)


def bad_everywhere(row: ExtentRow, committed: int, places: Mapping[int, VolumeFacts]) -> int | None:
    """Extent offset of a block that no location has, even if every node came back; -1: some block; None: not known."""
    left = [
        each
        for each in row.locations
        if is_source(each) and (place := places.get(each.volume)) is not None and not place.destroyed
    ]
    return _hole(row, left, committed)


def outlook_of_range(
    row: ExtentRow, start: int, end: int, committed: int, places: Mapping[int, VolumeFacts]
) -> tuple[RangeOutlook, str]:
    """What a read of extent bytes [start, end) meets, and why; `end` at most `committed`.

    `doubtful`: they lie behind the first bad block of every location that reaches them, so only reading tells.
    """
    left = [
        each
        for each in row.locations
        if is_source(each) and (place := places.get(each.volume)) is not None and not place.destroyed
    ]
    sure = [each for each in left if _surely_holds(row, each, end, committed)]
    if any(places[each.volume].up for each in sure):
        return "readable", ""
    here = [each for each in left if places[each.volume].up]
    lacking = _hole(row, here, committed, start, end) is not None
    if sure and lacking:
        return "away", f"only {_names(places, sure)} has it, and cannot be reached now"
    hole = _hole(row, left, committed, start, end)
    if hole is None:
        return "doubtful", f"damaged on {_names(places, left)}: readable if every block is good on one of them"
    if not left:
        return "lost", "no location is left"
    if hole == end - 1 and max(reach(row, each, committed) for each in left) < end:
        return "lost", "no location reaches so far"
    bad = _names(places, [each for each in left if reach(row, each, committed) > hole])
    if hole < 0:
        return "doubtful", f"a block of its extent is bad on {bad}, where alone it is"
    return "lost", f"the block at offset {hole} of its extent is bad on {bad}, and no other location has it"


def _surely_holds(row: ExtentRow, location: Location, end: int, committed: int) -> bool:
    """Whether all up to `end` was verified there and nothing was found bad since."""
    if reach(row, location, committed) < end:
        return False
    return _state(location) != "damaged" or location.bad_offset >= end


def _state(location: Location) -> LocationState:
    """Its state; of one on its way out the one before."""
    return before_drop(location) if location.state == "dropping" else location.state


def _hole(
    row: ExtentRow, sources: Sequence[Location], committed: int, start: int = 0, end: int | None = None
) -> int | None:
    """Where in [start, end) these locations together certainly lack something; None: they may have all of it.

    -1: they do, nobody knows where. What is behind the first bad block of a location is not known, so only the first
    ones and the end are looked at. `end`: None for `committed`.
    """
    end = committed if end is None else end
    if not sources:
        return start
    if not any(_may_hold(row, each, end - 1, committed) for each in sources):
        return end - 1
    for location in sources:
        bad = location.bad_offset
        if _state(location) == "damaged" and bad < 0 and len(sources) == 1:
            return -1
        if start <= bad < end and not any(_may_hold(row, each, bad, committed) for each in sources):
            return bad
    return None


def _may_hold(row: ExtentRow, location: Location, offset: int, committed: int) -> bool:
    return offset < reach(row, location, committed) and location.bad_offset != offset


def _names(places: Mapping[int, VolumeFacts], locations: Sequence[Location]) -> str:
    names = dict.fromkeys(places[each.volume].name for each in locations)
    return ", ".join(names)
