"""Reading the event log: filtered pages, and chains of cause and effect. Bounded; the log itself is in `events`."""

from __future__ import annotations

from collections import deque

from copypool.protocol.api import Event
from copypool.protocol.errors import NotFound
from copypool.protocol.insight import ChainReply, LogReply, LogRequest
from copypool_coordinator.catalog import Catalog
from copypool_coordinator.rows import EventRow

PAGE = 1_000
#: Events that one request looks at.
_LOOKED_MAX = 10_000
#: Links backwards from an event, and events in a chain.
_BACK_MAX = 100
#: How far back the newest events are looked for, span after span; then in all there are.
_BACK_S = (600, 3_600, 6 * 3_600, 24 * 3_600, 7 * 24 * 3_600)
_CHAIN_MAX = 500


class LogReader:
    """Answers `/rpc/log` and `/rpc/log_chain`."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def find(self, request: LogRequest) -> LogReply:
        """Matching events after the cursor. A reply may be empty although there is more: `more` says so."""
        if request.newest:
            return await self._newest(request)
        cursor = max(request.after, first_id(request.since_unix_s))
        found: list[Event] = []
        looked = 0
        while looked < _LOOKED_MAX:
            page = await self._catalog.events(cursor, PAGE)
            for event_id, row in page:
                cursor = event_id
                looked += 1
                if matches(request, row):
                    found.append(event_of(event_id, row))
                    if len(found) >= request.limit:
                        return LogReply(found, cursor, True)
            if len(page) < PAGE:
                return LogReply(found, cursor, False)
        return LogReply(found, cursor, True)

    async def _newest(self, request: LogRequest) -> LogReply:
        """The last ones that match: ever longer times back from now, until there are enough or enough was looked at."""
        found: deque[Event] = deque()
        newest, until = "", ""
        looked = 0
        for back_s in (*_BACK_S, 0):
            begin = first_id(self._catalog.now_ms() / 1000 - back_s) if back_s else ""
            span: deque[Event] = deque(maxlen=request.limit - len(found))
            cursor, done = begin, False
            while not done:
                page = await self._catalog.events(cursor, PAGE)
                done = len(page) < PAGE
                for event_id, row in page:
                    cursor = event_id
                    if until and event_id > until:
                        done = True
                        break
                    looked += 1
                    newest = max(newest, event_id)
                    if matches(request, row):
                        span.append(event_of(event_id, row))
            found.extendleft(reversed(span))
            until = begin
            if len(found) >= request.limit or looked >= _LOOKED_MAX:
                break
        return LogReply(list(found), newest, False)

    async def chain(self, event_id: str) -> ChainReply:
        """The event's causes up to the first one, and all that the first one led to.

        Raises:
            NotFound: there is no such event (any more).
        """
        root, before = event_id, await self._get(event_id)
        if before is None:
            raise NotFound(f"no event {event_id!r}; the log keeps a bounded number")
        for _ in range(_BACK_MAX):
            if not before.cause:
                break
            earlier = await self._get(before.cause)
            if earlier is None:
                break
            root, before = before.cause, earlier
        chain = [event_of(root, before)]
        ids = {root}
        cursor, looked = root, 0
        while looked < _LOOKED_MAX:
            page = await self._catalog.events(cursor, PAGE)
            for found_id, row in page:
                cursor = found_id
                looked += 1
                if row.cause in ids:
                    ids.add(found_id)
                    chain.append(event_of(found_id, row))
                    if len(chain) >= _CHAIN_MAX:
                        return ChainReply(chain, True)
            if len(page) < PAGE:
                return ChainReply(chain, False)
        return ChainReply(chain, True)

    async def _get(self, event_id: str) -> EventRow | None:
        # The log reads upwards from an id: one step below this one comes this one.
        for found_id, row in await self._catalog.events(_below(event_id), 1):
            if found_id == event_id:
                return row
        return None


def first_id(since_unix_s: float) -> str:
    """An id below all events of that time and later: ids begin with milliseconds as twelve hex digits."""
    return f"{round(since_unix_s * 1000):012x}" if since_unix_s > 0 else ""


def _below(event_id: str) -> str:
    """The greatest text of hex digits that is surely below this id and above the ids before it."""
    last = event_id[-1]
    return event_id[:-1] + (chr(ord(last) - 1) + "~" if last > "0" else "")


def matches(request: LogRequest, row: EventRow) -> bool:
    """Whether the event is one of those asked for."""
    return (
        (not request.kinds or row.kind in request.kinds)
        and (not request.volume or row.volume == request.volume)
        and (not request.node or row.node == request.node)
        and (request.extent < 0 or row.extent == request.extent)
    )


def event_of(event_id: str, row: EventRow) -> Event:
    """The event as callers see it."""
    return Event(
        id=event_id,
        unix_s=row.unix_ms / 1000,
        kind=row.kind,
        who=row.who,
        message=row.message,
        extent=row.extent,
        volume=row.volume,
        node=row.node,
        cause=row.cause,
    )
