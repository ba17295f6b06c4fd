"""Ends open extents: seal in the catalog, cut to the sealed length, write the seal footer, have it verified.

The seal's reply is the last word about an extent: it also settles a group whose commit reply was lost (A18). Every
step is safe to repeat; what a crash leaves undone is done at the next start, where all own open extents are sealed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING

from copypool.protocol.errors import CopypoolError, Fenced, OutcomeUnknown
from copypool.protocol.internal import EntryResult, Refusal, SealReply, SealRequest
from copypool_node.answers import answer, answer_verdict
from copypool_node.format import NO_DIGEST
from copypool_node.group import Group, Verdict
from copypool_node.holdings import Holding

if TYPE_CHECKING:
    from copypool_node.metrics import Metrics
    from copypool_node.open_extent import OpenExtent
    from copypool_node.session import Session

log = logging.getLogger(__name__)

CUT_WAIT_S = 10.0  #: a write that hangs longer keeps its extent uncut until the next start


class Sealer:
    """Seals in the background; `drain` waits for what is under way."""

    def __init__(self, session: Session, metrics: Metrics, sealed: Callable[[Holding], None]) -> None:
        self._session = session
        self._metrics = metrics
        self._sealed = sealed  #: told of every extent that got its footer: to be verified
        self._tasks: set[asyncio.Task[None]] = set()

    def abandon(self, extent: OpenExtent, reason: str, unresolved: Group | None = None) -> None:
        """End an extent early. Its waiting refusals, and `unresolved`'s records, are answered once the seal is known.

        Safe to repeat: only the first call counts for the seal.
        """
        waiting = extent.log.kill(reason)
        if extent.abandoned and not waiting and unresolved is None:
            return
        extent.abandoned = True
        extent.holding.writing = False
        log.warning("sealing extent %d early: %s", extent.log.extent, reason, extra={"extent": extent.log.extent})
        self._spawn(self._seal(extent, unresolved, waiting))

    def finish(self, extent: OpenExtent, verdicts: list[Verdict]) -> None:
        """The extent was sealed by its last commit: write the footer, then answer the refusals that it notes."""
        extent.holding.writing = False
        self._spawn(self._finish(extent, verdicts))

    async def _finish(self, extent: OpenExtent, verdicts: list[Verdict]) -> None:
        try:
            await self.write_footer(
                extent.holding,
                extent.log.committed_length,
                extent.log.last_group,
                extent.log.unnoted(),
                extent.disk_lock,
            )
        finally:
            # The catalog keeps refusals of a sealed extent, so the answer does not depend on the footer.
            for verdict in verdicts:
                answer_verdict(verdict, extent.holding.volume.name)

    async def _seal(self, extent: OpenExtent, unresolved: Group | None, waiting: list[Verdict]) -> None:
        volume = extent.holding.volume.name
        try:
            reply = await self._session.link.call(
                "seal",
                SealRequest(self._session.node_id, extent.epoch, extent.log.extent),
                SealReply,
                deadline_s=float("inf"),
                give_up=lambda: self._session.hopeless(extent.epoch),
            )
        except CopypoolError as exc:
            # The next registration seals it. Until then nobody knows.
            log.warning(
                "extent %d could not be sealed now: %s", extent.log.extent, exc, extra={"extent": extent.log.extent}
            )
            unknown = OutcomeUnknown("the node lost its session: repeat with the same write id")
            for record in unresolved.records if unresolved is not None else []:
                answer(record, unknown)
            for verdict in waiting:
                answer(verdict.record, unknown)
            return
        for verdict in waiting:
            answer_verdict(verdict, volume)
        if unresolved is not None:
            _answer_by_seal(unresolved, reply, volume)
        await self.write_footer(extent.holding, reply.length, reply.group, reply.refusals, extent.disk_lock)

    async def write_footer(
        self, holding: Holding, length: int, group: int, refusals: list[Refusal], disk_lock: asyncio.Lock | None = None
    ) -> bool:
        """Cut the file to its sealed length and append the footer; both durable when it returns True.

        False: the disk failed or hangs; the next start does it. A shorter file is left alone (it is a prefix).
        """
        lock = disk_lock or asyncio.Lock()
        try:
            async with asyncio.timeout(CUT_WAIT_S):
                await lock.acquire()
        except TimeoutError:
            log.error(
                "extent %d: a write hangs; it is cut at the next start",
                holding.extent,
                extra={"extent": holding.extent},
            )
            return False
        try:
            if holding.length > length:
                # Served lengths are committed lengths, and what was committed is never taken back.
                holding.volume.distrust_catalog(
                    f"extent {holding.extent} was committed up to {holding.length} and is sealed at {length}"
                )
                return False
            await holding.file.seal(length, group, refusals, NO_DIGEST)
        except CopypoolError as exc:
            log.error("extent %d cannot be cut and sealed: %s", holding.extent, exc, extra={"extent": holding.extent})
            return False
        finally:
            lock.release()
        holding.length = length
        holding.sealed = True
        self._metrics.extents_sealed += 1
        self._sealed(holding)
        return True

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def drain(self, timeout_s: float) -> None:
        """Wait for the seals under way; those that take longer are left to the next start."""
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=timeout_s)

    async def close(self) -> None:
        """Give up what is still under way."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _answer_by_seal(group: Group, reply: SealReply, volume: str) -> None:
    """Settle a group whose commit reply was lost by the length at which its extent was sealed."""
    if reply.length < group.new_length:
        gone = Fenced("the extent was sealed before this write: take another write lease, same write id")
        for record in group.records:
            answer(record, gone)
        return
    refused = {refusal.index for refusal in reply.refusals if refusal.group == group.number}
    for index, record in enumerate(group.records):
        if index in refused:
            answer(record, OutcomeUnknown("refused, the reason was lost: repeat with the same write id"))
        else:
            answer_verdict(Verdict(record, EntryResult("committed"), group.twin), volume)
