"""The catalog's housekeeping, by the leader: tombstones, abandoned uploads, events, dead counters, compaction.

Each duty is bounded per round, paced, repeatable, and nobody waits for it. etcd is compacted at a revision that is at
least ten minutes old and not the newest, after a clock row was written: some etcd versions go back in revision when
the newest compacted revision is a delete and the member crashes (B8).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from copypool.cancellation import TaskGroup
from copypool.protocol.errors import CopypoolError, NotLeader
from copypool_coordinator.catalog import Catalog, LeaderGuard
from copypool_coordinator.rows import FORMAT, EventRow

log = logging.getLogger(__name__)

TOMBSTONE_LIFE_MS = 10 * 60 * 1000
UPLOAD_LIFE_MS = 24 * 3600 * 1000
HISTORY_MS = 10 * 60 * 1000
EVENTS_KEPT = 100_000
_ROUNDS_MAX = 20  #: pages of one duty in one round; the rest waits for the next


class Keeper:
    """The housekeeping of one term."""

    def __init__(self, catalog: Catalog, guard: LeaderGuard) -> None:
        self._catalog = catalog
        self._guard = guard
        self._revisions: deque[tuple[int, int]] = deque()  #: (cluster ms, revision), a minute apart

    async def run(self) -> None:
        """Until cancelled or the term is over (`NotLeader`)."""
        async with TaskGroup() as group:
            group.create_task(self._every(10.0, self._fold), name="fold counters")
            group.create_task(self._every(1.0, self._end_maintenances), name="end maintenances")
            group.create_task(self._every(30.0, self._sweep_tombstones), name="sweep tombstones")
            group.create_task(self._every(60.0, self._compact), name="compact etcd")
            group.create_task(self._every(60.0, self._trim_events), name="trim events")
            group.create_task(self._every(600.0, self._sweep_uploads), name="sweep uploads")

    async def _every(self, pause_s: float, duty: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(pause_s)
            try:
                await duty()
            except NotLeader:
                raise
            except CopypoolError as error:
                log.warning("%s: %s", duty.__name__.strip("_").replace("_", " "), error.message)

    async def _pages(self, page: Callable[[], Awaitable[int]]) -> None:
        for _ in range(_ROUNDS_MAX):
            if await page() == 0:
                return

    async def _fold(self) -> None:
        await self._pages(lambda: self._catalog.fold_counters(self._guard))

    async def _end_maintenances(self) -> None:
        """A maintenance ends by the clock alone; that it has is told once."""
        nodes = await self._catalog.absences.end_maintenances(self._guard)
        now_ms = self._catalog.now_ms()
        if nodes:
            await self._catalog.append_events(
                [
                    EventRow(
                        FORMAT, now_ms, "MaintenanceEnded", "leader", f"its time is over: {name} is expected", node=name
                    )
                    for name in nodes
                ]
            )

    async def _sweep_tombstones(self) -> None:
        before_ms = self._catalog.now_ms() - TOMBSTONE_LIFE_MS
        await self._pages(lambda: self._catalog.sweep_tombstones(before_ms, self._guard))

    async def _sweep_uploads(self) -> None:
        before_ms = self._catalog.now_ms() - UPLOAD_LIFE_MS
        await self._pages(lambda: self._catalog.sweep_uploads(before_ms, self._guard))

    async def _trim_events(self) -> None:
        await self._catalog.trim_events(EVENTS_KEPT, self._guard)

    async def _compact(self) -> None:
        now_ms = self._catalog.now_ms()
        self._revisions.append((now_ms, await self._catalog.write_clock(self._guard)))
        revision = 0
        while self._revisions and now_ms - self._revisions[0][0] >= HISTORY_MS:
            revision = self._revisions.popleft()[1]
        if revision:
            await self._catalog.etcd.compact(revision)
