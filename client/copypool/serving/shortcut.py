"""A connection whose simplest requests are answered without aiohttp, for a fifth of its work; all others by aiohttp.

It begins as a `ShortcutConnection`. A request that `heads` knows, and that the server has a short way for, is answered
here. The first request that is anything else takes the connection along: an aiohttp handler is put in this object's
place, gets the very bytes, and keeps the connection to its end. So there is one implementation of everything but
"a whole request came, write a whole answer", and no request is ever half in one and half in the other.

Bounds: one request in work per connection; while it is, what comes in is held and reading is paused. An answer is
written whole; the next request waits until the client has taken it. Who sends or takes nothing for `idle_s` is cut off.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias, cast

from aiohttp.tcp_helpers import tcp_keepalive

from copypool.protocol.routes import TRACE
from copypool.serving.heads import Asked, Block, Told, fits, read_block, split_head, write_head

log = logging.getLogger(__name__)

#: Answers a request, or says None: "ask the ordinary way", if nothing was done yet that must not be done twice.
#: Raises nothing but for cancellation.
Answering: TypeAlias = Callable[[Asked], Coroutine[Any, Any, Told | None]]
#: The answer to a request, or the short way to one, if there is one. Raises nothing.
Shortcut: TypeAlias = Callable[[Asked], Told | Answering | None]

#: Head and body of an answer go out as one buffer up to this size; copying a larger body costs more than a second one.
_JOINED_MAX_BYTES = 64 * 1024
#: The same bytes ask for the same: what was read of so many GETs of at most that size is kept, for all connections.
REMEMBERED_MAX = 4096
_REMEMBERED_MAX_BYTES = 1024


class Shortcuts:
    """The connections of one port that are not aiohttp's (yet)."""

    def __init__(
        self,
        shortcut: Shortcut,
        ordinary: Callable[[], asyncio.Protocol],
        overfull: Callable[[], bool],
        *,
        idle_s: float,
    ) -> None:
        """`ordinary` makes the protocol that takes a connection over; `overfull`: the port holds too many now."""
        self.shortcut = shortcut
        self.ordinary = ordinary
        self.overfull = overfull
        self.idle_s = idle_s
        self.connections: set[ShortcutConnection] = set()
        self.tasks: set[asyncio.Task[None]] = set()  #: requests in work, also those whose client has gone
        self.closing = False
        self.remembered: dict[bytes, Asked] = {}

    def remember(self, data: bytes, asked: Asked) -> None:
        """`data` is a whole request and was read as `asked`; nothing of its answer is kept."""
        # One with a body or a trace is not sent twice.
        if asked.method == "GET" and len(data) <= _REMEMBERED_MAX_BYTES and TRACE not in asked.headers:
            if len(self.remembered) >= REMEMBERED_MAX:
                self.remembered.clear()
            self.remembered[data] = asked

    def end_idle(self) -> None:
        """Close the connections that have no request in work; the others once they have their answer."""
        self.closing = True
        for connection in list(self.connections):
            connection.end()

    async def shutdown(self, grace_s: float) -> None:
        """End what is idle, give requests in work `grace_s`, then cut off the rest; all is over when this returns."""
        self.end_idle()
        tasks = list(self.tasks)
        if tasks:
            await asyncio.wait(tasks, timeout=grace_s)
        for connection in list(self.connections):
            connection.abort()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class ShortcutConnection(asyncio.Protocol):
    """A connection until it ends, or goes to aiohttp for good."""

    __slots__ = (
        "_block",
        "_headers",
        "_held",
        "_loop",
        "_moved_s",
        "_paused",
        "_shortcuts",
        "_timer",
        "_transport",
        "_working",
    )

    def __init__(self, shortcuts: Shortcuts, loop: asyncio.AbstractEventLoop) -> None:
        self._shortcuts = shortcuts
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._working = False  #: a request is in work
        self._paused = False  #: the client does not take what was written
        self._held = b""  #: came while one of the two was so; reading is paused then
        #: Clients send the same headers each time: those of the last request, as bytes and read.
        self._block = b""
        self._headers = Block({}, None)
        self._moved_s = 0.0  #: time of the loop at which the client last sent or took something
        self._timer: asyncio.TimerHandle | None = None

    # -- what the loop calls ---------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        self._transport = made = cast(asyncio.Transport, transport)  # uvloop's are no subclasses
        tcp_keepalive(made)
        self._shortcuts.connections.add(self)
        if self._shortcuts.overfull() or self._shortcuts.closing:  # it was still shaking hands when the port was closed
            made.abort()
        self._moved_s = self._loop.time()
        self._timer = self._loop.call_at(self._moved_s + self._shortcuts.idle_s, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone; a request in work goes on, as it does with aiohttp, and its answer is dropped."""
        self._leave()

    def data_received(self, data: bytes) -> None:
        """Bytes came: a request, part of one, or several."""
        if self._working or self._paused:
            self._held += data
            if self._transport is not None:
                self._transport.pause_reading()
            return
        self._moved_s = self._loop.time()
        asked = self._read(data)
        found = None if asked is None else self._shortcuts.shortcut(asked)
        if asked is None or found is None:
            self._hand_over(data)
            return
        if isinstance(found, Told):
            self._tell(found)
            return
        self._working = True
        task = self._loop.create_task(self._work(found, asked, data))
        self._shortcuts.tasks.add(task)
        task.add_done_callback(self._shortcuts.tasks.discard)

    def pause_writing(self) -> None:
        """The client is slower than the answers."""
        self._paused = True

    def resume_writing(self) -> None:
        """It has caught up."""
        self._paused = False
        self._moved_s = self._loop.time()
        self._go_on()

    # -- requests --------------------------------------------------------------------------------
    def _read(self, data: bytes) -> Asked | None:
        known = self._shortcuts.remembered.get(data)
        if known is not None:
            return known
        found = split_head(data)
        if found is None:
            return None
        method, target, block, body = found
        if block != self._block:
            headers = read_block(block)
            if headers is None:
                return None
            self._block, self._headers = block, headers
        if not fits(method, self._headers.length, body):
            return None
        asked = Asked(method, target, self._headers.kept, body)
        self._shortcuts.remember(data, asked)
        return asked

    async def _work(self, answering: Answering, asked: Asked, data: bytes) -> None:
        try:
            told = await answering(asked)
            transport = self._transport
            if transport is None or transport.is_closing():
                return
            self._working = False
            if told is None:
                self._hand_over(data)
            else:
                self._tell(told)
        except Exception:
            log.exception("an answer of the short way failed by a bug")
            self.abort()

    def _tell(self, told: Told) -> None:
        transport = self._transport
        assert transport is not None
        head = write_head(told, time.time())
        if len(told.body) <= _JOINED_MAX_BYTES:
            transport.write(head + told.body)
        else:
            transport.writelines((head, told.body))
        self._go_on()

    def _go_on(self) -> None:
        """Take up what was held, or end a connection that has nothing more to do in a server that stops."""
        transport = self._transport
        if transport is None or self._working or self._paused:
            return
        if self._shortcuts.closing:
            transport.close()
        elif self._held:
            held, self._held = self._held, b""
            transport.resume_reading()
            self.data_received(held)

    def _hand_over(self, data: bytes) -> None:
        """From now on the connection is aiohttp's; what was held comes after `data`."""
        transport = self._transport
        assert transport is not None
        held = self._held
        self._leave()
        if held:
            transport.resume_reading()  # before aiohttp gets the bytes: it may have reading paused again
        protocol = self._shortcuts.ordinary()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        protocol.data_received(data + held)

    # -- ends ------------------------------------------------------------------------------------
    def end(self) -> None:
        """Close it now, or after the answer that is under way; `Shortcuts.closing` is set."""
        self._go_on()

    def abort(self) -> None:
        """Close it now."""
        if self._transport is not None:
            self._transport.abort()

    def _leave(self) -> None:
        self._transport = None
        self._held = b""
        self._shortcuts.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        """Cut off a client that has sent, or taken, nothing for too long; that our answer is late is no reason."""
        due_s = self._moved_s + self._shortcuts.idle_s
        if self._working or self._loop.time() < due_s:
            self._timer = self._loop.call_at(max(due_s, self._loop.time() + 1.0), self._look)
        elif self._transport is not None:
            # Closing would wait until the client has taken the rest.
            self._transport.abort() if self._transport.get_write_buffer_size() else self._transport.close()
