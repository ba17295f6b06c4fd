"""Tells the coordinators which sources failed a read, summed per second; never in the way of a read.

A report only makes the node verify what it holds; it marks nothing.
"""

from __future__ import annotations

import asyncio

from copypool.coordinators import Coordinators
from copypool.failover import Reason
from copypool.protocol.api import Empty, ReadReport, ReportRequest, Source
from copypool.protocol.errors import CopypoolError

REPORTS_MAX = 256  #: different (extent, volume, reason) in one report; more are dropped until it is sent
PERIOD_S = 1.0
_SEND_DEADLINE_S = 1.0


class ReadReports:
    """Sums failures and sends them while there are any."""

    def __init__(self, coordinators: Coordinators) -> None:
        self._coordinators = coordinators
        self._counts: dict[tuple[int, str, int, Reason], int] = {}
        self._sender: asyncio.Task[None] | None = None
        self.failovers = 0  #: all failures noted, for tests and statistics

    def note(self, extent: int, source: Source, reason: Reason) -> None:
        """Remember one failure of a source; returns at once. An expired capability is nobody's fault."""
        self.failovers += 1
        if reason == "expired":
            return
        key = (extent, source.volume, source.node_id, reason)
        if key in self._counts or len(self._counts) < REPORTS_MAX:
            self._counts[key] = self._counts.get(key, 0) + 1
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send_each_period(), name="copypool read reports")

    async def close(self) -> None:
        """Send what is left, for at most a second, and stop."""
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.gather(self._sender, return_exceptions=True)
            await self._send()

    async def _send_each_period(self) -> None:
        while self._counts:
            await asyncio.sleep(PERIOD_S)
            await self._send()

    async def _send(self) -> None:
        if not self._counts:
            return
        counts, self._counts = self._counts, {}
        reports = [
            ReadReport(extent, volume, node_id, "error" if reason == "expired" else reason, count)
            for (extent, volume, node_id, reason), count in counts.items()
        ]
        try:
            await self._coordinators.call("report", ReportRequest(reports), Empty, deadline_s=_SEND_DEADLINE_S)
        except CopypoolError:
            # Reports are hints: the node's own scrub finds the damage as well, later.
            return
