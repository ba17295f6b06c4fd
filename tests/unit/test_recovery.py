"""What can be made of an extent's locations, and that previews tell it: whole, perhaps by merging, or not at all."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from copypool.cli.process_text import preview_text
from copypool.protocol.processes import ProcessRequest, SourceShare
from copypool_coordinator import locations
from copypool_coordinator.policy import Policy, places
from copypool_coordinator.recovery import Prospect, bad_everywhere, outlook_of_range, prospect
from kit.toy_cluster import MIB, ToyCluster
from kit.toy_jobs import ToyJobs

LENGTH = 40 * MIB


def jobs_with(extents: int = 3) -> ToyJobs:
    """Sealed extents, written on volume 1, copied to volume 3 or 4 and read back."""
    cluster = ToyCluster(2, 2, Policy(grace_ms=60_000, drop_delay_ms=30_000))
    for extent in range(extents):
        cluster.open_extent(extent, writer=1, length=LENGTH)
        cluster.settle()
        cluster.seal(extent)
    cluster.wait(cluster.policy.first_verify_delay_ms)
    cluster.settle()
    cluster.wait(60_000)
    return ToyJobs(cluster)


def mark(cluster: ToyCluster, extent: int, volume: int, bad_offset: int) -> None:
    row = cluster.row(extent)
    location = cluster.location(extent, volume)
    cluster.put_extent(
        extent, locations.marked(row, location, "damaged", "found bad", cluster.now_ms, bad_offset=bad_offset)
    )


def leave(cluster: ToyCluster, extent: int, volume: int) -> None:
    row = cluster.row(extent)
    cluster.put_extent(extent, locations.dropping(row, cluster.location(extent, volume), cluster.now_ms))


def seen(cluster: ToyCluster, extent: int = 0) -> Prospect:
    return prospect(cluster.row(extent), cluster.committed(extent), places(cluster.view))


# -- one extent ----------------------------------------------------------------------------------
def test_a_good_location_is_whole_and_a_damaged_one_is_not_asked() -> None:
    cluster = jobs_with(1).cluster
    mark(cluster, 0, 1, bad_offset=5000)
    assert seen(cluster) == Prospect("whole", (ToyJobs(cluster).copy_of(0),), "")


def test_two_damaged_locations_may_be_merged_unless_they_are_bad_at_the_same_block() -> None:
    jobs = jobs_with(1)
    cluster, copy = jobs.cluster, jobs.copy_of(0)
    mark(cluster, 0, 1, bad_offset=5000)
    mark(cluster, 0, copy, bad_offset=90_000)
    found = seen(cluster)
    assert (found.outlook, set(found.volumes)) == ("merge", {1, copy})
    assert bad_everywhere(cluster.row(0), LENGTH, places(cluster.view)) is None

    cluster.put_extent(0, locations.verified(cluster.row(0), cluster.location(0, copy), LENGTH, b"", 1))
    mark(cluster, 0, copy, bad_offset=5000)
    found = seen(cluster)
    assert found.outlook == "lost"
    assert "offset 5000" in found.why
    assert f"is bad on volume1, volume{copy}," in found.why
    assert bad_everywhere(cluster.row(0), LENGTH, places(cluster.view)) == 5000


@pytest.mark.parametrize("bad_offset", [-1, 5000])
def test_a_single_damaged_location_is_no_source_of_its_bad_block(bad_offset: int) -> None:
    jobs = jobs_with(1)
    jobs.cluster.set_access(jobs.copy_of(0), "destroyed")
    mark(jobs.cluster, 0, 1, bad_offset=bad_offset)
    assert (seen(jobs.cluster).outlook, seen(jobs.cluster).damaged) == ("lost", True)


def test_what_is_away_is_waited_for_before_anything_is_called_lost() -> None:
    jobs = jobs_with(1)
    cluster, copy = jobs.cluster, jobs.copy_of(0)
    cluster.down(copy)
    mark(cluster, 0, 1, bad_offset=5000)
    found = seen(cluster)
    assert (found.outlook, found.volumes) == ("away", (copy,))
    assert f"only volume{copy} may hold what the others lack" in found.why


def test_a_location_on_its_way_out_is_a_last_resort_and_said_to_be_one() -> None:
    jobs = jobs_with(1)
    cluster, copy = jobs.cluster, jobs.copy_of(0)
    leave(cluster, 0, copy)
    cluster.set_access(1, "destroyed")
    found = seen(cluster)
    assert (found.outlook, found.volumes) == ("merge", (copy,))
    assert found.why == f"only volume{copy} has all of it, and is on its way out"


def test_a_prefix_alone_lacks_the_end() -> None:
    jobs = jobs_with(1)
    cluster, copy = jobs.cluster, jobs.copy_of(0)
    cluster.set_access(1, "destroyed")
    location = cluster.location(0, copy)
    row = cluster.row(0)
    cluster.put_extent(0, locations.with_location(row, location, replace(location, state="copying", length=MIB)))
    assert seen(cluster).why == f"its last {LENGTH - MIB} bytes are gone"


# -- previews ------------------------------------------------------------------------------------
def test_a_preview_counts_whole_merged_and_impossible_extents_apart() -> None:
    jobs = jobs_with(3)
    cluster = jobs.cluster
    one, two = jobs.copy_of(1), jobs.copy_of(2)
    mark(cluster, 1, 1, bad_offset=5000)
    mark(cluster, 1, one, bad_offset=90_000)
    mark(cluster, 2, 1, bad_offset=5000)
    mark(cluster, 2, two, bad_offset=5000)
    found = jobs.preview(ProcessRequest("restore", pool="primary"))
    assert (found.extents, found.merged_extents, found.blocked_extents) == (2, 1, 1)
    assert (found.merged_bytes, found.blocked_bytes) == (LENGTH, LENGTH)
    assert [each.extent for each in found.merged] == [1]
    assert [each.extent for each in found.blocked] == [2]
    text = preview_text(found)
    assert "cannot be   1 extents, 40.0 MiB" in text
    assert "perhaps     1 extents, 40.0 MiB" in text
    assert "read from   no whole location" in text


def test_a_damaged_copy_is_no_whole_source_of_a_volume_that_is_given_up() -> None:
    jobs = jobs_with(2)
    copy = jobs.copy_of(1)
    mark(jobs.cluster, 1, copy, bad_offset=5000)
    found = jobs.preview(ProcessRequest("restore", volume="volume1"))
    assert found.shares == [SourceShare(f"volume{jobs.copy_of(0)}", 1, LENGTH)]
    assert (found.extents, found.merged_extents, found.blocked_extents) == (2, 0, 1), "the given up one is not read"
    assert "is bad on" in found.blocked[0].why


def test_what_is_leaving_a_volume_already_is_not_to_be_restored() -> None:
    jobs = jobs_with(2)
    cluster = jobs.cluster
    cluster.set_intent(1, "drain")
    for _ in range(60):
        cluster.perform_all(cluster.plan([0]))
        cluster.wait(1_000)
        if cluster.location(0, 1).state == "dropping":
            break
    assert cluster.location(0, 1).state == "dropping"
    cluster.set_intent(1, "")
    found = jobs.preview(ProcessRequest("restore", volume="volume1"))
    assert (found.extents, found.bytes, found.blocked_extents) == (1, LENGTH, 0)
    assert any(note.startswith("1 more extents are leaving it already") for note in found.notes)


def test_a_refused_delete_calls_no_bad_location_good() -> None:
    jobs = jobs_with(2)
    cluster = jobs.cluster
    for extent in (0, 1):
        mark(cluster, extent, jobs.copy_of(extent), bad_offset=90_000)
    mark(cluster, 0, 1, bad_offset=5000)
    found = jobs.preview(ProcessRequest("delete", volume="volume1", discard_data=True))
    why = {each.extent: each.why for each in found.blocked}
    assert why[0].startswith("it is damaged, and no good location reaches as far")
    assert why[1] == "it is the last good location"


def test_an_open_extent_counts_its_records_and_does_not_die_with_its_writer_once_it_is_copied() -> None:
    jobs = jobs_with(0)
    cluster = jobs.cluster
    cluster.open_extent(7, writer=1, length=MIB)
    request = ProcessRequest("delete", volume="volume1", discard_data=True)
    assert jobs.preview(request).dies_extents == 1, "it is nowhere else yet"
    cluster.settle()
    found = jobs.preview(request)
    assert (found.extents, found.records, found.dies_extents) == (1, MIB // 1000, 0)
    process = jobs.start(request)
    jobs.run(process)
    assert jobs.row(process).state == "done"
    assert cluster.good_reach(7) == MIB


# -- ranges of an extent: what becomes of a file -------------------------------------------------
def outlook(cluster: ToyCluster, start: int, end: int) -> str:
    return outlook_of_range(cluster.row(0), start, end, cluster.committed(0), places(cluster.view))[0]


def test_a_file_is_lost_only_where_a_block_of_it_is_bad_everywhere() -> None:
    jobs = jobs_with(1)
    cluster, copy = jobs.cluster, jobs.copy_of(0)
    assert outlook(cluster, 4096, LENGTH) == "readable"
    mark(cluster, 0, 1, bad_offset=2 * MIB)
    mark(cluster, 0, copy, bad_offset=2 * MIB)
    assert outlook(cluster, 4096, 2 * MIB) == "readable", "before the first bad block"
    assert outlook(cluster, MIB, 3 * MIB) == "lost"
    assert outlook(cluster, 3 * MIB, 4 * MIB) == "doubtful", "a verify stops at the first bad block"
    cluster.down(copy)
    assert outlook(cluster, 4096, MIB) == "readable"
    assert outlook(cluster, MIB, 3 * MIB) == "lost", "the one that is away has no such block either"


def test_a_file_that_a_node_which_is_away_has_whole_is_not_lost() -> None:
    jobs = jobs_with(1)
    cluster, copy = jobs.cluster, jobs.copy_of(0)
    mark(cluster, 0, 1, bad_offset=2 * MIB)
    cluster.down(copy)
    assert outlook(cluster, MIB, 3 * MIB) == "away"
    cluster.set_access(copy, "destroyed")
    assert outlook(cluster, MIB, 3 * MIB) == "lost"


def test_a_file_without_a_location_is_lost() -> None:
    jobs = jobs_with(1)
    for volume in (1, jobs.copy_of(0)):
        jobs.cluster.mark(0, volume, "missing")
    assert outlook(jobs.cluster, 4096, MIB) == "lost"
