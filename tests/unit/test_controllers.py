"""Stories of loss and return, told to the plans alone: rows, obedient nodes, a clock turned by hand."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from copypool.protocol.api import LocationState
from copypool_coordinator import locations
from copypool_coordinator.controllers import copy
from copypool_coordinator.controllers.actions import (
    BeginDrop,
    CallOff,
    Decide,
    FinishDrop,
    MarkAway,
    MarkReturned,
    Pull,
    Reserve,
    SealExtent,
    Verify,
)
from copypool_coordinator.locations import with_location
from copypool_coordinator.policy import Cut, LocationKey, Memory, Policy, Told, brake, places
from copypool_coordinator.protection import assess
from kit.toy_cluster import CLASS, COPY, MIB, ToyCluster

E = 7


def kinds(cluster: ToyCluster) -> list[str]:
    """The kinds of all actions so far, repeats in a row once."""
    names = [type(action).__name__ for action in cluster.history]
    return [name for index, name in enumerate(names) if index == 0 or names[index - 1] != name]


def satisfied(cluster: ToyCluster, extent: int = E) -> bool:
    extent_class = cluster.view.classes[CLASS].row
    return assess(cluster.row(extent), cluster.committed(extent), extent_class, places(cluster.view)).satisfied


def whole_copied(cluster: ToyCluster, length: int = 40 * MIB) -> None:
    """A sealed extent, written on node 1, copied and read back."""
    cluster.open_extent(E, writer=1, length=length)
    cluster.settle()
    cluster.seal(E)
    cluster.wait(cluster.policy.first_verify_delay_ms)
    cluster.settle()
    assert satisfied(cluster)
    assert all(each.verified_ms for each in cluster.row(E).locations)
    cluster.history.clear()


def lost_for_good(cluster: ToyCluster, node: int = 1) -> None:
    """The node's session ends, and the grace time goes by."""
    cluster.down(node)
    cluster.settle()
    cluster.wait(cluster.policy.grace_ms)


# -- copying -------------------------------------------------------------------------------------
def test_an_open_extent_is_copied_while_it_grows() -> None:
    cluster = ToyCluster()
    cluster.open_extent(E, writer=1, length=MIB)
    cluster.settle()
    assert kinds(cluster) == ["Reserve", "Pull"]
    assert cluster.location(E, 3).length == MIB

    cluster.write(E, 2 * MIB)
    assert cluster.plan() == [], "told at most once a second"
    cluster.wait(cluster.policy.follow_ms)
    cluster.settle()
    assert cluster.location(E, 3).length == 2 * MIB


def test_the_seal_is_told_at_once_and_ends_in_a_verified_copy() -> None:
    cluster = ToyCluster()
    cluster.open_extent(E, writer=1, length=MIB)
    cluster.settle()
    cluster.seal(E)
    (pull,) = [action for action in cluster.plan() if isinstance(action, Pull)]
    assert pull.sealed
    cluster.perform(pull)
    assert cluster.location(E, 3).verified_ms


def test_a_second_pass_over_what_is_copied_asks_for_nothing() -> None:
    cluster = ToyCluster()
    whole_copied(cluster)
    cluster.wait(3_600_000)
    assert cluster.plan() == []


def test_an_extent_without_a_group_is_not_copied() -> None:
    cluster = ToyCluster()
    cluster.open_extent(E, writer=1, length=4096)
    assert cluster.plan() == []


def test_the_oldest_debt_goes_first() -> None:
    cluster = ToyCluster(policy=Policy(pulls_per_volume=100))
    for extent in (30, 10, 20):
        cluster.open_extent(extent, writer=1, length=MIB)
        cluster.wait(1_000)
    assert [action.extent for action in cluster.plan() if isinstance(action, Reserve)] == [30, 10, 20]


def test_a_destination_is_told_of_a_bounded_number_of_pulls() -> None:
    cluster = ToyCluster(copy_nodes=1, policy=Policy(pulls_per_volume=2))
    for extent in range(5):
        cluster.open_extent(extent, writer=1, length=MIB)
    reserved = [action for action in cluster.plan() if isinstance(action, Reserve)]
    assert len(reserved) == 2
    for reserve in reserved:
        cluster.perform(reserve)
    pulls = [action for action in cluster.plan() if isinstance(action, Pull)]
    assert len(pulls) == 2
    for pull in pulls:
        cluster.memory.note_pull(pull.location, _told(cluster, pull))
    assert cluster.plan() == [], "told, and nothing arrived yet"
    cluster.perform(pulls[0])
    assert [type(action) for action in cluster.plan()] == [Reserve]


