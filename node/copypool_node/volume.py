"""A volume: a labelled directory of extent files on one disk, owned by one process. Shell over `disk`.

It owns the directory's layout (node/README.md), the lock, the label, the room that is left and the index of extent
files. It does not know what the catalog says: it deletes an extent file by exact (extent, generation) and on command
only, and counts what it does not understand instead of touching it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable

from copypool.protocol.api import PoolType
from copypool.protocol.errors import BrokenInvariant, Conflict, NoSpace
from copypool.protocol.internal import EXTENT_SOFT_BYTES
from copypool_node.descriptors import OPEN_FILES_MAX, Descriptors
from copypool_node.directory import (
    CONFIGURATION_FILE,
    LABEL_FILE,
    PROBE_FILE,
    Found,
    Opened,
    extent_path,
    list_extents,
    open_directory,
)
from copypool_node.disk import Disk, Missing, WriteFailed
from copypool_node.extent_file import ExtentFile, VolumeCore
from copypool_node.format import Corrupt, ExtentHeader, encode_extent_header
from copypool_node.label import (
    CONFIGURATION_MAX_BYTES,
    Label,
    decode_configuration,
    encode_configuration,
    encode_label,
)
from copypool_node.space import Purpose, SpaceLedger, default_reserve_bytes
from copypool_node.threads import THREADS, VolumeThreads

__all__ = ["ExtentFile", "Found", "Volume"]

CLOSE_TIMEOUT_S = 5.0
STRANGERS_SHOWN_MAX = 100
_PROBE_BYTES = 512


class Volume:
    """One mounted volume. Belongs to the event loop that opened it."""

    def __init__(self, path: str, core: VolumeCore, label: Label, lock_fd: int, ledger: SpaceLedger) -> None:
        """Use `Volume.open`."""
        self.path = path
        self.label = label
        self._core = core
        self._lock_fd: int | None = lock_fd
        self._ledger = ledger
        self._id: int | None = None
        self._files: dict[int, list[ExtentFile]] = {}
        self._label_turn = asyncio.Lock()
        self._label_lock = threading.Lock()
        self._probe: asyncio.Future[None] | None = None
        self._probed_at_s = time.monotonic()
        self.strangers: list[str] = []
        self.strangers_count = 0

    # -- opening and closing ------------------------------------------------------------------
    @classmethod
    async def open(
        cls,
        path: str,
        *,
        name: str,
        pool: str,
        pool_type: PoolType,
        cluster_id: bytes,
        reserve_bytes: int | None = None,
        disk: Disk | None = None,
        create: bool = True,
        open_files_max: int = OPEN_FILES_MAX,
        threads: int = THREADS,
    ) -> Volume:
        """Lock the directory, read its label, claim the volume on it durably, index its extent files.

        An empty directory becomes a new volume (`create`; pass False for one that was mounted before, so that a disk
        that is not there is not taken for an empty one). Raises `VolumeRefused` (locked by another process, another
        volume, files but no label), `SafeMode` (another cluster's), `Corrupt` (label), or the disk's errors. Then the
        caller compares the claim (`label.epoch`, `label.nonce`) with the catalog and calls `mounted`.
        """
        door = Disk() if disk is None else disk
        workers = VolumeThreads(name, count=threads)
        wanted = Label(cluster_id, os.urandom(16), name, pool, pool_type)
        opening = workers.submit(open_directory, door, path, wanted, os.urandom(16), create)
        try:
            opened = await asyncio.shield(opening)
        except BaseException:
            opening.add_done_callback(lambda done: _give_lock_back(door, done))
            await workers.close(CLOSE_TIMEOUT_S)
            raise
        core = VolumeCore(name, door, workers, Descriptors(door, open_files_max))
        reserve = default_reserve_bytes(opened.total_bytes) if reserve_bytes is None else reserve_bytes
        ledger = SpaceLedger(name, reserve, opened.free_bytes, opened.total_bytes)
        volume = cls(path, core, opened.label, opened.lock_fd, ledger)
        for found in opened.files:
            volume._add(found)
        volume.strangers_count = len(opened.strangers)
        volume.strangers = opened.strangers[:STRANGERS_SHOWN_MAX]
        return volume

    async def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Finish the calls that are queued, close the files, give the lock back. Syncs nothing: what was acked is
        durable already. With a disk that hangs longer than `timeout_s` files and lock stay open until the process
        ends."""
        if not await self._core.threads.close(timeout_s):
            return
        self._core.descriptors.close()
        if self._lock_fd is not None:
            lock_fd, self._lock_fd = self._lock_fd, None  # a second close must not hit a number that is reused
            self._core.disk.close(lock_fd)

    # -- label --------------------------------------------------------------------------------
    @property
    def id(self) -> int | None:
        """The catalog's number of this volume, once it is mounted."""
        return self._id

    @property
    def name(self) -> str:
        return self.label.name

    async def claim(self) -> None:
        """Claim the volume again, for a new session of the same process. `label` has the claim, durably, on return.

        A claim that was never confirmed stays as it is. Safe to repeat.
        """
        await self._relabel(lambda label: label.claimed(os.urandom(16)))

    async def mounted(self, volume_id: int, catalog_revision: int) -> None:
        """The catalog accepted the claim. Raises `SafeMode` when it is older than what this volume has seen.

        The confirmation is durable on return; a crash before it leads to the same claim again.
        """
        self.label.check_revision(catalog_revision)
        await self._relabel(lambda label: label.mounted(catalog_revision))
        self._id = volume_id

    async def raise_revision(self, revision: int) -> None:
        """Note on the label that the volume has seen this catalog revision; durable on return. Cheap when it has."""
        if revision > self.label.revision:
            await self._relabel(lambda label: label.raised(revision))

    async def _relabel(self, change: Callable[[Label], Label]) -> None:
        async with self._label_turn:
            if change(self.label) != self.label:
                self._core.refuse_if_readonly()
                await self._core.threads.run(self._relabel_now, change)

    def _relabel_now(self, change: Callable[[Label], Label]) -> None:
        with self._label_lock:  # whoever was cancelled gave its turn back while its call still runs
            label = change(self.label)
            try:
                self._core.disk.replace(f"{self.path}/{LABEL_FILE}", encode_label(label))
            except WriteFailed as exc:
                self._core.note_failure("label", exc)
                raise
            self.label = label

    async def keep_configuration(self, revision: int, content: bytes) -> None:
        """Keep the cluster's configuration as of a catalog revision; durable on return. An older one is passed over."""
        self._core.refuse_if_readonly()
        await self._core.threads.run(self._keep_configuration_now, revision, content)

    def _keep_configuration_now(self, revision: int, content: bytes) -> None:
        with self._label_lock:
            path = f"{self.path}/{CONFIGURATION_FILE}"
            try:
                there, kept = decode_configuration(self._core.disk.load(path, CONFIGURATION_MAX_BYTES))
            except (Missing, Corrupt):
                there, kept = -1, b""
            if revision < there or content == kept:
                return
            try:
                self._core.disk.replace(path, encode_configuration(revision, content))
            except WriteFailed as exc:
                self._core.note_failure("configuration", exc)
                raise

    # -- room and health ----------------------------------------------------------------------
    @property
    def readonly_reason(self) -> str:
        """Why the volume takes no writes; empty: it does."""
        return self._core.readonly_reason

    @property
    def stored_bytes(self) -> int:
        """Sizes of all extent files together."""
        return self._core.stored_bytes

    @property
    def queued_calls(self) -> int:
        """Disk calls waiting or running."""
        return self._core.threads.unfinished

    def free_bytes(self) -> int:
        """Available to new data: the reserve is taken off, a size limit is kept. As of the last probe, less what was
        admitted since."""
        self._ledger.used_bytes = self.stored_bytes
        return self._ledger.room_bytes("data")

    def set_limit(self, limit_bytes: int) -> None:
        """Let the volume's extents take no more room than this; 0: as much as the file system has."""
        self._ledger.limit_bytes = limit_bytes

    def forgive(self) -> None:
        """Take writes again after a write error, on an operator's word. What was open then stays sealed."""
        self._core.readonly_reason = ""

    @property
    def reserve_bytes(self) -> int:
        """What new data leaves free."""
        return self._ledger.reserve_bytes

    def total_bytes(self) -> int:
        """Size of the file system."""
        return self._ledger.total_bytes

    async def admit(self, size_bytes: int, purpose: Purpose = "data") -> None:
        """Make sure, before anything is written, that there is room: `NoSpace`, or `WriteFailed` when read-only.

        Asks the file system only when the count since the last answer says no.
        """
        self._core.refuse_if_readonly()
        self._ledger.used_bytes = self.stored_bytes
        if size_bytes > self._ledger.room_bytes(purpose):
            self._ledger.update(*await self._core.threads.run(self._core.disk.space, self.path))
        self._ledger.admit(size_bytes, purpose)

    async def probe(self) -> None:
        """Write and fsync the probe file and ask for the free space. One at a time: a call while one is under way
        waits for that one. Safe to cancel; `probe_age_s` tells how long ago the last good one ended."""
        if self._probe is None or self._probe.done():
            self._core.refuse_if_readonly()
            self._probe = self._core.threads.submit(self._probe_now)
        await asyncio.shield(self._probe)

    def probe_age_s(self) -> float:
        """Age of the last good probe (at first: of the opening, which writes and syncs the label)."""
        return time.monotonic() - self._probed_at_s

    def _probe_now(self) -> None:
        core = self._core
        path = f"{self.path}/{PROBE_FILE}"
        try:
            descriptor = core.descriptors.pin(path, writable=True)
            try:
                core.disk.write(descriptor.fd, 0, [self.label.uuid.ljust(_PROBE_BYTES, b"\0")])
                core.disk.sync_data(descriptor.fd)
            finally:
                core.descriptors.release(descriptor)
        except WriteFailed as exc:
            core.note_failure("probe", exc)
            raise
        self._ledger.update(*core.disk.space(self.path))
        self._probed_at_s = time.monotonic()

    # -- extents ------------------------------------------------------------------------------
    @property
    def extents(self) -> int:
        """How many extent files there are."""
        return sum(map(len, self._files.values()))

    def files(self) -> list[ExtentFile]:
        """Handles of all extent files, by extent and generation."""
        return [file for _extent, files in sorted(self._files.items()) for file in files]

    def get(self, extent: int, generation: int | None = None) -> ExtentFile | None:
        """The file of this generation; without one, of the highest."""
        files = self._files.get(extent)
        if not files:
            return None
        if generation is None:
            return files[-1]
        return next((file for file in files if file.generation == generation), None)

    async def create_extent(
        self, extent: int, generation: int, header: ExtentHeader | None, *, expected_bytes: int = EXTENT_SOFT_BYTES
    ) -> ExtentFile:
        """Make the file of a new location; it and its name are durable on return.

        With its header written and synced, or empty (`None`: a pull brings the header). Reserves disk blocks for
        `expected_bytes` where the file system can. Raises `Conflict` when the file exists, `NoSpace`, `WriteFailed`;
        a file that could not be finished is removed again, or found by the next inventory. When cancelled the file
        may come to be: `get` knows it then, and making it again is a `Conflict`.
        """
        self._core.refuse_if_readonly()
        if header is not None and header.extent != extent:
            raise ValueError(f"a header of extent {header.extent} for extent {extent}")
        data = b"" if header is None else encode_extent_header(header)
        if self.get(extent, generation) is not None:
            raise Conflict(f"volume {self.name} holds extent {extent} generation {generation} already")
        # Blocks kept for one file must not eat what is kept for deletes and repair.
        kept_bytes = min(expected_bytes, self._ledger.room_bytes("data"))
        making = self._core.threads.submit(self._create_now, extent, generation, data, kept_bytes)
        making.add_done_callback(self._created)
        await asyncio.shield(making)
        file = self.get(extent, generation)
        if file is None:
            raise BrokenInvariant(f"volume {self.name}: extent {extent} generation {generation} was made and is gone")
        return file

    def _created(self, making: asyncio.Future[Found]) -> None:
        if not making.cancelled() and making.exception() is None:
            self._add(making.result())

    def _create_now(self, extent: int, generation: int, data: bytes, kept_bytes: int) -> Found:
        core = self._core
        path = f"{self.path}/{extent_path(extent, generation)}"
        directory = os.path.dirname(path)
        try:
            fd = core.disk.create(path)
            try:
                core.disk.preallocate(fd, kept_bytes)
                core.disk.write(fd, 0, [data])
                core.disk.sync_file(fd)
                core.disk.sync_directory(directory)
            except BaseException:
                core.disk.close(fd)
                self._unmake(path)
                raise
        except WriteFailed as exc:
            core.note_failure(f"creating extent {extent} generation {generation}", exc)
            raise
        core.descriptors.adopt(path, fd)
        return Found(extent, generation, len(data), sealed=False)

    def _unmake(self, path: str) -> None:
        """Remove a file that this very call has made and nobody was told of. Not a must: an inventory finds it."""
        with contextlib.suppress(WriteFailed, NoSpace):
            self._core.disk.unlink(path)

    async def drop(self, extent: int, generation: int) -> bool:
        """Delete exactly this file; False when there is none. Durable on return; safe to repeat.

        Those who hold a pin read on. Also on a volume that takes no writes.
        """
        file = self.get(extent, generation)
        dropped = await self._core.threads.run(self._drop_now, extent, generation)
        if file is not None and file in self._files.get(extent, ()):
            self._files[extent].remove(file)
            if not self._files[extent]:
                del self._files[extent]
            self._core.stored_bytes -= file.size
        return dropped

    def _drop_now(self, extent: int, generation: int) -> bool:
        core = self._core
        path = f"{self.path}/{extent_path(extent, generation)}"
        try:
            dropped = core.disk.unlink(path)
            core.disk.sync_directory(os.path.dirname(path))  # also when a try before this one has removed the name
        except WriteFailed as exc:
            core.note_failure(f"dropping extent {extent} generation {generation}", exc)
            raise
        core.descriptors.forget(path)
        return dropped

    async def inventory(self) -> list[Found]:
        """Look at the directory once more and tell every extent file that stands there. Changes nothing but the
        count of strangers. A file that is made or dropped meanwhile may or may not be told."""
        found: list[Found] = []
        strangers: list[str] = []
        for number in range(256):
            part = await self._core.threads.run(list_extents, self._core.disk, self.path, f"{number:02x}")
            found.extend(part.files)
            strangers.extend(part.strangers)
        self.strangers_count = len(strangers)
        self.strangers = strangers[:STRANGERS_SHOWN_MAX]
        return found

    def _add(self, found: Found) -> ExtentFile:
        path = f"{self.path}/{extent_path(found.extent, found.generation)}"
        file = ExtentFile(self._core, found.extent, found.generation, path, found.size, sealed=found.sealed)
        files = self._files.setdefault(found.extent, [])
        files.append(file)
        files.sort(key=lambda other: other.generation)
        self._core.stored_bytes += found.size
        return file


def _give_lock_back(disk: Disk, opening: asyncio.Future[Opened]) -> None:
    """Whoever opened the volume was cancelled; the lock must not outlive the call."""
    if not opening.cancelled() and opening.exception() is None:
        disk.close(opening.result().lock_fd)
