"""From a name to places: the file's row and, for every segment, where it is. The thin shell around `routing`.

The row is read from etcd, extents come from memory, and memory may lag behind the row or run ahead of it. So this
waits for facts, not for revisions: when memory cannot tell where a segment ends up, row and extents are read in one
transaction and the answer comes from that (ATTACKS A14's sequence is a test).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from copypool.protocol.api import FileEntry, SegmentPlan, SegmentRef, Source
from copypool.protocol.digests import format_digest
from copypool.protocol.errors import NotFound, Unavailable
from copypool_coordinator import routing
from copypool_coordinator.capabilities import Mint
from copypool_coordinator.catalog import Catalog
from copypool_coordinator.heartbeats import Heartbeats
from copypool_coordinator.lookups import Lookups
from copypool_coordinator.node_link import NodeLink
from copypool_coordinator.routing import Place
from copypool_coordinator.rows import ExtentRow, FileFlag, FileRow, NamespaceRow, OpenRow

_FACT_TRIES = 3
_FACTS_TIMEOUT_S = 2.0
#: Ranks are used again this long, unless the view changes: queues and suspicions grow old.
_RANKED_S = 0.1
_RANKED_MAX = 4096


@dataclass(frozen=True, slots=True)
class Located:
    """A file's row with the extents of its segments, read together or known to fit together."""

    namespace: int
    path: str
    row: FileRow
    segments: Sequence[SegmentRef]
    extents: Mapping[int, ExtentRow]
    opened: Mapping[int, OpenRow]


class _Ranked(NamedTuple):
    """Places of an extent as ranked a moment ago."""

    extent: ExtentRow
    revision: int  #: of the view
    until_s: float
    places: list[Place]


