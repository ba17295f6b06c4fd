"""`python -m drills.soak --minutes 30 --seed 1`: random faults under load, and one judgement of the whole history.

It goes on beyond its minutes, up to twice as long, until there were as many faults and operations as were asked for.

Exit code 0: no violation, nothing lost, green at the end. The faults come from the seed; how clients and faults meet in
time does not, so a seed repeats the faults and not the run. The history of a run with a violation is kept.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from copypool import Client
from drills.cluster import DrillCluster
from drills.containers import Containers
from drills.schedule import Planned, schedule
from drills.story import KIB, bytes_lost, impatient, keep
from kit.checker import Verdict, check
from kit.history import WRITES, Availability, History, Operation, Outcome, availability
from kit.workload import Load, Workload

CLIENTS = 12
CALM_S = 0.5  #: between two faults
GREEN_TIMEOUT_S = 180.0
THINK_S = 0.08


@dataclass(slots=True)
class Done:
    """A fault that was injected and healed, in seconds of the history."""

    planned: Planned
    began_s: float
    healed_s: float


@dataclass(slots=True)
class Soak:
    """What a run was and found."""

    seed: int
    seconds_min: float
    faults_min: int = 0
    operations_min: int = 0
    faults: list[Done] = field(default_factory=list)
    seconds: float = 0.0
    operations: list[Operation] = field(default_factory=list)
    verdict: Verdict | None = None
    bytes_lost: int = 0
    lost_files: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def fault_count(self) -> int:
        """Faults that were injected and healed."""
        return sum(done.planned.faults for done in self.faults)

    def is_enough(self, seconds: float, operations: int) -> bool:
        """Whether the run may end."""
        if seconds < self.seconds_min:
            return False
        wanted = self.fault_count >= self.faults_min and operations >= self.operations_min
        return wanted or seconds >= 2 * self.seconds_min

    @property
    def ok(self) -> bool:
        """Whether every promise was kept."""
        judged = self.verdict is not None and self.verdict.ok
        return judged and not self.problems and not self.bytes_lost and not self.lost_files


def load_of(soak: Soak) -> Load:
    """Clients that meet on a few hundred files."""
    return Load(
        seed=soak.seed,
        clients=CLIENTS,
        operations_max=10_000_000,
        duration_max_s=2 * soak.seconds_min + 3600,
        prefix=f"soak/{soak.seed}",
        folders=24,
        folder_files=32,
        medium_max_bytes=128 * KIB,
        large_max_bytes=2 << 20,
        large_share=0.002,
        think_s=THINK_S,
    )


async def run(cluster: DrillCluster, soak: Soak) -> None:
    """Inject faults, heal, read everything, judge."""
    async with cluster.client() as client:
        await cluster.acknowledge(client, "copy", "fail")
        workload = Workload(client, load_of(soak))
        working = asyncio.create_task(workload.run())
        try:
            await _hurt(cluster, client, workload.history, soak)
            workload.stop()
            await working
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
        await cluster.green(client, "green after the last fault", GREEN_TIMEOUT_S)
        await workload.read_everything()
        status = await cluster.green(client, "green at the end", GREEN_TIMEOUT_S)
        soak.lost_files = status.lost_files
    soak.operations = workload.history.operations()
    soak.bytes_lost = bytes_lost(soak.operations)
    say("judging the history")
    soak.verdict = await asyncio.to_thread(check, soak.operations, final=True)
    if not soak.ok:
        say(f"the history is in {await asyncio.to_thread(keep, workload.history, f'soak-{soak.seed}')}")


async def _hurt(cluster: DrillCluster, client: Client, history: History, soak: Soak) -> None:
    began_s = time.monotonic()
    for planned in schedule(soak.seed):
        soak.seconds = time.monotonic() - began_s
        if soak.is_enough(soak.seconds, len(history)):
            break
        if planned.destroys:
            await cluster.green(client, f"green before fault {planned.number}", GREEN_TIMEOUT_S)
        say(f"fault {planned.number:4d}  {len(history):7d} operations  {planned.fault}  for {planned.hold_s:.1f} s")
        at_s = history.now_s()
        try:
            await planned.fault.inject(cluster)
            await asyncio.sleep(planned.hold_s)
        finally:
            await planned.fault.heal(cluster)
        soak.faults.append(Done(planned, at_s, history.now_s()))
        if planned.destroys:
            await cluster.green(client, f"green after fault {planned.number}", GREEN_TIMEOUT_S)
        await asyncio.sleep(CALM_S)


def say(text: str) -> None:
    """A line for whoever watches."""
    print(f"{time.strftime('%H:%M:%S', time.gmtime())} {text}", flush=True)


def report(soak: Soak) -> str:
    """The report in Markdown."""
    felt = [one for one in soak.operations if not impatient(one)]
    total = availability(felt)
    outcomes: dict[str, int] = defaultdict(int)
    for one in felt:
        if one.outcome is not Outcome.OK and not one.found_nothing:
            outcomes[f"{'write' if one.kind in WRITES else 'read'} `{one.error}`"] += 1
    by_kind: dict[str, list[Done]] = defaultdict(list)
    for done in soak.faults:
        by_kind[done.planned.kind].append(done)
    verdict = soak.verdict
    minutes = soak.seconds / 60
    bad = ", ".join(f"{name} {count}" for name, count in sorted(outcomes.items())) or "nothing"
    judged = verdict.count if verdict else "not judged"
    about = f"""\
