"""Gathers what drills ask for: parts of a sample, and what the loss of a node would mean. Reads only.

The rules are in `drawing` and `losing`; long answers come by pages, each exact for the moment at which it is read.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable, Mapping, Sequence

from msgspec import structs

from copypool.protocol.api import LIST_MAX
from copypool.protocol.digests import format_digest
from copypool.protocol.drills import (
    CopyState,
    LoseNodeRequest,
    LossCounts,
    LossFile,
    LossFilesReply,
    LossFilesRequest,
    LossForecast,
    LossState,
    SampledFile,
    SampleReply,
    SampleRequest,
)
from copypool.protocol.errors import CopypoolError, NoSpace, NotFound, Unavailable
from copypool.protocol.insight import LogRequest
from copypool_coordinator import drawing, exposure, losing, twins
from copypool_coordinator.catalog import Catalog
from copypool_coordinator.eventlog import LogReader
from copypool_coordinator.heartbeats import Heartbeats, Loads
from copypool_coordinator.locating import Located, Locator
from copypool_coordinator.losing import Losing, Places, Repaired, Room
from copypool_coordinator.offpolicy import SLICE
from copypool_coordinator.overview import Overview
from copypool_coordinator.placement import choose_leases, choose_twin
from copypool_coordinator.policy import places
from copypool_coordinator.recovery import RangeOutlook
from copypool_coordinator.repairs import REPAIRED, STARTED
from copypool_coordinator.routing import end_of, reach_of
from copypool_coordinator.rows import ClassRow, ExtentRow, FileFlag, FileRow, OpenRow
from copypool_coordinator.sampling import OpenSample
from copypool_coordinator.streaming import Reading

#: Names of one stretch that are looked at; fences stand much closer together.
_STRETCH_MAX = 8 * LIST_MAX
#: Repairs are looked for in the last hour, else day, else week; each time in so many pages of the log.
_LATELY_S = (3_600, 86_400, 604_800)
_LOG_PAGES_MAX = 10
_LOG_PAGE = 1_000
#: Takes about a second and a half; an answer is waited for 4 s.
EXTENTS_PER_PAGE = 4_000
_EXTENTS_SLICE = 16  #: 5 ms
#: Worst first.
_COPY_ORDER: tuple[CopyState, ...] = ("none", "debt", "away", "whole")


class Driller:
    """Answers `/rpc/drill_sample`, `drill_lose_node` and `drill_lose_node_files` for one coordinator."""

    def __init__(
        self,
        catalog: Catalog,
        locator: Locator,
        reading: Reading,
        opened: OpenSample,
        overview: Overview,
        heartbeats: Heartbeats,
        log: LogReader,
    ) -> None:
        self._catalog = catalog
        self._view = catalog.view
        self._locator = locator
        self._reading = reading
        self._opened = opened
        self._overview = overview
        self._heartbeats = heartbeats
        self._log = log

    # -- a sample ----------------------------------------------------------------------------------
    async def sample(self, request: SampleRequest) -> SampleReply:
        """One part of the sample, see `SampleRequest`.

        Raises:
            NotFound: no such namespace.
            CatalogDown: etcd does not answer.
        """
        live = {entry.row.id: name for name, entry in self._view.namespaces.items() if entry.row.state == "live"}
        wanted = [self._locator.namespace(request.namespace).id] if request.namespace else [*live]
        cut = drawing.Cut(self._view.fences, wanted)
        if not cut.parts:
            return SampleReply([], 0, 0, False, self._catalog.now_ms() / 1000)
        at = drawing.turn(cut, request.seed, request.part)
        names = await self._stretch(at.stretch)
        chosen, more = drawing.drawn(names, request.seed, at, cut.parts, request.count)
        files = []
        for path, row in chosen:
            try:
                state = await self._copies(at.stretch.namespace, path, row)
            except NotFound:
                continue  # deleted since its row was read
            files.append(SampledFile(live[at.stretch.namespace], path, row.version, row.size, state))
        return SampleReply(files, request.part + 1, cut.parts, more, self._catalog.now_ms() / 1000)

    async def _stretch(self, stretch: drawing.Stretch) -> list[tuple[str, FileRow]]:
        found: list[tuple[str, FileRow]] = []
        after = stretch.after
        while True:
            rows, cursor = await self._catalog.scan(stretch.namespace, "", after, LIST_MAX)
            found += [(path, row) for path, row in rows if stretch.last is None or path <= stretch.last]
            past = stretch.last is not None and cursor >= stretch.last
            if not cursor or past or len(found) >= _STRETCH_MAX:
                return found
            after = cursor

    async def _copies(self, namespace: int, path: str, row: FileRow) -> CopyState:
        """Whether copies alone can give the file now; of several segments the one that is worst off counts."""
        located = await self._locator.locate(namespace, path, row, row.version)
        parts = [located]
        if row.flags & FileFlag.in_manifest:
            parts.append(await self._locator.locate_segments(located, await self._reading.segments(located)))
        known = places(self._view)
        states = [
            self._copy_of(extent, end_of(segment), known)
            for part in parts
            for segment in part.segments
            if segment.length > 0 and (extent := part.extents.get(segment.extent)) is not None
        ]
        return min(states, key=_COPY_ORDER.index, default="whole")

    def _copy_of(self, row: ExtentRow, end: int, known: Places) -> CopyState:
        extent_class = self._view.classes.get(row.class_id)
        pools = [] if extent_class is None else extent_class.row.copy_pools
        held = [
            place
            for location in row.locations
            if (place := known.get(location.volume)) is not None
            and place.pool in pools
            and not place.destroyed
            and location.state != "missing"
            and reach_of(location, row) >= end
        ]
        if not pools:
            return "none"
        return "debt" if not held else "whole" if any(place.up for place in held) else "away"

    # -- the loss of a node ------------------------------------------------------------------------
    async def lose_node(self, request: LoseNodeRequest) -> LossForecast:
        """A page of what the extents on a node's volumes would be without it.

        Everything committed before the first page was asked for is in it.

        Raises:
            NotFound: no such node.
            Unavailable, CatalogDown: memory is not current, so nothing can be told.
        """
        view = self._view
        lost = self._volumes_of(request.node)
        facts, _ = await self._overview.planning(catch_up=request.after < 0)
        now_ms = self._catalog.now_ms()
        room = Room(view, self._heartbeats.loads(time.monotonic()), lost)
        for name, size in request.taken.items():
            if name in view.volumes:
                room.fill(view.volumes[name].row.id, size)
        adding = Losing(view, facts.places, lost, room, facts.policy, now_ms)
        held = {extent for volume in lost for extent in view.extents_by_volume.get(volume, ())}
        page = heapq.nsmallest(EXTENTS_PER_PAGE + 1, (extent for extent in held if extent > request.after))
        for number, extent in enumerate(page[:EXTENTS_PER_PAGE]):
            if number % _EXTENTS_SLICE == 0:
                await asyncio.sleep(0)
            entry = view.extents.get(extent)
            if entry is not None:
                opened = facts.opened.get(extent)
                adding.add(extent, twins.as_sampled(entry.row, opened), opened)
        after, speed, warnings, silent = -1, losing.NO_RATE, list[str](), list[str]()
        if len(page) > EXTENTS_PER_PAGE:
            after = page[EXTENTS_PER_PAGE - 1]
        else:
            before = {view.volumes[name].row.id for name in request.taken if name in view.volumes}
            pools = {facts.places[volume].pool for volume in before | {*adding.loss.rebuild} if volume in facts.places}
            speed = losing.rate(view, pools, await self._repairs())
            warnings = [*self._writes_stop(room.loads), *self._not_rebuildable(facts.places, lost)]
            warnings += [facts.brake] if facts.brake else []
            silent = [each.name for each in await self._overview.nodes() if each.state == "silent"]
        found = losing.forecast(
            view, request.node, facts.places, lost, adding, room, speed, self._names(adding), warnings, now_ms, after
        )
        found.silent = [name for name in silent if name != request.node]
        return found

    def _volumes_of(self, node: str) -> frozenset[int]:
        entry = self._view.nodes.get(node)
        if entry is None:
            raise NotFound(f"there is no node {node!r}: see `copypool nodes`")
        return frozenset(self._view.volumes_by_node.get(entry.row.id, ()))

    def _names(self, adding: Losing) -> list[str]:
        """Live namespaces that may have files among what is at risk."""
        concerned = adding.loss.namespaces
        return sorted(
            name
            for name, entry in self._view.namespaces.items()
            if entry.row.state == "live" and (entry.row.id in concerned or 0 in concerned)
        )

    def _not_rebuildable(self, known: Places, lost: frozenset[int]) -> list[str]:
        left = {volume: place for volume, place in known.items() if volume not in lost}
        return [f"afterwards: {reason}" for reason in exposure.not_rebuildable(self._view, left)]

    def _writes_stop(self, loads: Loads) -> list[str]:
        """Live namespaces whose writes find no place without the node."""
        found = []
        for name, entry in sorted(self._view.namespaces.items()):
            known = self._view.classes.get(entry.row.class_id)
            if entry.row.state != "live" or known is None:
                continue
            try:
                choose_leases(
                    self._view,
                    loads,
                    known.row,
                    count=1,
                    size_bytes=0,
                    may_have_twin=self._twins_of(known.row, loads),
                    seed=0,
                )
            except (NoSpace, Unavailable) as exc:
                found.append(f"namespace {name!r} would take no writes: {exc.message}")
        return found

    def _twins_of(self, row: ClassRow, loads: Loads) -> Callable[[int], bool]:
        """Whether a node that writes finds what the ack rule of its class demands."""
        must_have = row.ack == "copy" and row.on_copy_failure == "fail"
        return lambda node: not must_have or choose_twin(self._view, loads, row, node, seed=0) is not None

    async def _repairs(self) -> list[Repaired]:
        """What was made again lately, by the event log: the last hour, or day, or week that has something."""
        now_s = self._catalog.now_ms() / 1000
        for age_s in _LATELY_S:
            found = await self._repairs_since(now_s - age_s)
            if found:
                return found
        return []

    async def _repairs_since(self, since_unix_s: float) -> list[Repaired]:
        began: dict[str, float] = {}
        found: list[Repaired] = []
        request = LogRequest(since_unix_s=since_unix_s, kinds=[STARTED, REPAIRED], limit=_LOG_PAGE)
        for _ in range(_LOG_PAGES_MAX):
            reply = await self._log.find(request)
            for event in reply.events:
                if event.kind == STARTED:
                    began[event.id] = event.unix_s
                    continue
                entry = self._view.extents.get(event.extent)
                begin_s = began.pop(event.cause, None)
                if begin_s is not None and entry is not None:
                    found.append(Repaired(int(begin_s * 1000), int(event.unix_s * 1000), entry.row.length))
            if not reply.more:
                break
            request.after = reply.next_after
        return found

    # -- its files ---------------------------------------------------------------------------------
    async def lose_node_files(self, request: LossFilesRequest) -> LossFilesReply:
        """A page of a namespace's current files: those that could not be read without the node.

        Raises:
            NotFound: no such node or namespace.
            CatalogDown: etcd does not answer.
        """
        lost = self._volumes_of(request.node)
        namespace = self._locator.namespace(request.namespace)
        rows, cursor = await self._catalog.scan(namespace.id, "", request.after, LIST_MAX)
        # After the rows: what a row names was committed with the lengths that are read here, or with later ones.
        opened = await self._opened.refresh(max_age_s=0.0)
        reply = LossFilesReply(LossCounts(), [], cursor)
        worlds = self._worlds(lost)
        for number, (path, row) in enumerate(rows):
            if number % SLICE == 0:
                await asyncio.sleep(0)
                worlds = self._worlds(lost)
            try:
                parts = await self._parts(namespace.id, path, row)
            except NotFound:
                continue  # deleted since the page was read
            if not _touches(parts, lost):
                continue
            before, away, gone = (self._outlook(parts, opened, world) for world in worlds)
            _count(reply, request, path, row, before, away, gone)
        return reply

    def _worlds(self, lost: frozenset[int]) -> tuple[Places, Places, Places]:
        """The places as they are, without the node for now, and without it for ever."""
        now = places(self._view)
        return now, losing.without(now, lost, gone=False), losing.without(now, lost, gone=True)

    async def _parts(self, namespace: int, path: str, row: FileRow) -> Sequence[Located]:
        """The file's segments; of one with a manifest the manifest and, when that can be read, what it names."""
        located = await self._locator.locate(namespace, path, row, row.version)
        if not row.flags & FileFlag.in_manifest:
            return [located]
        try:
            segments = await self._reading.segments(located)
            return [located, await self._locator.locate_segments(located, segments)]
        except NotFound:
            raise
        except CopypoolError:
            return [located]

    def _outlook(self, parts: Sequence[Located], opened: Mapping[int, OpenRow], known: Places) -> RangeOutlook:
        return losing.worst(
            "lost"
            if (extent := part.extents.get(segment.extent)) is None
            else losing.outlook_of(
                _as_committed(extent, part.opened.get(segment.extent, opened.get(segment.extent))),
                segment,
                known,
            )
            for part in parts
            for segment in part.segments
            if segment.length > 0  # an empty file is read from its row alone
        )


