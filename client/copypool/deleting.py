"""Deleting everything below a prefix: one durable delete per file, many at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from copypool.cancellation import TaskGroup, raise_first
from copypool.protocol.api import ListEntry
from copypool.protocol.errors import CopypoolError, NotFound
from copypool.results import BulkResult
from copypool.writing import Writer

DELETES_IN_FLIGHT = 128  #: nodes put concurrent deletes into one group, so many at once cost little more than one


async def delete_listed(
    writer: Writer, namespace: str, entries: AsyncIterator[ListEntry], *, keep_going: bool, deadline_s: float
) -> BulkResult:
    """Delete every listed file. What is counted is durably gone; a file that somebody else deleted is not counted.

    Repeating it is safe. Without `keep_going` the first failure is raised.
    """
    result = BulkResult()
    names: asyncio.Queue[str | None] = asyncio.Queue(2 * DELETES_IN_FLIGHT)

    async def work() -> None:
        while (path := await names.get()) is not None:
            try:
                await writer.delete(namespace, path, deadline_s=deadline_s)
                result.files += 1
            except NotFound:
                continue
            except CopypoolError as exc:
                if not keep_going:
                    raise
                result.add_failure(path, exc)

    try:
        async with TaskGroup() as group:
            for _ in range(DELETES_IN_FLIGHT):
                group.create_task(work())
            async for entry in entries:
                await names.put(entry.path)
            for _ in range(DELETES_IN_FLIGHT):
                await names.put(None)
    except BaseExceptionGroup as failures:
        raise_first(failures)
    return result
