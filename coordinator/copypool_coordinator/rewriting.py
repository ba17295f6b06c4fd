"""Gives older extents the present policy of namespaces that ask for it. The shell around `reclassing`.

Level-triggered, one duty of a term: a round walks the extents of past classes, a slice at a time, seals what an old
lease may still write to, and changes the class of what may change. A round that finds nothing more to do ends the
rewriting, and says in the event log what had to be left.
"""

from __future__ import annotations

import asyncio
import logging

from copypool.protocol.capability import WRITE_LIFE_MS
from copypool.protocol.errors import CopypoolError, NotLeader
from copypool_coordinator import reclassing
from copypool_coordinator.catalog import Catalog, LeaderGuard
from copypool_coordinator.chronicle import Chronicle
from copypool_coordinator.controllers.actions import SealExtent
from copypool_coordinator.performing import Performer
from copypool_coordinator.rows import NamespaceRow
from copypool_coordinator.view import Versioned

log = logging.getLogger(__name__)

PAUSE_S = 2.0
_SLICE = 256


class Rewriting:
    """The duty of one term."""

    def __init__(self, catalog: Catalog, performer: Performer, chronicle: Chronicle, guard: LeaderGuard) -> None:
        self._catalog = catalog
        self._view = catalog.view
        self._performer = performer
        self._chronicle = chronicle
        self._guard = guard

    async def run(self) -> None:
        """Until cancelled, or until the term is over."""
        while True:
            await asyncio.sleep(PAUSE_S)
            for entry in [each for each in self._view.namespaces.values() if each.row.rewrite]:
                try:
                    await self.round(entry)
                except NotLeader:
                    raise
                except CopypoolError as error:
                    log.warning("rewriting namespace %s waits: %s", entry.name, error.message)

    async def round(self, entry: Versioned[NamespaceRow]) -> None:
        """One walk over the extents of the namespace's past classes."""
        namespace = entry.row
        done = left = waiting = walked = 0
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
                        waiting += 1
                        await self._performer.perform(SealExtent(extent, False, "it is written under an older policy"))
                elif reclassing.held_bytes(known.row, namespace.id) is None:
                    continue
                elif reclassing.judge(self._view, known.row, namespace.class_id).possible:
                    done += await self._catalog.policies.set_class(extent, class_id, namespace.class_id, self._guard)
                else:
                    left += 1
        if done or waiting or self._catalog.now_ms() < namespace.class_since_ms + WRITE_LIFE_MS:
            return
        await self._catalog.policies.set_rewrite(entry.name, False, self._guard)
        if left:
            message = f"namespace {entry.name}: {left} extents keep an older policy: see `namespace show`"
            self._chronicle.record("RewriteIncomplete", message)
        else:
            self._chronicle.record("RewriteEnded", f"namespace {entry.name}: every extent has the present policy")
