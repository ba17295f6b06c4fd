"""Pages of a proof: gathers the rows of one page and lets `proof` count them. Reads only, bounded, paced by its caller.

A page is exact for the moment at which it is read: what is committed before the first page is asked for is in one of
them. It refuses to prove anything from memory that etcd may have left behind.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping

from msgspec.structs import replace

from copypool.protocol.api import LIST_MAX, SegmentRef
from copypool.protocol.errors import CopypoolError, NotFound, Unavailable
from copypool.protocol.insight import PROBLEMS_MAX, ProveReply, ProveRequest
from copypool_coordinator import twins
from copypool_coordinator.catalog import Catalog
from copypool_coordinator.locating import Located, Locator
from copypool_coordinator.policy import Policy, places
from copypool_coordinator.proof import Domain, Item, Piece, Tally, held_up_to, pieces_of_extent
from copypool_coordinator.protection import VolumeFacts
from copypool_coordinator.routing import end_of
from copypool_coordinator.rows import ExtentRow, FileFlag, FileRow, NamespaceRow, OpenRow
from copypool_coordinator.sampling import OpenSample
from copypool_coordinator.status import HEARD_MAX_S
from copypool_coordinator.streaming import Reading
from copypool_coordinator.view import ClusterView

EXTENTS_PER_PAGE = 2_000
#: Extent ids that one page passes over at most; ids of a block that its taker lost have no extents.
_IDS_PER_PAGE = 1_000_000
_SLICE = 64
_SEALED_WITHIN_S = 5.0
_CAUGHT_UP_S = 5.0


class Prover:
    """Answers `/rpc/prove` for one coordinator."""

    def __init__(
        self,
        catalog: Catalog,
        locator: Locator,
        reading: Reading,
        sample: OpenSample,
        policy: Policy,
        caught_up: Callable[[float], Awaitable[None]],
    ) -> None:
        self._catalog = catalog
        self._view = catalog.view
        self._locator = locator
        self._reading = reading
        self._sample = sample
        self._policy = policy
        self._caught_up = caught_up

    async def page(self, request: ProveRequest, scope_prefix: str = "") -> ProveReply:
        """One page, see `ProveRequest`.

        Raises:
            NotFound: no such pool or namespace.
            Unavailable, CatalogDown: memory is not current, so nothing is proven.
        """
        if not request.after:
            await self._caught_up(_CAUGHT_UP_S)
        silent_s = time.monotonic() - self._catalog.heard_s
        if silent_s > HEARD_MAX_S:
            raise Unavailable(f"nothing heard from etcd for {silent_s:.0f} s: what is known here proves nothing")
        now_ms = self._catalog.now_ms()
        tally = Tally(now_ms, self._policy.proof_life_ms, PROBLEMS_MAX)
        if request.namespace:
            cursor = await self._files(tally, request, scope_prefix)
        else:
            cursor = await self._extents(tally, request)
        return ProveReply(tally.result(self._pool), "files" if request.namespace else "extents", cursor, now_ms / 1000)

    def _pool(self, pool_id: int) -> tuple[str, str]:
        entry = self._view.pools_by_id.get(pool_id)
        return (str(pool_id), "primary") if entry is None else (entry.name, entry.row.type)

    # -- extents -----------------------------------------------------------------------------------
    async def _extents(self, tally: Tally, request: ProveRequest) -> str:
        view = self._view
        pool = None
        if request.pool:
            if request.pool not in view.pools:
                raise NotFound(f"no pool {request.pool!r}")
            pool = view.pools[request.pool].row.id
        page, cursor = _page_of(view, int(request.after) if request.after else -1)
        opened = await self._opened(page)
        volumes, domains = places(view), domains_of(view)
        for number, extent in enumerate(page):
            if number % _SLICE == 0:
                await asyncio.sleep(0)
            entry = view.extents.get(extent)
            extent_class = None if entry is None else view.classes.get(entry.row.class_id)
            if entry is None or extent_class is None:
                continue
            if pool is not None and pool not in (extent_class.row.primary_pool, *extent_class.row.copy_pools):
                continue
            row = await self._settled(extent, entry.row, opened)
            if row is None:
                continue
            row = twins.as_sampled(row, opened.get(extent))
            for item in pieces_of_extent(
                f"extent {extent}", row, opened.get(extent), extent_class.row, volumes, domains
            ):
                tally.add(item)
        return "" if cursor is None else str(cursor)

    async def _opened(self, page: list[int]) -> dict[int, OpenRow]:
        """Commit rows of the page's open extents, read after the page was asked for."""
        opened = await self._sample.refresh(max_age_s=0.0)
        view = self._view
        late = [each for each in page if each not in opened and each in view.extents and view.extents[each].row.open]
        if not late:
            return opened
        return opened | {extent: found.row for extent, found in (await self._catalog.read_open(late)).items()}

    async def _settled(self, extent: int, row: ExtentRow, opened: dict[int, OpenRow]) -> ExtentRow | None:
        """A row whose committed length is known: an open extent without a commit row was sealed a moment ago."""
        if not row.open or extent in opened:
            return row
        await self._catalog.wait_for(
            lambda view: extent not in view.extents or not view.extents[extent].row.open, _SEALED_WITHIN_S
        )
        entry = self._view.extents.get(extent)
        return None if entry is None else entry.row

    # -- files -------------------------------------------------------------------------------------
    async def _files(self, tally: Tally, request: ProveRequest, scope_prefix: str) -> str:
        namespace = self._locator.namespace(request.namespace)
        rows, cursor = await self._catalog.scan(namespace.id, request.prefix, request.after, LIST_MAX, scope_prefix)
        domains = domains_of(self._view)
        # After the rows: what a row names was committed with the lengths that are read here, or with later ones.
        opened = await self._sample.refresh(max_age_s=0.0)
        for number, (path, row) in enumerate(rows):
            if number % _SLICE == 0:
                await asyncio.sleep(0)
            try:
                item = await self._item(namespace, path, row, opened, places(self._view), domains)
            except NotFound:
                continue  # deleted since the page was read
            tally.add(item)
        return cursor

    async def _item(
        self,
        namespace: NamespaceRow,
        path: str,
        row: FileRow,
        opened: Mapping[int, OpenRow],
        volumes: dict[int, VolumeFacts],
        domains: dict[int, Domain],
    ) -> Item:
        """The file's segments and the record that made it."""
        located = await self._locator.locate(namespace.id, path, row, row.version)
        if located.opened:
            opened = {**opened, **located.opened}
        pieces = []
        if row.flags & FileFlag.multipart and not row.flags & FileFlag.in_manifest:
            record = await self._locator.record_of(located)
            pieces.append(self._piece(record, row.record, 0, namespace, opened, volumes, domains))
        data = located
        if row.flags & FileFlag.in_manifest:
            pieces.append(self._piece(located, row.record, 0, namespace, opened, volumes, domains))
            try:
                segments = await self._reading.segments(located)
                data = await self._locator.locate_segments(located, segments)
            except NotFound:
                raise
            except CopypoolError:
                return Item(path, 1, (*pieces, Piece(row.size, (), self._wanted(namespace.class_id))))
        pieces += [
            self._piece(data, segment, segment.length, namespace, opened, volumes, domains) for segment in data.segments
        ]
        return Item(path, 1, tuple(pieces))

    def _piece(
        self,
        located: Located,
        segment: SegmentRef,
        size: int,
        namespace: NamespaceRow,
        opened: Mapping[int, OpenRow],
        volumes: dict[int, VolumeFacts],
        domains: dict[int, Domain],
    ) -> Piece:
        extent = located.extents.get(segment.extent)
        if extent is None:
            known = self._view.extents.get(segment.extent)
            if known is None:
                return Piece(size, (), self._wanted(namespace.class_id))
            extent = known.row
        sample = opened.get(segment.extent)
        # Sealed or opened since the sample: a twin then counts once its row says how long it is.
        extent = replace(extent, twin=0) if extent.open and sample is None else twins.as_sampled(extent, sample)
        end = end_of(segment)
        # A row is committed together with its bytes, so the writer of an open extent reaches their end.
        committed = max(end, extent.length)
        return Piece(size, held_up_to(extent, end, committed, volumes, domains), self._wanted(extent.class_id))

    def _wanted(self, class_id: int) -> tuple[int, ...]:
        entry = self._view.classes.get(class_id)
        return () if entry is None else (entry.row.primary_pool, *entry.row.copy_pools)


def domains_of(view: ClusterView) -> dict[int, Domain]:
    """Host and zone of every node."""
    return {node_id: Domain(node.row.host, node.row.zone) for node_id, node in view.nodes_by_id.items()}


def _page_of(view: ClusterView, after: int) -> tuple[list[int], int | None]:
    """Ids of extents above `after`, and the cursor of the next page (None at the end)."""
    last = max(view.extents, default=-1)
    page: list[int] = []
    for extent in _ids(after, min(last, after + _IDS_PER_PAGE)):
        if extent in view.extents:
            page.append(extent)
            if len(page) == EXTENTS_PER_PAGE:
                return page, extent if extent < last else None
    reached = after + _IDS_PER_PAGE
    return page, reached if reached < last else None


def _ids(after: int, last: int) -> Iterator[int]:
    return iter(range(after + 1, last + 1))
