"""Stories of loss, rebuilding and return, told to the plans alone: rows, obedient nodes, a clock turned by hand."""

from __future__ import annotations

import pytest

from copypool_coordinator.controllers.actions import (
    BeginDrop,
    Decide,
    FinishDrop,
    MarkAway,
    MarkReturned,
    Reserve,
    SealExtent,
    Verify,
)
from copypool_coordinator.policy import Memory, brake
from kit.toy_cluster import MIB, ToyCluster
from kit.toy_extent import E, kinds, lost_for_good, satisfied, whole_copied


def test_a_lost_primary_is_rebuilt_from_the_copy_after_the_grace_time() -> None:
    cluster = ToyCluster()
    cluster.open_extent(E, writer=1, length=40 * MIB)
    cluster.settle()
    cluster.history.clear()

    cluster.down(1)
    cluster.settle()
    assert isinstance(cluster.history[0], MarkAway)
    assert any(isinstance(action, SealExtent) for action in cluster.history)
    assert not any(isinstance(action, Reserve) for action in cluster.history), "grace"

    cluster.wait(cluster.policy.grace_ms)
    cluster.settle()
    assert satisfied(cluster)
    assert cluster.location(E, 2).state == "good"
    assert cluster.location(E, 1).state == "good", "the absent one is not blamed, and not dropped"


def test_a_volume_that_its_node_runs_without_is_rebuilt_after_the_grace_time() -> None:
    cluster = ToyCluster()
    whole_copied(cluster)
    cluster.without_volume(1)
    assert not satisfied(cluster)
    cluster.settle()
    assert cluster.history == [], "the disk may come back"
    cluster.wait(cluster.policy.grace_ms)
    cluster.settle()
    assert cluster.location(E, 2).state == "good"
    assert satisfied(cluster)


def test_nodes_that_all_start_without_their_disks_pull_the_brake() -> None:
    cluster = ToyCluster()
    whole_copied(cluster)
    cluster.without_volume(1)
    assert brake(cluster.view, cluster.policy, None, 0, cluster.now_ms) == ""
    cluster.without_volume(3)
    assert "node1, node3" in brake(cluster.view, cluster.policy, None, 0, cluster.now_ms)


