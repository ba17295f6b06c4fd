"""PUT, DELETE, parts, complete and batch, as clients send them. Parses, checks, submits; holds no policy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
from aiohttp.web import BaseRequest, Response

from copypool.protocol.api import (
    ANY_VERSION,
    BATCH_MAX_BYTES,
    BATCH_MAX_ENTRIES,
    PART_MAX_BYTES,
    PARTS_MAX,
    SMALL_MAX_BYTES,
    WRITE_ID_BYTES,
    BatchEntry,
    BatchReply,
    BatchResult,
    CompleteRequest,
    PartRef,
    Receipt,
)
from copypool.protocol.capability import WriteCapability, check_write
from copypool.protocol.digests import DIGEST_BYTES, digest_of
from copypool.protocol.errors import (
    CopypoolError,
    DigestRefused,
    Forbidden,
    Invalid,
    NotFound,
    OutcomeUnknown,
    Unavailable,
)
from copypool.protocol.framing import decode_batch
from copypool.protocol.names import METADATA_MAX_BYTES, PATH_MAX_BYTES, check_metadata, check_name, check_path
from copypool.protocol.routes import NAMESPACE_QUERY, decode_body, decode_path
from copypool.protocol.versions import VERSION_MAX
from copypool.serving.heads import Asked, Asks, Told
from copypool_node import requests
from copypool_node.body import Body
from copypool_node.group import PendingRecord
from copypool_node.requests import CapabilityDoor, reply

if TYPE_CHECKING:
    from copypool_node.config import Limits
    from copypool_node.metrics import Metrics
    from copypool_node.space import Purpose
    from copypool_node.streams import StreamPool
    from copypool_node.volumes import MountedVolume
    from copypool_node.writer import Lane

#: Room for the heads of a batch: their paths, metadata and fixed fields.
_BATCH_HEADS_BYTES = BATCH_MAX_ENTRIES * (PATH_MAX_BYTES + METADATA_MAX_BYTES + 256)
_COMPLETE_MAX_BYTES = 16 * 1024 * 1024
_MANIFEST_MAX_BYTES = 4 * 1024 * 1024
_EMPTY_DIGEST = digest_of(b"")
_manifest_encoder = msgspec.msgpack.Encoder()


class WriteHandlers:
    """Handlers of requests that append records."""

    def __init__(
        self,
        door: CapabilityDoor,
        find_volume: Callable[[int], MountedVolume | None],
        lane_of: Callable[[MountedVolume, int], Lane],
        lane_of_batch: Callable[[MountedVolume, int], Lane],
        streams_of: Callable[[MountedVolume, int], StreamPool],
        limits: Limits,
        metrics: Metrics,
    ) -> None:
        self._door = door
        self._find_volume = find_volume
        self._lane_of = lane_of
        self._lane_of_batch = lane_of_batch
        self._streams_of = streams_of
        self._limits = limits
        self._metrics = metrics

    # -- one file, one part -------------------------------------------------------------------
    async def put_file(self, request: BaseRequest, rest: str, query: str) -> Response:
        """PUT /v1/files/<namespace id>/<path>."""
        return (await self._put(request, *self._file_record(request, rest, query))).response()

    async def put_whole(self, asked: Asked, rest: str, query: str) -> Told:
        """The same with a small body that is here already."""
        record, name = self._file_record(asked, rest, query)
        size = len(asked.body)
        capability = self._check(record.capability, record.namespace, record.path, size)
        volume = self._volume(capability)
        await volume.admit(size, "data")
        receipt = await self._store(record, asked.body, requests.stated_digest(asked), capability, volume)
        return self._receipt(asked, receipt, name)

    def _file_record(self, request: Asks, rest: str, query: str) -> tuple[PendingRecord, str]:
        """The record that a PUT asks for, without its payload, and the namespace's name for its receipt."""
        namespace, _, raw_path = rest.partition("/")
        record = PendingRecord(
            kind="file",
            namespace=requests.number(namespace, "the namespace id"),
            path=check_path(decode_path(raw_path)),
            payload=b"",
            digest=_EMPTY_DIGEST,
            write_id=requests.write_id(request, query),
            first_sent_ms=requests.first_sent_ms(request, query),
            capability=requests.capability_text(request, query),
            waiter=None,
            deadline_s=0.0,
            metadata=requests.metadata(request),
            if_absent=requests.if_absent(request),
            if_version=requests.if_version(request),
        )
        name = requests.parameter(query, NAMESPACE_QUERY)
        return record, check_name(name, "namespace") if name else ""

    async def put_part(self, request: BaseRequest, rest: str, query: str) -> Response:
        """PUT /v1/parts/<namespace id>/<upload>/<number>/<path>."""
        pieces = rest.split("/", 3)
        if len(pieces) != 4:
            raise NotFound("no such resource")
        part = requests.number(pieces[2], "the part number")
        if part >= PARTS_MAX:
            raise Invalid(f"part {part}: parts are numbered from 0 to {PARTS_MAX - 1}")
        record = PendingRecord(
            kind="part",
            namespace=requests.number(pieces[0], "the namespace id"),
            path=check_path(decode_path(pieces[3])),
            payload=b"",
            digest=_EMPTY_DIGEST,
            write_id=requests.write_id(request, query),
            first_sent_ms=requests.first_sent_ms(request, query),
            capability=requests.capability_text(request, query),
            waiter=None,
            deadline_s=0.0,
            upload=_upload_id(pieces[1]),
            part=part,
        )
        return (await self._put(request, record)).response()

    async def _put(self, request: BaseRequest, record: PendingRecord, name: str = "") -> Told:
        body = Body(request, max_bytes=PART_MAX_BYTES, stall_s=self._limits.body_stall_s)
        capability = self._check(record.capability, record.namespace, record.path, body.length or 0)
        volume = self._volume(capability)
        await volume.admit(PART_MAX_BYTES if body.length is None else body.length, "data")
        stated = requests.stated_digest(request)
        await body.begin()
        payload = await body.read_up_to(SMALL_MAX_BYTES)
        if payload is None:
            if body.length is None:
                body.limit(capability.max_bytes)
            receipt = await self._streams_of(volume, capability.class_id).put(record, body, stated)
        else:
            receipt = await self._store(record, payload, stated, capability, volume)
        return self._receipt(request, receipt, name)

    async def _store(
        self, record: PendingRecord, payload: bytes, stated: bytes, capability: WriteCapability, volume: MountedVolume
    ) -> Receipt:
        """Commit a record of at most `SMALL_MAX_BYTES`."""
        if len(payload) > capability.max_bytes:
            raise Forbidden(f"the capability allows bodies of up to {capability.max_bytes} bytes")
        record.payload = payload
        record.size = len(payload)
        record.digest = digest_of(payload)
        if stated and record.digest != stated:
            raise DigestRefused("the bytes received do not have the stated digest: nothing was stored")
        return await self._lane_of(volume, capability.class_id).submit(record)

    def _receipt(self, request: Asks, receipt: Receipt, name: str) -> Told:
        self._metrics.put_bytes += receipt.size
        if name:
            receipt.namespace = name
        return requests.told(request, receipt, 200 if receipt.replayed else 201)

    async def delete_file(self, request: BaseRequest, rest: str, query: str) -> Response:
        """DELETE /v1/files/<namespace id>/<path>: a tombstone record through the same group commit."""
        namespace, _, raw_path = rest.partition("/")
        if requests.if_absent(request):
            raise Invalid("a delete of a file that must not exist: `If-None-Match` is for PUT")
        record = PendingRecord(
            kind="tombstone",
            namespace=requests.number(namespace, "the namespace id"),
            path=check_path(decode_path(raw_path)),
            payload=b"",
            digest=_EMPTY_DIGEST,
            write_id=requests.write_id(request, query),
            first_sent_ms=requests.first_sent_ms(request, query),
            capability=requests.capability_text(request, query),
            waiter=None,
            deadline_s=0.0,
            if_version=requests.if_version(request),
        )
        return reply(request, await self._submit(record, "tombstone"))

    # -- multipart ----------------------------------------------------------------------------
    async def complete(self, request: BaseRequest, rest: str, query: str) -> Response:
        """POST /v1/complete/<namespace id>/<path>: a manifest record that makes the parts one file."""
        namespace, _, raw_path = rest.partition("/")
        path = check_path(decode_path(raw_path))
        body = Body(request, max_bytes=_COMPLETE_MAX_BYTES, stall_s=self._limits.body_stall_s)
        capability = requests.capability_text(request, query)
        self._check(capability, requests.number(namespace, "the namespace id"), path, 0)
        await body.begin()
        content = await body.read_up_to(_COMPLETE_MAX_BYTES)
        asked = decode_body(content or b"", request.headers.get("Content-Type", ""), CompleteRequest)
        _check_complete(asked)
        segments = [part.segment for part in asked.parts]
        payload = _manifest_encoder.encode(segments)
        if len(payload) > _MANIFEST_MAX_BYTES:
            raise Invalid(f"a manifest of {len(payload)} bytes: use fewer, larger parts")
        record = PendingRecord(
            kind="manifest",
            namespace=requests.number(namespace, "the namespace id"),
            path=path,
            payload=payload,
            digest=asked.digest,
            write_id=asked.write_id,
            first_sent_ms=asked.first_sent_ms,
            capability=capability,
            waiter=None,
            deadline_s=0.0,
            metadata=check_metadata(asked.metadata),
            if_absent=asked.if_absent,
            if_version=_version(asked.if_version),
            upload=_upload_id(asked.upload),
            segments=segments,
            part_versions=[part.version for part in asked.parts],
            size=asked.size,
        )
        receipt = await self._submit(record, "data")
        return reply(request, receipt, 200 if receipt.replayed else 201)

    # -- batch --------------------------------------------------------------------------------
    async def batch(self, request: BaseRequest, rest: str, query: str) -> Response:
        """POST /v1/batch/<namespace id>: many small files in one request; results in order."""
        namespace = requests.number(rest, "the namespace id")
        body = Body(request, max_bytes=BATCH_MAX_BYTES + _BATCH_HEADS_BYTES, stall_s=self._limits.body_stall_s)
        text = requests.capability_text(request, query)
        capability = self._door.open(text)
        if not isinstance(capability, WriteCapability):
            raise Forbidden("this capability does not allow writing")
        volume = self._volume(capability)
        await volume.admit(body.length or 0, "data")
        await body.begin()
        content = await body.read_up_to(BATCH_MAX_BYTES + _BATCH_HEADS_BYTES) or b""
        files = list(decode_batch(content))
        if sum(entry.size for entry, _ in files) > BATCH_MAX_BYTES:
            raise Invalid(f"the batch holds more than {BATCH_MAX_BYTES} payload bytes")
        lane = self._lane_of_batch(volume, capability.class_id)

        def send(entry: BatchEntry, payload: memoryview) -> asyncio.Future[Receipt]:
            check_write(capability, namespace, check_path(entry.path), entry.size)
            return lane.submit(_record_of(entry, payload, namespace, text))

        results = await _sent_in_order(files, send)
        self._metrics.put_bytes += sum(one.receipt.size for one in results if one.receipt is not None)
        return reply(request, BatchReply(results))

    # -- shared -------------------------------------------------------------------------------
    def _check(self, text: str, namespace: int, path: str, size_bytes: int) -> WriteCapability:
        return check_write(self._door.open(text), namespace, path, size_bytes)

    def _volume(self, capability: WriteCapability) -> MountedVolume:
        volume = self._find_volume(capability.volume)
        if volume is None:
            raise Unavailable("the volume of this capability is not mounted here: take another write lease")
        volume.check_class(capability.class_id)
        return volume

    async def _submit(self, record: PendingRecord, purpose: Purpose) -> Receipt:
        capability = self._check(record.capability, record.namespace, record.path, 0)
        volume = self._volume(capability)
        await volume.admit(len(record.payload), purpose)
        return await self._lane_of(volume, capability.class_id).submit(record)


