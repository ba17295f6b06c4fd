"""Framing of a batch body: for every file a u32 little-endian head size, a `BatchEntry` as msgpack, its payload."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec

from copypool.protocol.api import BATCH_MAX_ENTRIES, SMALL_MAX_BYTES, BatchEntry
from copypool.protocol.errors import Invalid, TooLarge

_SIZE = struct.Struct("<I")
_HEAD_MAX_BYTES = 16 * 1024
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(BatchEntry)


def encode_entry(entry: BatchEntry) -> bytes:
    """Head of one file; its payload follows."""
    head = _encoder.encode(entry)
    return _SIZE.pack(len(head)) + head


def decode_batch(body: bytes | bytearray | memoryview) -> Iterator[tuple[BatchEntry, memoryview]]:
    """The files of a batch body, payloads without a copy; `Invalid` or `TooLarge` at the first malformed one."""
    view = memoryview(body)
    at = 0
    count = 0
    while at < len(view):
        count += 1
        if count > BATCH_MAX_ENTRIES:
            raise TooLarge(f"a batch holds at most {BATCH_MAX_ENTRIES} files")
        if len(view) - at < _SIZE.size:
            raise Invalid(f"the batch is cut off in the head size of file {count}")
        (size,) = _SIZE.unpack_from(view, at)
        at += _SIZE.size
        if size > _HEAD_MAX_BYTES or size > len(view) - at:
            raise Invalid(f"the batch's head of file {count} is {size} bytes long: cut off, or no batch")
        try:
            entry = _decoder.decode(view[at : at + size])
        except msgspec.MsgspecError as exc:
            raise Invalid(f"the batch's head of file {count} is malformed: {exc}") from exc
        at += size
        if not 0 <= entry.size <= SMALL_MAX_BYTES:
            raise TooLarge(f"file {count} of the batch has {entry.size} bytes; the limit is {SMALL_MAX_BYTES}")
        if entry.size > len(view) - at:
            raise Invalid(f"the batch is cut off in the payload of file {count}")
        yield entry, view[at : at + entry.size]
        at += entry.size