def test_a_node_that_returns_in_time_is_not_replaced() -> None:
    cluster = ToyCluster()
    whole_copied(cluster)
    cluster.down(1)
    cluster.settle()
    cluster.wait(cluster.policy.grace_ms // 2)
    cluster.up(1)
    cluster.settle()
    cluster.wait(cluster.policy.grace_ms)
    assert cluster.plan() == []
    assert kinds(cluster) == ["MarkAway", "MarkReturned"]


def test_what_a_returned_node_has_too_much_is_dropped_after_reading_the_survivors_back() -> None:
    """The whole story, in order: away, rebuilt, back, decided, verified, dropping, deleted (A9, A16, A17)."""
    cluster = ToyCluster()
    whole_copied(cluster)
    lost_for_good(cluster)
    cluster.settle()
    assert kinds(cluster) == ["MarkAway", "Reserve", "Pull"]

    cluster.up(1)
    cluster.settle()
    assert kinds(cluster)[3:] == ["MarkReturned", "Decide", "Verify", "BeginDrop"]
    verified = {action.location.volume for action in cluster.history if isinstance(action, Verify)}
    assert verified == {2, 3}, "every survivor is read back after the decision"
    assert cluster.location(E, 1).state == "dropping"
    assert satisfied(cluster)

    cluster.wait(cluster.policy.drop_delay_ms - 1_000)
    assert not any(isinstance(action, FinishDrop) for action in cluster.plan()), "capabilities still live"
    cluster.wait(1_000)
    cluster.settle()
    assert sorted(each.volume for each in cluster.row(E).locations) == [2, 3]


def test_a_drop_waits_for_a_node_that_is_away() -> None:
    cluster = ToyCluster()
    whole_copied(cluster)
    lost_for_good(cluster)
    cluster.settle()
    cluster.up(1)
    cluster.settle()
    cluster.down(1)
    cluster.wait(cluster.policy.drop_delay_ms)
    cluster.settle()
    assert cluster.location(E, 1).state == "dropping"
    assert satisfied(cluster)


def test_stale_verifications_do_not_let_anything_go() -> None:
    """A16: decided, then a survivor was not read back: nothing is dropped, however long ago it was green."""
    cluster = ToyCluster()
    whole_copied(cluster)
    lost_for_good(cluster)
    cluster.settle()
    cluster.up(1)
    for action in cluster.plan():
        if not isinstance(action, Verify | BeginDrop):
            cluster.perform(action)
    cluster.wait(10_000)
    assert not any(isinstance(action, BeginDrop) for action in cluster.plan())


def test_a_drop_planned_before_the_survivors_went_bad_is_refused() -> None:
    """A9: the leader sleeps between its plan and the transaction; the last-copy rule is asked again there."""
    cluster = ToyCluster()
    whole_copied(cluster)
    lost_for_good(cluster)
    cluster.settle()
    cluster.up(1)
    while not (drops := [action for action in cluster.plan() if isinstance(action, BeginDrop)]):
        for action in cluster.plan():
            cluster.perform(action)
        cluster.wait(100)
    cluster.mark(E, 2, "damaged")
    cluster.mark(E, 3, "damaged")
    cluster.perform(drops[0])
    assert cluster.location(E, 1).state == "good"


def test_an_old_decision_is_made_anew() -> None:
    cluster = ToyCluster()
    whole_copied(cluster)
    lost_for_good(cluster)
    cluster.settle()
    cluster.up(1)
    cluster.perform(next(action for action in cluster.plan() if isinstance(action, MarkReturned)))
    cluster.perform(next(action for action in cluster.plan() if isinstance(action, Decide)))
    cluster.down(1)
    cluster.wait(cluster.policy.decision_life_ms + 1)
    cluster.up(1)
    assert any(isinstance(action, Decide) for action in cluster.plan())


def test_the_only_holder_of_acked_bytes_stays() -> None:
    """A4: 40 MiB committed on A, 30 MiB copied to B; A dies, C is rebuilt as far as B reaches; A comes back."""
    cluster = ToyCluster()
    cluster.open_extent(E, writer=1, length=30 * MIB)
    cluster.settle()
    cluster.write(E, 40 * MIB)
    lost_for_good(cluster)
    cluster.settle()
    assert cluster.row(E).length == 40 * MIB
    assert cluster.location(E, 2).length == 30 * MIB
    assert cluster.location(E, 2).state == "copying", "a prefix is not good"
    assert not satisfied(cluster)
    assert cluster.location(E, 1).state == "good"

    cluster.up(1)
    cluster.settle(rounds=40)
    assert satisfied(cluster)
    assert cluster.good_reach(E) == 40 * MIB
    lengths = {each.volume: each.length for each in cluster.row(E).locations if each.state == "good"}
    assert lengths[1] == 40 * MIB
    assert lengths[3] == 40 * MIB


@pytest.mark.parametrize("stop_after", range(12))
def test_a_new_leader_takes_over_after_any_action_and_nothing_is_lost(stop_after: int) -> None:
    """Every interrupted prefix of the story is a safe state, and planning again ends in the same place."""
    cluster = ToyCluster()
    whole_copied(cluster)

    def no_byte_is_lost() -> None:
        assert cluster.held(E) == 40 * MIB
        assert cluster.good_reach(E) == 40 * MIB

    cluster.checks.append(no_byte_is_lost)
    left = stop_after

    def some_steps() -> None:
        nonlocal left
        while left > 0 and (actions := cluster.plan()):
            for action in actions:
                if left == 0:
                    break
                cluster.perform(action)
                left -= 1

    cluster.down(1)
    some_steps()
    cluster.wait(cluster.policy.grace_ms)
    some_steps()
    cluster.up(1)
    some_steps()
    cluster.memory = Memory()  # a new leader remembers nothing
    cluster.settle(rounds=40)
    cluster.wait(cluster.policy.drop_delay_ms)
    cluster.settle(rounds=40)
    assert satisfied(cluster)
    assert len(cluster.row(E).locations) == 2


def test_a_destroyed_volume_is_rebuilt_at_once() -> None:
    cluster = ToyCluster()
    whole_copied(cluster)
    cluster.set_access(1, "destroyed")
    cluster.settle()
    assert satisfied(cluster)
    assert cluster.location(E, 2).state == "good"


def test_a_volume_made_unavailable_is_waited_for() -> None:
    cluster = ToyCluster()
    whole_copied(cluster)
    cluster.set_access(1, "unavailable")
    cluster.wait(10 * cluster.policy.grace_ms)
    assert cluster.plan() == []


def test_a_damaged_primary_is_replaced_at_once_then_dropped() -> None:
    cluster = ToyCluster()
    whole_copied(cluster)
    cluster.mark(E, 1, "damaged")
    cluster.settle()
    assert satisfied(cluster)
    assert cluster.location(E, 2).state == "good"
    assert cluster.location(E, 1).state == "dropping"
    (reserve,) = [action for action in cluster.history if isinstance(action, Reserve)]
    assert reserve.why == "its location on volume1 is damaged"


def test_the_only_damaged_primary_is_replaced_beside_itself() -> None:
    cluster = ToyCluster(primary_nodes=1)
    whole_copied(cluster)
    cluster.mark(E, 1, "damaged")
    cluster.settle()
    assert satisfied(cluster)
    assert cluster.location(E, 1).generation > 1


def test_one_primary_node_lost_leaves_nothing_to_rebuild_on() -> None:
    cluster = ToyCluster(primary_nodes=1)
    whole_copied(cluster)
    lost_for_good(cluster)
    cluster.settle()
    assert [type(action) for action in cluster.history] == [MarkAway]


# -- fencing ---------------------------------------------------------------------------------------
def test_a_restarted_writer_s_extents_are_sealed_with_the_fencing_compare() -> None:
    cluster = ToyCluster()
    cluster.open_extent(E, writer=1, length=MIB)
    cluster.up(1)
    (seal,) = [action for action in cluster.plan() if isinstance(action, SealExtent)]
    assert seal.fencing


def test_a_volume_that_takes_no_writes_has_its_extents_sealed() -> None:
    cluster = ToyCluster()
    cluster.open_extent(E, writer=1, length=MIB)
    cluster.set_access(1, "readonly")
    (seal,) = [action for action in cluster.plan() if isinstance(action, SealExtent)]
    assert not seal.fencing
