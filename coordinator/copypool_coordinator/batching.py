"""Joining concurrent calls into few: whatever asks within one pass of the event loop goes out together.

No timer: an idle batcher sends at the end of the current loop pass, a busy one as soon as one of its calls returns,
so batches grow with load and cost no latency without it. Equal keys of one batch are asked once.

A `patient` batcher is for calls that all take about as long and cost little more with many keys than with few. It has
a second call under way only once it holds as many keys as the first, and it sends when the passes of the loop bring no
more keys: answers that have just gone out are followed by the next requests of the same clients.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from copypool.protocol.errors import BrokenInvariant, Overloaded, Unavailable
from copypool.telemetry import tracing

K = TypeVar("K")
V = TypeVar("V")

#: A patient batcher sends after so many passes without a new key: one reads a request, the next one has it submitted.
QUIET_PASSES = 2
#: It sends after so many passes in any case.
PASSES_MAX = 8
#: One part in so many of the largest call is enough to wait for: beyond that, having a call under way while the last
#: one's answers are written is worth more than a larger call.
ENOUGH = 2


class Batcher(Generic[K, V]):
    """Joins `submit` calls into calls of `run(keys)`, which answers one value per key, in order.

    At most `flying` runs at a time, at most `batch` keys and about `weight` in each; at most `queue` keys wait.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[Sequence[K]], Awaitable[Sequence[V]]],
        *,
        batch: int,
        flying: int,
        queue: int,
        weigh: Callable[[K], int] | None = None,
        weight: int = 0,
        on_batch: Callable[[int], None] | None = None,
        patient: bool = False,
    ) -> None:
        self._patient = patient
        self._name = name
        self._run = run
        self._batch = batch
        self._flying_max = flying
        self._queue = queue
        self._weigh = weigh
        self._weight = weight
        self._on_batch = on_batch
        self._pending: dict[K, list[asyncio.Future[V]]] = {}
        self._tasks: dict[asyncio.Task[None], list[tuple[K, list[asyncio.Future[V]]]]] = {}
        self._trace: tracing.Trace | None = None  #: of who asked first for what is pending
        self._scheduled = False
        self._closed = False
        self._loop = asyncio.get_running_loop()

    @property
    def waiting(self) -> int:
        """Keys that are not sent yet."""
        return len(self._pending)

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is under way."""
        return not self._pending and not self._tasks

    def submit(self, key: K) -> asyncio.Future[V]:
        """A future of the key's value; cancelling it leaves the others of its batch alone.

        Raises:
            Overloaded: the queue is full; nothing was sent.
        """
        if not self._pending:
            self._trace = tracing.current()
        waiters = self._pending.get(key)
        if waiters is None:
            if self._closed:
                raise Unavailable(f"{self._name}: this process is stopping")
            if len(self._pending) >= self._queue:
                raise Overloaded(f"{self._name}: {self._queue} are waiting already; try again, or elsewhere")
            waiters = self._pending[key] = []
            self._schedule()
        future: asyncio.Future[V] = self._loop.create_future()
        waiters.append(future)
        return future

    async def close(self) -> None:
        """Cancel what is under way and refuse what waits."""
        self._closed = True
        for waiters in self._pending.values():
            _fail(waiters, Unavailable(f"{self._name}: this process is stopping"))
        self._pending.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _schedule(self) -> None:
        """See to it that what is pending goes out, if it may."""
        if self._scheduled or not self._pending or not self._may_send():
            return
        self._scheduled = True
        if self._patient:
            self._loop.call_soon(self._settle, len(self._pending), 0, 1)
        else:
            self._loop.call_soon(self._send)

    def _settle(self, waited: int, quiet: int, passes: int) -> None:
        """Send once `QUIET_PASSES` have brought nothing, or there are enough; `waited`: the keys of the pass before."""
        waiting = len(self._pending)
        quiet = quiet + 1 if waiting == waited else 0
        if quiet == QUIET_PASSES or passes == PASSES_MAX or waiting * ENOUGH >= self._batch:
            self._send()
        else:
            self._loop.call_soon(self._settle, waiting, quiet, passes + 1)

    def _send(self) -> None:
        self._scheduled = False
        while self._pending and self._may_send():
            taken = self._take()
            task = self._loop.create_task(self._call(taken, self._trace))
            self._tasks[task] = taken
            task.add_done_callback(self._done)

    def _may_send(self) -> bool:
        """Whether what is pending may go out now."""
        if not self._patient or not self._tasks:
            return len(self._tasks) < self._flying_max
        under_way = max(map(len, self._tasks.values()))
        return len(self._tasks) < self._flying_max and len(self._pending) >= under_way

    def _done(self, task: asyncio.Task[None]) -> None:
        taken = self._tasks.pop(task)
        if task.cancelled():
            # Also one that was cancelled before its first step, which no handler inside would see.
            for _, waiters in taken:
                _fail(waiters, Unavailable(f"{self._name}: this process is stopping"))
        if self._closed:
            return
        if self._patient:
            self._schedule()
        else:
            self._send()

    def _take(self) -> list[tuple[K, list[asyncio.Future[V]]]]:
        """The oldest keys, as many as fit one call."""
        if self._weigh is None and len(self._pending) <= self._batch:
            taken = list(self._pending.items())
            self._pending = {}
            return taken
        taken = []
        weight = 0
        for key in self._pending:
            weight += self._weigh(key) if self._weigh is not None else 0
            if len(taken) == self._batch or (taken and weight > self._weight > 0):
                break
            taken.append((key, self._pending[key]))
        for key, _ in taken:
            del self._pending[key]
        return taken

    async def _call(self, taken: list[tuple[K, list[asyncio.Future[V]]]], trace: tracing.Trace | None) -> None:
        tracing.adopt(trace)
        if self._on_batch is not None:
            self._on_batch(len(taken))
        try:
            values = await self._run([key for key, _ in taken])
            if len(values) != len(taken):
                raise BrokenInvariant(f"{self._name}: {len(taken)} keys were asked and {len(values)} values came")
        except Exception as error:  # noqa: BLE001 - the waiters are the ones who handle it
            for _, waiters in taken:
                _fail(waiters, error)
            return
        for (_, waiters), value in zip(taken, values, strict=True):
            for future in waiters:
                if not future.done():
                    future.set_result(value)


def _fail(waiters: list[asyncio.Future[V]], error: Exception) -> None:
    for future in waiters:
        if not future.done():
            future.set_exception(error)