`make soak MINUTES={round(minutes)} SEED={soak.seed}`: {minutes:.1f} minutes, {soak.fault_count} faults,
{len(soak.operations)} operations of {CLIENTS} clients, ack rule `copy`, on copy failure `fail`.
Violations: {judged}. Bytes lost: {soak.bytes_lost}. Files lost: {soak.lost_files}.
Reads: {total.reads}, failed {total.reads_failed}.
Writes: {total.writes}, failed {total.writes_failed}, unknown {total.writes_unknown}.
Not answered well: {bad}."""
    lines = [
        f"## Seed {soak.seed}: {'every promise was kept' if soak.ok else 'A PROMISE WAS BROKEN'}",
        "",
        about,
        "",
        "| fault | times | reads failed | writes failed | unknown | longest stall: read | write |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [_line(kind, of_kind, felt) for kind, of_kind in sorted(by_kind.items())]
    lines += [f"\n{problem}" for problem in soak.problems]
    if verdict is not None and not verdict.ok:
        lines += ["", "```", str(verdict), "```"]
    return "\n".join(lines) + "\n"


def _line(kind: str, faults: Sequence[Done], operations: Sequence[Operation]) -> str:
    windows = [availability(operations, done.began_s, done.healed_s) for done in faults]

    def total(field_name: str) -> int:
        return sum(getattr(window, field_name) for window in windows)

    return (
        f"| {kind} | {len(faults)} | {total('reads_failed')} | {total('writes_failed')} | {total('writes_unknown')}"
        f" | {_worst_ms(windows, 'read')} ms | {_worst_ms(windows, 'write')} ms |"
    )


def _worst_ms(windows: Sequence[Availability], side: str) -> int:
    return round(1000 * max(getattr(window, f"{side}_stall_max_s") for window in windows))


def main() -> int:
    """Run a soak; 0 when every promise was kept."""
    parser = argparse.ArgumentParser(prog="python -m drills.soak", description="Random faults under load.")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=int, default=0, help="at least so many")
    parser.add_argument("--operations", type=int, default=0, help="at least so many")
    parser.add_argument("--report", type=Path, help="add the report to this file")
    options = parser.parse_args()
    containers = Containers()
    soak = Soak(options.seed, options.minutes * 60, options.faults, options.operations)
    try:
        say(f"seed {options.seed}, {options.minutes} minutes")
        containers.up()
        asyncio.run(run(DrillCluster(containers), soak))
    except (AssertionError, RuntimeError) as error:
        soak.problems.append(f"Ended early: {error}")
    finally:
        containers.close()
    text = report(soak)
    print(text)
    if options.report is not None:
        with options.report.open("a") as file:
            file.write(f"\n{text}")
    return 0 if soak.ok else 1


if __name__ == "__main__":
    sys.exit(main())
