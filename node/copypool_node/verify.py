"""Reads locations back from their medium and reports. Only this marks damage, and only on this node's own word.

One location at a time per volume, paced, past the page cache. Each extent that is sealed here is verified once soon
after, so that its whole-extent digest is known and the location counts as proven.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from typing import TYPE_CHECKING

import msgspec

from copypool.protocol.errors import BrokenInvariant, CopypoolError, DigestMismatch, Overloaded
from copypool.protocol.internal import Done, VerifyReport
from copypool.telemetry import tracing
from copypool_node.disk import Missing, ReadFailed
from copypool_node.format import Corrupt
from copypool_node.holdings import Holdings
from copypool_node.pacing import Pace
from copypool_node.scanner import Scanner

if TYPE_CHECKING:
    from copypool_node.metrics import Metrics
    from copypool_node.session import Session
    from copypool_node.volumes import MountedVolume

log = logging.getLogger(__name__)

REPORT_S = 60.0


class VerifyJob(msgspec.Struct, frozen=True, eq=False):
    """One location to read, up to `length`."""

    extent: int
    generation: int
    length: int
    sealed: bool
    cause: str = ""
    trace: tracing.Trace | None = None  #: of who asked for it


class Verifier:
    """The verify queue of one volume. A location waits once, however often it is asked for."""

    def __init__(
        self, volume: MountedVolume, session: Session, holdings: Holdings, metrics: Metrics, queued_max: int
    ) -> None:
        self._volume = volume
        self._session = session
        self._holdings = holdings
        self._metrics = metrics
        self._queued_max = queued_max
        self._queue: OrderedDict[tuple[int, int], VerifyJob] = OrderedDict()
        self._wake = asyncio.Event()
        self._pace = Pace(volume.limits.verify_bytes_s)
        self._task = asyncio.create_task(self._run())

    def __len__(self) -> int:
        return len(self._queue)

    def enqueue(self, job: VerifyJob, *, first: bool = False) -> None:
        """Queue a location; `Overloaded` when too many wait. `first`: before all others (somebody could not read)."""
        key = (job.extent, job.generation)
        if key not in self._queue and len(self._queue) >= self._queued_max:
            raise Overloaded(f"volume {self._volume.name}: {len(self._queue)} locations wait to be verified")
        self._queue[key] = job
        if first:
            self._queue.move_to_end(key, last=False)
        self._wake.set()

    async def _run(self) -> None:
        while True:
            if not self._queue:
                self._wake.clear()
                await self._wake.wait()
                continue
            _, job = self._queue.popitem(last=False)
            tracing.adopt(job.trace)
            try:
                await self._report(await self.verify(job))
            except CopypoolError as exc:
                # The leader asks again for what it does not hear of.
                log.warning(
                    "volume %s: verifying extent %d: %s",
                    self._volume.name,
                    job.extent,
                    exc,
                    extra={"volume": self._volume.name, "extent": job.extent},
                )

    async def verify(self, job: VerifyJob) -> VerifyReport:
        """Read the location and say what is true of it. Raises when that could not be found out."""
        file = self._volume.disk.get(job.extent, job.generation)
        if file is None:
            return self._result(job, 0, "the file is not there", missing=True)
        scanner = Scanner(job.extent)
        try:
            await file.scan(job.length, direct=True, scanner=scanner, pace=self._pace.take)
        except Missing:
            return self._result(job, 0, "the file is not there", missing=True)
        except Corrupt as exc:
            return self._result(job, scanner.verified_length, exc.what, bad_offset=exc.offset)
        except (ReadFailed, DigestMismatch) as exc:
            return self._result(job, scanner.verified_length, exc.message, bad_offset=scanner.verified_length)
        reached = scanner.verified_length
        if reached < job.length:
            return self._result(job, reached, "the file ends before its claimed length", bad_offset=reached)
        digest = scanner.digest() if job.sealed else b""
        if job.sealed and file.sealed:
            try:
                await file.set_seal_digest(digest)
            except BrokenInvariant as exc:
                return self._result(job, 0, exc.message)
        return self._result(job, job.length, "", digest=digest)

    def _result(
        self,
        job: VerifyJob,
        length: int,
        evidence: str,
        *,
        digest: bytes = b"",
        bad_offset: int = -1,
        missing: bool = False,
    ) -> VerifyReport:
        good = not evidence
        if bad_offset >= 0:
            evidence = f"at extent offset {bad_offset}: {evidence}"
        if good:
            self._metrics.verified_extents += 1
        else:
            self._metrics.damaged_extents += 1
            log.error(
                "volume %s: extent %d: %s",
                self._volume.name,
                job.extent,
                evidence,
                extra={"volume": self._volume.name, "extent": job.extent},
            )
        holding = self._holdings.find(job.extent, self._volume, job.generation)
        if holding is not None:
            holding.damaged = not good
        return VerifyReport(
            self._session.node_id,
            self._session.epoch,
            job.extent,
            self._volume.id,
            job.generation,
            length,
            good,
            digest,
            evidence,
            bad_offset,
            missing,
            job.cause,
        )

    async def _report(self, report: VerifyReport) -> None:
        await self._session.link.call("verified", report, Done, deadline_s=REPORT_S)

    async def close(self) -> None:
        """Give up what is under way and what waits."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
