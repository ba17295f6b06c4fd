"""Where bytes are put: what is never chosen, what is preferred, and that a seed decides the rest."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from copypool.protocol.errors import NoSpace, Unavailable
from copypool_coordinator import keys
from copypool_coordinator.choosing import chooser, within_limits
from copypool_coordinator.heartbeats import FRESH_S, PROBE_MAX_AGE_MS
from copypool_coordinator.orders import Orders
from copypool_coordinator.placement import FLOOR_BYTES, choose_destination, choose_leases
from copypool_coordinator.rows import ClassRow
from kit.little_view import GIB, LittleView, at, report

PRIMARY, COPY = 1, 2
CLASS = ClassRow(1, 1, PRIMARY, [COPY], "primary")


def cluster(volumes: dict[int, tuple[int, int]], zones: dict[int, tuple[str, str]] | None = None) -> LittleView:
    """Volumes {id: (node, pool)}; zones {node: (zone, host)}."""
    little = LittleView()
    little.pool(PRIMARY, "primary", "primary")
    little.pool(COPY, "copy", "copy")
    for node in {node for node, _ in volumes.values()}:
        zone, host = (zones or {}).get(node, ("z", f"host{node}"))
        little.node(node, zone=zone, host=host)
    for volume, (node, pool) in volumes.items():
        little.volume(volume, node, pool)
    for node in {node for node, _ in volumes.values()}:
        little.beat(node, {volume: report(volume) for volume, (owner, _) in volumes.items() if owner == node})
    return little


def leases(little: LittleView, seed: int = 0, now_s: float = 0.0, **options: object) -> list[int]:
    defaults: dict[str, object] = {"count": 8, "size_bytes": 0}
    return choose_leases(
        little.view,
        little.heartbeats.loads(now_s),
        CLASS,
        seed=seed,
        **(defaults | options),  # type: ignore[arg-type]
    )


TWO_NODES = {11: (1, PRIMARY), 12: (1, PRIMARY), 21: (2, PRIMARY), 31: (3, COPY)}


def test_leases_are_in_the_primary_pool_and_on_different_nodes_first() -> None:
    for seed in range(20):
        chosen = leases(cluster(TWO_NODES), seed)
        assert sorted(chosen) == [11, 12, 21]
        assert {chosen[0] // 10, chosen[1] // 10} == {1, 2}


def test_nodes_to_avoid_come_last_but_come() -> None:
    for seed in range(20):
        assert leases(cluster(TWO_NODES), seed, avoid_nodes=[2])[-1] == 21
        assert leases(cluster(TWO_NODES), seed, avoid_nodes=[1])[0] == 21


def test_the_same_seed_chooses_the_same() -> None:
    little = cluster(TWO_NODES)
    assert leases(little, 5) == leases(little, 5)


def test_a_full_volume_is_not_chosen_and_a_full_pool_is_no_space() -> None:
    little = cluster({11: (1, PRIMARY), 21: (2, PRIMARY)})
    little.beat(1, {11: report(11, free=FLOOR_BYTES + 999)})
    assert leases(little, size_bytes=1000) == [21]
    little.beat(2, {21: report(21, free=0)})
    with pytest.raises(NoSpace) as full:
        leases(little, size_bytes=1000)
    assert "away" not in full.value.message
    # A full volume can still delete.
    assert sorted(leases(little, for_delete=True)) == [11, 21]


def test_no_room_names_the_nodes_that_are_away() -> None:
    little = cluster({11: (1, PRIMARY), 21: (2, PRIMARY), 31: (3, COPY)})
    little.beat(1, {11: report(11, free=0)})
    little.node_down(2)
    little.node_down(3)
    with pytest.raises(NoSpace, match=r"room for 1000 bytes \(node2 away\)"):
        leases(little, size_bytes=1000)
    little.node_down(1)
    with pytest.raises(Unavailable, match=r"\(node1, node2 away\)"):
        leases(little, size_bytes=1000)


def test_volumes_that_take_no_bytes_are_not_chosen() -> None:
    little = cluster({volume: (volume // 10, PRIMARY) for volume in (11, 21, 31, 41, 51, 61)})
    little.volume(11, 1, PRIMARY, "readonly")
    little.node_down(2)
    little.beat(3, {31: report(31, read_only=True)})
    little.beat(4, {41: report(41, probe_age_ms=PROBE_MAX_AGE_MS + 1)})
    little.volume(51, 6, PRIMARY)  # the catalog says that node 6 has it now, node 5 still reports it
    assert leases(little) == [61]


def test_nothing_is_written_on_the_word_of_an_old_heartbeat() -> None:
    little = cluster({11: (1, PRIMARY)})
    assert leases(little, now_s=FRESH_S) == [11]
    with pytest.raises(Unavailable):
        leases(little, now_s=FRESH_S + 0.2)


def test_an_old_epochs_heartbeat_changes_nothing() -> None:
    little = cluster({11: (1, PRIMARY)})
    little.beat(1, {11: report(11)}, epoch=5)
    little.beat(1, {11: report(11, free=0)}, epoch=4)
    assert leases(little) == [11]


def test_free_space_and_short_queues_are_preferred_by_weight() -> None:
    little = cluster({11: (1, PRIMARY), 21: (2, PRIMARY)})
    little.beat(1, {11: report(11, free=90 * GIB)})
    little.beat(2, {21: report(21, free=10 * GIB)})
    first = Counter(leases(little, seed)[0] for seed in range(400))
    assert 320 < first[11] < 390
    little.beat(1, {11: report(11, free=90 * GIB, queued=8 * 16 * 1024 * 1024)})
    first = Counter(leases(little, seed)[0] for seed in range(400))
    assert 160 < first[11] < 240


def test_a_copy_goes_to_another_host_then_to_another_zone() -> None:
    volumes = {11: (1, PRIMARY), 21: (2, COPY), 31: (3, COPY), 41: (4, COPY)}
    zones = {1: ("a", "h1"), 2: ("b", "h1"), 3: ("a", "h3"), 4: ("b", "h4")}
    little = cluster(volumes, zones)
    extent = little.extent(7, [at(11, 100)], length=100)

    def choose(seed: int) -> int | None:
        return choose_destination(extent, COPY, little.view, little.heartbeats.loads(0.0), seed)

    assert {choose(seed) for seed in range(20)} == {41}
    little.node_down(4)
    assert {choose(seed) for seed in range(20)} == {31}  # the same zone is better than the same host
    little.node_down(3)
    assert {choose(seed) for seed in range(20)} == {21}
    little.node_down(2)
    assert choose(0) is None


def test_a_copy_needs_room_for_the_whole_extent() -> None:
    little = cluster({11: (1, PRIMARY), 21: (2, COPY)})
    little.beat(2, {21: report(21, free=FLOOR_BYTES + 99)})
    extent = little.extent(7, [at(11, 100)], length=100)
    assert choose_destination(extent, COPY, little.view, little.heartbeats.loads(0.0)) is None


ACCESS = st.sampled_from(["readwrite", "readonly", "unavailable", "destroyed", "offsite"])
STATE = st.sampled_from(["copying", "good", "damaged", "missing", "dropping"])
VOLUME = st.fixed_dictionaries(
    {
        "node": st.integers(1, 4),
        "pool": st.sampled_from([PRIMARY, COPY]),
        "access": ACCESS,
        "free": st.sampled_from([0, FLOOR_BYTES, 10 * GIB]),
        "read_only": st.booleans(),
    }
)


@given(
    volumes=st.dictionaries(st.integers(10, 25), VOLUME, max_size=8),
    held=st.dictionaries(st.integers(10, 25), STATE, max_size=4),
    down=st.sets(st.integers(1, 4)),
    seed=st.integers(0, 2**32 - 1),
)
def test_no_destination_breaks_a_rule_whatever_the_cluster_looks_like(
    volumes: dict[int, dict[str, object]], held: dict[int, str], down: set[int], seed: int
) -> None:
    little = LittleView()
    little.pool(PRIMARY, "primary", "primary")
    little.pool(COPY, "copy", "copy")
    for node in range(1, 5):
        little.node(node, up=node not in down)
        little.beat(
            node,
            {
                volume: report(volume, free=facts["free"], read_only=facts["read_only"])  # type: ignore[arg-type]
                for volume, facts in volumes.items()
                if facts["node"] == node
            },
        )
    for volume, facts in volumes.items():
        little.volume(volume, facts["node"], facts["pool"], facts["access"])  # type: ignore[arg-type]
    locations = [at(volume, 100, state) for volume, state in held.items() if volume in volumes]  # type: ignore[arg-type]
    extent = little.extent(7, locations, length=100)
    loads = little.heartbeats.loads(0.0)
    chosen = choose_destination(extent, COPY, little.view, loads, seed)
    assert chosen == choose_destination(extent, COPY, little.view, loads, seed)
    taken = {volumes[each.volume]["node"] for each in locations}
    allowed = {
        volume
        for volume, facts in volumes.items()
        if facts["pool"] == COPY
        and facts["access"] == "readwrite"
        and facts["free"] == 10 * GIB
        and not facts["read_only"]
        and facts["node"] not in down
        and facts["node"] not in taken
    }
    # Never a forbidden one, and never none while there is an allowed one.
    assert chosen in allowed if allowed else chosen is None


def test_a_new_size_limit_counts_before_the_node_reports_by_it() -> None:
    """Else a preview promises what is refused a heartbeat later."""
    little = cluster({11: (1, PRIMARY), 21: (2, PRIMARY)})
    little.extent(1, [at(21, GIB)], length=GIB)
    moved = little.extent(2, [at(11, GIB)], length=GIB)
    limited = replace(little.view.volumes["vol21"].row, limit_bytes=2 * GIB)
    for limit_bytes, place in ((0, 21), (2 * GIB, None), (2 * GIB + FLOOR_BYTES, 21)):
        little.put(keys.named(keys.VOLUME, "vol21"), replace(limited, limit_bytes=limit_bytes))
        loads = within_limits(little.view, little.heartbeats.loads(0.0))
        assert chooser(little.view, loads, Orders())(moved, PRIMARY) == place
