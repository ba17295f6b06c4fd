"""Bytes of an extent on their way through a scanner: in one buffer, checked and written where they lie. No I/O.

Copying a byte costs more than checking it, above all into memory that the process has not touched yet. So what comes
is put into a buffer that is used again and again, the scanner is given whole structures of it, and what is good is
written from it. Each byte stands at its file offset modulo `DIRECT_ALIGN_BYTES`, as reads and writes past the page
cache ask for.

    while wanted := intake.wanted_bytes: intake.add(...)      or: read into intake.room(wanted); intake.came(count)
    intake.check()        raises Corrupt; intake.good is right all the same
    write intake.good
    intake.shift()
"""

from __future__ import annotations

import mmap

from copypool.protocol.errors import BrokenInvariant
from copypool.protocol.stripes import FULL_STRIDE_BYTES
from copypool_node.disk import DIRECT_ALIGN_BYTES
from copypool_node.scanner import Event, Scanner

#: Checked at a time: the largest structure, so that stripes behind one another are never broken up.
FEED_BYTES = FULL_STRIDE_BYTES
_ROOM_BYTES = (-(-FEED_BYTES // DIRECT_ALIGN_BYTES) + 2) * DIRECT_ALIGN_BYTES


class Intake:
    """What came behind the structures that the scanner took in. Not for two threads at a time.

    After `Corrupt` only `good` may be asked for: the rest has to come from elsewhere, through an intake of its own.
    """

    __slots__ = ("_end", "_first", "_offset", "_scanner", "_view")

    def __init__(self, scanner: Scanner) -> None:
        scanner.forget_pending()
        self._scanner = scanner
        # Private and anonymous: its pages come as they are touched, aligned, and go with the last view of them.
        self._view = memoryview(mmap.mmap(-1, _ROOM_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        self._offset = scanner.position  # file offset of the byte at `_first`
        self._first = self._end = self._offset % DIRECT_ALIGN_BYTES

    @property
    def offset(self) -> int:
        """File offset of the next byte to come."""
        return self._offset + self._end - self._first

    @property
    def wanted_bytes(self) -> int:
        """So many more are worth a check; 0: what is here is."""
        held = self._view[self._first : self._end]
        return max(self._scanner.missing_bytes(held), FEED_BYTES - len(held))

    def add(self, data: memoryview) -> int:
        """Put the next bytes, at most `wanted_bytes` of them, into the buffer; how many."""
        count = min(len(data), self.wanted_bytes)
        self._view[self._end : self._end + count] = data[:count]
        self._end += count
        return count

    def room(self, size_bytes: int) -> memoryview:
        """Where the next so many bytes belong, widened to whole aligned blocks, as reads past the page cache fill them:
        it begins with the byte at `offset` - `offset` % DIRECT_ALIGN_BYTES, those before `offset` being here already.
        """
        start = self._end - self._end % DIRECT_ALIGN_BYTES
        stop = -(-(self._end + size_bytes) // DIRECT_ALIGN_BYTES) * DIRECT_ALIGN_BYTES
        if stop > _ROOM_BYTES:
            raise BrokenInvariant(f"an intake of {self._end - self._first} bytes has no room for {size_bytes} more")
        return self._view[start:stop]

    def came(self, size_bytes: int) -> None:
        """So many of the next bytes are in `room` now."""
        self._end += size_bytes

    def check(self) -> list[Event]:
        """Have the scanner take in what is here; see `Scanner.feed`."""
        return self._scanner.feed(self._view[self._first : self._end])

    @property
    def good(self) -> memoryview:
        """What the last `check` found to be good, from the first byte on; unchanged until `shift`."""
        return self._view[self._first : self._first + max(0, self._scanner.verified_length - self._offset)]

    def shift(self) -> None:
        """Forget what the scanner took in; the rest, the beginning of a structure, moves to the front."""
        self._scanner.forget_pending()
        begin = self._first + self._scanner.position - self._offset
        left = self._end - begin
        self._offset = self._scanner.position
        self._first = self._offset % DIRECT_ALIGN_BYTES
        self._end = self._first + left
        if left and begin != self._first:
            self._view[self._first : self._end] = self._view[begin : begin + left]
