"""A connection's socket for a thread: a second descriptor of it, past the event loop and its copies. For long bodies.

Whoever has one is the only reader of the connection while its transport's reading is paused, or its only writer while
nothing waits in the transport; afterwards the transport has the connection again. Calls on a thread wait for the other
side for a few milliseconds at most, longer waits are the loop's: a peer that stands still costs no thread, one that
trickles holds one for these milliseconds, and a thread ends soon after whoever waits for it was cancelled. The
descriptor is closed by whoever lets go last, the loop or that thread. Closing it does not close the connection, which
ends once the transport's descriptor is closed too.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


class DirectSocket:
    """Reads or writes a plain (not encrypted) connection. Made, awaited and closed on the loop."""

    __slots__ = ("_busy", "_closed", "_lock", "_low_water_bytes", "_socket")

    def __init__(self, descriptor: int) -> None:
        """Takes the descriptor over."""
        self._socket = socket.socket(fileno=descriptor)
        self._socket.setblocking(False)
        self._lock = threading.Lock()
        self._busy = False
        self._closed = False
        self._low_water_bytes = 1

    @classmethod
    def of(cls, transport: asyncio.BaseTransport) -> DirectSocket | None:
        """None where bytes must go through the transport: it encrypts them, or there is no descriptor left."""
        found = transport.get_extra_info("socket")
        if os.name != "posix" or found is None or transport.get_extra_info("sslcontext") is not None:
            return None
        try:
            return cls(os.dup(found.fileno()))
        except OSError:
            return None

    def close(self) -> None:
        """Give the descriptor back, or leave that to the thread that uses it right now. Safe to repeat."""
        with self._lock:
            self._closed = True
            if not self._busy:
                self._close()

    def _close(self) -> None:
        self._set_low_water(1)  # it is the connection's, not this descriptor's
        self._socket.close()

    # -- on the loop -------------------------------------------------------------------------------
    async def readable(self, within_s: float) -> bool:
        """Wait until there is something to receive: bytes, the end, or a failure; False: not within this time.

        What is there when the time is up counts, also when the loop was kept busy and has not seen it.
        """
        self._set_low_water(1)
        loop = asyncio.get_running_loop()
        return await self._ready(loop.add_reader, loop.remove_reader, within_s) or self._is_there(select.POLLIN, 0.0)

    async def writable(self, within_s: float) -> bool:
        """Wait until the socket takes bytes, or has failed; False: not within this time."""
        loop = asyncio.get_running_loop()
        return await self._ready(loop.add_writer, loop.remove_writer, within_s)

    async def _ready(
        self, add: Callable[[int, Callable[[], None]], None], remove: Callable[[int], bool], within_s: float
    ) -> bool:
        woken = asyncio.Event()
        descriptor = self._socket.fileno()
        add(descriptor, woken.set)
        try:
            async with asyncio.timeout(within_s):
                await woken.wait()
        except TimeoutError:
            return False
        finally:
            remove(descriptor)
        return True

    # -- on a thread, or without patience on the loop ------------------------------------------------
    @contextmanager
    def held(self) -> Iterator[bool]:
        """Keep the descriptor open while a thread runs the block; False when it is closed already."""
        with self._lock:
            held = not self._closed
            self._busy = held
        try:
            yield held
        finally:
            with self._lock:
                self._busy = False
                if held and self._closed:
                    self._close()

    def send(self, data: memoryview, until_s: float = 0.0) -> int:
        """Send, waiting for the peer until `until_s` (`time.monotonic`); how many bytes were taken. OSError."""
        done = 0
        while done < len(data):
            try:
                with data[done:] as left:
                    done += self._socket.send(left)
            except BlockingIOError:
                if not self._wait(select.POLLOUT, until_s):
                    break
        return done

    def receive(self, size_bytes: int, until_s: float) -> bytes | None:
        """Exactly so many bytes if they are there before `until_s` (`time.monotonic`), else those that are.

        `b""` at the end of what the peer sends, None when nothing is there. OSError.
        """
        self._set_low_water(size_bytes)
        self._wait(select.POLLIN, until_s)
        try:
            return self._socket.recv(size_bytes)
        except BlockingIOError:
            return None

    def _wait(self, event: int, until_s: float) -> bool:
        wait_s = until_s - time.monotonic()
        return wait_s > 0 and self._is_there(event, wait_s)

    def _is_there(self, event: int, wait_s: float) -> bool:
        poll = select.poll()
        poll.register(self._socket, event)
        return bool(poll.poll(wait_s * 1000))

    def _set_low_water(self, size_bytes: int) -> None:
        """How many bytes make the socket readable: waking for each packet costs more than it brings."""
        if size_bytes != self._low_water_bytes:
            self._low_water_bytes = size_bytes
            with suppress(OSError):  # it wakes for each packet then
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size_bytes)
