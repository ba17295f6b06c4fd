"""A volume on a disk that fails: the Nth call of every path fails, the power goes, and nothing is claimed that is
not there."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path

import pytest

from copypool.protocol.errors import CopypoolError, NoSpace, Overloaded, Unavailable
from copypool.protocol.internal import EXTENT_HEADER_BYTES, Refusal
from copypool_node.disk import Missing, ReadFailed, WriteFailed
from copypool_node.extent_file import ExtentFile
from copypool_node.volume import Volume
from kit.eventually import eventually
from kit.extent_images import CLUSTER, Image, header_of, image_of
from kit.faulty_disk import FaultyDisk

EXTENT = 0x1FF
GROUP_SIZES = [300, 70_000, 5]


async def open_volume(path: Path, disk: FaultyDisk | None = None) -> Volume:
    return await Volume.open(str(path), name="v1", pool="primary", pool_type="primary", cluster_id=CLUSTER, disk=disk)


def image() -> tuple[Image, list[int]]:
    """An extent of three groups, and its length after each."""
    ends = [EXTENT_HEADER_BYTES]
    whole = image_of(EXTENT, [])
    for count in range(1, len(GROUP_SIZES) + 1):
        whole = image_of(EXTENT, [[b"g" * size] for size in GROUP_SIZES[:count]])
        ends.append(len(whole.data))
    return whole, ends


class Story:
    """What a writer was promised while it lived, by one run of create, append, seal, relabel."""

    def __init__(self) -> None:
        self.label_epoch = 0
        self.revision = 0
        self.created = False
        self.durable_length = 0
        self.sealed = False
        self.digest = False

    async def run(self, volume: Volume) -> None:
        whole, ends = image()
        self.label_epoch = volume.label.epoch
        await volume.mounted(7, 100)
        self.revision = 100
        file = await volume.create_extent(EXTENT, 1, header_of(EXTENT))
        self.created = True
        self.durable_length = EXTENT_HEADER_BYTES
        for start, end in pairwise(ends):
            middle = (start + end) // 2
            await file.write(start, [whole.data[start:middle]])
            await file.write_and_sync(middle, [whole.data[middle:end]])
            self.durable_length = end
        await file.write(ends[-1], [b"a group that is never committed"])
        await file.seal(ends[-1], 2, [Refusal(2, 0)])
        self.sealed = True
        await file.set_seal_digest((await file.scan(ends[-1])).digest())
        self.digest = True
        await volume.raise_revision(120)
        self.revision = 120

    async def check(self, volume: Volume) -> None:
        """The reopened volume keeps every promise, and claims no more than it holds."""
        whole, ends = image()
        assert self.label_epoch <= volume.label.epoch <= self.label_epoch + 1
        assert self.revision <= volume.label.revision <= 120
        found = volume.get(EXTENT, 1)
        if found is None:
            assert not self.created
            return
        scanner = await found.scan(ends[-1])
        assert scanner.verified_length >= self.durable_length
        assert whole.data.startswith((await found.read(0, 10**6))[: scanner.verified_length])
        assert found.sealed >= self.sealed
        if found.sealed:
            footer = await found.read_footer()
            assert footer is not None
            assert (footer.length, footer.group, footer.refusals) == (ends[-1], 2, (Refusal(2, 0),))
            if self.digest:
                assert footer.digest == scanner.digest()
            return
        if self.durable_length:
            await found.cut(self.durable_length)
            await found.seal(self.durable_length, self.durable_length and ends.index(self.durable_length) - 1, [])
            assert (await found.scan(found.size)).verified_length == self.durable_length


def fresh_directory(path: Path) -> Path:
    path.mkdir()
    return path


def make_empty(path: Path) -> None:
    """As a new volume, but for the directories, which take the longest to make."""
    (path / "label").unlink()
    for file in path.glob("extents/??/*"):
        file.unlink()


async def count_changes(path: Path) -> int:
    """Changing calls of a whole story without faults, on a volume that was opened before; its opening included."""
    await (await open_volume(path)).close()
    disk = FaultyDisk()
    volume = await open_volume(path, disk)
    await Story().run(volume)
    await volume.close()
    return disk.counts["change"]


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
async def test_whichever_call_fails_every_promise_is_kept(tmp_path: Path, error: int) -> None:
    """SQLite's way: fail the Nth changing call for every N, cut the power, reopen, check."""
    total = await count_changes(fresh_directory(tmp_path / "dry"))
    assert 25 < total < 100
    path = tmp_path / "dry"
    for nth in range(1, total + 1):
        make_empty(path)
        await (await open_volume(path)).close()
        disk = FaultyDisk()
        disk.fail("change", nth, error)
        story = Story()
        volume, told = None, False
        try:
            volume = await open_volume(path, disk)
            await story.run(volume)
        except (WriteFailed, NoSpace):
            told = True
        assert told or any(call.failed and call.name == "unlink" for call in disk.log), f"call {nth} failed unnoticed"
        if volume is not None:
            if any(call.failed and call.name.startswith("sync") for call in disk.log):
                assert volume.readonly_reason, nth
            await volume.close()
        disk.mend()
        disk.power_cut()
        reopened = await open_volume(path)
        await story.check(reopened)
        await reopened.close()


