"""Where payload bytes are inside a record, and how each block of them is checked. Arithmetic only.

A record's payload is cut into stripes of 4 MiB (the last one shorter). Each stripe is stored as

    stripe header (16 B: magic, payload length, table crc, flags) | crc table (4 B per block) | payload

with blocks of 64 KiB. The table stands *before* its payload so that a receiver checks each block as it arrives and
a scanner knows the length of what follows although the body's length was unknown when the record was begun.

Every checksum is CRC-32C seeded with (extent id, file offset of the thing it covers): a block that was written to,
or read from, the wrong place does not pass. The full layout is specified in node/README.md.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from crc32c import crc32c

BLOCK_BYTES = 64 * 1024
STRIPE_BYTES = 4 * 1024 * 1024
BLOCKS_PER_STRIPE = STRIPE_BYTES // BLOCK_BYTES
STRIPE_HEADER = struct.Struct("<4sIII")  #: magic, payload length, flags, crc of the 12 bytes before and the table
STRIPE_MAGIC = b"STRP"
FULL_TABLE_BYTES = 4 * BLOCKS_PER_STRIPE
FULL_STRIDE_BYTES = STRIPE_HEADER.size + FULL_TABLE_BYTES + STRIPE_BYTES
FLAG_LAST = 1
#: Stripe header and table in front of a payload of one block.
SOLE_PRELUDE_BYTES = STRIPE_HEADER.size + 4

_SOLE = struct.Struct(STRIPE_HEADER.format + "I")
_SEED = struct.Struct("<QQ")


def seed(extent_id: int, offset: int) -> int:
    """The CRC-32C state that a checksum at this place starts from."""
    return crc32c(_SEED.pack(extent_id, offset))


def checksum(data: bytes | bytearray | memoryview, extent_id: int, offset: int) -> int:
    """CRC-32C of `data`, seeded with its place."""
    return crc32c(data, seed(extent_id, offset))


def block_count(payload_bytes: int) -> int:
    """How many blocks hold this many payload bytes."""
    return -(-payload_bytes // BLOCK_BYTES)


def prelude_bytes(payload_bytes: int) -> int:
    """Size of stripe header and table in front of a stripe with this much payload."""
    return STRIPE_HEADER.size + 4 * block_count(payload_bytes)


def stored_bytes(payload_bytes: int) -> int:
    """Size of all stripes of a payload of this length, headers and tables included."""
    full, rest = divmod(payload_bytes, STRIPE_BYTES)
    return full * FULL_STRIDE_BYTES + (prelude_bytes(rest) + rest if rest else 0)


def encode_prelude(payload: bytes | bytearray | memoryview, extent_id: int, offset: int, *, last: bool) -> bytes:
    """Stripe header and table for `payload`, whose stripe header will stand at file offset `offset`."""
    view = memoryview(payload)
    start = offset + prelude_bytes(len(view))
    if len(view) <= BLOCK_BYTES:
        table = checksum(view, extent_id, start).to_bytes(4, "little") if len(view) else b""
    else:
        table = b"".join(
            checksum(view[at : at + BLOCK_BYTES], extent_id, start + at).to_bytes(4, "little")
            for at in range(0, len(view), BLOCK_BYTES)
        )
    head = struct.pack("<4sII", STRIPE_MAGIC, len(view), FLAG_LAST if last else 0)
    return head + checksum(head + table, extent_id, offset).to_bytes(4, "little") + table


class StripePrelude(NamedTuple):
    """A checked stripe header and table."""

    payload_bytes: int
    last: bool
    table: tuple[int, ...]


def peek_prelude_bytes(head: bytes | bytearray | memoryview) -> int | None:
    """Whole size of the prelude that starts with these >= 16 bytes, or None when they are no stripe header."""
    magic, payload_bytes, _flags, _crc = STRIPE_HEADER.unpack_from(head)
    if magic != STRIPE_MAGIC or not 0 < payload_bytes <= STRIPE_BYTES:
        return None
    return prelude_bytes(payload_bytes)


def decode_prelude(data: bytes | bytearray | memoryview, extent_id: int, offset: int) -> StripePrelude | None:
    """Check and decode a whole prelude; None when it is not one or its checksum fails."""
    size = peek_prelude_bytes(data) if len(data) >= STRIPE_HEADER.size else None
    if size is None or len(data) < size:
        return None
    _magic, payload_bytes, flags, crc = STRIPE_HEADER.unpack_from(data)
    view = memoryview(data)
    state = checksum(view[:12], extent_id, offset)
    if crc32c(view[STRIPE_HEADER.size : size], state) != crc:
        return None
    table = struct.unpack_from(f"<{block_count(payload_bytes)}I", data, STRIPE_HEADER.size)
    return StripePrelude(payload_bytes, bool(flags & FLAG_LAST), table)


class StripeRange(NamedTuple):
    """The part of one stripe that holds some of a wanted payload range, widened to whole blocks."""

    prelude_offset: int  #: file offset of the stripe header
    prelude_bytes: int
    data_offset: int  #: file offset of the first wanted block
    data_bytes: int  #: whole blocks; the stripe's last block may be short
    first_block: int  #: index of the first wanted block in the stripe's table
    skip_bytes: int  #: payload bytes at the head of the data that lie before the wanted range
    take_bytes: int  #: payload bytes of the wanted range in this stripe


def split_range(segment_offset: int, segment_length: int, start: int, stop: int) -> Iterator[StripeRange]:
    """The stripe parts that hold payload bytes [start, stop) of a segment, in order.

    `segment_offset` is the file offset of the segment's first stripe header; 0 <= start <= stop <= segment_length.
    """
    position = start
    while position < stop:
        stripe, inside = divmod(position, STRIPE_BYTES)
        stripe_start = stripe * STRIPE_BYTES
        payload = min(STRIPE_BYTES, segment_length - stripe_start)
        take = min(stop - position, payload - inside)
        first = inside // BLOCK_BYTES
        data_end = min(payload, block_count(inside + take) * BLOCK_BYTES)
        prelude_offset = segment_offset + stripe * FULL_STRIDE_BYTES
        prelude = prelude_bytes(payload)
        yield StripeRange(
            prelude_offset=prelude_offset,
            prelude_bytes=prelude,
            data_offset=prelude_offset + prelude + first * BLOCK_BYTES,
            data_bytes=data_end - first * BLOCK_BYTES,
            first_block=first,
            skip_bytes=inside - first * BLOCK_BYTES,
            take_bytes=take,
        )
        position += take


def first_bad_block(
    data: bytes | bytearray | memoryview, prelude: StripePrelude, extent_id: int, part: StripeRange
) -> int | None:
    """Check the blocks of one stripe part; the payload offset in `data` of the first bad one, or None when all pass."""
    view = memoryview(data)
    for index, at in enumerate(range(0, len(view), BLOCK_BYTES)):
        block = view[at : at + BLOCK_BYTES]
        if checksum(block, extent_id, part.data_offset + at) != prelude.table[part.first_block + index]:
            return at
    return None


def sole_block(stored: bytes, extent_id: int, offset: int) -> bytes | None:
    """The payload of a stripe that is one block, all of it as it was read at file offset `offset`; None: it is not
    whole, or a checksum fails. The same checks as `decode_prelude` and `first_bad_block`, for a fifth of their work."""
    if not SOLE_PRELUDE_BYTES < len(stored) <= SOLE_PRELUDE_BYTES + BLOCK_BYTES:
        return None
    magic, payload_bytes, _flags, crc, block_crc = _SOLE.unpack_from(stored)
    payload = stored[SOLE_PRELUDE_BYTES:]
    if magic != STRIPE_MAGIC or payload_bytes != len(payload):
        return None
    state = crc32c(stored[:12], crc32c(_SEED.pack(extent_id, offset)))
    if crc32c(stored[STRIPE_HEADER.size : SOLE_PRELUDE_BYTES], state) != crc:
        return None
    start = crc32c(_SEED.pack(extent_id, offset + SOLE_PRELUDE_BYTES))
    return payload if crc32c(payload, start) == block_crc else None
