"""The event log: rows under time-ordered ids, appended in batches, bounded by count."""

from __future__ import annotations

import os
from collections.abc import Sequence

from copypool_coordinator import keys, rows
from copypool_coordinator.core import TXN_OPS_MAX, Core, LeaderGuard, check_guards, leader_guard
from copypool_coordinator.etcd import delete, get, put
from copypool_coordinator.rows import EventRow

PAGE_MAX = 1000


class EventLog:
    """The event log of one catalog."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._last = (0, 0)
        self._salt = os.urandom(3).hex()  #: keeps ids of coordinators apart

    def _next_id(self, unix_ms: int) -> str:
        """An id above all that this process gave out: milliseconds, number within them, process."""
        time_ms, number = self._last
        self._last = (unix_ms, 0) if unix_ms > time_ms else (time_ms, number + 1)
        return f"{self._last[0]:012x}{self._last[1]:04x}{self._salt}"

    async def append(self, events: Sequence[EventRow]) -> list[str]:
        """Append in order; the ids. Repeated, the events are there twice."""
        ids = [self._next_id(self._core.now_ms()) for _ in events]
        for start in range(0, len(events), TXN_OPS_MAX):
            batch = zip(ids[start : start + TXN_OPS_MAX], events[start : start + TXN_OPS_MAX], strict=True)
            await self._core.etcd.txn([], [put(_key(event_id), rows.encode(event)) for event_id, event in batch])
        return ids

    async def read(self, after: str, limit: int) -> list[tuple[str, EventRow]]:
        """At most `limit` events above an id, oldest first."""
        begin = _key(after) + b"\0" if after else keys.EVENTS
        if not keys.EVENTS <= begin < keys.EVENTS_END:
            return []
        page = await self._core.etcd.range(begin, keys.EVENTS_END, limit=max(1, min(limit, PAGE_MAX)))
        return [(kv.key[len(keys.EVENTS) :].decode(), rows.decode(kv.value, EventRow)) for kv in page.rows]

    async def trim(self, keep: int, leader: LeaderGuard) -> int:
        """Delete the oldest events beyond `keep`, at most a page of them; how many.

        Raises:
            NotLeader: the term is over.
        """
        guard = leader_guard(leader)
        page = await self._core.etcd.range(keys.EVENTS, keys.EVENTS_END, limit=PAGE_MAX, keys_only=True)
        surplus = min(page.count - keep, len(page.rows))
        if surplus <= 0:
            return 0
        end = page.rows[surplus - 1].key + b"\0"
        answer = await self._core.etcd.txn([guard.compare], [delete(keys.EVENTS, end)], [get(guard.compare.key)])
        if not answer.succeeded:
            check_guards([guard], answer.responses)
        return surplus


def _key(event_id: str) -> bytes:
    return keys.EVENTS + event_id.encode()
