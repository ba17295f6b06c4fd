"""What the bench found: rounds and figures, their verdicts, and how rows of several runs make one report. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Literal

import msgspec

OWN = "copypool"  #: the side that is compared with the others

Sense = Literal[">=", "<="]
Verdict = Literal["met", "short", "failed", "not measured", ""]


class Round(msgspec.Struct, frozen=True, omit_defaults=True):
    """One side's turn at a case whose sides take turns."""

    side: str
    operations: int
    seconds: float
    cpu_us: dict[str, float]  #: per operation, by process of the side
    failed: int = 0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    load_us: float = 0.0  #: CPU of the load generator per operation; 0: none, or it is in `cpu_us`
    yardstick_us: float = 0.0  #: mean of the one before and the one after the round

    @property
    def rate(self) -> float:
        return self.operations / self.seconds if self.seconds else 0.0

    @property
    def cpu_us_all(self) -> float:
        return sum(self.cpu_us.values())

    def line(self, unit: str) -> str:
        """This round in one line."""
        used = ", ".join(f"{name} {each:.0f}" for name, each in self.cpu_us.items())
        delays = f", p50 {self.p50_ms:.1f} p99 {self.p99_ms:.1f} ms" if self.p50_ms else ""
        failed = f", {self.failed} FAILED" if self.failed else ""
        load = f", load {self.load_us:.0f}" if self.load_us else ""
        cpu = f"CPU {self.cpu_us_all:.0f} us ({used}){load} at a yardstick of {self.yardstick_us:.0f}"
        return f"{self.side} {self.rate:,.0f} {unit}/s{delays}, {cpu}{failed}"


class Figure(msgspec.Struct, frozen=True, omit_defaults=True):
    """One measured quantity: of a case that holds values against bounds."""

    name: str  #: what a `Target` names; "p99 of the gap"
    value: float  #: what is judged: whatever of `values` the case says it is (median, worst, ...)
    unit: str = ""  #: "ms", "MB", "x"; empty: a count
    values: list[float] = []  #: every measurement that `value` is made of, in order; empty: `value` alone

    def line(self) -> str:
        spread = f" ({_number(min(self.values))}-{_number(max(self.values))})" if len(self.values) > 1 else ""
        return f"{self.name}: {_number(self.value)} {self.unit}".rstrip() + spread


class Target(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a row is held against. Exactly one of `than` and `figure` is set, or neither where a case has one figure."""

    sense: Sense
    bound: float
    than: str = ""  #: a side: the bound is one of the ratio of Copypool's rate to that side's
    figure: str = ""  #: name of a figure: the bound is one of its value

    def holds(self, value: float) -> bool:
        return value >= self.bound if self.sense == ">=" else value <= self.bound


def at_least(bound: float, *, than: str = "", figure: str = "") -> Target:
    """Ratio to the side `than`, or the value of a figure, of `bound` or more."""
    return Target(">=", bound, than, figure)


def at_most(bound: float, *, figure: str = "") -> Target:
    """The value of a figure of `bound` or less."""
    return Target("<=", bound, "", figure)


class Row(msgspec.Struct, omit_defaults=True):
    """All that was found for one case, when, and on which commit."""

    key: str
    case: str
    taken_at: str  #: UTC; also names the `Run` that it was taken in
    commit: str
    unit: str = "op"  #: of one operation: "op" or "MiB"
    targets: list[Target] = []
    rounds: list[Round] = []  #: in the order they ran
    figures: list[Figure] = []
    note: str = ""  #: what is durable or checked, and how it was measured
    tried: str = ""  #: what was done about it, told where the row falls short
    missing: list[str] = []  #: sides that were not there, and why
    error: str = ""  #: why it did not run to its end; empty: it did

    def of(self, side: str) -> list[Round]:
        return [each for each in self.rounds if each.side == side]

    def peers(self) -> list[str]:
        """The other sides, those that a target names first."""
        named = [each.than for each in self.targets if each.than]
        return list(dict.fromkeys(named + [each.side for each in self.rounds if each.side != OWN]))

    def ratios(self, peer: str) -> list[float]:
        """Copypool's rate by the peer's, of each pair of neighbouring rounds."""
        return [own.rate / other.rate for own, other in zip(self.of(OWN), self.of(peer), strict=False) if other.rate]

    def figure(self, name: str) -> Figure | None:
        """The figure of that name; the only one there is, when the name is empty."""
        if not name:
            return self.figures[0] if len(self.figures) == 1 else None
        return next((each for each in self.figures if each.name == name), None)

    def failures(self) -> int:
        """Requests of Copypool's own rounds that failed."""
        return sum(each.failed for each in self.of(OWN))

    def verdict(self, target: Target) -> Verdict:
        """What comes of one target. A case that broke off, or whose requests failed, has met nothing."""
        if self.error or self.failures():
            return "failed"
        if target.than:
            ratios = self.ratios(target.than)
            return "not measured" if not ratios else "met" if target.holds(median(ratios)) else "short"
        found = self.figure(target.figure)
        return "not measured" if found is None else "met" if target.holds(found.value) else "short"

    def verdicts(self) -> list[Verdict]:
        return [self.verdict(each) for each in self.targets]


class Run(msgspec.Struct, omit_defaults=True):
    """The circumstances of the rows that were taken together."""

    taken_at: str
    commit: str
    machine: dict[str, str]
    versions: dict[str, str]
    settings: dict[str, str]


class Report(msgspec.Struct):
    """What is stored: rows in the order of the suite, and the runs that they come from."""

    runs: list[Run] = []
    rows: list[Row] = []


def merge(stored: Report, run: Run, rows: Sequence[Row], order: Sequence[str]) -> Report:
    """The stored report with new rows in place of older ones of the same case.

    Rows of cases that are no longer in `order` go, and so do runs without a row.
    """
    by_key = {row.key: row for row in [*stored.rows, *rows]}
    kept = [by_key[key] for key in order if key in by_key]
    moments = {row.taken_at for row in kept}
    runs = [each for each in stored.runs if each.taken_at != run.taken_at]
    return Report([each for each in [*runs, run] if each.taken_at in moments], kept)


def middle(rounds: Sequence[Round]) -> Round:
    """The round of median rate, the lower one of two."""
    return sorted(rounds, key=lambda each: each.rate)[(len(rounds) - 1) // 2]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
