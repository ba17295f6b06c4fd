"""When a slow read is asked for a second time elsewhere, and how often at most. Pure arithmetic.

Source of the idea: Dean and Barroso, "The Tail at Scale" (2013): a second request after the 95th percentile costs
about 5 % more load and cuts the tail; the budget makes that bound hold when the percentile estimate does not.
"""

from __future__ import annotations

from bisect import insort
from collections import deque

WINDOW = 128  #: latencies remembered
MIN_SAMPLES = 16  #: fewer than these say nothing about the tail
DELAY_MIN_S = 0.010
DELAY_UNKNOWN_S = 0.100  #: before enough latencies were seen
EXTRA_PART = 0.05  #: extra requests per request
BURST_MAX = 8.0  #: unused budget that is kept


class LatencyWindow:
    """The last first-byte latencies and their 95th percentile."""

    __slots__ = ("_order", "_sorted")

    def __init__(self) -> None:
        self._order: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, latency_s: float) -> None:
        """Remember one first-byte latency."""
        if len(self._order) == WINDOW:
            self._sorted.remove(self._order.popleft())
        self._order.append(latency_s)
        insort(self._sorted, latency_s)

    def hedge_delay_s(self) -> float:
        """How long to wait for a first byte before asking a second source."""
        count = len(self._sorted)
        if count < MIN_SAMPLES:
            return DELAY_UNKNOWN_S
        return max(DELAY_MIN_S, self._sorted[min(count - 1, count * 95 // 100)])


class HedgeBudget:
    """Allows at most `EXTRA_PART` extra requests per request, over any run from the start."""

    __slots__ = ("_tokens",)

    def __init__(self) -> None:
        self._tokens = 0.0

    def request_sent(self) -> None:
        """Earn the part of an extra request that one ordinary request pays for."""
        self._tokens = min(BURST_MAX, self._tokens + EXTRA_PART)

    def take(self) -> bool:
        """Spend one extra request if the budget has it."""
        # Twenty sums of 0.05 stay a rounding error below 1.
        if self._tokens < 1.0 - 1e-9:
            return False
        self._tokens -= 1.0
        return True
