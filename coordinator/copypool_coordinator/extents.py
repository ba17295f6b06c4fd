"""Extents: opened for a writer, sealed at their committed length, listed for their holders."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from copypool.protocol.errors import Conflict, Fenced, Forbidden, Invalid, NotFound, OutcomeUnknown, Overloaded
from copypool.protocol.internal import (
    OPEN_EXTENTS_MAX,
    ExtentClass,
    OpenExtentReply,
    OpenExtentRequest,
    OwnExtent,
    OwnExtentsReply,
    OwnExtentsRequest,
    SealReply,
)
from copypool.protocol.twins import TwinTarget
from copypool_coordinator import keys, locations, rows, twins
from copypool_coordinator.changing import Change, ExtentRows, Opened, Seen
from copypool_coordinator.core import (
    ROUNDS_MAX,
    Core,
    Guard,
    LeaderGuard,
    check_guards,
    leader_guard,
    session_guard,
)
from copypool_coordinator.etcd import get, mod_equals, put
from copypool_coordinator.ids import take_ids
from copypool_coordinator.placement import no_twin
from copypool_coordinator.rows import ClassRow, ExtentRow, VolumeRow
from copypool_coordinator.view import Versioned

__all__ = ["Extents", "Opened"]

ID_BLOCK = 1024
PAGE = 1000
#: Open extents of a volume, those included that a dying writer left to be sealed.
OPEN_HARD_MAX = 4 * OPEN_EXTENTS_MAX
FACT_TIMEOUT_S = 5.0


#: (class, volume of the writer) -> where its twin goes; None: nowhere now.
ChooseTwin: TypeAlias = Callable[[ClassRow, VolumeRow], "Versioned[VolumeRow] | None"]


class Extents:
    """Extents of one catalog."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.rows = ExtentRows(core)
        self._ids: Iterator[int] = iter(())
        self._ids_lock = asyncio.Lock()

    async def open_extent(
        self, request: OpenExtentRequest, choose_twin: ChooseTwin = lambda extent_class, volume: None
    ) -> OpenExtentReply:
        """Make a new extent; its rows are there when it returns. A repeat makes another one.

        A class whose ack rule is `copy` gets a twin if `choose_twin` finds a place; its capability is for the caller
        to add. Without a place such an extent is made all the same, unless the class says `fail`.

        Raises:
            Unavailable: the class wants a twin, and there is no place for one. `twin` is in the details.
            Fenced: the session is over, or the volume takes no new extents.
            Conflict: the volume is not in the class's primary pool.
            Overloaded: the volume has too many open extents.
        """
        view = self._core.view
        await self._core.wait_for(
            lambda view: request.class_id in view.classes and request.volume in view.volumes_by_id, FACT_TIMEOUT_S
        )
        extent_class = view.classes[request.class_id].row
        pools = [view.pools_by_id[pool].name for pool in (extent_class.primary_pool, *extent_class.copy_pools)]
        if len(view.open_by_volume[request.volume]) >= OPEN_HARD_MAX:
            raise Overloaded(f"volume {request.volume} has {OPEN_HARD_MAX} open extents: seal some")
        volume = view.volumes_by_id[request.volume]
        guards = [session_guard(request.node_id, request.epoch)]
        for _ in range(ROUNDS_MAX):
            self._check_volume(request, volume, extent_class.primary_pool)
            twin = choose_twin(extent_class, volume.row) if extent_class.ack == "copy" else None
            if twin is None and extent_class.ack == "copy" and extent_class.on_copy_failure == "fail":
                raise no_twin(view, extent_class)
            extent = await self._next_id()
            opened = await self._put_open(extent, request, volume, twin, guards)
            if isinstance(opened, int):
                described = ExtentClass(
                    request.class_id, pools[0], pools[1:], extent_class.ack, extent_class.on_copy_failure
                )
                return OpenExtentReply(extent, 1, opened, described, self._target(twin))
            volume = opened
        raise Overloaded(f"volume {request.volume} changes too fast: repeat")

    def _target(self, twin: Versioned[VolumeRow] | None) -> TwinTarget | None:
        """The twin as its writer is told of it."""
        if twin is None:
            return None
        view = self._core.view
        node = view.nodes_by_id[twin.row.node]
        session = view.sessions.get(node.row.id)
        url = node.row.url if session is None else session.row.url
        return TwinTarget(node.row.id, node.name, url, twin.row.id, twin.name, twins.FIRST_GENERATION, "")

    async def _put_open(
        self,
        extent: int,
        request: OpenExtentRequest,
        volume: Versioned[VolumeRow],
        twin: Versioned[VolumeRow] | None,
        guards: list[Guard],
    ) -> int | Versioned[VolumeRow]:
        """The revision of the new rows, or the volume's row as it is now when it, or the twin's, has changed."""
        now_ms = self._core.now_ms()
        row, opened = locations.opened(request.class_id, request.node_id, request.volume, request.epoch, now_ms)
        if twin is not None:
            row = twins.added(row, twin.row.id, twin.row.node, now_ms)
            opened.twin = row.twin
        volume_key = keys.named(keys.VOLUME, volume.name)
        extent_key, open_key = keys.extent(extent), keys.open_extent(extent)
        compares = [guard.compare for guard in guards]
        compares += [mod_equals(volume_key, volume.mod_revision), mod_equals(extent_key, 0), mod_equals(open_key, 0)]
        if twin is not None:
            compares.append(mod_equals(keys.named(keys.VOLUME, twin.name), twin.mod_revision))
        reads = [*(get(guard.compare.key) for guard in guards), get(volume_key), get(open_key)]
        ops = [put(extent_key, rows.encode(row)), put(open_key, rows.encode(opened))]
        try:
            answer = await self._core.etcd.txn(compares, ops, reads)
            revision = answer.revision if answer.succeeded else 0
        except OutcomeUnknown:
            answer = await self._core.etcd.txn([], reads)
            revision = answer.responses[-1][0].mod_revision if answer.responses[-1] else 0
        if revision:
            self.rows.remember(extent, Opened(opened, revision))
            return revision
        check_guards(guards, answer.responses[: len(guards)])
        if not answer.responses[-2]:
            raise NotFound(f"there is no volume {volume.name}")
        kv = answer.responses[-2][0]
        if twin is not None and kv.mod_revision == volume.mod_revision:
            await self._core.caught_up(answer.revision, FACT_TIMEOUT_S)  # it is the twin's volume that has changed
        return Versioned(rows.decode(kv.value, VolumeRow), kv.mod_revision, kv.create_revision, volume.name)

    def _check_volume(self, request: OpenExtentRequest, volume: Versioned[VolumeRow], primary_pool: int) -> None:
        row = volume.row
        if row.node != request.node_id:
            raise Forbidden(f"volume {volume.name} is not on node {request.node_id}")
        if row.access != "readwrite":
            raise Fenced(f"volume {volume.name} is {row.access}: take another write lease")
        if row.intent:
            raise Fenced(f"volume {volume.name} is being emptied: take another write lease")
        if row.pool != primary_pool:
            raise Conflict(f"volume {volume.name} is not in the primary pool of class {request.class_id}")

    async def _next_id(self) -> int:
        async with self._ids_lock:
            following = next(self._ids, None)
            if following is None:
                self._ids = iter(await take_ids(self._core.etcd, "extent", ID_BLOCK))
                following = next(self._ids)
            return following

    async def seal(
        self,
        extent: int,
        *,
        by_epoch: tuple[int, int] | None = None,
        leader: LeaderGuard | None = None,
        fencing: bool = True,
    ) -> SealReply:
        """End an extent at its committed length. Safe to repeat: a sealed one is answered as it is.

        Raises:
            Fenced, NotLeader: the caller's session or term is over.
            Forbidden: the extent has another writer.
            Conflict: the leader fences, but the writer's session lives.
        """
        guards: list[Guard] = []
        if by_epoch is not None:
            guards.append(session_guard(*by_epoch))
        if leader is not None:
            guards.append(leader_guard(leader))
            if fencing:
                guards += await self._writer_gone(extent)
        if not guards:
            raise Invalid("a seal needs the writer's session or the leader's term")
        now_ms = self._core.now_ms()

        def decide(seen: Seen) -> Change[SealReply]:
            if by_epoch is not None and seen.row.writer_node != by_epoch[0]:
                raise Forbidden(f"extent {extent} was not written by node {by_epoch[0]}")
            if seen.open is None:
                return Change(_seal_reply(extent, seen.row))
            row = locations.sealed(seen.row, seen.open, now_ms)
            return Change(_seal_reply(extent, row), row, seals=True)

        return await self.rows.change(extent, decide, guards)

    async def _writer_gone(self, extent: int) -> list[Guard]:
        """A guard that the writer's session, as it is now, is not the one that the extent was opened under."""
        kv = await self._core.etcd.get(keys.extent(extent))
        if kv is None:
            raise NotFound(f"there is no extent {extent}")
        row = rows.decode(kv.value, ExtentRow)
        session_key = keys.session(row.writer_node)
        session = await self._core.etcd.get(session_key)
        revision = session.mod_revision if session is not None else 0
        error = Conflict(f"the session of extent {extent}'s writer changed: look again")
        if revision == row.epoch and row.open:
            raise Conflict(f"the session of extent {extent}'s writer lives: its node seals")
        return [Guard(mod_equals(session_key, revision), error)]

    async def own_extents(self, request: OwnExtentsRequest) -> OwnExtentsReply:
        """One page of the extents of a volume by id, as the view knows them at `revision`.

        The view knows the caller's registration first, and so every extent that was opened before it.

        Raises:
            Fenced: the session is over.
        """
        await self._core.wait_for(
            lambda view: _epoch(view.sessions.get(request.node_id)) >= request.epoch, FACT_TIMEOUT_S
        )
        view = self._core.view
        if _epoch(view.sessions.get(request.node_id)) != request.epoch:
            raise Fenced(f"the session {request.epoch} of node {request.node_id} is over: register again")
        volume = view.volumes_by_id.get(request.volume)
        if volume is None or volume.row.node != request.node_id:
            raise Forbidden(f"volume {request.volume} is not on node {request.node_id}")
        revision = view.revision
        above = (extent for extent in view.extents_by_volume[request.volume] if extent > request.after)
        page = heapq.nsmallest(PAGE + 1, above)
        listed = {extent: view.extents[extent].row for extent in page[:PAGE]}
        written = [each for each in listed if each in view.open_by_volume[request.volume]]
        committed = await self.rows.read_open(written)
        found = []
        for extent, row in listed.items():
            current = row
            if extent in written and extent not in committed:
                # It was sealed since: the row that was listed is old.
                kv = await self._core.etcd.get(keys.extent(extent))
                current = rows.decode(kv.value, ExtentRow) if kv is not None else row
            found += _own(extent, current, request.volume, committed.get(extent))
        return OwnExtentsReply(found, page[PAGE - 1] if len(page) > PAGE else -1, revision)

    async def read_open(self, extents: Sequence[int]) -> dict[int, Opened]:
        """See `ExtentRows.read_open`."""
        return await self.rows.read_open(extents)


def _epoch(session: Versioned[rows.SessionRow] | None) -> int:
    return session.mod_revision if session is not None else -1


def _own(extent: int, row: ExtentRow, volume: int, opened: Opened | None) -> list[OwnExtent]:
    found = []
    for location in row.locations:
        if location.volume != volume:
            continue
        writes = row.open and location is locations.writer(row)
        length = location.length
        if opened is not None and (writes or twins.is_live(row, location)):
            length = opened.row.length if writes or opened.row.group >= 0 else 0
        found.append(OwnExtent(extent, location.generation, location.state, length, not row.open, writes))
    return found


def _seal_reply(extent: int, row: ExtentRow) -> SealReply:
    own = locations.writer(row)
    return SealReply(extent, own.generation if own is not None else 0, row.length, row.refusals, row.group)
