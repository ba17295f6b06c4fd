"""`GET /ui/events`: the event log as it grows, as server-sent events. Role operator, by header as everywhere.

A stream begins with the newest events, or, given `Last-Event-ID`, with what may have become visible since that one.
Every event comes at least once, in the order of arrival; ids sort by time, and a reader drops ids that it knows.

    id: <id of the event>        event: trouble               : alive
    event: log                   data: {"message": "..."}     (a comment, every 10 s)
    data: {"id": ..., ...}

`trouble`: etcd does not answer, nothing new can be seen for now. `gap`: more happened than a stream begins with; older
ones are read by `/rpc/log`. All streams share one reading of the log a second; without streams nothing is read. A
stream whose token has ended, or whose reader is too slow, is ended; the reader comes back with the last id it has.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

import msgspec
from aiohttp import web

from copypool.protocol.api import Event
from copypool.protocol.errors import CopypoolError, Invalid, Overloaded
from copypool.protocol.insight import LogRequest
from copypool.protocol.tokens import Role
from copypool_coordinator.arrivals import Arrivals, rewound
from copypool_coordinator.auth import Auth
from copypool_coordinator.catalog import Catalog
from copypool_coordinator.eventlog import PAGE, LogReader, event_of

log = logging.getLogger(__name__)

STREAMS_MAX = 32  #: at once; one more is `Overloaded`
FIRST_MAX = 200  #: events that a stream begins with
RESUME_MAX = 1_000  #: events that a stream which was cut is given at most
_KEEP = 2_000
_TICK_S = 1.0
_ALIVE_S = 10.0
#: A reader that takes nothing for this long is cut off.
_STALL_S = 20.0
#: Pages of the log in one reading; the next one goes on.
_PAGES_MAX = 10
#: What was read longer ago than this is forgotten: streams begin with a reading of their own anyway.
_FORGET_S = 30.0
_ID_MAX = 64
_HEX = frozenset("0123456789abcdef")
_HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class EventStreams:
    """Handler of `/ui/events`, and what its streams share."""

    def __init__(self, catalog: Catalog, auth: Auth, reader: LogReader) -> None:
        self._catalog = catalog
        self._auth = auth
        self._reader = reader
        self._arrivals = Arrivals(_KEEP, 0.0)
        self._read_s = -_FORGET_S  #: monotonic
        self._lock = asyncio.Lock()
        self._streams = 0
        self._stopping = asyncio.Event()

    @property
    def streams_ratio(self) -> float:
        """Share of the streams that there may be."""
        return self._streams / STREAMS_MAX

    def close(self) -> None:
        """End all streams within a moment, and refuse nothing: the listener takes no new ones by then."""
        self._stopping.set()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """One stream, until the reader goes, its token ends, or this process does."""
        permitted = self._permission(request.headers.get("Authorization"))
        permitted()
        last = request.headers.get("Last-Event-ID", "")
        if len(last) > _ID_MAX or (last and (len(last) < 12 or not _HEX.issuperset(last))):
            raise Invalid("Last-Event-ID is the id of an event")
        if request.method == "HEAD":
            return web.Response(headers=_HEADERS)
        if self._streams >= STREAMS_MAX:
            raise Overloaded(f"{STREAMS_MAX} readers follow the events here: `copypool events --follow` asks instead")
        self._streams += 1
        try:
            return await self._stream(request, last, permitted)
        finally:
            self._streams -= 1

    def _permission(self, header: str | None) -> Callable[[], None]:
        def permitted() -> None:
            self._auth.principal(header, self._catalog.now_ms()).require(Role.operator)

        return permitted

    async def _stream(self, request: web.BaseRequest, last: str, permitted: Callable[[], None]) -> web.StreamResponse:
        # The position is taken before the first events are read: what arrives in between comes twice, never not at all.
        arrivals = await self._read(0.0)
        position = arrivals.end
        first, gap = await self._first(last)
        response = web.StreamResponse(headers=_HEADERS)
        await response.prepare(request)
        await _send(request, response, (_message("gap", {}) if gap else b"") + _lines(first) + b": alive\n\n")
        sent_s = time.monotonic()
        while not await self._stopped(_TICK_S):
            piece = b""
            try:
                permitted()
            except CopypoolError:
                break
            try:
                now = await self._read(_TICK_S / 2)
                if now is not arrivals:
                    break
                events = now.since(position)
                if events is None:
                    break
                position = now.end
                piece = _lines(events)
            except CopypoolError as error:
                piece = _message("trouble", {"message": error.message})
            if piece or time.monotonic() - sent_s >= _ALIVE_S:
                await _send(request, response, piece or b": alive\n\n")
                sent_s = time.monotonic()
        await _send(request, response, b"")
        return response

    async def _first(self, last: str) -> tuple[list[Event], bool]:
        """What a stream begins with, and whether something before it is left out that its reader does not know."""
        if last:
            reply = await self._reader.find(LogRequest(after=rewound(last), limit=RESUME_MAX))
            if not reply.more:
                return reply.events, False
        reply = await self._reader.find(LogRequest(newest=True, limit=FIRST_MAX))
        return reply.events, bool(last)

    async def _read(self, max_age_s: float) -> Arrivals:
        """What has arrived, read from etcd at most `max_age_s` before the call; raises `CatalogDown`."""
        asked_s = time.monotonic()
        async with self._lock:
            if self._read_s >= asked_s - max_age_s:
                return self._arrivals
            now_s = time.monotonic()
            if now_s - self._read_s > _FORGET_S:
                self._arrivals = Arrivals(_KEEP, self._catalog.now_ms() / 1000)
            cursor = self._arrivals.begin
            for _ in range(_PAGES_MAX):
                page = await self._catalog.events(cursor, PAGE)
                self._arrivals.add(event_of(event_id, row) for event_id, row in page)
                if len(page) < PAGE:
                    break
                cursor = page[-1][0]
            self._read_s = now_s
            return self._arrivals

    async def _stopped(self, within_s: float) -> bool:
        try:
            async with asyncio.timeout(within_s):
                await self._stopping.wait()
        except TimeoutError:
            return False
        return True


async def _send(request: web.BaseRequest, response: web.StreamResponse, piece: bytes) -> None:
    """Write, or end the stream by no bytes. A reader that takes nothing for too long is cut off."""
    try:
        async with asyncio.timeout(_STALL_S):
            await (response.write(piece) if piece else response.write_eof())
    except TimeoutError as exc:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("the reader of a stream of events takes nothing") from exc


def _lines(events: Iterable[Event]) -> bytes:
    return b"".join(b"id: %s\n" % event.id.encode() + _message("log", event) for event in events)


def _message(kind: str, content: object) -> bytes:
    # JSON has its line ends escaped: one line is the whole of it.
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), msgspec.json.encode(content))
