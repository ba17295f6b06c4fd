"""What goes is called off, or is final; told to the plans alone."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from copypool.protocol.api import LocationState
from copypool_coordinator import locations
from copypool_coordinator.controllers.actions import (
    CallOff,
    FinishDrop,
    Pull,
    Reserve,
    Verify,
)
from copypool_coordinator.locations import with_location
from copypool_coordinator.policy import Memory, Policy
from kit.toy_cluster import MIB, ToyCluster
from kit.toy_extent import E, lost_for_good, satisfied, whole_copied


def with_a_location_that_goes(cluster: ToyCluster) -> None:
    """Lost, rebuilt on 2, back: what is on 1 is not needed beside 2 and 3, and is `dropping`."""
    whole_copied(cluster)
    lost_for_good(cluster)
    cluster.settle()
    cluster.up(1)
    cluster.settle()
    assert cluster.location(E, 1).state == "dropping"
    cluster.history.clear()


def test_what_goes_is_kept_when_both_survivors_turn_out_damaged() -> None:
    """It may hold the last good block of bytes that are damaged twice."""
    cluster = ToyCluster()
    with_a_location_that_goes(cluster)
    cluster.mark(E, 2, "damaged")
    cluster.mark(E, 3, "damaged")
    cluster.settle(rounds=40)
    assert satisfied(cluster)
    assert cluster.good_reach(E) == 40 * MIB
    assert {action.location.volume for action in cluster.history if isinstance(action, CallOff)} == {1}
    pulls = [action for action in cluster.history if isinstance(action, Pull)]
    assert pulls[0].sources[0].volume == 1, "it is what the others are rebuilt from"
    assert cluster.location(E, 1).state == "good"
    cluster.wait(cluster.policy.drop_delay_ms)
    cluster.settle(rounds=40)
    assert {each.state for each in cluster.row(E).locations} == {"good"}


def test_a_location_that_goes_is_the_last_resort_of_a_repair() -> None:
    """Before its drop is called off, and without waiting for that: named last, each block is checked."""
    cluster = ToyCluster(primary_nodes=3)
    with_a_location_that_goes(cluster)
    cluster.set_access(1, "readonly")  # so that it is no place for a new one
    cluster.mark(E, 2, "damaged")
    cluster.perform(next(action for action in cluster.plan() if isinstance(action, Reserve)))
    (pull,) = [action for action in cluster.plan() if isinstance(action, Pull)]
    assert [source.volume for source in pull.sources] == [4, 1, 2]


@pytest.mark.parametrize("loss", ["damaged", "missing", "destroyed", "away for good"])
def test_a_drop_is_called_off_when_a_survivor_is_lost(loss: str) -> None:
    cluster = ToyCluster()
    with_a_location_that_goes(cluster)
    if loss == "destroyed":
        cluster.set_access(2, "destroyed")
    elif loss == "away for good":
        lost_for_good(cluster, node=2)
    else:
        cluster.mark(E, 2, "damaged" if loss == "damaged" else "missing")
    cluster.settle()
    assert cluster.location(E, 1).state == "good"
    assert satisfied(cluster)
    assert cluster.pulled_bytes == 80 * MIB, "what is there need not be copied again"
    cluster.wait(cluster.policy.first_verify_delay_ms)
    cluster.settle()
    assert cluster.location(E, 1).verified_ms >= cluster.location(E, 1).changed_ms, "trusted once it is read back"


def test_a_survivor_that_is_merely_away_holds_the_erasing_and_calls_nothing_off() -> None:
    cluster = ToyCluster(policy=Policy(grace_ms=600_000))
    with_a_location_that_goes(cluster)
    cluster.down(2)
    cluster.settle()
    cluster.wait(cluster.policy.drop_delay_ms)
    cluster.settle()
    assert cluster.location(E, 1).state == "dropping"
    assert not any(isinstance(action, CallOff | FinishDrop) for action in cluster.history)
    cluster.up(2)
    cluster.settle()
    assert sorted(each.volume for each in cluster.row(E).locations) == [2, 3]


def test_erasing_is_refused_when_a_survivor_went_bad_since_it_was_planned() -> None:
    """A9: the leader sleeps between its plan and the transaction that is the point of no return."""
    cluster = ToyCluster()
    with_a_location_that_goes(cluster)
    cluster.wait(cluster.policy.drop_delay_ms)
    (finish,) = [action for action in cluster.plan() if isinstance(action, FinishDrop)]
    cluster.mark(E, 2, "damaged")
    cluster.mark(E, 3, "damaged")
    cluster.perform(finish)
    assert cluster.held(E) == 40 * MIB
    cluster.settle(rounds=40)
    assert satisfied(cluster)


def test_a_survivor_that_was_never_read_back_since_the_decision_is_read_before_anything_is_erased() -> None:
    """A16: the survivors may have changed in the time between; a later leader goes by the decision in the row."""
    cluster = ToyCluster()
    with_a_location_that_goes(cluster)
    row, survivor = cluster.row(E), cluster.location(E, 2)
    cluster.put_extent(E, with_location(row, survivor, replace(survivor, verified_ms=1)))
    cluster.memory = Memory()
    cluster.wait(cluster.policy.drop_delay_ms)
    actions = cluster.plan()
    assert not any(isinstance(action, FinishDrop) for action in actions)
    assert [action.location.volume for action in actions if isinstance(action, Verify)] == [2]
    cluster.settle()
    assert sorted(each.volume for each in cluster.row(E).locations) == [2, 3]


def test_what_is_being_erased_is_no_source_and_does_not_come_back() -> None:
    """Its node may have been told: another leader goes on with it, whatever has become of the others."""
    cluster = ToyCluster()
    with_a_location_that_goes(cluster)
    cluster.wait(cluster.policy.drop_delay_ms)
    (finish,) = [action for action in cluster.plan() if isinstance(action, FinishDrop)]
    assert cluster.confirm_drop(finish)
    cluster.memory = Memory()
    cluster.mark(E, 2, "damaged")
    assert locations.called_off(cluster.row(E), cluster.location(E, 1), cluster.now_ms) is None
    actions = cluster.plan()
    assert finish in actions
    assert not any(isinstance(action, CallOff) for action in actions)
    assert all(source.volume != 1 for action in actions if isinstance(action, Pull) for source in action.sources)
    cluster.settle(rounds=40)
    assert satisfied(cluster)


@pytest.mark.parametrize("before", ["copying", "damaged", "missing"])
def test_a_drop_that_is_called_off_leaves_what_was_there_before(before: LocationState) -> None:
    cluster = ToyCluster()
    whole_copied(cluster)
    location = cluster.location(E, 1)
    row = with_location(cluster.row(E), location, replace(location, state=before))
    row = locations.dropping(row, locations.find(row, 1, 1) or location, cluster.now_ms, 1)
    after = locations.called_off(row, locations.find(row, 1, 1) or location, cluster.now_ms)
    assert after is not None
    back = locations.find(after, 1, 1)
    assert back is not None
    assert (back.state, back.before, back.decided_ms, back.verified_ms) == (before, "", 0, 0)
