"""Performs what controllers ask for: one catalog transaction or one command to a node per action. No policy here.

Every transaction carries the leader's guard and every command its term. An action counts as performed once the view
shows it, so that the next plan does not ask for it again.
"""

from __future__ import annotations

from collections.abc import Callable

from copypool.protocol.api import Empty
from copypool.protocol.errors import CopypoolError, RetryLater
from copypool.protocol.internal import (
    DropCommand,
    DropReply,
    PullCommand,
    PullSource,
    SealCommand,
    SealReply,
    VerifyCommand,
)
from copypool_coordinator.capabilities import Mint
from copypool_coordinator.catalog import Catalog, LeaderGuard
from copypool_coordinator.chronicle import Chronicle
from copypool_coordinator.controllers.actions import (
    Action,
    BeginDrop,
    CallOff,
    Decide,
    FinishDrop,
    Forget,
    MarkAway,
    MarkReturned,
    Pull,
    Reserve,
    SealExtent,
    SetReadonly,
    TrimProcesses,
    Verify,
    WriteProcess,
)
from copypool_coordinator.controllers.filling import sessions_of
from copypool_coordinator.locations import find
from copypool_coordinator.node_link import NodeLink
from copypool_coordinator.policy import LocationKey, Memory, Policy, Told
from copypool_coordinator.protection import wanted_total
from copypool_coordinator.repairs import Repairs
from copypool_coordinator.rows import Location
from copypool_coordinator.view import ClusterView

#: The view shows a write of this process within milliseconds; after this the plan is made again without it.
_SHOWN_S = 5.0


