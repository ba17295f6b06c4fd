"""When a copy pool's window is open. Pure; times are milliseconds since the epoch, cron expressions mean UTC.

A window opens at every time that its cron expression names and stays open for a fixed length; windows that overlap or
touch are one. UTC, because a cluster has no place: a window that moves with somebody's summer time would be skipped
or doubled once a year.
"""

from __future__ import annotations

import functools
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from cronsim import CronSim, CronSimError

from copypool.protocol.errors import Invalid
from copypool.protocol.policies import WINDOW_MAX_S

#: Windows that touch are followed this far; beyond it the window is as good as always open.
_JOINED_MAX = 1_000
_CRON_MAX = 100  #: characters
_SECOND = timedelta(seconds=1)


class WindowState(NamedTuple):
    """A window at one moment."""

    open: bool
    changes_ms: int  #: when it closes or opens next; 0: never


def check_window(cron: str, length_s: int) -> None:
    """`Invalid` unless the two make a window, or are both empty."""
    if not cron:
        if length_s:
            raise Invalid("a window needs a cron expression (when it opens) beside its length")
        return
    if len(cron) > _CRON_MAX or len(cron.split()) != 5:
        raise Invalid(
            "a window opens by a cron expression of five fields: minute hour day month weekday, e.g. '0 1 * * *'"
        )
    try:
        next(CronSim(cron, datetime(2000, 1, 1, tzinfo=UTC)))
    except CronSimError as exc:
        raise Invalid(f"the cron expression {cron!r} is not valid: {exc}") from exc
    except StopIteration as exc:
        raise Invalid(f"the cron expression {cron!r} names no time") from exc
    if not length_s:
        raise Invalid("a window needs how long it stays open beside when it opens: `window_s`, or --window-for 4h")
    if not 60 <= length_s <= WINDOW_MAX_S:
        raise Invalid(f"a window is open for 60 s to {WINDOW_MAX_S} s, not {length_s} s")


def window_state(cron: str, length_s: int, now_ms: int) -> WindowState:
    """Whether the window is open, and until when. Without a cron expression it is always open."""
    return _state(cron, length_s, now_ms // 1000) if cron else WindowState(True, 0)


@functools.lru_cache(maxsize=64)
def _state(cron: str, length_s: int, now_s: int) -> WindowState:
    now = datetime.fromtimestamp(now_s, UTC)
    length = timedelta(seconds=length_s)
    # Backwards from a second later, so that a window that opens right now counts.
    opened = next(CronSim(cron, now + _SECOND, reverse=True), None)
    if opened is None or now >= opened + length:
        opens = next(CronSim(cron, now), None)
        return WindowState(False, _ms(opens) if opens is not None else 0)
    closes = opened + length
    following = CronSim(cron, opened)
    for _ in range(_JOINED_MAX):
        opens = next(following, None)
        if opens is None or opens > closes:
            return WindowState(True, _ms(closes))
        closes = opens + length
    return WindowState(True, 0)


def _ms(moment: datetime) -> int:
    return int(moment.timestamp()) * 1000
