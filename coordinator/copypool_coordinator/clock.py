"""Cluster time at one coordinator: that of the leader, carried on by a clock that nobody sets.

Every coordinator mints and judges by this time, and tells it to nodes and clients: two coordinators that tell different
times stop each other's writes, for a node goes on above every version that it has minted. So a wall clock, which
people and NTP set, decides as little as it can:

- Between two rows of the leader time goes on by CLOCK_BOOTTIME; a step of the wall clock is not noticed.
- A coordinator tells no time before it `known`s it: it has heard the leader write, its own wall clock agrees with the
  row that it found, or it leads.
- A leader goes on from what it heard, and is steered towards its wall clock by `STEER_RATIO` at most.
- Only who leads without ever having heard a leader takes its wall clock as it is, since a cluster that was off cannot
  know for how long; and never one that is behind the row that it found.

A row tells a time that has been reached: how long it was on its way is not known, so that of the last few rows that
say the most counts. No I/O; both clocks are arguments.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from copypool.protocol.versions import AHEAD_MAX_MS

#: Rows of one term that the time is taken from; one comes a second. One that was late says less than the others.
ROWS = 8
#: Rows that come closer together were held up together, and count as one.
APART_MS = 500
#: Cluster time goes so much faster or slower to come to the leader's wall clock. A client that heard the time a minute
#: ago is then 0.6 s off, which is less than `judging.FORGOTTEN_SLACK_MS`.
STEER_RATIO = 0.01
#: A leader that wrote nothing for longer is steered as if it had been for so long.
STEER_MAX_MS = 10_000
#: A wall clock that is so close to a row of unknown age is believed until a row comes. Whoever minted by it until then
#: is not refused elsewhere.
AGREE_MS = AHEAD_MAX_MS
#: Time stands still rather than going back; after rows that say that it was further ahead than this, it goes back.
BACK_MS = 1_000

ClockMs = Callable[[], int]


def wall_ms() -> int:
    """The wall clock: milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def steady_ms() -> int:
    """Milliseconds that nobody sets, and that go on while the machine is suspended."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


class ClusterClock:
    """Milliseconds of cluster time since the epoch."""

    def __init__(self, wall: ClockMs = wall_ms, steady: ClockMs = steady_ms) -> None:
        self._wall = wall
        self._steady = steady
        self._guess_ms = wall() - steady()  #: how far cluster time is ahead of the steady clock, before there is a row
        self._rows: deque[_Heard] = deque(maxlen=ROWS)  #: of one term
        self._term = 0
        self._last_ms = 0
        self._steered_at_ms = steady()

    @property
    def known(self) -> bool:
        """Whether others may be told this time."""
        return bool(self._rows)

    def found(self, row_ms: int) -> None:
        """The leader's row was read; nobody knows how long ago it was written."""
        now_ms = self._steady()
        if self.known:
            if row_ms - now_ms > self._ahead():
                self._rows.append(_Heard(now_ms, row_ms - now_ms))
            return
        self._guess_ms = max(self._wall(), row_ms) - now_ms
        self._last_ms = 0
        if abs(self._wall() - row_ms) <= AGREE_MS:
            self._rows.append(_Heard(now_ms, self._guess_ms))

    def heard(self, row_ms: int, term: int) -> None:
        """The leader of this term has written its row just now."""
        if not self.known:
            self._last_ms = 0
        now_ms = self._steady()
        row = _Heard(now_ms, row_ms - now_ms)
        if term != self._term:
            self._term = term
            self._rows.clear()
        elif self._rows and now_ms - self._rows[-1].at_ms < APART_MS:
            before = self._rows.pop()
            row = _Heard(before.at_ms, max(before.ahead_ms, row.ahead_ms))
        self._rows.append(row)

    def now_ms(self) -> int:
        """Cluster time; a guess by the wall clock as long as it is not `known`.

        It goes back only from a guess to what is known, or after rows that say that it was ahead by over `BACK_MS`.
        """
        now_ms = self._steady() + self._ahead()
        self._last_ms = min(max(self._last_ms, now_ms), now_ms + BACK_MS)
        return self._last_ms

    def to_write_ms(self, term: int) -> int:
        """What the leader of this term writes. From its first row on it is the leader who tells the time."""
        now_ms = self._steady()
        ahead_ms = self._ahead()
        if self.known:
            most_ms = int(min(now_ms - self._steered_at_ms, STEER_MAX_MS) * STEER_RATIO)
            ahead_ms += max(-most_ms, min(most_ms, self._wall() - now_ms - ahead_ms))
        self._steered_at_ms = now_ms
        self._term = term
        self._rows.clear()
        self._rows.append(_Heard(now_ms, ahead_ms))
        return now_ms + ahead_ms

    def _ahead(self) -> int:
        """Of cluster time, to the steady clock."""
        return max((row.ahead_ms for row in self._rows), default=self._guess_ms)


class _Heard(NamedTuple):
    """What a row said."""

    at_ms: int  #: when it came, by the steady clock
    ahead_ms: int  #: how far it was ahead of the steady clock
