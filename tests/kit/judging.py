"""What a volume's files must look like after whatever happened to it, once its node has started again. Reads only."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from copypool_node.format import Corrupt
from copypool_node.scanner import Scanner
from kit.fake_coordinator import FakeCoordinator
from kit.rebuilding import rebuild


def extent_files(volume: Path) -> dict[int, Path]:
    """Extent -> file, of a volume that holds each once."""
    found: dict[int, Path] = {}
    for path in (volume / "extents").glob("??/*.ext"):
        extent = int(path.name.partition(".")[0], 16)
        assert extent not in found, f"extent {extent} is there twice"
        found[extent] = path
    return found


def scanned(path: Path, extent: int) -> Scanner:
    """A scan of a sealed file: all of it, or up to a torn second footer, which counts for nothing."""
    scanner = Scanner(extent)
    torn_at = -1
    try:
        scanner.feed(path.read_bytes())
    except Corrupt as exc:
        torn_at = exc.offset
    assert torn_at < 0 or (scanner.seal is not None and torn_at > scanner.seal.length), f"{path} at {torn_at}"
    return scanner


def check_written(volume: Path, coordinator: FakeCoordinator) -> int:
    """A volume's own extents are sealed at what was committed, whole, with nothing behind it; and they tell the files
    that the catalog tells, no more and no less. How many extents were checked."""
    files = extent_files(volume)
    checked = 0
    for extent in coordinator.extents.values():
        if extent.group < 0:
            continue  # nothing was ever committed in it
        assert extent.sealed, "a start seals what an earlier epoch had open"
        scanner = scanned(files[extent.id], extent.id)
        assert scanner.verified_length == extent.length, f"extent {extent.id}: cut to its committed length"
        assert scanner.seal is not None, f"extent {extent.id} has no footer"
        assert (scanner.seal.length, scanner.seal.group) == (extent.length, extent.group)
        _check_tail(files[extent.id], scanner)
        assert os.stat(files[extent.id]).st_mode & stat.S_ISVTX, f"extent {extent.id} is marked as sealed"
        checked += 1
    told = rebuild(files.values())
    assert {key: (one.version, one.digest, one.size) for key, one in told.items()} == {
        key: (row.version, row.digest, row.size) for key, row in coordinator.files.items() if not row.tombstone
    }, "volumes alone tell what the catalog tells"
    return checked


def _check_tail(path: Path, scanner: Scanner) -> None:
    """Behind the footer there may be the beginning of a second one, which adds the digest, and nothing else."""
    if scanner.pending_bytes:
        tail = path.read_bytes()[-scanner.pending_bytes :]
        assert tail[:4] == b"SEAL"[: len(tail)], f"{path}: {len(tail)} bytes stand behind the footer"


def check_prefix(copy: Path, original: Path, extent: int, length: int) -> None:
    """A location that claims `length` bytes holds them: the original's, and whole."""
    held = copy.read_bytes()[:length]
    assert held == original.read_bytes()[:length], f"extent {extent} is not a prefix of the truth"
    scanner = Scanner(extent)
    scanner.feed(held)
    assert scanner.verified_length == length, f"extent {extent} claims {length}, {scanner.verified_length} are whole"
