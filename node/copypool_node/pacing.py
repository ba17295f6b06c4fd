"""A bandwidth budget: callers wait until their bytes fit. Bounded burst, no credit from idle hours."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

BURST_S = 0.5


class Pace:
    """At most `bytes_s` bytes a second over all callers together; 0: no limit."""

    def __init__(self, bytes_s: int, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._bytes_s = bytes_s
        self._monotonic = monotonic
        self._free_at_s = monotonic()

    @property
    def bytes_s(self) -> int:
        """The rate now; 0: no limit."""
        return self._bytes_s

    def set_rate(self, bytes_s: int) -> None:
        """A new rate for what is asked for from now on; who waits already waits as he was told."""
        self._bytes_s = bytes_s

    def reserve(self, size_bytes: int) -> float:
        """Book these bytes; how many seconds to wait before they may be moved."""
        if not self._bytes_s:
            return 0.0
        now_s = self._monotonic()
        begin_s = max(self._free_at_s, now_s - BURST_S)
        self._free_at_s = begin_s + size_bytes / self._bytes_s
        return max(0.0, begin_s - now_s)

    async def take(self, size_bytes: int) -> None:
        """Wait until these bytes may be moved."""
        wait_s = self.reserve(size_bytes)
        if wait_s > 0:
            await asyncio.sleep(wait_s)
