"""Task groups that keep the order to end, and the one error that stands for a group's.

`asyncio.TaskGroup` of Python 3.11 and 3.12 loses a cancellation from outside when tasks of the group fail at the same
time: only the failures are raised, and whoever turns them into an answer, or tries again, goes on although it was told
to end. The task still counts the order, but not reliably: a group that fails while its block is over counts its own
as well. `TaskGroup` here waits inside the block, where the count is right, and lets the order win.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from contextvars import Context
from types import TracebackType
from typing import Any, NoReturn, TypeVar

from copypool.protocol.errors import CopypoolError

T = TypeVar("T")


class TaskGroup(asyncio.TaskGroup):
    """Like its base, but cancelled from outside it raises `CancelledError`, whatever its tasks raise meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self._under_way: set[asyncio.Task[Any]] = set()
        self._orders_before = 0

    async def __aenter__(self) -> TaskGroup:
        await super().__aenter__()
        self._orders_before = _orders_to_end()
        return self

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: Context | None = None,
    ) -> asyncio.Task[T]:
        """Start a task of the group."""
        task = super().create_task(coro, name=name, context=context)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return task

    async def __aexit__(
        self, et: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            if exc is None:
                while self._under_way:
                    await asyncio.wait(self._under_way)
        except asyncio.CancelledError as cancelled:
            et, exc, tb = type(cancelled), cancelled, cancelled.__traceback__
        try:
            await super().__aexit__(et, exc, tb)
        except BaseExceptionGroup as failures:
            if _orders_to_end() > self._orders_before:
                raise asyncio.CancelledError from failures
            raise


def _orders_to_end() -> int:
    """How often the current task was asked to end."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def raise_first(failures: BaseExceptionGroup[BaseException]) -> NoReturn:
    """Raise the one error that stands for a group's: `first_error`."""
    raise first_error(failures) from failures


def first_error(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error of a group, however deep: one of ours if there is one."""
    ours = failures.subgroup(CopypoolError)
    error: BaseException = failures if ours is None else ours
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
