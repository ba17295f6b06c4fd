"""Reading files: lookup, then bytes straight from nodes, checked block by block and as a whole.

`sources` reads one segment; this module strings segments together, ahead of the consumer by a bounded number.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import NamedTuple, Self

import msgspec

from copypool.coordinators import Coordinators
from copypool.plans import InlinePlans, ManifestPlans, Plans, Pump
from copypool.protocol.api import (
    FileEntry,
    LookupReply,
    LookupRequest,
    LookupResult,
    ResolveReply,
    ResolveRequest,
    SegmentPlan,
    SegmentRef,
)
from copypool.protocol.digests import Hasher, format_digest
from copypool.protocol.errors import (
    BrokenInvariant,
    DigestMismatch,
    ErrorBody,
    NotFound,
    RangeNotSatisfiable,
    from_body,
)
from copypool.sources import SegmentReader
from copypool.telemetry import tracing
from copypool.threads import hash_body

SEGMENTS_AHEAD = 2  #: segments whose bytes are fetched before the consumer reaches them
PIECES_AHEAD = 4  #: checked pieces kept per segment, of at most 2 MiB each (the socket's buffer)
_HASH_INLINE_BYTES = 256 * 1024


class Span(NamedTuple):
    """The wanted part of one segment."""

    segment: int  #: its place in the file
    start: int
    stop: int


def spans_of(lengths: Sequence[int], start: int, stop: int) -> list[Span]:
    """Which parts of segments of these lengths hold file bytes [start, stop)."""
    spans: list[Span] = []
    at = 0
    for index, length in enumerate(lengths):
        low, high = max(start, at), min(stop, at + length)
        if low < high:
            spans.append(Span(index, low - at, high - at))
        at += length
        if at >= stop:
            break
    return spans


def clip_range(size: int, start: int, stop: int | None) -> tuple[int, int]:
    """A caller's range as 0 <= start <= stop <= size; negative numbers count from the end, as in a slice.

    `RangeNotSatisfiable` when the start lies behind the end of the file.
    """
    low = start + size if start < 0 else start
    high = size if stop is None else (stop + size if stop < 0 else stop)
    if low > size:
        raise RangeNotSatisfiable(f"the range starts at byte {start}; the file has {size} bytes")
    low = max(low, 0)
    return low, max(low, min(high, size))


class Reader:
    """Looks files up and opens them."""

    def __init__(self, coordinators: Coordinators, segments: SegmentReader) -> None:
        self._coordinators = coordinators
        self._segments = segments

    async def lookup(self, namespace: str, paths: list[str], version: int = 0) -> list[LookupResult]:
        """One result per path, in order; at most `LOOKUP_MAX` paths."""
        away = self._segments.away_nodes()
        request = LookupRequest(namespace=namespace, paths=paths, version=version, avoid_nodes=away)
        reply = await self._coordinators.call("lookup", request, LookupReply)
        self._coordinators.clock.heard(reply.cluster_time_ms)
        if len(reply.results) != len(paths):
            raise BrokenInvariant(f"{len(reply.results)} lookup results for {len(paths)} paths")
        return reply.results

    async def lookup_one(self, namespace: str, path: str, version: int = 0) -> FileEntry:
        """The current or the given version of one file. `NotFound` when there is none."""
        return entry_of((await self.lookup(namespace, [path], version))[0], path)

    async def open(self, namespace: str, path: str, start: int, stop: int | None, version: int) -> FileReader:
        """A reader of file bytes [start, stop) of one version; nothing is transferred yet."""
        return self.open_entry(namespace, await self.lookup_one(namespace, path, version), start, stop)

    def open_entry(self, namespace: str, entry: FileEntry, start: int = 0, stop: int | None = None) -> FileReader:
        """A reader of a file that was looked up already."""
        return FileReader(self, self._segments, namespace, entry, *clip_range(entry.size, start, stop))

    async def read_entry(self, namespace: str, entry: FileEntry, start: int = 0, stop: int | None = None) -> bytes:
        """The bytes of a file that was looked up already, all in memory."""
        if entry.manifest is None and len(entry.segments) == 1 and (start, stop) == (0, None):
            return await self._read_one_segment(namespace, entry)
        async with self.open_entry(namespace, entry, start, stop) as reader:
            return await reader.read()

    async def _read_one_segment(self, namespace: str, entry: FileEntry) -> bytes:
        """A small file, without the layers that string segments together."""
        (segment,) = entry.segments

        async def refresh() -> SegmentPlan:
            return (await self.lookup_one(namespace, entry.path, entry.version)).segments[0]

        pieces = self._segments.read(segment, entry.version, 0, segment.length, refresh)
        async with aclosing(pieces):
            content = [piece async for piece in pieces]
        data = content[0] if len(content) == 1 else b"".join(content)
        check_whole(namespace, entry, len(data), await hash_body(data))
        return data

    async def resolve(self, namespace: str, entry: FileEntry, first: int, count: int) -> list[SegmentPlan]:
        """Sources of segments `first` .. of a file with a manifest."""
        away = self._segments.away_nodes()
        request = ResolveRequest(namespace, entry.path, entry.version, first, count, avoid_nodes=away)
        return (await self._coordinators.call("resolve", request, ResolveReply)).segments


def entry_of(result: LookupResult, path: str) -> FileEntry:
    """The file of a lookup result, or its error raised."""
    if result.file is not None:
        return result.file
    if result.code in ("", NotFound.code):
        raise NotFound(result.message or f"no file {path!r}")
    raise from_body(ErrorBody(result.code, result.message, False))


def check_whole(namespace: str, entry: FileEntry, size_bytes: int, digest: bytes) -> None:
    """`DigestMismatch` unless what was read is the file that was stored."""
    if size_bytes != entry.size or format_digest(digest) != entry.digest:
        raise DigestMismatch(
            f"{namespace}/{entry.path} version {entry.version}: read {size_bytes} of {entry.size} bytes with "
            f"{format_digest(digest)}, stored as {entry.digest}; do not use what was read"
        )


class FileReader:
    """Bytes of one version of one file, as an async iterator of checked pieces. Use it with `async with`.

    After the last byte of a whole file its digest is compared: `DigestMismatch` is raised then, at the end. Iterate
    once. Leaving the block early, or cancelling, ends every transfer under way.
    """

    def __init__(
        self, reader: Reader, segments: SegmentReader, namespace: str, entry: FileEntry, start: int, stop: int
    ) -> None:
        self._reader = reader
        self._segments = segments
        self._namespace = namespace
        self._entry = entry
        self.start = start
        self.stop = stop
        self._trace = tracing.current()  #: whoever opened it, also when somebody else reads
        self._pieces: AsyncGenerator[bytes, None] | None = None

    @property
    def path(self) -> str:
        """The file's path in its namespace."""
        return self._entry.path

    @property
    def size(self) -> int:
        """Size of the whole file in bytes."""
        return self._entry.size

    @property
    def version(self) -> int:
        """The version being read; it stays the same however often the file is overwritten meanwhile."""
        return self._entry.version

    @property
    def digest(self) -> str:
        """Digest of the whole file, `blake3:<hex>`."""
        return self._entry.digest

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the transfer. Safe to repeat."""
        if self._pieces is not None:
            await self._pieces.aclose()

    def __aiter__(self) -> AsyncIterator[bytes]:
        if self._pieces is None:
            self._pieces = self._checked()
        return self._pieces

    async def read(self) -> bytes:
        """All bytes of the range at once."""
        return b"".join([piece async for piece in self])

    async def _checked(self) -> AsyncGenerator[bytes, None]:
        whole = self.start == 0 and self.stop == self.size
        hasher = Hasher()
        async with aclosing(self._ordered()) as pieces:
            async for piece in pieces:
                if whole:
                    if len(piece) > _HASH_INLINE_BYTES:
                        await asyncio.to_thread(hasher.update, piece)
                    else:
                        hasher.update(piece)
                yield piece
        if whole:
            check_whole(self._namespace, self._entry, hasher.length, hasher.digest())

    async def _ordered(self) -> AsyncGenerator[bytes, None]:
        """Pieces of all wanted segments, in order; the next segments are fetched while this one is consumed."""
        if self.start == self.stop:
            return
        plans = await self._read_plans()
        spans = spans_of(plans.lengths, self.start, self.stop)
        if sum(span.stop - span.start for span in spans) != self.stop - self.start:
            raise BrokenInvariant(f"the segments of {self.path!r} do not hold its {self.size} bytes")
        if len(spans) == 1:
            async with aclosing(self._segment(plans, spans[0])) as pieces:
                async for piece in pieces:
                    yield piece
            return
        pumps: deque[Pump] = deque()
        waiting = iter(spans)
        try:
            while True:
                while len(pumps) <= SEGMENTS_AHEAD and (span := next(waiting, None)) is not None:
                    pumps.append(Pump(self._segment(plans, span), PIECES_AHEAD))
                if not pumps:
                    return
                while (ahead := await pumps[0].next()) is not None:
                    yield ahead
                await pumps.popleft().close()
        finally:
            for pump in pumps:
                await pump.close()

    async def _segment(self, plans: Plans, span: Span) -> AsyncGenerator[bytes, None]:
        with tracing.within(self._trace):
            plan = await plans.plan(span.segment)

        async def refresh() -> SegmentPlan:
            return await plans.refreshed(span.segment)

        pieces = self._segments.read(plan, self.version, span.start, span.stop, refresh, self._trace)
        async with aclosing(pieces):
            async for piece in pieces:
                yield piece

    async def _read_plans(self) -> Plans:
        entry = self._entry

        async def lookup() -> FileEntry:
            return await self._reader.lookup_one(self._namespace, entry.path, entry.version)

        if entry.manifest is None:
            return InlinePlans(entry, lookup)

        async def refresh_manifest() -> SegmentPlan:
            again = await lookup()
            if again.manifest is None or again.manifest.length != manifest.length:
                raise BrokenInvariant(f"version {entry.version} of {entry.path!r} changed its manifest")
            return again.manifest

        async def resolve(first: int, count: int) -> list[SegmentPlan]:
            return await self._reader.resolve(self._namespace, entry, first, count)

        manifest = entry.manifest
        pieces = self._segments.read(manifest, entry.version, 0, manifest.length, refresh_manifest, self._trace)
        async with aclosing(pieces):
            content = b"".join([piece async for piece in pieces])
        try:
            refs = msgspec.msgpack.decode(content, type=list[SegmentRef])
        except msgspec.MsgspecError as exc:
            raise BrokenInvariant(f"the manifest of {entry.path!r} is malformed: {exc}") from exc
        return ManifestPlans(refs, resolve)
