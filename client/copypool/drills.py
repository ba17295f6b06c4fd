"""Drills: proving by doing that copies alone are enough, and telling beforehand what a node's loss would mean.

`Client.drills` is one of these. The read drill is driven from here, over the very path that clients read by, because
that path is what it is to prove; it goes on as long as its caller does. Both change nothing but the event log.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import suppress

from copypool.cancellation import TaskGroup, raise_first
from copypool.coordinators import Coordinators
from copypool.protocol.api import FileEntry, LookupResult, SegmentPlan
from copypool.protocol.drills import (
    DRILL_PROBLEMS_MAX,
    LOSS_NAMES_MAX,
    SAMPLE_MAX,
    DrillKept,
    LoseNodeRequest,
    LossCounts,
    LossFile,
    LossFilesReply,
    LossFilesRequest,
    LossForecast,
    LossReport,
    ReadDrill,
    SampledFile,
    SampleReply,
    SampleRequest,
)
from copypool.protocol.errors import CopypoolError, DataLost, Invalid, NotFound
from copypool.protocol.insight import Problem
from copypool.protocol.names import check_name
from copypool.protocol.versions import time_ms_of
from copypool.reading import Reader
from copypool.reports import ReadReports
from copypool.sources import SegmentReader
from copypool.transport import Transport

RATE_BYTES_S = 32 * 1024 * 1024  #: of a read drill, unless told otherwise
_READERS = 4  #: files at a time; each holds a few MiB at most
_PAGE_PAUSE_S = 0.01  #: between pages of a scan, so that it leaves etcd to others
_KEPT_FILES_MAX = 3  #: that the event names
_KEEP_S = 2.0  #: for the evidence of a drill that is interrupted

_WHY = {
    "debt": "not copied yet",
    "away": "its copies are on volumes that cannot be reached",
    "none": "its policy wants no copies",
}


class CopyReader(Reader):
    """A reader that knows of no primary: every plan it is given has copies alone as sources."""

    async def lookup(self, namespace: str, paths: list[str], version: int = 0) -> list[LookupResult]:
        """As `Reader.lookup`, with copies alone."""
        results = await super().lookup(namespace, paths, version)
        for result in results:
            if result.file is not None:
                for plan in (*result.file.segments, *([result.file.manifest] if result.file.manifest else ())):
                    _leave_out_primaries(plan)
        return results

    async def resolve(self, namespace: str, entry: FileEntry, first: int, count: int) -> list[SegmentPlan]:
        """As `Reader.resolve`, with copies alone."""
        plans = await super().resolve(namespace, entry, first, count)
        for plan in plans:
            _leave_out_primaries(plan)
        return plans


def _leave_out_primaries(plan: SegmentPlan) -> None:
    plan.sources = [source for source in plan.sources if source.pool_type == "copy"]


class Pace:
    """Keeps bytes below a rate: pauses whoever took some until they are paid for."""

    def __init__(self, rate_bytes_s: int) -> None:
        self._rate_bytes_s = rate_bytes_s
        self._paid_s = time.monotonic()

    async def took(self, size_bytes: int) -> None:
        """Wait until so many bytes more are within the rate. At rate 0 there is no limit."""
        if not self._rate_bytes_s:
            return
        now_s = time.monotonic()
        self._paid_s = max(self._paid_s, now_s - 1.0) + size_bytes / self._rate_bytes_s
        if self._paid_s > now_s:
            await asyncio.sleep(self._paid_s - now_s)


class Drills:
    """The drills of one client. They need the role operator, over all namespaces."""

    def __init__(self, coordinators: Coordinators, transport: Transport, reports: ReadReports) -> None:
        self._coordinators = coordinators
        self._reader = CopyReader(coordinators, SegmentReader(transport, reports, from_medium=True))

    async def read_from_copies(
        self,
        *,
        sample: int = 100,
        namespace: str = "",
        seed: int | None = None,
        rate_bytes_s: int = RATE_BYTES_S,
        on_file: Callable[[ReadDrill], None] | None = None,
    ) -> ReadDrill:
        """Read a seeded sample of the current files through copies alone, from their media, and keep the result.

        Blocks are checked against their checksums and whole files against the catalog's digest; no primary is asked.
        `rate_bytes_s` bounds the bytes read (0: no bound), memory is bounded whatever the files' size. `on_file` is
        told the sums so far. When it returns, the event `DrillReadFromCopies` is in the log; cancelled, it says what
        was done until then. What copies cannot give is in the answer, not raised.
        """
        if not 1 <= sample <= SAMPLE_MAX:
            raise Invalid(f"a sample has 1 to {SAMPLE_MAX} files")
        if rate_bytes_s < 0:
            raise Invalid("a rate is a number of bytes per second; 0 for no bound")
        if namespace:
            check_name(namespace, "namespace")
        found = ReadDrill(random.getrandbits(32) if seed is None else seed, sample, namespace)
        began_s = time.monotonic()
        try:
            await self._read_sample(found, Pace(rate_bytes_s), on_file)
        except asyncio.CancelledError:
            found.interrupted, found.took_s = True, time.monotonic() - began_s
            with suppress(CopypoolError, TimeoutError):
                async with asyncio.timeout(_KEEP_S):
                    await self._coordinators.call("drill_read_done", found, DrillKept)
            raise
        found.took_s = time.monotonic() - began_s
        await self._coordinators.call("drill_read_done", found, DrillKept)
        return found

    async def _read_sample(self, found: ReadDrill, pace: Pace, on_file: Callable[[ReadDrill], None] | None) -> None:
        queue: asyncio.Queue[SampledFile | None] = asyncio.Queue(maxsize=2 * _READERS)

        async def read() -> None:
            while (file := await queue.get()) is not None:
                await self._read(found, file, pace)
                if on_file is not None:
                    on_file(found)

        async def draw() -> None:
            await self._draw(found, queue)
            for _ in range(_READERS):
                await queue.put(None)

        try:
            async with TaskGroup() as group:
                for _ in range(_READERS):
                    group.create_task(read())
                group.create_task(draw())
        except BaseExceptionGroup as failures:
            raise_first(failures)

    async def _draw(self, found: ReadDrill, queue: asyncio.Queue[SampledFile | None]) -> None:
        """Hand out the sample, part by part, until it is complete or the directory has no more files."""
        request = SampleRequest(found.wanted, found.seed, found.namespace)
        taken: set[tuple[str, str]] = set()
        left_in_round = False
        while True:
            reply = await self._coordinators.call("drill_sample", request, SampleReply)
            for file in reply.files:
                if (file.namespace, file.path) in taken:
                    continue  # fences moved between two parts
                taken.add((file.namespace, file.path))
                if file.copies == "whole":
                    await queue.put(file)
                else:
                    _note_unread(found, file, reply.as_of_unix_s)
                if len(taken) >= found.wanted:
                    return
            left_in_round = left_in_round or reply.more
            request.part = reply.next_part
            if reply.parts == 0 or request.part % reply.parts == 0:
                if not left_in_round:
                    return
                left_in_round = False
            await asyncio.sleep(_PAGE_PAUSE_S)

    async def _read(self, found: ReadDrill, file: SampledFile, pace: Pace) -> None:
        try:
            entry = await self._reader.lookup_one(file.namespace, file.path, file.version)
            async with self._reader.open_entry(file.namespace, entry) as pieces:
                async for piece in pieces:
                    found.read_bytes += len(piece)
                    await pace.took(len(piece))
        except NotFound:
            found.replaced_files += 1
        except DataLost:
            # True of what this reader knows of; the primary, which it does not ask, may have every byte.
            found.failed_files += 1
            _note_problem(found, file, "no copy has good bytes of it; its primary was not asked")
        except CopypoolError as exc:
            found.failed_files += 1
            _note_problem(found, file, f"{exc.code}: {exc.message}")
        else:
            found.read_files += 1

    async def lose_node(
        self, node: str, *, names: int = 100, on_page: Callable[[LossCounts], None] | None = None
    ) -> LossReport:
        """What the loss of a node would mean, by the functions that protection goes by; keeps the result.

        The extents of the node are judged page by page, everything committed before the call among them; only when
        some of them would not be whole elsewhere, the current files of the namespaces concerned are looked at, each.
        At most `names` files are named, all are counted; `on_page` is told the sums so far. Each page is exact for
        the moment at which it is read. When it returns, the event `DrillLoseNode` is in the log.
        """
        if not 0 <= names <= LOSS_NAMES_MAX:
            raise Invalid(f"at most {LOSS_NAMES_MAX} files are named")
        forecast = await self._forecast(LoseNodeRequest(check_name(node, "node")))
        counts = LossCounts()
        files: list[LossFile] = []
        for namespace in forecast.namespaces:
            page = LossFilesRequest(node, namespace, names=names)
            while True:
                page.names = names - len(files)
                reply = await self._coordinators.call("drill_lose_node_files", page, LossFilesReply)
                counts.add(reply.counts)
                files += reply.files
                if on_page is not None:
                    on_page(counts)
                if not reply.next_after:
                    break
                page.after = reply.next_after
                await asyncio.sleep(_PAGE_PAUSE_S)
        kept = LossReport(forecast, counts, files[:_KEPT_FILES_MAX])
        await self._coordinators.call("drill_lose_node_done", kept, DrillKept)
        return LossReport(forecast, counts, files)

    async def _forecast(self, request: LoseNodeRequest) -> LossForecast:
        """All pages, each told what room the ones before have taken."""
        forecast = await self._coordinators.call("drill_lose_node", request, LossForecast)
        while forecast.next_after >= 0:
            await asyncio.sleep(_PAGE_PAUSE_S)
            request.after = forecast.next_after
            request.taken = {place.volume: place.bytes for place in forecast.places}
            forecast.add(await self._coordinators.call("drill_lose_node", request, LossForecast))
        return forecast


def _note_unread(found: ReadDrill, file: SampledFile, as_of_unix_s: float) -> None:
    why = _WHY[file.copies]
    if file.copies == "debt":
        age_s = max(0.0, as_of_unix_s - time_ms_of(file.version) / 1000)
        found.debt_files += 1
        found.debt_bytes += file.size
        found.debt_oldest_s = max(found.debt_oldest_s, age_s)
        why = f"{why}, stored {age_s:.0f} s ago"
    elif file.copies == "away":
        found.away_files += 1
    else:
        found.copyless_files += 1
    _note_problem(found, file, why)


def _note_problem(found: ReadDrill, file: SampledFile, why: str) -> None:
    if len(found.problems) < DRILL_PROBLEMS_MAX:
        found.problems.append(Problem(f"{file.namespace}/{file.path}", why))
