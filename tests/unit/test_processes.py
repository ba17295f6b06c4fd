"""Stories of operators' verbs, told to the plans alone: what they set, what the controllers make of it, how it ends."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from copypool.cli.process_text import preview_text
from copypool.protocol.errors import Conflict, Invalid, NotFound
from copypool.protocol.processes import PROCESSES_MAX, ProcessRequest
from copypool_coordinator import keys, starting
from copypool_coordinator.controllers import processes
from copypool_coordinator.controllers.actions import TrimProcesses, Verify, WriteProcess
from copypool_coordinator.policy import Memory
from copypool_coordinator.rows import FORMAT, ProcessRow
from kit.toy_cluster import MIB, ToyCluster
from kit.toy_jobs import LENGTH, ToyJobs, cluster_with, on


# -- restore -------------------------------------------------------------------------------------
def test_a_restored_volume_is_never_read_and_ends_empty() -> None:
    jobs = cluster_with()
    found = jobs.preview(ProcessRequest("restore", volume="volume1"))
    assert (found.extents, found.bytes, found.blocked_extents) == (3, 3 * LENGTH, 0)
    assert set(found.sources) <= {"volume3", "volume4"}, "only copy volumes are read"

    process = jobs.start(ProcessRequest("restore", volume="volume1"))
    jobs.run(process)
    row = jobs.row(process)
    assert (row.state, row.done_extents, row.done_bytes) == ("done", 3, 3 * LENGTH)
    assert jobs.cluster.view.extents_by_volume[1] == set(), "its locations have left the rows"
    assert on(jobs, 2) == [0, 1, 2]
    for action in jobs.cluster.history:
        for source in getattr(action, "sources", ()):
            assert source.volume != 1, "the broken volume is read"
        assert not (isinstance(action, Verify) and action.location.volume == 1)
    assert jobs.cluster.view.volumes["volume1"].row.access == "destroyed"


def test_what_cannot_be_restored_is_told_beforehand_and_listed_at_the_end() -> None:
    jobs = cluster_with(primary_nodes=2, copy_nodes=1)
    jobs.cluster.set_access(3, "destroyed")  # the only copies are gone
    found = jobs.preview(ProcessRequest("restore", volume="volume1"))
    assert (found.blocked_extents, found.blocked_bytes) == (3, 3 * LENGTH)
    assert {entry.why for entry in found.blocked} == {"no location holds its bytes any more"}

    process = jobs.start(ProcessRequest("restore", volume="volume1"))
    jobs.run(process)
    row = jobs.row(process)
    assert (row.state, row.skipped_total) == ("incomplete", 3)
    assert [each.extent for each in row.skipped] == [0, 1, 2]
    assert on(jobs, 1) == [0, 1, 2], "what is perhaps only there keeps its row"


def test_a_restore_that_is_cancelled_gives_the_volume_back() -> None:
    jobs = cluster_with()
    process = jobs.start(ProcessRequest("restore", volume="volume1"))
    jobs.cancel(process)
    jobs.run(process)
    assert jobs.row(process).state == "cancelled"
    assert jobs.cluster.view.volumes["volume1"].row.access == "readwrite"


def test_a_restore_that_is_cancelled_leaves_the_volume_to_who_still_empties_it() -> None:
    jobs = cluster_with()
    emptied = jobs.start(ProcessRequest("move", volume="volume1"))
    restored = jobs.start(ProcessRequest("restore", volume="volume1"))
    jobs.cancel(restored)
    jobs.run(restored)
    jobs.run(emptied)
    assert (jobs.row(restored).state, jobs.row(emptied).state) == ("cancelled", "done")
    assert on(jobs, 1) == []


def test_a_pool_is_restored_without_waiting_for_who_is_away() -> None:
    jobs = cluster_with()
    jobs.cluster.down(1)
    jobs.cluster.settle()
    assert on(jobs, 2) == [], "within the grace time nothing is rebuilt"
    process = jobs.start(ProcessRequest("restore", pool="primary"))
    jobs.run(process)
    assert jobs.row(process).state == "done"
    assert on(jobs, 2) == [0, 1, 2]


def test_a_restore_survives_any_number_of_leaders_and_pulls_nothing_twice() -> None:
    jobs = cluster_with()
    process = jobs.start(ProcessRequest("restore", volume="volume1"))
    for _ in range(20):
        jobs.cluster.memory = Memory()
        jobs.steps(3)
    jobs.run(process)
    assert jobs.row(process).state == "done"
    assert jobs.cluster.pulled_bytes == 3 * LENGTH


# -- move, drain ---------------------------------------------------------------------------------
def test_a_drained_node_is_empty_and_nothing_was_less_protected_meanwhile() -> None:
    jobs = cluster_with()
    jobs.watch_protection()
    process = jobs.start(ProcessRequest("drain", node="node1"))
    assert jobs.cluster.view.volumes["volume1"].row.intent == "drain"
    jobs.run(process)
    row = jobs.row(process)
    assert (row.state, row.done_bytes) == ("done", 3 * LENGTH)
    assert on(jobs, 1) == []
    assert on(jobs, 2) == [0, 1, 2]
    assert jobs.cluster.view.volumes["volume1"].row.intent == "drain", "it takes nothing before it is released"


def test_a_move_with_nowhere_to_go_is_not_begun() -> None:
    """Else the volume would be out of service for nothing."""
    jobs = cluster_with(primary_nodes=1)
    for request in (ProcessRequest("move", volume="volume1"), ProcessRequest("drain", node="node1")):
        found = jobs.preview(request)
        assert found.blocked_extents == found.extents == 3
        with pytest.raises(Conflict, match="nothing was begun: no volume of pool 'primary'"):
            jobs.start(request)
    assert jobs.cluster.view.volumes["volume1"].row.intent == ""


def test_a_move_of_open_extents_with_nowhere_to_go_is_not_begun_either() -> None:
    """They are sealed first, and then are as stuck as the others; an empty one needs no place."""
    jobs = cluster_with(1, primary_nodes=1)
    jobs.cluster.open_extent(8, writer=1, length=MIB)
    jobs.cluster.open_extent(9, writer=1, length=4096)
    with pytest.raises(Conflict, match="lists all 2 extents"):
        jobs.start(ProcessRequest("move", volume="volume1"))
    jobs.cluster.add_node(5, "primary")
    process = jobs.start(ProcessRequest("move", volume="volume1"))
    jobs.run(process)
    assert jobs.row(process).state == "done"


def test_a_move_whose_only_place_goes_ends_incomplete_and_gives_the_volume_back() -> None:
    jobs = cluster_with()
    jobs.watch_protection()
    process = jobs.start(ProcessRequest("move", volume="volume1"))
    jobs.cluster.set_access(2, "readonly")
    jobs.run(process)
    row = jobs.row(process)
    assert (row.state, row.skipped_total) == ("incomplete", 3)
    assert "no volume of pool 'primary'" in row.skipped[0].why
    assert jobs.cluster.view.volumes["volume1"].row.intent == ""
    assert on(jobs, 1) == [0, 1, 2]


def test_a_reason_names_the_pool_that_is_in_the_way() -> None:
    jobs = cluster_with(1, primary_nodes=1, copy_nodes=1)
    (copy,) = jobs.preview(ProcessRequest("move", volume="volume2")).blocked
    assert copy.why.startswith("no volume of pool 'copy'")
    jobs.cluster.add_node(3, "primary")
    jobs.cluster.mark(0, 2, "damaged")
    jobs.cluster.set_access(2, "readonly")
    (primary,) = jobs.preview(ProcessRequest("drain", node="node1")).blocked
    assert primary.why.startswith("it has to be whole in pool 'copy' too: no volume of pool 'copy'")


def test_a_cancelled_move_keeps_what_was_moved_and_goes_on_when_asked_again() -> None:
    jobs = cluster_with()
    jobs.watch_protection()
    first = jobs.start(ProcessRequest("move", volume="volume1"))
    jobs.steps(2)
    jobs.cancel(first)
    jobs.run(first)
    assert jobs.row(first).state == "cancelled"
    assert jobs.cluster.view.volumes["volume1"].row.intent == ""
    second = jobs.start(ProcessRequest("move", volume="volume1"))
    jobs.run(second)
    assert jobs.row(second).state == "done"
    assert jobs.cluster.pulled_bytes == 3 * LENGTH, "nothing is pulled twice"


def test_an_open_extent_is_sealed_and_moved() -> None:
    jobs = cluster_with(extents=1)
    jobs.cluster.open_extent(7, writer=1, length=LENGTH)
    process = jobs.start(ProcessRequest("move", volume="volume1"))
    jobs.run(process)
    assert not jobs.cluster.row(7).open
    assert on(jobs, 1) == []


def test_what_has_its_copy_offsite_does_not_move_since_that_cannot_be_read_back() -> None:
    jobs = cluster_with(1, copy_nodes=1)
    jobs.cluster.set_access(3, "offsite")
    for request in (ProcessRequest("move", volume="volume1"), ProcessRequest("drain", node="node1")):
        (blocked,) = jobs.preview(request).blocked
        assert blocked.why == "volume3 has its copy and is offsite: it cannot be read back there first"
        with pytest.raises(Conflict, match="nothing was begun: volume3 has its copy and is offsite"):
            jobs.start(request)
    jobs.cluster.set_access(3, "readonly")
    process = jobs.start(ProcessRequest("move", volume="volume1"))
    jobs.cluster.set_access(3, "offsite")
    jobs.run(process)
    row = jobs.row(process)
    assert (row.state, [each.why for each in row.skipped]) == ("incomplete", [blocked.why])
    assert jobs.cluster.view.volumes["volume1"].row.intent == ""


# -- audit ---------------------------------------------------------------------------------------
def test_an_audit_reads_everything_back_and_counts_what_it_finds() -> None:
    jobs = cluster_with(extents=5)
    process = jobs.start(ProcessRequest("audit", volume="volume1"))
    jobs.cluster.rotten = {(1, 1), (3, 1)}  # (extent, volume)
    jobs.run(process)
    row = jobs.row(process)
    assert (row.state, row.found_total) == ("done", 2)
    assert sorted(extent for extent, _ in row.found) == [1, 3]
    assert row.outcome == f"read back {5 * LENGTH} bytes in 5 extents; 2 locations found bad"


def test_an_audit_with_fix_waits_until_all_is_mended_and_keeps_every_last_copy() -> None:
    jobs = cluster_with(extents=3)
    jobs.cluster.mark(2, 3, "damaged")
    jobs.cluster.mark(2, 1, "damaged")  # both are: nothing may be thrown away
    jobs.cluster.wait(1000)
    process = jobs.start(ProcessRequest("audit", volume="volume1", fix=True))
    jobs.cluster.rotten = {(0, 1)}
    jobs.run(process)
    row = jobs.row(process)
    assert (row.state, row.found_total) == ("done", 1)
    assert "mended" in row.outcome
    good = [each for each in jobs.cluster.row(0).locations if each.state == "good"]
    assert len(good) == 2
    assert jobs.cluster.held(2) == LENGTH


def test_what_was_bad_before_an_audit_is_not_its_find_and_what_is_mended_at_once_is() -> None:
    jobs = cluster_with(extents=3)
    jobs.cluster.mark(2, 1, "damaged")
    jobs.cluster.wait(1000)
    process = jobs.start(ProcessRequest("audit", volume="volume1"))
    jobs.cluster.rotten = {(0, 1)}
    jobs.cluster.settle(rounds=60)  # found, replaced and on its way out before the controller looks
    assert {jobs.cluster.location(extent, 1).state for extent in (0, 2)} == {"dropping"}
    jobs.run(process)
    assert jobs.row(process).found == [(0, 1)]


def test_an_audit_says_that_it_does_not_read_what_is_marked_bad_already() -> None:
    jobs = cluster_with(extents=1)
    jobs.cluster.mark(0, 1, "damaged")
    found = jobs.preview(ProcessRequest("audit", volume="volume1"))
    assert found.extents == 0
    assert any("1 locations there are marked damaged or missing already" in note for note in found.notes)
    process = jobs.start(ProcessRequest("audit", volume="volume1"))
    jobs.run(process)
    assert "1 were marked bad before: they are replaced, not read again" in jobs.row(process).outcome


def test_an_audit_seals_what_is_open_and_reads_it_as_well() -> None:
    jobs = cluster_with(extents=1)
    jobs.cluster.open_extent(7, writer=1, length=LENGTH)
    jobs.cluster.wait(10)
    process = jobs.start(ProcessRequest("audit", volume="volume1"))
    jobs.run(process)
    assert jobs.row(process).state == "done"
    assert jobs.cluster.location(7, 1).verified_ms >= jobs.row(process).created_ms


# -- backup --------------------------------------------------------------------------------------
def test_a_backup_ends_when_what_was_there_is_copied_and_a_second_one_copies_nothing() -> None:
    jobs = cluster_with(extents=1)
    jobs.cluster.open_extent(7, writer=1, length=LENGTH)
    process = jobs.start(ProcessRequest("backup", pool="primary"))
    assert jobs.row(process).total_bytes > 0
    jobs.run(process)
    row = jobs.row(process)
    assert (row.state, row.done_bytes) == ("done", row.total_bytes)
    again = jobs.start(ProcessRequest("backup", pool="primary"))
    jobs.run(again)
    assert jobs.row(again).outcome == "nothing to copy: 0 bytes"


def test_a_damaged_copy_is_debt_of_the_next_backup() -> None:
    jobs = cluster_with(extents=2)
    jobs.cluster.mark(1, jobs.copy_of(1), "damaged")
    assert jobs.preview(ProcessRequest("backup", pool="primary")).extents == 1
    process = jobs.start(ProcessRequest("backup", pool="primary"))
    jobs.run(process)
    assert jobs.row(process).outcome.startswith("copied ")


def test_a_backup_does_not_wait_for_what_came_later() -> None:
    jobs = cluster_with(extents=1)
    process = jobs.start(ProcessRequest("backup", pool="primary"))
    jobs.cluster.open_extent(9, writer=1, length=LENGTH)
    jobs.look(process)
    assert jobs.row(process).state == "done"


def test_a_little_debt_of_an_open_extent_is_read_from_its_writer() -> None:
    jobs = cluster_with(extents=1)
    jobs.cluster.open_extent(7, writer=1, length=MIB)
    jobs.cluster.settle()
    jobs.cluster.write(7, MIB + 2000)
    found = jobs.preview(ProcessRequest("backup", pool="primary"))
    assert (found.extents, found.bytes, found.sources) == (1, 2000, ["volume1"])
    text = preview_text(found)
    assert "read from   volume1: 1 extents, 2.0 KiB" in text
    assert "no whole location" not in text


# -- delete --------------------------------------------------------------------------------------
def test_a_volume_with_data_is_not_deleted_without_a_word() -> None:
    jobs = cluster_with()
    with pytest.raises(Conflict, match="holds 3 extents"):
        jobs.start(ProcessRequest("delete", volume="volume1"))
    with pytest.raises(Invalid, match="repeats the volume's name"):
        jobs.start(ProcessRequest("delete", volume="volume1", discard_data=True, force="volume2"))


def test_discarded_data_goes_only_after_its_survivors_were_read_back() -> None:
    jobs = cluster_with()
    assert jobs.preview(ProcessRequest("delete", volume="volume1", discard_data=True)).dies_extents == 0
    process = jobs.start(ProcessRequest("delete", volume="volume1", discard_data=True))
    began_ms = jobs.cluster.now_ms
    jobs.run(process)
    assert jobs.row(process).state == "done"
    assert "volume1" not in jobs.cluster.view.volumes
    for extent in range(3):
        copy = jobs.cluster.location(extent, jobs.copy_of(extent))
        assert copy.verified_ms >= began_ms, "stale green was trusted"


def test_data_whose_other_location_is_offsite_is_not_discarded_since_that_cannot_be_read_back() -> None:
    jobs = cluster_with(1, primary_nodes=1, copy_nodes=1)
    jobs.cluster.set_access(2, "offsite")
    request = ProcessRequest("delete", volume="volume1", discard_data=True)
    found = jobs.preview(request)
    assert (found.blocked_extents, found.dies_extents) == (1, 0)
    assert found.blocked[0].why == "only volume2 has it too, which is offsite: it cannot be read back there"
    process = jobs.start(request)
    jobs.run(process)
    row = jobs.row(process)
    assert (row.state, [each.why for each in row.skipped]) == ("incomplete", [each.why for each in found.blocked])
    assert on(jobs, 1) == [0]

    jobs.cluster.add_node(3, "primary")  # another location can be made first, and read back
    assert jobs.preview(request).blocked == []
    process = jobs.start(request)
    jobs.run(process)
    assert (jobs.row(process).state, on(jobs, 3)) == ("done", [0])


def test_force_discards_what_else_is_offsite_alone() -> None:
    jobs = cluster_with(1, primary_nodes=1, copy_nodes=1)
    jobs.cluster.set_access(2, "offsite")
    request = ProcessRequest("delete", volume="volume1", discard_data=True, force="volume1")
    assert jobs.preview(request).blocked == []
    process = jobs.start(request)
    jobs.run(process)
    assert jobs.row(process).state == "done"


def test_a_preview_of_a_deletion_shows_what_would_die_before_anything_is_granted() -> None:
    jobs = cluster_with()
    jobs.cluster.mark(1, jobs.copy_of(1), "damaged")
    request = ProcessRequest("delete", volume="volume1")
    found = jobs.preview(request)
    assert (found.extents, found.dies_extents, [each.extent for each in found.blocked]) == (3, 1, [1])
    (note,) = found.notes
    assert note.startswith("refused as it is: volume 'volume1' holds 3 extents: `move data` first")
    jobs.cluster.add_node(9, "copy")
    empty = jobs.preview(ProcessRequest("delete", volume="volume9"))
    assert (empty.extents, empty.notes) == (0, ["nothing to do"])


def test_a_volume_that_was_moved_off_can_be_deleted_and_two_do_not_empty_one_at_once() -> None:
    jobs = cluster_with()
    process = jobs.start(ProcessRequest("move", volume="volume1"))
    for request in (
        ProcessRequest("move", volume="volume1"),
        ProcessRequest("drain", node="node1"),
        ProcessRequest("delete", volume="volume1", discard_data=True),
    ):
        with pytest.raises(Conflict, match="at that already"):
            jobs.start(request)
    jobs.run(process)
    jobs.cluster.wait(jobs.cluster.policy.drop_delay_ms)
    jobs.steps(2)
    deleted = jobs.start(ProcessRequest("delete", volume="volume1"))
    jobs.run(deleted)
    assert "volume1" not in jobs.cluster.view.volumes


def test_the_last_good_copy_is_refused_and_listed() -> None:
    jobs = cluster_with()
    jobs.cluster.mark(1, jobs.copy_of(1), "damaged")
    found = jobs.preview(ProcessRequest("delete", volume="volume1", discard_data=True))
    assert found.dies_extents == 1
    assert [entry.extent for entry in found.blocked] == [1]


def test_a_copy_that_turns_out_to_be_rotten_saves_the_volume_that_was_to_go() -> None:
    """A16: everything was green; the survivor is read back after the decision, and is bad."""
    jobs = cluster_with(extents=1)
    copy = jobs.copy_of(0)
    jobs.cluster.rotten = {(0, copy)}
    process = jobs.start(ProcessRequest("delete", volume="volume1", discard_data=True))
    jobs.steps(6)
    assert jobs.cluster.good_reach(0) == LENGTH
    jobs.cluster.rotten = set()
    jobs.run(process)
    assert jobs.row(process).state == "done", "another copy was made first"
    assert jobs.cluster.good_reach(0) == LENGTH


# -- rebalance -----------------------------------------------------------------------------------
def test_a_rebalance_moves_no_more_than_the_surplus() -> None:
    jobs = cluster_with(extents=6)
    jobs.watch_protection()
    jobs.sizes = {1: (600 * MIB, 1000 * MIB), 2: (400 * MIB, 1000 * MIB)}
    process = jobs.start(ProcessRequest("rebalance", pool="primary"))
    assert dict(jobs.row(process).budget) == {1: 100 * MIB}
    jobs.run(process)
    assert jobs.row(process).state == "done"
    assert len(on(jobs, 2)) == 2, "80 MiB of 100 could be moved in whole extents"
    assert len(on(jobs, 1)) == 4


# -- rows ----------------------------------------------------------------------------------------
def test_a_running_process_is_not_written_more_than_every_ten_seconds() -> None:
    jobs = cluster_with()
    process = jobs.start(ProcessRequest("move", volume="volume1"))
    written = 0
    for _ in range(100):
        jobs.cluster.wait(100)
        written += sum(isinstance(action, WriteProcess) for action in jobs.process_actions())
        jobs.look(process)
        if jobs.row(process).state != "running":
            break
        jobs.cluster.perform_all(jobs.cluster.plan()[:1])
    assert written <= 3


def test_old_processes_go_when_there_are_too_many() -> None:
    jobs = ToyJobs(ToyCluster())
    ended = ProcessRow(FORMAT, "backup", "pool primary", "t", 1, [], [1], state="done")
    for number in range(PROCESSES_MAX + 2):
        jobs.cluster.put(keys.named(keys.PROCESS, f"{number:06d}"), replace(ended, created_ms=number))
    (trim,) = [each for each in jobs.process_actions() if isinstance(each, TrimProcesses)]
    assert trim.processes == ("000000", "000001")


@pytest.mark.parametrize(
    "request_",
    [
        ProcessRequest("restore"),
        ProcessRequest("restore", volume="volume1", pool="primary"),
        ProcessRequest("audit", node="node1"),
        ProcessRequest("drain", volume="volume1"),
        ProcessRequest("backup", pool="copy"),
    ],
)
def test_requests_that_make_no_sense_are_refused(request_: ProcessRequest) -> None:
    cluster = ToyCluster()
    with pytest.raises(Invalid):
        starting.draft(cluster.view, request_, "t", 1)


def test_what_is_not_there_is_named() -> None:
    cluster = ToyCluster()
    for request_ in (ProcessRequest("audit", volume="v9"), ProcessRequest("drain", node="n9")):
        with pytest.raises(NotFound, match="9"):
            starting.draft(cluster.view, request_, "t", 1)


def test_a_process_that_waits_for_a_brake_does_not_end() -> None:
    jobs = cluster_with()
    process = jobs.start(ProcessRequest("restore", volume="volume1"))
    for node in (2, 3, 4):
        jobs.cluster.down(node)
    jobs.cluster.perform_all(jobs.cluster.plan())
    facts = jobs.cluster.facts()
    assert facts.brake
    row = jobs.row(process)
    after = processes.look(jobs.cluster.view, facts, jobs.marks(), row, jobs.cluster.now_ms)
    much_later = jobs.cluster.now_ms + 10 * facts.policy.process_patience_ms
    assert processes.look(jobs.cluster.view, facts, jobs.marks(), after, much_later).state == "running"
