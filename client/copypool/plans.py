"""Where the segments of one version are, however many there are, and how to learn it anew while reading."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Protocol

from copypool.protocol.api import FileEntry, SegmentPlan, SegmentRef
from copypool.protocol.errors import BrokenInvariant

PAGE_SEGMENTS = 64  #: segments of a manifest resolved at once
_PAGES_MAX = 3

Lookup = Callable[[], Awaitable[FileEntry]]  #: the same version, once more
Resolve = Callable[[int, int], Awaitable[list[SegmentPlan]]]  #: (first, count) of a file with a manifest


class Plans(Protocol):
    """The segments of one version, in order."""

    @property
    def lengths(self) -> Sequence[int]:
        """Payload bytes of each segment."""
        ...

    async def plan(self, index: int) -> SegmentPlan:
        """Where segment `index` is."""
        ...

    async def refreshed(self, index: int) -> SegmentPlan:
        """Where it is according to a new lookup; it holds the same bytes. `NotFound`: the version is gone."""
        ...


class InlinePlans:
    """Segments that came with the lookup."""

    def __init__(self, entry: FileEntry, lookup: Lookup) -> None:
        self._segments = entry.segments
        self._lookup = lookup
        self.lengths = [segment.length for segment in entry.segments]

    async def plan(self, index: int) -> SegmentPlan:
        """Where segment `index` is; no request."""
        return self._segments[index]

    async def refreshed(self, index: int) -> SegmentPlan:
        """Look the version up again; later segments use the new answer as well."""
        entry = await self._lookup()
        if [segment.length for segment in entry.segments] != self.lengths:
            raise BrokenInvariant(f"version {entry.version} of {entry.path!r} changed its segments")
        self._segments = entry.segments
        return self._segments[index]


class ManifestPlans:
    """Segments listed in the file's manifest record, resolved page by page."""

    def __init__(self, refs: Sequence[SegmentRef], resolve: Resolve) -> None:
        self._resolve = resolve
        self._pages: dict[int, list[SegmentPlan]] = {}
        self._lock = asyncio.Lock()
        self.lengths = [ref.length for ref in refs]

    async def plan(self, index: int) -> SegmentPlan:
        """Where segment `index` is; asks for its page once."""
        async with self._lock:
            page = self._pages.get(index // PAGE_SEGMENTS) or await self._fetch(index // PAGE_SEGMENTS)
        return page[index % PAGE_SEGMENTS]

    async def refreshed(self, index: int) -> SegmentPlan:
        """Ask for the page again."""
        async with self._lock:
            page = await self._fetch(index // PAGE_SEGMENTS)
        return page[index % PAGE_SEGMENTS]

    async def _fetch(self, number: int) -> list[SegmentPlan]:
        first = number * PAGE_SEGMENTS
        wanted = self.lengths[first : first + PAGE_SEGMENTS]
        page = await self._resolve(first, len(wanted))
        if [segment.length for segment in page] != wanted:
            raise BrokenInvariant(f"segments {first} to {first + len(wanted)} are not those of the manifest")
        self._pages.pop(number, None)
        self._pages[number] = page
        while len(self._pages) > _PAGES_MAX:
            del self._pages[next(iter(self._pages))]
        return page


class Pump:
    """Runs a generator of pieces ahead of its consumer, by at most `pieces_max`."""

    def __init__(self, pieces: AsyncGenerator[bytes, None], pieces_max: int) -> None:
        self._pieces = pieces
        self._queue: asyncio.Queue[bytes | Exception | None] = asyncio.Queue(pieces_max)
        self._task = asyncio.create_task(self._run(), name="copypool read ahead")

    async def next(self) -> bytes | None:
        """The next piece, None at the end; raises what the generator raised."""
        item = await self._queue.get()
        if isinstance(item, Exception):
            raise item
        return item

    async def close(self) -> None:
        """Stop reading ahead and end the generator. Safe to repeat."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._pieces.aclose()

    async def _run(self) -> None:
        try:
            async for piece in self._pieces:
                await self._queue.put(piece)
        except Exception as exc:  # noqa: BLE001 - handed to the consumer, who raises it
            await self._queue.put(exc)
        else:
            await self._queue.put(None)
