"""The coordinator's own entries in the event log: collected in memory, written in batches, linked by cause.

Events are for people; nothing in the program depends on them. So the queue is bounded and what does not fit is counted
and said, and an etcd that is away costs events, not work.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from copypool.protocol.errors import CatalogDown, CopypoolError
from copypool_coordinator.rows import FORMAT, EventRow

log = logging.getLogger(__name__)

QUEUE_MAX = 4096
BATCH_MAX = 100
_FLUSH_S = 1.0

Append = Callable[[Sequence[EventRow]], Awaitable[Sequence[str]]]


@dataclass(slots=True)
class Entry:
    """One event; its id is known once it is written, and others may name it as their cause before that."""

    row: EventRow
    cause: Entry | None = None
    id: str = ""


class Chronicle:
    """Queue and writer of this coordinator's events."""

    def __init__(self, append: Append, who: str, now_ms: Callable[[], int]) -> None:
        self._append = append
        self._who = who
        self._now_ms = now_ms
        self._queue: deque[Entry] = deque()
        self._lock = asyncio.Lock()
        self.lost = 0  #: events that were not written: the queue was full

    def record(
        self,
        kind: str,
        message: str,
        *,
        extent: int = 0,
        volume: str = "",
        node: str = "",
        cause: Entry | str | None = None,
    ) -> Entry:
        """Take an event in. Returns at once; it is written within about a second."""
        row = EventRow(FORMAT, self._now_ms(), kind, self._who, message, extent, volume, node)
        entry = Entry(row)
        if isinstance(cause, Entry):
            entry.cause = cause
        elif cause:
            row.cause = cause
        if len(self._queue) >= QUEUE_MAX:
            self.lost += 1
        else:
            self._queue.append(entry)
        return entry

    async def run(self) -> None:
        """Write what was recorded, once a second, until cancelled."""
        while True:
            await asyncio.sleep(_FLUSH_S)
            try:
                await self.flush()
            except CopypoolError as error:
                log.warning("%d events wait: %s", len(self._queue), error.message)

    async def flush(self) -> None:
        """Write everything recorded so far. An event whose outcome is unknown is not written again."""
        async with self._lock:
            while batch := self._next_batch():
                try:
                    ids = await self._append([entry.row for entry in batch])
                except CatalogDown:
                    self._queue.extendleft(reversed(batch))
                    raise
                for entry, event_id in zip(batch, ids, strict=True):
                    entry.id = event_id

    def _next_batch(self) -> list[Entry]:
        """Events whose causes have their ids; one that is caused by another of the batch waits for the next."""
        batch: list[Entry] = []
        while self._queue and len(batch) < BATCH_MAX:
            cause = self._queue[0].cause
            if cause is not None and any(cause is entry for entry in batch):
                break
            entry = self._queue.popleft()
            if cause is not None:
                entry.row.cause = cause.id
                entry.cause = None
            batch.append(entry)
        return batch
