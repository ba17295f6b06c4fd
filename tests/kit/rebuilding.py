"""What extent files alone tell: the rules of node/README.md for whoever rebuilds a catalog, applied to files.

Deliberately naive and apart from the node's own code but for the scanner: it is what the format promises to a stranger.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec

from copypool.protocol.api import SegmentRef
from copypool.protocol.digests import digest_of
from copypool.protocol.stripes import STRIPE_BYTES, prelude_bytes
from copypool_node.format import Corrupt, RecordHeader
from copypool_node.scanner import GroupSeen, RecordSeen, Scanner, SealSeen


class RebuiltFile(NamedTuple):
    """The newest version of a path, as the records tell it."""

    version: int
    digest: bytes
    size: int
    segments: list[SegmentRef]


class RebuiltRecord(NamedTuple):
    """One record that was not refused."""

    header: RecordHeader
    segment: SegmentRef
    digest: bytes


def records_of(path: Path) -> list[RebuiltRecord]:
    """Whole records of one extent file that nothing in it refuses, in order."""
    extent = int(path.name.partition(".")[0], 16)
    data = path.read_bytes()
    try:
        events = Scanner(extent).feed(data)
    except Corrupt as exc:  # a torn tail, or a torn second footer
        events = Scanner(extent).feed(data[: exc.offset])
    refused: set[tuple[int, int]] = set()
    records: list[tuple[int, int, RebuiltRecord]] = []
    for event in events:
        if isinstance(event, GroupSeen):
            refused |= {(one.group, one.index) for one in event.header.refusals}
        elif isinstance(event, SealSeen):
            refused |= {(one.group, one.index) for one in event.footer.refusals}
            records = [one for one in records if one[2].segment.offset < event.footer.length]
        elif isinstance(event, RecordSeen):
            found = RebuiltRecord(event.header, event.segment, event.digest)
            records.append((event.group, event.index, found))
    return [found for group, index, found in records if (group, index) not in refused]


def payload_of(path: Path, segment: SegmentRef) -> bytes:
    """The bytes of a record, read off the file without checking."""
    data = path.read_bytes()
    found, at, left = bytearray(), segment.offset, segment.length
    while left:
        size = min(left, STRIPE_BYTES)
        at += prelude_bytes(size)
        found += data[at : at + size]
        at, left = at + size, left - size
    return bytes(found)


def rebuild(files: Iterable[Path]) -> dict[tuple[int, str], RebuiltFile]:
    """The directory that these extent files tell: (namespace, path) -> its newest version, deleted ones left out."""
    by_extent = {int(path.name.partition(".")[0], 16): path for path in files}
    newest: dict[tuple[int, str], tuple[RebuiltRecord, Path]] = {}
    for path in by_extent.values():
        for record in records_of(path):
            if record.header.kind == "part":
                continue
            key = (record.header.namespace, record.header.path)
            if key not in newest or newest[key][0].header.version < record.header.version:
                newest[key] = (record, path)
    return {
        key: _file(record, path, by_extent)
        for key, (record, path) in newest.items()
        if record.header.kind != "tombstone"
    }


def _file(record: RebuiltRecord, path: Path, by_extent: dict[int, Path]) -> RebuiltFile:
    header = record.header
    if header.kind != "manifest":
        return RebuiltFile(header.version, record.digest, record.segment.length, [record.segment])
    segments = msgspec.msgpack.decode(payload_of(path, record.segment), type=list[SegmentRef])
    content = b"".join(payload_of(by_extent[one.extent], one) for one in segments)
    assert digest_of(content) == header.file_digest, "the parts that a manifest names make its file"
    return RebuiltFile(header.version, header.file_digest, header.file_bytes, segments)
