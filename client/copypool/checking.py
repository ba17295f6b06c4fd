"""Turns the raw stripes of a segment read into checked payload bytes. No I/O.

What is received is kept as it came and joined once, when whole blocks of it are checked: copying costs more than
checking.

Invariant 3: no byte leaves here that did not pass its block's checksum, seeded with the place it was asked from.
"""

from __future__ import annotations

from collections import deque

from copypool.protocol import stripes

PIECE_BYTES = 2 * 1024 * 1024  #: of payload asked for at a time; a multiple of the size of blocks


class StripeChecker:
    """Feed it the body of one raw read of payload [start, stop); take out payload bytes in order.

    Once `broken` is set nothing more comes out: the bytes given so far are good and end at `position`.
    """

    __slots__ = ("_checked", "_chunks", "_extent", "_held", "_part", "_parts", "_prelude", "broken", "position", "stop")

    def __init__(self, extent: int, offset: int, length: int, start: int, stop: int) -> None:
        self._extent = extent
        self._parts = stripes.split_range(offset, length, start, stop)
        self._part = next(self._parts, None)
        self._prelude: stripes.StripePrelude | None = None
        self._checked = 0  #: bytes of the current part's blocks that were checked and taken off the buffer
        self._chunks: deque[memoryview] = deque()  #: received, not yet checked
        self._held = 0  #: bytes of them
        self.position = start  #: payload offset after the last byte given out
        self.stop = stop
        self.broken = ""  #: why the bytes are not what they should be, or ""

    @property
    def finished(self) -> bool:
        """Whether every wanted byte was given out."""
        return self._part is None

    @property
    def wanted_bytes(self) -> int:
        """How many bytes should come next, in one piece if they can: fed so, they are given out without a copy."""
        part = self._part
        if part is None or self.broken:
            return 0
        if self._prelude is None:
            return part.prelude_bytes - self._held
        return min(part.data_bytes - self._checked, PIECE_BYTES) - self._held

    def feed(self, data: bytes | memoryview) -> list[bytes]:
        """Add received bytes, which stay as they are; the payload that became checked by them, in order."""
        if self.broken:
            return []
        if len(data):
            self._chunks.append(memoryview(data))
            self._held += len(data)
        ready: list[bytes] = []
        while (part := self._part) is not None and (piece := self._next_piece(part)) is not None:
            if piece:
                ready.append(piece)
                self.position += len(piece)
        self._refuse_surplus()
        return ready

    def _refuse_surplus(self) -> None:
        if self._part is None and self._held:
            self.broken = "more bytes than the range has"

    def _next_piece(self, part: stripes.StripeRange) -> bytes | None:
        """Checked payload at hand (may be empty); None when more bytes are needed or the read is broken."""
        if self.broken or (self._prelude is None and not self._read_prelude(part)):
            return None
        return self._read_blocks(part)

    def _read_prelude(self, part: stripes.StripeRange) -> bool:
        if self._held < part.prelude_bytes:
            return False
        prelude = stripes.decode_prelude(self._take(part.prelude_bytes), self._extent, part.prelude_offset)
        if prelude is None or stripes.prelude_bytes(prelude.payload_bytes) != part.prelude_bytes:
            self.broken = f"the stripe header at offset {part.prelude_offset} fails its checksum"
            return False
        if prelude.payload_bytes < part.first_block * stripes.BLOCK_BYTES + part.data_bytes:
            self.broken = f"the stripe at offset {part.prelude_offset} is shorter than its segment says"
            return False
        self._prelude = prelude
        return True

    def _take(self, size: int) -> bytes:
        """The next bytes of what is held."""
        self._held -= size
        first = self._chunks[0].obj
        if type(first) is bytes and len(first) == len(self._chunks[0]) == size:
            self._chunks.popleft()
            return first
        taken: list[memoryview] = []
        while size:
            chunk = self._chunks.popleft()
            if len(chunk) > size:
                self._chunks.appendleft(chunk[size:])
                chunk = chunk[:size]
            taken.append(chunk)
            size -= len(chunk)
        return b"".join(taken)

    def _read_blocks(self, part: stripes.StripeRange) -> bytes | None:
        """Payload of the whole blocks at hand, trimmed to the range; None when there is no whole block yet."""
        left = part.data_bytes - self._checked
        at_hand = min(left, self._held)
        whole = at_hand if at_hand == left else at_hand - at_hand % stripes.BLOCK_BYTES
        if whole == 0:
            return None
        assert self._prelude is not None
        window = part._replace(
            data_offset=part.data_offset + self._checked,
            first_block=part.first_block + self._checked // stripes.BLOCK_BYTES,
        )
        blocks = self._take(whole)
        bad = stripes.first_bad_block(blocks, self._prelude, self._extent, window)
        good = whole if bad is None else bad
        begin = max(part.skip_bytes - self._checked, 0)
        end = min(part.skip_bytes + part.take_bytes - self._checked, good)
        piece = blocks[begin:end] if end > begin else b""
        if bad is not None:
            self.broken = f"the block at offset {window.data_offset + bad} fails its checksum"
        self._checked += whole
        if self._checked == part.data_bytes and bad is None:
            self._part = next(self._parts, None)
            self._prelude = None
            self._checked = 0
        return piece
