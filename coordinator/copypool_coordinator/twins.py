"""Twins: the second location that gets every group of an open extent (ack rule `copy`). Pure: rows in, new rows out.

A live twin claims what the writer claims: every commit while it lives carries its claim, and the transaction compares
its session. So its length stands in `o/` alone, like the writer's. It stops being one in two ways, both for good:

- a commit without its claim: it becomes an ordinary copy of what was committed before that group (`ended`);
- the seal, whoever seals: it holds everything (`sealed` below).

Whatever else would change a live twin's location (damage, a file that is gone, an access mode) seals the extent first,
as it does for the writer's location; so a commit needs to compare no more than sessions and `o/`.
"""

from __future__ import annotations

from msgspec.structs import replace

from copypool_coordinator.rows import ExtentRow, Location, OpenRow

FIRST_GENERATION = 2  #: of a twin: the extent is born with it, and generation 1 is the writer's


def live(row: ExtentRow) -> Location | None:
    """The location that gets every group together with the writer; None when there is none (any more)."""
    if not row.open or not row.twin:
        return None
    return next((each for each in row.locations if each.generation == row.twin), None)


def is_live(row: ExtentRow, location: Location) -> bool:
    """Whether this location is the live twin."""
    return row.open and row.twin != 0 and location.generation == row.twin


def added(row: ExtentRow, volume: int, node: int, now_ms: int) -> ExtentRow:
    """The row of a new extent with a twin on this volume."""
    location = Location(volume, FIRST_GENERATION, "good", 0, 0, 0, now_ms)
    return replace(
        row,
        locations=[*row.locations, location],
        next_generation=FIRST_GENERATION + 1,
        twin=FIRST_GENERATION,
        twin_node=node,
    )


def ended(row: ExtentRow, at: OpenRow, now_ms: int) -> ExtentRow:
    """The row once the live twin, if there is one, is an ordinary copy of what `at` says was committed.

    A twin that was never claimed may not even have a file: it claims nothing, and a pull begins it.
    """
    twin = live(row)
    if twin is None:
        return row
    if at.group < 0:
        copy = replace(twin, state="copying", length=0, records=0, changed_ms=now_ms)
    else:
        copy = replace(twin, length=at.length, records=at.records, changed_ms=now_ms)
    return replace(
        row, locations=[copy if each is twin else each for each in row.locations], twin=0, twin_node=0
    )  # fmt: skip


def as_sampled(row: ExtentRow, sample: OpenRow | None) -> ExtentRow:
    """The row as far as the commit row bears it out: memory may not know yet that the twin has ended.

    Then the location counts for what the row says, which is nothing, until memory knows better.
    """
    if sample is None or not row.open or not row.twin or sample.twin == row.twin:
        return row
    return replace(row, twin=0, twin_node=0)
