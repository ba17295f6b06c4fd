"""Many small files: packed into batch requests, several in flight, repeated per file under its own write id."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from copypool.cancellation import TaskGroup, raise_first
from copypool.leases import prefixes_of_all
from copypool.protocol.api import SMALL_MAX_BYTES, BatchEntry, BatchResult, WriteLease
from copypool.protocol.digests import digest_of
from copypool.protocol.errors import CopypoolError, ErrorBody, OutcomeUnknown, RetryLater, from_body
from copypool.protocol.framing import encode_entry
from copypool.protocol.names import check_path
from copypool.results import BulkResult
from copypool.retry import WriteRetry
from copypool.uploading import Progress, upload
from copypool.writing import WriteId, Writer, check_receipt

BATCH_ENTRIES = 256  #: files in one request: more than two groups, so that a node always has the next one at hand
BATCH_BYTES = 4 * 1024 * 1024
BATCHES_IN_FLIGHT = 6
LARGE_IN_FLIGHT = 2  #: files of several parts; each holds its own parts in memory

PathContent = tuple[str, bytes | Path]  #: content in memory, or a local file, which may be of any size


@dataclass(slots=True)
class _Item:
    path: str
    data: bytes
    write_id: WriteId
    digest: bytes


class BatchWriter:
    """Stores a stream of (path, bytes). Bounded: `BATCHES_IN_FLIGHT` batches of `BATCH_BYTES` in memory."""

    def __init__(
        self,
        writer: Writer,
        namespace: str,
        *,
        if_absent: bool,
        keep_going: bool,
        deadline_s: float,
        progress: Progress | None,
    ) -> None:
        self.result = BulkResult()
        self._writer = writer
        self._namespace = namespace
        self._if_absent = if_absent
        self._keep_going = keep_going
        self._deadline_s = deadline_s
        self._progress = progress
        self._slots = asyncio.Semaphore(BATCHES_IN_FLIGHT)
        self._large_slots = asyncio.Semaphore(LARGE_IN_FLIGHT)

    async def store(self, files: AsyncIterator[Sequence[PathContent]]) -> BulkResult:
        """Store every file of every sequence. What is counted in the result is durable and visible.

        Without `keep_going` the first failure ends it: its error is raised, with `path` and `files` (stored so far)
        in its details. Repeating the whole call is safe.
        """
        waiting: list[_Item] = []
        size_bytes = 0
        try:
            async with TaskGroup() as group:
                async for chunk in files:
                    for path, data in chunk:
                        try:
                            check_path(path)
                        except CopypoolError as exc:
                            self._failed(path, exc)
                            continue
                        if isinstance(data, Path) or len(data) > SMALL_MAX_BYTES:
                            await self._start(group, self._large_slots, self._large(path, data))
                            continue
                        waiting.append(_Item(path, data, WriteId.new(), digest_of(data)))
                        size_bytes += len(data)
                        if len(waiting) == BATCH_ENTRIES or size_bytes >= BATCH_BYTES:
                            await self._start(group, self._slots, self._batch(waiting))
                            waiting, size_bytes = [], 0
                if waiting:
                    await self._start(group, self._slots, self._batch(waiting))
        except BaseExceptionGroup as failures:
            raise_first(failures)
        return self.result

    async def _start(self, group: TaskGroup, slots: asyncio.Semaphore, work: Coroutine[None, None, None]) -> None:
        try:
            await slots.acquire()
        except BaseException:
            work.close()
            raise
        task = group.create_task(work)
        task.add_done_callback(lambda _: slots.release())

    async def _large(self, path: str, data: bytes | Path) -> None:
        try:
            receipt = await upload(
                self._writer,
                self._namespace,
                path,
                data,
                if_absent=self._if_absent,
                metadata={},
                digest=None,
                deadline_s=self._deadline_s,
                progress=self._progress,
            )
        except CopypoolError as exc:
            self._failed(path, exc)
        else:
            self.result.files += 1
            self.result.bytes += receipt.size

    async def _batch(self, items: list[_Item]) -> None:
        """Store these files, each at most once, repeating those that may be repeated."""
        stories = WriteRetry(deadline_s=time.monotonic() + self._deadline_s)
        prefixes = prefixes_of_all([item.path for item in items])
        left = items
        while left:
            lease: WriteLease | None = None
            try:
                lease = await self._writer.lease(self._namespace, prefixes, SMALL_MAX_BYTES, stories)
                left, error = await self._attempt(lease, left)
            except CopypoolError as exc:
                error = exc
            if not left or error is None:
                return
            try:
                delay_s = self._writer.after_failure(error, lease, stories)
            except CopypoolError as exc:
                for item in left:
                    self._failed(item.path, exc)
                return
            await asyncio.sleep(delay_s)

    async def _attempt(self, lease: WriteLease, items: list[_Item]) -> tuple[list[_Item], CopypoolError | None]:
        """Send once; the files to repeat, and one of their errors."""
        first_sent_ms = self._writer.cluster_time_ms()
        pieces: list[bytes] = []
        for item in items:
            item.write_id.first_sent_ms = item.write_id.first_sent_ms or first_sent_ms
            pieces.append(
                encode_entry(
                    BatchEntry(
                        path=item.path,
                        size=len(item.data),
                        write_id=item.write_id.value,
                        first_sent_ms=item.write_id.first_sent_ms,
                        digest=item.digest,
                        if_absent=self._if_absent,
                    )
                )
            )
            pieces.append(item.data)
        reply = await self._writer.send_batch(lease, b"".join(pieces))
        if len(reply.results) != len(items):
            raise OutcomeUnknown(f"{lease.node} answered {len(reply.results)} results for a batch of {len(items)}")
        again: list[_Item] = []
        repeat_for: CopypoolError | None = None
        stored_bytes = 0
        for item, result in zip(items, reply.results, strict=True):
            if result.receipt is not None:
                check_receipt(result.receipt, lease.url, len(item.data), item.digest)
                self.result.files += 1
                stored_bytes += len(item.data)
                continue
            error = _error_of(result)
            if isinstance(error, RetryLater | OutcomeUnknown):
                again.append(item)
                if repeat_for is None or isinstance(error, OutcomeUnknown):
                    repeat_for = error
            else:
                self._failed(item.path, error)
        self.result.bytes += stored_bytes
        if self._progress is not None:
            self._progress(stored_bytes)
        return again, repeat_for

    def _failed(self, path: str, error: CopypoolError) -> None:
        if not self._keep_going:
            error.details.update(path=path, files=self.result.files)
            raise error
        self.result.add_failure(path, error)


def _error_of(result: BatchResult) -> CopypoolError:
    return from_body(ErrorBody(result.code, result.message, result.retryable))


async def in_chunks(files: Iterable[PathContent] | AsyncIterable[PathContent]) -> AsyncIterator[Sequence[PathContent]]:
    """Files one by one as sequences; the loop gets a turn between those of a plain iterable."""
    if isinstance(files, AsyncIterable):
        async for file in files:
            yield (file,)
        return
    chunk: list[PathContent] = []
    size_bytes = 0
    for file in files:
        chunk.append(file)
        size_bytes += len(file[1]) if isinstance(file[1], bytes) else 0
        if len(chunk) == BATCH_ENTRIES or size_bytes >= BATCH_BYTES:
            yield chunk
            chunk, size_bytes = [], 0
    yield chunk
