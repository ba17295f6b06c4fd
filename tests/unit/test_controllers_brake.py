"""Many losses at once, told to the plans alone: what is held, and what lets go."""

from __future__ import annotations

from copypool_coordinator.controllers.actions import (
    Reserve,
)
from copypool_coordinator.policy import Cut, brake
from kit.toy_cluster import MIB, ToyCluster
from kit.toy_extent import E, satisfied, whole_copied


def test_losing_many_nodes_at_once_holds_rebuilding_until_they_are_back() -> None:
    """A12: an outage is not a reason to copy everything."""
    cluster = ToyCluster(primary_nodes=4, copy_nodes=2)
    whole_copied(cluster)
    for node in (1, 2, 3):
        cluster.down(node)
    cluster.settle()
    cluster.wait(10 * cluster.policy.grace_ms)
    assert "3 of 6 nodes" in cluster.facts().brake
    assert not any(isinstance(action, Reserve) for action in cluster.plan())
    for node in (2, 3):
        cluster.up(node)
    cluster.settle()
    assert cluster.facts().brake == ""
    assert satisfied(cluster), "the one that stayed away is rebuilt"


def test_the_brake_holds_no_first_copies() -> None:
    cluster = ToyCluster(primary_nodes=4, copy_nodes=2)
    for node in (2, 3, 4):
        cluster.down(node)
    cluster.settle()
    assert cluster.facts().brake
    cluster.open_extent(E, writer=1, length=MIB)
    cluster.settle()
    assert cluster.location(E, 5).length == MIB


def test_one_lost_node_of_few_pulls_no_brake() -> None:
    cluster = ToyCluster(primary_nodes=1, copy_nodes=1)
    cluster.down(1)
    cluster.settle()
    assert cluster.facts().brake == ""


def test_nodes_that_were_taken_out_do_not_widen_the_brake() -> None:
    cluster = ToyCluster(primary_nodes=8, copy_nodes=4)
    for node in range(5, 9):
        cluster.delete_volume(node)
        cluster.down(node)
    cluster.settle()
    cluster.wait(2 * cluster.policy.session_ttl_ms)
    for node in (1, 2, 3):
        cluster.down(node)
    cluster.settle()
    assert "3 of 8 nodes were lost" in cluster.facts().brake


def test_nodes_lost_far_apart_pull_no_brake() -> None:
    cluster = ToyCluster(primary_nodes=3, copy_nodes=1)
    for node in (1, 2, 3):
        cluster.down(node)
        cluster.settle()
        cluster.wait(cluster.policy.session_ttl_ms + 1_000)
    assert cluster.facts().brake == ""


def test_a_leader_that_was_cut_from_etcd_waits_a_grace_time_for_whom_it_lost_then() -> None:
    cluster = ToyCluster()
    cut = Cut(cluster.now_ms, cluster.now_ms + 20_000)
    cluster.wait(21_000)
    cluster.down(1)
    cluster.settle()
    assert "cut from etcd" in brake(cluster.view, cluster.policy, cut, 0, cluster.now_ms)
    later_ms = cut.until_ms + cluster.policy.grace_ms
    assert brake(cluster.view, cluster.policy, cut, 0, later_ms) == ""


def test_an_operator_s_word_releases_the_brake() -> None:
    cluster = ToyCluster(primary_nodes=4, copy_nodes=2)
    for node in (1, 2, 3):
        cluster.down(node)
    cluster.settle()
    assert brake(cluster.view, cluster.policy, None, 0, cluster.now_ms)
    assert brake(cluster.view, cluster.policy, None, cluster.now_ms, cluster.now_ms) == ""
