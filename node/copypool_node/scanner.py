"""Reads an extent from its first byte on and says what is whole. Incremental, pure, no I/O.

The same scanner checks a pull as it arrives, re-checks a file after a restart, verifies a location against its
medium, and tells a rebuild what an extent holds. It goes from structure to structure by their magics and sizes and
never looks for anything inside payload, so no payload can imitate structure.

It takes in whole structures (a header, a stripe with its table, a footer) or nothing: after `Corrupt` it stands at
`verified_length` as if the bytes from there on had never been fed, and may be fed again from that offset, from
another source. It buffers at most one structure (a stripe: 4 MiB and its table).
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec
from blake3 import blake3
from crc32c import crc32c

from copypool.protocol import stripes
from copypool.protocol.api import SegmentRef
from copypool.protocol.errors import BrokenInvariant
from copypool.protocol.internal import EXTENT_HEADER_BYTES
from copypool_node import format as layout
from copypool_node.format import Buffer, Corrupt, ExtentHeader, GroupHeader, RecordHeader, SealFooter

_BLOCK = stripes.BLOCK_BYTES
_HEAD_BYTES = stripes.STRIPE_HEADER.size  #: enough of any structure to tell what it is and how long


class GroupSeen(msgspec.Struct, frozen=True):
    """A group header was read."""

    header: GroupHeader
    offset: int
    header_bytes: int


class RecordSeen(msgspec.Struct, frozen=True):
    """A whole record was read, and length and digest in its footer are those of its payload."""

    header: RecordHeader
    header_bytes: int
    segment: SegmentRef
    group: int
    index: int  #: of the record in its group, from 0
    length: int
    digest: bytes


class SealSeen(msgspec.Struct, frozen=True):
    """A seal footer was read; with several, the last one counts. Not part of `verified_length`."""

    footer: SealFooter
    offset: int


Event: TypeAlias = GroupSeen | RecordSeen | SealSeen


class Scanner:
    """State of one scan. Feed bytes in file order; read the attributes between calls. Not for two threads at a time."""

    __slots__ = (
        "_events",
        "_extent",
        "_group",
        "_hash",
        "_hashed",
        "_index",
        "_last_stripe",
        "_payload_bytes",
        "_payload_hash",
        "_pending",
        "_position",
        "_record",
        "_record_bytes",
        "_record_offset",
        "_sealed",
        "_want",
        "header",
        "records",
        "verified_length",
    )

    def __init__(self, extent: int) -> None:
        self._extent = extent
        self._hash = blake3()  # of [0, verified_length)
        self._pending = bytearray()  # fed and not taken in yet: the head of one structure
        self._want = EXTENT_HEADER_BYTES  # size of that structure as far as it is known
        self._position = 0  # file offset of the next structure
        self._group = -1
        self._index = 0
        self._record: RecordHeader | None = None  # the record being read
        self._record_bytes = 0
        self._record_offset = 0
        self._payload_bytes = 0
        self._payload_hash = blake3()
        self._last_stripe = False
        self._sealed: SealFooter | None = None
        self._events: list[Event] = []
        #: The extent header, once it was read.
        self.header: ExtentHeader | None = None
        #: Records that end within `verified_length`.
        self.records = 0
        #: The last boundary (of a header, a stripe or a record footer) whose bytes before it are all checked:
        #: a legal length of a location. Seal footers lie behind it.
        self.verified_length = 0

    # -- what the caller asks -----------------------------------------------------------------
    @property
    def position(self) -> int:
        """File offset behind the last structure taken in: `verified_length`, or the end of the last seal footer."""
        return self._position

    def missing_bytes(self, held: memoryview) -> int:
        """How many bytes have to follow `held`, which stand at `position`, to complete the structure there, as far as
        they tell; 0: none, or `feed` will find it corrupt. Whoever feeds whole structures spares a copy of them."""
        if self._position and len(held) < _HEAD_BYTES:
            return _HEAD_BYTES - len(held)
        try:
            return max(0, self._size_at(held[:_HEAD_BYTES]) - len(held))
        except Corrupt:
            return 0

    @property
    def pending_bytes(self) -> int:
        """Bytes fed behind `verified_length`, not judged yet: at the end of a file, a torn tail."""
        return len(self._pending)

    @property
    def seal(self) -> SealFooter | None:
        """The last seal footer read."""
        return self._sealed

    @property
    def group(self) -> int:
        """Number of the last group begun, -1: none."""
        return self._group

    @property
    def in_record(self) -> bool:
        """Whether `verified_length` lies inside of a record: its footer is still to come."""
        return self._record is not None

    def digest(self) -> bytes:
        """blake3 of [0, verified_length)."""
        return self._hash.digest()

    def forget_pending(self) -> None:
        """Give up what was fed behind `verified_length`; the next feed continues from there."""
        self._pending = bytearray()
        self._want = EXTENT_HEADER_BYTES if self._position == 0 else _HEAD_BYTES

    # -- feeding ------------------------------------------------------------------------------
    def feed(self, data: Buffer) -> list[Event]:
        """Take in the next bytes of the file; what they completed, in file order.

        Raises `Corrupt` when a structure fails a check. What was completed before it counts (`verified_length`,
        `records`), and its events are on the exception as `events`; the rest of `data` is dropped, and the next call
        continues at `verified_length`.
        """
        events: list[Event] = []
        self._events = events
        try:
            with memoryview(data) as view:
                self._feed(view if view.format == "B" else view.cast("B"))
        except Corrupt as exc:
            self.forget_pending()
            exc.events = events
            raise
        return events

    def _feed(self, view: memoryview) -> None:
        at = 0
        pending = self._pending
        while pending and at < len(view):
            taken = min(self._want - len(pending), len(view) - at)
            pending += view[at : at + taken]
            at += taken
            if len(pending) == self._want:
                self._want = self._size_at(pending)
                if len(pending) == self._want:
                    with memoryview(pending) as structure:
                        self._take(structure)
                        if self._sealed is None:
                            self._hash.update(structure)
                    self._pending = pending = bytearray()
                    self._want = _HEAD_BYTES
        if at < len(view):
            self._walk(view, at)

    def _walk(self, view: memoryview, at: int) -> None:
        """Take in whole structures straight from the caller's buffer, and keep the beginning of the last one."""
        end = len(view)
        run = at  # start of what was taken in and is not in the extent's digest yet
        try:
            while end - at >= _HEAD_BYTES:
                size = self._size_at(view[at : at + _HEAD_BYTES])
                if end - at < size:
                    self._want = size
                    break
                structure = view[at : at + size]
                if self._sealed is None and structure[:4] == layout.SEAL_MAGIC:
                    self._hash.update(view[run:at])
                    run = end
                self._take(structure)
                at += size
            else:
                self._want = EXTENT_HEADER_BYTES if self._position == 0 else _HEAD_BYTES
        finally:
            if run < at and self._sealed is None:
                self._hash.update(view[run:at])
        self._pending = bytearray(view[at:])

    # -- what comes next ----------------------------------------------------------------------
    def _size_at(self, head: Buffer) -> int:
        """Size of the structure whose first 16 bytes (or more) these are; `Corrupt` when it may not stand here."""
        if self._position == 0:
            return EXTENT_HEADER_BYTES
        magic = bytes(head[:4])
        if self._record is not None:
            return self._size_in_record(magic, head)
        if magic == layout.RECORD_MAGIC and self._group >= 0 and self._sealed is None:
            low, high = layout.RECORD_HEADER_MIN_BYTES, layout.RECORD_HEADER_MAX_BYTES
        elif magic == layout.GROUP_MAGIC and self._sealed is None:
            low, high = layout.GROUP_HEADER_MIN_BYTES, layout.GROUP_HEADER_MAX_BYTES
        elif magic == layout.SEAL_MAGIC:
            low, high = layout.SEAL_FOOTER_MIN_BYTES, layout.SEAL_FOOTER_MAX_BYTES
        else:
            raise Corrupt(self._position, f"{magic!r} where a group, a record or the seal footer may begin")
        size = layout.sized_bytes(head)
        if not low <= size <= high:
            raise Corrupt(self._position, f"a {magic.decode()} structure of {size} bytes")
        return size

    def _size_in_record(self, magic: bytes, head: Buffer) -> int:
        ended = self._last_stripe or not self._payload_bytes
        if magic == layout.FOOTER_MAGIC and ended:
            return layout.RECORD_FOOTER_BYTES
        if magic == stripes.STRIPE_MAGIC and not self._last_stripe:
            prelude_bytes = stripes.peek_prelude_bytes(head)
            if prelude_bytes is not None:
                payload_bytes: int = stripes.STRIPE_HEADER.unpack_from(head)[1]
                return prelude_bytes + payload_bytes
        raise Corrupt(self._position, f"{magic!r} where the record's {'footer' if ended else 'next stripe'} may begin")

    def _take(self, structure: memoryview) -> None:
        magic = structure[:4]
        if self._position == 0:
            self._take_extent_header(structure)
        elif magic == stripes.STRIPE_MAGIC:
            self._take_stripe(structure)
        elif magic == layout.RECORD_MAGIC:
            self._record = layout.decode_record_header(structure, self._extent, self._position)
            self._record_bytes = len(structure)
            self._record_offset = self._position
            self._payload_bytes = 0
            self._payload_hash = blake3()
            self._last_stripe = False
        elif magic == layout.FOOTER_MAGIC:
            self._take_footer(structure)
        elif magic == layout.GROUP_MAGIC:
            self._take_group(structure)
        else:
            self._take_seal(structure)
        self._position += len(structure)
        if self._sealed is None:
            self.verified_length = self._position

    # -- one structure each -------------------------------------------------------------------
    def _take_extent_header(self, structure: memoryview) -> None:
        header = layout.decode_extent_header(structure)
        if header.extent != self._extent:
            raise Corrupt(0, f"the header of extent {header.extent}, in the place of extent {self._extent}")
        self.header = header

    def _take_group(self, structure: memoryview) -> None:
        header = layout.decode_group_header(structure, self._extent, self._position)
        if header.group <= self._group:
            raise Corrupt(self._position, f"group {header.group} behind group {self._group}")
        if self.header is not None and header.epoch != self.header.epoch:
            raise Corrupt(self._position, f"a group of epoch {header.epoch}, an extent of epoch {self.header.epoch}")
        if any(refusal.group >= header.group for refusal in header.refusals):
            raise Corrupt(self._position, f"group {header.group} notes a refusal of a group not before it")
        self._group = header.group
        self._index = 0
        self._events.append(GroupSeen(header, self._position, len(structure)))

    def _take_stripe(self, structure: memoryview) -> None:
        extent, position = self._extent, self._position
        prelude = stripes.decode_prelude(structure, extent, position)
        if prelude is None:
            raise Corrupt(position, "the checksum of the stripe's table does not match")
        if not prelude.last and prelude.payload_bytes != stripes.STRIPE_BYTES:
            raise Corrupt(position, f"a stripe of {prelude.payload_bytes} bytes that is not its record's last")
        start = len(structure) - prelude.payload_bytes
        for index, at in enumerate(range(start, len(structure), _BLOCK)):
            if crc32c(structure[at : at + _BLOCK], stripes.seed(extent, position + at)) != prelude.table[index]:
                raise Corrupt(position + at, f"the checksum of block {index} of its stripe does not match")
        self._payload_hash.update(structure[start:])
        self._payload_bytes += prelude.payload_bytes
        self._last_stripe = prelude.last

    def _take_footer(self, structure: memoryview) -> None:
        footer = layout.decode_record_footer(structure, self._extent, self._position)
        if footer.length != self._payload_bytes:
            raise Corrupt(self._position, f"a footer for {footer.length} bytes behind {self._payload_bytes}")
        if footer.digest != self._payload_hash.digest():
            raise Corrupt(self._position, "the payload does not have the digest in the record's footer")
        record = self._record
        if record is None:
            raise BrokenInvariant(f"extent {self._extent}: a footer outside of a record at {self._position}")
        segment = SegmentRef(self._extent, self._record_offset + self._record_bytes, footer.length)
        self._events.append(
            RecordSeen(record, self._record_bytes, segment, self._group, self._index, footer.length, footer.digest)
        )
        self._record = None
        self._index += 1
        self.records += 1

    def _take_seal(self, structure: memoryview) -> None:
        footer = layout.decode_seal_footer(structure, self._extent, self._position)
        length = self._position if self._sealed is None else self._sealed.length
        if footer.length != length or footer.group != self._group:
            raise Corrupt(
                self._position,
                f"sealed at {footer.length} after group {footer.group}; it ends at {length} after {self._group}",
            )
        if footer.digest not in (layout.NO_DIGEST, self._hash.digest()):
            raise Corrupt(self._position, "the extent does not have the digest in its seal footer")
        self._sealed = footer
        self._events.append(SealSeen(footer, self._position))
