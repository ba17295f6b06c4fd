"""The threads of one volume: every blocking call on its disk runs on them, and on nothing else.

A hung disk blocks its own few threads and nobody else's. They are daemons, so that it does not keep the process from
ending either. The queue is bounded; whoever finds it full is told `Overloaded` and nothing was begun.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, NamedTuple, ParamSpec, TypeVar

from copypool.protocol.errors import Overloaded, Unavailable

P = ParamSpec("P")
T = TypeVar("T")

THREADS = 4
QUEUE_MAX = 4096  #: calls waiting for a thread, per volume


class _Job(NamedTuple):
    call: Callable[[], Any]
    future: asyncio.Future[Any]


class VolumeThreads:
    """Runs blocking calls in the order they come in. Belongs to the event loop it was made on."""

    def __init__(self, name: str, *, count: int = THREADS, queue_max: int = QUEUE_MAX) -> None:
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._queue_max = queue_max
        self._unfinished = 0
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"volume-{name}-{index}", daemon=True) for index in range(count)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def unfinished(self) -> int:
        """Calls queued or running."""
        return self._unfinished

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """Queue a call that is made in any case: cancelling who waits does not stop it.

        Await the future through `asyncio.shield`. Raises `Overloaded` or `Unavailable` when it was not queued.
        """
        if self._closed:
            raise Unavailable(f"volume {self._name} is closed")
        if self._unfinished >= self._queue_max:
            raise Overloaded(f"volume {self._name}: {self._unfinished} disk calls are waiting")
        future: asyncio.Future[T] = self._loop.create_future()
        self._unfinished += 1
        future.add_done_callback(_retrieve)
        self._queue.put(_Job(lambda: function(*args, **kwargs), future))
        return future

    def post(self, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Queue a call that gives something back and that nobody waits for; above the bound too, made at once when
        the threads have ended."""
        if self._closed:
            function(*args, **kwargs)
            return
        future: asyncio.Future[Any] = self._loop.create_future()
        self._unfinished += 1
        future.add_done_callback(_retrieve)
        self._queue.put(_Job(lambda: function(*args, **kwargs), future))

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Make a call and wait for it. Safe to cancel: the call is made all the same, its result is dropped."""
        return await asyncio.shield(self.submit(function, *args, **kwargs))

    async def close(self, timeout_s: float) -> bool:
        """Take no more calls, finish those queued, end the threads; False when a call hangs longer than this."""
        if not self._closed:
            self._closed = True
            for _ in self._threads:
                self._queue.put(None)
        deadline = self._loop.time() + timeout_s
        while any(thread.is_alive() for thread in self._threads):
            if self._loop.time() >= deadline:
                return False
            await asyncio.sleep(0.002)
        return True

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            result, error = None, None
            try:
                result = job.call()
            except BaseException as exc:  # noqa: BLE001 - goes to whoever waits, whatever it is
                error = exc
            try:
                self._loop.call_soon_threadsafe(self._deliver, job.future, result, error)
            except RuntimeError:
                return  # the loop is closed: the process ends, nobody waits
            del job, result, error

    def _deliver(self, future: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
        self._unfinished -= 1
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)


def _retrieve(future: asyncio.Future[Any]) -> None:
    """Mark the outcome as seen: a call whose waiter was cancelled reports through the volume, not through a log."""
    if not future.cancelled():
        future.exception()