class Locator:
    """Finds files and orders the places of their segments."""

    def __init__(
        self, catalog: Catalog, lookups: Lookups, heartbeats: Heartbeats, link: NodeLink, mint: Mint, zone: str
    ) -> None:
        self._catalog = catalog
        self._view = catalog.view
        self.lookups = lookups
        self._heartbeats = heartbeats
        self._link = link
        self._mint = mint
        self._zone = zone
        self._ranked: dict[int, _Ranked] = {}
        link.on_suspect = self._ranked.clear

    def namespace(self, name: str) -> NamespaceRow:
        """The live namespace of this name; `NotFound` otherwise."""
        known = self._view.namespaces.get(name)
        if known is None or known.row.state != "live":
            raise NotFound(f"no namespace {name!r}")
        return known.row

    async def find(self, namespace: int, path: str, version: int = 0) -> Located:
        """The file and its extents.

        Raises:
            NotFound: no such file or version.
            CatalogDown: etcd does not answer.
            Unavailable: the row kept changing under the reads.
        """
        return await self.locate(namespace, path, await self.row(namespace, path, version), version)

    async def row(self, namespace: int, path: str, version: int = 0) -> FileRow:
        """The file's row alone; raises as `find` does."""
        row = await self.lookups.get(namespace, path, version)
        if row is None:
            raise _not_found(path, version)
        return row

    async def locate(self, namespace: int, path: str, row: FileRow, version: int) -> Located:
        """The extents of a row that was just read."""
        segments = routing.segments_of(row)
        extents = self._known(segments)
        if extents is not None:
            return Located(namespace, path, row, segments, extents, {})
        return await self._with_facts(namespace, path, version or row.version)

    async def locate_segments(self, located: Located, segments: Sequence[SegmentRef]) -> Located:
        """The same file with these segments, which its manifest names.

        Raises:
            Unavailable: memory did not learn of their extents in time.
        """
        await self._catalog.wait_for(
            lambda view: all(segment.extent in view.extents for segment in segments), _FACTS_TIMEOUT_S
        )
        extents = {segment.extent: self._view.extents[segment.extent].row for segment in segments}
        return Located(located.namespace, located.path, located.row, segments, extents, {})

    async def record_of(self, located: Located) -> Located:
        """The same file with the extent of the record that made this version."""
        if located.row.record.extent in located.extents:
            return located
        return await self.locate_segments(located, [located.row.record])

    async def refresh(self, located: Located) -> Located:
        """The same version once more, after every place of a segment failed; `NotFound` when it is gone."""
        fresh = await self._with_facts(located.namespace, located.path, located.row.version)
        if located.segments == routing.segments_of(located.row):
            return fresh
        return await self.locate_segments(fresh, located.segments)

    def _known(self, segments: Sequence[SegmentRef]) -> dict[int, ExtentRow] | None:
        """The extents of the segments as memory has them; None when it cannot answer for one of them."""
        extents: dict[int, ExtentRow] = {}
        for segment in segments:
            known = self._view.extents.get(segment.extent)
            if segment.length > 0 and (known is None or not routing.knows_enough(known.row, segment)):
                return None
            if known is not None:
                extents[segment.extent] = known.row
        return extents

    async def _with_facts(self, namespace: int, path: str, version: int) -> Located:
        for _ in range(_FACT_TRIES):
            facts = await self._catalog.file_with_facts(namespace, path, version)
            row = facts.row
            if row is None or row.flags & FileFlag.tombstone:
                raise _not_found(path, version)
            segments = routing.segments_of(row)
            if all(segment.extent in facts.extents or segment.length == 0 for segment in segments):
                opened = {extent: found.row for extent, found in facts.open.items()}
                return Located(namespace, path, row, segments, facts.extents, opened)
        raise Unavailable(f"the extents of {path!r} keep moving: repeat")

    def places(
        self,
        located: Located,
        segment: SegmentRef,
        *,
        avoid_nodes: Collection[int] = (),
        zone: str | None = None,
    ) -> list[Place]:
        """Where to read this segment, best first."""
        extent = located.extents.get(segment.extent)
        if extent is None:
            return []
        if avoid_nodes or (zone is not None and zone != self._zone):
            return routing.sources(self._rank(extent, avoid_nodes, zone or ""), segment)
        known = self._ranked.get(segment.extent)
        now_s = time.monotonic()
        if (
            known is None
            or known.extent is not extent
            or known.revision != self._view.revision
            or now_s >= known.until_s
        ):
            if len(self._ranked) >= _RANKED_MAX:
                self._ranked.clear()
            ranked = self._rank(extent, (), self._zone)
            known = _Ranked(extent, self._view.revision, now_s + _RANKED_S, ranked)
            self._ranked[segment.extent] = known
        return routing.sources(known.places, segment)

    def offsite(self, located: Located, segment: SegmentRef) -> list[str]:
        """Volumes that may hold the segment, and that no program can read."""
        extent = located.extents.get(segment.extent)
        return [] if extent is None else routing.offsite(self._view, extent)

    def _rank(self, extent: ExtentRow, avoid_nodes: Collection[int], zone: str) -> list[Place]:
        return routing.rank(
            self._view,
            self._heartbeats.loads(time.monotonic()),
            extent,
            zone=zone,
            avoid_nodes=avoid_nodes,
            suspects=self._link.suspects(),
        )

    def explain(self, extent: ExtentRow, segment: SegmentRef, zone: str) -> list[routing.Reasoned]:
        """The sources of a segment as `places` would give them to a reader in this zone, each with its reason."""
        return routing.explain(
            self._view,
            self._heartbeats.loads(time.monotonic()),
            extent,
            segment,
            zone=zone or self._zone,
            suspects=self._link.suspects(),
        )

    def plan(
        self,
        located: Located,
        segment: SegmentRef,
        version: int,
        *,
        raw: bool,
        avoid_nodes: Collection[int],
        zone: str,
        header_bytes: int = 0,
    ) -> SegmentPlan:
        """The segment with its sources and the right to read each."""
        now_ms = self._catalog.now_ms()
        sources = [
            Source(
                node_id=place.node_id,
                node=place.node,
                url=place.url,
                volume=place.volume,
                pool_type=place.pool_type,
                state=place.state,
                reachable=place.reachable,
                capability=self._mint.read(place.node_id, segment, version, now_ms, raw=raw, header_bytes=header_bytes),
                given_up=place.given_up,
            )
            for place in self.places(located, segment, avoid_nodes=avoid_nodes, zone=zone)
        ]
        return SegmentPlan(segment.extent, segment.offset, segment.length, sources, self.offsite(located, segment))

    def entry(self, located: Located, *, raw: bool, avoid_nodes: Collection[int], zone: str) -> FileEntry:
        """The file as clients are told of it."""
        row = located.row
        multipart = bool(row.flags & FileFlag.multipart)
        in_manifest = bool(row.flags & FileFlag.in_manifest)
        plans = [
            self.plan(
                located,
                segment,
                row.version,
                raw=raw,
                avoid_nodes=avoid_nodes,
                zone=zone,
                header_bytes=row.header_bytes if not multipart or in_manifest else 0,
            )
            for segment in located.segments
            if segment.length > 0
        ]
        return FileEntry(
            path=located.path,
            version=row.version,
            size=row.size,
            digest=format_digest(row.digest),
            segments=[] if in_manifest else plans,
            manifest=plans[0] if in_manifest else None,
            header_bytes=row.header_bytes if not multipart or in_manifest else 0,
        )


def _not_found(path: str, version: int) -> NotFound:
    return NotFound(f"no file {path!r}" if not version else f"no version {version} of {path!r}")
