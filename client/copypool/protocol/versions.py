"""Versions: 64-bit hybrid timestamps, 48 bits of cluster milliseconds and 16 bits of logical counter.

The writing node mints a version before it appends, above everything it has seen, so the order of records on the
media is the order in the catalog. Source: hybrid logical clocks (Kulkarni et al., 2014).
"""

from __future__ import annotations

_COUNTER_BITS = 16
_COUNTER_MASK = (1 << _COUNTER_BITS) - 1
VERSION_MAX = (1 << 63) - 1

#: How far a version may lie behind or ahead of cluster time when it is committed. Behind: a swept tombstone row
#: cannot be undercut. Ahead: a wrong clock cannot poison a path.
BEHIND_MAX_MS = 5 * 60 * 1000
AHEAD_MAX_MS = 5_000


def version_at(time_ms: int, counter: int = 0) -> int:
    """The version with this cluster time and counter."""
    return time_ms << _COUNTER_BITS | counter


def time_ms_of(version: int) -> int:
    """The cluster time in a version, in milliseconds since the epoch."""
    return version >> _COUNTER_BITS


class VersionClock:
    """Mints strictly increasing versions from a clock that the caller reads; does no I/O."""

    __slots__ = ("_last",)

    def __init__(self, last: int = 0) -> None:
        self._last = last

    @property
    def last(self) -> int:
        """The highest version minted or observed."""
        return self._last

    def observe(self, version: int) -> None:
        """Mint only above `version` from now on."""
        self._last = max(self._last, version)

    def mint(self, now_ms: int) -> int:
        """A version above everything minted or observed, at `now_ms` or just after the last one."""
        self._last = max(self._last + 1, version_at(now_ms))
        return self._last


def plausible(version: int, now_ms: int) -> bool:
    """Whether a version may be committed at this cluster time."""
    return -BEHIND_MAX_MS <= time_ms_of(version) - now_ms <= AHEAD_MAX_MS
