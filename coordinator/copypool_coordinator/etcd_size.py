"""How large etcd is, and when it will be full at the rate at which it grows. Pure.

etcd counts the size of its database file against its quota, free pages included, and refuses every write once that is
reached. The file grows when what is in use does, so the trend is that of the bytes in use, over the last day.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from copypool_coordinator.etcd import EndpointStatus

_SAMPLE_S = 60.0
_KEPT = 24 * 60
#: A shorter look tells more about the last compaction than about growth.
_SPAN_MIN_S = 600.0
_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class EtcdSize:
    """What the members said last."""

    members: int = 0
    members_up: int = 0
    db_bytes: int = 0  #: the largest member's file
    used_bytes: int = 0  #: of it, what is not free
    alarms: int = 0  #: raised in the cluster, such as NOSPACE

    @staticmethod
    def of(members: Iterable[EndpointStatus], before: EtcdSize) -> EtcdSize:
        """From the members' answers; sizes stay as they were `before` while none answers."""
        asked = list(members)
        told = [each for each in asked if not each.error]
        if not told:
            return EtcdSize(len(asked), 0, before.db_bytes, before.used_bytes, before.alarms)
        return EtcdSize(
            members=len(asked),
            members_up=len(told),
            db_bytes=max(each.db_size_bytes for each in told),
            used_bytes=max(each.db_in_use_bytes for each in told),
            alarms=len({alarm for each in told for alarm in each.alarms}),
        )


class Growth:
    """The trend of the bytes in use: a line through at most a day of samples, one a minute."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque(maxlen=_KEPT)

    def note(self, now_s: float, used_bytes: int) -> None:
        """A size was read at this (monotonic) time."""
        if not self._samples or now_s - self._samples[-1][0] >= _SAMPLE_S:
            self._samples.append((now_s, used_bytes))

    def bytes_per_s(self) -> float:
        """Slope of the least-squares line; 0 while the samples span less than ten minutes."""
        if len(self._samples) < 2 or self._samples[-1][0] - self._samples[0][0] < _SPAN_MIN_S:
            return 0.0
        count = len(self._samples)
        mean_s = sum(at for at, _ in self._samples) / count
        mean_bytes = sum(used for _, used in self._samples) / count
        spread = sum((at - mean_s) ** 2 for at, _ in self._samples)
        return sum((at - mean_s) * (used - mean_bytes) for at, used in self._samples) / spread

    def days_to(self, quota_bytes: int, db_bytes: int) -> float:
        """Days until the database has the size of its quota; infinite while it does not grow, 0 when it is there."""
        if db_bytes >= quota_bytes:
            return 0.0
        rate = self.bytes_per_s()
        return (quota_bytes - db_bytes) / rate / _DAY_S if rate > 0 else math.inf
