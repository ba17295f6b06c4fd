"""Proof of protection against counting every single byte (invariant 8)."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from copypool.protocol.api import LocationState
from copypool.protocol.insight import Coverage
from copypool.protocol.internal import EXTENT_HEADER_BYTES
from copypool_coordinator.proof import Domain, Held, Item, Piece, Tally, pieces_of_extent
from copypool_coordinator.protection import VolumeFacts, on_different_nodes
from copypool_coordinator.rows import FORMAT, ClassRow, ExtentRow, Location, OpenRow

NOW_MS, LIFE_MS = 100_000, 50_000
RECORD = 10  #: bytes of each record of these extents
PRIMARY, COPY, OTHER = 1, 2, 3

#: Volume v is on node v % 4, in pool 1 + v % 3; node n is on host n % 3, in zone n % 2.
VOLUMES = range(1, 9)


def node_of(volume: int) -> int:
    return volume % 4


def pool_of(volume: int) -> int:
    return 1 + volume % 3


def domain_of(node: int) -> Domain:
    return Domain(f"host{node % 3}", f"zone{node % 2}")


DOMAINS = {node: domain_of(node) for node in range(4)}


class World(NamedTuple):
    row: ExtentRow
    opened: OpenRow | None
    places: dict[int, VolumeFacts]
    wanted: list[int]


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """One extent of a few records, open or sealed, with any locations on any volumes in any state."""
    records = draw(st.integers(0, 6))
    committed = EXTENT_HEADER_BYTES + records * RECORD
    is_open = draw(st.booleans())
    locations = []
    for volume in draw(st.lists(st.sampled_from(VOLUMES), max_size=5, unique=True)):
        held = draw(st.integers(0, records))
        states: list[LocationState] = ["copying", "good", "good", "good", "damaged", "missing", "dropping"]
        verified_ms = draw(st.sampled_from([0, NOW_MS - LIFE_MS - 1, NOW_MS - LIFE_MS, NOW_MS]))
        length = EXTENT_HEADER_BYTES + held * RECORD
        locations.append(Location(volume, 1, draw(st.sampled_from(states)), length, held, verified_ms))
    writer = locations[0].volume if locations and is_open else 0
    row = ExtentRow(FORMAT, 1, is_open, node_of(writer), writer, 1, 0, locations)
    opened = OpenRow(FORMAT, committed, 0, records, records, 0) if is_open else None
    if not is_open:
        row.length, row.records = committed, records
    places = {}
    for volume in VOLUMES:
        counted = draw(st.booleans()) or draw(st.booleans())
        places[volume] = VolumeFacts(
            volume, f"v{volume}", pool_of(volume), node_of(volume), counted, counted, False, False
        )
    return World(
        row, opened, places, [PRIMARY, *draw(st.lists(st.sampled_from([COPY, OTHER]), max_size=2, unique=True))]
    )


def counted_of(world: World) -> Coverage:
    extent_class = ClassRow(FORMAT, 1, world.wanted[0], world.wanted[1:], "primary")
    tally = Tally(NOW_MS, LIFE_MS, 5)
    for item in pieces_of_extent("extent 1", world.row, world.opened, extent_class, world.places, DOMAINS):
        tally.add(item)
    return tally.result(lambda pool: (f"p{pool}", "primary" if pool == PRIMARY else "copy"))


@settings(max_examples=300, deadline=None)
@given(worlds())
def test_counting_pieces_is_counting_every_byte(world: World) -> None:
    row = world.row
    committed = world.opened.length if world.opened is not None else row.length
    at_policy = proven = young = 0
    copies: Counter[int] = Counter()
    nodes: Counter[int] = Counter()
    hosts: Counter[int] = Counter()
    zones: Counter[int] = Counter()
    in_pool: Counter[int] = Counter()
    missing: Counter[int] = Counter()
    for byte in range(EXTENT_HEADER_BYTES, committed):
        holders = [
            each
            for each in row.locations
            if each.state == "good"
            and world.places[each.volume].counted
            and (byte < each.length or (row.open and each.volume == row.writer_volume))
        ]
        copies[len(holders)] += 1
        nodes[len({node_of(each.volume) for each in holders})] += 1
        hosts[len({domain_of(node_of(each.volume)).host for each in holders})] += 1
        zones[len({domain_of(node_of(each.volume)).zone for each in holders})] += 1
        for pool in {pool_of(each.volume) for each in holders}:
            in_pool[pool] += 1
        missing.update(pool for pool in world.wanted if all(pool_of(each.volume) != pool for each in holders))
        met = on_different_nodes(
            [{node_of(each.volume) for each in holders if pool_of(each.volume) == pool} for pool in world.wanted]
        )
        read_back = all(
            not row.open and each.verified_ms and NOW_MS - each.verified_ms <= LIFE_MS
            for each in holders
            if pool_of(each.volume) in world.wanted
        )
        at_policy += met
        proven += met and read_back
        young += met and row.open
    found = counted_of(world)
    assert found.bytes == committed - EXTENT_HEADER_BYTES
    assert (found.at_policy_bytes, found.proven_bytes, found.young_bytes) == (at_policy, proven, young)
    for level, expected in (("copies", copies), ("nodes", nodes), ("hosts", hosts), ("zones", zones)):
        assert {each.count: each.bytes for each in getattr(found, level) if each.bytes} == dict(expected)
        assert sum(each.files for each in getattr(found, level)) == found.files
    assert {each.pool: each.bytes for each in found.pools if each.bytes} == {f"p{p}": n for p, n in in_pool.items()}
    assert {e.pool: e.missing_bytes for e in found.pools if e.missing_bytes} == {f"p{p}": n for p, n in missing.items()}
    # Every record is RECORD bytes here and locations end between records: files are bytes / RECORD.
    assert found.files * RECORD == found.bytes
    assert {each.count: each.files * RECORD for each in found.copies if each.bytes} == dict(copies)
    assert found.proven_files * RECORD == found.proven_bytes
    assert found.proven == (proven == found.bytes)
    assert found.young_files * RECORD == found.young_bytes
    assert found.sound == (proven + young == found.bytes)
    assert bool(found.problems) == (not found.sound)


@given(st.lists(worlds(), max_size=4))
@settings(max_examples=50, deadline=None)
def test_pages_add_up_to_the_whole(pages: list[World]) -> None:
    total = Coverage()
    for page in pages:
        total.add(counted_of(page))
    assert total.bytes == sum(counted_of(page).bytes for page in pages)
    assert sum(each.bytes for each in total.copies) == total.bytes
    assert total.proven == all(counted_of(page).proven for page in pages)
    assert total.sound == all(counted_of(page).sound for page in pages)


def held(volume: int, verified_ms: int = NOW_MS) -> Held:
    node = node_of(volume)
    return Held(volume, pool_of(volume), node, domain_of(node), verified_ms, False)


def test_a_file_is_as_well_covered_as_its_worst_segment() -> None:
    both, one = (held(3), held(4)), (held(3),)
    tally = Tally(NOW_MS, LIFE_MS, 5)
    tally.add(Item("a/b", 1, (Piece(100, both, (PRIMARY, COPY)), Piece(7, one, (PRIMARY, COPY)))))
    found = tally.result(lambda pool: (str(pool), "primary"))
    assert [(each.count, each.files, each.bytes) for each in found.copies] == [(1, 1, 7), (2, 0, 100)]
    assert (found.at_policy_files, found.at_policy_bytes, found.proven) == (0, 100, False)
    assert found.problems[0].what == "a/b"
    assert "no good location in pool '2'" in found.problems[0].why


def test_old_proof_is_no_proof() -> None:
    tally = Tally(NOW_MS, LIFE_MS, 5)
    tally.add(Item("a", 1, (Piece(1, (held(3), held(4, NOW_MS - LIFE_MS - 1)), (PRIMARY, COPY)),)))
    found = tally.result(lambda pool: (str(pool), "primary"))
    assert (found.at_policy_files, found.proven_files, found.proven) == (1, 0, False)
