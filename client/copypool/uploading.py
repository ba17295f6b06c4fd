"""One file of any size and any kind of content: a single body, or parts in parallel and a completion.

Memory is bounded by `PARTS_IN_FLIGHT` + 2 parts, also when the size is not known beforehand.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping

from msgspec.structs import replace

from copypool.bodies import Body, Content, open_body
from copypool.cancellation import TaskGroup, raise_first
from copypool.protocol.api import FILE_MAX_BYTES, PART_BYTES, PARTS_MAX, CompleteRequest, PartRef, Receipt
from copypool.protocol.digests import Hasher, digest_of, format_digest, parse_digest
from copypool.protocol.errors import BrokenInvariant, DigestRefused, TooLarge
from copypool.threads import hash_body
from copypool.writing import WriteId, Writer

PARTS_IN_FLIGHT = 4
PART_TRIES = 3  #: of a part whose receipt says that it was stored before

Progress = Callable[[int], None]  #: called with the number of bytes that became durable, or were delivered


async def upload(
    writer: Writer,
    namespace: str,
    path: str,
    content: Content,
    *,
    if_absent: bool,
    metadata: Mapping[str, str],
    digest: str | None,
    deadline_s: float,
    progress: Progress | None,
    if_version: int = 0,
) -> Receipt:
    """Store `content` as one file. Visible as a whole, and durable, when this returns; else not visible at all.

    `digest` is what the caller expects: `DigestRefused` when the content has another one, before it becomes visible.
    `deadline_s` bounds the retries of each body, not the whole transfer.
    """
    expected = parse_digest(digest) if digest else None
    body = open_body(content)
    try:
        first = await body.read(PART_BYTES)
        following = await body.read(PART_BYTES) if len(first) == PART_BYTES else b""
        if len(following) == 0:
            actual = await hash_body(first)
            _check_digest(expected, actual)
            receipt = await writer.put(
                namespace,
                path,
                first,
                actual,
                if_absent=if_absent,
                metadata=metadata,
                deadline_s=deadline_s,
                if_version=if_version,
            )
            if progress is not None:
                progress(len(first))
            return receipt
        parts = _Parts(writer, namespace, path, deadline_s, progress, body)
        await parts.store(first, following)
    finally:
        await body.close()
    _check_digest(expected, parts.digest)
    request = CompleteRequest(
        upload=parts.upload,
        parts=parts.in_order(),
        size=parts.size,
        digest=parts.digest,
        write_id=WriteId.new().value,
        if_absent=if_absent,
        metadata=dict(metadata),
        if_version=if_version,
    )
    receipt = await writer.complete(namespace, path, request, deadline_s=deadline_s)
    # The file is where its worst part is: the completion's own record may have met a rule that a part did not.
    return receipt if parts.copied else replace(receipt, ack="primary")


class _Parts:
    """The parts of one upload: hashed in order, stored in parallel."""

    def __init__(
        self, writer: Writer, namespace: str, path: str, deadline_s: float, progress: Progress | None, body: Body
    ) -> None:
        self.upload = os.urandom(16).hex()
        self._writer = writer
        self._namespace = namespace
        self._path = path
        self._deadline_s = deadline_s
        self._progress = progress
        self._body = body  #: read up to the second part
        self._whole = Hasher()
        self._stored: dict[int, PartRef] = {}
        self.copied = True  #: every part was acknowledged as being at a copy too
        self._count = 0
        self._slots = asyncio.Semaphore(PARTS_IN_FLIGHT)

    @property
    def size(self) -> int:
        return self._whole.length

    @property
    def digest(self) -> bytes:
        return self._whole.digest()

    def in_order(self) -> list[PartRef]:
        return [self._stored[number] for number in range(self._count)]

    async def store(self, first: bytes | memoryview, following: bytes | memoryview) -> None:
        """Store every part; on the first failure the others are cancelled and its error is raised."""
        try:
            async with TaskGroup() as group:
                await self._start(group, first)
                while len(following):
                    await self._start(group, following)
                    following = await self._body.read(PART_BYTES)
        except BaseExceptionGroup as failures:
            raise_first(failures)

    async def _start(self, group: TaskGroup, data: bytes | memoryview) -> None:
        if self._count == PARTS_MAX:
            raise TooLarge(f"the file is larger than {FILE_MAX_BYTES} bytes")
        await self._slots.acquire()
        digest = await asyncio.to_thread(self._hash, data)
        group.create_task(self._send(self._count, data, digest))
        self._count += 1

    def _hash(self, data: bytes | memoryview) -> bytes:
        self._whole.update(data)
        return digest_of(data)

    async def _send(self, number: int, data: bytes | memoryview, digest: bytes) -> None:
        try:
            receipt = await self._stored_part(number, data, digest)
        finally:
            self._slots.release()
        if receipt.segment is None:
            raise BrokenInvariant(f"the receipt of part {number} of {self._path!r} names no segment")
        self.copied = self.copied and receipt.ack == "copy"
        self._stored[number] = PartRef(number, receipt.version, digest, receipt.segment)
        size = len(data)
        # A node has all of it. What an attempt before that one may still have on its way is refused by its digest.
        self._body.done_with(data)
        if self._progress is not None:
            self._progress(size)

    async def _stored_part(self, number: int, data: bytes | memoryview, digest: bytes) -> Receipt:
        """The receipt of a part. One that was stored by an attempt whose answer was lost is known to be there, but not
        where: it is stored once more, as a newer one."""
        for _ in range(PART_TRIES):
            receipt = await self._writer.put_part(
                self._namespace, self._path, self.upload, number, data, digest, deadline_s=self._deadline_s
            )
            if receipt.segment is not None:
                break
        return receipt


def _check_digest(expected: bytes | None, actual: bytes) -> None:
    if expected is not None and expected != actual:
        raise DigestRefused(
            f"the content has the digest {format_digest(actual)}, stated was {format_digest(expected)}; "
            "nothing was stored"
        )
