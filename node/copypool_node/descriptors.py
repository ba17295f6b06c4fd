"""Open files of a volume: a bounded cache, least recently used first out. Thread-safe; blocking where it says so.

A descriptor in use is pinned and never closed under its user: a file that is dropped meanwhile stays readable for
those who hold a pin, and its blocks are freed when the last of them lets go.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from copypool_node.disk import Disk

OPEN_FILES_MAX = 256  #: descriptors kept open per volume when nobody uses them


class Descriptor:
    """One open file. `fd` is good while a pin is held."""

    __slots__ = ("direct", "fd", "forgotten", "path", "pins", "writable")

    def __init__(self, path: str, fd: int, *, writable: bool, direct: bool) -> None:
        self.path = path
        self.fd = fd
        self.writable = writable
        self.direct = direct  #: reads and writes past the page cache
        self.pins = 0
        self.forgotten = False


class Descriptors:
    """Keys are (path, past the page cache or not)."""

    def __init__(self, disk: Disk, limit: int = OPEN_FILES_MAX) -> None:
        self._disk = disk
        self._limit = limit
        self._lock = threading.Lock()
        self._open: OrderedDict[tuple[str, bool], Descriptor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def pin_cached(self, path: str) -> Descriptor | None:
        """Pin the descriptor if it is open already. Does not block."""
        with self._lock:
            return self._pin((path, False), writable=False)

    def pin(self, path: str, *, writable: bool = False, direct: bool = False) -> Descriptor:
        """Pin a descriptor, opening the file when needed. Blocks. `Missing` when there is no such file.

        `direct` asks for reads and writes past the page cache; what came is in `Descriptor.direct`.
        """
        key = (path, direct)
        with self._lock:
            found = self._pin(key, writable=writable)
        if found is not None:
            return found
        fd = self._disk.open_direct(path, writable=writable) if direct else None
        past_cache = fd is not None
        if fd is None:
            fd = self._disk.open(path, writable=writable)
        fresh = Descriptor(path, fd, writable=writable, direct=past_cache)
        with self._lock:
            found = self._pin(key, writable=writable)
            if found is None:
                found, fresh_is_in = fresh, True
                fresh.pins = 1
                replaced = self._open.pop(key, None)
                self._open[key] = fresh
            else:
                fresh_is_in, replaced = False, None
            surplus = self._evict()
            if replaced is not None:
                replaced.forgotten = True
                if not replaced.pins:
                    surplus.append(replaced)
        if not fresh_is_in:
            surplus.append(fresh)
        for descriptor in surplus:
            self._disk.close(descriptor.fd)
        return found

    def adopt(self, path: str, fd: int) -> None:
        """Keep a descriptor that the caller has just opened for reading and writing."""
        with self._lock:
            self._open[path, False] = Descriptor(path, fd, writable=True, direct=False)
            surplus = self._evict()
        for descriptor in surplus:
            self._disk.close(descriptor.fd)

    def unpin(self, descriptor: Descriptor) -> int | None:
        """Give a pin back. Does not block; the answer is a descriptor that the caller now has to close."""
        with self._lock:
            descriptor.pins -= 1
            return descriptor.fd if descriptor.forgotten and not descriptor.pins else None

    def release(self, descriptor: Descriptor) -> None:
        """Give a pin back, and close what nobody needs. May block."""
        fd = self.unpin(descriptor)
        if fd is not None:
            self._disk.close(fd)

    def forget(self, path: str) -> None:
        """Keep this file open only for those who hold pins now. May block."""
        with self._lock:
            found = [self._open.pop((path, direct), None) for direct in (False, True)]
            idle = []
            for descriptor in found:
                if descriptor is not None:
                    descriptor.forgotten = True
                    if not descriptor.pins:
                        idle.append(descriptor)
        for descriptor in idle:
            self._disk.close(descriptor.fd)

    def close(self) -> None:
        """Forget all. May block."""
        for path in {path for path, _direct in list(self._open)}:
            self.forget(path)

    def _pin(self, key: tuple[str, bool], *, writable: bool) -> Descriptor | None:
        found = self._open.get(key)
        if found is None or (writable and not found.writable):
            return None
        found.pins += 1
        self._open.move_to_end(key)
        return found

    def _evict(self) -> list[Descriptor]:
        surplus: list[Descriptor] = []
        if len(self._open) > self._limit:
            for key, descriptor in list(self._open.items()):
                if len(self._open) <= self._limit:
                    break
                if not descriptor.pins:
                    del self._open[key]
                    surplus.append(descriptor)
        return surplus
