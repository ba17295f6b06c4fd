"""The one door to the disk: the only module of the project that makes file system calls. Blocking.

Everything else calls these methods, on a volume's own threads (`threads`), never on the event loop. Each call goes
through `Disk.invoke`, so that a test can fail, shorten, count or log any of them; and each `OSError` becomes one of
these errors here and nowhere else:

    NoSpace      the file system is full; nothing of the call counts, the disk itself is well
    WriteFailed  a write, fsync or change of a directory failed. **Never retry it**: after a failed fsync Linux marks
                 the pages clean, and a second fsync succeeds over lost bytes. The volume takes no more writes.
    ReadFailed   a read failed; `Missing` when the file is not there
    Overloaded   the process or machine is out of descriptors; nothing was done

Writes and reads name their offset; there is no file position, so threads cannot disturb each other's.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, ParamSpec, TypeVar

from copypool.protocol.errors import Conflict, NoSpace, Overloaded, Unavailable

P = ParamSpec("P")
T = TypeVar("T")

IOV_MAX = min(os.sysconf("SC_IOV_MAX"), 1024)
DIRECT_ALIGN_BYTES = 4096  #: offsets and buffers of reads past the page cache; fits every sector size in use
_FALLOC_FL_KEEP_SIZE = 1
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})
_OPEN_MODE = 0o640
_SEALED_MODE = _OPEN_MODE | stat.S_ISVTX


class WriteFailed(Unavailable):
    """The disk failed a write or an fsync. What it holds of that write is unknown; it must not be tried again."""


class ReadFailed(Unavailable):
    """The disk failed a read; another location may have the bytes."""


class Missing(ReadFailed):
    """The file is not there."""


class Entry(NamedTuple):
    """A regular file in a directory."""

    name: str
    size_bytes: int
    sealed: bool  #: `mark_sealed` was called on it


class Space(NamedTuple):
    """Of a file system, in bytes."""

    free_bytes: int  #: available to this process
    total_bytes: int


def _load_fallocate() -> Callable[[int, int, int, int], int] | None:
    function = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if function is None:
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    function.restype = ctypes.c_int
    call: Callable[[int, int, int, int], int] = function
    return call


_libc_fallocate = _load_fallocate()


def _fallocate(fd: int, length: int) -> None:
    if _libc_fallocate is None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    if _libc_fallocate(fd, _FALLOC_FL_KEEP_SIZE, 0, length) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class Disk:
    """The real thing. Stateless: one may serve all volumes. Every method blocks."""

    def invoke(self, name: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Make one system call, known as `name`. What a test replaces; raises OSError as the call does."""
        return function(*args, **kwargs)

    def _reading(self, name: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return self.invoke(name, function, *args, **kwargs)
        except FileNotFoundError as exc:
            raise Missing(f"{name}: {exc}") from exc
        except OSError as exc:
            if exc.errno in _NO_DESCRIPTORS:
                raise Overloaded(f"{name}: {exc}: raise the limit of open files") from exc
            raise ReadFailed(f"{name}: {exc}") from exc

    def _writing(self, name: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return self.invoke(name, function, *args, **kwargs)
        except OSError as exc:
            if exc.errno in _NO_DESCRIPTORS:
                raise Overloaded(f"{name}: {exc}: raise the limit of open files") from exc
            # A full disk that shows at fsync has already lost bytes that a write took in: not the harmless kind.
            if exc.errno in _FULL and not name.startswith("sync"):
                raise NoSpace(f"{name}: {exc}") from exc
            raise WriteFailed(f"{name}: {exc}") from exc

    # -- files --------------------------------------------------------------------------------
    def create(self, path: str) -> int:
        """Make a new file and open it for reading and writing; `Conflict` when it is there. Not durable yet."""
        try:
            return self._writing("create", os.open, path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _OPEN_MODE)
        except WriteFailed as exc:
            if isinstance(exc.__cause__, FileExistsError):
                raise Conflict(f"{path} exists already") from exc
            raise

    def open(self, path: str, *, writable: bool = False) -> int:
        """Open a file that is there; `Missing` when it is not."""
        flags = os.O_RDWR if writable else os.O_RDONLY
        return self._reading("open", os.open, path, flags | os.O_CLOEXEC)

    def open_direct(self, path: str, *, writable: bool = False) -> int | None:
        """Open a file for `read_direct` and `write_direct`; None where the file system has no O_DIRECT."""
        flags = os.O_RDWR if writable else os.O_RDONLY
        try:
            return self._reading("open_direct", os.open, path, flags | os.O_DIRECT | os.O_CLOEXEC)
        except ReadFailed as exc:
            if isinstance(exc.__cause__, OSError) and exc.__cause__.errno == errno.EINVAL:
                return None
            raise

    def close(self, fd: int) -> None:
        """Give the descriptor back. Whatever had to be durable was fsync'd before.

        What the disk has to say now is about bytes that nobody relies on, and Linux has taken the descriptor back all
        the same. So it is no error, and hides none that is on its way; only a descriptor that is not open is one.
        """
        try:
            self.invoke("close", os.close, fd)
        except OSError as exc:
            if exc.errno == errno.EBADF:
                raise

    def write(self, fd: int, offset: int, buffers: Sequence[bytes | bytearray | memoryview]) -> int:
        """Write all buffers, one behind the other, from `offset` on; the byte count. Durable only after a sync."""
        left = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
        at = offset
        first = 0
        while first < len(left):
            written = self._writing("write", os.pwritev, fd, left[first : first + IOV_MAX], at)
            if written <= 0:
                raise WriteFailed(f"write: the disk took none of the bytes at offset {at}")
            at += written
            while first < len(left) and written >= len(left[first]):
                written -= len(left[first])
                first += 1
            if written:
                left[first] = left[first][written:]
        return at - offset

    def write_direct(self, fd: int, direct_fd: int, offset: int, data: memoryview) -> None:
        """Write `data` at `offset`: whole blocks past the page cache, by a descriptor of `open_direct`; the ends of it,
        which share a block with other bytes, and what O_DIRECT refuses, through the page cache by `fd`.

        Where `data` stands in memory at its offset modulo DIRECT_ALIGN_BYTES no byte is copied. Each byte is written
        once. Durable only after a sync.
        """
        at = min(-offset % DIRECT_ALIGN_BYTES, len(data))
        if at:
            self.write(fd, offset, [data[:at]])
        stop = at + (len(data) - at) // DIRECT_ALIGN_BYTES * DIRECT_ALIGN_BYTES
        while at < stop:
            try:
                written = self._writing("write", os.pwritev, direct_fd, [data[at:stop]], offset + at)
            except WriteFailed as exc:
                if isinstance(exc.__cause__, OSError) and exc.__cause__.errno == errno.EINVAL:
                    break  # refused before anything was done: other alignments are wanted here
                raise
            at += written
            if written <= 0 or written % DIRECT_ALIGN_BYTES:
                break
        if at < len(data):
            self.write(fd, offset + at, [data[at:]])

    def read(self, fd: int, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; fewer only where the file ends."""
        data = self._reading("read", os.pread, fd, length, offset)
        if len(data) == length or not data:
            return data
        parts = [data]
        while data and (done := sum(map(len, parts))) < length:
            data = self._reading("read", os.pread, fd, length - done, offset + done)
            parts.append(data)
        return b"".join(parts)

    def read_cached(self, fd: int, offset: int, length: int) -> bytes | None:
        """Exactly `length` bytes when all of them are in the page cache, else None. Never waits for the disk,
        so this one call may be made on the event loop."""
        buffer = bytearray(length)
        try:
            count = self.invoke("read_cached", os.preadv, fd, [buffer], offset, os.RWF_NOWAIT)
        except OSError:
            return None  # not in the cache, or not offered by this file system: `read` says what is wrong, if anything
        return bytes(buffer) if count == length else None

    def read_into(self, fd: int, offset: int, buffer: memoryview) -> int:
        """Fill `buffer` from `offset` on; how many bytes came, fewer only where the file ends."""
        filled = 0
        while filled < len(buffer):
            with buffer[filled:] as rest:
                count = self._reading("read", os.preadv, fd, [rest], offset + filled)
            if count == 0:
                break
            filled += count
        return filled

    def read_direct(self, fd: int, offset: int, length: int) -> bytes:
        """Up to `length` bytes from the medium, by a descriptor of `open_direct`; any offset and length."""
        start = offset - offset % DIRECT_ALIGN_BYTES
        span = -(-(offset + length - start) // DIRECT_ALIGN_BYTES) * DIRECT_ALIGN_BYTES
        with mmap.mmap(-1, span) as buffer, memoryview(buffer) as view:
            filled = self.read_direct_into(fd, start, view)
            with view[offset - start : min(filled, offset - start + length)] as wanted:
                return bytes(wanted)

    def read_direct_into(self, fd: int, offset: int, buffer: memoryview) -> int:
        """Fill `buffer` from the medium; how many bytes came, fewer only where the file ends. Place in memory, length
        and offset are multiples of DIRECT_ALIGN_BYTES."""
        filled = 0
        while filled < len(buffer):
            with buffer[filled:] as rest:
                count = self._reading("read_direct", os.preadv, fd, [rest], offset + filled)
            filled += count
            if count == 0 or count % DIRECT_ALIGN_BYTES:
                break  # the end of the file: nothing that is aligned is left
        return filled

    def forget(self, fd: int, offset: int, length: int) -> None:
        """Drop clean pages of this range from the page cache (advice: the kernel may keep some)."""
        self._reading("forget", os.posix_fadvise, fd, offset, length, os.POSIX_FADV_DONTNEED)

    def preallocate(self, fd: int, length: int) -> None:
        """Reserve room for `length` bytes without changing the file's size. Best effort: refusals are ignored,
        because it only saves later allocations; a full disk shows at the write."""
        try:
            self.invoke("preallocate", _fallocate, fd, length)
        except OSError:
            return

    def truncate(self, fd: int, length: int) -> None:
        """Set the file's size and give back room reserved behind it. Not durable yet."""
        self._writing("truncate", os.ftruncate, fd, length)

    def sync_data(self, fd: int) -> None:
        """Bytes written before this call, and the size, are durable when it returns."""
        self._writing("sync_data", os.fdatasync, fd)

    def sync_file(self, fd: int) -> None:
        """As `sync_data`, with mode and times."""
        self._writing("sync_file", os.fsync, fd)

    def size(self, fd: int) -> int:
        """Size of an open file."""
        return self._reading("size", os.fstat, fd).st_size

    def check_intact(self, fd: int, size: int) -> None:
        """Raise `WriteFailed` when an open file has lost its name or is shorter than what was written to it.

        What is written to a file without a name is gone with the process, however often it is synced.
        """
        found = self._writing("stat", os.fstat, fd)
        if found.st_nlink == 0:
            raise WriteFailed("somebody has deleted the file while it was written to")
        if found.st_size < size:
            raise WriteFailed(f"somebody has cut the file to {found.st_size} bytes, {size} were written")

    def mark_sealed(self, fd: int) -> None:
        """Set the file's sticky bit, which means nothing to Linux: `list_files` tells it without opening the file."""
        self._writing("mark_sealed", os.fchmod, fd, _SEALED_MODE)

    # -- directories --------------------------------------------------------------------------
    def sync_directory(self, path: str) -> None:
        """Names made, renamed or removed in this directory before the call are durable when it returns."""
        fd = self._writing("open_directory", os.open, path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._writing("sync_directory", os.fsync, fd)
        finally:
            self.close(fd)

    def make_directory(self, path: str) -> bool:
        """Make one directory; False when it is there. Not durable before `sync_directory` of its parent."""
        try:
            self._writing("make_directory", os.mkdir, path, 0o750)
        except WriteFailed as exc:
            if isinstance(exc.__cause__, FileExistsError):
                return False
            raise
        return True

    def rename(self, old: str, new: str) -> None:
        """Replace `new` by `old`. Not durable before `sync_directory`."""
        self._writing("rename", os.rename, old, new)

    def unlink(self, path: str) -> bool:
        """Remove a name; False when it is not there. Open descriptors stay good.

        Not durable before `sync_directory`.
        """
        try:
            self._writing("unlink", os.unlink, path)
        except WriteFailed as exc:
            if isinstance(exc.__cause__, FileNotFoundError):
                return False
            raise
        return True

    def list_names(self, path: str) -> list[str]:
        """Names in a directory, in no order; `Missing` when there is no such directory."""
        return self._reading("list_names", os.listdir, path)

    def list_files(self, path: str) -> list[Entry]:
        """Regular files in a directory, in no order. One that vanishes meanwhile is left out."""
        return self._reading("list_files", lambda: list(_entries(path)))

    def space(self, path: str) -> Space:
        """Of the file system that holds `path`."""
        found = self._reading("space", os.statvfs, path)
        return Space(found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize)

    # -- whole small files --------------------------------------------------------------------
    def load(self, path: str, limit_bytes: int) -> bytes:
        """Contents of a small file, at most `limit_bytes` of it; `Missing` when it is not there."""
        fd = self.open(path)
        try:
            return self.read(fd, 0, limit_bytes)
        finally:
            self.close(fd)

    def replace(self, path: str, data: bytes) -> None:
        """Put `data` into the file as a whole: durable when it returns; after a crash the old or the new contents."""
        fresh = path + ".new"
        self.unlink(fresh)
        fd = self.create(fresh)
        try:
            self.write(fd, 0, [data])
            self.sync_file(fd)
        finally:
            self.close(fd)
        self.rename(fresh, path)
        self.sync_directory(os.path.dirname(path))

    def lock(self, path: str) -> int | None:
        """Take the exclusive lock of this file, made when missing; None when another process holds it.

        Held until the descriptor is closed or the process ends, however it ends.
        """
        fd = self._writing("open_lock", os.open, path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _OPEN_MODE)
        try:
            self.invoke("lock", fcntl.flock, fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close(fd)
            return None
        except OSError as exc:
            self.close(fd)
            raise WriteFailed(f"lock: {exc}") from exc
        return fd


def _entries(path: str) -> Iterator[Entry]:
    with os.scandir(path) as found:
        for item in found:
            try:
                status = item.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_ISREG(status.st_mode):
                yield Entry(item.name, status.st_size, bool(status.st_mode & stat.S_ISVTX))
