"""Clients' reports of reads that failed somewhere, summed until the leader's controllers take them. Bounded; no I/O.

A report never marks anything: it makes a node verify, and only that sets a mark.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from copypool.protocol.api import ReadReport

#: Different (extent, volume, node, reason) held at a time; what comes beyond is counted and dropped.
HELD_MAX = 10_000
_COUNT_MAX = 1_000_000


class Fault(NamedTuple):
    """What failed where."""

    extent: int
    volume: str
    node_id: int
    reason: str


class Reports:
    """Sums of reports of this coordinator."""

    def __init__(self) -> None:
        self._held: dict[Fault, int] = {}
        self.dropped = 0

    def add(self, reports: Iterable[ReadReport]) -> None:
        """Take reports in."""
        for report in reports:
            fault = Fault(report.extent, report.volume, report.node_id, report.reason)
            if fault not in self._held and len(self._held) >= HELD_MAX:
                self.dropped += 1
                continue
            self._held[fault] = min(_COUNT_MAX, self._held.get(fault, 0) + max(1, report.count))

    def take(self) -> dict[Fault, int]:
        """All sums since the last call; they are the caller's now."""
        taken, self._held = self._held, {}
        return taken