class Performer:
    """Turns actions of one term into transactions and commands."""

    def __init__(
        self,
        catalog: Catalog,
        link: NodeLink,
        mint: Mint,
        chronicle: Chronicle,
        repairs: Repairs,
        memory: Memory,
        policy: Policy,
        guard: LeaderGuard,
    ) -> None:
        self._catalog = catalog
        self._view = catalog.view
        self._link = link
        self._mint = mint
        self._chronicle = chronicle
        self._repairs = repairs
        self._memory = memory
        self._policy = policy
        self._guard = guard

    async def perform(self, action: Action) -> None:
        """Do one step. Raises a `CopypoolError` when it did not work; doing it again later is always safe."""
        match action:
            case MarkAway(node):
                await self._mark_node(node, self._catalog.now_ms())
            case MarkReturned(node):
                await self._mark_node(node, 0)
            case SetReadonly(volume, why):
                await self._set_readonly(volume, why)
            case SealExtent():
                await self._seal(action)
            case Reserve():
                await self._reserve(action)
            case Pull():
                await self._pull(action)
            case Verify():
                await self._verify(action)
            case Decide(location):
                self._memory.note_decided(location, self._catalog.now_ms())
            case BeginDrop():
                await self._begin_drop(action)
            case CallOff():
                await self._call_off(action)
            case FinishDrop():
                await self._finish_drop(action)
            case Forget():
                await self._forget(action)
            case WriteProcess():
                await self._write_process(action)
            case TrimProcesses(processes):
                await self._catalog.jobs.trim(processes, self._guard)

    async def _shown(self, predicate: Callable[[ClusterView], bool]) -> None:
        await self._catalog.wait_for(predicate, _SHOWN_S)

    def _volume(self, volume: int) -> str:
        entry = self._view.volumes_by_id.get(volume)
        return str(volume) if entry is None else entry.name

    def _node(self, node: int) -> str:
        entry = self._view.nodes_by_id.get(node)
        return str(node) if entry is None else entry.name

    def _location(self, key: LocationKey) -> Location | None:
        entry = self._view.extents.get(key.extent)
        return None if entry is None else find(entry.row, key.volume, key.generation)

    # -- nodes and extents -------------------------------------------------------------------------
    async def _mark_node(self, node: int, since_ms: int) -> None:
        await self._catalog.set_node_away(node, since_ms, self._guard)
        name = self._node(node)
        if since_ms:
            self._chronicle.record("NodeAway", f"{name} has no session any more", node=name)
        else:
            self._chronicle.record("NodeReturned", f"{name} has a session again", node=name)
        await self._shown(
            lambda view: (
                node not in view.nodes_by_id or bool(view.nodes_by_id[node].row.away_since_ms) == bool(since_ms)
            )
        )

    async def _set_readonly(self, volume: int, why: str) -> None:
        name = self._volume(volume)
        row = await self._catalog.policies.set_volume_access(name, "readonly", why, self._guard)
        if row.access_reason == why:
            node = self._node(row.node)
            self._chronicle.record("VolumeReadonly", f"{name} on {node} refused a write: {why}", volume=name, node=node)

    async def _seal(self, action: SealExtent) -> None:
        extent = action.extent
        reply = await self._catalog.seal(extent, leader=self._guard, fencing=action.fencing)
        await self._shown(lambda view: extent not in view.extents or not view.extents[extent].row.open)
        entry = self._view.extents.get(extent)
        if entry is None:
            return
        row = entry.row
        volume, node = self._volume(row.writer_volume), self._node(row.writer_node)
        self._chronicle.record(
            "ExtentSealed",
            f"extent {extent}, written to {volume} on {node}, is sealed at {reply.length} bytes: {action.why}",
            extent=extent,
            volume=volume,
            node=node,
        )
        await self._tell_sealed(row.writer_node, row.writer_volume, reply)

    async def _tell_sealed(self, node: int, volume: int, reply: SealReply) -> None:
        """Tell the writer if it can be told; one that starts anew asks by itself, and nothing depends on it."""
        if not self._view.volume_reachable(volume):
            return
        command = SealCommand(
            self._guard.term, reply.extent, volume, reply.generation, reply.length, reply.group, reply.refusals
        )
        try:
            await self._link.send(node, "seal", command, Empty)
        except RetryLater:
            return

    # -- copies ------------------------------------------------------------------------------------
    async def _reserve(self, action: Reserve) -> None:
        generation = await self._catalog.reserve_location(action.extent, action.volume, self._guard)
        key = LocationKey(action.extent, action.volume, generation)
        if action.repair:
            self._repairs.started(key, self._volume(action.volume), action.why, action.cause)
        await self._shown(lambda view: self._location(key) is not None or action.extent not in view.extents)

    async def _pull(self, action: Pull) -> None:
        key = action.location
        entry = self._view.extents.get(key.extent)
        if entry is None:
            return
        row, now_ms = entry.row, self._catalog.now_ms()
        sources = [
            PullSource(
                source.node,
                self._link.url_of(source.node),
                source.length,
                self._mint.pull(source.node, action.node, key.extent, now_ms),
            )
            for source in action.sources
        ]
        command = PullCommand(
            term=self._guard.term,
            extent=key.extent,
            volume=key.volume,
            generation=key.generation,
            up_to=action.up_to,
            sealed=action.sealed,
            refusals=row.refusals if action.sealed else [],
            digest=row.digest if action.sealed else b"",
            sources=sources,
        )
        told = Told(now_ms, action.epoch, action.up_to, action.sealed, sessions_of(self._view, action.sources))
        location = find(row, key.volume, key.generation)
        if location is not None:
            self._memory.note_try(key, location.length, self._policy, now_ms)
        await self._link.send(action.node, "pull", command, Empty)
        self._memory.note_pull(key, told)

    # -- verifying and dropping --------------------------------------------------------------------
    async def _verify(self, action: Verify) -> None:
        key, now_ms = action.location, self._catalog.now_ms()
        location = self._location(key)
        command = VerifyCommand(self._guard.term, key.extent, key.volume, key.generation, action.length, action.sealed)
        await self._link.send(action.node, "verify", command, Empty)
        self._memory.note_verify(key, Told(now_ms, action.epoch, action.length, action.sealed))
        if location is not None and location.verified_ms and action.routine:
            self._memory.scrub_from_ms[key.volume] = now_ms + action.pause_ms

    async def _begin_drop(self, action: BeginDrop) -> None:
        key = action.location
        extent_class = self._view.classes[self._view.extents[key.extent].row.class_id].row
        began = await self._catalog.begin_drop(
            key.extent,
            key.volume,
            key.generation,
            self._guard,
            wanted=action.wanted or wanted_total(extent_class),
            verified_since_ms=self._memory.decided.get(key, self._catalog.now_ms()),
            forced=action.forced,
        )
        if not began:
            return
        if action.forced:
            volume = self._volume(key.volume)
            self._chronicle.record(
                "LocationForcedOut",
                f"the location of extent {key.extent} on {volume} (generation {key.generation}), perhaps the last one, "
                "goes by an operator's word",
                extent=key.extent,
                volume=volume,
            )
        await self._shown(lambda view: (each := self._location(key)) is None or each.state == "dropping")

    async def _call_off(self, action: CallOff) -> None:
        key = action.location
        if not await self._catalog.call_off_drop(key.extent, key.volume, key.generation, self._guard):
            return
        volume = self._volume(key.volume)
        self._chronicle.record(
            "DropCalledOff",
            f"the location of extent {key.extent} on {volume} (generation {key.generation}) stays: {action.why}",
            extent=key.extent,
            volume=volume,
        )
        await self._shown(lambda view: (each := self._location(key)) is None or each.state != "dropping")

    async def _confirmed(self, action: FinishDrop | Forget) -> bool:
        """Whether it may still go. What was refused is planned anew, from a view that shows why."""
        key = action.location
        return await self._catalog.confirm_drop(
            key.extent, key.volume, key.generation, self._guard, wanted=action.wanted, forced=action.forced
        )

    async def _finish_drop(self, action: FinishDrop) -> None:
        key = action.location
        if not await self._confirmed(action):
            return
        command = DropCommand(self._guard.term, key.extent, key.volume, key.generation)
        reply = await self._link.send(action.node, "drop", command, DropReply)
        if not reply.gone:
            raise CopypoolError(f"node {self._node(action.node)} did not delete extent {key.extent}")
        await self._catalog.finish_drop(key.extent, key.volume, key.generation, self._guard)
        volume, node = self._volume(key.volume), self._node(action.node)
        self._chronicle.record(
            "LocationDropped",
            f"the location of extent {key.extent} on {volume} of {node} (generation {key.generation}) was not needed "
            "any more and is deleted",
            extent=key.extent,
            volume=volume,
            node=node,
        )
        await self._shown(lambda view: self._location(key) is None)

    async def _forget(self, action: Forget) -> None:
        key = action.location
        if not await self._confirmed(action):
            return
        await self._catalog.finish_drop(key.extent, key.volume, key.generation, self._guard)
        await self._shown(lambda view: self._location(key) is None)

    # -- processes ---------------------------------------------------------------------------------
    async def _write_process(self, action: WriteProcess) -> None:
        row = action.row
        written = await self._catalog.jobs.write(
            action.process, action.mod_revision, row, self._guard, action.give_back, action.remove_volume
        )
        if not written:
            return  # the row changed since: planned again from what it is now
        if row.state != "running":
            kind = {"done": "ProcessDone", "cancelled": "ProcessCancelled"}.get(row.state, "ProcessIncomplete")
            self._chronicle.record(kind, f"{action.process}: {row.verb} of {row.what}: {row.outcome}")
        await self._shown(
            lambda view: (
                (entry := view.processes.get(action.process)) is None or entry.mod_revision > action.mod_revision
            )
        )
