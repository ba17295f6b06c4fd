"""One segment, read from its sources: failover at the byte that failed, a second request when the first is slow.

The shell around `failover`, `hedging` and `checking`: it sends, waits and cancels, they decide.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass

from copypool.checking import StripeChecker
from copypool.failover import AwayNodes, Reason, SegmentSources
from copypool.hedging import HedgeBudget, LatencyWindow
from copypool.protocol import routes
from copypool.protocol.api import SegmentPlan, Source
from copypool.protocol.errors import (
    CopypoolError,
    DataLost,
    DigestMismatch,
    Forbidden,
    RetryLater,
    Unavailable,
)
from copypool.reports import ReadReports
from copypool.telemetry import tracing
from copypool.transport import BodyStream, LinkFailed, Transport

LEFT_ALONE_S = 60.0  #: a stream from which its consumer took nothing for so long may be cut off for that alone

Refresh = Callable[[], Awaitable[SegmentPlan]]  #: looks the same version up again and gives this segment's plan


@dataclass(slots=True)
class Begun:
    """A read whose first bytes are there."""

    source: Source
    stream: BodyStream
    first: bytes


class _SourceFailed(Exception):
    """One source gave nothing usable; the segment's reader goes on with another one."""

    def __init__(self, source: Source, reason: Reason, message: str, *, absent: bool = False) -> None:
        super().__init__(message)
        self.source = source
        self.reason = reason
        self.absent = absent  #: it answered that it does not hold the segment