def _upload_id(text: str) -> bytes:
    try:
        value = bytes.fromhex(text)
    except ValueError as exc:
        raise Invalid("the upload id is not hexadecimal") from exc
    if len(value) != 16:
        raise Invalid("the upload id must have 32 hex digits")
    return value


def _version(number: int) -> int:
    if not ANY_VERSION <= number <= VERSION_MAX:
        raise Invalid(f"if_version {number} is no version")
    return number


def _check_complete(asked: CompleteRequest) -> None:
    if not 1 <= len(asked.parts) <= PARTS_MAX:
        raise Invalid(f"{len(asked.parts)} parts; a file has 1 to {PARTS_MAX}")
    if len(asked.write_id) != WRITE_ID_BYTES or len(asked.digest) != DIGEST_BYTES:
        raise Invalid(f"the write id must have {WRITE_ID_BYTES} bytes and the digest {DIGEST_BYTES}")
    if [part.number for part in asked.parts] != list(range(len(asked.parts))):
        raise Invalid("the parts must be numbered 0, 1, 2 ... in order")
    if sum(part.segment.length for part in asked.parts) != asked.size:
        raise Invalid("the parts' lengths do not add up to the size")
    _check_equal_parts(asked.parts)


def _check_equal_parts(parts: list[PartRef]) -> None:
    first = parts[0].segment.length
    if any(part.segment.length != first for part in parts[:-1]) or not 0 <= parts[-1].segment.length <= first:
        raise Invalid("all parts but the last must have one size, and the last no more")


