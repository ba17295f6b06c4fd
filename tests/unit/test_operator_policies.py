"""What operators set, as the plans see it: windows, refusing volumes, maintenance, budgets, older extents' classes."""

from __future__ import annotations

from dataclasses import replace as with_fields

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from copypool.protocol.api import AccessMode
from copypool_coordinator import keys, reclassing
from copypool_coordinator.budgets import pull_share_bytes_s
from copypool_coordinator.controllers import copy, health
from copypool_coordinator.controllers.actions import Pull, Reserve, SetReadonly
from copypool_coordinator.locations import OTHERS
from copypool_coordinator.policy import brake, closed_pools, places
from copypool_coordinator.routing import rank
from copypool_coordinator.rows import FORMAT, ClassRow, ExtentRow, NamespaceRow, PoolRow, Share
from copypool_coordinator.view import ClusterView
from kit.toy_cluster import CLASS, COPY, MIB, PRIMARY, ToyCluster

E = 7
NIGHT = "0 1 * * *"
MIDNIGHT_MS = 1_773_014_400_000  # 2026-03-09 00:00 UTC


# -- windows -------------------------------------------------------------------------------------
def windowed() -> ToyCluster:
    cluster = ToyCluster()
    cluster.now_ms = MIDNIGHT_MS
    cluster.put(keys.named(keys.POOL, "copy"), PoolRow(FORMAT, COPY, "copy", window=NIGHT, window_s=3600))
    cluster.open_extent(E, writer=1, length=MIB)
    return cluster


def copies(cluster: ToyCluster) -> list[str]:
    facts = with_fields(cluster.facts(), closed=closed_pools(cluster.view, (), cluster.now_ms))
    return [type(step).__name__ for step in copy.plan(cluster.view, facts, cluster.now_ms, [E])]


def test_nothing_is_copied_before_the_window_opens_and_all_of_it_then() -> None:
    cluster = windowed()
    assert copies(cluster) == []
    cluster.now_ms = MIDNIGHT_MS + 3_600_000
    assert copies(cluster) == ["Reserve"]
    cluster.now_ms = MIDNIGHT_MS + 2 * 3_600_000
    assert copies(cluster) == []


def test_an_operators_backup_does_not_wait_for_the_window() -> None:
    cluster = windowed()
    assert closed_pools(cluster.view, (), cluster.now_ms) == {COPY}
    assert closed_pools(cluster.view, {COPY}, cluster.now_ms) == frozenset()


def test_a_copy_that_is_full_is_finished_although_the_window_has_closed() -> None:
    cluster = windowed()
    cluster.settle()  # the toy's own facts know no window: the copy is full now
    cluster.seal(E)
    assert copies(cluster) == ["Pull"]


def test_the_oldest_debt_gets_the_places_in_a_destinations_queue() -> None:
    cluster = ToyCluster(copy_nodes=1)
    cluster.policy = with_fields(cluster.policy, pulls_per_volume=2)
    for extent in range(5):
        cluster.now_ms += 1_000
        cluster.open_extent(extent, writer=1, length=MIB)
    facts = cluster.facts()
    steps = copy.plan(cluster.view, facts, cluster.now_ms, reversed(range(5)))
    assert [step.extent for step in steps if isinstance(step, Reserve)] == [0, 1]


# -- volumes that refuse writes ------------------------------------------------------------------
def test_a_volume_that_refused_a_write_becomes_readonly_once() -> None:
    cluster = ToyCluster()
    facts = with_fields(cluster.facts(), failing={1: "probe: the disk says no"})
    assert SetReadonly(1, "probe: the disk says no") in health.plan(cluster.view, facts)
    cluster.set_access(1, "readonly")
    facts = with_fields(cluster.facts(), failing={1: "probe: the disk says no"})
    assert not [step for step in health.plan(cluster.view, facts) if isinstance(step, SetReadonly)]


@pytest.mark.parametrize(
    ("access", "readable", "counts", "writable", "listed"),
    [
        ("readwrite", True, True, True, True),
        ("readonly", True, True, False, True),
        ("unavailable", False, False, False, True),
        ("destroyed", False, False, False, True),
        ("offsite", False, True, False, False),
    ],
)
def test_what_each_access_mode_means(
    access: AccessMode, readable: bool, counts: bool, writable: bool, listed: bool
) -> None:
    """`listed`: readers may try it, as the last resort when it is not readable."""
    cluster = ToyCluster()
    cluster.open_extent(E, writer=1, length=MIB)
    cluster.settle()
    cluster.seal(E)
    cluster.set_access(3, access)
    place = places(cluster.view)[3]
    assert (place.up, place.counted, place.writable) == (readable, counts, writable)
    ranked = rank(cluster.view, {}, cluster.row(E))
    assert [each.volume_id for each in ranked] == ([1, 3] if listed else [1])
    assert not listed or ranked[-1].reachable == readable


