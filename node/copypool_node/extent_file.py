"""One extent on one volume: appended to, cut, sealed, read, scanned. Shell over `disk`; knows no policy.

An offset is written once (DESIGN invariant 2): appends go to the end exactly, and after one that failed or was
cancelled the file takes no more until it was cut back to a length that is known to be good.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from copypool.protocol.errors import BrokenInvariant, DigestMismatch
from copypool.protocol.internal import Refusal
from copypool_node import format as layout
from copypool_node.descriptors import Descriptor, Descriptors
from copypool_node.disk import DIRECT_ALIGN_BYTES, Disk, WriteFailed
from copypool_node.format import NO_DIGEST, Buffer, SealFooter
from copypool_node.intake import Intake
from copypool_node.scanner import Event, Scanner
from copypool_node.threads import VolumeThreads

T = TypeVar("T")

PACED_BYTES = 1024 * 1024  #: read at a time where a pace is kept
SCANS_AT_ONCE = 2  #: of a volume's threads that scans may occupy
LENT_AT_ONCE = 2  #: of a volume's threads that long bodies on their way out may occupy
READ_CACHED_MAX_BYTES = 256 * 1024  #: longer reads go to a thread even when cached: copying them takes the loop's time
_TAIL_BYTES = 4096


class VolumeCore:
    """What the extent files of a volume share. Made by `Volume`."""

    def __init__(self, name: str, disk: Disk, threads: VolumeThreads, descriptors: Descriptors) -> None:
        self.name = name
        self.disk = disk
        self.threads = threads
        self.descriptors = descriptors
        self.lock = threading.Lock()  #: guards `ExtentFile.size` and `_Tail.landed`, never held over a disk call
        self.scans = asyncio.Semaphore(SCANS_AT_ONCE)
        self.lent = asyncio.Semaphore(LENT_AT_ONCE)
        self.readonly_reason = ""
        self.stored_bytes = 0

    def refuse_if_readonly(self) -> None:
        """Raise `WriteFailed` when an earlier write failed."""
        if self.readonly_reason:
            raise WriteFailed(f"volume {self.name} takes no writes: {self.readonly_reason}")

    def note_failure(self, what: str, error: WriteFailed) -> None:
        """A write or fsync failed: the volume is read-only from now on, until the process starts anew."""
        if not self.readonly_reason:
            self.readonly_reason = f"{what}: {error.message}"


class _Tail:
    """Where appends stand; exists only for files that are being written."""

    __slots__ = ("end", "inflight", "landed", "torn")

    def __init__(self, end: int) -> None:
        self.end = end  # offset of the next append
        self.landed: dict[int, int] = {}  # start -> end of appends that are written beyond a gap
        self.inflight: set[asyncio.Future[None]] = set()
        self.torn = ""


class ExtentFile:
    """Handle of one extent file. Cheap while idle; opens and closes its file by itself."""

    __slots__ = ("_core", "_tail", "extent", "generation", "path", "sealed", "size")

    def __init__(self, core: VolumeCore, extent: int, generation: int, path: str, size: int, *, sealed: bool) -> None:
        self._core = core
        self._tail: _Tail | None = None
        self.extent = extent
        self.generation = generation
        self.path = path
        #: Bytes of the file up to the first gap, durable or not; of a sealed one, with its footer.
        self.size = size
        #: A footer is durable behind the last byte and nothing may be appended any more.
        self.sealed = sealed

    def __repr__(self) -> str:
        return f"<extent {self.extent} generation {self.generation} on {self._core.name}, {self.size} bytes>"

    @property
    def torn(self) -> str:
        """Why the file takes no appends before it is cut; empty: it does."""
        return "" if self._tail is None else self._tail.torn

    # -- appending ----------------------------------------------------------------------------
    async def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """Append at `offset`, which is the end of the last append. Not durable yet.

        Raises `NoSpace` or `WriteFailed`; then, and when cancelled, the file takes no appends before `cut`. The
        buffers must not change until this returns or, when it is cancelled, until `cut` has returned.
        """
        await self._append(offset, buffers, sync=False)

    async def write_past_cache(self, offset: int, data: memoryview) -> None:
        """As `write`, but whole blocks go to the medium past the page cache, where the file system can: for bytes that
        nobody has asked for yet, so that they push nobody's out. See `Disk.write_direct` for how `data` should lie."""
        await self._append(offset, [data], sync=False, past_cache=True)

    async def write_and_sync(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """Append as `write` does; durable when it returns, with everything appended before. One hop to a thread."""
        await self._append(offset, buffers, sync=True)

    async def sync(self) -> None:
        """Everything appended before this call is durable when it returns. `WriteFailed`: never call it again."""
        self._core.refuse_if_readonly()
        await self._core.threads.run(self._sync)

    async def _append(self, offset: int, buffers: Sequence[Buffer], *, sync: bool, past_cache: bool = False) -> None:
        self._core.refuse_if_readonly()
        if self.sealed:
            raise BrokenInvariant(f"{self!r} is sealed; an append at {offset} was asked for")
        tail = self._tail
        if tail is None:
            tail = self._tail = _Tail(self.size)
        if tail.torn:
            raise WriteFailed(f"{self!r} takes no appends before it is cut: {tail.torn}")
        if offset != tail.end:
            raise BrokenInvariant(f"{self!r} ends at {tail.end}; an append at {offset} was asked for")
        length = sum(map(len, buffers))
        future = self._core.threads.submit(self._append_now, tail, offset, buffers, sync=sync, past_cache=past_cache)
        tail.end += length
        tail.inflight.add(future)
        future.add_done_callback(tail.inflight.discard)
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError:
            tail.torn = f"the append at {offset} was cancelled"
            raise

    def _append_now(self, tail: _Tail, offset: int, buffers: Sequence[Buffer], *, sync: bool, past_cache: bool) -> None:
        core = self._core
        try:
            descriptor = core.descriptors.pin(self.path, writable=True)
            try:
                core.disk.check_intact(descriptor.fd, self.size)
                if past_cache:
                    self._write_past_cache(descriptor.fd, offset, memoryview(buffers[0]))
                else:
                    core.disk.write(descriptor.fd, offset, buffers)
                self._landed(tail, offset, offset + sum(map(len, buffers)))
                if sync:
                    core.disk.sync_data(descriptor.fd)
            finally:
                core.descriptors.release(descriptor)
        except BaseException as exc:
            tail.torn = f"the append at {offset} failed: {exc}"
            if isinstance(exc, WriteFailed):
                core.note_failure(f"extent {self.extent} generation {self.generation}", exc)
            raise

    def _write_past_cache(self, fd: int, offset: int, data: memoryview) -> None:
        core = self._core
        descriptor = core.descriptors.pin(self.path, writable=True, direct=True)
        try:
            if descriptor.direct:
                core.disk.write_direct(fd, descriptor.fd, offset, data)
            else:
                core.disk.write(fd, offset, [data])
        finally:
            core.descriptors.release(descriptor)

    def _landed(self, tail: _Tail, start: int, end: int) -> None:
        with self._core.lock:
            before = self.size
            tail.landed[start] = end
            while (reached := tail.landed.pop(self.size, None)) is not None:
                self.size = reached
            self._core.stored_bytes += self.size - before

    def _sync(self) -> None:
        core = self._core
        try:
            descriptor = core.descriptors.pin(self.path, writable=True)
            try:
                core.disk.sync_data(descriptor.fd)
            finally:
                core.descriptors.release(descriptor)
        except WriteFailed as exc:
            core.note_failure(f"extent {self.extent} generation {self.generation}", exc)
            raise

    # -- cutting and sealing ------------------------------------------------------------------
    async def cut(self, length: int) -> None:
        """Make the file exactly `length` bytes long, durably, and ready for appends there.

        Waits for appends under way. Safe to repeat. Raises `DigestMismatch` when the file is shorter: bytes that
        were claimed are gone. A file that ends at `length` is synced too, and gives back what was reserved behind.
        """
        await self._settle("it is being cut")
        await self._core.threads.run(self._cut_now, length)
        self._tail = None

    async def seal(self, length: int, group: int, refusals: Sequence[Refusal], digest: bytes = NO_DIGEST) -> None:
        """Cut to `length` and put the seal footer behind it; durable when it returns.

        Safe to repeat with the same length; a digest that was not known before is added by a second footer. Raises
        `BrokenInvariant` when the file is sealed at another length, `DigestMismatch` when it is shorter.
        """
        footer = SealFooter(length, group, tuple(refusals), digest or NO_DIGEST)
        if not self.sealed:
            await self._settle("it is being sealed")
            await self._core.threads.run(self._seal_now, footer)
            self._tail = None
            return
        found = await self.read_footer()
        if found is None or found.length != length or found.group != group:
            raise BrokenInvariant(f"{self!r} is sealed with {found}; a seal with {footer} was asked for")
        if footer.digest != NO_DIGEST:
            await self.set_seal_digest(footer.digest)

    async def set_seal_digest(self, digest: bytes) -> None:
        """Add the digest of the sealed bytes, once they were read back. Durable when it returns; safe to repeat.

        It is a second footer behind the first, so that a crash in between leaves the first as it is.
        """
        found = await self.read_footer()
        if found is None:
            raise BrokenInvariant(f"{self!r} has no seal footer that a digest could be added to")
        if found.digest == digest:
            return
        if found.digest != NO_DIGEST:
            raise BrokenInvariant(f"{self!r} is sealed with digest {found.digest.hex()}, not {digest.hex()}")
        footer = SealFooter(found.length, found.group, found.refusals, digest)
        await self._core.threads.run(self._add_footer_now, footer)

    async def read_footer(self) -> SealFooter | None:
        """The newest seal footer of a sealed file; None when it is not sealed or no footer is whole."""
        return await self._core.threads.run(self._read_footer_now) if self.sealed else None

    async def _settle(self, why: str) -> None:
        self._core.refuse_if_readonly()
        if self.sealed:
            raise BrokenInvariant(f"{self!r} is sealed; it cannot be cut")
        tail = self._tail
        if tail is None:
            tail = self._tail = _Tail(self.size)
        tail.torn = tail.torn or why
        while tail.inflight:
            await asyncio.wait(tail.inflight)

    def _change(self, work: Callable[[int], int]) -> None:
        """Run `work(fd) -> new size` on the writable file and note what becomes of it."""
        core = self._core
        try:
            descriptor = core.descriptors.pin(self.path, writable=True)
            try:
                size = work(descriptor.fd)
            finally:
                core.descriptors.release(descriptor)
        except WriteFailed as exc:
            core.note_failure(f"extent {self.extent} generation {self.generation}", exc)
            raise
        with core.lock:
            core.stored_bytes += size - self.size
            self.size = size

    def _truncate(self, fd: int, length: int) -> None:
        size = self._core.disk.size(fd)
        if size < length:
            raise DigestMismatch(f"{self!r} holds {size} bytes, {length} were claimed", short=True)
        self._core.disk.truncate(fd, length)

    def _cut_now(self, length: int) -> None:
        def work(fd: int) -> int:
            self._truncate(fd, length)
            self._core.disk.sync_file(fd)
            return length

        self._change(work)

    def _seal_now(self, footer: SealFooter) -> None:
        disk = self._core.disk
        data = layout.encode_seal_footer(self.extent, footer.length, footer.group, footer.refusals, footer.digest)

        def work(fd: int) -> int:
            self._truncate(fd, footer.length)
            end = footer.length + disk.write(fd, footer.length, [data])
            disk.sync_file(fd)
            disk.mark_sealed(fd)  # only now: the mark promises a durable footer
            disk.sync_file(fd)
            return end

        self._change(work)
        self.sealed = True

    def _add_footer_now(self, footer: SealFooter) -> None:
        disk = self._core.disk

        def work(fd: int) -> int:
            offset = disk.size(fd)
            noted = layout.encode_seal_footer(
                self.extent, footer.length, footer.group, footer.refusals, footer.digest, offset=offset
            )
            end = offset + disk.write(fd, offset, [noted])
            disk.sync_data(fd)
            return end

        self._core.refuse_if_readonly()
        self._change(work)

    def _read_footer_now(self) -> SealFooter | None:
        descriptor = self._core.descriptors.pin(self.path)
        try:
            size = self._core.disk.size(descriptor.fd)
            for span in (_TAIL_BYTES, 2 * layout.SEAL_FOOTER_MAX_BYTES):
                start = max(0, size - span)
                tail = self._core.disk.read(descriptor.fd, start, size - start)
                footer = layout.find_seal_footer(tail, self.extent, start)
                if footer is not None:
                    return footer
            return None
        finally:
            self._core.descriptors.release(descriptor)

    # -- reading ------------------------------------------------------------------------------
    async def read(self, offset: int, length: int) -> bytes:
        """Bytes from `offset`; fewer than `length` only where the file ends. Unchecked. `ReadFailed` / `Missing`."""
        if length <= READ_CACHED_MAX_BYTES:
            cached = self.read_cached(offset, length)
            if cached is not None:
                return cached
        return await self._core.threads.run(self._read_now, offset, length, direct=False)

    async def read_direct(self, offset: int, length: int) -> bytes:
        """As `read`, but from the medium: by O_DIRECT, which writes dirty pages of the range out first.

        Where the file system has no O_DIRECT: the range is dropped from the page cache (posix_fadvise DONTNEED) and
        read; only what was synced before is dropped for sure.
        """
        return await self._core.threads.run(self._read_now, offset, length, direct=True)

    def read_cached(self, offset: int, length: int) -> bytes | None:
        """Exactly these bytes, unchecked, if nothing is to be waited for: file open, all of them in the page cache."""
        descriptor = self._core.descriptors.pin_cached(self.path)
        if descriptor is None:
            return None
        try:
            return self._core.disk.read_cached(descriptor.fd, offset, length)
        finally:
            self._unpin(descriptor)

    def _read_now(self, offset: int, length: int, *, direct: bool) -> bytes:
        core = self._core
        descriptor = core.descriptors.pin(self.path, direct=direct)
        try:
            if descriptor.direct:
                return core.disk.read_direct(descriptor.fd, offset, length)
            if direct:
                core.disk.forget(descriptor.fd, offset, length)
            return core.disk.read(descriptor.fd, offset, length)
        finally:
            core.descriptors.release(descriptor)

    async def lend(self, work: Callable[[Disk, int], T]) -> T:
        """Run `work(disk, descriptor)` on a thread of the volume, as soon as fewer than `LENT_AT_ONCE` others do.

        The descriptor is open as long as the work runs, even if the file is dropped meanwhile. Raises `Missing`, what
        the work raises, or that no thread could be had. Safe to cancel: work that was begun goes on to its end.
        """
        async with self._core.lent:
            return await self._core.threads.run(self._lend_now, work)

    def _lend_now(self, work: Callable[[Disk, int], T]) -> T:
        core = self._core
        descriptor = core.descriptors.pin(self.path)
        try:
            return work(core.disk, descriptor.fd)
        finally:
            core.descriptors.release(descriptor)

    def _unpin(self, descriptor: Descriptor) -> None:
        fd = self._core.descriptors.unpin(descriptor)
        if fd is not None:
            self._core.threads.post(self._core.disk.close, fd)

    # -- checking -----------------------------------------------------------------------------
    async def scan(
        self,
        upto: int,
        *,
        direct: bool = False,
        scanner: Scanner | None = None,
        on_events: Callable[[list[Event]], None] | None = None,
        pace: Callable[[int], Awaitable[None]] | None = None,
    ) -> Scanner:
        """Check the file's bytes up to `upto`, stripe by stripe on the volume's threads; the scanner as it stands then.

        Compare its `verified_length` with what was claimed: it ends earlier where the file does. Raises `Corrupt` at
        the first structure that fails; pass a `scanner` to know how far it came, or to continue one from its
        `verified_length`. `pace` is awaited with the size of each read, at most PACED_BYTES, before it is made,
        `on_events` is called on the loop. `direct`: from the medium (see `read_direct`), found by its name anew.
        Changes nothing; when cancelled, one read more is made, and the scanner must not be used any more.
        """
        found = Scanner(self.extent) if scanner is None else scanner
        if direct:
            # A descriptor keeps a file alive whose name is gone: what is read back is what the name leads to.
            await self._core.threads.run(self._core.descriptors.forget, self.path)
        intake = Intake(found)
        ended = False
        while not ended and intake.offset < upto:
            length = min(intake.wanted_bytes, upto - intake.offset)
            if pace is not None:
                length = min(length, PACED_BYTES)
                await pace(length)
            last = intake.offset + length >= upto
            async with self._core.scans:
                ended, events = await self._core.threads.run(self._scan_now, intake, length, direct=direct, last=last)
            if on_events is not None and events:
                on_events(events)
        return found

    def _scan_now(self, intake: Intake, length: int, *, direct: bool, last: bool) -> tuple[bool, list[Event]]:
        """Read the next bytes and check what is whole; whether the file ends there, and what was found."""
        core = self._core
        with intake.room(length) as room:
            start = intake.offset - intake.offset % DIRECT_ALIGN_BYTES
            ahead = intake.offset - start
            descriptor = core.descriptors.pin(self.path, direct=direct)
            try:
                if descriptor.direct:
                    filled = core.disk.read_direct_into(descriptor.fd, start, room)
                else:
                    if direct:
                        core.disk.forget(descriptor.fd, start, len(room))
                    with room[ahead : ahead + length] as wanted:
                        filled = ahead + core.disk.read_into(descriptor.fd, start + ahead, wanted)
            finally:
                core.descriptors.release(descriptor)
        count = max(0, min(filled - ahead, length))
        intake.came(count)
        ended = count < length
        if intake.wanted_bytes and not last and not ended:
            return False, []
        events = intake.check()
        if not last and not ended:
            intake.shift()
        return ended, events
