"""When stored bytes are asked to be read back, told to the plans alone."""

from __future__ import annotations

from copypool_coordinator.controllers.actions import (
    Pull,
    Verify,
)
from copypool_coordinator.policy import LocationKey, Told
from kit.toy_cluster import MIB, ToyCluster
from kit.toy_extent import E, whole_copied


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
