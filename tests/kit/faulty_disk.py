"""A real disk whose calls can be failed, shortened, held, counted and logged; and a power cut for it.

`FaultyDisk` replaces `Disk.invoke`, the one seam that every system call of the node passes, so what is tested above it
is the code that runs in production. It also keeps what a power cut would leave: bytes that no sync covered and names
whose directory was not synced are taken away by `power_cut`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

from copypool_node.disk import Disk

P = ParamSpec("P")
T = TypeVar("T")

HOLD_MAX_S = 30.0
#: Calls that change what the disk holds.
CHANGES = frozenset(
    {
        "create",
        "write",
        "truncate",
        "sync_data",
        "sync_file",
        "sync_directory",
        "mark_sealed",
        "make_directory",
        "rename",
        "unlink",
    }
)


class Call(NamedTuple):
    """One system call, in the order in which they were made."""

    name: str
    path: str
    failed: bool


class FaultyDisk(Disk):
    """Counts and logs every call; does to chosen ones what the test asks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._paths: dict[int, str] = {}
        self._faults: dict[tuple[str, int], int] = {}
        self._short: dict[int, int] = {}
        self._held: dict[str, threading.Event] = {}
        self._durable: dict[str, int] = {}  # path -> size that a sync has covered
        self._undo: dict[str, Callable[[], None]] = {}  # path -> how a power cut takes its new name away
        self.counts: Counter[str] = Counter()
        self.log: list[Call] = []

    # -- what a test asks for -----------------------------------------------------------------
    def fail(self, name: str, nth: int = 1, error: int = errno.EIO) -> None:
        """Fail the nth call from now on of this name (`change`: of any that changes something)."""
        with self._lock:
            self._faults[name, self.counts[name] + nth] = error

    def shorten(self, nth: int, size_bytes: int) -> None:
        """Let the nth write from now on take no more than this many bytes."""
        with self._lock:
            self._short[self.counts["write"] + nth] = size_bytes

    def hold(self, name: str) -> threading.Event:
        """Let calls of this name hang until the event is set (at most HOLD_MAX_S)."""
        event = threading.Event()
        with self._lock:
            self._held[name] = event
        return event

    def let_go(self, name: str) -> None:
        """End a `hold`."""
        with self._lock:
            event = self._held.pop(name)
        event.set()

    def mend(self) -> None:
        """Forget faults that have not struck."""
        with self._lock:
            self._faults.clear()
            self._short.clear()

    def power_cut(self) -> None:
        """Leave on the disk only what was synced. Call it when nobody uses the disk any more."""
        for path, size in self._durable.items():
            with contextlib.suppress(FileNotFoundError):
                if Path(path).stat().st_size > size:
                    os.truncate(path, size)
        for undo in reversed(list(self._undo.values())):
            undo()

    # -- the seam -----------------------------------------------------------------------------
    def invoke(self, name: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        with self._lock:
            error = self._count(name)
            short = self._short.pop(self.counts["write"], None) if name == "write" else None
            held = self._held.get(name)
        path = self._path_of(args)
        if held is not None:
            held.wait(HOLD_MAX_S)
        undo = self._how_to_undo(name, args)
        try:
            if error:
                raise OSError(error, os.strerror(error))
            result = self._short_write(args, short) if short is not None else function(*args, **kwargs)
        except OSError:
            self.log.append(Call(name, path, failed=True))
            raise
        with self._lock:
            self.log.append(Call(name, path, failed=False))
            self._follow(name, args, result, undo)
        return result  # type: ignore[return-value]

    def _count(self, name: str) -> int:
        self.counts[name] += 1
        error = self._faults.pop((name, self.counts[name]), 0)
        if name in CHANGES:
            self.counts["change"] += 1
            error = error or self._faults.pop(("change", self.counts["change"]), 0)
        return error

    def _path_of(self, args: tuple[Any, ...]) -> str:
        return args[0] if args and isinstance(args[0], str) else self._paths.get(args[0], "") if args else ""

    @staticmethod
    def _short_write(args: tuple[Any, ...], size_bytes: int) -> int:
        fd, buffers, offset = args
        return os.pwrite(fd, b"".join(buffers)[:size_bytes], offset)

    @staticmethod
    def _how_to_undo(name: str, args: tuple[Any, ...]) -> Callable[[], None] | None:
        if name == "create":
            return lambda: Path(args[0]).unlink(missing_ok=True)
        if name == "rename":
            new = Path(args[1])
            before = new.read_bytes() if new.exists() else None
            return lambda: new.unlink(missing_ok=True) if before is None else _put(new, before)
        return None

    def _follow(self, name: str, args: tuple[Any, ...], result: Any, undo: Callable[[], None] | None) -> None:
        if name in ("create", "open", "open_directory", "open_direct", "open_lock"):
            self._paths[result] = args[0]
        if name == "create":
            self._durable[args[0]] = 0
        if name == "rename":
            self._durable[args[1]] = self._durable.pop(args[0], 0)
            self._undo.pop(args[0], None)
        if undo is not None:
            self._undo[args[-1] if name == "rename" else args[0]] = undo
        if name in ("sync_data", "sync_file"):
            path = self._paths[args[0]]
            self._durable[path] = os.fstat(args[0]).st_size
        if name == "sync_directory":
            directory = self._paths[args[0]]
            for path in [path for path in self._undo if os.path.dirname(path) == directory]:
                del self._undo[path]
        if name == "truncate":
            path = self._paths[args[0]]
            self._durable[path] = min(self._durable.get(path, args[1]), args[1])


def _put(path: Path, data: bytes) -> None:
    path.write_bytes(data)
