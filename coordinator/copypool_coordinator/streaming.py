"""Reading files through this process for clients without the SDK, with failover inside the request.

A segment that fails at byte k goes on at byte k from its next place; when all places failed there, the same version is
looked up once more and read on. Nodes verify every block before it leaves them; a file that is read as a whole is
checked against its digest here as well, before its last bytes are handed out. Memory: one chunk per reader.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Literal

import msgspec

from copypool.protocol.api import LOOKUP_MAX, PARTS_MAX, ReadReport, SegmentRef
from copypool.protocol.digests import Hasher, digest_of
from copypool.protocol.errors import (
    BrokenInvariant,
    CatalogDown,
    CopypoolError,
    DataLost,
    DigestMismatch,
    NotFound,
    Overloaded,
    Unavailable,
)
from copypool_coordinator.capabilities import Mint
from copypool_coordinator.catalog import Catalog
from copypool_coordinator.kept import Kept
from copypool_coordinator.locating import Located, Locator
from copypool_coordinator.metrics import Metrics
from copypool_coordinator.node_link import NodeLink
from copypool_coordinator.reports import Reports
from copypool_coordinator.routing import Place
from copypool_coordinator.rows import FileFlag, FileRow

log = logging.getLogger(__name__)

#: Manifests kept for following pages of the same file, in entries and in segments.
_MANIFESTS_MAX = 64
_MANIFEST_SEGMENTS_MAX = 400_000
_Manifest = list[SegmentRef]


class Reading:
    """Payload of files, checked."""

    def __init__(
        self,
        catalog: Catalog,
        locator: Locator,
        link: NodeLink,
        mint: Mint,
        reports: Reports,
        metrics: Metrics,
        kept: Kept,
    ) -> None:
        self._kept = kept
        self._reports = reports
        self._catalog = catalog
        self._locator = locator
        self._link = link
        self._mint = mint
        self._metrics = metrics
        self._manifests: OrderedDict[tuple[int, int], _Manifest] = OrderedDict()
        self._manifest_segments = 0
        self._manifest_decoder = msgspec.msgpack.Decoder(list[SegmentRef])

    def kept(self, row: FileRow) -> bytes | None:
        """The whole payload of a file, if it is at hand."""
        if row.size == 0:
            return b""
        kept = self._kept.get(row.digest)
        if kept is not None:
            self._metrics.kept_reads += 1
        return kept

    async def small(self, located: Located) -> bytes:
        """The whole payload of a file of one small segment.

        Raises:
            NotFound: this version is gone.
            Unavailable, DigestMismatch, DataLost: no place could give its bytes.
        """
        kept = self.kept(located.row)
        if kept is not None:
            return kept
        refreshed = False
        while True:
            failures: dict[int, CopypoolError] = {}
            (segment,) = located.segments
            places = self._locator.places(located, segment)
            for number, place in enumerate(places):
                try:
                    payload = await self._link.read_small(place.node_id, segment)
                except (Unavailable, Overloaded, DigestMismatch, NotFound) as error:
                    failures[place.volume_id] = error
                    self._report(segment, place, error)
                    continue
                if digest_of(payload) == located.row.digest:
                    self._metrics.fallbacks += number > 0 or refreshed
                    self._kept.add(located.row.digest, payload)
                    return payload
                self._metrics.digest_mismatches += 1
                failure = DigestMismatch(f"{located.path!r} arrived from {place.node} with another digest")
                failures[place.volume_id] = failure
                self._report(segment, place, failure)
            if refreshed:
                raise nothing_left(located.path, places, failures, self._locator.offsite(located, segment))
            located = await self._locator.refresh(located)
            refreshed = True

    async def whole(self, located: Located, start: int, stop: int) -> AsyncGenerator[bytes, None]:
        """Payload bytes [start, stop) of any file. Close it (`aclosing`) when done early.

        Raises like `small`; what was yielded before is good.
        """
        hasher = Hasher() if start == 0 and stop == located.row.size else None
        segments = await self.segments(located)
        held: bytes | None = None
        async with aclosing(self._pieces(located, segments, start, stop)) as pieces:
            async for piece in pieces:
                if hasher is not None:
                    hasher.update(piece)
                if held is not None:
                    yield held
                held = piece
        # The last piece goes out only after the digest of all of them is known to be right.
        if hasher is not None and hasher.digest() != located.row.digest:
            self._metrics.digest_mismatches += 1
            raise DigestMismatch(f"{located.path!r}: all blocks passed, but the whole has another digest than its row")
        if held is not None:
            yield held

    async def metadata(self, located: Located) -> dict[str, str] | None:
        """User metadata, which is in the record header alone; None when no location can be read now."""
        row = located.row
        try:
            located = await self._locator.record_of(located)
        except Unavailable:
            return None
        for place in self._locator.places(located, row.record):
            capability = self._mint.read(
                place.node_id,
                row.record,
                row.version,
                self._catalog.now_ms(),
                raw=False,
                header_bytes=row.header_bytes,
            )
            try:
                return (await self._link.record(place.node_id, row.record, row.version, capability)).metadata
            except CopypoolError as error:
                log.info(
                    "record of extent %d at node %s: %s",
                    row.record.extent,
                    place.node,
                    error.message,
                    extra={"extent": row.record.extent, "node": place.node},
                )
        return None

    async def segments(self, located: Located) -> list[SegmentRef]:
        """All data segments of the file, from its manifest where they are only there."""
        if not located.row.flags & FileFlag.in_manifest:
            return list(located.segments)
        (record,) = located.segments
        key = (record.extent, record.offset)
        known = self._manifests.get(key)
        if known is None:
            async with aclosing(self._segment(located, 0, 0, record.length)) as pieces:
                payload = b"".join([piece async for piece in pieces])
            known = self._decode_manifest(located, payload)
            self._keep(key, known)
        else:
            self._manifests.move_to_end(key)
        return known

    def _decode_manifest(self, located: Located, payload: bytes) -> _Manifest:
        try:
            manifest = self._manifest_decoder.decode(payload)
        except msgspec.MsgspecError as exc:
            raise BrokenInvariant(f"the manifest of {located.path!r} passed its checksums and is none: {exc}") from exc
        total = sum(segment.length for segment in manifest)
        if len(manifest) > PARTS_MAX or total != located.row.size:
            raise BrokenInvariant(f"the manifest of {located.path!r} names {total} bytes of {located.row.size}")
        return manifest

    def _keep(self, key: tuple[int, int], manifest: _Manifest) -> None:
        self._manifests[key] = manifest
        self._manifest_segments += len(manifest)
        while len(self._manifests) > _MANIFESTS_MAX or self._manifest_segments > _MANIFEST_SEGMENTS_MAX:
            _, dropped = self._manifests.popitem(last=False)
            self._manifest_segments -= len(dropped)

    def _report(self, segment: SegmentRef, place: Place, error: CopypoolError) -> None:
        """This process reads for others: its failed reads are reported like a client's."""
        if isinstance(error, Overloaded):
            return
        reason: Literal["checksum", "error", "refused", "timeout"] = "error"
        if isinstance(error, DigestMismatch):
            reason = "checksum"
        elif "sent" in error.details:
            reason = "timeout" if error.details["sent"] else "refused"
        self._reports.add([ReadReport(segment.extent, place.volume, place.node_id, reason, 1)])

    async def _pieces(
        self, located: Located, segments: list[SegmentRef], start: int, stop: int
    ) -> AsyncGenerator[bytes, None]:
        """The wanted range of each segment, in order; extents are looked up page by page."""
        at = 0
        page: Located | None = located if segments == list(located.segments) else None
        page_first = 0
        for index, segment in enumerate(segments):
            begin, end = max(start - at, 0), min(stop - at, segment.length)
            at += segment.length
            if begin >= end:
                continue
            if page is None or index >= page_first + len(page.segments):
                page_first = index
                page = await self._locator.locate_segments(located, segments[index : index + LOOKUP_MAX])
            async with aclosing(self._segment(page, index - page_first, begin, end)) as pieces:
                async for piece in pieces:
                    yield piece

    async def _segment(self, located: Located, index: int, start: int, stop: int) -> AsyncGenerator[bytes, None]:
        """Bytes [start, stop) of one segment, from one place after the other."""
        segment = located.segments[index]
        position = start
        refreshed_at = -1
        failures: dict[int, CopypoolError] = {}
        while position < stop:
            places = self._locator.places(located, segment)
            place = next((place for place in places if place.volume_id not in failures), None)
            if place is None:
                if refreshed_at == position:
                    raise nothing_left(located.path, places, failures, self._locator.offsite(located, segment))
                refreshed_at = position
                failures.clear()
                located = await self._locator.refresh(located)
                segment = located.segments[index]
                continue
            before = position
            capability = self._mint.read(place.node_id, segment, located.row.version, self._catalog.now_ms(), raw=False)
            try:
                async with self._link.stream(
                    place.node_id, segment, located.row.version, capability, position, stop
                ) as chunks:
                    async for chunk in chunks:
                        position += len(chunk)
                        yield chunk
            except CatalogDown:
                raise
            except CopypoolError as error:
                self._report(segment, place, error)
                if position > before:
                    # Past the byte where others failed they may be good again: two places, two bad blocks.
                    failures.clear()
                failures[place.volume_id] = error


def nothing_left(
    path: str, places: Sequence[Place], failures: Mapping[int, CopypoolError], offsite: Sequence[str]
) -> CopypoolError:
    """The error when every place of a segment failed, twice. `failures`: by volume, how each did last."""
    last = next(reversed(list(failures.values())), None)
    said = f" (the last one said: {last.message})" if last is not None else ""
    if offsite:
        return Unavailable(f"no location of {path!r} can be read now{said}; {', '.join(offsite)} offsite may hold it")
    if all((failure := failures.get(each.volume_id)) is not None and each.is_final(failure) for each in places):
        return DataLost(
            f"no location is left that could hold the bytes of {path!r}{said}: `copypool explain` shows what became of "
            "each. A volume that was given up can be brought back; else store the file again, or delete it. Other "
            "files of its extent may be readable, but not copied again: `copypool status` says what to do"
        )
    if isinstance(last, DigestMismatch) and all(place.reachable for place in places):
        return DigestMismatch(f"every location of {path!r} holds damaged bytes there: see `copypool query damaged`")
    return Unavailable(f"no location of {path!r} can be read now{said}")
