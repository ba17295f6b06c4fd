"""Payload bytes out of extents: plain and checked here, or raw stripes that the receiver checks.

No byte is delivered that was not checked, by this node or by the holder of a raw capability (DESIGN invariant 3). A
block that fails is looked for in the node's other holdings of the extent before the read fails, and the holding is
verified as a whole afterwards: only that marks damage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from copypool.protocol.errors import CopypoolError, DigestMismatch, Unavailable
from copypool.protocol.stripes import (
    BLOCK_BYTES,
    FULL_TABLE_BYTES,
    SOLE_PRELUDE_BYTES,
    STRIPE_HEADER,
    StripePrelude,
    StripeRange,
    block_count,
    decode_prelude,
    first_bad_block,
    sole_block,
    split_range,
    stored_bytes,
)
from copypool_node.disk import Disk, ReadFailed
from copypool_node.extent_file import ExtentFile
from copypool_node.holdings import Holding, Holdings

LANDING_WAIT_S = 2.0  #: a read waits so long at most for the catalog's answer about the bytes that it wants
CHUNK_BYTES = 256 * 1024  #: read and sent at a time, so held twice by each stream; a multiple of BLOCK_BYTES
FULL_PRELUDE_BYTES = STRIPE_HEADER.size + FULL_TABLE_BYTES


class Reader:
    """Reads segments of extents that this node holds."""

    def __init__(self, holdings: Holdings, suspect: Callable[[Holding, str], None]) -> None:
        self._holdings = holdings
        self._suspect = suspect  #: told of a holding that failed: to be verified

    async def sources(self, extent: int, offset: int, length: int) -> list[Holding]:
        """Holdings that reach the whole segment; `Unavailable` when there is none.

        A reader may have looked the file up before this node has heard that its group was committed: it waits for that.
        """
        stop = offset + stored_bytes(length)
        found = self._holdings.covering(extent, stop)
        if not found:
            await self._holdings.landed(extent, LANDING_WAIT_S)
            found = self._holdings.covering(extent, stop)
        if not found:
            raise Unavailable(f"this node does not hold extent {extent} up to the end of that segment", absent=True)
        return found

    def report(self, holding: Holding, what: str) -> None:
        """A holding failed a reader: have it verified."""
        self._suspect(holding, what)

    # -- checked here -------------------------------------------------------------------------
    def plain(self, sources: list[Holding], offset: int, length: int, start: int, stop: int) -> PlainBody:
        """Payload bytes [start, stop) of a segment, each block checked before it is handed out."""
        return PlainBody(sources, self._suspect, offset, length, start, stop)

    async def small(self, sources: list[Holding], offset: int, length: int) -> bytes:
        """A whole short payload, checked."""
        if 0 < length <= BLOCK_BYTES:  # one block, the usual case: no generator for it
            (part,) = split_range(offset, length, 0, length)
            return bytes(await _checked(sources, part, self._suspect))
        body = self.plain(sources, offset, length, 0, length)
        return b"".join([await body.load(piece) for piece in body.pieces])

    def cached(self, extent: int, offset: int, length: int, *, raw: bool) -> bytes | None:
        """A whole payload of at most one block, checked, or raw, if it can be had without waiting.

        None: ask `sources` and `small`, or `raw`, which also tell of what is wrong.
        """
        if not 0 < length <= BLOCK_BYTES:
            return None
        size = SOLE_PRELUDE_BYTES + length
        holding = self._holdings.best_covering(extent, offset + size)
        stored = None if holding is None else holding.file.read_cached(offset, size)
        return stored if stored is None or raw else sole_block(stored, extent, offset)


class PlainBody:
    """Payload bytes of a segment in pieces of whole blocks; each block is checked before it is handed out."""

    room_bytes = CHUNK_BYTES + FULL_PRELUDE_BYTES

    def __init__(
        self,
        sources: list[Holding],
        suspect: Callable[[Holding, str], None],
        offset: int,
        length: int,
        start: int,
        stop: int,
    ) -> None:
        self._sources = sources
        self._suspect = suspect
        self._prelude: tuple[int, StripePrelude] | None = None  #: where the last one was, checked
        self.pieces: Iterator[StripeRange] = (
            chunk for part in split_range(offset, length, start, stop) for chunk in _chunks(part)
        )

    @property
    def file(self) -> ExtentFile:
        """Of the holding that is asked first."""
        return self._sources[0].file

    async def load(self, piece: StripeRange) -> memoryview:
        """From the first holding in which it passes; `DigestMismatch` or `ReadFailed` when there is none."""
        return await _checked(self._sources, piece, self._suspect)

    def load_now(self, disk: Disk, fd: int, piece: StripeRange, room: memoryview) -> memoryview:
        """From the first holding; tells nobody of a failure."""
        holding, at = self._sources[0], piece.prelude_offset
        known = self._prelude[1] if self._prelude is not None and self._prelude[0] == at else None
        if known is not None:
            data = _read_into(holding, disk, fd, piece.data_offset, room[: piece.data_bytes])
        elif at + piece.prelude_bytes == piece.data_offset:
            both = _read_into(holding, disk, fd, at, room[: piece.prelude_bytes + piece.data_bytes])
            known, data = _prelude(holding, piece, both), both[piece.prelude_bytes :]
        else:
            known = _prelude(holding, piece, _read_into(holding, disk, fd, at, room[: piece.prelude_bytes]))
            data = _read_into(holding, disk, fd, piece.data_offset, room[: piece.data_bytes])
        self._prelude = at, known
        _check_blocks(holding, piece, known, data)
        return data[piece.skip_bytes : piece.skip_bytes + piece.take_bytes]


class RawBody:
    """Prelude and covering blocks of every stripe touched by payload bytes [start, stop) of a segment, as stored."""

    room_bytes = CHUNK_BYTES

    def __init__(self, source: Holding, runs: list[tuple[int, int]], *, from_medium: bool) -> None:
        """`runs` as of `raw_runs`. `from_medium`: read past the page cache, whose content stays as it is."""
        self._source = source
        self._from_medium = from_medium
        self.pieces: Iterator[tuple[int, int]] = (
            (at + done, min(CHUNK_BYTES, size - done)) for at, size in runs for done in range(0, size, CHUNK_BYTES)
        )

    @property
    def file(self) -> ExtentFile:
        """Of the holding that is asked."""
        return self._source.file

    async def load(self, piece: tuple[int, int]) -> bytes:
        """`DigestMismatch` where the file ends before, `ReadFailed`."""
        return await read_exactly(self._source, *piece, from_medium=self._from_medium)

    def load_now(self, disk: Disk, fd: int, piece: tuple[int, int], room: memoryview) -> memoryview:
        """As `load`, through the page cache."""
        return _read_into(self._source, disk, fd, piece[0], room[: piece[1]])


def raw_runs(offset: int, length: int, start: int, stop: int) -> list[tuple[int, int]]:
    """File ranges (offset, size) of a raw answer in order, neighbours joined."""
    runs: list[tuple[int, int]] = []
    for part in split_range(offset, length, start, stop):
        for at, size in ((part.prelude_offset, part.prelude_bytes), (part.data_offset, part.data_bytes)):
            if runs and runs[-1][0] + runs[-1][1] == at:
                runs[-1] = (runs[-1][0], runs[-1][1] + size)
            else:
                runs.append((at, size))
    return runs


def _chunks(part: StripeRange) -> Iterator[StripeRange]:
    """A stripe part in pieces of at most CHUNK_BYTES of whole blocks."""
    if part.data_bytes <= CHUNK_BYTES:
        yield part
        return
    skip, left = part.skip_bytes, part.take_bytes
    for at in range(0, part.data_bytes, CHUNK_BYTES):
        size = min(CHUNK_BYTES, part.data_bytes - at)
        take = min(size - skip, left)
        yield part._replace(
            data_offset=part.data_offset + at,
            data_bytes=size,
            first_block=part.first_block + at // BLOCK_BYTES,
            skip_bytes=skip,
            take_bytes=take,
        )
        skip, left = 0, left - take


async def _checked(sources: list[Holding], part: StripeRange, suspect: Callable[[Holding, str], None]) -> memoryview:
    """From the first holding in which each block passes; others before it are suspected."""
    failure: CopypoolError | None = None
    for holding in sources:
        try:
            return await _read_checked(holding, part)
        except (DigestMismatch, ReadFailed) as exc:
            failure = failure or exc
            suspect(holding, exc.message)
    raise failure if failure is not None else Unavailable("no holding to read from")


async def _read_checked(holding: Holding, part: StripeRange) -> memoryview:
    if part.prelude_offset + part.prelude_bytes == part.data_offset:
        both = memoryview(await read_exactly(holding, part.prelude_offset, part.prelude_bytes + part.data_bytes))
        head, data = both[: part.prelude_bytes], both[part.prelude_bytes :]
    else:
        head = memoryview(await read_exactly(holding, part.prelude_offset, part.prelude_bytes))
        data = memoryview(await read_exactly(holding, part.data_offset, part.data_bytes))
    _check(holding, part, head, data)
    return data[part.skip_bytes : part.skip_bytes + part.take_bytes]


def _check(holding: Holding, part: StripeRange, head: memoryview, data: memoryview) -> None:
    """Raise `DigestMismatch` unless the header of a stripe and these blocks of it are as they were written."""
    _check_blocks(holding, part, _prelude(holding, part, head), data)


def _prelude(holding: Holding, part: StripeRange, head: memoryview) -> StripePrelude:
    prelude = decode_prelude(head, holding.extent, part.prelude_offset)
    if prelude is None or len(prelude.table) < part.first_block + block_count(part.data_bytes):
        raise DigestMismatch(
            f"extent {holding.extent}: the stripe header at {part.prelude_offset} fails its checksum",
            offset=part.prelude_offset,
        )
    return prelude


def _check_blocks(holding: Holding, part: StripeRange, prelude: StripePrelude, data: memoryview) -> None:
    bad = first_bad_block(data, prelude, holding.extent, part)
    if bad is not None:
        raise DigestMismatch(
            f"extent {holding.extent}: the block at {part.data_offset + bad} fails its checksum",
            offset=part.data_offset + bad,
        )


async def read_exactly(holding: Holding, offset: int, length: int, *, from_medium: bool = False) -> bytes:
    """Bytes of a holding; `DigestMismatch` when the file ends before (claimed bytes are gone)."""
    file = holding.file
    data = await (file.read_direct(offset, length) if from_medium else file.read(offset, length))
    if len(data) != length:
        raise _ends_early(holding, offset + len(data))
    return data


def _read_into(holding: Holding, disk: Disk, fd: int, offset: int, room: memoryview) -> memoryview:
    """As `read_exactly`, into all of `room`. Blocks."""
    filled = disk.read_into(fd, offset, room)
    if filled != len(room):
        raise _ends_early(holding, offset + filled)
    return room


def _ends_early(holding: Holding, end: int) -> DigestMismatch:
    return DigestMismatch(
        f"extent {holding.extent}: the file ends at {end}, {holding.length} bytes are claimed", offset=end
    )
