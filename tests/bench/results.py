"""What a bench run found: structs, medians, the table and the JSON. Pure, but for writing the file."""

from __future__ import annotations

from statistics import median

import msgspec


class Round(msgspec.Struct, frozen=True):
    """One side's turn at one case."""

    side: str
    operations: int
    seconds: float
    cpu_us: dict[str, float]  #: per operation, by process
    failed: int = 0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
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
        cpu = f"CPU {self.cpu_us_all:.0f} us ({used}) at a yardstick of {self.yardstick_us:.0f}"
        return f"{self.side} {self.rate:,.0f} {unit}/s{delays}, {cpu}{failed}"


class CaseResult(msgspec.Struct):
    """All rounds of one case, in the order they ran."""

    case: str
    unit: str  #: of one operation: "op" or "MiB"
    rounds: list[Round]
    target: float = 0.0  #: of the ratio of rates; 0: none
    note: str = ""

    def of(self, side: str) -> list[Round]:
        return [each for each in self.rounds if each.side == side]

    def peer(self) -> str:
        """The side that Copypool is compared with; empty when there is none."""
        return next((each.side for each in self.rounds if each.side != "copypool"), "")

    def ratio(self) -> float:
        """Median over neighbouring rounds of Copypool's rate by the peer's; 0 without a peer."""
        pairs = list(zip(self.of("copypool"), self.of(self.peer()), strict=False)) if self.peer() else []
        return median(own.rate / peer.rate for own, peer in pairs if peer.rate) if pairs else 0.0

    def cpu_ratio(self) -> float:
        """The peer's CPU time per operation by Copypool's: above 1, Copypool needs less."""
        pairs = list(zip(self.of("copypool"), self.of(self.peer()), strict=False)) if self.peer() else []
        return median(peer.cpu_us_all / own.cpu_us_all for own, peer in pairs if own.cpu_us_all) if pairs else 0.0

    def verdict(self) -> str:
        if any(each.failed for each in self.rounds):
            return "FAILED REQUESTS"
        if not self.target or not self.peer():
            return ""
        return "met" if self.ratio() >= self.target else "short"


class Report(msgspec.Struct):
    """One run of the bench."""

    taken_at: str
    machine: dict[str, str]
    versions: dict[str, str]
    settings: dict[str, str]
    cases: list[CaseResult]


def _median_round(rounds: list[Round]) -> Round:
    return sorted(rounds, key=lambda each: each.rate)[(len(rounds) - 1) // 2]


def table(report: Report) -> str:
    """The run as a Markdown table."""
    lines = [
        "| case | Copypool | CPU us each (by process) | yardstick us | peer | ratio | CPU ratio | target | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case in report.cases:
        own = case.of("copypool")
        if not own:
            continue
        best = _median_round(own)
        by_process = ", ".join(f"{name} {used:.0f}" for name, used in best.cpu_us.items() if used >= 0.5)
        peer, ratio, cpu_ratio = "", "", ""
        if case.peer():
            other = _median_round(case.of(case.peer()))
            peer = f"{case.peer()}: {other.rate:,.0f} {case.unit}/s, {other.cpu_us_all:.0f} us"
            ratio, cpu_ratio = f"{case.ratio():.2f}", f"{case.cpu_ratio():.2f}"
        target = f">= {case.target:g}" if case.target else ""
        lines.append(
            f"| {case.case} | {best.rate:,.0f} {case.unit}/s | {best.cpu_us_all:.0f} ({by_process}) "
            f"| {best.yardstick_us:.0f} | {peer} | {ratio} | {cpu_ratio} | {target} | {case.verdict()} |"
        )
    lines += ["", *(f"- {case.case}: {case.note}" for case in report.cases if case.note)]
    return "\n".join(lines)
