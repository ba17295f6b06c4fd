"""Extent files as bytes, built by the format's own encoders, for tests of those who read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from copypool.protocol import stripes
from copypool.protocol.digests import digest_of
from copypool.protocol.internal import ExtentClass, Refusal
from copypool_node import format as layout
from copypool_node.format import ExtentHeader, RecordHeader

CLUSTER = bytes(range(16))
EPOCH = 9


def header_of(extent: int) -> ExtentHeader:
    return ExtentHeader(CLUSTER, extent, ExtentClass(1, "primary", ["copy", "offsite"], "primary"), EPOCH, 1_700_000)


def record_of(number: int, *, path: str = "") -> RecordHeader:
    return RecordHeader(
        "file", 3, path or f"tree/{number}", 1000 + number, number.to_bytes(8, "little"), {"owner": "ö"}, stored_ms=5
    )


class Image(NamedTuple):
    """Bytes of an extent and what stands where."""

    data: bytes
    boundaries: list[int]  #: every legal length of a location, rising, from 0
    records: list[tuple[RecordHeader, bytes, int]]  #: header, payload, file offset of the payload's first stripe


class ImageBuilder:
    """Appends structures and notes the boundaries."""

    def __init__(self, extent: int) -> None:
        self.extent = extent
        self._data = bytearray()
        self._boundaries = [0]
        self._records: list[tuple[RecordHeader, bytes, int]] = []
        self.add(layout.encode_extent_header(header_of(extent)))

    @property
    def length(self) -> int:
        return len(self._data)

    def add(self, data: bytes) -> None:
        """Append a whole structure."""
        self._data += data
        self._boundaries.append(len(self._data))

    def group(self, number: int, refusals: Sequence[Refusal] = ()) -> None:
        self.add(layout.encode_group_header(self.extent, self.length, number, EPOCH, refusals))

    def record(self, header: RecordHeader, payload: bytes) -> None:
        self.add(layout.encode_record_header(self.extent, self.length, header))
        self._records.append((header, payload, self.length))
        for at in range(0, len(payload), stripes.STRIPE_BYTES):
            part = payload[at : at + stripes.STRIPE_BYTES]
            last = at + len(part) == len(payload)
            self.add(stripes.encode_prelude(part, self.extent, self.length, last=last) + part)
        self.add(layout.encode_record_footer(self.extent, self.length, len(payload), digest_of(payload)))

    def build(self) -> Image:
        return Image(bytes(self._data), list(self._boundaries), list(self._records))


def image_of(extent: int, groups: Iterable[Sequence[bytes]]) -> Image:
    """An extent with these payloads, group by group."""
    builder = ImageBuilder(extent)
    number = 0
    for index, payloads in enumerate(groups):
        builder.group(index, [Refusal(index - 1, 0)] if index else [])
        for payload in payloads:
            builder.record(record_of(number), payload)
            number += 1
    return builder.build()