def test_unavailable_is_waited_for_and_destroyed_is_not() -> None:
    cluster = ToyCluster()
    cluster.open_extent(E, writer=1, length=MIB)
    cluster.settle()
    cluster.seal(E)
    cluster.wait(cluster.policy.first_verify_delay_ms)
    cluster.settle()
    cluster.set_access(1, "unavailable")
    cluster.wait(10 * cluster.policy.grace_ms)
    assert not [step for step in cluster.plan() if isinstance(step, Reserve)]
    cluster.set_access(1, "destroyed")
    assert [step.volume for step in cluster.plan() if isinstance(step, Reserve)] == [2]


# -- maintenance ---------------------------------------------------------------------------------
def maintain(cluster: ToyCluster, node: int, for_ms: int) -> None:
    name = f"node{node}"
    row = cluster.view.nodes[name].row
    cluster.put(keys.named(keys.NODE, name), replace(row, maintenance_until_ms=cluster.now_ms + for_ms))


def test_maintenance_holds_up_rebuilding_and_ends_by_itself() -> None:
    cluster = ToyCluster()
    cluster.open_extent(E, writer=1, length=MIB)
    cluster.settle()
    cluster.seal(E)
    cluster.wait(cluster.policy.first_verify_delay_ms)
    cluster.settle()
    until_ms = 10 * cluster.policy.grace_ms
    maintain(cluster, 1, until_ms)
    cluster.down(1)
    cluster.settle()
    cluster.wait(until_ms)
    assert not [step for step in cluster.plan() if isinstance(step, Reserve)], "the grace time begins now"
    cluster.wait(cluster.policy.grace_ms)
    assert [step.volume for step in cluster.plan() if isinstance(step, Reserve)] == [2]


def test_bytes_without_a_copy_do_not_wait_for_the_end_of_maintenance() -> None:
    cluster = ToyCluster()
    cluster.open_extent(E, writer=1, length=MIB)
    cluster.settle()
    cluster.write(E, 2 * MIB)
    maintain(cluster, 3, 10 * cluster.policy.grace_ms)
    cluster.down(3)
    cluster.settle()
    cluster.wait(cluster.policy.debt_patience_ms)
    assert [step.volume for step in cluster.plan() if isinstance(step, Reserve)] == [4]


def test_announced_maintenance_pulls_no_brake() -> None:
    cluster = ToyCluster()
    for node in (1, 2):
        name = f"node{node}"
        row = cluster.view.nodes[name].row
        until_ms = cluster.now_ms + 600_000 if node == 1 else 0
        cluster.put(
            keys.named(keys.NODE, name), replace(row, away_since_ms=cluster.now_ms, maintenance_until_ms=until_ms)
        )
        cluster.down(node)
    assert brake(cluster.view, cluster.policy, None, 0, cluster.now_ms) == ""
    name = "node1"
    row = cluster.view.nodes[name].row
    cluster.put(keys.named(keys.NODE, name), replace(row, maintenance_until_ms=0))
    assert brake(cluster.view, cluster.policy, None, 0, cluster.now_ms) != ""


def test_nodes_that_had_been_emptied_or_given_up_pull_no_brake() -> None:
    cluster = ToyCluster()
    cluster.set_access(1, "destroyed")
    for node in (1, 2):
        cluster.down(node)
    cluster.settle()
    assert brake(cluster.view, cluster.policy, None, 0, cluster.now_ms) == "", "it is rebuilt in any case"
    cluster = ToyCluster()
    cluster.set_intent(2, "drain")
    for node in (1, 2):
        cluster.down(node)
    cluster.settle()
    assert brake(cluster.view, cluster.policy, None, 0, cluster.now_ms) == "", "nothing is on it"


def test_giving_up_one_node_of_an_outage_releases_the_brake_for_no_other() -> None:
    cluster = ToyCluster()
    for node in (1, 2):
        cluster.down(node)
    cluster.settle()
    held = brake(cluster.view, cluster.policy, None, 0, cluster.now_ms)
    assert held
    cluster.set_access(1, "destroyed")
    assert brake(cluster.view, cluster.policy, None, 0, cluster.now_ms) == held
    assert brake(cluster.view, cluster.policy, None, cluster.now_ms, cluster.now_ms) == ""


