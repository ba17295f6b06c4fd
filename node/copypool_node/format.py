"""The bytes of an extent file: every fixed structure, encoded and checked. Pure functions, no I/O.

The layout is specified in node/README.md ("On disk"); this module is its only implementation and `scanner` is the
only reader of whole files. Stripes, the fifth structure, are in `copypool.protocol.stripes` because clients check
them too. Integers are little-endian; every checksum is CRC-32C seeded with (extent id, file offset of the structure),
so bytes written to, or read from, a wrong place do not pass.

Decoders return a value or raise `Corrupt`; they never guess, and they never read outside of what they were given.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TypeAlias

import msgspec
from crc32c import crc32c

from copypool.protocol.digests import DIGEST_BYTES
from copypool.protocol.errors import DigestMismatch
from copypool.protocol.internal import EXTENT_HEADER_BYTES, ExtentClass, RecordKind, Refusal
from copypool.protocol.stripes import seed

Buffer: TypeAlias = bytes | bytearray | memoryview

FORMAT_NUMBER = 1
EXTENT_MAGIC = b"CPEX"
GROUP_MAGIC = b"GRUP"
RECORD_MAGIC = b"RECD"
FOOTER_MAGIC = b"RFTR"
SEAL_MAGIC = b"SEAL"

_CRC_BYTES = 4
_EXTENT_HEAD = struct.Struct("<4sII")  #: magic, format number, bytes of msgpack meta
_SIZED = struct.Struct("<4sI")  #: magic, size of the whole structure with its crc
_GROUP = struct.Struct("<4sIQQQI")  #: magic, size, group number, epoch, base length, count of refusals
_REFUSAL = struct.Struct("<QI")  #: group number, index of the record in it
_FOOTER = struct.Struct("<4sQ32sI")  #: magic, payload length, blake3 digest, crc
_SEAL = struct.Struct("<4sIQq32sI")  #: magic, size, sealed length, last group (-1: none), digest, count of refusals

#: Refusals that one group header or seal footer can note. Those unresolved at a time come from a few groups of at
#: most 120 records, so the bound is never met; it keeps a reader's buffer small whatever the disk returns.
REFUSALS_MAX = 4096
SIZED_HEAD_BYTES = _SIZED.size
GROUP_HEADER_MIN_BYTES = _GROUP.size + _CRC_BYTES
GROUP_HEADER_MAX_BYTES = GROUP_HEADER_MIN_BYTES + REFUSALS_MAX * _REFUSAL.size
RECORD_HEADER_MIN_BYTES = 24
RECORD_HEADER_MAX_BYTES = 16 * 1024
RECORD_FOOTER_BYTES = _FOOTER.size
SEAL_FOOTER_MIN_BYTES = _SEAL.size + _CRC_BYTES
SEAL_FOOTER_MAX_BYTES = SEAL_FOOTER_MIN_BYTES + REFUSALS_MAX * _REFUSAL.size
NO_DIGEST = bytes(DIGEST_BYTES)


class Corrupt(DigestMismatch):
    """Bytes at `offset` are not what was written there; `what` says which check failed."""

    def __init__(self, offset: int, what: str) -> None:
        super().__init__(f"offset {offset}: {what}", offset=offset)
        self.offset = offset
        self.what = what
        #: What a scanner had completed in the same call, before it met this.
        self.events: Sequence[object] = ()


class ExtentHeader(msgspec.Struct, array_like=True, frozen=True):
    """What an extent file says of itself; byte-identical on every volume that holds the extent."""

    cluster_id: bytes  #: 16 bytes
    extent: int
    extent_class: ExtentClass  #: with pool names, so that volumes alone tell where copies belong
    epoch: int  #: of the one writer session that may append
    created_ms: int  #: cluster time


class RecordHeader(msgspec.Struct, array_like=True, frozen=True):
    """Whose bytes a record holds. Neither length nor digest: bodies are streamed, both stand in the footer."""

    kind: RecordKind
    namespace: int
    path: str
    version: int
    write_id: bytes
    metadata: dict[str, str] = {}
    upload: bytes = b""  #: kinds `part` and `manifest`: 16 bytes
    part: int = 0  #: kind `part`: its number
    stored_ms: int = 0  #: cluster time when the record was begun
    flags: int = 0  #: none is defined; a reader ignores those that it does not know
    file_bytes: int = 0  #: kind `manifest`: size of the file that the parts make
    file_digest: bytes = b""  #: kind `manifest`: its digest; the footer's is the one of the list of parts


class GroupHeader(msgspec.Struct, frozen=True):
    """Start of the records that one write, one fsync and one commit make durable and visible together."""

    group: int
    epoch: int
    base_bytes: int  #: length of the extent before this group, which is this header's own offset
    refusals: tuple[Refusal, ...]  #: records of earlier groups that are no files


class RecordFooter(msgspec.Struct, frozen=True):
    """End of a record: what its payload must have been."""

    length: int
    digest: bytes


class SealFooter(msgspec.Struct, frozen=True):
    """The extent's last word, behind its last claimed byte."""

    length: int  #: the sealed length
    group: int  #: last committed group, -1: none
    refusals: tuple[Refusal, ...]  #: those that no later group notes
    digest: bytes  #: blake3 of [0, length); NO_DIGEST while it is not known


