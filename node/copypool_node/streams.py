"""Bodies longer than SMALL_MAX_BYTES: each holds an open extent alone while it streams, then hands it to the next.

Stripe by stripe: while one stripe is checked, hashed and written, the next one is received, so a body takes about two
stripes of memory whatever its length. One fsync and one commit at the end. A body that breaks off or has another
digest than stated ends its extent: what it wrote is cut away and never claimed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from concurrent.futures import Executor
from functools import partial
from typing import TYPE_CHECKING

from copypool.protocol.api import Receipt, SegmentRef
from copypool.protocol.digests import Hasher
from copypool.protocol.errors import CopypoolError, DigestRefused, Fenced, OutcomeUnknown, Overloaded
from copypool.protocol.internal import EXTENT_HEADER_BYTES
from copypool_node.answers import answer, answer_verdict, refusal_of_group
from copypool_node.body import Body
from copypool_node.encoding import encode_record_head, entry_of
from copypool_node.format import Buffer, encode_group_header, encode_record_footer
from copypool_node.group import RETRIES_MAX, Group, PendingRecord
from copypool_node.open_extent import OpenExtent
from copypool_node.stripe_room import StripeRoom, StripeRooms

if TYPE_CHECKING:
    from copypool_node.sealing import Sealer
    from copypool_node.session import Session
    from copypool_node.volumes import MountedVolume

log = logging.getLogger(__name__)

WRITEBACK_BYTES = 16 * 1024 * 1024  #: dirty bytes of one body after which they are synced while more comes in


class StreamPool:
    """Extents for long bodies of one class on one volume."""

    def __init__(
        self, volume: MountedVolume, class_id: int, sealer: Sealer, session: Session, digest_threads: Executor
    ) -> None:
        self.volume = volume
        self.class_id = class_id
        self._limits = volume.limits
        self._sealer = sealer
        self._session = session
        self._threads = digest_threads
        self._rooms = StripeRooms()
        self._permits = asyncio.Semaphore(volume.limits.streams_per_class)
        self._free: list[OpenExtent] = []
        self._busy: set[OpenExtent] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = ""
        self._moved = asyncio.Event()  #: set whenever a body is done with: `stop` waits on it

    @property
    def busy(self) -> int:
        """Extents that a body holds."""
        return len(self._busy)

    def extents(self) -> list[OpenExtent]:
        """Open extents of this pool, free or held by a body."""
        return [*self._free, *self._busy]

    async def put(self, record: PendingRecord, body: Body, stated_digest: bytes) -> Receipt:
        """Store one long body. When it returns, it is durable and committed.

        Raises `DigestRefused`, or what the body, the disk or the catalog says; nothing of it is visible then, but for
        `OutcomeUnknown`.
        """
        try:
            async with asyncio.timeout(self._limits.stream_wait_s):
                await self._permits.acquire()
        except TimeoutError as exc:
            raise Overloaded(
                f"{self._limits.streams_per_class} long bodies are being written to volume {self.volume.name}: "
                "repeat later, or take another write lease"
            ) from exc
        future: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        record.waiter = future
        try:
            extent = await self._take()
            self._busy.add(extent)
            try:
                group = await self._receive(extent, record, body, stated_digest)
            except BaseException as exc:
                self._busy.discard(extent)
                self._moved.set()
                self._after_failure(extent, exc)
                raise
        except BaseException:
            self._permits.release()
            raise
        record.deadline_s = time.monotonic() + self._limits.commit_wait_s
        self._spawn(self._finish(extent, record, group))
        done, _ = await asyncio.wait([future], timeout=self._limits.commit_wait_s)
        if not done:
            answer(record, OutcomeUnknown("no outcome in time: repeat with the same write id"))
        return await future

    async def _take(self) -> OpenExtent:
        while self._free:
            extent = self._free.pop()
            if extent.outlived and not extent.log.dead:
                self.volume.extent_ended()
                self._sealer.abandon(extent, "it has no twin, and a new one may have one")
            elif not extent.log.dead:
                return extent
        if self._stopping:
            raise Fenced(self._stopping)
        return await self.volume.open_extent(self.class_id)

    # -- receiving ----------------------------------------------------------------------------
    async def _receive(self, extent: OpenExtent, record: PendingRecord, body: Body, stated_digest: bytes) -> Group:
        """Write the body as the extent's next group; fsync'd when it returns."""
        first, last = await body.stripe()  # nothing is begun for a body that does not come
        async with extent.disk_lock:
            if extent.log.dead:
                raise Fenced(f"{extent.log.dead}: take another write lease")
            group = extent.log.begin([record])
            number = extent.log.extent
            record.version = self._session.clock.mint()
            head = encode_group_header(number, group.offset, group.number, extent.epoch, group.noted)
            record_head = encode_record_head(number, group.offset + len(head), record, self._session.clock.now_ms())
            start = group.offset + len(head) + len(record_head)
            hasher = Hasher()
            room = self._rooms.take()
            writing = asyncio.create_task(
                self._write(extent, group, [head, record_head], start, first, last, hasher, room)
            )
            unsynced = start
            try:
                while not last:
                    stripe, last = await body.stripe()
                    end = await writing
                    if self._stopping:
                        raise Fenced(self._stopping)
                    if end - unsynced >= WRITEBACK_BYTES:
                        unsynced = end
                        self._spawn(self._write_back(extent))
                    writing = asyncio.create_task(self._write(extent, group, [], end, stripe, last, hasher, room))
                end = await writing
            finally:
                if not writing.done():
                    await asyncio.wait([writing])
                if not writing.cancelled():
                    writing.exception()
            self._rooms.give_back(room)  # only here: a write that was given up may still read from it
            digest = hasher.digest()
            if stated_digest and digest != stated_digest:
                raise DigestRefused("the bytes received do not have the stated digest: nothing was stored")
            footer = encode_record_footer(number, end, hasher.length, digest)
            begun = time.monotonic()
            await extent.write(end, [footer], group, sync=True)
            extent.last_used_s = time.monotonic()
            self.volume.metrics.write_sync_s.observe(extent.last_used_s - begun)
            record.digest = digest
            record.size = hasher.length
            record.header_bytes = len(record_head)
            record.segment = SegmentRef(number, start, hasher.length)
            group.capabilities = [record.capability]
            group.entries = [entry_of(record, 0)]
            if extent.log.dead:
                raise Fenced(f"{extent.log.dead}: take another write lease")
            extent.log.wrote(group, end + len(footer))
            return group

    async def _write(
        self,
        extent: OpenExtent,
        group: Group,
        heads: list[Buffer],
        offset: int,
        stripe: list[bytes],
        last: bool,
        hasher: Hasher,
        room: StripeRoom,
    ) -> int:
        """Append one stripe, whose prelude stands at `offset`, behind `heads`, and empty it; the offset of its end."""
        assemble = partial(room.assemble, heads, stripe, extent.log.extent, offset, hasher, last=last)
        data = await asyncio.get_running_loop().run_in_executor(self._threads, assemble)
        stripe.clear()  # the bytes are in the room; whoever else has the list would hold on to 4 MiB
        begin = offset - sum(map(len, heads))
        await extent.write(begin, [data], group, sync=False, past_cache=True)
        return begin + len(data)

    async def _write_back(self, extent: OpenExtent) -> None:
        try:
            await extent.holding.file.sync()
        except CopypoolError as exc:
            # The volume is read-only now, so the body's own sync at its end fails as well: that one is answered.
            log.error("extent %d: early sync failed: %s", extent.log.extent, exc, extra={"extent": extent.log.extent})

    def _after_failure(self, extent: OpenExtent, error: BaseException) -> None:
        """A body that did not make it: its extent ends, unless nothing of it was begun."""
        if extent.log.idle and not extent.log.dead and not self._stopping:
            self._free.append(extent)
            return
        if not extent.abandoned:
            self.volume.extent_ended()
        self._sealer.abandon(extent, f"a body was not stored: {error}")

    # -- committing ---------------------------------------------------------------------------
    async def _finish(self, extent: OpenExtent, record: PendingRecord, group: Group) -> None:
        record.tries = RETRIES_MAX  # its bytes are not in memory any more: the client sends them again
        try:
            await self._commit(extent, group)
            if extent.log.note_wanted and not extent.log.sealed:
                note = await extent.write_group([])
                if note is None:
                    raise Fenced(extent.log.dead)
                await self._commit(extent, note)
        except CopypoolError as exc:
            unresolved = group if isinstance(exc, OutcomeUnknown) and extent.log.last_group < group.number else None
            if unresolved is None and extent.log.last_group < group.number:
                answer(record, refusal_of_group(exc))
            if not extent.abandoned:
                self.volume.extent_ended()
            self._sealer.abandon(extent, f"a commit failed: {exc.message}", unresolved)
        else:
            if not extent.log.sealed and not extent.log.dead:
                self._free.append(extent)
        finally:
            self._busy.discard(extent)
            self._moved.set()
            self._permits.release()

    async def _commit(self, extent: OpenExtent, group: Group) -> None:
        seal = group.new_length >= self._limits.extent_soft_bytes
        landed = await extent.commit(group, seal=seal)
        seal = seal and not landed.ended
        if seal:
            self.volume.extent_ended()
            self._sealer.finish(extent, [one for one in landed.verdicts if one.result.outcome != "committed"])
        for verdict in landed.verdicts:
            if not seal or verdict.result.outcome == "committed":
                answer_verdict(verdict, self.volume.name)

    # -- idleness, end ------------------------------------------------------------------------
    def sweep(self, now_s: float) -> None:
        """Seal extents that nobody has used for long, so that they can be copied and verified as a whole."""
        for extent in list(self._free):
            if (
                now_s - extent.last_used_s > self._limits.idle_seal_s
                and extent.log.committed_length > EXTENT_HEADER_BYTES
            ):
                self._free.remove(extent)
                self.volume.extent_ended()
                self._sealer.abandon(extent, "it was idle")

    async def stop(self, reason: str, *, finish_s: float = 0.0) -> None:
        """Begin no more bodies; with `finish_s`, those under way get this long. Extents are let go, not sealed."""
        self._stopping = reason
        try:
            async with asyncio.timeout(finish_s):
                while self._busy:
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            log.info(
                "volume %s: %d long bodies are cut off: %s",
                self.volume.name,
                len(self._busy),
                reason,
                extra={"volume": self.volume.name},
            )
        for extent in (*self._free, *self._busy):
            waiting = list(extent.log.waiters())
            extent.log.kill(reason)
            for record in waiting:
                answer(record, OutcomeUnknown(f"{reason}: repeat with the same write id"))
        self._free.clear()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
