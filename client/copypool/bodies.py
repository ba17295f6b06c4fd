"""What a caller may hand over to be stored, turned into pieces of a wanted size with bounded memory."""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, AsyncIterator
from io import FileIO
from pathlib import Path
from typing import BinaryIO, Protocol

from copypool.protocol.errors import Invalid
from copypool.threads import in_thread

#: Bytes; a local file by its path; an open binary file (read in a thread); an async iterable of bytes.
Content = bytes | bytearray | memoryview | Path | BinaryIO | AsyncIterable[bytes]


class Body(Protocol):
    """Bytes to be stored, read once from the start."""

    async def read(self, size_bytes: int) -> bytes | memoryview:
        """The next `size_bytes`; fewer only at the end."""
        ...

    def done_with(self, data: bytes | memoryview) -> None:
        """Nobody needs what this `read` returned any more: its memory may take what a later one returns."""
        ...

    async def close(self) -> None:
        """Let go of what was opened here. Safe to repeat."""
        ...


class _Memory:
    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        self._view = view if view.contiguous and view.format == "B" and view.ndim == 1 else memoryview(bytes(view))
        self._at = 0

    async def read(self, size_bytes: int) -> bytes | memoryview:
        piece = self._view[self._at : self._at + size_bytes]
        self._at += len(piece)
        return piece

    def done_with(self, data: bytes | memoryview) -> None:
        """The memory is the caller's."""

    async def close(self) -> None:
        """Nothing to let go of: the memory is the caller's."""


class _LocalFile:
    """Long pieces are read into memory that was used before: touching new pages costs more than the reading."""

    def __init__(self, place: os.PathLike[str]) -> None:
        self._place = place
        self._file: FileIO | None = None
        self._at = 0
        self._free: list[bytearray] = []

    async def read(self, size_bytes: int) -> bytes | memoryview:
        return await in_thread(self._read, size_bytes)

    def _read(self, size_bytes: int) -> bytes | memoryview:
        try:
            if self._file is None:
                self._file = open(self._place, "rb", buffering=0)  # noqa: SIM115 - closed by `close`
            if os.fstat(self._file.fileno()).st_size - self._at < size_bytes:
                return _read_full(self._file, size_bytes)  # the end of a file, or a pipe
            buffer = self._free.pop() if self._free and len(self._free[-1]) == size_bytes else bytearray(size_bytes)
            view, filled = memoryview(buffer), 0
            while filled < size_bytes and (count := self._file.readinto(view[filled:])):
                filled += count
            self._at += filled
            return view[:filled]
        except OSError as exc:
            raise Invalid(f"cannot read {os.fspath(self._place)!r}: {exc.strerror}") from exc

    def done_with(self, data: bytes | memoryview) -> None:
        if isinstance(data, memoryview) and isinstance(data.obj, bytearray):
            self._free.append(data.obj)

    async def close(self) -> None:
        if self._file is not None:
            await in_thread(self._file.close)


class _OpenFile:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    async def read(self, size_bytes: int) -> bytes | memoryview:
        return await in_thread(_read_full, self._file, size_bytes)

    def done_with(self, data: bytes | memoryview) -> None:
        """What was read is not used again."""

    async def close(self) -> None:
        """Nothing to let go of: the file is the caller's."""


class _Iterated:
    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = bytearray()

    async def read(self, size_bytes: int) -> bytes | memoryview:
        while len(self._rest) < size_bytes:
            try:
                self._rest += await anext(self._pieces)
            except StopAsyncIteration:
                break
        piece = bytes(memoryview(self._rest)[:size_bytes])
        del self._rest[:size_bytes]
        return piece

    def done_with(self, data: bytes | memoryview) -> None:
        """What was collected is not used again."""

    async def close(self) -> None:
        close = getattr(self._pieces, "aclose", None)
        if close is not None:
            await close()


def open_body(content: Content) -> Body:
    """A body to read from; reading raises `Invalid` when a local file cannot be read. `TypeError` for anything else."""
    if isinstance(content, bytes | bytearray | memoryview):
        return _Memory(content)
    if isinstance(content, os.PathLike):
        return _LocalFile(content)
    if isinstance(content, AsyncIterable):
        return _Iterated(aiter(content))
    if hasattr(content, "read"):
        return _OpenFile(content)
    raise TypeError(f"cannot store a {type(content).__name__}: pass bytes, a Path, a binary file or an async iterable")


def _read_full(file: BinaryIO, size_bytes: int) -> bytes:
    data = file.read(size_bytes)
    if len(data) == size_bytes or not data:
        return data
    pieces = [data]
    left = size_bytes - len(data)
    while left and (data := file.read(left)):
        pieces.append(data)
        left -= len(data)
    return b"".join(pieces)