_encoder = msgspec.msgpack.Encoder()
_extent_decoder = msgspec.msgpack.Decoder(ExtentHeader)
_record_decoder = msgspec.msgpack.Decoder(RecordHeader)


def _with_crc(data: bytes, extent: int, offset: int) -> bytes:
    return data + crc32c(data, seed(extent, offset)).to_bytes(_CRC_BYTES, "little")


def _check_crc(view: memoryview, extent: int, offset: int, what: str) -> None:
    stored = int.from_bytes(view[-_CRC_BYTES:], "little")
    if crc32c(view[:-_CRC_BYTES], seed(extent, offset)) != stored:
        raise Corrupt(offset, f"the checksum of the {what} does not match")


def _pack_refusals(refusals: Sequence[Refusal]) -> bytes:
    if len(refusals) > REFUSALS_MAX:
        raise ValueError(f"{len(refusals)} refusals; one header holds {REFUSALS_MAX}")
    return b"".join(_REFUSAL.pack(refusal.group, refusal.index) for refusal in refusals)


def _unpack_refusals(view: memoryview, count: int) -> tuple[Refusal, ...]:
    return tuple(Refusal(group, index) for group, index in _REFUSAL.iter_unpack(view[: count * _REFUSAL.size]))


# -- extent header ----------------------------------------------------------------------------
def encode_extent_header(header: ExtentHeader) -> bytes:
    """The 4,096 bytes that start the extent's file."""
    meta = _encoder.encode(header)
    body = _EXTENT_HEAD.pack(EXTENT_MAGIC, FORMAT_NUMBER, len(meta)) + meta
    room = EXTENT_HEADER_BYTES - _CRC_BYTES
    if len(body) > room:
        raise ValueError(f"the extent header takes {len(body)} bytes, {room} are there: too many copy pools")
    return _with_crc(body.ljust(room, b"\0"), header.extent, 0)


def decode_extent_header(data: Buffer) -> ExtentHeader:
    """Check and decode the first 4,096 bytes of a file; the checksum covers the padding too."""
    if len(data) < EXTENT_HEADER_BYTES:
        raise Corrupt(0, f"the file holds {len(data)} bytes, less than an extent header")
    view = memoryview(data)[:EXTENT_HEADER_BYTES]
    magic, number, meta_bytes = _EXTENT_HEAD.unpack_from(view)
    if magic != EXTENT_MAGIC:
        raise Corrupt(0, f"not an extent: it starts with {bytes(magic)!r}")
    if number != FORMAT_NUMBER:
        raise Corrupt(0, f"extent format {number}; this program reads format {FORMAT_NUMBER}")
    if meta_bytes > EXTENT_HEADER_BYTES - _EXTENT_HEAD.size - _CRC_BYTES:
        raise Corrupt(0, f"an extent header with {meta_bytes} bytes of meta")
    try:
        header = _extent_decoder.decode(view[_EXTENT_HEAD.size : _EXTENT_HEAD.size + meta_bytes])
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise Corrupt(0, f"the extent header's meta does not decode: {exc}") from exc
    if not 0 <= header.extent < 1 << 64:
        raise Corrupt(0, f"extent id {header.extent}")
    _check_crc(view, header.extent, 0, "extent header")
    return header


# -- group header -----------------------------------------------------------------------------
def encode_group_header(extent: int, offset: int, group: int, epoch: int, refusals: Sequence[Refusal]) -> bytes:
    """Header of a group that begins at `offset`, which is also the base length that it states."""
    noted = _pack_refusals(refusals)
    size = GROUP_HEADER_MIN_BYTES + len(noted)
    return _with_crc(_GROUP.pack(GROUP_MAGIC, size, group, epoch, offset, len(refusals)) + noted, extent, offset)


def decode_group_header(data: Buffer, extent: int, offset: int) -> GroupHeader:
    """Check and decode a whole group header (its `sized_bytes`)."""
    view = memoryview(data)
    if not GROUP_HEADER_MIN_BYTES <= len(view) <= GROUP_HEADER_MAX_BYTES:
        raise Corrupt(offset, f"a group header of {len(view)} bytes")
    _check_crc(view, extent, offset, "group header")
    magic, size, group, epoch, base_bytes, count = _GROUP.unpack_from(view)
    if magic != GROUP_MAGIC or size != len(view) or size != GROUP_HEADER_MIN_BYTES + count * _REFUSAL.size:
        raise Corrupt(offset, "a group header whose sizes contradict each other")
    if base_bytes != offset:
        raise Corrupt(offset, f"group {group} says that it begins at {base_bytes}")
    return GroupHeader(group, epoch, base_bytes, _unpack_refusals(view[_GROUP.size :], count))


