"""Where a segment is read from: the order, and what is never left out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from copypool.protocol.api import SegmentRef
from copypool.protocol.stripes import BLOCK_BYTES, FULL_STRIDE_BYTES, STRIPE_BYTES, prelude_bytes, stored_bytes
from copypool_coordinator import routing
from copypool_coordinator.rows import ExtentRow
from kit.little_view import LittleView, at, report

PRIMARY, COPY = 1, 2
SEGMENT = SegmentRef(7, 4096, 1000)
END = routing.end_of(SEGMENT)


@pytest.fixture
def little() -> LittleView:
    """Nodes 1, 2 with primary volumes 11, 12; nodes 3, 4 with copy volumes 13, 14; zones a, b, a, b."""
    little = LittleView()
    little.pool(PRIMARY, "primary", "primary")
    little.pool(COPY, "copy", "copy")
    for node, pool, zone in ((1, PRIMARY, "a"), (2, PRIMARY, "b"), (3, COPY, "a"), (4, COPY, "b")):
        little.node(node, zone=zone)
        little.volume(10 + node, node, pool)
    return little


def order(little: LittleView, extent: ExtentRow, **options: object) -> list[str]:
    loads = little.heartbeats.loads(0.0)
    places = routing.sources(routing.rank(little.view, loads, extent, **options), SEGMENT)  # type: ignore[arg-type]
    return [place.volume for place in places]


def test_primary_stands_before_copy_when_nothing_else_differs(little: LittleView) -> None:
    extent = little.extent(7, [at(13, END), at(11, END)], length=END)
    assert order(little, extent) == ["vol11", "vol13"]


def test_a_copy_in_the_readers_zone_stands_before_a_far_primary(little: LittleView) -> None:
    extent = little.extent(7, [at(11, END), at(14, END)], length=END)
    assert order(little, extent, zone="b") == ["vol14", "vol11"]
    assert order(little, extent, zone="nowhere") == ["vol11", "vol14"]


def test_a_short_queue_stands_before_the_primary_pool(little: LittleView) -> None:
    extent = little.extent(7, [at(11, END), at(13, END)], length=END)
    little.beat(1, {11: report(11, queued=64 * 1024 * 1024)})
    little.beat(3, {13: report(13)})
    assert order(little, extent) == ["vol13", "vol11"]


def test_a_node_that_is_away_sorts_last_and_is_never_left_out(little: LittleView) -> None:
    extent = little.extent(7, [at(11, END), at(13, END)], length=END)
    little.node_down(1)
    assert order(little, extent) == ["vol13", "vol11"]
    little.node_down(3)
    assert order(little, extent) == ["vol11", "vol13"]  # A12: every session lost, every disk healthy


def test_damaged_sorts_behind_good_ones_that_are_away_and_is_never_left_out(little: LittleView) -> None:
    extent = little.extent(7, [at(11, END, "damaged"), at(12, END, "missing"), at(13, END)], length=END)
    little.node_down(3)
    assert order(little, extent) == ["vol13", "vol11", "vol12"]


def test_a_copying_location_that_reaches_far_enough_stands_before_a_good_one_that_is_away(little: LittleView) -> None:
    extent = little.extent(7, [at(11, END), at(13, END, "copying")], length=END + 10)
    assert order(little, extent) == ["vol11", "vol13"]
    little.node_down(1)
    assert order(little, extent) == ["vol13", "vol11"]


def test_a_location_one_byte_too_short_stands_at_the_end(little: LittleView) -> None:
    extent = little.extent(7, [at(11, END - 1), at(13, END)], length=END)
    little.node_down(3)
    assert order(little, extent) == ["vol13", "vol11"]


def test_nodes_that_just_failed_the_caller_stand_behind_the_others_that_can_be_reached(little: LittleView) -> None:
    extent = little.extent(7, [at(11, END), at(12, END), at(13, END)], length=END)
    little.node_down(3)
    assert order(little, extent, avoid_nodes=[1]) == ["vol12", "vol11", "vol13"]
    assert order(little, extent, suspects=frozenset([2])) == ["vol11", "vol12", "vol13"]


def test_offsite_volumes_are_never_read(little: LittleView) -> None:
    little.volume(14, 4, COPY, "offsite")
    extent = little.extent(7, [at(14, END)], length=END)
    assert order(little, extent) == []


@pytest.mark.parametrize("access", ["unavailable", "destroyed"])
def test_volumes_that_were_given_up_are_still_a_last_resort(little: LittleView, access: str) -> None:
    little.volume(11, 1, PRIMARY, access)  # type: ignore[arg-type]
    extent = little.extent(7, [at(11, END), at(13, END)], length=END)
    assert order(little, extent) == ["vol13", "vol11"]


def test_the_writer_of_an_open_extent_reaches_everything_that_was_committed(little: LittleView) -> None:
    extent = little.extent(7, [at(11, 0), at(13, 4096)], writer=(1, 11))
    assert routing.knows_enough(extent, SEGMENT)
    assert order(little, extent) == ["vol11", "vol13"]


def test_facts_are_asked_for_when_memory_does_not_know_the_extent_or_its_length(little: LittleView) -> None:
    assert not routing.knows_enough(None, SEGMENT)
    sealed = little.extent(7, [at(13, END - 1)], length=END)
    assert not routing.knows_enough(sealed, SEGMENT)
    assert routing.knows_enough(little.extent(7, [at(13, END)], length=END), SEGMENT)


@given(
    states=st.lists(
        st.tuples(
            st.sampled_from(["copying", "good", "damaged", "missing", "dropping"]),
            st.integers(0, 2 * END),
            st.booleans(),
        ),
        max_size=4,
    ),
    avoid=st.sets(st.integers(1, 4)),
)
def test_every_mounted_location_is_in_the_answer_exactly_once(
    states: list[tuple[str, int, bool]], avoid: set[int]
) -> None:
    little = LittleView()
    little.pool(PRIMARY, "primary", "primary")
    locations = []
    for index, (state, length, up) in enumerate(states):
        node = index + 1
        little.node(node, up=up)
        little.volume(10 + node, node, PRIMARY)
        locations.append(at(10 + node, length, state))  # type: ignore[arg-type]
    extent = little.extent(7, locations, length=END)
    assert sorted(order(little, extent, avoid_nodes=avoid)) == sorted(f"vol{each.volume}" for each in locations)


@given(length=st.integers(1, 3 * STRIPE_BYTES), cut=st.integers(0, 4 * FULL_STRIDE_BYTES))
def test_held_bytes_counts_payload_in_front_of_the_cut(length: int, cut: int) -> None:
    segment = SegmentRef(1, 4096, length)
    held = routing.held_bytes(segment, cut)
    assert 0 <= held <= length
    # What is held is stored in front of the cut, and one byte more would not be.
    assert held == 0 or _place_of(held - 1, length) < cut
    assert held == length or _place_of(held, length) >= cut


def _place_of(position: int, length: int) -> int:
    """File offset of one payload byte."""
    stripe, inside = divmod(position, STRIPE_BYTES)
    payload = min(STRIPE_BYTES, length - stripe * STRIPE_BYTES)
    return 4096 + stripe * FULL_STRIDE_BYTES + prelude_bytes(payload) + inside


def test_held_bytes_at_the_edges() -> None:
    segment = SegmentRef(1, 4096, BLOCK_BYTES + 1)
    assert routing.held_bytes(segment, 4096) == 0
    assert routing.held_bytes(segment, 4096 + stored_bytes(BLOCK_BYTES + 1)) == BLOCK_BYTES + 1
    assert routing.held_bytes(segment, 4096 + stored_bytes(BLOCK_BYTES + 1) - 1) == BLOCK_BYTES
