"""Whole folders in and out. What goes where is decided, and refused, before anything is written."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from copypool.batches import BATCH_BYTES, BATCH_ENTRIES, PathContent
from copypool.cancellation import TaskGroup, raise_first
from copypool.localfiles import LocalFile, PartialFile, read_files, walk, write_files
from copypool.protocol.api import LOOKUP_MAX, SMALL_MAX_BYTES, FileEntry
from copypool.protocol.errors import Conflict, CopypoolError, Invalid
from copypool.reading import FileReader, Reader, entry_of
from copypool.results import BulkResult
from copypool.threads import in_thread
from copypool.uploading import Progress

READERS = 24  #: files read from nodes at once
_WRITE_FILES = 32  #: small files handed to a thread together
_WRITE_BYTES = 4 * 1024 * 1024
_COMPONENT_MAX_BYTES = 255  #: of one part of a name, on every usual file system


class Target(NamedTuple):
    """A file of the store and its place under the local folder."""

    path: str
    relative: str


def folder_prefix(prefix: str) -> str:
    """The prefix of everything below a folder of the store: empty, or ending with a slash."""
    return prefix if not prefix or prefix.endswith("/") else prefix + "/"


def plan_targets(paths: Iterable[str], prefix: str) -> list[Target]:
    """Places for these paths below the folder they are fetched into.

    `Conflict` when one name would have to be a file and a folder (the store allows `a` and `a/b`, a file system does
    not); `Invalid` when a name would leave the folder or cannot be a local name. Nothing was written then.
    """
    targets = [Target(path, path.removeprefix(prefix)) for path in paths]
    folders: set[str] = set()
    for target in targets:
        parts = target.relative.split("/")
        if "\0" in target.relative or any(part in ("", ".", "..") for part in parts):
            raise Invalid(f"{target.path!r} cannot be written below a folder: it would leave it")
        if any(len(os.fsencode(part)) > _COMPONENT_MAX_BYTES for part in parts):
            raise Invalid(f"a part of {target.path!r} is longer than {_COMPONENT_MAX_BYTES} bytes")
        parent = target.relative.rpartition("/")[0]
        while parent and parent not in folders:
            folders.add(parent)
            parent = parent.rpartition("/")[0]
    for target in targets:
        if target.relative in folders:
            raise Conflict(
                f"{target.path!r} is a file, and there are files below {target.path + '/'!r}: "
                "a local name cannot be both; fetch them into different folders"
            )
    return targets


def check_folder(folder: Path, targets: Sequence[Target]) -> None:
    """Refuse to write through links: `Conflict` when a folder on the way to a target is a link. Blocking."""
    seen: set[PurePosixPath] = set()
    for target in targets:
        for parent in PurePosixPath(target.relative).parents:
            if parent in seen:
                break
            seen.add(parent)
            place = folder / parent
            if parent.parts and (place.is_symlink() or (place.exists() and not place.is_dir())):
                raise Conflict(f"{os.fspath(place)!r} is a link or a file, {target.path!r} needs a folder there")


async def local_chunks(folder: Path, prefix: str, skipped: list[str]) -> AsyncIterator[list[PathContent]]:
    """The files below `folder` under their names in the store: small ones read, large ones as paths."""
    files = walk(folder, skipped)
    while chunk := await asyncio.to_thread(_next_chunk, files, prefix):
        yield chunk


def _next_chunk(files: Iterator[LocalFile], prefix: str) -> list[PathContent]:
    small: list[LocalFile] = []
    chunk: list[PathContent] = []
    size_bytes = 0
    for file in files:
        if file.size > SMALL_MAX_BYTES:
            chunk.append((prefix + file.name, file.place))
        else:
            small.append(file)
            size_bytes += file.size
        if len(small) + len(chunk) >= BATCH_ENTRIES or size_bytes >= BATCH_BYTES:
            break
    places = {file.name: file.place for file in small}
    for result in read_files(small):
        grown = result.error is not None or len(result.data) > SMALL_MAX_BYTES
        # What cannot be read here is handed on by its path: opening it again tells the caller why.
        chunk.append((prefix + result.name, places[result.name] if grown else result.data))
    return chunk


async def download(
    reader: FileReader, target: Path, *, durable: bool, make_folders: bool, progress: Progress | None
) -> None:
    """Write a file's bytes to `target`: complete, checked and (with `durable`) fsync'd, or not there at all.

    `Invalid` without `make_folders` when there is no folder for it.
    """
    partial = PartialFile(target)
    try:
        await in_thread(partial.open, make_folders=make_folders)
        waiting: list[bytes] = []
        size_bytes = 0
        async with reader:
            async for piece in reader:
                waiting.append(piece)
                size_bytes += len(piece)
                if size_bytes >= _WRITE_BYTES:
                    await in_thread(partial.write, waiting)
                    if progress is not None:
                        progress(size_bytes)
                    waiting, size_bytes = [], 0
        await in_thread(partial.write, waiting)
        await in_thread(partial.commit, durable=durable)
        if progress is not None:
            progress(size_bytes)
    finally:
        await in_thread(partial.discard)


class TreeReader:
    """Fetches many files: lookups of `LOOKUP_MAX` names at once, `READERS` reads at once."""

    def __init__(
        self, reader: Reader, namespace: str, folder: Path, *, keep_going: bool, progress: Progress | None
    ) -> None:
        self.result = BulkResult()
        self._reader = reader
        self._namespace = namespace
        self._folder = folder
        self._keep_going = keep_going
        self._progress = progress
        self._found: asyncio.Queue[tuple[Target, FileEntry] | None] = asyncio.Queue(LOOKUP_MAX)

    async def fetch(self, targets: Sequence[Target]) -> BulkResult:
        """Fetch every target. Each file is complete and checked under its name; they are not fsync'd.

        Without `keep_going` the first failure ends it and is raised; files fetched so far stay.
        """
        try:
            async with TaskGroup() as group:
                group.create_task(self._look_up(targets))
                for _ in range(READERS):
                    group.create_task(self._work())
        except BaseExceptionGroup as failures:
            raise_first(failures)
        return self.result

    async def _look_up(self, targets: Sequence[Target]) -> None:
        for at in range(0, len(targets), LOOKUP_MAX):
            chunk = targets[at : at + LOOKUP_MAX]
            results = await self._reader.lookup(self._namespace, [target.path for target in chunk])
            for target, result in zip(chunk, results, strict=True):
                try:
                    entry = entry_of(result, target.path)
                except CopypoolError as exc:
                    self._failed(target.path, exc)
                    continue
                await self._found.put((target, entry))
        for _ in range(READERS):
            await self._found.put(None)

    async def _work(self) -> None:
        """Read files until there are no more; small ones are written together."""
        waiting: list[tuple[Path, bytes]] = []
        size_bytes = 0
        while (found := await self._found.get()) is not None:
            target, entry = found
            place = self._folder / target.relative
            try:
                if entry.size > SMALL_MAX_BYTES:
                    reader = self._reader.open_entry(self._namespace, entry)
                    await download(reader, place, durable=False, make_folders=True, progress=self._progress)
                    self.result.files += 1
                    self.result.bytes += entry.size
                    continue
                waiting.append((place, await self._reader.read_entry(self._namespace, entry)))
            except CopypoolError as exc:
                self._failed(target.path, exc)
                continue
            size_bytes += entry.size
            if len(waiting) == _WRITE_FILES or size_bytes >= _WRITE_BYTES:
                await self._write(waiting)
                waiting, size_bytes = [], 0
        await self._write(waiting)

    async def _write(self, files: list[tuple[Path, bytes]]) -> None:
        if not files:
            return
        failed = await in_thread(write_files, files)
        for place, error in failed:
            self._failed(str(place), error)
        refused = {place for place, _ in failed}
        stored_bytes = sum(len(data) for place, data in files if place not in refused)
        self.result.files += len(files) - len(failed)
        self.result.bytes += stored_bytes
        if self._progress is not None:
            self._progress(stored_bytes)

    def _failed(self, path: str, error: CopypoolError) -> None:
        if not self._keep_going:
            error.details.update(path=path, files=self.result.files)
            raise error
        self.result.add_failure(path, error)
