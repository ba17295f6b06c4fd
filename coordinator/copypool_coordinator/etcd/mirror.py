"""List, then watch, for ever, without ever losing an event.

The sequence that this guards against: a stream is cut while it catches up; the client resumes after the revision in
the header of the last reply, which runs ahead of the events; everything in between is skipped without an error.
So here a stream is resumed after the last *event* that was handed on, and only ever there. A watch that begins at a
revision gets every later event or is told that they are compacted: then, and whenever that rule may not hold (the
server cancels, the store went back, nothing comes although somebody writes every second), everything is listed anew.

Replies without events (progress, "created") never count as life, nor move the position: etcd 3.4's progress
replies can run ahead of events (etcd#15220). Events at or below the position are dropped: etcd has sent old ones
to watches that begin in the future of a lagging member.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Protocol

import grpc
import grpc.aio

from copypool.protocol.errors import CatalogDown
from copypool_coordinator.etcd import wire
from copypool_coordinator.etcd.attempts import Attempts
from copypool_coordinator.etcd.channels import CONNECT_TIMEOUT_S, Endpoint
from copypool_coordinator.etcd.listing import Pager
from copypool_coordinator.etcd.replies import Changed, KeyValue, Listed, MirrorEvent, RangeResult
from copypool_coordinator.etcd.requests import bounded

#: Pauses between attempts that brought nothing: doubled from the first to the last.
PAUSE_MIN_S = 0.05
PAUSE_MAX_S = 1.0
#: Silence that a new listing did not end is believed for longer and longer, up to this.
SILENCE_MAX_S = 60.0


class Ranges(Protocol):
    """The one call of `Etcd` that a mirror needs."""

    async def range(self, key: bytes, end: bytes, *, limit: int = 0, revision: int = 0) -> RangeResult:
        """See `Etcd.range`."""


class ListAgain(Exception):
    """Events may have been lost; the message is the reason that `Listed` carries."""

    def __init__(self, reason: str, *, elsewhere: bool = True) -> None:
        super().__init__(reason)
        #: the member is to blame: ask another one
        self.elsewhere = elsewhere


class StreamCut(Exception):
    """The stream ended, and nothing says that events after the position are lost."""


class Position:
    """What of one range was handed on, and the reply that is being put together. Pure."""

    def __init__(self, revision: int) -> None:
        #: revision of the last event handed on, or of the listing
        self.revision = revision
        self._fragments: list[tuple[bool, KeyValue]] = []

    def forget_fragments(self) -> None:
        """The stream was cut: what came of an unfinished reply comes again."""
        self._fragments = []

    def take(self, events: list[tuple[bool, KeyValue]], *, unfinished: bool) -> Changed | None:
        """Take the events of one reply in; the change to hand on, once the reply is whole and brings news."""
        if self._fragments:
            events = self._fragments + events
        if unfinished:
            self._fragments = events
            return None
        self._fragments = []
        last: dict[bytes, tuple[bool, KeyValue]] = {}
        position = self.revision
        for event in events:
            row = event[1]
            if row.mod_revision > self.revision:
                last[row.key] = event
                position = max(position, row.mod_revision)
        if not last:
            return None
        self.revision = position
        puts = [row for is_delete, row in last.values() if not is_delete]
        deletes = [row.key for is_delete, row in last.values() if is_delete]
        return Changed(position, puts, deletes)


class Mirror:
    """The ranges' content and changes, as `Listed` and `Changed` events.

    Of each range: changes come in revision order, each revision whole. **Between ranges there is no order** (etcd
    gives none while a watch catches up): a transaction that writes to two ranges arrives as two changes, and a
    change of one range may come after a later one of the other. Who needs one order watches one range.
    """

    def __init__(
        self,
        ranges: Ranges,
        attempts: Attempts,
        bounds: Sequence[tuple[bytes, bytes]],
        page: int,
        silence_s: float,
        on_trouble: Callable[[str], None] | None,
    ) -> None:
        if not bounds or page < 1 or silence_s <= 0:
            raise ValueError("a mirror needs a range, a page size and a silence limit above 0")
        self._ranges = ranges
        self._attempts = attempts
        self._bounds = [(key, bounded(key, end)) for key, end in bounds]
        self._page = page
        self._silence_s = silence_s
        self._on_trouble = on_trouble
        self._positions: list[Position] = []
        self._patience_s = silence_s
        self._pause_s = PAUSE_MIN_S

    async def events(self) -> AsyncGenerator[MirrorEvent, None]:
        """The events, for ever; ends only by being closed or cancelled, or with the client."""
        reason: str | None = "start"
        while not self._attempts.closed:
            if reason is not None:
                try:
                    listed = await self._list(reason)
                except CatalogDown as error:
                    await self._pause(f"listing: {error.message}")
                    continue
                self._positions = [Position(listed.revision) for _ in self._bounds]
                reason = None
                yield listed
            endpoint = next(iter(self._attempts.members))
            try:
                async with aclosing(self._follow(endpoint)) as changes:
                    async for change in changes:
                        self._pause_s = PAUSE_MIN_S
                        self._patience_s = self._silence_s
                        yield change
            except ListAgain as error:
                reason = str(error)
                if error.elsewhere:
                    self._attempts.members.pass_over(endpoint)
                await self._pause(f"watch on {endpoint.name}: {reason}")
            except StreamCut as error:
                self._attempts.members.pass_over(endpoint)
                await self._pause(f"watch on {endpoint.name}: {error}")
        raise CatalogDown("the etcd client is closed")

    async def _pause(self, trouble: str) -> None:
        if self._on_trouble is not None:
            self._on_trouble(trouble)
        await asyncio.sleep(self._pause_s)
        self._pause_s = min(self._pause_s * 2, PAUSE_MAX_S)

    async def _list(self, reason: str) -> Listed:
        """All rows of all ranges at one revision.

        Raises:
            CatalogDown: no member answered, or the revision was compacted meanwhile: begin again.
        """
        rows: list[KeyValue] = []
        revision = 0
        for begin, end in self._bounds:
            pager = Pager(begin, end, self._page)
            while not pager.done:
                page_end = pager.page_end
                page = await self._ranges.range(pager.cursor, page_end, limit=self._page, revision=revision)
                revision = revision or page.revision
                rows.extend(page.rows)
                last_key = page.rows[-1].key if page.rows else None
                pager.advance(page_end, last_key, page.count, more=page.more)
        return Listed(tuple(rows), revision, reason)

    async def _follow(self, endpoint: Endpoint) -> AsyncGenerator[Changed, None]:
        """The changes after the positions, from one member, until its stream ends.

        Raises:
            StreamCut: it ended.
            ListAgain: events may have been lost.
        """
        for position in self._positions:
            position.forget_fragments()
        if not await endpoint.connected(CONNECT_TIMEOUT_S):
            raise StreamCut("takes no connection")
        with endpoint.in_use():
            call = endpoint.stubs.watch.Watch(metadata=self._attempts.metadata())
            loop = asyncio.get_running_loop()
            try:
                await self._ask(call)
                watching: dict[int, Position] = {}
                heard = loop.time()
                while True:
                    async with asyncio.timeout_at(heard + self._patience_s):
                        reply = await call.read()
                    if reply is grpc.aio.EOF:
                        raise StreamCut("ended by the server")
                    if not self._has_events(reply, watching):
                        continue
                    change = watching[reply.watch_id].take(wire.watch_events(reply), unfinished=reply.fragment)
                    if change is not None:
                        yield change
                    heard = loop.time()
            except TimeoutError as error:
                self._patience_s = min(self._patience_s * 2, SILENCE_MAX_S)
                raise ListAgain("silent") from error
            except asyncio.CancelledError as error:
                # Closing the channel cancels its streams; that must not look like a cancelled consumer.
                task = asyncio.current_task()
                if not self._attempts.closed or (task is not None and task.cancelling()):
                    raise
                raise StreamCut("the client is closed") from error
            except grpc.aio.AioRpcError as error:
                raise StreamCut(error.details() or error.code().name) from error
            except (grpc.aio.UsageError, asyncio.InvalidStateError) as error:
                raise StreamCut(str(error)) from error
            finally:
                call.cancel()

    async def _ask(self, call: wire.Message) -> None:
        """Ask for every range from its position on."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                for (begin, end), position in zip(self._bounds, self._positions, strict=True):
                    await call.write(wire.watch_request(begin, end, position.revision + 1))
        except TimeoutError as error:
            raise StreamCut("takes no request") from error

    def _has_events(self, reply: wire.Message, watching: dict[int, Position]) -> bool:
        """Deal with a reply that says something about a watch; False for one without events.

        Raises:
            ListAgain: events may have been lost.
        """
        if reply.compact_revision:
            raise ListAgain("compacted", elsewhere=False)
        if reply.canceled:
            raise ListAgain(f"cancelled: {reply.cancel_reason or 'no reason given'}")
        if reply.created:
            # Watches are made in the order in which they were asked for.
            position = self._positions[len(watching)]
            watching[reply.watch_id] = position
            if reply.header.revision < position.revision:
                raise ListAgain("the member is behind what was seen: it lags, or the store went back")
        return bool(reply.events)
