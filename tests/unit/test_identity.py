"""Who a node is survives whatever happens to its first starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from copypool.protocol.errors import BrokenInvariant
from copypool_node.disk import WriteFailed
from copypool_node.identity import Identity, IdentityStore
from kit.faulty_disk import FaultyDisk


def first_start(folder: Path, disk: FaultyDisk, nonce: bytes) -> Identity:
    """What the first start does: the nonce before the join, the whole identity after it."""
    store = IdentityStore(str(folder / "state" / "n1"), disk)
    identity = store.load(nonce)
    joined = Identity(identity.join_nonce, b"c" * 16, 7, b"credential", b"key")
    store.store(joined)
    return joined


@pytest.mark.parametrize("nth", range(1, 20))
def test_a_first_start_that_was_killed_and_made_again_outlives_a_power_cut(tmp_path: Path, nth: int) -> None:
    """The second process finds folders that the first one made and never synced."""
    disk = FaultyDisk()
    disk.die("change", nth, lambda: None)
    try:
        first_start(tmp_path, disk, b"1" * 16)
    except WriteFailed:
        assert disk.dead
    disk.revive()
    joined = first_start(tmp_path, disk, b"2" * 16)
    disk.power_cut()
    disk.revive()
    again = IdentityStore(str(tmp_path / "state" / "n1"), disk).load(b"3" * 16)
    assert again == joined


def test_a_broken_identity_is_not_taken_for_none(tmp_path: Path) -> None:
    store = IdentityStore(str(tmp_path), FaultyDisk())
    (tmp_path / "identity").write_bytes(b"{ torn")
    with pytest.raises(BrokenInvariant):
        store.load(b"1" * 16)


def test_a_lock_that_comes_after_the_end_is_not_kept(tmp_path: Path) -> None:
    """The thread that asked for it may still be at the disk when the node ends."""

    class Slow(FaultyDisk):
        def lock(self, path: str) -> int | None:
            late.unlock()
            return super().lock(path)

    late = IdentityStore(str(tmp_path), Slow())
    assert not late.lock()
    next_one = IdentityStore(str(tmp_path), FaultyDisk())
    assert next_one.lock()
    next_one.unlock()
