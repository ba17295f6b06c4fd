"""A real disk whose calls can be failed, shortened, held, counted and logged; and a power cut for it.

`FaultyDisk` replaces `Disk.invoke`, the one seam that every system call of the node passes, so what is tested above it
is the code that runs in production. It also keeps what a power cut would leave: bytes, lengths and mode bits that no
sync covered and names whose directory was not synced go back to what they were at `power_cut`. And it can die: from a
chosen call on, which is torn if it is a write, nothing reaches the disk any more, as if the process had been killed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
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
    """Counts and logs every call; does to chosen ones what the test asks.

    `call` is the name of any call at all, `change` that of any that changes something.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._quiet = threading.Condition(self._lock)  # no call is at the disk
        self._at_disk = 0
        self._paths: dict[int, str] = {}
        self._faults: dict[tuple[str, int], int] = {}
        self._broken: dict[str, tuple[int, int]] = {}  # name -> (count from which on every call fails, how)
        self._death: tuple[str, int] | None = None  # name and count of the call at which it dies
        self._on_death: Callable[[], None] = lambda: None
        self._short: dict[int, int] = {}
        self._held: dict[str, threading.Event] = {}
        self._durable: dict[str, int] = {}  # path -> size that a sync has covered
        # (path, kind of change) -> how a power cut takes the change back
        self._undo: dict[tuple[str, str], Callable[[], None]] = {}
        self.counts: Counter[str] = Counter()
        self.log: list[Call] = []
        self.dead = False  #: nothing reaches the disk any more
        self.struck = False  #: a fault that was asked for has happened

    # -- what a test asks for -----------------------------------------------------------------
    def fail(self, name: str, nth: int = 1, error: int = errno.EIO) -> None:
        """Fail the nth call from now on of this name (`change`: of any that changes something)."""
        with self._lock:
            self._faults[name, self.counts[name] + nth] = error

    def fail_for_ever(self, name: str, nth: int = 1, error: int = errno.EIO) -> None:
        """Fail the nth call of this name from now on, and all later ones."""
        with self._lock:
            self._broken[name] = (self.counts[name] + nth, error)

    def die(self, name: str, nth: int, on_death: Callable[[], None]) -> None:
        """Die at the nth call of this name from now on: half of it is done if it is a write, else nothing; nothing that
        comes later. `on_death` is called on the thread that made the call."""
        with self._lock:
            self._death = (name, self.counts[name] + nth)
            self._on_death = on_death

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

    def revive(self) -> None:
        """Another process uses the disk now; what the dead one has not synced is still not synced."""
        with self._lock:
            self.dead = False
            self._death = None

    def mend(self) -> None:
        """Forget faults that have not struck."""
        with self._lock:
            self._faults.clear()
            self._short.clear()
            self._broken.clear()

    def power_cut(self, *, zeros: bool = False) -> None:
        """Leave on the disk only what was synced; threads that still use it reach nothing from now on, until `revive`.

        With `zeros` unsynced lengths stay while their bytes are gone, as a file system may leave them.
        """
        with self._lock:
            self.dead = True
            assert self._quiet.wait_for(lambda: not self._at_disk, HOLD_MAX_S), (
                "a call does not come back from the disk"
            )
        for path, size in self._durable.items():
            with contextlib.suppress(FileNotFoundError):
                found = Path(path).stat().st_size
                if found > size:
                    os.truncate(path, size)
                    if zeros:
                        os.truncate(path, found)
        for undo in reversed(list(self._undo.values())):
            with contextlib.suppress(FileNotFoundError):
                undo()

    # -- the seam -----------------------------------------------------------------------------
    def invoke(self, name: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        with self._lock:
            error, dying = self._count(name)
            short = self._short.pop(self.counts["write"], None) if name == "write" else None
            held = self._held.get(name)
        path = self._path_of(args)
        if dying and name == "write":
            self._short_write(args, sum(map(len, args[1])) // 2)  # type: ignore[arg-type]
        if dying:
            self._on_death()
        if name == "close" and (self.dead or error):
            result = function(*args, **kwargs)  # Linux gives the descriptor back whatever it answers
            if error:
                raise OSError(error, os.strerror(error))
            return result
        if held is not None:
            held.wait(HOLD_MAX_S)
        with self._lock:
            if error or self.dead:
                self.log.append(Call(name, path, failed=True))
                raise OSError(error or errno.EIO, os.strerror(error or errno.EIO))
            self._at_disk += 1
        try:
            undo = self._how_to_undo(name, args)
            result = self._short_write(args, short) if short is not None else function(*args, **kwargs)
            with self._lock:
                self.log.append(Call(name, path, failed=False))
                self._follow(name, args, result, undo)
        except OSError:
            self.log.append(Call(name, path, failed=True))
            raise
        finally:
            with self._lock:
                self._at_disk -= 1
                self._quiet.notify_all()
        return result  # type: ignore[return-value]

    def _count(self, name: str) -> tuple[int, bool]:
        """Count a call; the error it is to fail with, and whether the disk dies of it."""
        error, dying = 0, False
        for counted in (name, *(["change"] if name in CHANGES else []), "call"):
            self.counts[counted] += 1
            at = self.counts[counted]
            error = error or self._faults.pop((counted, at), 0)
            broken_at, broken_error = self._broken.get(counted, (at + 1, 0))
            if at >= broken_at:
                error = error or broken_error
            if self._death == (counted, at):
                self.dead = dying = True
        self.struck = self.struck or bool(error) or dying
        return error, dying

    def _path_of(self, args: tuple[Any, ...]) -> str:
        return args[0] if args and isinstance(args[0], str) else self._paths.get(args[0], "") if args else ""

    @staticmethod
    def _short_write(args: tuple[Any, ...], size_bytes: int) -> int:
        fd, buffers, offset = args
        torn = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_CLOEXEC)  # one of O_DIRECT takes whole blocks alone
        try:
            return os.pwrite(torn, b"".join(buffers)[:size_bytes], offset)
        finally:
            os.close(torn)

    @staticmethod
    def _how_to_undo(name: str, args: tuple[Any, ...]) -> Callable[[], None] | None:
        if name == "create":
            return lambda: Path(args[0]).unlink(missing_ok=True)
        if name == "make_directory":
            return lambda: shutil.rmtree(args[0], ignore_errors=True)
        if name == "rename":
            return _restorer(Path(args[1]))
        if name == "unlink":
            return _restorer(Path(args[0]))
        return None

    def _follow(self, name: str, args: tuple[Any, ...], result: Any, undo: Callable[[], None] | None) -> None:
        if name in ("create", "open", "open_directory", "open_direct", "open_lock"):
            self._paths[result] = args[0]
        if name == "create":
            self._durable[args[0]] = 0
        if name == "rename":
            self._durable[args[1]] = self._durable.pop(args[0], 0)
            self._undo.pop((args[0], "name"), None)
        if name == "unlink" and self._undo.pop((args[0], "name"), None) is not None:
            undo = None  # it never had a durable name
        if undo is not None:
            self._undo.setdefault((args[-1] if name == "rename" else args[0], "name"), undo)
        if name == "mark_sealed":
            path = self._paths[args[0]]
            self._undo[path, "mode"] = lambda: Path(path).chmod(0o640)
        if name in ("sync_data", "sync_file"):
            path = self._paths[args[0]]
            self._durable[path] = os.fstat(args[0]).st_size
        if name == "sync_file":
            self._undo.pop((self._paths[args[0]], "mode"), None)
        if name == "sync_directory":
            directory = self._paths[args[0]]
            for path, kind in list(self._undo):
                if kind == "name" and os.path.dirname(path) == directory:
                    del self._undo[path, kind]
        if name == "truncate":
            path = self._paths[args[0]]
            self._durable[path] = min(self._durable.get(path, args[1]), args[1])


def _restorer(path: Path) -> Callable[[], None]:
    """How to give a name the contents again that it leads to now, or none."""
    before = path.read_bytes() if path.exists() else None
    mode = path.stat().st_mode & 0o7777 if before is not None else 0

    def restore() -> None:
        if before is None:
            path.unlink(missing_ok=True)
        else:
            path.write_bytes(before)
            path.chmod(mode)

    return restore
