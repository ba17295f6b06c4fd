"""A volume on a healthy disk: locks, labels, extent files, reads, drops."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from copypool.protocol.digests import digest_of
from copypool.protocol.errors import BrokenInvariant, Conflict, DigestMismatch, NoSpace
from copypool.protocol.internal import EXTENT_HEADER_BYTES, Refusal
from copypool_node.directory import Found, extent_path
from copypool_node.disk import Disk, Missing
from copypool_node.extent_file import ExtentFile
from copypool_node.format import NO_DIGEST, Corrupt
from copypool_node.label import SafeMode, VolumeRefused, decode_configuration, encode_configuration
from copypool_node.scanner import Event, RecordSeen, Scanner
from copypool_node.space import SpaceLedger, default_reserve_bytes
from copypool_node.volume import Volume
from kit.eventually import eventually
from kit.extent_images import CLUSTER, header_of, image_of
from kit.faulty_disk import FaultyDisk

EXTENT = 0x1FF
MIB = 1024 * 1024


async def open_volume(path: Path, **changes: object) -> Volume:
    settings: dict[str, object] = {"name": "v1", "pool": "primary", "pool_type": "primary", "cluster_id": CLUSTER}
    return await Volume.open(str(path), **(settings | changes))  # type: ignore[arg-type]


@pytest.fixture
async def volume(tmp_path: Path) -> AsyncIterator[Volume]:
    opened = await open_volume(tmp_path)
    yield opened
    await opened.close()


async def fill(volume: Volume, extent: int = EXTENT, generation: int = 1) -> tuple[ExtentFile, bytes]:
    """An extent file with an image in it."""
    image = image_of(extent, [[b"a" * 100_000, b""], [b"b" * 10]])
    file = await volume.create_extent(extent, generation, header_of(extent))
    await file.write_and_sync(EXTENT_HEADER_BYTES, [image.data[EXTENT_HEADER_BYTES:]])
    return file, image.data


async def test_reading_back_finds_out_that_the_name_is_gone_though_the_file_is_open(volume: Volume) -> None:
    file, data = await fill(volume)
    assert (await file.scan(len(data), direct=True)).verified_length == len(data)
    os.unlink(file.path)
    with pytest.raises(Missing):
        await file.scan(len(data), direct=True)


def size_of(path: str) -> int:
    return os.path.getsize(path)


def overwrite(path: str, offset: int, data: bytes) -> None:
    with open(path, "r+b") as raw:
        raw.seek(offset)
        raw.write(data)


# -- the cluster's configuration --------------------------------------------------------------
async def test_the_newest_configuration_is_kept_beside_the_label(volume: Volume, tmp_path: Path) -> None:
    for revision, content in [(7, b"seven"), (5, b"five"), (9, b"nine"), (9, b"nine")]:
        await volume.keep_configuration(revision, content)
        assert decode_configuration((tmp_path / "configuration").read_bytes())[0] >= revision
    assert decode_configuration((tmp_path / "configuration").read_bytes()) == (9, b"nine")


async def test_a_broken_configuration_is_replaced(volume: Volume, tmp_path: Path) -> None:
    (tmp_path / "configuration").write_bytes(encode_configuration(100, b"x")[:-1])
    await volume.keep_configuration(3, b"three")
    assert decode_configuration((tmp_path / "configuration").read_bytes()) == (3, b"three")


def test_every_flipped_byte_of_a_configuration_is_found() -> None:
    good = encode_configuration(3, b"content")
    for at in range(len(good)):
        bad = bytearray(good)
        bad[at] ^= 1
        with pytest.raises(Corrupt):
            decode_configuration(bytes(bad))


# -- label, lock, mount -----------------------------------------------------------------------
async def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    script = (
        "import asyncio, sys\nfrom copypool_node.volume import Volume\n"
        "async def main():\n"
        "    cluster_id = bytes(range(16))\n"
        "    await Volume.open(sys.argv[1], name='v1', pool='primary', pool_type='primary', cluster_id=cluster_id)\n"
        "    print('open', flush=True)\n    sys.stdin.read()\nasyncio.run(main())\n"
    )
    holder = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(tmp_path), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    async with asyncio.timeout(60):
        assert await holder.stdout.readline() == b"open\n"
        with pytest.raises(VolumeRefused, match="another process"):
            await open_volume(tmp_path)
        holder.kill()
        await holder.communicate()
    volume = await open_volume(tmp_path)
    await volume.close()


async def test_a_claim_is_kept_until_it_is_confirmed(tmp_path: Path) -> None:
    seen = []
    for confirm in (False, False, True, False, True):
        volume = await open_volume(tmp_path)
        seen.append((volume.label.epoch, volume.label.nonce))
        if confirm:
            await volume.mounted(7, 100)
            assert volume.id == 7
        await volume.close()
    assert [epoch for epoch, _nonce in seen] == [1, 1, 1, 2, 2]
    assert len({nonce for _epoch, nonce in seen}) == 2


async def test_a_disk_that_was_rolled_back_repeats_an_old_epoch_with_another_nonce(tmp_path: Path) -> None:
    volume = await open_volume(tmp_path)
    await volume.mounted(7, 100)
    await volume.close()
    old = (tmp_path / "label").read_bytes()
    volume = await open_volume(tmp_path)
    winner = volume.label
    await volume.mounted(7, 120)
    await volume.close()
    (tmp_path / "label").write_bytes(old)
    volume = await open_volume(tmp_path)
    assert volume.label.epoch == winner.epoch
    assert volume.label.nonce != winner.nonce
    assert volume.label.uuid == winner.uuid
    await volume.close()


async def test_a_new_session_of_the_same_process_claims_again(volume: Volume) -> None:
    await volume.mounted(7, 100)
    await volume.claim()
    await volume.claim()
    assert (volume.label.epoch, volume.label.confirmed) == (2, 1)


async def test_an_older_catalog_or_another_cluster_means_safe_mode(tmp_path: Path) -> None:
    volume = await open_volume(tmp_path)
    await volume.mounted(7, 100)
    await volume.raise_revision(150)
    await volume.raise_revision(140)
    await volume.close()
    volume = await open_volume(tmp_path)
    assert volume.label.revision == 150
    with pytest.raises(SafeMode, match="150"):
        await volume.mounted(7, 149)
    assert volume.id is None
    await volume.close()
    label = (tmp_path / "label").read_bytes()
    with pytest.raises(SafeMode, match="another cluster"):
        await open_volume(tmp_path, cluster_id=bytes(16))
    for change in ({"name": "v2"}, {"pool": "other"}, {"pool_type": "copy"}):
        with pytest.raises(VolumeRefused, match="its label says"):
            await open_volume(tmp_path, **change)
    assert (tmp_path / "label").read_bytes() == label


async def test_only_an_empty_directory_becomes_a_new_volume(tmp_path: Path) -> None:
    with pytest.raises(VolumeRefused, match="no directory"):
        await open_volume(tmp_path / "nowhere")
    with pytest.raises(VolumeRefused, match="disk mounted"):
        await open_volume(tmp_path, create=False)
    (tmp_path / "letters").mkdir()
    with pytest.raises(VolumeRefused, match="letters"):
        await open_volume(tmp_path)
    (tmp_path / "letters").rmdir()
    (tmp_path / "lost+found").mkdir()
    volume = await open_volume(tmp_path)
    await fill(volume)
    await volume.close()
    (tmp_path / "label").unlink()
    with pytest.raises(VolumeRefused, match="extents but no label"):
        await open_volume(tmp_path)


async def test_a_label_with_any_byte_changed_is_refused(tmp_path: Path) -> None:
    volume = await open_volume(tmp_path)
    await volume.close()
    path = tmp_path / "label"
    good = path.read_bytes()
    for at in range(0, len(good), 7):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])
        with pytest.raises(Corrupt):
            await open_volume(tmp_path)
    path.write_bytes(good[:-1])
    with pytest.raises(Corrupt):
        await open_volume(tmp_path)


# -- extent files -----------------------------------------------------------------------------
async def test_what_is_appended_is_read_and_scanned(volume: Volume) -> None:
    file, data = await fill(volume)
    assert file.size == volume.stored_bytes == len(data)
    assert await file.read(0, len(data)) == await file.read_direct(0, len(data)) == data
    assert await file.read(5000, 3) == await file.read_direct(5000, 3) == data[5000:5003]
    assert await file.read(len(data) - 2, 10) == await file.read_direct(len(data) - 2, 10) == data[-2:]
    assert await file.read(len(data) + 5, 10) == await file.read_direct(len(data) + 5, 10) == b""
    for direct in (False, True):
        events: list[Event] = []
        scanner = await file.scan(len(data), direct=direct, on_events=events.extend)
        assert (scanner.verified_length, scanner.digest()) == (len(data), digest_of(data))
        assert [event.length for event in events if isinstance(event, RecordSeen)] == [100_000, 0, 10]


async def test_a_scan_stops_at_damage_and_at_the_end(volume: Volume) -> None:
    file, data = await fill(volume)
    paced: list[int] = []

    async def pace(size_bytes: int) -> None:
        paced.append(size_bytes)

    assert (await file.scan(10**9, pace=pace)).verified_length == len(data)
    assert paced[0] == MIB
    overwrite(file.path, 50_000, b"!")
    scanner = Scanner(EXTENT)
    with pytest.raises(Corrupt, match="block 0"):
        await file.scan(len(data), scanner=scanner, direct=True)
    assert EXTENT_HEADER_BYTES < scanner.verified_length < 50_000


async def test_an_offset_is_written_once(volume: Volume) -> None:
    file, data = await fill(volume)
    for offset in (0, len(data) - 1, len(data) + 1):
        with pytest.raises(BrokenInvariant):
            await file.write(offset, [b"x"])
    await asyncio.gather(file.write(len(data), [b"one", b"", b"two"]), file.write_and_sync(len(data) + 6, [b"three"]))
    assert await file.read(len(data), 100) == b"onetwothree"
    assert file.size == len(data) + 11


async def test_many_small_buffers(volume: Volume) -> None:
    file, data = await fill(volume)
    buffers = [str(number).encode() for number in range(5000)]
    await file.write_and_sync(len(data), buffers)
    assert await file.read(len(data), 10**6) == b"".join(buffers)


async def test_cut_then_append(volume: Volume) -> None:
    file, data = await fill(volume)
    await file.write(len(data), [b"not committed"])
    await file.cut(len(data))
    await file.cut(len(data))
    assert file.size == volume.stored_bytes == len(data) == size_of(file.path)
    await file.write_and_sync(len(data), [b"next"])
    with pytest.raises(DigestMismatch, match="were claimed"):
        await file.cut(len(data) + 5)
    assert await file.read(len(data), 10) == b"next"


async def test_seal_cuts_and_is_final(tmp_path: Path) -> None:
    volume = await open_volume(tmp_path)
    file, data = await fill(volume)
    await file.write(len(data), [b"not committed"])
    await file.seal(len(data), 1, [Refusal(1, 0)])
    await file.seal(len(data), 1, [Refusal(1, 0)])
    footer = await file.read_footer()
    assert footer is not None
    assert (footer.length, footer.group, footer.refusals, footer.digest) == (len(data), 1, (Refusal(1, 0),), NO_DIGEST)
    with pytest.raises(BrokenInvariant):
        await file.write(len(data), [b"x"])
    with pytest.raises(BrokenInvariant):
        await file.cut(len(data))
    with pytest.raises(BrokenInvariant):
        await file.seal(len(data) - 1, 1, [])
    await volume.close()

    volume = await open_volume(tmp_path)
    again = volume.get(EXTENT)
    assert again is not None
    assert again.sealed
    await again.set_seal_digest(digest_of(data))
    await again.seal(len(data), 1, [Refusal(1, 0)], digest_of(data))
    with pytest.raises(BrokenInvariant):
        await again.set_seal_digest(bytes([1]) * 32)
    footer = await again.read_footer()
    assert footer is not None
    assert footer.digest == digest_of(data)
    scanner = await again.scan(again.size)
    assert (scanner.verified_length, scanner.seal) == (len(data), footer)
    assert await volume.inventory() == [Found(EXTENT, 1, size_of(again.path), sealed=True)]
    await volume.close()


async def test_a_file_shorter_than_its_claim_is_not_sealed(volume: Volume) -> None:
    file, data = await fill(volume)
    with pytest.raises(DigestMismatch):
        await file.seal(len(data) + 1, 1, [])
    assert not file.sealed
    assert await file.read(0, 10**6) == data


async def test_generations_are_told_apart(volume: Volume) -> None:
    first, _data = await fill(volume, generation=2)
    second = await volume.create_extent(EXTENT, 10, None)
    assert volume.get(EXTENT) is second
    assert volume.get(EXTENT, 2) is first
    assert volume.get(EXTENT, 3) is volume.get(EXTENT + 1) is None
    assert second.size == 0
    with pytest.raises(Conflict):
        await volume.create_extent(EXTENT, 2, None)
    assert not await volume.drop(EXTENT, 3)
    assert await volume.drop(EXTENT, 10)
    assert not await volume.drop(EXTENT, 10)
    assert volume.get(EXTENT) is first
    assert volume.extents == 1
    assert volume.stored_bytes == first.size
    with pytest.raises(Missing):
        await second.read(0, 1)


async def test_readers_of_a_dropped_file_read_on(volume: Volume) -> None:
    file, data = await fill(volume)
    begun, dropped = threading.Event(), threading.Event()

    def read(disk: Disk, fd: int) -> bytes:
        begun.set()
        assert dropped.wait(10)
        return disk.read(fd, 0, 10**6)

    reading = asyncio.create_task(file.lend(read))
    await eventually(begun.is_set, "the file is open")
    assert await volume.drop(EXTENT, 1)
    dropped.set()
    assert await reading == data
    with pytest.raises(Missing):
        await file.lend(read)


async def test_the_cache_of_descriptors_is_bounded(tmp_path: Path) -> None:
    volume = await open_volume(tmp_path, open_files_max=3)
    files = [(await fill(volume, extent))[0] for extent in range(1, 9)]
    before = len(os.listdir("/proc/self/fd"))
    begun, used = threading.Event(), threading.Event()

    def read(disk: Disk, fd: int) -> bytes:
        begun.set()
        assert used.wait(10)
        return disk.read(fd, 0, 4)

    reading = asyncio.create_task(files[0].lend(read))
    await eventually(begun.is_set, "the file is open")
    for file in files * 2:
        await file.read_direct(0, 10)
        await file.read(0, 10)
    used.set()
    assert await reading == b"CPEX"
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    await volume.close()


async def test_strange_files_are_counted_and_stay(tmp_path: Path) -> None:
    volume = await open_volume(tmp_path)
    await fill(volume)
    names = ["extents/ff/notes.txt", "extents/fe/" + os.path.basename(extent_path(EXTENT, 1)), "extents/ff/x.1.ext"]
    for name in names:
        (tmp_path / name).write_bytes(b"mine")
    assert [found.extent for found in await volume.inventory()] == [EXTENT]
    assert sorted(volume.strangers) == sorted(names)
    await volume.close()
    volume = await open_volume(tmp_path)
    assert (volume.extents, volume.strangers_count) == (1, 3)
    await volume.close()
    assert all((tmp_path / name).read_bytes() == b"mine" for name in names)


# -- room -------------------------------------------------------------------------------------
def test_the_reserve_is_kept_for_repair_and_deletes() -> None:
    gib = 1024 * MIB
    assert default_reserve_bytes(100 * gib) == 2 * gib
    assert default_reserve_bytes(5 * gib) == 256 * MIB
    assert default_reserve_bytes(gib) == gib // 10
    ledger = SpaceLedger("v1", 400, 1000, 2000)
    ledger.admit(600, "data")
    with pytest.raises(NoSpace, match="400 kept"):
        ledger.admit(1, "data")
    ledger.admit(300, "repair")
    with pytest.raises(NoSpace):
        ledger.admit(1, "repair")
    ledger.admit(100, "tombstone")
    with pytest.raises(NoSpace):
        ledger.admit(1, "tombstone")
    ledger.update(500, 2000)
    ledger.admit(100, "data")
    assert ledger.room_bytes("data") == 0


async def test_a_full_volume_refuses_early_and_still_takes_tombstones(tmp_path: Path) -> None:
    volume = await open_volume(tmp_path, reserve_bytes=1 << 60)
    assert volume.free_bytes() == 0
    with pytest.raises(NoSpace):
        await volume.admit(1)
    await volume.admit(1, "tombstone")
    await volume.close()


# -- slow and hung disks ----------------------------------------------------------------------
async def test_a_hung_disk_does_not_stop_the_loop_and_shows_in_the_probe_age(tmp_path: Path) -> None:
    disk = FaultyDisk()
    volume = await open_volume(tmp_path, disk=disk)
    await volume.probe()
    disk.hold("sync_data")
    for _round in range(5):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await volume.probe()
    assert volume.queued_calls == 1
    assert volume.probe_age_s() >= 0.05
    begun_s = time.monotonic()
    disk.let_go("sync_data")
    await volume.probe()
    assert volume.probe_age_s() <= time.monotonic() - begun_s
    await volume.close()


async def test_a_cancelled_append_lands_or_not_but_never_behind_a_cut(tmp_path: Path) -> None:
    disk = FaultyDisk()
    volume = await open_volume(tmp_path, disk=disk)
    file, data = await fill(volume)
    disk.hold("write")
    append = asyncio.create_task(file.write_and_sync(len(data), [b"late"]))
    await asyncio.sleep(0)
    append.cancel()
    with pytest.raises(asyncio.CancelledError):
        await append
    cut = asyncio.create_task(file.cut(len(data)))
    await asyncio.sleep(0)
    assert not cut.done()
    disk.let_go("write")
    await cut
    assert size_of(file.path) == file.size == len(data)
    await file.write_and_sync(len(data), [b"next"])
    assert await file.read(len(data), 10) == b"next"
    await volume.close()