def _record_of(entry: BatchEntry, payload: memoryview, namespace: int, capability: str) -> PendingRecord:
    if len(entry.write_id) != WRITE_ID_BYTES:
        raise Invalid(f"{entry.path!r}: the write id must have {WRITE_ID_BYTES} bytes")
    digest = digest_of(payload)
    if entry.digest and entry.digest != digest:
        raise DigestRefused(f"{entry.path!r}: the bytes received do not have the stated digest: nothing was stored")
    return PendingRecord(
        kind="file",
        namespace=namespace,
        path=entry.path,
        payload=payload,
        digest=digest,
        write_id=entry.write_id,
        first_sent_ms=entry.first_sent_ms,
        capability=capability,
        waiter=None,
        deadline_s=0.0,
        metadata=check_metadata(entry.metadata) if entry.metadata else {},
        if_absent=entry.if_absent,
        if_version=_version(entry.if_version),
        size=entry.size,
    )


async def _sent_in_order(
    files: list[tuple[BatchEntry, memoryview]], send: Callable[[BatchEntry, memoryview], asyncio.Future[Receipt]]
) -> list[BatchResult]:
    """What became of each file, in order. Of contents for one path each is sent when the one before has its outcome.

    Otherwise one that finds no room in its group would be appended behind a later one that is written already.
    """
    results: dict[int, BatchResult] = {}
    left = list(range(len(files)))
    while left:
        sent: dict[str, int] = {}
        waiting: list[tuple[int, asyncio.Future[Receipt]]] = []
        for index in left:
            entry, payload = files[index]
            if sent.setdefault(entry.path, index) != index:
                continue
            try:
                waiting.append((index, send(entry, payload)))
            except CopypoolError as exc:
                results[index] = _result_of(exc)
        for index, future in waiting:
            results[index] = await outcome_of(future)
        left = [] if len(sent) == len(left) else [index for index in left if index not in results]
    return [results[index] for index in range(len(files))]


async def outcome_of(future: asyncio.Future[Receipt]) -> BatchResult:
    """What became of one file of a batch; cancelled, it is given up like a single upload that is cancelled."""
    try:
        return BatchResult(receipt=await future)
    except CopypoolError as exc:
        return _result_of(exc)
    except asyncio.CancelledError:
        # Cancelling who waits cancels the future as well: only the other way round is it an answer.
        task = asyncio.current_task()
        if future.cancelled() and not (task is not None and task.cancelling()):
            return _result_of(OutcomeUnknown("the node gave up the wait: repeat with the same write id"))
        raise


def _result_of(error: CopypoolError) -> BatchResult:
    return BatchResult(code=error.code, message=error.message, retryable=error.retryable)