class SegmentReader:
    """Reads ranges of segments for one client; holds what is learned about the speed of nodes."""

    def __init__(self, transport: Transport, reports: ReadReports, *, from_medium: bool = False) -> None:
        """`from_medium`: nodes are to read their disks, not their page caches, and leave those as they are."""
        self._transport = transport
        self._asked = {"Accept": routes.STRIPES} | ({routes.READ_FROM: routes.MEDIUM} if from_medium else {})
        self._reports = reports
        self.latencies = LatencyWindow()
        self.budget = HedgeBudget()
        self.hedges = 0  #: second requests sent
        self._away = AwayNodes()

    def away_nodes(self) -> list[int]:
        """Ids of nodes that did not answer a moment ago."""
        return self._away.ids(time.monotonic())

    async def read(
        self,
        plan: SegmentPlan,
        version: int,
        start: int,
        stop: int,
        refresh: Refresh,
        trace: tracing.Trace | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """Checked payload bytes [start, stop) of the segment, in order, each exactly once.

        A source that fails at byte k is followed by the next one at byte k; when all have failed there, the same
        version is looked up once more. A stream that breaks after its consumer left it alone for long has not failed
        by that: it is asked for again. Raises `Unavailable` then, `DigestMismatch` when every source answered with
        bad bytes, `DataLost` when each of them is known to have none, or what the lookup raised (`NotFound`: the
        version is gone). Requests go under `trace`, or the consumer's own.
        """
        sources = SegmentSources(plan.sources, self.away_nodes())
        position = start
        while position < stop:
            candidates = sources.candidates(position)
            if not candidates:
                if not sources.may_refresh(position):
                    raise _exhausted(sources, plan, position)
                with tracing.within(trace):
                    plan = await refresh()
                sources.refreshed(plan.sources, position, self.away_nodes())
                continue
            begun: Begun | None = None
            left_alone_s = 0.0
            try:
                with tracing.within(trace):
                    begun = await self._begin(plan, version, position, stop, candidates, sources)
                checker = StripeChecker(plan.extent, plan.offset, plan.length, position, stop)
                pieces = checker.feed(begun.first)
                while True:
                    for piece in pieces:
                        position += len(piece)
                        handed_s = time.monotonic()
                        yield piece
                        left_alone_s = max(left_alone_s, time.monotonic() - handed_s)
                    if checker.broken:
                        raise _SourceFailed(begun.source, "checksum", checker.broken)
                    if checker.finished:
                        break
                    pieces = await begun.stream.read_through(checker)
            except LinkFailed as exc:
                assert begun is not None
                if exc.reason != "error" or left_alone_s < LEFT_ALONE_S:
                    self._note(sources, plan, begun.source, position, exc.reason)
            except _SourceFailed as exc:
                self._note(sources, plan, exc.source, position, exc.reason, absent=exc.absent)
            finally:
                if begun is not None:
                    begun.stream.close()

    def _note(
        self,
        sources: SegmentSources,
        plan: SegmentPlan,
        source: Source,
        position: int,
        reason: Reason,
        *,
        absent: bool = False,
    ) -> None:
        sources.failed(source, position, reason, absent=absent)
        self._away.noted(source.node_id, reason, time.monotonic())
        self._reports.note(plan.extent, source, reason)

    async def _begin(
        self,
        plan: SegmentPlan,
        version: int,
        position: int,
        stop: int,
        candidates: list[Source],
        sources: SegmentSources,
    ) -> Begun:
        """Ask the best source, and after the hedge delay one more if the budget has it; the first answer wins.

        Raises the failure of the last one asked; failures before that are noted here.
        """
        self.budget.request_sent()
        if len(candidates) == 1:
            return await self._open(plan, version, position, stop, candidates[0])
        first = asyncio.create_task(self._open(plan, version, position, stop, candidates[0]))
        asked = {first}
        try:
            done, _ = await asyncio.wait(asked, timeout=self.latencies.hedge_delay_s())
            if done:
                asked.discard(first)
                return first.result()
            if self.budget.take():
                self.hedges += 1
                asked.add(asyncio.create_task(self._open(plan, version, position, stop, candidates[1])))
            return await self._first_good(asked, plan, position, sources)
        finally:
            await _cancel_all(asked)

    async def _first_good(
        self, asked: set[asyncio.Task[Begun]], plan: SegmentPlan, position: int, sources: SegmentSources
    ) -> Begun:
        while True:
            done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                asked.discard(task)
                try:
                    return task.result()
                except _SourceFailed as exc:
                    if not asked:
                        raise
                    self._note(sources, plan, exc.source, position, exc.reason, absent=exc.absent)

    async def _open(self, plan: SegmentPlan, version: int, position: int, stop: int, source: Source) -> Begun:
        """Send the request and wait for the first bytes of the body."""
        started_s = time.monotonic()
        url = f"{source.url}/v1/segments/{plan.extent}/{plan.offset}/{plan.length}?v={version}"
        headers = {routes.CAPABILITY: source.capability, **self._asked}
        if (position, stop) != (0, plan.length):
            headers["Range"] = f"bytes={position}-{stop - 1}"
        stream: BodyStream | None = None
        try:
            stream = await self._transport.open(url, headers=headers)
            if not stream.content_type.startswith(routes.STRIPES):
                raise _SourceFailed(source, "error", f"answered {stream.content_type!r} instead of raw stripes")
            first = await stream.read(self._transport.timeouts.first_byte_s)
        except LinkFailed as exc:
            _close(stream)
            reason: Reason = "timeout" if exc.reason == "stall" else exc.reason
            raise _SourceFailed(source, reason, exc.message) from exc
        except CopypoolError as exc:
            _close(stream)
            absent = bool(exc.details.get("absent"))
            raise _SourceFailed(source, _reason_of(exc), exc.message, absent=absent) from exc
        except BaseException:
            _close(stream)
            raise
        self._away.answered(source.node_id)
        self.latencies.add(time.monotonic() - started_s)
        return Begun(source, stream, first)


def _reason_of(error: CopypoolError) -> Reason:
    if isinstance(error, Forbidden) and error.details.get("expired"):
        return "expired"
    if isinstance(error, DigestMismatch):
        return "checksum"
    return "refused" if isinstance(error, RetryLater) else "error"


def _close(stream: BodyStream | None) -> None:
    if stream is not None:
        stream.close()


async def _cancel_all(tasks: set[asyncio.Task[Begun]]) -> None:
    """Cancel what is still under way; a stream that was opened meanwhile is closed."""
    if not tasks:
        return
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Begun):
            result.stream.close()


def _exhausted(sources: SegmentSources, plan: SegmentPlan, position: int) -> CopypoolError:
    message = f"byte {position} of the segment at extent {plan.extent} cannot be read: {sources.describe()}"
    if sources.nothing_to_come and not plan.offsite:
        return DataLost(
            f"{message}; no location is left that could hold it: `copypool explain` shows what became of each. A "
            "volume that was given up can be brought back; else store the file again, or delete it. Other files of its "
            "extent may be readable, but not copied again: `copypool status` says what to do"
        )
    if plan.offsite:
        message += f"; {', '.join(plan.offsite)} offsite may hold it"
    if sources.only_bad_checksums:
        return DigestMismatch(f"{message}; every location has bad bytes there: see `copypool query damaged`")
    return Unavailable(f"{message}; see `copypool status`, and try again")
