"""Restarts, fencing and failing disks: what a node claims afterwards is what it holds."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import errno
import os
import stat
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from copypool.protocol.api import Receipt
from copypool.protocol.errors import Conflict, Fenced, NoSpace, OutcomeUnknown, Unavailable
from copypool.protocol.internal import (
    DropCommand,
    HeartbeatRequest,
    InventoryReport,
    PullCommand,
    PullSource,
    SealCommand,
)
from copypool_node.disk import Disk
from copypool_node.format import find_seal_footer
from copypool_node.scanner import Scanner
from kit.eventually import eventually
from kit.fake_coordinator import FakeCoordinator, running
from kit.faulty_disk import FaultyDisk
from kit.node_process import NodeUnderTest, quick_limits, running_node


@pytest.fixture
async def coordinator() -> AsyncIterator[FakeCoordinator]:
    async with running() as fake:
        yield fake


def sealed_length(file: Path, extent: int) -> int:
    """The sealed length that the file itself tells, after a check of all its bytes."""
    scanner = Scanner(extent)
    scanner.feed(file.read_bytes())
    assert scanner.seal is not None
    assert scanner.verified_length == scanner.seal.length
    return scanner.seal.length


async def reads(node: NodeUnderTest, receipt: Receipt, body: bytes) -> bool:
    """Whether the file is served yet: a volume that has just been mounted is still compared with the catalog."""
    assert receipt.segment is not None
    with contextlib.suppress(Unavailable):
        assert (await node.get(receipt.segment, receipt.version))[1] == body
        return True
    return False


async def test_after_a_restart_old_extents_are_sealed_and_reads_go_on(
    tmp_path: Path, coordinator: FakeCoordinator
) -> None:
    body = os.urandom(5000)
    async with running_node(tmp_path, coordinator) as node:
        receipt = await node.put("kept", body)
        node_id, epoch = node.node.session.node_id, node.node.session.epoch
    async with running_node(tmp_path, coordinator) as node:
        assert (node.node.session.node_id, node.node.session.epoch > epoch) == (node_id, True)
        assert receipt.segment is not None
        assert (await node.get(receipt.segment, receipt.version))[1] == body
        assert coordinator.extents[1].sealed
        assert sealed_length(node.extent_file(1), 1) == coordinator.extents[1].length
        again = await node.put("more", b"2")
        assert again.segment is not None
        assert again.segment.extent == 2
        assert len(coordinator.nodes) == 1, "it joined once"


async def test_a_group_that_was_written_but_never_committed_is_cut(
    tmp_path: Path, coordinator: FakeCoordinator
) -> None:
    async with running_node(tmp_path, coordinator, crash=True) as node:
        await node.put("kept", b"1")
        gate = coordinator.hold("commit")
        lost = asyncio.create_task(node.put("lost", os.urandom(5000)))
        await eventually(lambda: coordinator.waiting["commit"] == 1, "the group is on the disk")
        file = node.extent_file(1)
        assert file.stat().st_size > coordinator.extents[1].length + 5000
        coordinator.sessions.clear()
        gate.set()
        with pytest.raises((OutcomeUnknown, Fenced)):
            await lost
    coordinator.holds.clear()
    async with running_node(tmp_path, coordinator) as node:
        assert sealed_length(node.extent_file(1), 1) == coordinator.extents[1].length
        assert (1, "lost") not in coordinator.files


async def test_a_catalog_restored_from_an_older_state_cuts_nothing(
    tmp_path: Path, coordinator: FakeCoordinator
) -> None:
    old = b"o" * 3000
    async with running_node(tmp_path, coordinator, crash=True, limits=quick_limits(label_revision_s=0.1)) as node:
        kept = await node.put("old", old)
        snapshot = (coordinator.revision, copy.deepcopy(coordinator.extents))
        for number in range(5):
            await node.put(f"new/{number}", os.urandom(3000))
        file, volume = node.extent_file(1), node.node.volumes[0]
        await eventually(
            lambda: volume.disk.label.revision >= coordinator.revision, "the label knows the newest revision"
        )
        before = file.read_bytes()
    coordinator.revision, coordinator.extents = snapshot
    async with running_node(tmp_path, coordinator, wait=False) as node:
        await eventually(
            lambda: bool(node.node.volumes and node.node.volumes[0].safe_mode), "the volume is in safe mode"
        )
        await eventually(partial(reads, node, kept, old), "what the catalog claims is served")
        with pytest.raises(Unavailable, match="safe mode"):
            await node.put("more", b"1")
        with pytest.raises(Unavailable, match="takes no commands"):
            await node.command("drop", DropCommand(coordinator.term, 1, node.volume, 1))
        assert node.node.volumes[0].report().safe_mode
    assert file.read_bytes() == before
    assert not coordinator.extents[1].sealed


async def test_a3_a_label_that_counts_more_mounts_than_the_catalog_tells_that_the_catalog_is_older(
    tmp_path: Path, coordinator: FakeCoordinator
) -> None:
    """The revision alone would not tell: the older catalog has gone on working. It is read from, the claim stays."""
    async with running_node(tmp_path, coordinator) as node:
        kept = await node.put("old", b"1")
    for _ in range(2):
        before = copy.deepcopy(coordinator.label_epochs)
        async with running_node(tmp_path, coordinator):
            pass
    newest = coordinator.label_epochs
    coordinator.label_epochs = {volume: (epoch - 1, b"") for volume, (epoch, _) in before.items()}
    async with running_node(tmp_path, coordinator, wait=False) as node:
        await eventually(
            lambda: bool(node.node.volumes and node.node.volumes[0].safe_mode), "the volume is in safe mode"
        )
        await eventually(partial(reads, node, kept, b"1"), "what the catalog claims is served")
        with pytest.raises(Unavailable, match="safe mode"):
            await node.put("more", b"1")
    coordinator.label_epochs = newest
    async with running_node(tmp_path, coordinator) as node:
        assert not node.node.volumes[0].safe_mode
        await node.put("more", b"1")


async def test_an_extent_that_is_sealed_here_and_open_in_the_catalog_tells_that_the_catalog_is_older(
    tmp_path: Path, coordinator: FakeCoordinator
) -> None:
    async with running_node(tmp_path, coordinator) as node:
        await node.put("old", b"1")
        snapshot = copy.deepcopy(coordinator.extents)
        await node.put("new", b"2")
    async with running_node(tmp_path, coordinator) as node:
        file = node.extent_file(1)
        await eventually(lambda: bool(file.stat().st_mode & stat.S_ISVTX), "the extent is sealed")
        before = file.read_bytes()
    coordinator.extents = snapshot  # its revision has overtaken the label's
    async with running_node(tmp_path, coordinator, wait=False) as node:
        await eventually(
            lambda: bool(node.node.volumes and node.node.volumes[0].safe_mode), "the volume is in safe mode"
        )
    assert file.read_bytes() == before


async def test_an_extent_with_many_groups_that_the_catalog_does_not_know_tells_that_the_catalog_is_older(
    tmp_path: Path, coordinator: FakeCoordinator
) -> None:
    async with running_node(tmp_path, coordinator, crash=True) as node:
        await node.put("old", b"1")
        snapshot = copy.deepcopy(coordinator.extents)
        for number in range(4):
            await node.put(f"new/{number}", b"2")
        file = node.extent_file(1)
        before = file.read_bytes()
    coordinator.extents = snapshot  # its revision has overtaken the label's
    async with running_node(tmp_path, coordinator, wait=False) as node:
        await eventually(
            lambda: bool(node.node.volumes and node.node.volumes[0].safe_mode), "the volume is in safe mode"
        )
    assert file.read_bytes() == before


async def test_a_catalog_that_goes_back_under_a_running_node_cuts_nothing(
    tmp_path: Path, coordinator: FakeCoordinator
) -> None:
    async with running_node(tmp_path, coordinator) as node:
        await node.put("old", b"1")
        snapshot = (coordinator.revision, copy.deepcopy(coordinator.extents))
        await node.put("new", b"2")
        file, volume = node.extent_file(1), node.node.volumes[0]
        before = file.read_bytes()
        coordinator.revision, coordinator.extents = snapshot  # the session is as old: it goes on
        with contextlib.suppress(Fenced, OutcomeUnknown, Unavailable):
            await node.put("more", b"3")
        await eventually(lambda: bool(volume.safe_mode), "the volume is in safe mode")
        with pytest.raises(Unavailable, match="safe mode"):
            await node.put("more", b"3")
        assert file.read_bytes()[: len(before)] == before


async def test_a_second_process_of_a_node_waits_for_the_first(tmp_path: Path, coordinator: FakeCoordinator) -> None:
    async with running_node(tmp_path, coordinator) as node:
        epoch = node.node.session.epoch
        async with running_node(tmp_path, coordinator, wait=False) as second:
            for number in range(5):
                await node.put(f"first/{number}", b"1")
            assert not second.node.session.alive
            assert node.node.session.epoch == epoch, "it has not lost its session"
    async with running_node(tmp_path, coordinator) as node:
        assert node.node.session.epoch > epoch


@pytest.mark.parametrize("harm", ["deleted", "cut"])
async def test_nothing_is_acknowledged_into_a_file_that_somebody_took_away(
    tmp_path: Path, coordinator: FakeCoordinator, harm: str
) -> None:
    async with running_node(tmp_path, coordinator) as node:
        await node.put("before", os.urandom(5000))
        file = node.extent_file(1)
        length = coordinator.extents[1].length
        if harm == "deleted":
            file.unlink()
        else:
            os.truncate(file, length // 2)
        with pytest.raises((Unavailable, Fenced)):
            await node.put("after", os.urandom(5000))
        assert (1, "after") not in coordinator.files
        await eventually(lambda: coordinator.extents[1].sealed, "the extent is sealed")
        assert coordinator.extents[1].length == length


async def test_an_extent_that_is_given_out_twice_tells_that_the_catalog_is_older(
    tmp_path: Path, coordinator: FakeCoordinator
) -> None:
    async with running_node(tmp_path, coordinator) as node:
        await node.put("forgotten", b"1")
        file = node.extent_file(1)
    before = file.read_bytes()
    coordinator.extents.clear()
    coordinator._next_extent = 1
    async with running_node(tmp_path, coordinator) as node:
        with pytest.raises(Unavailable, match="safe mode"):
            await node.put("more", b"2")
    assert file.read_bytes() == before


async def test_a_file_without_a_row_is_not_continued_as_a_copy(tmp_path: Path, coordinator: FakeCoordinator) -> None:
    async with running_node(tmp_path, coordinator) as node:
        await node.put("forgotten", b"1")
        file = node.extent_file(1)
    before = file.read_bytes()
    coordinator.extents.clear()
    async with running_node(tmp_path, coordinator) as node:
        source = PullSource(77, "http://127.0.0.1:1", 1 << 20, "")
        await node.command("pull", PullCommand(1, 1, node.volume, 1, 1 << 20, False, [], b"", [source]))
        await eventually(lambda: bool(node.node.volumes[0].safe_mode), "the volume is in safe mode")
        assert not coordinator.requests["progress"]
    assert file.read_bytes() == before


async def test_a_torn_tail_is_cut_at_the_next_start(tmp_path: Path, coordinator: FakeCoordinator) -> None:
    async with running_node(tmp_path, coordinator, crash=True) as node:
        receipt = await node.put("kept", b"k" * 3000)
        file = node.extent_file(1)
    with file.open("ab") as opened:
        opened.write(b"GRUP torn tail" * 100)
    async with running_node(tmp_path, coordinator) as node:
        assert sealed_length(file, 1) == coordinator.extents[1].length
        assert receipt.segment is not None
        assert (await node.get(receipt.segment, receipt.version))[1] == b"k" * 3000


async def test_missing_and_short_files_are_reported_and_unknown_ones_kept(
    tmp_path: Path, coordinator: FakeCoordinator
) -> None:
    limits = quick_limits(extent_soft_bytes=5000)
    async with running_node(tmp_path, coordinator, limits=limits) as node:
        for index in range(3):
            await node.put(f"f{index}", os.urandom(6000))
        await eventually(lambda: node.node.metrics.extents_sealed == 3, "three extents are sealed")
        files = [node.extent_file(extent) for extent in (1, 2, 3)]
    files[0].unlink()
    os.truncate(files[1], 4500)
    stranger = files[2].with_name(files[2].name.replace(".1.ext", ".7.ext"))
    stranger.write_bytes(b"who knows")
    async with running_node(tmp_path, coordinator) as node:
        (report,) = coordinator.requests["inventory"]
        assert isinstance(report, InventoryReport)
        assert report.missing == [1]
        assert [(one.extent, one.offset, one.length) for one in report.short] == [(2, 1, 4500)]
        assert node.node.volumes[0].unknown_extents == 1
        assert stranger.read_bytes() == b"who knows"


async def test_a_failed_fsync_refuses_the_group_and_ends_writing_to_the_volume(
    tmp_path: Path, coordinator: FakeCoordinator
) -> None:
    disk = FaultyDisk()
    async with running_node(tmp_path, coordinator, disk=disk) as node:
        kept = await node.put("kept", b"1")
        await eventually(lambda: not node.node.volumes[0].disk.queued_calls, "the disk is quiet")
        syncs = disk.counts["sync_data"]
        disk.fail("sync_data")
        with contextlib.suppress(Unavailable):  # a probe may take the fault: the volume is read-only either way
            await node.put("lost", b"2")
        await eventually(lambda: node.node.volumes[0].disk.readonly_reason != "", "the volume takes no writes")
        await eventually(lambda: not node.node.volumes[0].disk.queued_calls, "the disk is quiet again")
        failed_at = disk.counts["sync_data"]
        assert failed_at > syncs
        with pytest.raises(Unavailable):
            await node.put("more", b"3")
        assert disk.counts["sync_data"] == failed_at, "a failed fsync is never tried again"
        assert kept.segment is not None
        assert (await node.get(kept.segment, kept.version))[1] == b"1"
        await eventually(
            lambda: any(report.volumes and report.volumes[0].read_only for report in _heartbeats(coordinator)),
            "it is reported",
        )


async def test_a_failed_fsync_seals_the_extent_at_its_committed_length(
    tmp_path: Path, coordinator: FakeCoordinator
) -> None:
    disk = FaultyDisk()
    async with running_node(tmp_path, coordinator, disk=disk, limits=quick_limits(heartbeat_s=5)) as node:
        await node.put("kept", b"1")
        length = coordinator.extents[1].length
        disk.fail("sync_data")
        with pytest.raises(Unavailable):
            await node.put("lost", b"2")
        await eventually(lambda: coordinator.extents[1].sealed, "the extent is sealed")
        assert coordinator.extents[1].length == length
    disk.mend()
    async with running_node(tmp_path, coordinator) as node:
        assert sealed_length(node.extent_file(1), 1) == length


async def test_a_full_disk_ends_the_extent_and_the_volume_goes_on(tmp_path: Path, coordinator: FakeCoordinator) -> None:
    disk = FaultyDisk()
    async with running_node(tmp_path, coordinator, disk=disk, limits=quick_limits(heartbeat_s=5)) as node:
        kept = await node.put("kept", b"1")
        disk.fail("write", error=errno.ENOSPC)
        with pytest.raises(NoSpace):
            await node.put("lost", b"2")
        await eventually(lambda: node.node.metrics.extents_sealed == 1, "the extent is cut and sealed")
        assert sealed_length(node.extent_file(1), 1) == coordinator.extents[1].length
        await node.delete("kept")
        assert kept.segment is not None
        assert not node.node.volumes[0].disk.readonly_reason


@pytest.mark.parametrize("nth", range(1, 9))
async def test_the_nth_change_of_the_disk_fails_and_nothing_acked_is_lost(
    tmp_path: Path, coordinator: FakeCoordinator, nth: int
) -> None:
    disk = FaultyDisk()
    acked: dict[str, bytes] = {}
    limits = quick_limits(heartbeat_s=5, extent_soft_bytes=20_000)
    async with running_node(tmp_path, coordinator, disk=disk, limits=limits, crash=True) as node:
        disk.fail("change", nth)
        for index in range(8):
            body = os.urandom(6000)
            try:
                await node.put(f"f{index}", body)
            except (Unavailable, NoSpace, OutcomeUnknown, Fenced):
                continue
            acked[f"f{index}"] = body
    disk.mend()
    disk.power_cut()
    async with running_node(tmp_path, coordinator) as node:
        for path, body in acked.items():
            row = coordinator.files[1, path]
            assert (await node.get(row.segment, row.version))[1] == body
        for extent in coordinator.extents.values():
            if extent.sealed and extent.group >= 0:
                assert sealed_length(node.extent_file(extent.id), extent.id) == extent.length


async def test_a_hung_disk_loses_the_lease_and_refuses_writes(tmp_path: Path, coordinator: FakeCoordinator) -> None:
    disk = FaultyDisk()
    limits = quick_limits()
    patience_s = limits.probe_max_age_s
    async with running_node(tmp_path, coordinator, disk=disk, limits=limits) as node:
        await node.put("a", b"1")
        limits.probe_max_age_s = 0.3  # only while it hangs: an honest disk of a busy machine may take as long
        disk.hold("sync_data")
        await eventually(lambda: not node.node.volumes[0].healthy, "the probe is overdue")
        with pytest.raises(Unavailable):
            await node.put("b", b"2")
        beats = len(coordinator.requests["heartbeat"])
        await eventually(lambda: len(coordinator.requests["heartbeat"]) > beats + 1, "what was under way has come")
        renewals = coordinator.renewals
        beats = len(coordinator.requests["heartbeat"])
        await eventually(lambda: len(coordinator.requests["heartbeat"]) > beats + 3, "heartbeats go on")
        assert coordinator.renewals == renewals
        disk.let_go("sync_data")
        limits.probe_max_age_s = patience_s
        await eventually(lambda: node.node.volumes[0].healthy, "it is well again")
        await node.put("b", b"2")


async def test_the_seal_of_the_leader_reaches_an_idle_open_extent(tmp_path: Path, coordinator: FakeCoordinator) -> None:
    async with running_node(tmp_path, coordinator) as node:
        await node.put("a", b"1")
        reply = coordinator.seal(1)
        await node.command(
            "seal", SealCommand(1, 1, node.volume, reply.generation, reply.length, reply.group, reply.refusals)
        )
        await eventually(lambda: node.node.metrics.extents_sealed == 1, "the footer is written")
        footer = find_seal_footer(node.extent_file(1).read_bytes(), 1, 0)
        assert footer is not None
        assert footer.length == reply.length
        again = await node.put("b", b"2")
        assert again.segment is not None
        assert again.segment.extent == 2


async def test_the_seal_of_the_leader_reaches_an_extent_that_was_opened_ahead(
    tmp_path: Path, coordinator: FakeCoordinator
) -> None:
    """Else the lane goes on to a file that has its footer, and tells a client of a broken invariant."""
    async with running_node(tmp_path, coordinator) as node:
        await node.put("a", b"1")
        lane = node.node.volumes[0].lanes[1]
        lane._open_ahead()
        assert lane._spare is not None
        await lane._spare
        reply = coordinator.seal(2)
        await node.command(
            "seal", SealCommand(1, 2, node.volume, reply.generation, reply.length, reply.group, reply.refusals)
        )
        await eventually(lambda: node.node.metrics.extents_sealed == 1, "the footer is written")
        lane._current = None
        again = await node.put("b", b"2")
        assert again.segment is not None
        assert again.segment.extent == 3


@pytest.mark.parametrize("size_bytes", [1, 2 * 1024 * 1024])
async def test_a_write_that_landed_before_the_leader_s_seal_is_answered_although_the_reply_comes_behind_it(
    tmp_path: Path, coordinator: FakeCoordinator, size_bytes: int
) -> None:
    async with running_node(tmp_path, coordinator) as node:
        coordinator.lose_replies["commit"] = 1
        gate = coordinator.hold("commit", after=1)
        write = asyncio.create_task(node.put("a", os.urandom(size_bytes)))
        await eventually(lambda: coordinator.waiting["commit"] == 1, "it has landed, and is asked about again")
        reply = coordinator.seal(1)
        await node.command(
            "seal", SealCommand(1, 1, node.volume, reply.generation, reply.length, reply.group, reply.refusals)
        )
        gate.set()
        async with asyncio.timeout(60):
            receipt = await write
        assert coordinator.files[1, "a"].version == receipt.version
        await eventually(lambda: node.node.metrics.extents_sealed == 1, "the footer is written")
        assert node.node.volumes[0].open_extents == 0
        assert receipt.segment is not None
        assert len((await node.get(receipt.segment, receipt.version))[1]) == size_bytes


async def test_an_idle_extent_is_sealed(tmp_path: Path, coordinator: FakeCoordinator) -> None:
    async with running_node(tmp_path, coordinator, limits=quick_limits(idle_seal_s=0.2)) as node:
        await node.put("small", b"1")
        await node.put("long", os.urandom(2 * 1024 * 1024))
        await eventually(lambda: node.node.metrics.extents_sealed == 2, "both extents are sealed")
        assert node.node.volumes[0].open_extents == 0


async def test_a_lost_registration_reply_leads_to_one_epoch(tmp_path: Path, coordinator: FakeCoordinator) -> None:
    coordinator.lose_replies["register"] = 1
    coordinator.lose_replies["join"] = 1
    coordinator.lose_replies["mount"] = 1
    async with running_node(tmp_path, coordinator) as node:
        assert coordinator.sessions[1][0] == node.node.session.epoch
        await node.put("a", b"1")


async def test_a_clean_end_finishes_what_is_queued(tmp_path: Path, coordinator: FakeCoordinator) -> None:
    async with running_node(tmp_path, coordinator, limits=quick_limits(shutdown_s=60.0)) as node:
        gate = coordinator.hold("commit")
        writes = [asyncio.create_task(node.put(f"f{index}", b"x")) for index in range(5)]
        await eventually(lambda: coordinator.waiting["commit"] == 1, "a commit is under way")
        stopping = asyncio.create_task(node.node.stop())
        gate.set()
        results = await asyncio.gather(*writes, return_exceptions=True)
        await stopping
        stored = [index for index in range(5) if (1, f"f{index}") in coordinator.files]
        assert stored == [index for index, one in enumerate(results) if not isinstance(one, BaseException)]
        assert stored


def _heartbeats(coordinator: FakeCoordinator) -> list[HeartbeatRequest]:
    return [one for one in coordinator.requests["heartbeat"] if isinstance(one, HeartbeatRequest)]


async def test_a_volume_whose_disk_is_gone_is_not_made_anew(tmp_path: Path, coordinator: FakeCoordinator) -> None:
    async with running_node(tmp_path, coordinator) as node:
        await node.put("a", b"1")
    (tmp_path / "n1" / "volume").rename(tmp_path / "elsewhere")
    async with running_node(tmp_path, coordinator, wait=False) as node:
        await eventually(lambda: node.node.session.alive, "the node is registered")
        await eventually(lambda: len(coordinator.requests["heartbeat"]) > 20, "it lives on")
        assert not node.node.ready
        assert not (tmp_path / "n1" / "volume" / "label").exists()


async def test_why_a_volume_is_not_mounted_is_told_with_each_heartbeat_until_it_is(
    tmp_path: Path, coordinator: FakeCoordinator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("copypool_node.node.VOLUME_RETRY_S", 0.05)
    monkeypatch.setattr("copypool_node.keeper.RETRY_S", 0.05)

    def told() -> list[str]:
        return [each.reason for each in _heartbeats(coordinator)[-1].unmounted]

    async with running_node(tmp_path, coordinator) as node:
        await node.put("a", b"1")
        assert told() == []
    here, elsewhere = tmp_path / "n1" / "volume" / "label", tmp_path / "label"
    here.rename(elsewhere)
    refusals = coordinator.errors["mount"]
    refusals.extend(Conflict("this catalog does not know it") for _ in range(1000))
    async with running_node(tmp_path, coordinator, wait=False) as node:
        await eventually(lambda: node.node.session.alive, "the node is registered")
        await eventually(lambda: any("no label" in reason for reason in told()), "its label is gone")
        elsewhere.rename(here)
        await eventually(lambda: told() == ["this catalog does not know it"], "the catalog refuses it")
        tries = len(refusals)
        await eventually(lambda: len(refusals) < tries - 5, "it is tried again and again")
        assert caplog.text.count("this catalog does not know it") == 1, "the log hears of it once"
        refusals.clear()
        await eventually(lambda: node.node.ready and told() == [], "it is mounted")


async def test_a_volume_that_is_locked_is_used_once_the_other_process_is_gone(
    tmp_path: Path, coordinator: FakeCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("copypool_node.node.VOLUME_RETRY_S", 0.05)
    async with running_node(tmp_path, coordinator) as node:
        await node.put("a", b"1")
    disk = Disk()
    held = disk.lock(str(tmp_path / "n1" / "volume" / "lock"))
    assert held is not None
    async with running_node(tmp_path, coordinator, wait=False) as node:
        await eventually(lambda: node.node.session.alive, "the node is registered")
        assert not node.node.ready
        disk.close(held)
        await eventually(lambda: node.node.ready, "the volume is used")
        await node.put("b", b"2")


async def test_one_hung_disk_does_not_keep_the_node_from_a_new_session(
    tmp_path: Path, coordinator: FakeCoordinator
) -> None:
    disk = FaultyDisk()
    async with running_node(tmp_path, coordinator, disk=disk, limits=quick_limits(probe_max_age_s=60)) as node:
        disk.hold("sync_directory")
        for _ in range(2):
            epoch = node.node.session.epoch
            coordinator.end_session(1)
            await eventually(lambda before=epoch: node.node.session.epoch > before, "a new epoch")  # type: ignore[misc]
        assert not node.node.ready
        disk.let_go("sync_directory")
        await eventually(lambda: node.node.ready, "the volume is brought up once its disk answers")
        await node.put("a", b"1")
