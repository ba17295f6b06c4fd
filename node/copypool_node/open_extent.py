"""One open extent and its file: writes groups to it, one at a time, and commits them in order.

`ExtentLog` decides; this shell does the I/O. A write error, a full disk or a lost session ends the extent: nothing is
ever appended behind bytes whose fate is not known, and no failed write or fsync is tried again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from copypool.protocol.internal import CommitReply, ExtentClass
from copypool_node.encoding import encode_group
from copypool_node.group import ExtentLog, Group, Landed, PendingRecord
from copypool_node.holdings import Holding

if TYPE_CHECKING:
    from copypool_node.metrics import Metrics
    from copypool_node.session import Session

log = logging.getLogger(__name__)


class OpenExtent:
    """An extent that this process appends to. One task writes at a time, one commits at a time."""

    def __init__(
        self, extent_log: ExtentLog, holding: Holding, extent_class: ExtentClass, session: Session, metrics: Metrics
    ) -> None:
        self.log = extent_log
        self.holding = holding
        self.extent_class = extent_class
        self.epoch = session.epoch
        self.committing: asyncio.Task[None] | None = None
        #: Held while bytes are written, cut or sealed: a cut never meets a write under way.
        self.disk_lock = asyncio.Lock()
        self.last_used_s = time.monotonic()
        self.abandoned = False
        self._session = session
        self._metrics = metrics

    async def write_group(self, records: list[PendingRecord]) -> Group | None:
        """Append one group and fsync it; None when the extent ended meanwhile (nothing was claimed).

        Raises `NoSpace` or `WriteFailed`: then the extent must be abandoned.
        """
        async with self.disk_lock:
            if self.log.ended():
                return None
            group = self.log.begin(records)
            buffers, size = encode_group(self.log.extent, group, self.epoch, self._session.clock)
            begun = time.monotonic()
            await self.holding.file.write_and_sync(group.offset, buffers)
            self.last_used_s = time.monotonic()
            self._metrics.write_sync_ms.observe((self.last_used_s - begun) * 1000)
            self._metrics.group_records.observe(len(records))
            if self.log.ended():
                return None
            self.log.wrote(group, group.offset + size)
            return group

    async def commit(self, group: Group, *, seal: bool) -> Landed:
        """Make a written group visible. Repeats the identical request until there is a definite answer.

        Raises the definite refusal, or `OutcomeUnknown` / `Unavailable` when the session ended first.
        """
        request = self.log.request(group, self._session.node_id, self.epoch, seal=seal)
        begun = time.monotonic()
        reply = await self._session.link.call(
            "commit", request, CommitReply, deadline_s=float("inf"), give_up=self._session_over, final=False
        )
        self._metrics.commit_ms.observe((time.monotonic() - begun) * 1000)
        for result in reply.results:
            if result.version:
                self._session.clock.versions.observe(result.version)
        self._session.saw_revision(reply.revision)
        landed = self.log.landed(group, reply, seal=seal)
        self.holding.length = self.log.committed_length
        self.holding.sealed = seal
        return landed

    async def settled(self) -> None:
        """Wait until the commit in flight, if any, has been dealt with."""
        task = self.committing
        if task is not None and not task.done():
            await asyncio.wait([task])

    def _session_over(self) -> bool:
        return not self._session.is_current(self.epoch)
