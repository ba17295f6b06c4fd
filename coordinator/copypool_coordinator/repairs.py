"""The story of damage and repair in the event log: found, being repaired, repaired, each naming the one before.

The log is its own memory: a new leader looks there before it tells a story, so that it goes on with it instead of
telling it twice. Nothing depends on these events but people.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from copypool.protocol.errors import CopypoolError
from copypool_coordinator.chronicle import Chronicle, Entry
from copypool_coordinator.metrics import Metrics
from copypool_coordinator.policy import LocationKey
from copypool_coordinator.rows import EventRow, Location

#: Reads the log from a time on: (since ms) -> (id, event), oldest first, bounded.
Recall = Callable[[int], Awaitable[Sequence[tuple[str, EventRow]]]]

#: A read that failed this long before a location was marked may be what led to the mark.
_BEFORE_MS = 300_000
_OPEN_MAX = 10_000
READ_FALLBACK, DAMAGED, STARTED, REPAIRED = "ReadFallback", "LocationDamaged", "RepairStarted", "LocationRepaired"


class Repairs:
    """Stories under way, of one term. Bounded: beyond `_OPEN_MAX` the oldest are told without their causes."""

    def __init__(self, chronicle: Chronicle, recall: Recall, metrics: Metrics) -> None:
        self._metrics = metrics
        self._chronicle = chronicle
        self._recall = recall
        self._damaged: dict[LocationKey, Entry | str] = {}
        self._started: dict[LocationKey, Entry] = {}

    async def noticed(self, key: LocationKey, location: Location, volume: str, node: str) -> None:
        """A damaged or missing location is in its row. Told once."""
        if key in self._damaged:
            return
        earlier = await self._earlier(location.changed_ms)
        cause = ""
        for event_id, event in earlier:
            if event.extent != key.extent or event.volume != volume:
                continue
            if event.kind == DAMAGED and event.unix_ms >= location.changed_ms:
                self._damaged[key] = event_id
                return
            if event.kind == READ_FALLBACK:
                cause = event_id
        _bound(self._damaged)
        self._damaged[key] = self._chronicle.record(
            DAMAGED,
            f"the location of extent {key.extent} on {volume} of {node} (generation {key.generation}) is "
            f"{location.state}: {location.evidence or 'no evidence given'}",
            extent=key.extent,
            volume=volume,
            node=node,
            cause=cause,
        )

    async def _earlier(self, changed_ms: int) -> Sequence[tuple[str, EventRow]]:
        # What this process has not written yet must be in the log before it is read.
        try:
            await self._chronicle.flush()
            return await self._recall(changed_ms - _BEFORE_MS)
        except CopypoolError:
            return []

    def started(self, key: LocationKey, volume: str, why: str, cause: LocationKey | None) -> None:
        """A replacement was reserved."""
        self._metrics.repairs_started += 1
        _bound(self._started)
        self._started[key] = self._chronicle.record(
            STARTED,
            f"extent {key.extent} gets a new location on {volume}: {why}",
            extent=key.extent,
            volume=volume,
            cause=self._damaged.get(cause) if cause is not None else None,
        )

    def look(self, key: LocationKey, location: Location | None, length: int, volume: str) -> None:
        """Tell the end of a repair once its location is good and `length` long; forget it when it is gone."""
        started = self._started.get(key)
        if started is None:
            return
        if location is None:
            del self._started[key]
        elif location.state == "good" and location.length >= length:
            del self._started[key]
            self._metrics.repaired += 1
            self._metrics.repaired_bytes += location.length
            self._chronicle.record(
                REPAIRED,
                f"extent {key.extent} is whole on {volume} again: {location.length} bytes",
                extent=key.extent,
                volume=volume,
                cause=started,
            )


def _bound(table: dict[LocationKey, Entry] | dict[LocationKey, Entry | str]) -> None:
    if len(table) >= _OPEN_MAX:
        del table[next(iter(table))]
