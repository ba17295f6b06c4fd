"""One open extent and its file: writes groups to it, one at a time, and commits them in order.

`ExtentLog` decides; this shell does the I/O. A write error, a full disk or a lost session ends the extent: nothing is
ever appended behind bytes whose fate is not known, and no failed write or fsync is tried again.

A class whose ack rule is `copy` has each group written to the extent's twin on another node at the same time. A twin
that fails or is slow has ended; the extent goes on without it, or the group is refused as a whole and the extent with
it, as the class says. A group says itself whether the twin has it (`Group.claims`), and so do the receipts.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from copypool.protocol.errors import Unavailable
from copypool.protocol.internal import CommitReply, ExtentClass
from copypool.telemetry import tracing
from copypool_node.encoding import encode_group
from copypool_node.format import Buffer
from copypool_node.group import ExtentLog, Group, Landed, PendingRecord
from copypool_node.holdings import Holding
from copypool_node.link import CATALOG_PATIENCE_S
from copypool_node.twin_gate import TwinGate
from copypool_node.twin_link import TwinLink

if TYPE_CHECKING:
    from copypool_node.metrics import Metrics
    from copypool_node.session import Session

log = logging.getLogger(__name__)


class OpenExtent:
    """An extent that this process appends to. One task writes at a time, one commits at a time."""

    def __init__(
        self,
        extent_log: ExtentLog,
        holding: Holding,
        extent_class: ExtentClass,
        session: Session,
        metrics: Metrics,
        twin: TwinLink | None = None,
        gate: TwinGate | None = None,
    ) -> None:
        self.log = extent_log
        self.twin = twin  #: gets every group as well, until it fails
        #: No group counts without its twin's claim: it is refused as a whole.
        self.twin_required = extent_class.ack == "copy" and extent_class.on_copy_failure == "fail"
        self._gate = gate
        self._claim_refused = False  #: nothing that the twin holds beyond the committed length can be claimed any more
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

        Raises `NoSpace`, `WriteFailed`, or `Unavailable` (a twin that is required has failed): then the extent must
        be abandoned.
        """
        async with self.disk_lock:
            if self.log.ended():
                return None
            group = self.log.begin(records)
            buffers, size = encode_group(self.log.extent, group, self.epoch, self._session.clock)
            begun = time.monotonic()
            await self.write(group.offset, buffers, group, sync=True)
            self.last_used_s = time.monotonic()
            self._metrics.write_sync_s.observe(self.last_used_s - begun)
            self._metrics.group_records.observe(len(records))
            if self.log.ended():
                return None
            self.log.wrote(group, group.offset + size)
            return group

    # -- the twin -----------------------------------------------------------------------------
    async def write(
        self, offset: int, buffers: Sequence[Buffer], group: Group, *, sync: bool, past_cache: bool = False
    ) -> None:
        """Append bytes of a group here and at the twin, side by side; with `sync` durable in both places on return.

        With `past_cache` there is one buffer, and no `sync`: see `ExtentFile.write_past_cache`.

        A twin that fails leaves the group without its claim. Raises `Unavailable` then if the class demands it.
        """
        twin = self.twin
        if twin is None or twin.failure:
            await self._append(offset, buffers, sync=sync, past_cache=past_cache)
        else:
            begun = time.monotonic()
            sending = asyncio.create_task(twin.append(offset, buffers, sync=sync))
            try:
                await self._append(offset, buffers, sync=sync, past_cache=past_cache)
                claim = await sending
            finally:
                sending.cancel()
            self._metrics.twin_s.observe(time.monotonic() - begun)
            if claim is None:
                self._twin_failed(twin)
            elif sync:
                group.claims, group.twin = [claim], twin.volume
                return
            else:
                return
        group.without_twin()
        if self.twin_required:
            raise Unavailable(f"{self._twin_story()}: nothing was changed; take another write lease")

    async def _append(self, offset: int, buffers: Sequence[Buffer], *, sync: bool, past_cache: bool) -> None:
        file = self.holding.file
        if past_cache:
            (data,) = buffers
            await file.write_past_cache(offset, memoryview(data))
        elif sync:
            await file.write_and_sync(offset, buffers)
        else:
            await file.write(offset, buffers)

    def _twin_failed(self, twin: TwinLink) -> None:
        self._metrics.twins_failed += 1
        log.warning(
            "extent %d goes on without its twin: %s", self.log.extent, twin.failure, extra={"extent": self.log.extent}
        )
        if self._gate is not None:
            self._gate.failed(
                time.monotonic(), self._twin_story(), required=self.twin_required, node_id=twin.target.node_id
            )

    def _twin_story(self) -> str:
        return "there is no copy to write to" if self.twin is None else f"the copy failed: {self.twin.failure}"

    @property
    def has_twin(self) -> bool:
        """Whether the next group would go to a twin as well."""
        return self.twin is not None and not self.twin.failure and not self.log.ended()

    @property
    def outlived(self) -> bool:
        """Whether it should make way for an extent that has a twin: it has lost its own, and it is time to try."""
        if self.extent_class.ack != "copy" or (self.twin is not None and not self.twin.failure):
            return False
        return self._gate is not None and self._gate.due(time.monotonic())

    # -- committing ---------------------------------------------------------------------------
    async def commit(self, group: Group, *, seal: bool) -> Landed:
        """Make a written group visible. Repeats the identical request until there is a definite answer.

        A refusal of the twin's claim (its session is over) is one: then the group is committed without, if it may.
        Raises the definite refusal, or `OutcomeUnknown` / `Unavailable` when the session ended first. `CatalogDown`:
        etcd is away and the group has not been applied; the extent must be abandoned, so that it never will be.
        """
        landing = self.holding.landing = asyncio.Event()
        try:
            return await self._land(group, seal=seal)
        finally:
            self.holding.landing = None
            landing.set()

    async def _land(self, group: Group, *, seal: bool) -> Landed:
        begun = time.monotonic()
        reply = await self._commit(group, seal=seal)
        if group.claims and self._gate is not None:
            self._gate.met()
        self._metrics.commit_s.observe(time.monotonic() - begun)
        for result in reply.results:
            if result.version:
                self._session.clock.versions.observe(result.version)
        self._session.saw_revision(reply.revision)
        landed = self.log.landed(group, reply, seal=seal)
        if landed.ended:
            return landed
        self.holding.length = self.log.committed_length
        self.holding.trace = tracing.current()
        self.holding.sealed = seal
        return landed

    async def _commit(self, group: Group, *, seal: bool) -> CommitReply:
        while True:
            if self._claim_refused:
                group.without_twin()
            if self.twin_required and not group.claims:
                raise Unavailable(f"{self._twin_story()}: the group is refused")
            failure = "" if self.twin is None or group.claims else self.twin.failure
            request = self.log.request(group, self._session.node_id, self.epoch, seal=seal, twin_failure=failure)
            try:
                return await self._session.link.call(
                    "commit",
                    request,
                    CommitReply,
                    deadline_s=float("inf"),
                    give_up=lambda: self._session.hopeless(self.epoch),
                    final=False,
                    catalog_patience_s=CATALOG_PATIENCE_S,
                )
            except Unavailable as exc:
                if self.twin is None or not group.claims or "claim" not in exc.details:
                    raise
                self._claim_refused = True
                if not self.twin.failure:
                    self.twin.end(exc.message)
                    self._twin_failed(self.twin)

    async def settled(self) -> None:
        """Wait until the commit in flight, if any, has been dealt with."""
        task = self.committing
        if task is not None and not task.done():
            await asyncio.wait([task])
