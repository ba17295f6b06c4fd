"""Where a long body's stripes are put together before they are written: memory that is used again. No I/O.

A stripe comes as chunks of the socket and goes to the disk with its prelude in front. Both are put into one buffer,
each byte at its file offset modulo `DIRECT_ALIGN_BYTES`, as writes past the page cache ask for; the copy is the one
that joining the chunks would take. Memory that the process has touched before costs no page faults.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence

from copypool.protocol import stripes
from copypool.protocol.digests import Hasher
from copypool.protocol.errors import BrokenInvariant
from copypool_node.disk import DIRECT_ALIGN_BYTES
from copypool_node.format import GROUP_HEADER_MAX_BYTES, RECORD_HEADER_MAX_BYTES, Buffer

#: Of the group's header and the record's, in front of a body's first stripe.
_HEADS_MAX_BYTES = GROUP_HEADER_MAX_BYTES + RECORD_HEADER_MAX_BYTES
_ROOM_BYTES = DIRECT_ALIGN_BYTES + _HEADS_MAX_BYTES + stripes.FULL_STRIDE_BYTES
ROOMS_KEPT = 4  #: rooms that stay for later bodies; each has about 4 MiB


class StripeRoom:
    """Memory for one stripe at a time. Used by one thread at a time."""

    __slots__ = ("_view",)

    def __init__(self) -> None:
        # Private and anonymous: aligned, and gone with the last view of it.
        self._view = memoryview(mmap.mmap(-1, _ROOM_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))

    def assemble(
        self, heads: Sequence[Buffer], chunks: Sequence[bytes], extent: int, offset: int, hasher: Hasher, *, last: bool
    ) -> memoryview:
        """Heads, prelude and payload as they are written, the prelude for file offset `offset`; hashes the payload.

        The view is good until the next call. The chunks have at most STRIPE_BYTES together; heads that are longer than
        a group's and a record's can be break an invariant.
        """
        heads_bytes, size = sum(map(len, heads)), sum(map(len, chunks))
        if heads_bytes > _HEADS_MAX_BYTES or size > stripes.STRIPE_BYTES:
            raise BrokenInvariant(f"a stripe of {size} bytes behind heads of {heads_bytes} has no room")
        prelude_bytes = stripes.prelude_bytes(size)
        begin = (offset - heads_bytes) % DIRECT_ALIGN_BYTES
        at = begin
        for head in heads:
            at = self._put(at, head)
        payload_at = at + prelude_bytes
        at = payload_at
        for chunk in chunks:
            at = self._put(at, chunk)
        payload = self._view[payload_at:at]
        hasher.update(payload)
        self._put(payload_at - prelude_bytes, stripes.encode_prelude(payload, extent, offset, last=last))
        return self._view[begin:at]

    def _put(self, at: int, data: Buffer) -> int:
        end = at + len(data)
        self._view[at:end] = data
        return end


class StripeRooms:
    """A few rooms that bodies take turns with."""

    def __init__(self) -> None:
        self._free: list[StripeRoom] = []

    def take(self) -> StripeRoom:
        """A room that nobody else has."""
        return self._free.pop() if self._free else StripeRoom()

    def give_back(self, room: StripeRoom) -> None:
        """Call only when nothing reads from it any more."""
        if len(self._free) < ROOMS_KEPT:
            self._free.append(room)
