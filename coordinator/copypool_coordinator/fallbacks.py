"""What becomes of clients' reports that a read failed somewhere: an event, and an order to verify. Marks nothing.

Runs on every coordinator, since reports go to any. An order to read a location back changes nothing, so it needs no
leader; it carries the current term, and the event's id, so that a mark that follows from it names its cause.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from copypool.protocol.api import Empty
from copypool.protocol.errors import CopypoolError
from copypool.protocol.internal import VerifyCommand
from copypool_coordinator.catalog import Catalog
from copypool_coordinator.chronicle import Chronicle, Entry
from copypool_coordinator.node_link import NodeLink
from copypool_coordinator.policy import LocationKey
from copypool_coordinator.protection import is_appended
from copypool_coordinator.repairs import READ_FALLBACK
from copypool_coordinator.reports import Fault, Reports

log = logging.getLogger(__name__)

_EVERY_S = 1.0
#: Locations ordered to be verified in one round, and how long one stays ordered.
_ORDERS_MAX = 64
_AGAIN_S = 30.0
#: Reasons that say something of the bytes; the others say something of the node or the way.
_OF_BYTES = ("checksum", "error")


class Fallbacks:
    """Turns sums of reports into events and verify commands, once a second."""

    def __init__(self, catalog: Catalog, link: NodeLink, chronicle: Chronicle, reports: Reports) -> None:
        self._catalog = catalog
        self._view = catalog.view
        self._link = link
        self._chronicle = chronicle
        self._reports = reports
        self._ordered: dict[LocationKey, float] = {}

    async def run(self) -> None:
        """Until cancelled. What was reported meanwhile and not dealt with is lost: reports are hints."""
        while True:
            await asyncio.sleep(_EVERY_S)
            faults = self._reports.take()
            if not faults:
                continue
            try:
                await self._deal_with(faults)
            except CopypoolError as error:
                log.info("reports of failed reads were not dealt with: %s", error.message)

    async def _deal_with(self, faults: Mapping[Fault, int]) -> None:
        entries = self._record(faults)
        await self._chronicle.flush()
        now_s = asyncio.get_running_loop().time()
        self._ordered = {key: at_s for key, at_s in self._ordered.items() if now_s - at_s < _AGAIN_S}
        orders = 0
        for fault in faults:
            if fault.reason not in _OF_BYTES or orders >= _ORDERS_MAX:
                continue
            orders += await self._order(fault, entries[fault.node_id, fault.reason], now_s)

    def _record(self, faults: Mapping[Fault, int]) -> dict[tuple[int, str], Entry]:
        """One event per node and reason; it names the extent of the first fault, and how many there are."""
        sums: dict[tuple[int, str], tuple[Fault, int, int]] = {}
        for fault, count in faults.items():
            first, extents, total = sums.get((fault.node_id, fault.reason), (fault, 0, 0))
            sums[fault.node_id, fault.reason] = (first, extents + 1, total + count)
        entries = {}
        for key, (first, extents, total) in sums.items():
            node = self._view.nodes_by_id.get(first.node_id)
            more = f" (and {extents - 1} other places)" if extents > 1 else ""
            entries[key] = self._chronicle.record(
                READ_FALLBACK,
                f"{total} reads went on at another location: {first.reason} at extent {first.extent} on "
                f"{first.volume}{more}",
                extent=first.extent,
                volume=first.volume,
                node=node.name if node is not None else str(first.node_id),
            )
        return entries

    async def _order(self, fault: Fault, entry: Entry, now_s: float) -> int:
        """Tell the node to read the location back, once in a while; 1 when it was told."""
        volume = self._view.volumes.get(fault.volume)
        extent = self._view.extents.get(fault.extent)
        if volume is None or extent is None or volume.row.node != fault.node_id or self._view.leader is None:
            return 0
        told = 0
        for location in extent.row.locations:
            key = LocationKey(fault.extent, location.volume, location.generation)
            if location.volume != volume.row.id or location.state not in ("good", "copying") or key in self._ordered:
                continue
            row = extent.row
            sealed = not row.open and location.length >= row.length
            length = row.length if sealed else location.length
            if is_appended(row, location):
                # Its length stands in the commit row alone.
                opened = (await self._catalog.read_open([fault.extent])).get(fault.extent)
                if opened is None:
                    continue  # sealed a moment ago; the next report meets a row that says how long it is
                length = opened.row.length
            command = VerifyCommand(
                self._view.leader.create_revision,
                fault.extent,
                key.volume,
                key.generation,
                length,
                sealed,
                entry.id,
            )
            try:
                await self._link.send(fault.node_id, "verify", command, Empty)
            except CopypoolError as error:
                log.info(
                    "node %d was not told to verify extent %d: %s",
                    fault.node_id,
                    fault.extent,
                    error.message,
                    extra={"extent": fault.extent, "node": fault.node_id},
                )
                continue
            self._ordered[key] = now_s
            told = 1
        return told
