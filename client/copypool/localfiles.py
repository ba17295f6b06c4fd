"""Local files at the client: written beside their name, made durable, then renamed. Blocking; call it in a thread."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from copypool.protocol.api import SMALL_MAX_BYTES
from copypool.protocol.errors import CopypoolError, Invalid


class PartialFile:
    """A file under a temporary name next to the wanted one. `commit` or `discard` it."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._temporary = f"{target.parent}/.{target.name[:40]}.{secrets.token_hex(6)}.partial"
        self._fd: int | None = None
        self._made = False  #: the temporary file is there

    def open(self, *, make_folders: bool) -> None:
        """Make the temporary file, and with `make_folders` the folders above it.

        `Invalid` when the place does not allow it.
        """
        try:
            if make_folders:
                self._target.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileNotFoundError as exc:
            raise Invalid(f"there is no folder {os.fspath(self._target.parent)!r}: make it first") from exc
        except OSError as exc:
            raise Invalid(f"cannot write {os.fspath(self._target)!r}: {exc.strerror}") from exc
        self._made = True

    def write(self, pieces: Sequence[bytes]) -> None:
        """Append these pieces."""
        assert self._fd is not None
        try:
            for piece in pieces:
                view = memoryview(piece)
                while len(view):
                    view = view[os.write(self._fd, view) :]
        except OSError as exc:
            raise Invalid(f"cannot write {os.fspath(self._target)!r}: {exc.strerror}") from exc

    def commit(self, *, durable: bool) -> None:
        """Put the file in its place, replacing what was there; with `durable` the bytes and the name are fsync'd."""
        assert self._fd is not None
        try:
            if durable:
                os.fsync(self._fd)
            os.close(self._fd)
            self._fd = None
            os.replace(self._temporary, self._target)
            self._made = False
            if durable:
                _sync_folder(self._target.parent)
        except OSError as exc:
            raise Invalid(f"cannot write {os.fspath(self._target)!r}: {exc.strerror}") from exc

    def discard(self) -> None:
        """Remove the temporary file if it is still there. Safe to repeat, and after `commit`."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        if self._made:
            Path(self._temporary).unlink(missing_ok=True)
            self._made = False


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_files(files: Sequence[tuple[Path, bytes]]) -> list[tuple[Path, CopypoolError]]:
    """Write whole small files, each complete under its name or not there; returns those that failed."""
    failed: list[tuple[Path, CopypoolError]] = []
    folders: set[Path] = set()
    for target, data in files:
        try:
            partial = PartialFile(target)
            try:
                partial.open(make_folders=target.parent not in folders)
                folders.add(target.parent)
                partial.write((data,))
                partial.commit(durable=False)
            finally:
                partial.discard()
        except CopypoolError as exc:
            failed.append((target, exc))
    return failed


class LocalFile(NamedTuple):
    """A regular file found under a folder."""

    place: Path
    name: str  #: relative to the folder, with `/`
    size: int  #: bytes, when it was found


def walk(folder: Path, skipped: list[str]) -> Iterator[LocalFile]:
    """Every regular file under `folder`, links to regular files included, in name order per folder.

    Links to folders are not followed; they and everything that is no file go to `skipped`.
    """
    pending = [(folder, "")]
    while pending:
        place, prefix = pending.pop()
        try:
            with os.scandir(place) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as exc:
            if not prefix:
                raise Invalid(f"cannot read the folder {os.fspath(place)!r}: {exc.strerror}") from exc
            skipped.append(prefix)
            continue
        folders: list[tuple[Path, str]] = []
        for entry in entries:
            name = prefix + entry.name
            try:
                if entry.is_dir(follow_symlinks=False):
                    folders.append((Path(entry.path), name + "/"))
                elif entry.is_file():
                    yield LocalFile(Path(entry.path), name, entry.stat().st_size)
                else:
                    skipped.append(name)
            except OSError:
                skipped.append(name)
        pending.extend(reversed(folders))


class ReadResult(NamedTuple):
    """A local file read into memory, or why it could not be."""

    name: str
    data: bytes
    error: CopypoolError | None


def read_files(files: Sequence[LocalFile]) -> list[ReadResult]:
    """Read small files whole. One that grew past `SMALL_MAX_BYTES` since it was found is read up to there and more."""
    results: list[ReadResult] = []
    for file in files:
        try:
            with open(file.place, "rb", buffering=0) as opened:
                data = opened.read(SMALL_MAX_BYTES + 1)
            results.append(ReadResult(file.name, data, None))
        except OSError as exc:
            results.append(ReadResult(file.name, b"", Invalid(f"cannot read {file.name!r}: {exc.strerror}")))
    return results
