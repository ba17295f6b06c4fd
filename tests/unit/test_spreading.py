"""Failure domains: met whenever they can be, said when they cannot, and moved towards as soon as they can (B9)."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace as with_fields

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from copypool.protocol.policies import Spread
from copypool_coordinator import keys, locations
from copypool_coordinator.offpolicy import look
from copypool_coordinator.placement import choose_destination
from copypool_coordinator.policy import places
from copypool_coordinator.protection import VolumeFacts, assess
from copypool_coordinator.rows import FORMAT, ClassRow, ExtentRow, Location, PoolRow
from copypool_coordinator.spreading import are_apart, spread_out
from kit.little_view import LittleView, report
from kit.toy_cluster import CLASS, COPY, MIB, ToyCluster

PRIMARY_POOL, FIRST_COPY, SECOND_COPY = 1, 2, 3
E = 7
VAULT = 3

domains = st.tuples(st.sampled_from(["za", "zb", "zc"]), st.sampled_from(["h1", "h2", "h3", "h4"]))
spreads: st.SearchStrategy[Spread] = st.sampled_from(["host", "zone"])


def facts(volume: int, pool: int, domain: tuple[str, str], spread: Spread) -> VolumeFacts:
    zone, host = domain
    return VolumeFacts(
        volume, f"v{volume}", pool, volume, True, True, True, False, host=f"{zone}-{host}", zone=zone, spread=spread
    )


def apart(one: VolumeFacts, other: VolumeFacts) -> bool:
    """The rule once more, in other words."""
    if one.host == other.host or one.node == other.node:
        return False
    return one.zone != other.zone or (one.spread == other.spread == "host")


@given(
    pools=st.lists(st.tuples(spreads, st.lists(domains, min_size=1, max_size=3)), min_size=1, max_size=3),
)
@settings(max_examples=200)
def test_spread_out_is_what_trying_every_choice_gives(pools: list[tuple[Spread, list[tuple[str, str]]]]) -> None:
    number = itertools.count(1)
    choices = [
        [facts(next(number), pool, domain, spread) for domain in members]
        for pool, (spread, members) in enumerate(pools, 1)
    ]
    brute = any(
        all(apart(one, other) for one, other in itertools.combinations(chosen, 2))
        for chosen in itertools.product(*choices)
    )
    assert spread_out(choices) == brute
    placed = {volume.volume: volume for members in choices for volume in members}
    row = ExtentRow(FORMAT, 1, False, 1, 1, 1, 0, [Location(each, each, "good", MIB, 1) for each in placed], length=MIB)
    extent_class = ClassRow(FORMAT, 1, 1, list(range(2, len(pools) + 1)), "primary")
    assert assess(row, MIB, extent_class, placed).spread == brute


@given(
    spread=spreads,
    holders=st.lists(domains, min_size=1, max_size=2),
    free=st.lists(domains, min_size=1, max_size=5),
    seed=st.integers(0, 1000),
)
@settings(max_examples=100, deadline=None)
def test_a_new_copy_is_apart_from_all_others_whenever_it_can_be(
    spread: Spread, holders: list[tuple[str, str]], free: list[tuple[str, str]], seed: int
) -> None:
    little = LittleView()
    little.pool(PRIMARY_POOL, "primary", "primary")
    little.put(keys.named(keys.POOL, "copy"), PoolRow(FORMAT, FIRST_COPY, "copy", spread=spread))
    for node, (zone, host) in enumerate([*holders, *free], 1):
        pool = PRIMARY_POOL if node <= len(holders) else FIRST_COPY
        little.node(node, zone=zone, host=f"{zone}-{host}")
        little.volume(node, node, pool)
        little.beat(node, {node: report(node)})
    little.extent_class(1, PRIMARY_POOL, [FIRST_COPY])
    held = range(1, len(holders) + 1)
    row = little.extent(E, [Location(each, each, "good", MIB, 1) for each in held], length=MIB)
    chosen = choose_destination(row, FIRST_COPY, little.view, little.heartbeats.loads(0.0), seed)
    known = places(little.view)
    possible = [
        place
        for place in known.values()
        if place.pool == FIRST_COPY and all(are_apart(place, known[other]) for other in held)
    ]
    assert chosen is not None, "a copy in the same domain is better than none"
    if possible:
        assert known[chosen] in possible


# -- moving --------------------------------------------------------------------------------------
def set_host(cluster: ToyCluster, node: int, host: str) -> None:
    name = f"node{node}"
    cluster.put(keys.named(keys.NODE, name), replace(cluster.view.nodes[name].row, host=host))


def crowded_cluster() -> ToyCluster:
    """One extent, copied and verified, whose two locations are on two nodes of one host."""
    cluster = ToyCluster(primary_nodes=1, copy_nodes=1)
    set_host(cluster, 2, "node1")
    cluster.open_extent(E, writer=1, length=40 * MIB)
    cluster.settle()
    cluster.seal(E)
    cluster.wait(cluster.policy.first_verify_delay_ms)
    cluster.settle()
    return cluster


def mark_of(cluster: ToyCluster) -> tuple[bool, bool]:
    """Whether status would call the extent under-protected, and whether for its failure domains."""
    mark = look(cluster.view, cluster.row(E), None, places(cluster.view), cluster.policy, cluster.now_ms)
    return (False, False) if mark is None else (mark.under_protected, mark.shared_domain)


def test_two_locations_on_one_host_are_a_copy_but_under_protected() -> None:
    cluster = crowded_cluster()
    assert {each.volume for each in cluster.row(E).locations} == {1, 2}
    assert mark_of(cluster) == (True, True)
    cluster.settle()
    assert {each.volume for each in cluster.row(E).locations} == {1, 2}, "nowhere else to go: it stays"


def test_the_copy_moves_as_soon_as_there_is_another_host_and_never_leaves_before() -> None:
    cluster = crowded_cluster()
    fewest: list[int] = []

    def count() -> None:
        fewest.append(sum(each.state == "good" for each in cluster.row(E).locations))

    cluster.checks.append(count)
    cluster.add_node(3, "copy")
    for _ in range(4):
        cluster.settle()
        cluster.wait(cluster.policy.drop_delay_ms)
    assert {each.volume for each in cluster.row(E).locations} == {1, 3}
    assert mark_of(cluster) == (False, False)
    assert min(fewest) == 2


def two_copy_pools() -> ToyCluster:
    """Nodes 3 and 4 have a volume in each of two copy pools."""
    cluster = ToyCluster()
    cluster.put(keys.named(keys.POOL, "vault"), PoolRow(FORMAT, VAULT, "copy"))
    cluster.put(keys.named(keys.CLASS, "default"), ClassRow(FORMAT, CLASS, 1, [COPY, VAULT], "primary"))
    for node in (3, 4):
        row = cluster.view.volumes[f"volume{node}"].row
        cluster.put(keys.named(keys.VOLUME, f"vault{node}"), replace(row, id=10 + node, pool=VAULT))
    return cluster


def nodes_of(cluster: ToyCluster) -> list[int]:
    known = places(cluster.view)
    return sorted(known[each.volume].node for each in cluster.row(E).locations)


def test_the_copies_of_two_pools_never_go_to_one_node() -> None:
    cluster = two_copy_pools()
    cluster.open_extent(E, writer=1, length=MIB)
    assert [type(step).__name__ for step in cluster.plan()] == ["Reserve"], "one after the other"
    cluster.settle()
    assert nodes_of(cluster) == [1, 3, 4]


def test_copies_that_are_on_one_node_part_by_themselves() -> None:
    cluster = two_copy_pools()
    cluster.open_extent(E, writer=1, length=MIB)
    for volume in (3, 13):
        reserved = locations.reserved(cluster.row(E), volume, cluster.now_ms)
        assert reserved is not None
        cluster.put_extent(E, reserved[0])
    cluster.settle()
    cluster.seal(E)
    cluster.wait(cluster.policy.first_verify_delay_ms)
    for _ in range(4):
        cluster.settle()
        cluster.wait(cluster.policy.drop_delay_ms)
    assert nodes_of(cluster) == [1, 3, 4]
    assert mark_of(cluster) == (False, False)


def test_a_pool_spread_over_zones_wants_another_zone() -> None:
    cluster = ToyCluster(primary_nodes=1, copy_nodes=1)
    for node in (1, 2):
        name = f"node{node}"
        cluster.put(keys.named(keys.NODE, name), replace(cluster.view.nodes[name].row, zone="cellar"))
    cluster.open_extent(E, writer=1, length=MIB)
    cluster.settle()
    cluster.seal(E)
    cluster.wait(cluster.policy.first_verify_delay_ms)
    cluster.settle()
    assert mark_of(cluster) == (False, False), "another host is enough for a pool that is spread over hosts"
    cluster.put(keys.named(keys.POOL, "copy"), PoolRow(FORMAT, COPY, "copy", spread="zone"))
    assert mark_of(cluster) == (True, True)


def test_where_every_domain_is_shared_surplus_still_goes() -> None:
    """A cluster on one host is under-protected, but not for ever full of what it does not need."""
    cluster = ToyCluster(primary_nodes=2, copy_nodes=1)
    for node in (2, 3):
        set_host(cluster, node, "node1")
    cluster.open_extent(E, writer=1, length=MIB)
    cluster.settle()
    cluster.seal(E)
    cluster.wait(cluster.policy.first_verify_delay_ms)
    cluster.settle()
    cluster.down(1)
    cluster.settle()
    cluster.wait(cluster.policy.grace_ms)
    cluster.settle()
    cluster.up(1)
    for _ in range(3):
        cluster.settle()
        cluster.wait(cluster.policy.drop_delay_ms)
    assert len(cluster.row(E).locations) == 2


def test_facts_of_a_volume_know_their_domains() -> None:
    cluster = ToyCluster(primary_nodes=1, copy_nodes=1)
    known = places(cluster.view)
    assert (known[1].host, known[1].zone, known[1].spread) == ("node1", "zone1", "host")
    nameless: Callable[[int], VolumeFacts] = lambda volume: with_fields(known[volume], host="", zone="")  # noqa: E731
    assert are_apart(nameless(1), nameless(2)), "a domain without a name holds nothing else"
    assert cluster.view.classes[CLASS].row.copy_pools == [COPY]