def _told(cluster: ToyCluster, action: Pull) -> Told:
    return Told(cluster.now_ms, action.epoch, action.up_to, action.sealed)


@pytest.mark.parametrize("state", ["damaged", "missing"])
def test_a_bad_copy_is_debt_again_and_made_anew(state: str) -> None:
    cluster = ToyCluster()
    whole_copied(cluster)
    cluster.mark(E, 3, "damaged" if state == "damaged" else "missing")
    cluster.settle()
    assert satisfied(cluster)
    assert cluster.location(E, 4).state == "good"
    assert cluster.location(E, 3).state == "dropping", "the bad one goes once it is replaced"


def test_a_bad_copy_in_a_pool_of_one_node_gets_a_new_generation_beside_it() -> None:
    cluster = ToyCluster(copy_nodes=1)
    whole_copied(cluster)
    old = cluster.location(E, 2 + 1).generation
    cluster.mark(E, 3, "damaged")
    cluster.settle()
    assert satisfied(cluster)
    assert cluster.location(E, 3).generation > old


def test_a_damaged_source_is_the_last_resort_and_named_last() -> None:
    """A15: a block that passes may be taken from it, so it is not left out; the puller checks every block."""
    cluster = ToyCluster(primary_nodes=3)
    whole_copied(cluster)
    cluster.mark(E, 1, "damaged")
    cluster.perform(next(action for action in cluster.plan() if isinstance(action, Reserve)))
    (pull,) = [action for action in cluster.plan() if isinstance(action, Pull)]
    assert [source.volume for source in pull.sources] == [4, 1]


def test_a_half_made_copy_on_a_node_that_is_away_is_replaced_soon() -> None:
    cluster = ToyCluster()
    cluster.open_extent(E, writer=1, length=MIB)
    cluster.settle()
    cluster.write(E, 2 * MIB)
    cluster.down(3)
    cluster.settle()
    assert cluster.plan() == []
    cluster.wait(cluster.policy.debt_patience_ms)
    cluster.settle()
    assert cluster.location(E, 4).length == 2 * MIB


# -- loss, rebuilding, return ----------------------------------------------------------------------
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