# -- record header and footer -----------------------------------------------------------------
def encode_record_header(extent: int, offset: int, header: RecordHeader) -> bytes:
    """Header of a record that begins at `offset`; its payload's first stripe begins right behind it."""
    meta = _encoder.encode(header)
    size = _SIZED.size + len(meta) + _CRC_BYTES
    if size > RECORD_HEADER_MAX_BYTES:
        raise ValueError(f"a record header of {size} bytes; the limit is {RECORD_HEADER_MAX_BYTES}")
    return _with_crc(_SIZED.pack(RECORD_MAGIC, size) + meta, extent, offset)


def decode_record_header(data: Buffer, extent: int, offset: int) -> RecordHeader:
    """Check and decode a whole record header (its `sized_bytes`)."""
    view = memoryview(data)
    if not RECORD_HEADER_MIN_BYTES <= len(view) <= RECORD_HEADER_MAX_BYTES:
        raise Corrupt(offset, f"a record header of {len(view)} bytes")
    _check_crc(view, extent, offset, "record header")
    magic, size = _SIZED.unpack_from(view)
    if magic != RECORD_MAGIC or size != len(view):
        raise Corrupt(offset, "a record header whose sizes contradict each other")
    try:
        return _record_decoder.decode(view[_SIZED.size : -_CRC_BYTES])
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise Corrupt(offset, f"the record header does not decode: {exc}") from exc


def encode_record_footer(extent: int, offset: int, length: int, digest: bytes) -> bytes:
    """Footer at `offset` of a record with `length` payload bytes of this blake3 digest."""
    if len(digest) != DIGEST_BYTES:
        raise ValueError(f"a digest of {len(digest)} bytes")
    body = struct.pack("<4sQ32s", FOOTER_MAGIC, length, digest)
    return _with_crc(body, extent, offset)


def decode_record_footer(data: Buffer, extent: int, offset: int) -> RecordFooter:
    """Check and decode RECORD_FOOTER_BYTES."""
    view = memoryview(data)
    if len(view) != RECORD_FOOTER_BYTES:
        raise Corrupt(offset, f"a record footer of {len(view)} bytes")
    _check_crc(view, extent, offset, "record footer")
    magic, length, digest, _crc = _FOOTER.unpack_from(view)
    if magic != FOOTER_MAGIC:
        raise Corrupt(offset, "not a record footer")
    return RecordFooter(length, digest)


# -- seal footer ------------------------------------------------------------------------------
def encode_seal_footer(
    extent: int,
    length: int,
    group: int,
    refusals: Sequence[Refusal],
    digest: bytes = NO_DIGEST,
    *,
    offset: int | None = None,
) -> bytes:
    """Footer of an extent sealed at `length`. The first one stands at exactly that offset.

    A later footer, which adds the digest once it is known, stands behind the first (`offset`): nothing is rewritten.
    """
    if len(digest) != DIGEST_BYTES:
        raise ValueError(f"a digest of {len(digest)} bytes")
    noted = _pack_refusals(refusals)
    size = SEAL_FOOTER_MIN_BYTES + len(noted)
    body = _SEAL.pack(SEAL_MAGIC, size, length, group, digest, len(refusals)) + noted
    return _with_crc(body, extent, length if offset is None else offset)


def decode_seal_footer(data: Buffer, extent: int, offset: int) -> SealFooter:
    """Check and decode a whole seal footer that stands at file offset `offset`."""
    view = memoryview(data)
    if not SEAL_FOOTER_MIN_BYTES <= len(view) <= SEAL_FOOTER_MAX_BYTES:
        raise Corrupt(offset, f"a seal footer of {len(view)} bytes")
    _check_crc(view, extent, offset, "seal footer")
    magic, size, length, group, digest, count = _SEAL.unpack_from(view)
    if magic != SEAL_MAGIC or size != len(view) or size != SEAL_FOOTER_MIN_BYTES + count * _REFUSAL.size:
        raise Corrupt(offset, "a seal footer whose sizes contradict each other")
    if not EXTENT_HEADER_BYTES <= length <= offset:
        raise Corrupt(offset, f"a seal footer for length {length}")
    return SealFooter(length, group, _unpack_refusals(view[_SEAL.size :], count), digest)


def find_seal_footer(tail: Buffer, extent: int, offset: int) -> SealFooter | None:
    """The newest whole seal footer in the last bytes of a *sealed* file, which begin at file offset `offset`.

    A torn later footer is passed over. Payload could imitate a footer, so this must not be asked about a file that
    is not known to be sealed; there the scanner decides, which never looks into payload.
    """
    data = bytes(tail)
    at = data.rfind(SEAL_MAGIC)
    while at >= 0:
        if len(data) - at >= SEAL_FOOTER_MIN_BYTES:
            size = sized_bytes(memoryview(data)[at:])
            if at + size <= len(data):
                try:
                    return decode_seal_footer(memoryview(data)[at : at + size], extent, offset + at)
                except Corrupt:
                    pass  # torn, or payload that happens to hold the magic: the next one back may be whole
        at = data.rfind(SEAL_MAGIC, 0, at)
    return None


def sized_bytes(head: Buffer) -> int:
    """Size that a group header, record header or seal footer states of itself in its first SIZED_HEAD_BYTES."""
    size: int = _SIZED.unpack_from(head)[1]
    return size