async def test_the_first_opening_may_fail_anywhere(tmp_path: Path) -> None:
    dry = FaultyDisk()
    (tmp_path / "dry").mkdir()
    await (await open_volume(tmp_path / "dry", dry)).close()
    total = dry.counts["change"]
    assert total > 256
    for nth in [*range(1, 5), *range(total - 12, total + 1)]:
        path = tmp_path / f"n{nth}"
        path.mkdir()
        disk = FaultyDisk()
        disk.fail("change", nth)
        with pytest.raises(WriteFailed):
            await open_volume(path, disk)
        disk.power_cut()
        volume = await open_volume(path)
        assert volume.label.epoch == 1
        await volume.mounted(7, 1)
        await volume.close()


async def filled(volume: Volume) -> tuple[ExtentFile, int]:
    whole, ends = image()
    file = await volume.create_extent(EXTENT, 1, header_of(EXTENT))
    await file.write_and_sync(EXTENT_HEADER_BYTES, [whole.data[EXTENT_HEADER_BYTES:]])
    return file, ends[-1]


async def test_a_failed_fsync_is_never_tried_again(tmp_path: Path) -> None:
    disk = FaultyDisk()
    volume = await open_volume(tmp_path, disk)
    file, end = await filled(volume)
    other = await volume.create_extent(EXTENT + 1, 1, header_of(EXTENT + 1))
    disk.fail("sync_data")
    with pytest.raises(WriteFailed, match="sync_data"):
        await file.write_and_sync(end, [b"lost"])
    assert "sync_data" in volume.readonly_reason
    changes = disk.counts["change"]
    attempts: list[Callable[[], Awaitable[object]]] = [
        file.sync,
        lambda: file.write_and_sync(end + 4, [b"x"]),
        lambda: file.cut(end),
        lambda: file.seal(end, 2, []),
        lambda: other.write(other.size, [b"x"]),
        lambda: volume.create_extent(EXTENT + 2, 1, None),
        lambda: volume.raise_revision(10**9),
        lambda: volume.admit(1, "tombstone"),
        volume.probe,
    ]
    for attempt in attempts:
        with pytest.raises(WriteFailed, match="takes no writes"):
            await attempt()
    assert disk.counts["change"] == changes
    assert len(await file.read(0, end)) == end
    assert await volume.drop(EXTENT + 1, 1)
    await volume.close()


async def test_a_close_that_fails_hides_no_failed_fsync(tmp_path: Path) -> None:
    """The descriptor is closed while the error of the fsync is on its way: that error is the one that counts."""
    disk = FaultyDisk()
    volume = await open_volume(tmp_path, disk)
    disk.fail("sync_file")
    disk.fail("close")
    with pytest.raises(WriteFailed, match="sync_file"):
        await volume.create_extent(EXTENT, 1, header_of(EXTENT))
    assert "sync_file" in volume.readonly_reason
    await volume.close()


