"""What is on its way out is told as such while a process waits for it, and what becomes of it when it is cancelled."""

from __future__ import annotations

from copypool.protocol.processes import ProcessRequest
from copypool_coordinator.policy import Policy
from kit.toy_jobs import ToyJobs, cluster_with, on

#: Files are kept for a minute after their location began to leave.
SLOW = Policy(grace_ms=60_000, drop_delay_ms=60_000)
DISCARD = ProcessRequest("delete", volume="volume1", discard_data=True)


def leaving(jobs: ToyJobs) -> str:
    """A deletion all of whose extents have begun to leave; its id."""
    process = jobs.start(DISCARD)
    for _ in range(100):
        jobs.steps(1)
        if not on(jobs, 1):
            return process
    raise AssertionError(jobs.shown(process))


def states(jobs: ToyJobs) -> list[str]:
    return [each.state for extent in range(3) for each in jobs.cluster.row(extent).locations if each.volume == 1]


def test_extents_on_their_way_out_are_told_with_the_time_at_which_they_go() -> None:
    jobs = cluster_with(policy=SLOW)
    process = leaving(jobs)
    shown = jobs.shown(process)
    assert (shown.done_extents, shown.total_extents) == (0, 3)
    assert shown.outcome.startswith("3 of the 3 extents that are left are on their way out, kept for readers")
    began_ms = max(jobs.cluster.location(extent, 1).changed_ms for extent in range(3))
    assert shown.eta_s == (began_ms + SLOW.drop_delay_ms - jobs.cluster.now_ms) / 1000
    jobs.run(process)
    assert jobs.row(process).state == "done"


def test_cancelling_tells_that_what_was_replaced_goes_all_the_same() -> None:
    jobs = cluster_with(policy=SLOW)
    process = leaving(jobs)
    jobs.cancel(process)
    jobs.run(process)
    row = jobs.row(process)
    assert row.state == "cancelled"
    assert "3 locations that are on their way out go all the same: others have all their bytes" in row.outcome
    jobs.steps(100)
    assert states(jobs) == []
    assert jobs.marks() == {}, "and nothing is lacking"


def test_cancelling_calls_off_what_policy_needs() -> None:
    jobs = cluster_with(primary_nodes=1, policy=SLOW)
    process = leaving(jobs)
    jobs.cancel(process)
    jobs.run(process)
    assert "3 locations that were on their way out are called off and stay" in jobs.row(process).outcome
    jobs.steps(100)
    assert states(jobs) == ["good", "good", "good"]
