"""What a simulated loss says, against doing it: the same cluster with the node really gone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from copypool.cli.drills import loss_text
from copypool.protocol.api import LocationState, SegmentRef
from copypool.protocol.drills import LossCounts, LossFile, LossForecast, LossReport
from copypool.protocol.internal import EXTENT_HEADER_BYTES
from copypool_coordinator import keys, losing
from copypool_coordinator.losing import Losing, Repaired, Room, measured_bytes_per_s, outlook_of, without
from copypool_coordinator.offpolicy import look
from copypool_coordinator.placement import FLOOR_BYTES
from copypool_coordinator.policy import Policy, places
from copypool_coordinator.rows import FORMAT, ExtentRow, Location, OpenRow, PoolRow
from kit.little_view import LittleView, at, report

MIB = 1 << 20
PRIMARY, COPY = 1, 2
POLICY = Policy()
NOW_MS = 1_000_000
LENGTH = 40 * MIB
OFFSET = EXTENT_HEADER_BYTES
WHOLE = SegmentRef(7, OFFSET, 30 * MIB)
SMALL = SegmentRef(7, OFFSET, 10_000)


def cluster(*, primary_nodes: int = 2, copy_nodes: int = 2, zones: int = 9, free: int = 1 << 40) -> LittleView:
    """Nodes 1.. with a primary volume each, then those with a copy volume; volume n is on node n, in zone n % zones."""
    little = LittleView()
    little.pool(PRIMARY, "primary", "primary")
    little.pool(COPY, "copy", "copy")
    little.extent_class(1, PRIMARY, [COPY])
    little.namespace("default", 1, 1)
    for number in range(1, primary_nodes + copy_nodes + 1):
        little.node(number, zone=f"z{number % zones}")
        little.volume(number, number, PRIMARY if number <= primary_nodes else COPY)
        little.beat(number, {number: report(number, free=free)})
    return little


def loss_of(
    little: LittleView,
    node: int,
    opened: dict[int, OpenRow] | None = None,
    *,
    extents: range = range(1_000),
    taken: dict[str, int] | None = None,
) -> LossForecast:
    """What `lose-node` says of a node, from rows alone; of these extents, when others have taken room before."""
    lost = frozenset(little.view.volumes_by_node[node])
    now = places(little.view)
    room = Room(little.view, little.heartbeats.loads(0.0), lost)
    for name, size in (taken or {}).items():
        room.fill(little.view.volumes[name].row.id, size)
    adding = Losing(little.view, now, lost, room, POLICY, NOW_MS)
    for extent, entry in little.view.extents.items():
        if extent in extents and lost & {each.volume for each in entry.row.locations}:
            adding.add(extent, entry.row, (opened or {}).get(extent))
    pools = {now[volume].pool for volume in adding.loss.rebuild}
    speed = losing.rate(little.view, pools, [])
    return losing.forecast(little.view, f"node{node}", now, lost, adding, room, speed, [], [], NOW_MS)


def passed(forecast: LossForecast) -> bool:
    return LossReport(forecast, LossCounts(), []).passed


# -- stories -------------------------------------------------------------------------------------
def test_what_is_whole_elsewhere_is_served_and_rebuilt() -> None:
    little = cluster()
    little.extent(7, [at(1, LENGTH), at(3, LENGTH)], length=LENGTH)
    found = loss_of(little, 1)
    assert (found.extents, found.served_extents, found.unavailable_bytes, found.lost_bytes) == (1, 1, 0, 0)
    assert (found.under_protected_extents, found.rebuild_extents, found.rebuild_bytes) == (1, 1, LENGTH)
    assert [(place.volume, place.extents) for place in found.places] == [("vol2", 1)]
    assert passed(found)


def test_what_is_nowhere_else_is_unavailable_lost_and_cannot_be_rebuilt() -> None:
    little = cluster()
    little.extent(7, [at(1, LENGTH), at(3, LENGTH // 2)], length=LENGTH)
    found = loss_of(little, 1)
    assert (found.served_extents, found.unavailable_extents, found.unavailable_bytes) == (0, 1, LENGTH // 2)
    assert found.lost_bytes == LENGTH // 2
    assert (found.rebuild_extents, found.blocked_extents) == (0, 1)
    assert found.blocked[0].why == f"its last {LENGTH // 2} bytes are gone"
    assert not passed(found)


def test_what_another_node_that_is_away_holds_is_unavailable_but_not_lost() -> None:
    little = cluster()
    little.extent(7, [at(1, LENGTH), at(3, LENGTH)], length=LENGTH)
    little.node_down(3)
    found = loss_of(little, 1)
    assert (found.unavailable_extents, found.unavailable_bytes, found.lost_bytes) == (1, LENGTH, 0)
    assert "cannot be reached now" in found.blocked[0].why


def test_what_cannot_be_read_already_is_told_apart() -> None:
    little = cluster(primary_nodes=3)
    little.extent(7, [at(1, LENGTH // 2), at(2, LENGTH)], length=LENGTH)
    little.node_down(2)
    found = loss_of(little, 1)
    assert (found.unavailable_before_extents, found.unavailable_extents) == (1, 0)


def test_damage_elsewhere_makes_it_doubtful() -> None:
    little = cluster()
    little.extent(7, [at(1, LENGTH), at(3, LENGTH, "damaged")], length=LENGTH)
    found = loss_of(little, 1)
    assert (found.doubtful_extents, found.served_extents, found.unavailable_extents) == (0, 0, 1), "block not known"
    location = Location(3, 1, "damaged", LENGTH, 0, bad_offset=MIB)
    leaving = Location(4, 2, "damaged", LENGTH, 0, bad_offset=2 * MIB)
    little.extent(7, [at(1, LENGTH), location, leaving], length=LENGTH)
    found = loss_of(little, 1)
    assert (found.doubtful_extents, found.unavailable_extents) == (1, 0)
    assert not passed(found)


def test_what_a_bad_block_keeps_from_being_rebuilt_is_counted_with_its_reason() -> None:
    little = cluster()
    for extent in (5, 6):
        little.extent(extent, [at(1, LENGTH), at(3, LENGTH)], length=LENGTH)
    bad = [Location(volume, 1, "damaged", LENGTH, 0, bad_offset=MIB) for volume in (1, 3)]
    little.extent(7, bad, length=LENGTH)
    found = loss_of(little, 1)
    assert (found.under_protected_extents, found.rebuild_extents, found.blocked_extents) == (3, 2, 1)
    assert "gone" in found.blocked[0].why or "is bad on" in found.blocked[0].why
    leaving = Location(1, 1, "dropping", LENGTH, 0, bad_offset=MIB, before="damaged")
    little.extent(7, [leaving, bad[1]], length=LENGTH)
    found = loss_of(little, 1)
    assert (found.under_protected_extents, found.rebuild_extents, found.blocked_extents) == (3, 2, 1)


def test_doubtful_files_are_not_listed_as_unreadable() -> None:
    little = cluster()
    little.extent(7, [at(1, LENGTH), at(3, LENGTH)], length=LENGTH)
    counts = LossCounts(unavailable_files=1, doubtful_files=2)
    files = [
        LossFile("default", "gone", 1, 10, "d", "unavailable", True, True),
        LossFile("default", "perhaps", 1, 10, "d", "doubtful", False, True),
    ]
    text = loss_text(LossReport(loss_of(little, 1), counts, files))
    unreadable, doubtful = text.split("known only when read (doubtful):")
    assert "default/gone" in unreadable.split("could not be read:")[1]
    assert "default/perhaps" not in unreadable
    assert "default/perhaps  10 bytes, already so\n  ... and more" in doubtful


def test_a_pass_that_counts_on_a_silent_node_names_it_in_the_first_line() -> None:
    """Its session lives, so what it holds counts as served; a moment later it may be away."""
    little = cluster()
    little.extent(7, [at(1, LENGTH), at(3, LENGTH)], length=LENGTH)
    found = loss_of(little, 1)
    assert passed(found)
    assert "silent" not in loss_text(LossReport(found, LossCounts(), []))
    found.silent = ["node3"]
    first = loss_text(LossReport(found, LossCounts(), [])).splitlines()[0]
    assert first.startswith("PASSED by the sessions that live now, node3 is silent")


def test_extents_beyond_the_room_that_is_left_are_not_rebuilt() -> None:
    little = cluster(free=FLOOR_BYTES + 2 * LENGTH + MIB)
    for extent in range(3):
        little.extent(extent, [at(1, LENGTH), at(3, LENGTH)], length=LENGTH)
    found = loss_of(little, 1)
    assert (found.rebuild_extents, found.blocked_extents, found.blocked_bytes) == (2, 1, LENGTH)
    assert "has room" in found.blocked[0].why
    assert not passed(found)


def test_no_other_node_in_the_pool() -> None:
    little = cluster(primary_nodes=1)
    little.extent(7, [at(1, LENGTH), at(2, LENGTH)], length=LENGTH)
    found = loss_of(little, 1)
    assert (found.served_extents, found.rebuild_extents, found.blocked_extents) == (1, 0, 1)
    assert not passed(found)


def test_a_place_too_close_to_another_copy_is_told() -> None:
    little = cluster(primary_nodes=2, copy_nodes=1, zones=1)
    little.put(keys.named(keys.POOL, "copy"), PoolRow(FORMAT, COPY, "copy", spread="zone"))
    little.extent(7, [at(1, LENGTH), at(3, LENGTH)], length=LENGTH)
    found = loss_of(little, 1)
    assert (found.rebuild_extents, found.crowded_extents) == (1, 1)
    assert not passed(found)


def test_a_location_that_is_half_there_only_has_to_grow() -> None:
    little = cluster()
    little.extent(7, [at(1, LENGTH), at(2, LENGTH // 4), at(3, LENGTH)], length=LENGTH)
    found = loss_of(little, 1)
    assert [(place.volume, place.bytes) for place in found.places] == [("vol2", LENGTH - LENGTH // 4)]


def test_an_open_extent_with_a_live_twin_loses_nothing() -> None:
    little = cluster()
    row = ExtentRow(
        FORMAT, 1, True, 1, 1, 1, 0, [at(1, 0), Location(3, 2, "good", 0, 0)], next_generation=3, twin=2, twin_node=3
    )
    little.put(keys.extent(7), row)
    opened = {7: OpenRow(FORMAT, LENGTH, 4, 9, LENGTH, 0, twin=2)}
    found = loss_of(little, 1, opened)
    assert (found.served_extents, found.unavailable_extents, found.rebuild_bytes) == (1, 0, LENGTH)


def test_pages_add_up_and_room_that_was_taken_stays_taken() -> None:
    little = cluster(primary_nodes=4, free=FLOOR_BYTES + 2 * LENGTH + MIB)
    for extent in range(10):
        copy = 5 + extent % 2
        length = LENGTH if extent % 4 else LENGTH // 2
        little.extent(extent, [at(1, LENGTH), at(copy, length)], length=LENGTH)
    whole = loss_of(little, 1)
    assert (whole.rebuild_extents, whole.blocked_extents, whole.unavailable_extents) == (6, 4, 3)
    paged = loss_of(little, 1, extents=range(5))
    taken = {place.volume: place.bytes for place in paged.places}
    paged.add(loss_of(little, 1, extents=range(5, 10), taken=taken))
    whole.places.sort(key=lambda place: place.volume)
    paged.places.sort(key=lambda place: place.volume)
    assert paged == whole


# -- against doing it ----------------------------------------------------------------------------
@st.composite
def extents(draw: st.DrawFn) -> list[Location]:
    """Locations of one sealed extent on any of five volumes, in any state and of any length."""
    found = []
    for volume in draw(st.lists(st.integers(1, 5), min_size=1, max_size=4, unique=True)):
        states: list[LocationState] = ["good", "good", "good", "copying", "damaged", "missing", "dropping"]
        length = draw(st.sampled_from([EXTENT_HEADER_BYTES, LENGTH // 2, LENGTH, LENGTH]))
        found.append(Location(volume, 1, draw(st.sampled_from(states)), length, length // MIB))
    return found


@settings(max_examples=300, deadline=None)
@given(st.lists(extents(), min_size=1, max_size=6), st.integers(1, 5))
def test_a_simulation_is_what_the_cluster_is_once_the_node_is_gone(rows: list[list[Location]], node: int) -> None:
    little = cluster(primary_nodes=3, copy_nodes=2)
    for extent, locations in enumerate(rows):
        little.extent(extent, locations, length=LENGTH)
    found = loss_of(little, node)
    concerned = [extent for extent, row in enumerate(rows) if any(each.volume == node for each in row)]
    foretold = [
        outlook_of(little.view.extents[extent].row, WHOLE, without(places(little.view), {node}, gone=False))
        for extent in concerned
    ]

    little.node_down(node)
    now = places(little.view)
    marks = [look(little.view, little.view.extents[extent].row, None, now, POLICY, NOW_MS) for extent in concerned]
    assert found.under_protected_extents == sum(mark is not None and mark.under_protected for mark in marks)
    assert foretold == [outlook_of(little.view.extents[extent].row, WHOLE, now) for extent in concerned]
    told = found.served_extents + found.doubtful_extents + found.unavailable_extents + found.unavailable_before_extents
    assert told == found.extents == len(concerned)
    assert found.lost_bytes <= found.unavailable_bytes


def test_a_segment_is_judged_by_what_a_read_of_it_would_meet() -> None:
    little = cluster()
    row = little.extent(7, [at(1, LENGTH), at(3, MIB, "copying"), at(4, LENGTH, "missing")], length=LENGTH)
    away = without(places(little.view), {1}, gone=False)
    gone = without(places(little.view), {1}, gone=True)
    assert outlook_of(row, SMALL, away) == "readable", "the verified prefix of a copy under way"
    assert outlook_of(row, WHOLE, away) == "away"
    assert outlook_of(row, WHOLE, gone) == "lost"
    assert losing.worst(["readable", "away", "doubtful"]) == "away"
    assert losing.worst([]) == "readable"


# -- how fast ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("repairs", "expected"),
    [
        ([], None),
        ([Repaired(0, 1_000, 10)], 10.0),
        ([Repaired(0, 1_000, 10), Repaired(0, 1_000, 10)], 20.0),
        ([Repaired(0, 1_000, 10), Repaired(500, 2_000, 10)], 10.0),
        ([Repaired(0, 1_000, 10), Repaired(9_000, 10_000, 10)], 10.0),
    ],
    ids=["none", "one", "beside each other", "overlapping", "with a pause"],
)
def test_the_rate_is_measured_while_something_is_rebuilt(repairs: list[Repaired], expected: float | None) -> None:
    assert measured_bytes_per_s(repairs) == expected


def test_a_budget_caps_what_was_measured_and_stands_in_for_it() -> None:
    little = cluster()
    fast = [Repaired(0, 1_000, 100)]
    assert losing.rate(little.view, {PRIMARY}, fast) == (100.0, "measured: 1 locations were made again lately")
    assert losing.rate(little.view, {PRIMARY}, [])[0] is None
    little.put(keys.named(keys.POOL, "primary"), PoolRow(FORMAT, PRIMARY, "primary", budget_bytes_s=30))
    assert losing.rate(little.view, {PRIMARY}, fast) == (30.0, "the budget of primary; past repairs were faster")
    assert losing.rate(little.view, {PRIMARY}, [])[0] == 30.0
    assert losing.rate(little.view, {PRIMARY, COPY}, [])[0] is None, "one of the pools has no budget"
