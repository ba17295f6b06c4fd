"""What a coordinator does besides answering: candidacy, the leader's controllers, events, reports. Wires them up.

duties = Duties(...)
duties.overview            what /rpc/status and the lists answer
await duties.run()         until cancelled; resigns when it leads
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from copypool.cancellation import TaskGroup
from copypool.protocol.errors import CopypoolError
from copypool_coordinator.capabilities import Mint
from copypool_coordinator.catalog import Catalog, LeaderGuard
from copypool_coordinator.chronicle import Chronicle
from copypool_coordinator.configuring import ConfigurationKeeper
from copypool_coordinator.fallbacks import Fallbacks
from copypool_coordinator.heartbeats import Heartbeats
from copypool_coordinator.keeper import Keeper
from copypool_coordinator.leader import Leader
from copypool_coordinator.metrics import Metrics
from copypool_coordinator.node_link import NodeLink
from copypool_coordinator.offpolicy import OffPolicy
from copypool_coordinator.overview import Overview
from copypool_coordinator.performing import Performer
from copypool_coordinator.policy import Memory, Policy
from copypool_coordinator.repairs import Repairs
from copypool_coordinator.reports import Reports
from copypool_coordinator.rewriting import Rewriting
from copypool_coordinator.rows import EventRow, Location
from copypool_coordinator.runner import Runner
from copypool_coordinator.sampling import OpenSample

_LAST_FLUSH_S = 2.0
#: Events read back when a story of damage begins.
_RECALL_MAX = 1_000


class Duties:
    """One coordinator's background work."""

    def __init__(
        self,
        catalog: Catalog,
        link: NodeLink,
        mint: Mint,
        heartbeats: Heartbeats,
        reports: Reports,
        policy: Policy,
        metrics: Metrics,
        *,
        name: str,
        url: str,
    ) -> None:
        self._catalog = catalog
        self._link = link
        self._mint = mint
        self._heartbeats = heartbeats
        self._policy = policy
        self._metrics = metrics
        self._name = name
        self.sample = OpenSample(catalog)
        self.index = OffPolicy()
        self._chronicle = Chronicle(catalog.append_events, name, catalog.now_ms)
        catalog.on_twin_ended(self._twin_ended)
        self._fallbacks = Fallbacks(catalog, link, self._chronicle, reports)
        self.leader = Leader(catalog, name, url, self._lead)
        self.overview = Overview(catalog, name, heartbeats, self.leader, self.sample, self.index, policy)

    def _twin_ended(self, extent: int, twin: Location, why: str) -> None:
        view = self._catalog.view
        volume = view.volumes_by_id.get(twin.volume)
        node = None if volume is None else view.nodes_by_id.get(volume.row.node)
        self._chronicle.record(
            "TwinEnded",
            f"writes to this extent are acknowledged without its copy, which holds {twin.length} bytes and follows: "
            f"{why[:200] or 'its writer does not say why'}",
            extent=extent,
            volume="" if volume is None else volume.name,
            node="" if node is None else node.name,
        )

    async def run(self) -> None:
        """Until cancelled; then resign and write what is left of the events, bounded."""
        try:
            async with TaskGroup() as group:
                group.create_task(self.leader.run(), name="leader")
                group.create_task(self._chronicle.run(), name="events")
                group.create_task(self._fallbacks.run(), name="read reports")
        finally:
            with contextlib.suppress(CopypoolError, TimeoutError):
                async with asyncio.timeout(_LAST_FLUSH_S):
                    await self._chronicle.flush()

    async def _lead(self, guard: LeaderGuard) -> None:
        """One term: everything in it is made anew, so that nothing of an old term acts in a new one."""
        self._chronicle.record("LeaderElected", f"{self._name} leads, term {guard.term}")
        memory = Memory()
        repairs = Repairs(self._chronicle, self._recall, self._metrics)
        performer = Performer(
            self._catalog, self._link, self._mint, self._chronicle, repairs, memory, self._policy, guard
        )
        runner = Runner(
            self._catalog,
            self.leader,
            self._heartbeats,
            self.sample,
            self.index,
            self._chronicle,
            repairs,
            performer,
            memory,
            self._policy,
            self._metrics,
        )
        async with TaskGroup() as group:
            group.create_task(runner.run(), name="controllers")
            group.create_task(Keeper(self._catalog, guard).run(), name="keeper")
            rewriting = Rewriting(self._catalog, performer, guard)
            group.create_task(rewriting.run(), name="rewriting of policies")
            group.create_task(ConfigurationKeeper(self._catalog, self._link, guard).run(), name="configuration")

    async def _recall(self, since_ms: int) -> Sequence[tuple[str, EventRow]]:
        # Ids begin with their time as twelve hex digits, so this stands below all of that time and later.
        return await self._catalog.events(f"{max(0, since_ms):012x}", _RECALL_MAX)
