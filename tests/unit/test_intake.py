"""What comes in pieces of any size is checked as a whole, lies at its place modulo a block, and is told once."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from copypool.protocol import stripes
from copypool.protocol.errors import NoSpace
from copypool_node.disk import DIRECT_ALIGN_BYTES, Disk
from copypool_node.format import Corrupt
from copypool_node.intake import FEED_BYTES, Intake
from copypool_node.scanner import Event, RecordSeen, Scanner
from kit.extent_images import Image, image_of
from kit.faulty_disk import FaultyDisk

EXTENT = 77
MIB = 1024 * 1024


def an_image() -> Image:
    """Small records, one of several stripes, and an empty one."""
    return image_of(EXTENT, [[os.urandom(5_000), b""], [os.urandom(2 * stripes.STRIPE_BYTES + 70_000)], [b"end"]])


def take_all(image: bytes, piece_bytes: int) -> tuple[bytes, list[Event], Scanner]:
    """Everything through an intake, in pieces; what it called good, in order."""
    scanner = Scanner(EXTENT)
    intake, good, events = Intake(scanner), bytearray(), []

    def check() -> None:
        events.extend(intake.check())
        assert memoryview(image)[len(good) : len(good) + len(intake.good)] == intake.good
        good.extend(intake.good)
        intake.shift()
        assert intake.offset >= len(good) == scanner.verified_length

    for start in range(0, len(image), piece_bytes):
        piece = memoryview(image)[start : start + piece_bytes]
        while piece:
            piece = piece[intake.add(piece) :]
            if not intake.wanted_bytes:
                check()
    check()
    return bytes(good), events, scanner


@pytest.mark.parametrize("piece_bytes", [1_000, 65_536, 300_007, MIB, 100 * MIB])
def test_pieces_of_any_size_are_taken_in_whole_and_once(piece_bytes: int) -> None:
    image = an_image()
    good, events, scanner = take_all(image.data, piece_bytes)
    assert good == image.data
    assert scanner.verified_length == len(image.data)
    assert [event.length for event in events if isinstance(event, RecordSeen)] == [5_000, 0, 8 * MIB + 70_000, 3]


def pour(intake: Intake, data: memoryview) -> None:
    """All of it, checked whenever it is worth it and at the end."""
    while data:
        data = data[intake.add(data) :]
        if not data or not intake.wanted_bytes:
            intake.check()
            intake.shift()


def test_it_never_wants_more_than_it_has_room_for() -> None:
    image = an_image()
    intake = Intake(Scanner(EXTENT))
    at = 0
    while at < len(image.data):
        wanted = intake.wanted_bytes
        assert 0 < wanted <= FEED_BYTES
        at += intake.add(memoryview(image.data)[at : at + min(wanted, 40_000)])
        if not intake.wanted_bytes:
            intake.check()
            intake.shift()


def test_room_is_aligned_to_where_its_bytes_stand_in_the_file() -> None:
    image = an_image()
    intake = Intake(Scanner(EXTENT))
    at = 0
    while at < len(image.data):
        wanted = min(intake.wanted_bytes, len(image.data) - at)
        start = at - at % DIRECT_ALIGN_BYTES
        room = intake.room(wanted)
        assert intake.offset == at
        assert len(room) % DIRECT_ALIGN_BYTES == 0
        came = image.data[start : at + wanted]
        room[: len(came)] = came
        intake.came(wanted)
        at += wanted
        intake.check()
        intake.shift()


def test_what_was_good_before_the_damage_is_told() -> None:
    image = an_image()
    whole = image.boundaries[4]
    damaged = bytearray(image.data)
    damaged[-5_000_000] ^= 1
    scanner = Scanner(EXTENT)
    intake = Intake(scanner)
    with pytest.raises(Corrupt):
        pour(intake, memoryview(damaged))
    assert intake.good == image.data[scanner.verified_length - len(intake.good) : scanner.verified_length]
    assert whole <= scanner.verified_length < len(image.data) - 5_000_000
    again = Intake(scanner)
    pour(again, memoryview(image.data)[again.offset :])
    assert scanner.verified_length == len(image.data)


# -- past the page cache --------------------------------------------------------------------------
@contextmanager
def direct_file(disk: Disk, folder: Path) -> Iterator[tuple[int, int]]:
    """A new file, open twice: as usual, and past the page cache."""
    fd = disk.create(str(folder / "file"))
    direct_fd = disk.open_direct(str(folder / "file"), writable=True)
    assert direct_fd is not None, "this file system has no O_DIRECT"
    try:
        yield fd, direct_fd
    finally:
        disk.close(fd)
        disk.close(direct_fd)


def in_place(data: memoryview, offset: int) -> memoryview:
    """What of it belongs to `offset` and behind, in memory where a direct write wants it."""
    place = Intake(Scanner(EXTENT)).room(len(data))[offset : len(data)]
    place[:] = data[offset:]
    return place


@pytest.mark.parametrize("refused", [False, True])
def test_a_direct_write_of_any_place_and_length(tmp_path: Path, refused: bool) -> None:
    disk, dice = Disk(), random.Random(5)
    fd = disk.create(str(tmp_path / "file"))
    direct_fd = disk.open_direct(str(tmp_path / "file"), writable=True)
    assert direct_fd is not None, "this file system has no O_DIRECT"
    expected = bytearray()
    intake_bytes = memoryview(bytearray(8 * MIB)) if refused else Intake(Scanner(EXTENT)).room(3 * MIB)
    for length in (1, 4096, 4095, 4097, 3, 100_000, MIB, 8192, 1, dice.randrange(2 * MIB)):
        place = len(expected) % DIRECT_ALIGN_BYTES + refused  # at any other place it is not aligned: refused, or copied
        data = intake_bytes[place : place + length]
        data[:] = os.urandom(length)
        disk.write_direct(fd, direct_fd, len(expected), data)
        expected += data
    disk.sync_data(fd)
    assert (tmp_path / "file").read_bytes() == expected
    disk.close(fd)
    disk.close(direct_fd)


@pytest.mark.parametrize("taken", [1, 4096, 5000, 12_288, 59_999])
@pytest.mark.parametrize("nth", [1, 2])
def test_a_direct_write_that_is_cut_short_goes_on_where_it_stands(tmp_path: Path, nth: int, taken: int) -> None:
    disk = FaultyDisk()
    with direct_file(disk, tmp_path) as (fd, direct_fd):
        data = memoryview(os.urandom(60_000))
        disk.write(fd, 0, [data[:100]])
        disk.shorten(nth, taken)  # the end of the block that is begun, or the whole ones behind it
        disk.write_direct(fd, direct_fd, 100, in_place(data, 100))
        assert (tmp_path / "file").read_bytes() == data


@pytest.mark.parametrize("nth", [2, 3])
def test_what_the_file_system_refuses_past_the_page_cache_goes_through_it(tmp_path: Path, nth: int) -> None:
    disk = FaultyDisk()
    with direct_file(disk, tmp_path) as (fd, direct_fd):
        data = memoryview(os.urandom(60_000))
        disk.write(fd, 0, [data[:100]])
        disk.shorten(2, 8192)
        disk.fail("write", nth, errno.EINVAL)
        disk.write_direct(fd, direct_fd, 100, in_place(data, 100))
        assert (tmp_path / "file").read_bytes() == data


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_a_disk_that_is_full_in_the_middle_of_a_direct_write_says_so(tmp_path: Path, nth: int) -> None:
    disk = FaultyDisk()
    with direct_file(disk, tmp_path) as (fd, direct_fd):
        data = memoryview(os.urandom(60_000))
        disk.write(fd, 0, [data[:100]])
        disk.shorten(2, 8192)
        disk.fail("write", nth, errno.ENOSPC)
        with pytest.raises(NoSpace):
            disk.write_direct(fd, direct_fd, 100, in_place(data, 100))
        found = (tmp_path / "file").read_bytes()
        assert found == data[: len(found)]
