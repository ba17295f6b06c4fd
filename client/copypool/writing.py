"""Storing files through nodes: one write id per file, repeated over leases and nodes until the outcome is known.

What a single request looks like is here; when and where it is repeated is decided by `retry` and `leases`.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from copypool.coordinators import Coordinators
from copypool.leases import LeasePool, prefixes_of
from copypool.protocol import routes
from copypool.protocol.api import (
    SMALL_MAX_BYTES,
    WRITE_ID_BYTES,
    BatchReply,
    CompleteRequest,
    Receipt,
    WriteLease,
)
from copypool.protocol.conditions import etag_of
from copypool.protocol.digests import format_digest
from copypool.protocol.errors import BrokenInvariant, CatalogDown, CopypoolError, OutcomeUnknown
from copypool.retry import WriteRetry
from copypool.transport import Answer, LinkFailed, Transport

T = TypeVar("T")

WRITE_DEADLINE_S = 30.0


@dataclass(slots=True)
class WriteId:
    """Names one write in all its attempts; servers apply it at most once."""

    value: bytes
    first_sent_ms: int = 0  #: cluster time of the first attempt; 0: not sent yet

    @classmethod
    def new(cls) -> WriteId:
        """A random one."""
        return cls(os.urandom(WRITE_ID_BYTES))


class Writer:
    """Sends single bodies, deletes, parts, completions and batches to nodes."""

    def __init__(self, transport: Transport, coordinators: Coordinators) -> None:
        self._transport = transport
        self._clock = coordinators.clock
        self._leases = LeasePool(coordinators)
        self._random = random.Random()

    async def put(
        self,
        namespace: str,
        path: str,
        data: bytes | memoryview,
        digest: bytes,
        *,
        if_absent: bool,
        metadata: Mapping[str, str],
        deadline_s: float,
        if_version: int = 0,
    ) -> Receipt:
        """Store one body of at most `PART_MAX_BYTES`. Durable and visible when this returns.

        Raises `PreconditionFailed` when the file exists (`if_absent`) or has another version than `if_version` (0: no
        such condition), `OutcomeUnknown` when nobody could tell in time.
        Cancelled: the file may or may not have been stored.
        """
        headers = {routes.DIGEST: format_digest(digest), "Content-Type": routes.OCTETS}
        if if_absent:
            headers["If-None-Match"] = "*"
        if if_version:
            headers["If-Match"] = etag_of(if_version)
        if metadata:
            headers[routes.METADATA] = routes.encode_metadata(dict(metadata))
        place = routes.encode_path(path)

        async def send(lease: WriteLease, write_id: WriteId) -> Receipt:
            url = f"{lease.url}/v1/files/{lease.namespace_id}/{place}"
            answer = await self._to_node("PUT", url, lease, write_id, headers, data)
            return _receipt(answer, url, len(data), digest)

        return await self.repeat(namespace, prefixes_of(path), len(data), send, deadline_s)

    async def delete(self, namespace: str, path: str, *, deadline_s: float, if_version: int = 0) -> Receipt:
        """Delete one file, if it has this version (0: whatever it has). Durable and visible when this returns.

        Raises `NotFound` when there was none, `PreconditionFailed` when its version is another one.
        """
        place = routes.encode_path(path)
        headers = {"If-Match": etag_of(if_version)} if if_version else {}

        async def send(lease: WriteLease, write_id: WriteId) -> Receipt:
            url = f"{lease.url}/v1/files/{lease.namespace_id}/{place}"
            return _decode(await self._to_node("DELETE", url, lease, write_id, headers, None), url, Receipt)

        return await self.repeat(namespace, prefixes_of(path), 0, send, deadline_s, deletes=True)

    async def put_part(
        self,
        namespace: str,
        path: str,
        upload: str,
        number: int,
        data: bytes | memoryview,
        digest: bytes,
        *,
        deadline_s: float,
    ) -> Receipt:
        """Store one part of an upload: durable, and invisible until the upload is completed."""
        headers = {routes.DIGEST: format_digest(digest), "Content-Type": routes.OCTETS}
        place = routes.encode_path(path)

        async def send(lease: WriteLease, write_id: WriteId) -> Receipt:
            url = f"{lease.url}/v1/parts/{lease.namespace_id}/{upload}/{number}/{place}"
            answer = await self._to_node("PUT", url, lease, write_id, headers, data)
            return _receipt(answer, url, len(data), digest)

        # Named as large in any case, so that the last, short part uses the same leases.
        return await self.repeat(namespace, prefixes_of(path), max(len(data), SMALL_MAX_BYTES + 1), send, deadline_s)

    async def complete(self, namespace: str, path: str, request: CompleteRequest, *, deadline_s: float) -> Receipt:
        """Make the parts one visible file. `request.write_id` names the write; repeated with it."""
        place = routes.encode_path(path)
        headers = {"Content-Type": routes.MSGPACK}

        async def send(lease: WriteLease, write_id: WriteId) -> Receipt:
            request.first_sent_ms = write_id.first_sent_ms
            url = f"{lease.url}/v1/complete/{lease.namespace_id}/{place}"
            body = msgspec.msgpack.encode(request)
            return _decode(await self._to_node("POST", url, lease, write_id, headers, body), url, Receipt)

        return await self.repeat(
            namespace, prefixes_of(path), SMALL_MAX_BYTES, send, deadline_s, write_id=WriteId(request.write_id)
        )

    async def send_batch(self, lease: WriteLease, body: bytes) -> BatchReply:
        """One attempt to store a batch body; see `batches` for the repetition of what failed."""
        url = f"{lease.url}/v1/batch/{lease.namespace_id}"
        answer = await self._to_node("POST", url, lease, None, {"Content-Type": routes.OCTETS}, body)
        return _decode(answer, url, BatchReply)

    async def repeat(
        self,
        namespace: str,
        prefixes: Sequence[str],
        size_bytes: int,
        send: Callable[[WriteLease, WriteId], Awaitable[T]],
        deadline_s: float,
        *,
        write_id: WriteId | None = None,
        deletes: bool = False,
    ) -> T:
        """Run `send` under one write id, with one lease after the other, until it succeeds or must not be repeated."""
        write_id = write_id or WriteId.new()
        story = WriteRetry(deadline_s=time.monotonic() + deadline_s)
        while True:
            lease: WriteLease | None = None
            try:
                lease = await self.lease(namespace, prefixes, size_bytes, story, deletes=deletes)
                write_id.first_sent_ms = write_id.first_sent_ms or self._clock.now_ms()
                return await send(lease, write_id)
            except CopypoolError as exc:
                delay_s = self.after_failure(exc, lease, story)
            await asyncio.sleep(delay_s)

    async def lease(
        self, namespace: str, prefixes: Sequence[str], size_bytes: int, story: WriteRetry, *, deletes: bool = False
    ) -> WriteLease:
        """A write lease on none of the nodes that just failed this write, if that can be."""
        avoid_nodes = story.avoid_nodes(time.monotonic())
        return await self._leases.take(namespace, prefixes, size_bytes, avoid_nodes, deletes=deletes)

    def after_failure(self, error: CopypoolError, lease: WriteLease | None, story: WriteRetry) -> float:
        """Seconds until the next attempt; raises the error for the caller when there must be none.

        `lease` is None when no node was asked. A request that may have reached its node has an unknown outcome.
        """
        if lease is not None:
            if isinstance(error, CatalogDown):
                self._leases.drop_all()  # whether etcd is away is asked of a coordinator, not of node after node
            self._leases.drop(lease)
            if isinstance(error, LinkFailed) and error.sent:
                error = _unknown(error)
        node_id = lease.node_id if lease is not None else None
        return story.failed(error, node_id, time.monotonic(), self._random.random())

    def cluster_time_ms(self) -> int:
        """Cluster time, as far as a coordinator told it; 0 before the first lease."""
        return self._clock.now_ms()

    async def _to_node(
        self,
        method: str,
        url: str,
        lease: WriteLease,
        write_id: WriteId | None,
        headers: Mapping[str, str],
        data: bytes | memoryview | None,
    ) -> Answer:
        sent = {routes.CAPABILITY: lease.capability, "Accept": routes.MSGPACK, **headers}
        if write_id is not None:
            sent[routes.WRITE_ID] = write_id.value.hex()
            sent[routes.FIRST_SENT] = str(write_id.first_sent_ms)
        return await self._transport.send(
            method, url, headers=sent, data=data, answer_s=self._transport.timeouts.write_answer_s
        )


def _unknown(error: LinkFailed) -> OutcomeUnknown:
    unknown = OutcomeUnknown(f"{error.message}; the write may have been applied")
    unknown.__cause__ = error
    return unknown


def _decode(answer: Answer, url: str, struct: type[T]) -> T:
    try:
        return msgspec.msgpack.decode(answer.content, type=struct)
    except msgspec.MsgspecError as exc:
        raise OutcomeUnknown(f"the answer of {url} is no {struct.__name__}: {exc}") from exc


def _receipt(answer: Answer, url: str, size_bytes: int, digest: bytes) -> Receipt:
    receipt = _decode(answer, url, Receipt)
    check_receipt(receipt, url, size_bytes, digest)
    return receipt


def check_receipt(receipt: Receipt, url: str, size_bytes: int, digest: bytes) -> None:
    """Raise `BrokenInvariant` unless the receipt, of a repeat too, is about the bytes that were sent."""
    if receipt.size != size_bytes or receipt.digest != format_digest(digest):
        raise BrokenInvariant(
            f"{url} acknowledged {receipt.size} bytes with {receipt.digest}, sent were {size_bytes} bytes with "
            f"{format_digest(digest)}"
        )
