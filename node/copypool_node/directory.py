"""The directory of a volume: its names, and everything about opening it that blocks.

Runs on a thread of the volume; `Volume.open` turns what it finds into a volume.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from copypool_node.disk import Disk, Entry, Missing
from copypool_node.label import LABEL_MAX_BYTES, Label, VolumeRefused, decode_label, encode_label

LABEL_FILE = "label"
LOCK_FILE = "lock"
PROBE_FILE = "probe"
CONFIGURATION_FILE = "configuration"
EXTENTS_DIRECTORY = "extents"
_FRESH_NAMES = frozenset({LOCK_FILE, LABEL_FILE + ".new", PROBE_FILE, EXTENTS_DIRECTORY, "lost+found"})
_FILE_NAME = re.compile(r"([0-9a-f]{16})\.(0|[1-9][0-9]{0,18})\.ext")


class Found(NamedTuple):
    """One extent file as the directory shows it."""

    extent: int
    generation: int
    size: int  #: of the file; with the footer when sealed
    sealed: bool


def extent_path(extent: int, generation: int) -> str:
    """Where an extent file stands below the volume's directory."""
    return f"{EXTENTS_DIRECTORY}/{extent & 0xFF:02x}/{extent:016x}.{generation}.ext"


def parse_file_name(directory: str, name: str) -> tuple[int, int] | None:
    """(extent, generation) of a file in `extents/<directory>/`; None when it is none of ours or stands elsewhere."""
    match = _FILE_NAME.fullmatch(name)
    if match is None or match[1][-2:] != directory:
        return None
    return int(match[1], 16), int(match[2])


class Opened(NamedTuple):
    """What opening found."""

    label: Label
    lock_fd: int
    files: list[Found]
    strangers: list[str]
    free_bytes: int
    total_bytes: int


class Part(NamedTuple):
    """What one of the 256 directories of extent files holds."""

    files: list[Found]
    strangers: list[str]


def open_directory(disk: Disk, path: str, wanted: Label, nonce: bytes, create: bool) -> Opened:
    """Lock, read or make the label, claim, index. Durable on return. Gives the lock back when it fails."""
    try:
        disk.list_names(path)
    except Missing as exc:
        raise VolumeRefused(f"volume {wanted.name}: there is no directory {path}") from exc
    lock_fd = disk.lock(f"{path}/{LOCK_FILE}")
    if lock_fd is None:
        raise VolumeRefused(f"volume {wanted.name}: another process has {path} open")
    try:
        label = _read_label(disk, path, wanted, create)
        label.check_owner(wanted.cluster_id, wanted.name, wanted.pool, wanted.pool_type)
        _make_directories(disk, path)
        claimed = label.claimed(nonce)
        # Written even when the claim stands already: whether it was synced before the last crash is not known.
        disk.replace(f"{path}/{LABEL_FILE}", encode_label(claimed))
        files: list[Found] = []
        strangers: list[str] = []
        for number in range(256):
            part = list_extents(disk, path, f"{number:02x}")
            files.extend(part.files)
            strangers.extend(part.strangers)
        space = disk.space(path)
    except BaseException:
        disk.close(lock_fd)
        raise
    return Opened(claimed, lock_fd, files, strangers, space.free_bytes, space.total_bytes)


def _read_label(disk: Disk, path: str, wanted: Label, create: bool) -> Label:
    """The volume's label, or the one of a new volume, which is not written yet."""
    try:
        return decode_label(disk.load(f"{path}/{LABEL_FILE}", LABEL_MAX_BYTES))
    except Missing:
        names = set(disk.list_names(path))
    if not create:
        raise VolumeRefused(f"volume {wanted.name}: {path} has no label: is its disk mounted?")
    strange = sorted(names - _FRESH_NAMES)
    if strange:
        raise VolumeRefused(f"volume {wanted.name}: {path} has no label and is not empty: {strange[:5]}")
    if EXTENTS_DIRECTORY in names:
        for directory in disk.list_names(f"{path}/{EXTENTS_DIRECTORY}"):
            if disk.list_names(f"{path}/{EXTENTS_DIRECTORY}/{directory}"):
                raise VolumeRefused(f"volume {wanted.name}: {path} has extents but no label: it must not be made anew")
    return wanted


def _make_directories(disk: Disk, path: str) -> None:
    """All directories, the probe file and their names, durable; what is there stays."""
    extents = f"{path}/{EXTENTS_DIRECTORY}"
    disk.make_directory(extents)
    there = set(disk.list_names(extents))
    for number in range(256):
        if f"{number:02x}" not in there:
            disk.make_directory(f"{extents}/{number:02x}")
    disk.sync_directory(extents)  # also when all were there: who made them may have died before this
    if PROBE_FILE not in disk.list_names(path):
        disk.close(disk.create(f"{path}/{PROBE_FILE}"))
    disk.sync_directory(path)


def list_extents(disk: Disk, path: str, directory: str) -> Part:
    """Extent files and strangers in `extents/<directory>/`."""
    part = Part([], [])
    for entry in disk.list_files(f"{path}/{EXTENTS_DIRECTORY}/{directory}"):
        _sort_in(part, directory, entry)
    return part


def _sort_in(part: Part, directory: str, entry: Entry) -> None:
    named = parse_file_name(directory, entry.name)
    if named is None:
        part.strangers.append(f"{EXTENTS_DIRECTORY}/{directory}/{entry.name}")
    else:
        part.files.append(Found(*named, entry.size_bytes, entry.sealed))