# -- budgets -------------------------------------------------------------------------------------
@given(budget=st.integers(65_536, 10**9), nodes=st.integers(1, 9), down=st.integers(0, 8))
def test_the_shares_of_a_budget_are_never_more_than_the_budget(budget: int, nodes: int, down: int) -> None:
    cluster = ToyCluster(primary_nodes=1, copy_nodes=nodes)
    cluster.put(keys.named(keys.POOL, "copy"), PoolRow(FORMAT, COPY, "copy", budget_bytes_s=budget))
    for node in range(2, 2 + min(down, nodes - 1)):
        cluster.down(node)
    shares = [
        pull_share_bytes_s(cluster.view, volume) for volume in range(2, 2 + nodes) if cluster.view.node_up(volume)
    ]
    assert sum(shares) <= budget
    assert all(share > 0 for share in shares)
    assert pull_share_bytes_s(cluster.view, 1) == 0, "the primary pool has no budget"


# -- older extents -------------------------------------------------------------------------------
OLD, NEW, ELSEWHERE = CLASS, 11, 12
MINE, THEIRS, UNRELATED = 1, 2, 3


def namespaces(mine: int, theirs: int) -> ClusterView:
    cluster = ToyCluster()
    cluster.put(keys.named(keys.CLASS, "new"), ClassRow(FORMAT, NEW, PRIMARY, [], "primary"))
    cluster.put(keys.named(keys.CLASS, "elsewhere"), ClassRow(FORMAT, ELSEWHERE, 9, [COPY], "primary"))
    for name, number, class_id in (("mine", MINE, mine), ("theirs", THEIRS, theirs)):
        past = [] if class_id == OLD else [OLD]
        cluster.put(keys.named(keys.NAMESPACE, name), NamespaceRow(FORMAT, number, class_id, past_classes=past))
    cluster.put(keys.named(keys.NAMESPACE, "unrelated"), NamespaceRow(FORMAT, UNRELATED, ELSEWHERE))
    return cluster.view


def extent(*shares: int) -> ExtentRow:
    held = [Share(namespace, MIB, 1, 100) for namespace in shares]
    return ExtentRow(FORMAT, OLD, False, 1, 1, 1, 0, [], length=MIB, records=3, shares=held)


def test_an_extent_of_ones_own_may_get_the_new_class() -> None:
    view = namespaces(NEW, OLD)
    assert reclassing.judge(view, extent(MINE), NEW).possible
    assert reclassing.held_bytes(extent(MINE, THEIRS), MINE) == 100
    assert reclassing.held_bytes(extent(THEIRS), MINE) is None


@pytest.mark.parametrize("shares", [(MINE, THEIRS), (MINE, OTHERS), ()])
def test_an_extent_that_others_may_be_in_waits_until_they_have_the_class_too(shares: tuple[int, ...]) -> None:
    """`OTHERS`, and an extent of an older version: every namespace that ever wrote such extents may be in it."""
    verdict = reclassing.judge(namespaces(NEW, OLD), extent(*shares), NEW)
    assert verdict.others == {THEIRS}
    assert not verdict.possible
    assert reclassing.judge(namespaces(NEW, NEW), extent(*shares), NEW).possible


def test_bytes_never_change_their_primary_pool_by_a_change_of_class() -> None:
    assert reclassing.judge(namespaces(ELSEWHERE, ELSEWHERE), extent(MINE), ELSEWHERE).moves_primary


def test_a_changed_class_is_followed_by_the_controllers_and_never_loses_the_primary() -> None:
    cluster = ToyCluster()
    cluster.put(keys.named(keys.CLASS, "new"), ClassRow(FORMAT, NEW, PRIMARY, [], "primary"))
    cluster.open_extent(E, writer=1, length=MIB)
    cluster.settle()
    cluster.seal(E)
    cluster.wait(cluster.policy.first_verify_delay_ms)
    cluster.settle()
    cluster.put_extent(E, replace(cluster.row(E), class_id=NEW))
    for _ in range(3):
        cluster.settle()
        cluster.wait(cluster.policy.drop_delay_ms)
    assert [each.volume for each in cluster.row(E).locations] == [1], "the copy that nobody wants any more is gone"
    cluster.put_extent(E, replace(cluster.row(E), class_id=OLD))
    cluster.settle()
    assert {each.volume for each in cluster.row(E).locations} == {1, 3}
    assert any(isinstance(action, Pull) for action in cluster.history)
