"""From records to the bytes of a group and the entries of its commit. Pure; the layout itself is in `format`."""

from __future__ import annotations

from copypool.protocol.api import SegmentRef
from copypool.protocol.digests import digest_of
from copypool.protocol.internal import CommitEntry
from copypool.protocol.stripes import encode_prelude
from copypool_node.clock import ClusterClock
from copypool_node.format import (
    Buffer,
    RecordHeader,
    encode_group_header,
    encode_record_footer,
    encode_record_header,
)
from copypool_node.group import Group, PendingRecord, index_capabilities


def encode_group(extent: int, group: Group, epoch: int, clock: ClusterClock) -> tuple[list[Buffer], int]:
    """The buffers to write at `group.offset` and their total size; fills in the group's entries.

    Versions are minted here, just before the append, so that the order on the media is the order of versions.
    """
    header = encode_group_header(extent, group.offset, group.number, epoch, group.noted)
    buffers: list[Buffer] = [header]
    offset = group.offset + len(header)
    group.capabilities, index = index_capabilities(group.records)
    for record in group.records:
        record.version = clock.mint()
        head = encode_record_head(extent, offset, record, clock.now_ms())
        buffers.append(head)
        offset += len(head)
        length = len(record.payload)
        record.header_bytes = len(head)
        record.segment = SegmentRef(extent, offset, length)
        if length:
            prelude = encode_prelude(record.payload, extent, offset, last=True)
            buffers.append(prelude)
            buffers.append(record.payload)
            offset += len(prelude) + length
        # A manifest's own digest stands in its footer, the one of the file that it describes in its header.
        digest = digest_of(record.payload) if record.kind == "manifest" else record.digest
        footer = encode_record_footer(extent, offset, length, digest)
        buffers.append(footer)
        offset += len(footer)
        group.entries.append(entry_of(record, index[record.capability]))
    return buffers, offset - group.offset


def encode_record_head(extent: int, offset: int, record: PendingRecord, now_ms: int) -> bytes:
    """The header of a record that begins at `offset`; `record.version` is set."""
    return encode_record_header(
        extent,
        offset,
        RecordHeader(
            kind=record.kind,
            namespace=record.namespace,
            path=record.path,
            version=record.version,
            write_id=record.write_id,
            metadata=record.metadata,
            upload=record.upload,
            part=record.part,
            stored_ms=now_ms,
            file_bytes=record.size if record.kind == "manifest" else 0,
            file_digest=record.digest if record.kind == "manifest" else b"",
        ),
    )


def entry_of(record: PendingRecord, capability: int) -> CommitEntry:
    """The commit entry of a record that has been placed."""
    if record.segment is None:
        raise ValueError("the record has no place yet")
    return CommitEntry(
        record.kind,
        record.namespace,
        record.path,
        record.version,
        record.size,
        record.digest,
        record.write_id,
        record.first_sent_ms,
        record.segment,
        record.header_bytes,
        record.if_absent,
        capability,
        record.upload,
        record.part,
        record.segments,
        record.part_versions,
        record.if_version,
    )
