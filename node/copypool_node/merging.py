"""One good stripe out of several damaged ones: repair takes each block from any copy in which it passes. Pure.

Two copies with one bad block each hold every byte, as long as the blocks differ (DESIGN section 2, Read).
"""

from __future__ import annotations

from collections.abc import Sequence

from copypool.protocol.stripes import (
    BLOCK_BYTES,
    STRIPE_HEADER,
    StripePrelude,
    checksum,
    decode_prelude,
    peek_prelude_bytes,
)


def merge_stripe(extent: int, offset: int, copies: Sequence[bytes]) -> bytes | None:
    """The stripe whose header stands at file offset `offset`, checked block by block; None when it cannot be made.

    `copies` are the bytes of several locations from that offset on, each as long as it could be read.
    """
    found = _prelude(extent, offset, copies)
    if found is None:
        return None
    head, prelude = found
    blocks = [head]
    for index, at in enumerate(range(0, prelude.payload_bytes, BLOCK_BYTES)):
        start = len(head) + at
        size = min(BLOCK_BYTES, prelude.payload_bytes - at)
        for copy in copies:
            block = memoryview(copy)[start : start + size]
            if len(block) == size and checksum(block, extent, offset + start) == prelude.table[index]:
                blocks.append(bytes(block))
                break
        else:
            return None
    return b"".join(blocks)


def _prelude(extent: int, offset: int, copies: Sequence[bytes]) -> tuple[bytes, StripePrelude] | None:
    for copy in copies:
        size = peek_prelude_bytes(copy) if len(copy) >= STRIPE_HEADER.size else None
        if size is None:
            continue
        prelude = decode_prelude(copy[:size], extent, offset)
        if prelude is not None:
            return copy[:size], prelude
    return None
