"""The lane of small bodies: one shared open extent, written group by group. A class has one per volume, two under load.

Nobody gets an ack before the fsync and the commit of its group (invariant 1).

One task per lane: it takes the next group from the queue, appends and fsyncs it, waits for the commit in flight, sends
this group's commit, and goes on. So at most one commit is in flight while the next group is on its way to the disk.
While one is, the next group waits until it is as large as the one being committed, or until that has landed: it could
not be committed before, and few large groups cost less than many small ones.
Who waits is answered when the commit's outcome is known, at the latest at its deadline.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from copypool.protocol.api import Receipt
from copypool.protocol.errors import CatalogDown, CopypoolError, Fenced, OutcomeUnknown, Overloaded, Unavailable
from copypool.protocol.internal import EXTENT_HEADER_BYTES, GROUP_OPS_MAX
from copypool.telemetry import tracing
from copypool_node.answers import answer, answer_verdict, refusal_of_group
from copypool_node.group import GROUP_BYTES_MAX, Group, GroupQueue, PendingRecord
from copypool_node.open_extent import OpenExtent

if TYPE_CHECKING:
    from copypool_node.sealing import Sealer
    from copypool_node.volumes import MountedVolume

log = logging.getLogger(__name__)

SWEEP_S = 0.5
END_S = 1.0  #: what is still under way after the time to finish gets this long to notice
AHEAD = 0.5  #: the next extent is opened when the current one is this full


class Lane:
    """Small records of one class on one volume. `start` it once, `stop` it before the volume is closed."""

    def __init__(self, volume: MountedVolume, class_id: int, sealer: Sealer) -> None:
        self.volume = volume
        self.class_id = class_id
        self._limits = volume.limits
        self._sealer = sealer
        self._queue = GroupQueue(volume.limits.queue_records, volume.limits.queue_bytes)
        self._wake = asyncio.Event()
        self._moved = asyncio.Event()  #: set whenever a group is done with: `stop` waits on it
        self._current: OpenExtent | None = None
        self._spare: asyncio.Task[OpenExtent] | None = None
        self._stopping = ""
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._run())
        self._sweeper = asyncio.create_task(self._sweep())
        self._finishing: list[OpenExtent] = []  #: sealed by a commit that is in flight
        self._worth = 1  #: records that make a group: one, or while a commit is in flight as many as it has

    @property
    def queued_records(self) -> int:
        """Records that wait for a group."""
        return len(self._queue)

    @property
    def queued_bytes(self) -> int:
        """Payload that waits for a group."""
        return self._queue.queued_bytes

    @property
    def has_next(self) -> bool:
        """Whether as much waits as one group takes: what joins the queue now goes with a later one."""
        return len(self._queue) >= GROUP_OPS_MAX or self._queue.queued_bytes >= GROUP_BYTES_MAX

    def extents(self) -> list[OpenExtent]:
        """Open extents that this lane appends to, will append to, or has a commit under way for."""
        extents = [*self._finishing, *([self._current] if self._current is not None else [])]
        spare = self._spare
        if spare is not None and spare.done() and not spare.cancelled() and spare.exception() is None:
            extents.append(spare.result())
        return extents

    def submit(self, record: PendingRecord) -> asyncio.Future[Receipt]:
        """Queue a record; the future gets its receipt once it is durable and committed, or an error.

        Raises `Overloaded` when the queue is full: then nothing was taken. Giving up the wait does not take the
        record back: it may still be applied, and a repeat with its write id is recognised.
        """
        if self._stopping:
            raise Fenced(self._stopping)
        future: asyncio.Future[Receipt] = self._loop.create_future()
        record.waiter = future
        record.trace = tracing.current()
        record.deadline_s = time.monotonic() + self._limits.commit_wait_s
        self._queue.offer(record)
        if self._ripe():
            self._wake.set()
        return future

    # -- the loop -----------------------------------------------------------------------------
    async def _run(self) -> None:
        while not self._stopping:
            current = self._current
            note_wanted = current is not None and current.log.note_wanted
            if not self._ripe() and not note_wanted:
                self._wake.clear()
                await self._wake.wait()
                continue
            # One write and one commit for many records: they go under the trace of the first.
            head = self._queue.head
            tracing.adopt(None if head is None else head.trace)
            try:
                extent = await self._writable()
            except CopypoolError as exc:
                self._fail(self._queue.drain(), exc)
                self._moved.set()
                continue
            records = self._queue.take()
            if not records and not extent.log.note_wanted:
                continue
            await self._append(extent, records)

    def _ripe(self) -> bool:
        """Whether what waits makes a group."""
        return len(self._queue) >= self._worth or self._queue.queued_bytes >= GROUP_BYTES_MAX

    async def _append(self, extent: OpenExtent, records: list[PendingRecord]) -> None:
        try:
            group = await extent.write_group(records)
        except CopypoolError as exc:
            # The group ahead may still land; the extent ends behind it either way.
            await extent.settled()
            self._fail(records, exc)
            self._abandon(extent, f"a write failed: {exc.message}")
            self._moved.set()
            return
        await extent.settled()
        if group is None or extent.log.dead:
            # These were never claimed: they go into the next extent, with new versions.
            self._queue.put_back(records)
            return
        seal = extent.log.written_length >= self._limits.extent_soft_bytes or extent.outlived
        if seal:
            self._current = None
            self._finishing.append(extent)
        elif extent.log.written_length >= self._limits.extent_soft_bytes * AHEAD:
            self._open_ahead()
        self._worth = max(1, len(records))
        extent.committing = asyncio.create_task(self._commit(extent, group, seal=seal))

    async def _commit(self, extent: OpenExtent, group: Group, *, seal: bool) -> None:
        try:
            await self._land(extent, group, seal=seal)
        finally:
            # Whatever it came to: the next group waits for it no longer.
            self._worth = 1
            self._wake.set()
            self._moved.set()

    async def _land(self, extent: OpenExtent, group: Group, *, seal: bool) -> None:
        try:
            landed = await extent.commit(group, seal=seal)
        except CopypoolError as exc:
            unresolved = group if isinstance(exc, OutcomeUnknown) else None
            if unresolved is None:
                self._fail(group.records, refusal_of_group(exc))
            self._abandon(extent, f"a commit failed: {exc.message}", unresolved)
        else:
            seal = seal and not landed.ended
            self._queue.learn(landed)
            if landed.again:
                self._queue.put_back(landed.again)
            if seal:
                self._sealer.finish(extent, [one for one in landed.verdicts if one.result.outcome != "committed"])
                self.volume.extent_ended()
            for verdict in landed.verdicts:
                if not seal or verdict.result.outcome == "committed":
                    answer_verdict(verdict, self.volume.name)
        if extent in self._finishing:
            self._finishing.remove(extent)

    async def _writable(self) -> OpenExtent:
        """The extent that takes the next group: the current one, the spare one, or a new one."""
        if self._stopping:
            raise Fenced(self._stopping)
        if self._current is None or self._current.log.dead:
            spare, self._spare = self._spare, None
            if spare is not None:
                try:
                    self._current = await spare
                except CopypoolError as exc:
                    log.warning(
                        "volume %s: no extent was opened ahead: %s",
                        self.volume.name,
                        exc,
                        extra={"volume": self.volume.name},
                    )
                    self._current = None
            if self._current is None or self._current.log.dead:
                self._current = await self.volume.open_extent(self.class_id)
        return self._current

    def _open_ahead(self) -> None:
        if self._spare is None and not self._stopping:
            self._spare = asyncio.create_task(self.volume.open_extent(self.class_id))

    def _abandon(self, extent: OpenExtent, reason: str, unresolved: Group | None = None) -> None:
        if not extent.abandoned:
            self.volume.extent_ended()
        if self._current is extent:
            self._current = None
        self._sealer.abandon(extent, reason, unresolved)

    def _fail(self, records: list[PendingRecord], error: CopypoolError) -> None:
        for record in records:
            answer(record, error)

    # -- deadlines, idleness, end -------------------------------------------------------------
    async def _sweep(self) -> None:
        tracing.adopt(None)  # it outlives the request that made this lane
        while True:
            await asyncio.sleep(SWEEP_S)
            now_s = time.monotonic()
            late = Overloaded("the disk or the catalog was too slow; nothing was stored: repeat with the same write id")
            self._fail(self._queue.expire(now_s), late)
            try:
                self.volume.check_catalog()
            except CatalogDown as exc:
                self._fail(self._queue.drain(), exc)  # what waits for a group was never written
                self._moved.set()
            unknown = OutcomeUnknown("no outcome in time: repeat with the same write id")
            for extent in self.extents():
                self._fail([record for record in extent.log.waiters() if record.deadline_s <= now_s], unknown)
            current = self._current
            if (
                current is not None
                and current.log.idle
                and not len(self._queue)
                and current.log.committed_length > EXTENT_HEADER_BYTES
                and now_s - current.last_used_s > self._limits.idle_seal_s
            ):
                self._abandon(current, "it was idle")

    async def stop(self, reason: str, *, finish_s: float = 0.0) -> None:
        """Take no more records. With `finish_s`, what is queued is written and committed first, within that time.

        Then the extent is let go (not sealed: the caller registers again, or the process ends).
        """
        if finish_s and not self._stopping:
            try:
                async with asyncio.timeout(finish_s):
                    while len(self._queue) or not self._quiet():
                        self._moved.clear()
                        await self._moved.wait()
            except TimeoutError:
                log.warning(
                    "volume %s: groups are still under way after %.0f s",
                    self.volume.name,
                    finish_s,
                    extra={"volume": self.volume.name},
                )
        self._stopping = reason
        self._fail(self._queue.drain(), Unavailable(f"{reason}: take another write lease"))
        self._wake.set()
        extents = self.extents()
        tasks = [self._task, *(one.committing for one in extents if one.committing is not None)]
        done, pending = await asyncio.wait(tasks, timeout=END_S)
        extra = [self._sweeper] if self._spare is None else [self._sweeper, self._spare]
        for task in (*pending, *extra):
            task.cancel()
        await asyncio.gather(*pending, *extra, return_exceptions=True)
        unknown = OutcomeUnknown(f"{reason}: repeat with the same write id")
        for extent in extents:
            waiting_records = list(extent.log.waiters())
            extent.log.kill(reason)
            self._fail(waiting_records, unknown)
        self._fail(self._queue.drain(), Unavailable(reason))
        for task in done:
            if task.exception() is not None:
                log.error(
                    "the lane of volume %s ended by an error",
                    self.volume.name,
                    exc_info=task.exception(),
                    extra={"volume": self.volume.name},
                )

    def _quiet(self) -> bool:
        current = self._current
        return not self._finishing and (current is None or current.log.idle)