def test_a_copy_that_stands_still_is_begun_elsewhere() -> None:
    """A full disk, or a node whose pulls fail: it is not waited for, although it is up."""
    cluster = ToyCluster()
    cluster.open_extent(E, writer=1, length=MIB)
    cluster.seal(E)
    cluster.stuck = frozenset({3})
    for _ in range(cluster.policy.stalled_ms // cluster.policy.repeat_ms):
        cluster.settle()
        assert len(cluster.row(E).locations) == 2, "it is given time"
        cluster.wait(cluster.policy.repeat_ms)
    cluster.settle()
    assert cluster.location(E, 4).length == MIB
    reserves = [action for action in cluster.history if isinstance(action, Reserve)]
    assert [action.volume for action in reserves] == [3, 4]
    assert reserves[1].why == "the one begun on volume3 stands still"


def test_a_copy_that_stood_still_for_hours_because_there_was_nothing_to_copy_is_gone_on_with() -> None:
    """Filled and sealed within one pass, long after it was last written to: the copy begun is not copied again."""
    cluster = ToyCluster()
    cluster.open_extent(E, writer=1, length=MIB)
    cluster.settle()
    cluster.wait(10 * cluster.policy.stalled_ms)
    cluster.write(E, 64 * MIB)
    cluster.seal(E)
    cluster.settle()
    assert cluster.pulled_bytes == 64 * MIB
    assert [action.volume for action in cluster.history if isinstance(action, Reserve)] == [3]


def test_a_copy_whose_node_was_away_is_gone_on_with_when_it_returns() -> None:
    cluster = ToyCluster(copy_nodes=1)
    cluster.open_extent(E, writer=1, length=MIB)
    cluster.settle()
    cluster.down(3)
    cluster.settle()
    cluster.write(E, 64 * MIB)
    cluster.seal(E)
    cluster.wait(10 * cluster.policy.stalled_ms)
    cluster.settle()
    cluster.add_node(4, "copy")
    cluster.up(3)
    cluster.settle()
    assert cluster.pulled_bytes == 64 * MIB
    assert len(cluster.row(E).locations) == 2


def test_a_copy_without_a_source_for_hours_is_gone_on_with_when_the_source_returns() -> None:
    cluster = ToyCluster()
    cluster.open_extent(E, writer=1, length=MIB)
    cluster.settle()
    cluster.write(E, 64 * MIB)
    cluster.seal(E)
    cluster.stuck = frozenset({3})
    cluster.settle()
    cluster.down(1)
    cluster.settle()
    cluster.stuck = frozenset()
    cluster.wait(10 * cluster.policy.stalled_ms)
    cluster.settle()
    cluster.up(1)
    cluster.settle()
    assert cluster.location(E, 3).length == 64 * MIB
    assert [action.volume for action in cluster.history if isinstance(action, Reserve) and action.pool == COPY] == [3]


def test_a_disk_that_its_node_stopped_writing_to_is_no_destination() -> None:
    cluster = ToyCluster()
    cluster.open_extent(E, writer=1, length=MIB)
    cluster.settle()
    cluster.write(E, 2 * MIB)
    cluster.wait(cluster.policy.follow_ms)
    facts = cluster.facts()
    facts.places = places(cluster.view, refusing={3})
    actions = copy.plan(cluster.view, facts, cluster.now_ms, [E])
    assert [action.volume for action in actions if isinstance(action, Reserve)] == [4]


# -- a drop is called off, or is final ---------------------------------------------------------------
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


# -- the brake -------------------------------------------------------------------------------------
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


# -- auditing --------------------------------------------------------------------------------------
def test_what_its_node_did_not_read_back_is_asked_for() -> None:
    cluster = ToyCluster()
    cluster.open_extent(E, writer=1, length=MIB)
    cluster.settle()
    cluster.seal(E)
    assert not any(isinstance(action, Verify) for action in cluster.plan())
    cluster.wait(cluster.policy.first_verify_delay_ms)
    asked = {action.location.volume for action in cluster.plan() if isinstance(action, Verify)}
    assert 1 in asked


def test_everything_is_read_back_once_a_scrub_period_within_the_rate() -> None:
    cluster = ToyCluster()
    whole_copied(cluster)
    cluster.wait(cluster.policy.scrub_period_ms)
    asked = [action for action in cluster.plan() if isinstance(action, Verify)]
    assert {action.location.volume for action in asked} == {1, 3}
    assert all(action.routine for action in asked)
    cluster.memory.scrub_from_ms[1] = cluster.now_ms + 1
    assert {action.location.volume for action in cluster.plan() if isinstance(action, Verify)} == {3}


def test_a_verify_without_verdict_is_asked_for_again() -> None:
    cluster = ToyCluster()
    whole_copied(cluster)
    cluster.wait(cluster.policy.scrub_period_ms)
    for action in cluster.plan():
        assert isinstance(action, Verify)
        cluster.memory.note_verify(action.location, _asked(cluster, action))
    assert cluster.plan() == []
    cluster.wait(cluster.policy.verify_lost_ms)
    assert len(cluster.plan()) == 2


def _asked(cluster: ToyCluster, action: Verify) -> Told:
    return Told(cluster.now_ms, action.epoch, action.length, action.sealed)


def test_a_node_that_came_back_is_asked_at_once_whatever_failed_in_its_last_session() -> None:
    place = LocationKey(7, 2, 1)

    def steps(epoch: int, size_bytes: int) -> list[Pull | Verify]:
        pull = Pull(place, 2, epoch, size_bytes, sealed=True, sources=(), repair=False)
        return [pull, Verify(place, 2, epoch, size_bytes, sealed=True, routine=False, why="")]

    before, later, back = steps(40, MIB), steps(40, 2 * MIB), steps(41, MIB)
    assert [each.key for each in before] == [each.key for each in later], "a rest is kept from pass to pass"
    assert {each.key for each in before}.isdisjoint(each.key for each in back)
