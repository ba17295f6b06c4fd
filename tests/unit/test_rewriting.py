"""`namespace rewrite` as a process: older extents get the present policy of their namespace, on plans alone."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from copypool.cli.namespaces import namespace_text
from copypool.cli.process_text import preview_text
from copypool.protocol.api import NamespaceInfo
from copypool.protocol.capability import WRITE_LIFE_MS
from copypool.protocol.errors import Conflict, NotFound
from copypool.protocol.policies import NamespaceDetails
from copypool.protocol.processes import ProcessRequest
from copypool_coordinator import describing, keys, reclassing
from copypool_coordinator.rows import FORMAT, ClassRow, NamespaceRow, PoolRow, Share
from kit.toy_cluster import CLASS, COPY, PRIMARY
from kit.toy_jobs import LENGTH, ToyJobs, cluster_with

VAULT, MORE = 3, 2  #: a second copy pool, and the class that wants copies there as well


def with_a_changed_policy(jobs: ToyJobs, shared: int) -> None:
    """Extents of namespace 5, one of which holds records of namespace 6 too; now 5 wants copies in the vault."""
    cluster = jobs.cluster
    cluster.put(keys.named(keys.POOL, "vault"), PoolRow(FORMAT, VAULT, "copy"))
    for node in (8, 9):
        cluster.add_node(node, "copy")
        row = cluster.view.volumes[f"volume{node}"].row
        cluster.put(keys.named(keys.VOLUME, f"volume{node}"), replace(row, pool=VAULT))
    cluster.put(keys.named(keys.CLASS, "more"), ClassRow(FORMAT, MORE, PRIMARY, [COPY, VAULT], "primary"))
    since = cluster.now_ms
    policy = NamespaceRow(FORMAT, 5, MORE, past_classes=[CLASS], class_since_ms=since)
    cluster.put(keys.named(keys.NAMESPACE, "five"), policy)
    cluster.put(keys.named(keys.NAMESPACE, "six"), NamespaceRow(FORMAT, 6, CLASS))
    for extent in cluster.view.extents:
        shares = [Share(5, LENGTH, 10, LENGTH // 2)] + [Share(6, LENGTH, 10, LENGTH // 2)] * (extent == shared)
        cluster.put_extent(extent, replace(cluster.row(extent), shares=shares))


def rewriting(jobs: ToyJobs) -> None:
    """What the duty of that name does."""
    cluster = jobs.cluster
    for extent in list(cluster.view.extents_by_class.get(CLASS, ())):
        if reclassing.judge(cluster.view, cluster.row(extent), MORE).possible:
            cluster.put_extent(extent, replace(cluster.row(extent), class_id=MORE))


def test_a_rewriting_is_done_once_old_leases_are_over_and_the_copies_are_there() -> None:
    jobs = cluster_with()
    with_a_changed_policy(jobs, shared=-1)
    request = ProcessRequest("rewrite", namespace="five")
    found = jobs.preview(request)
    assert (found.extents, found.bytes, found.blocked_extents) == (3, 3 * LENGTH, 0)
    process = jobs.start(request)
    jobs.look("")
    assert (jobs.row(process).state, jobs.row(process).done_extents) == ("running", 0)
    rewriting(jobs)
    jobs.look("")
    assert jobs.row(process).done_extents == 0, "the class alone is not what was asked for"
    jobs.steps(5)
    shown = jobs.shown(process)
    assert (shown.state, shown.done_extents) == ("running", 3), "an old lease may still bring more"
    jobs.run(process)
    row = jobs.row(process)
    assert (row.state, row.outcome) == ("done", f"{3 * LENGTH} bytes in 3 extents have the present policy")
    assert {each.volume for extent in range(3) for each in jobs.cluster.row(extent).locations} >= {8}
    with pytest.raises(NotFound):
        jobs.start(ProcessRequest("rewrite", namespace="seven"))


def test_extents_that_are_shared_with_another_policy_are_left_out_and_listed() -> None:
    jobs = cluster_with()
    with_a_changed_policy(jobs, shared=1)
    request = ProcessRequest("rewrite", namespace="five")
    (blocked,) = jobs.preview(request).blocked
    assert (blocked.extent, blocked.why) == (
        1,
        "it has records of namespaces with another policy (six) too: give them the same one",
    )
    process = jobs.start(request)
    rewriting(jobs)
    jobs.run(process)
    row = jobs.row(process)
    assert (row.state, row.done_extents, [each.extent for each in row.skipped]) == ("incomplete", 2, [1])
    assert jobs.cluster.row(1).class_id == CLASS


def test_a_cancelled_rewriting_leaves_the_rest_as_it_is() -> None:
    jobs = cluster_with()
    with_a_changed_policy(jobs, shared=-1)
    process = jobs.start(ProcessRequest("rewrite", namespace="five"))
    jobs.cancel(process)
    jobs.run(process)
    assert jobs.row(process).state == "cancelled"


def test_a_preview_and_its_run_agree_that_a_pool_without_volumes_can_take_nothing() -> None:
    """The extent is judged by the class that it is to get, in the preview as in the run."""
    jobs = cluster_with()
    with_a_changed_policy(jobs, shared=-1)
    for node in (8, 9):
        jobs.cluster.delete(keys.named(keys.VOLUME, f"volume{node}"))
    jobs.cluster.open_extent(7, writer=1, length=LENGTH)
    opened = jobs.cluster.opened[7]
    jobs.cluster.opened[7] = replace(opened, shares=[Share(5, LENGTH, 10, LENGTH // 2)])
    jobs.cluster.wait(1)
    request = ProcessRequest("rewrite", namespace="five")
    found = jobs.preview(request)
    assert (found.extents, found.blocked_extents) == (4, 4)
    assert all(each.why.startswith("no volume of pool 'vault' ") for each in found.blocked)
    process = jobs.start(request)
    jobs.cluster.seal(7)
    rewriting(jobs)
    jobs.run(process)
    row = jobs.row(process)
    assert (row.state, row.done_extents, [each.why for each in row.skipped]) == (
        "incomplete",
        0,
        [each.why for each in found.blocked],
    )
    namespace = jobs.cluster.view.namespaces["five"].row
    assert (asyncio.run(describing.older_extents(jobs.cluster.view, namespace))).extents == 0
    lacking = asyncio.run(describing.lacking_extents(jobs.cluster.view, jobs.marks(), namespace))
    assert lacking == (4, 4 * LENGTH // 2), "of the present policy by name alone"


def test_a_preview_does_not_ask_for_a_pool_that_the_policy_has_given_up() -> None:
    jobs = cluster_with()
    with_a_changed_policy(jobs, shared=-1)
    rewriting(jobs)
    jobs.cluster.settle()
    for node in (8, 9):
        jobs.cluster.set_access(node, "destroyed")
    before = jobs.cluster.view.namespaces["five"].row
    policy = replace(before, class_id=CLASS, past_classes=[MORE], class_since_ms=jobs.cluster.now_ms)
    jobs.cluster.put(keys.named(keys.NAMESPACE, "five"), policy)
    request = ProcessRequest("rewrite", namespace="five")
    found = jobs.preview(request)
    assert (found.extents, found.blocked_extents, found.shares) == (3, 0, [])
    process = jobs.start(request)
    for extent in range(3):
        jobs.cluster.put_extent(extent, replace(jobs.cluster.row(extent), class_id=CLASS))
    jobs.run(process)
    assert (jobs.row(process).state, jobs.row(process).done_extents) == ("done", 3)


def test_a_preview_names_the_volumes_that_new_copies_are_read_from() -> None:
    jobs = cluster_with()
    with_a_changed_policy(jobs, shared=-1)
    found = jobs.preview(ProcessRequest("rewrite", namespace="five"))
    assert [(each.volume, each.extents) for each in found.shares] == [("volume1", 3)]
    assert "read from   volume1: 3 extents" in preview_text(found)


def test_a_namespace_says_how_many_extents_are_not_where_its_policy_wants_them() -> None:
    info = NamespaceInfo("five", 5, "primary", ["copy", "vault"], "primary")
    details = NamespaceDetails(info, 3, 0, 0.0, False, 0, 0, [], True, "", lacking_extents=8, lacking_bytes=2048)
    assert "not yet       8 extents, 2.0 KiB, where the policy wants them" in namespace_text(details)
    details.lacking_extents = 0
    assert "not yet" not in namespace_text(details)


def test_a_rewriting_of_which_nothing_can_be_done_waits_for_old_leases_alone() -> None:
    """They may bring extents that can be rewritten; once they are over, it is refused at once."""
    jobs = cluster_with(1)
    with_a_changed_policy(jobs, shared=0)
    request = ProcessRequest("rewrite", namespace="five")
    life_s = WRITE_LIFE_MS // 1000
    assert jobs.preview(request).notes == [f"leases from before the update live for {life_s} s: it does not end sooner"]
    process = jobs.start(request)
    assert jobs.shown(process).outcome == (
        f"it waits for leases from before the update, which live for {life_s} s; 1 of the 1 extents that are left "
        "cannot go on: it has records of namespaces with another policy (six) too: give them the same one"
    )
    jobs.run(process)
    assert jobs.row(process).state == "incomplete"
    assert jobs.preview(request).notes == []
    with pytest.raises(Conflict, match=r"nothing was begun: it has records .*\(six\).* lists all 1 extents"):
        jobs.start(request)
