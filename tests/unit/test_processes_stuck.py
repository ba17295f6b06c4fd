"""Processes that cannot do all they were asked for: they end, say which extent waits for what, and hold nobody up."""

from __future__ import annotations

from msgspec.structs import replace

from copypool.protocol.processes import ProcessRequest
from copypool_coordinator import keys, starting
from copypool_coordinator.controllers.actions import Pull
from copypool_coordinator.policy import Policy
from kit.little_view import LittleView, report
from kit.toy_cluster import MIB
from kit.toy_jobs import LENGTH, ToyJobs, cluster_with, on


def test_a_restore_whose_pulls_fail_for_good_ends_and_says_which_extent_waits_for_what() -> None:
    """No source is away and none is marked, and still their blocks do not make a whole one: known only when tried."""
    jobs = cluster_with()
    jobs.cluster.broken = frozenset({1})
    process = jobs.start(ProcessRequest("restore", volume="volume1"))
    jobs.steps(15)
    shown = jobs.shown(process)
    assert (shown.done_extents, shown.skipped_total, shown.eta_s) == (2, 1, None)
    assert [(each.extent, each.why) for each in shown.skipped] == [
        (1, f"volume2 has 0 of its {LENGTH} bytes: no source brings it on")
    ]
    assert shown.outcome.startswith("nothing of the 1 extents that are left can go on now: volume2 has")
    began_ms = jobs.cluster.now_ms
    jobs.run(process)
    row = jobs.row(process)
    assert (row.state, row.done_extents, row.skipped_total) == ("incomplete", 2, 1)
    assert jobs.cluster.now_ms - began_ms <= jobs.cluster.policy.process_patience_ms + 10_000
    assert on(jobs, 1) == [1], "what was not rebuilt keeps its row"


def test_what_cannot_go_on_is_listed_while_the_rest_goes_on() -> None:
    jobs = cluster_with()
    jobs.cluster.broken = frozenset({0, 1, 2})
    process = jobs.start(ProcessRequest("restore", volume="volume1"))
    jobs.steps(2)
    jobs.cluster.broken = frozenset({0})
    for node in (3, 4):
        jobs.cluster.up(node)  # a new session of a source is worth another try
    jobs.cluster.perform_all(jobs.cluster.plan())
    jobs.cluster.broken = frozenset()
    shown = jobs.shown(process)
    assert shown.state == "running"
    assert [each.extent for each in shown.skipped] == [0]
    assert jobs.row(process).skipped == [], "the row tells it at the end"
    jobs.run(process)
    assert jobs.row(process).state == "done"


def test_pulls_that_fail_do_not_keep_others_from_their_turn() -> None:
    jobs = cluster_with(24)
    jobs.cluster.broken = frozenset(range(20))
    assert jobs.cluster.policy.pulls_per_volume < 20
    process = jobs.start(ProcessRequest("restore", volume="volume1"))
    jobs.run(process)
    row = jobs.row(process)
    assert (row.state, row.done_extents, row.skipped_total) == ("incomplete", 4, 20)


def test_a_pull_that_was_given_up_goes_on_at_once_when_a_source_comes() -> None:
    jobs = cluster_with(1)
    jobs.cluster.broken = frozenset({0})
    process = jobs.start(ProcessRequest("restore", volume="volume1"))
    jobs.steps(3)
    jobs.cluster.broken = frozenset()
    assert not any(isinstance(action, Pull) for action in jobs.cluster.plan()), "not asked again and again"
    jobs.cluster.up(jobs.copy_of(0))
    assert any(isinstance(action, Pull) for action in jobs.cluster.plan())
    jobs.run(process)
    assert jobs.row(process).state == "done"


def test_a_place_that_has_no_room_after_all_is_left_for_another_one() -> None:
    jobs = cluster_with(primary_nodes=3)
    jobs.cluster.full = frozenset({2})
    process = jobs.start(ProcessRequest("restore", volume="volume1"))
    jobs.run(process)
    assert jobs.row(process).state == "done"
    assert on(jobs, 3) == [0, 1, 2]


def test_a_restore_with_no_room_anywhere_ends_incomplete() -> None:
    jobs = cluster_with()
    jobs.cluster.full = frozenset({2})
    process = jobs.start(ProcessRequest("restore", volume="volume1"))
    jobs.run(process)
    row = jobs.row(process)
    assert (row.state, row.skipped[0].why) == ("incomplete", f"volume2 has 0 of its {LENGTH} bytes: no room")