def _touches(parts: Sequence[Located], volumes: frozenset[int]) -> bool:
    """Whether any bytes of the file are in an extent with a location on one of these volumes."""
    return any(
        location.volume in volumes
        for part in parts
        for segment in part.segments
        if (extent := part.extents.get(segment.extent)) is not None
        for location in extent.locations
    )


def _count(
    reply: LossFilesReply,
    request: LossFilesRequest,
    path: str,
    row: FileRow,
    before: RangeOutlook,
    away: RangeOutlook,
    gone: RangeOutlook,
) -> None:
    """Take a file in that would not be readable."""
    if away == "readable":
        return
    counts, lost = reply.counts, away != "doubtful" and gone == "lost"
    state: LossState = "doubtful" if away == "doubtful" else "unavailable"
    if state == "doubtful":
        counts.doubtful_files += 1
        counts.doubtful_bytes += row.size
    else:
        counts.unavailable_files += 1
        counts.unavailable_bytes += row.size
        counts.lost_files += lost
        counts.lost_bytes += row.size if lost else 0
        counts.before_files += before != "readable"
    if len(reply.files) < request.names:
        digest = format_digest(row.digest)
        reply.files.append(
            LossFile(request.namespace, path, row.version, row.size, digest, state, lost, before != "readable")
        )


def _as_committed(extent: ExtentRow, opened: OpenRow | None) -> ExtentRow:
    """The row as far as its commit row bears it out; without one it was sealed, or opened, since that was read."""
    if extent.open and opened is None:
        return structs.replace(extent, twin=0, twin_node=0)
    return twins.as_sampled(extent, opened)
