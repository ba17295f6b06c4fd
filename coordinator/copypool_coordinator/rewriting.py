"""Gives older extents the present policy of namespaces for which a process asks for it. The shell around `reclassing`.

Level-triggered, one duty of a term: a round walks the extents of past classes, a slice at a time, seals what an old
lease may still write to, and changes the class of what may change. How far it is, when it has ended and what was left
out is counted as for every process (`remaining`).
"""

from __future__ import annotations

import asyncio
import logging

from copypool.protocol.errors import CopypoolError, NotLeader
from copypool_coordinator import reclassing
from copypool_coordinator.catalog import Catalog, LeaderGuard
from copypool_coordinator.controllers.actions import SealExtent
from copypool_coordinator.performing import Performer
from copypool_coordinator.rows import NamespaceRow
from copypool_coordinator.view import Versioned

log = logging.getLogger(__name__)

PAUSE_S = 2.0
_SLICE = 256


class Rewriting:
    """The duty of one term."""

    def __init__(self, catalog: Catalog, performer: Performer, guard: LeaderGuard) -> None:
        self._catalog = catalog
        self._view = catalog.view
        self._performer = performer
        self._guard = guard

    async def run(self) -> None:
        """Until cancelled, or until the term is over."""
        while True:
            await asyncio.sleep(PAUSE_S)
            for entry in self._asked():
                try:
                    await self.round(entry)
                except NotLeader:
                    raise
                except CopypoolError as error:
                    log.warning("rewriting namespace %s waits: %s", entry.name, error.message)

    def _asked(self) -> list[Versioned[NamespaceRow]]:
        rows = (entry.row for entry in self._view.processes.values())
        asked = {row.namespace for row in rows if row.verb == "rewrite" and row.state == "running"}
        return [self._view.namespaces_by_id[each] for each in sorted(asked & self._view.namespaces_by_id.keys())]

    async def round(self, entry: Versioned[NamespaceRow]) -> None:
        """One walk over the extents of the namespace's past classes."""
        namespace = entry.row
        walked = 0
        for class_id in namespace.past_classes:
            for extent in list(self._view.extents_by_class.get(class_id, ())):
                walked += 1
                if walked % _SLICE == 0:
                    await asyncio.sleep(0)
                known = self._view.extents.get(extent)
                if known is None or known.row.class_id != class_id:
                    continue
                if known.row.open:
                    if reclassing.may_be_written_by_old_leases(namespace, known.row):
                        await self._performer.perform(SealExtent(extent, False, "it is written under an older policy"))
                elif reclassing.held_bytes(known.row, namespace.id) is None:
                    continue
                elif reclassing.judge(self._view, known.row, namespace.class_id).possible:
                    await self._catalog.policies.set_class(extent, class_id, namespace.class_id, self._guard)
