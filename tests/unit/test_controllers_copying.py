"""Copying, told to the plans alone: rows, obedient nodes, a clock turned by hand."""

from __future__ import annotations

import pytest

from copypool_coordinator.controllers import copy
from copypool_coordinator.controllers.actions import (
    Pull,
    Reserve,
)
from copypool_coordinator.policy import Policy, Told, places
from kit.toy_cluster import COPY, MIB, ToyCluster
from kit.toy_extent import E, kinds, satisfied, whole_copied


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
