"""Runs cases one after the other: each within its deadline, none stopped by another's failure."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from bench.frame import Case, Found, Ground, Plan
from bench.results import Row

#: A deadline that was swallowed comes again after this; what a case started may take so long to end.
_AGAIN_S = 60.0


class Overdue(BaseException):
    """A case did not end in time. Not an `Exception`: who handles failures must not take it for one of its own."""


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise `Overdue` in the main thread when the block takes longer."""

    def raise_overdue(number: int, frame: FrameType | None) -> None:
        raise Overdue(f"not done within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, raise_overdue)
    signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(
    cases: Sequence[Case],
    plan: Plan,
    *,
    taken_at: str,
    commit: str,
    say: Callable[[str], None],
    keep: Callable[[Row], None],
) -> None:
    """Measure every case; `keep` gets each row as soon as it is there, also that of a case that failed."""
    standing: Ground | None = None
    name = ""
    try:
        for case in cases:
            if standing is None or case.ground != name or not case.ground:
                standing = _renewed(standing, plan, say)
            name = case.ground
            row = _measured(case, standing, taken_at, commit, say)
            if row.error:  # what it left behind may be broken: the next one begins anew
                standing = _renewed(standing, plan, say)
            keep(row)
    finally:
        if standing is not None:
            _end(standing, say)


def _renewed(before: Ground | None, plan: Plan, say: Callable[[str], None]) -> Ground:
    if before is not None:
        _end(before, say)
    return Ground(plan)


def _end(ground: Ground, say: Callable[[str], None]) -> None:
    try:
        with deadline(_AGAIN_S):
            ground.close()
    except (Exception, Overdue) as exc:  # noqa: BLE001 - the next case has a ground of its own
        say(f"what a case had started did not end well: {exc!r}")


def _measured(case: Case, ground: Ground, taken_at: str, commit: str, say: Callable[[str], None]) -> Row:
    found = Found(lambda line: say(f"{case.title}: {line}"))
    row = Row(case.key, case.title, taken_at, commit, case.unit, list(case.targets), note=case.note, tried=case.tried)
    try:
        with deadline(case.deadline_s):
            case.measure(ground, found)
    except (Exception, Overdue) as exc:  # noqa: BLE001 - a case that fails must not stop the others; the row says so
        row.error = f"{type(exc).__name__}: {exc}".splitlines()[0][:300]
        say(f"{case.title}: FAILED\n{traceback.format_exc()}")
    row.rounds, row.figures, row.missing = found.rounds, found.figures, found.missing
    return row
