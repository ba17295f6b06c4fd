"""The continuous scrub: when a location is due, how fast a volume is read back, how old the oldest reading is. Pure.

Readings begin at half of the period and are paced so that the other half suffices even when everything on a volume
falls due at once, with a quarter to spare. So everything is read back within one period, and proof, which lives for
two, outlives a scrub that stood still for a whole period.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import TYPE_CHECKING

from copypool.protocol.protection import ScrubProgress
from copypool_coordinator.protection import is_empty
from copypool_coordinator.rows import ExtentRow

if TYPE_CHECKING:
    from copypool_coordinator.policy import Policy

#: Times of readings are kept in steps of this part of the period.
_STEPS = 1_000
#: What was read back within this time makes the speed; at most so many readings are kept for it.
_SPEED_WINDOW_MS = 300_000
_READINGS_MAX = 50_000


def due_after_ms(policy: Policy) -> int:
    """A location read back this long ago is read back again."""
    return policy.scrub_period_ms // 2


def rate_bytes_per_s(policy: Policy, stored_bytes: int) -> int:
    """How fast a volume that stores so much is read back: enough for the deadline, within floor and ceiling."""
    window_s = max(1.0, (policy.scrub_period_ms - due_after_ms(policy)) / 1000)
    wanted = int(stored_bytes * 1.25 / window_s)
    return max(policy.scrub_floor_bytes_per_s, min(policy.scrub_bytes_per_s, wanted))


def pause_ms(policy: Policy, stored_bytes: int, size_bytes: int) -> int:
    """How long a volume rests after a reading of this size was asked for."""
    return size_bytes * 1000 // rate_bytes_per_s(policy, stored_bytes)


class ScrubLedger:
    """When each extent's longest unread location was read back, in coarse steps; and how fast it goes."""

    def __init__(self) -> None:
        self._step_ms = 0
        self._step_of: dict[int, int] = {}  #: extent -> step; 0: some location was never read back
        self._extents: Counter[int] = Counter()  #: step -> extents
        #: (extent, volume) -> (time ms, bytes). Ordered: a dict finds its first key by passing over all that went.
        self._readings: OrderedDict[tuple[int, int], tuple[int, int]] = OrderedDict()

    def note(self, extent: int, row: ExtentRow | None, policy: Policy, now_ms: int) -> None:
        """Take in an extent's row as it is now; None: it is gone."""
        self._step_ms = max(1, policy.scrub_period_ms // _STEPS)
        before = self._step_of.pop(extent, None)
        if before is not None:
            self._extents[before] -= 1
            if not self._extents[before]:
                del self._extents[before]
        if row is None or row.open or is_empty(row.length):
            return
        whole = [each for each in row.locations if each.state == "good" and each.length >= row.length]
        if not whole:
            return
        read_ms = min(each.verified_ms for each in whole)
        step = 1 + read_ms // self._step_ms if read_ms else 0
        self._step_of[extent] = step
        self._extents[step] += 1
        for each in whole:
            if each.verified_ms > now_ms - _SPEED_WINDOW_MS:
                if len(self._readings) >= _READINGS_MAX:
                    self._readings.popitem(last=False)
                self._readings[extent, each.volume] = (each.verified_ms, row.length)

    def progress(self, policy: Policy, now_ms: int) -> ScrubProgress:
        """How it stands now."""
        since_ms = now_ms - _SPEED_WINDOW_MS
        for key in [key for key, (at_ms, _) in self._readings.items() if at_ms <= since_ms]:
            del self._readings[key]
        read = sum(size for _, size in self._readings.values())
        oldest = min((step for step in self._extents if step), default=0)
        age_ms = max(0, now_ms - (oldest - 1) * self._step_ms) if oldest else 0
        return ScrubProgress(
            policy.scrub_period_ms / 1000, age_ms / 1000, self._extents[0], read * 1000 / _SPEED_WINDOW_MS
        )
