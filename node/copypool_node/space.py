"""How much of a volume may still be filled, and by what. Arithmetic only.

A full volume must still take deletes (they are records, too) and be repaired, so new data stops at a reserve, repair
at a quarter of it (64 MiB at most), and only tombstones may use the rest.
"""

from __future__ import annotations

from typing import Literal

from copypool.protocol.errors import NoSpace

Purpose = Literal["data", "repair", "tombstone"]

_MIB = 1024 * 1024
RESERVE_MIN_BYTES = 256 * _MIB
RESERVE_FRACTION = 50  #: a fiftieth: 2 %
RESERVE_CAP_FRACTION = 10  #: never more than a tenth, so that small file systems stay usable
TOMBSTONE_FLOOR_BYTES = 64 * _MIB


def default_reserve_bytes(total_bytes: int) -> int:
    """Reserve of a file system of this size, where no setting says otherwise."""
    return min(max(RESERVE_MIN_BYTES, total_bytes // RESERVE_FRACTION), total_bytes // RESERVE_CAP_FRACTION)


class SpaceLedger:
    """The file system's answer when it was last asked, less what was admitted since."""

    __slots__ = ("_admitted_bytes", "_free_bytes", "_name", "limit_bytes", "reserve_bytes", "total_bytes", "used_bytes")

    def __init__(self, name: str, reserve_bytes: int, free_bytes: int, total_bytes: int) -> None:
        self._name = name
        self.reserve_bytes = reserve_bytes
        self._free_bytes = free_bytes
        self.total_bytes = total_bytes
        self._admitted_bytes = 0
        self.limit_bytes = 0  #: what an operator lets the volume's extents take; 0: no limit
        self.used_bytes = 0  #: what they took when that was last counted

    def update(self, free_bytes: int, total_bytes: int) -> None:
        """The file system was asked. What was admitted and not written by then is forgotten: the reserve covers it."""
        self._free_bytes = free_bytes
        self.total_bytes = total_bytes
        self._admitted_bytes = 0

    def floor_bytes(self, purpose: Purpose) -> int:
        """What bytes for this purpose must leave free."""
        if purpose == "data":
            return self.reserve_bytes
        return min(TOMBSTONE_FLOOR_BYTES, self.reserve_bytes // 4) if purpose == "repair" else 0

    def room_bytes(self, purpose: Purpose) -> int:
        """What may still be written for this purpose; >= 0. A size limit leaves tombstones out: deletes make room."""
        room_bytes = self._free_bytes - self._admitted_bytes - self.floor_bytes(purpose)
        if self.limit_bytes and purpose != "tombstone":
            room_bytes = min(room_bytes, self.limit_bytes - self.used_bytes - self._admitted_bytes)
        return max(0, room_bytes)

    def admit(self, size_bytes: int, purpose: Purpose) -> None:
        """Count these bytes as used, or raise `NoSpace` and count nothing."""
        room_bytes = self.room_bytes(purpose)
        if size_bytes > room_bytes:
            raise NoSpace(
                f"volume {self._name}: {size_bytes} bytes for {purpose} were asked for, {room_bytes} may be used "
                f"({self._free_bytes} free, {self.floor_bytes(purpose)} kept{self._limit_text()})"
            )
        self._admitted_bytes += size_bytes

    def _limit_text(self) -> str:
        return f", {self.used_bytes} used of a limit of {self.limit_bytes}" if self.limit_bytes else ""
