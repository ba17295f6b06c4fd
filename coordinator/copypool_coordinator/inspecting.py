"""Gathers what `explaining` and `occupancy` need: explanations of files, occupancy, content of volumes. Reads only."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Collection, Mapping
from typing import Literal

from copypool.protocol.api import LIST_MAX, LOOKUP_MAX
from copypool.protocol.digests import format_digest
from copypool.protocol.errors import CopypoolError, NotFound
from copypool.protocol.insight import (
    ContentEntry,
    ContentFile,
    ContentFilesReply,
    ContentFilesRequest,
    ContentReply,
    ContentRequest,
    DamagedFile,
    DamagedFilesReply,
    DamagedFilesRequest,
    ExplainReply,
    ExplainRequest,
    OccupancyReply,
)
from copypool.protocol.versions import time_ms_of
from copypool_coordinator import explaining, twins
from copypool_coordinator.catalog import Catalog
from copypool_coordinator.choosing import chooser
from copypool_coordinator.heartbeats import Heartbeats
from copypool_coordinator.locating import Located, Locator
from copypool_coordinator.occupancy import OccupancySums, content_of
from copypool_coordinator.overview import Overview
from copypool_coordinator.policy import places
from copypool_coordinator.protection import VolumeFacts
from copypool_coordinator.proving import domains_of
from copypool_coordinator.recovery import outlook_of_range
from copypool_coordinator.routing import end_of
from copypool_coordinator.rows import FileFlag, FileRow
from copypool_coordinator.streaming import Reading

CONTENT_MAX = 1_000
_SLICE = 64
#: How bad an outlook is: a file is as badly off as its worst segment.
_BADNESS = {"away": 1, "doubtful": 2, "lost": 3}


class Inspector:
    """Answers `/rpc/explain`, `occupancy`, `content` and `content_files` for one coordinator."""

    def __init__(
        self, catalog: Catalog, locator: Locator, reading: Reading, overview: Overview, heartbeats: Heartbeats
    ) -> None:
        self._catalog = catalog
        self._view = catalog.view
        self._locator = locator
        self._reading = reading
        self._overview = overview
        self._heartbeats = heartbeats

    async def explain(self, request: ExplainRequest) -> ExplainReply:
        """Where a file's bytes are and why.

        Raises:
            NotFound: no such file or version.
            CatalogDown: etcd does not answer.
        """
        view = self._view
        namespace = self._locator.namespace(request.namespace)
        located = await self._locator.find(namespace.id, request.path, request.version)
        notes = []
        data, total = located, len(located.segments)
        if located.row.flags & FileFlag.in_manifest:
            try:
                segments = await self._reading.segments(located)
                data = await self._locator.locate_segments(located, segments[:LOOKUP_MAX])
                total = len(segments)
            except CopypoolError as error:
                notes.append(f"the list of its segments cannot be read now ({error.message}); shown is where it is")
        if total > len(data.segments):
            notes.append(f"only the first {len(data.segments)} of {total} segments are shown")
        facts, _ = await self._overview.planning()
        facts.choose = chooser(view, self._heartbeats.loads(time.monotonic()), facts.orders)
        now_ms, domains = self._catalog.now_ms(), domains_of(view)
        explained = []
        for segment in data.segments:
            row = data.extents.get(segment.extent)
            if row is None:
                continue
            row = twins.as_sampled(row, facts.opened.get(segment.extent))
            ranked = self._locator.explain(row, segment, request.zone)
            explained.append(explaining.segment(view, facts, now_ms, row, segment, ranked, domains))
            if row.class_id != namespace.class_id:
                notes.append("it was written under another policy than the namespace has now")
        return ExplainReply(
            namespace=request.namespace,
            path=request.path,
            version=located.row.version,
            size=located.row.size,
            digest=format_digest(located.row.digest),
            stored_unix_s=time_ms_of(located.row.version) / 1000,
            segments=explained,
            segments_total=total,
            policy_met=all(each.policy_met for each in explained),
            proven=all(each.proven for each in explained) and total == len(explained),
            notes=list(dict.fromkeys(notes)),
        )

    async def occupancy(self) -> OccupancyReply:
        """What every namespace has in every pool, from memory."""
        facts = await self._overview.gather(0.0)
        sums = OccupancySums()
        for number, extent in enumerate(list(self._view.extents)):
            if number % _SLICE == 0:
                await asyncio.sleep(0)
            entry = self._view.extents.get(extent)
            if entry is not None:
                sums.add(entry.row, facts.opened.get(extent), facts.marks.get(extent), facts.places)
        return OccupancyReply(sums.result(self._view), facts.now_ms / 1000)

    async def content(self, request: ContentRequest) -> ContentReply:
        """A page of the locations on a volume, by extent.

        Raises:
            NotFound: no such volume.
        """
        volume = self._volume(request.volume)
        facts = await self._overview.gather(0.0)
        above = (extent for extent in self._view.extents_by_volume.get(volume, ()) if extent > request.after)
        page = heapq.nsmallest(request.limit + 1, above)
        items: list[ContentEntry] = []
        for extent in page[: request.limit]:
            row = self._view.extents[extent].row
            items += content_of(self._view, extent, row, facts.opened.get(extent), volume, facts.places)
        return ContentReply(items, page[request.limit - 1] if len(page) > request.limit else -1)

    def _volume(self, name: str) -> int:
        entry = self._view.volumes.get(name)
        if entry is None:
            raise NotFound(f"no volume {name!r}")
        return entry.row.id

    async def content_files(self, request: ContentFilesRequest) -> ContentFilesReply:
        """A page of the directory, with the files that have bytes on a volume.

        Raises:
            NotFound: no such volume or namespace.
        """
        volume = self._volume(request.volume)
        namespace = self._locator.namespace(request.namespace)
        rows, cursor = await self._catalog.scan(namespace.id, "", request.after, LIST_MAX)
        known = places(self._view)
        items = []
        for number, (path, row) in enumerate(rows):
            if number % _SLICE == 0:
                await asyncio.sleep(0)
            try:
                located = await self._segments_of(namespace.id, path, row)
            except NotFound:
                continue  # deleted since the page was read
            here = [
                segment.length
                for segment in located.segments
                if (extent := located.extents.get(segment.extent)) is not None
                and any(each.volume == volume and each.volume in known for each in extent.locations)
            ]
            if here:
                items.append(ContentFile(path, row.version, row.size, sum(here)))
        return ContentFilesReply(items, len(rows), cursor)

    async def damaged_files(self, request: DamagedFilesRequest) -> DamagedFilesReply:
        """A page of the directory, with the files that no reachable location is known to have whole.

        Raises:
            NotFound: no such namespace.
        """
        namespace = self._locator.namespace(request.namespace)
        facts = await self._overview.gather(0.0)
        suspects = {
            extent
            for extent, mark in facts.marks.items()
            if mark.lost_files or mark.doubtful_files or mark.unavailable_files
        }
        if not suspects:
            return DamagedFilesReply([], 0, "")
        rows, cursor = await self._catalog.scan(namespace.id, "", request.after, LIST_MAX)
        items = []
        for number, (path, row) in enumerate(rows):
            if number % _SLICE == 0:
                await asyncio.sleep(0)
            try:
                located = await self._locator.locate(namespace.id, path, row, row.version)
                found = _worst(located, suspects, facts.places)
                if found is None and row.flags & FileFlag.in_manifest:
                    segments = await self._reading.segments(located)
                    found = _worst(await self._locator.locate_segments(located, segments), suspects, facts.places)
            except NotFound:
                continue  # deleted since the page was read
            except CopypoolError as error:
                found = "doubtful", row.record.extent, f"the list of its segments cannot be read: {error.message}"
            if found is not None:
                items.append(DamagedFile(path, row.version, row.size, *found))
        return DamagedFilesReply(items, len(rows), cursor)

    async def _segments_of(self, namespace: int, path: str, row: FileRow) -> Located:
        located = await self._locator.locate(namespace, path, row, row.version)
        if not row.flags & FileFlag.in_manifest:
            return located
        return await self._locator.locate_segments(located, await self._reading.segments(located))


def _worst(
    located: Located, suspects: Collection[int], places: Mapping[int, VolumeFacts]
) -> tuple[Literal["away", "doubtful", "lost"], int, str] | None:
    """Outlook, extent and reason of the worst of these segments; None when all can be read."""
    worst: tuple[Literal["away", "doubtful", "lost"], int, str] | None = None
    for segment in located.segments:
        row = located.extents.get(segment.extent)
        if segment.extent not in suspects or row is None or segment.length == 0:
            continue
        end = end_of(segment)
        outlook, why = outlook_of_range(row, segment.offset, end, max(end, row.length), places)
        if outlook != "readable" and (worst is None or _BADNESS[outlook] > _BADNESS[worst[0]]):
            worst = outlook, segment.extent, why
    return worst
