"""Cluster time at this node, and the versions minted from it.

Cluster time is a coordinator's wall clock from the last heartbeat plus the monotonic time that went by here since:
one machine's wrong wall clock changes nothing. The monotonic clock is an argument, so tests turn it by hand.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from copypool.protocol.versions import VersionClock

MonotonicClock = Callable[[], float]


class ClusterClock:
    """Milliseconds of cluster time since the epoch."""

    __slots__ = ("_base_ms", "_monotonic", "_set_at_s", "versions")

    def __init__(self, monotonic: MonotonicClock = time.monotonic) -> None:
        self._monotonic = monotonic
        self._base_ms = 0
        self._set_at_s = 0.0
        self.versions = VersionClock()

    def adopt(self, cluster_time_ms: int) -> None:
        """Take over the time of a reply that was just received."""
        self._base_ms = cluster_time_ms
        self._set_at_s = self._monotonic()

    def now_ms(self) -> int:
        """Cluster time now; 0 counts from the process's start as long as no reply came."""
        return self._base_ms + int((self._monotonic() - self._set_at_s) * 1000)

    def mint(self) -> int:
        """A version above everything minted or observed at this node."""
        return self.versions.mint(self.now_ms())