async def test_a_volume_is_closed_although_close_fails(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    disk = FaultyDisk()
    volume = await open_volume(tmp_path, disk)
    await filled(volume)
    await volume.raise_revision(7)
    disk.fail_for_ever("close")
    await volume.raise_revision(8)
    assert volume.readonly_reason == "", "what was fsync'd before is durable, whatever close says"
    await volume.close()
    assert len(os.listdir("/proc/self/fd")) == before
    disk.mend()
    volume = await open_volume(tmp_path, disk)
    assert volume.label.revision == 8
    await volume.close()


async def test_a_full_disk_leaves_the_volume_usable(tmp_path: Path) -> None:
    disk = FaultyDisk()
    volume = await open_volume(tmp_path, disk)
    file, end = await filled(volume)
    disk.shorten(1, 3)
    disk.fail("write", 2, errno.ENOSPC)
    with pytest.raises(NoSpace):
        await file.write_and_sync(end, [b"0123456789"])
    assert volume.readonly_reason == ""
    with pytest.raises(WriteFailed, match="before it is cut"):
        await file.write(end + 10, [b"x"])
    await file.cut(end)
    assert [found.size for found in await volume.inventory()] == [end]
    await file.write_and_sync(end, [b"tombstone"])
    assert await file.read(end, 20) == b"tombstone"

    disk.fail("write", 1, errno.ENOSPC)
    with pytest.raises(NoSpace):
        await volume.create_extent(EXTENT + 1, 1, header_of(EXTENT + 1))
    assert len(await volume.inventory()) == 1
    await volume.create_extent(EXTENT + 1, 1, header_of(EXTENT + 1))
    await volume.close()


async def test_a_full_disk_that_shows_at_fsync_has_lost_bytes(tmp_path: Path) -> None:
    disk = FaultyDisk()
    volume = await open_volume(tmp_path, disk)
    file, end = await filled(volume)
    disk.fail("sync_data", 1, errno.ENOSPC)
    with pytest.raises(WriteFailed):
        await file.write_and_sync(end, [b"x"])
    assert volume.readonly_reason
    await volume.close()


async def test_short_writes_are_continued(tmp_path: Path) -> None:
    disk = FaultyDisk()
    volume = await open_volume(tmp_path, disk)
    file, end = await filled(volume)
    for nth, size_bytes in enumerate((1, 9, 2, 4096, 5), start=1):
        disk.shorten(nth, size_bytes)
    buffers = [b"a" * 5, b"b" * 5, b"", b"c" * 9000, b"d"]
    await file.write_and_sync(end, buffers)
    assert await file.read(end, 10**5) == b"".join(buffers)
    disk.shorten(1, 0)
    with pytest.raises(WriteFailed, match="took none"):
        await file.write(file.size, [b"x"])
    assert volume.readonly_reason
    await volume.close()


async def test_a_failed_read_says_so_and_marks_nothing(tmp_path: Path) -> None:
    disk = FaultyDisk()
    volume = await open_volume(tmp_path, disk)
    file, end = await filled(volume)
    disk.fail("read_cached")
    assert len(await file.read(0, 100)) == 100
    disk.fail("read_cached")
    disk.fail("read")
    with pytest.raises(ReadFailed):
        await file.read(0, 100)
    disk.fail("read_direct")
    with pytest.raises(ReadFailed):
        await file.scan(end, direct=True)
    assert volume.readonly_reason == ""
    os.unlink(file.path)
    await volume.close()
    volume = await open_volume(tmp_path, disk)
    assert volume.get(EXTENT) is None
    await volume.close()


async def test_without_direct_reads_the_page_cache_is_dropped_first(tmp_path: Path) -> None:
    disk = FaultyDisk()
    volume = await open_volume(tmp_path, disk)
    file, end = await filled(volume)
    disk.fail("open_direct", 1, errno.EINVAL)
    scanner = await file.scan(end, direct=True)
    assert scanner.verified_length == end
    assert disk.counts["forget"] == 1
    assert disk.counts["read_direct"] == 0
    await volume.close()


async def test_a_closed_volume_takes_no_calls_and_gives_everything_back(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    volume = await open_volume(tmp_path)
    file, end = await filled(volume)
    await file.read_direct(0, end)
    await volume.close()
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(Unavailable):
        await file.read_direct(0, end)
    await volume.close()


async def test_what_is_cancelled_while_it_opens_a_file_leaks_no_descriptor(tmp_path: Path) -> None:
    disk = FaultyDisk()
    volume = await open_volume(tmp_path, disk)
    file, end = await filled(volume)
    await file.seal(end, 2, [])
    await volume.close()
    volume = await open_volume(tmp_path, disk)
    again = volume.get(EXTENT)
    assert again is not None
    disk.hold("open")

    async def use() -> None:
        await again.lend(lambda disk, fd: disk.read(fd, 0, 1))

    task = asyncio.create_task(use())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    disk.let_go("open")
    assert await volume.drop(EXTENT, 1)
    await volume.close()
    assert not [link for link in _links() if "extents" in link]


def _links() -> list[str]:
    links = []
    for name in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            continue
    return links


async def test_a_cancelled_opening_gives_the_lock_back(tmp_path: Path) -> None:
    disk = FaultyDisk()
    disk.hold("space")
    opening = asyncio.create_task(open_volume(tmp_path, disk))
    await eventually(lambda: disk.counts["space"] == 1, "the opening asks for the space")
    opening.cancel()
    await asyncio.sleep(0)
    disk.let_go("space")
    with pytest.raises(asyncio.CancelledError):
        await opening
    volume = await open_volume(tmp_path)
    await volume.close()


async def test_want_of_descriptors_is_no_failure_of_the_disk(tmp_path: Path) -> None:
    disk = FaultyDisk()
    volume = await open_volume(tmp_path, disk)
    file, end = await filled(volume)
    disk.fail("create", 1, errno.EMFILE)
    with pytest.raises(Overloaded):
        await volume.create_extent(EXTENT + 1, 1, None)
    await volume.close()
    volume = await open_volume(tmp_path, disk)
    again = volume.get(EXTENT)
    assert again is not None
    disk.fail("open", 1, errno.EMFILE)
    with pytest.raises(Overloaded):
        await again.write_and_sync(end, [b"lost"])
    with pytest.raises(WriteFailed, match="before it is cut"):
        await again.write_and_sync(end + 4, [b"leaves a hole"])
    assert volume.readonly_reason == ""
    await again.cut(end)
    await again.write_and_sync(end, [b"well"])
    await volume.close()
    assert file.size == end


async def test_errors_of_the_disk_are_of_the_one_tree() -> None:
    assert all(issubclass(error, CopypoolError) for error in (WriteFailed, ReadFailed, Missing, NoSpace))
