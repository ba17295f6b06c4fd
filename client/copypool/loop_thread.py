"""An event loop in a thread of its own, and how calls of async objects are made there by whoever may block."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

from copypool.protocol.errors import Unavailable

P = ParamSpec("P")
T = TypeVar("T")

#: Items of an async iterator that are fetched at a time when they are there anyway.
ITERATE_CHUNK = 64


class LoopThread:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="copypool client", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
        finally:
            self._loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run to completion; an exception in the waiting thread (Ctrl-C) cancels the work and waits for its end."""
        if not self._thread.is_alive():
            work.close()
            raise Unavailable("the client is closed")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            if future.cancel():
                done = threading.Event()
                self._loop.call_soon_threadsafe(self._loop.call_soon, done.set)
                done.wait(1.0)
            raise

    def stop(self) -> None:
        """End the loop and join the thread. Safe to repeat."""
        if self._thread.is_alive():
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def blocking(self, call: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
        """The same call, blocking."""

        @functools.wraps(call)
        def blocked(*arguments: P.args, **named: P.kwargs) -> T:
            return self.run(call(*arguments, **named))

        return blocked

    def iterating(self, call: Callable[P, AsyncIterator[T]], chunk: int = ITERATE_CHUNK) -> Callable[P, Iterator[T]]:
        """The same items from a blocking iterator, fetched `chunk` at a time; 1 for those that are waited for."""

        @functools.wraps(call)
        def iterated(*arguments: P.args, **named: P.kwargs) -> Iterator[T]:
            items = call(*arguments, **named)
            while taken := self.run(_take(items, chunk)):
                yield from taken

        return iterated


async def _take(items: AsyncIterator[T], count: int) -> Sequence[T]:
    taken: list[T] = []
    async for item in items:
        taken.append(item)
        if len(taken) == count:
            break
    return taken
