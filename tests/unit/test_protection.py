"""Which location may leave, and what counts as protected (invariant 5, A4, A16)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from copypool.protocol.api import LocationState
from copypool.protocol.internal import EXTENT_HEADER_BYTES
from copypool_coordinator.protection import (
    VolumeFacts,
    assess,
    lacks_proof,
    may_leave,
    on_different_nodes,
    reach,
    wanted_total,
)
from copypool_coordinator.rows import FORMAT, ClassRow, ExtentRow, Location

MIB = 1024 * 1024
CLASS = ClassRow(FORMAT, 1, 1, [2], "primary")


def place(volume: int, pool: int, *, node: int = 0, up: bool = True, offsite: bool = False) -> VolumeFacts:
    return VolumeFacts(volume, f"volume{volume}", pool, node or volume, up, up or offsite, up, destroyed=False)


def extent(*locations: Location, length: int = 40 * MIB, is_open: bool = False) -> ExtentRow:
    return ExtentRow(FORMAT, 1, is_open, 1, 1, 1, 0, list(locations), 0 if is_open else length)


def everything(_: Location) -> bool:
    return True


def test_the_longest_location_is_irreplaceable_although_two_others_are_good() -> None:
    """A4: 40 MiB on A, copied 30 MiB on B, rebuilt 30 MiB on C: A has bytes that nobody else has."""
    a = Location(1, 1, "good", 40 * MIB, 0)
    b, c = Location(2, 2, "good", 30 * MIB, 0), Location(3, 3, "good", 30 * MIB, 0)
    assert not may_leave(extent(a, b, c), a, 40 * MIB, everything, 1)
    assert may_leave(extent(a, b, c), b, 40 * MIB, everything, 2)


def test_a_location_on_a_node_that_is_away_saves_nobody() -> None:
    a, b = Location(1, 1, "good", 40 * MIB, 0), Location(2, 2, "good", 40 * MIB, 0)
    assert may_leave(extent(a, b), a, 40 * MIB, everything, 1)
    assert not may_leave(extent(a, b), a, 40 * MIB, lambda other: other.volume != 2, 1)


@pytest.mark.parametrize("state", ["copying", "damaged", "missing", "dropping"])
def test_only_good_locations_save(state: LocationState) -> None:
    a, b = Location(1, 1, "good", 40 * MIB, 0), Location(2, 2, state, 40 * MIB, 0)
    assert not may_leave(extent(a, b), a, 40 * MIB, everything, 1)


def test_survivors_must_have_been_read_back_since_the_decision() -> None:
    """A16: a green that is two weeks old saves nobody."""
    a, b = Location(1, 1, "good", 40 * MIB, 0), Location(2, 2, "good", 40 * MIB, 0, verified_ms=99)
    assert not may_leave(extent(a, b), a, 40 * MIB, everything, 1, verified_since_ms=100)
    assert may_leave(extent(a, replace(b, verified_ms=100)), a, 40 * MIB, everything, 1, verified_since_ms=100)


def test_the_writer_of_an_open_extent_never_leaves() -> None:
    writer = Location(1, 1, "good", 0, 0)
    others = [Location(volume, volume, "good", 40 * MIB, 0) for volume in (2, 3)]
    assert not may_leave(extent(writer, *others, is_open=True), writer, 40 * MIB, everything, 1)


def test_a_prefix_that_is_the_longest_left_stays_although_it_was_only_being_copied() -> None:
    partial, shorter = Location(2, 2, "copying", 30 * MIB, 0), Location(3, 3, "good", 20 * MIB, 0)
    assert not may_leave(extent(partial, shorter), partial, 40 * MIB, everything, 1)


def test_a_reserved_place_without_bytes_may_go() -> None:
    reserved = Location(2, 2, "copying", EXTENT_HEADER_BYTES, 0)
    assert may_leave(extent(reserved), reserved, 40 * MIB, everything, 2)


def test_two_generations_on_one_volume_are_one_place() -> None:
    old, new = Location(1, 1, "damaged", 40 * MIB, 0), Location(1, 3, "good", 40 * MIB, 0)
    copy = Location(2, 2, "good", 40 * MIB, 0)
    assert may_leave(extent(old, new, copy), old, 40 * MIB, everything, 2)
    twice = Location(1, 4, "good", 40 * MIB, 0)
    assert not may_leave(extent(old, new, twice), old, 40 * MIB, everything, 2)


STATES: list[LocationState] = ["copying", "good", "damaged", "missing", "dropping"]


@st.composite
def drops(draw: st.DrawFn) -> tuple[ExtentRow, int, set[int], list[int], int]:
    """An extent in any state, which volumes count, and an order in which somebody tries to drop its locations."""
    length = draw(st.integers(EXTENT_HEADER_BYTES + 1, EXTENT_HEADER_BYTES + 14))
    is_open = draw(st.booleans())
    count = draw(st.integers(1, 6))
    locations = [
        Location(
            draw(st.integers(1, 4)),
            generation,
            draw(st.sampled_from(STATES)),
            draw(st.sampled_from([0, length]) | st.integers(EXTENT_HEADER_BYTES, length)),
            0,
        )
        for generation in range(1, count + 1)
    ]
    counted = draw(st.sets(st.integers(1, 4)))
    order = draw(st.lists(st.integers(0, count - 1), max_size=12))
    return extent(*locations, length=length, is_open=is_open), length, counted, order, draw(st.integers(0, 3))


@given(drops())
def test_no_order_of_allowed_drops_takes_the_last_good_location_of_any_byte(
    case: tuple[ExtentRow, int, set[int], list[int], int],
) -> None:
    """Invariant 5, byte by byte: what a good location held before is held by a good, counted one after each drop."""
    row, committed, counted, order, wanted = case
    by_generation = {each.generation: each for each in row.locations}
    for index in order:
        location = by_generation[index + 1]
        if location not in row.locations:
            continue
        if not may_leave(row, location, committed, lambda each: each.volume in counted, wanted):
            continue
        claimed = reach(row, location, committed)
        row = replace(row, locations=[each for each in row.locations if each is not location])
        if claimed > EXTENT_HEADER_BYTES:
            holders = {
                each.volume
                for each in row.locations
                if each.state == "good" and each.volume in counted and reach(row, each, committed) >= claimed
            }
            assert len(holders) >= max(1, wanted)


def test_protected_means_one_full_location_in_each_pool_on_different_nodes() -> None:
    places = {1: place(1, 1), 2: place(2, 2), 3: place(3, 2, node=1)}
    full = extent(Location(1, 1, "good", 40 * MIB, 0), Location(2, 2, "good", 40 * MIB, 0))
    assert assess(full, 40 * MIB, CLASS, places).satisfied
    same_node = extent(Location(1, 1, "good", 40 * MIB, 0), Location(3, 2, "good", 40 * MIB, 0))
    standing = assess(same_node, 40 * MIB, CLASS, places)
    assert not standing.satisfied
    assert standing.shared_node


def test_debt_is_what_no_counted_location_of_the_pool_holds() -> None:
    places = {1: place(1, 1), 2: place(2, 2), 3: place(3, 2, up=False)}
    row = extent(
        Location(1, 1, "good", 0, 0), Location(2, 2, "good", 30 * MIB, 0), Location(3, 3, "good", 40 * MIB, 0),
        is_open=True,
    )  # fmt: skip
    standing = assess(row, 40 * MIB, CLASS, places)
    assert standing.copies[0].debt_bytes == 10 * MIB
    assert standing.primary.full[0].volume == 1, "the writer of an open extent holds all that is committed"


def test_offsite_counts_away_does_not() -> None:
    row = extent(Location(1, 1, "good", 40 * MIB, 0), Location(2, 2, "good", 40 * MIB, 0))
    offsite = {1: place(1, 1), 2: place(2, 2, up=False, offsite=True)}
    assert assess(row, 40 * MIB, CLASS, offsite).satisfied
    away = {1: place(1, 1), 2: place(2, 2, up=False)}
    assert not assess(row, 40 * MIB, CLASS, away).satisfied


def test_an_extent_without_groups_wants_nothing() -> None:
    standing = assess(extent(Location(1, 1, "good", 0, 0), is_open=True), EXTENT_HEADER_BYTES, CLASS, {1: place(1, 1)})
    assert standing.satisfied
    assert standing.copies[0].debt_bytes == 0


def test_green_must_be_young_and_read_back() -> None:
    places = {1: place(1, 1), 2: place(2, 2)}
    row = extent(
        Location(1, 1, "good", 40 * MIB, 0, verified_ms=1_000), Location(2, 2, "good", 40 * MIB, 0, verified_ms=0)
    )
    standing = assess(row, 40 * MIB, CLASS, places)
    assert [each.volume for each in lacks_proof(row, standing, 1_500, 500)] == [2]
    assert [each.volume for each in lacks_proof(row, standing, 1_501, 500)] == [1, 2]


@given(st.lists(st.sets(st.integers(0, 4), max_size=4), max_size=4))
def test_different_nodes_are_found_exactly_when_there_are_some(choices: list[set[int]]) -> None:
    def exists(rest: list[set[int]], taken: tuple[int, ...]) -> bool:
        return not rest or any(exists(rest[1:], (*taken, each)) for each in rest[0] if each not in taken)

    assert on_different_nodes(choices) == exists(choices, ())


def test_a_class_wants_one_more_than_it_has_copy_pools() -> None:
    assert wanted_total(CLASS) == 2
    assert wanted_total(ClassRow(FORMAT, 1, 1, [2, 3], "primary")) == 3