def test_an_audit_with_fix_that_cannot_mend_ends_incomplete() -> None:
    jobs = cluster_with()
    jobs.cluster.mark(1, 1, "damaged")
    jobs.cluster.broken = frozenset({1})
    jobs.cluster.wait(1)
    process = jobs.start(ProcessRequest("audit", volume="volume1", fix=True))
    jobs.cluster.mark(2, 1, "damaged")
    jobs.run(process)
    assert jobs.row(process).state == "done", "only what was found since it began is its work"

    jobs.cluster.broken = frozenset({0, 1})
    process = jobs.start(ProcessRequest("audit", volume="volume1", fix=True))
    jobs.cluster.mark(0, 1, "damaged")
    jobs.run(process)
    row = jobs.row(process)
    assert (row.state, [each.extent for each in row.skipped]) == ("incomplete", [0])


def test_what_is_on_its_way_out_stays_when_its_place_is_wanted_again() -> None:
    """Drained, given back, and the other way round: nothing is waited for and nothing is copied a second time."""
    jobs = cluster_with(policy=Policy(grace_ms=60_000))
    jobs.run(jobs.start(ProcessRequest("drain", node="node1")))
    jobs.release_all()
    jobs.cluster.pulled_bytes = 0
    jobs.watch_protection()
    second = jobs.start(ProcessRequest("drain", node="node2"))
    jobs.run(second)
    row = jobs.row(second)
    assert (row.state, on(jobs, 1), on(jobs, 2)) == ("done", [0, 1, 2], [])
    assert row.ended_ms - row.created_ms < jobs.cluster.policy.drop_delay_ms
    assert jobs.cluster.pulled_bytes == 0


def with_places_that_are_taken(policy: Policy) -> ToyJobs:
    """What was on 1 is damaged, replaced on 2, and on its way out: until then nothing else of it goes to 1."""
    jobs = cluster_with(policy=policy)
    for extent in range(3):
        jobs.cluster.mark(extent, 1, "damaged")
    jobs.cluster.settle()
    assert on(jobs, 1) == []
    return jobs


def test_a_place_that_is_being_freed_is_waited_for() -> None:
    """Longer than the patience: a location that goes is deleted 330 s later, and what is waited for has a time."""
    jobs = with_places_that_are_taken(Policy(grace_ms=60_000))
    process = jobs.start(ProcessRequest("drain", node="node2"))
    jobs.steps(3)
    shown = jobs.shown(process)
    assert shown.outcome.startswith("3 of the 3 extents that are left wait: its place is taken until its old location")
    assert jobs.row(process).stuck_since_ms == 0
    jobs.run(process)
    assert jobs.row(process).state == "done"
    assert on(jobs, 1) == [0, 1, 2]


def test_a_place_that_is_never_freed_is_not_waited_for_without_end() -> None:
    jobs = with_places_that_are_taken(Policy(grace_ms=60_000, drop_delay_ms=100_000))
    process = jobs.start(ProcessRequest("drain", node="node2"))
    for volume in (3, 4):
        jobs.cluster.set_access(volume, "unavailable")  # survivors of the drop: nothing is erased meanwhile
    jobs.run(process)
    assert jobs.row(process).state == "incomplete"


def test_what_goes_is_no_part_of_how_full_a_volume_is() -> None:
    """A second rebalance within the 330 s that dropped files stay would move the same bytes once more."""
    jobs = cluster_with(policy=Policy(grace_ms=60_000))
    little = LittleView()
    little.beat(1, {1: report(1, free=900 * MIB)})
    loads = {1: little.heartbeats.loads(0.0)[1]}
    total = loads[1].report.total_bytes
    used = total - 900 * MIB
    assert starting.fullness(jobs.cluster.view, loads) == {1: (used, total)}
    jobs.run(jobs.start(ProcessRequest("move", volume="volume1")))
    assert starting.fullness(jobs.cluster.view, loads) == {1: (used - 3 * LENGTH, total)}

    row = jobs.cluster.view.volumes["volume1"].row
    jobs.cluster.put(keys.named(keys.VOLUME, "volume1"), replace(row, limit_bytes=1000 * MIB))
    assert starting.fullness(jobs.cluster.view, loads) == {1: (max(0, 100 * MIB - 3 * LENGTH), 1000 * MIB)}
