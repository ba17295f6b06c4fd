"""`python -m drills.soak --minutes 30 --seed 1`: random faults under load, and one judgement of the whole history.

It goes on beyond its minutes, up to twice as long, until there were as many faults and operations as were asked for.

Exit code 0: no violation, nothing lost, green at the end, as much done as was asked for, and no read failed but under
the faults of `MAY_FAIL_READS`. The faults come from the seed; how clients and faults meet in time does not, so a seed
repeats the faults and not the run. The history of a run that broke a promise, or had writes refused as conflicts, is
kept.
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
from drills.faults import inflicted
from drills.schedule import Planned, schedule
from drills.story import KIB, WARM_OPERATIONS, bytes_lost, go_on, impatient, keep
from kit.checker import Verdict, check
from kit.history import WRITES, Availability, History, Operation, Outcome, availability
from kit.workload import Load, Workload

CLIENTS = 12
#: Under every other fault no read fails: these take etcd's majority, which a read asks, or are two faults at a time,
#: after which nothing is lost but a read may have to be asked again.
MAY_FAIL_READS = frozenset({"etcd quorum lost", "etcd stalled", "two at once"})
#: A run of this length has at least so many, unless others are asked for.
LONG_MINUTES = 30
LONG_FAULTS_MIN = 200
LONG_OPERATIONS_MIN = 100_000
CALM_S = 0.5  #: between two faults
GREEN_TIMEOUT_S = 180.0
THINK_S = 0.08
READS_SHOWN = 20


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
    def too_little(self) -> str:
        """What it lacks of the faults and operations that were asked for; empty when it has them."""
        if self.fault_count >= self.faults_min and len(self.operations) >= self.operations_min:
            return ""
        asked = f"{self.faults_min} faults and {self.operations_min} operations were asked for"
        return f"Too little: {asked}, there were {self.fault_count} and {len(self.operations)}."

    @property
    def reads_unexcused(self) -> list[Operation]:
        """Reads that failed, and not while a fault was there that may fail reads."""
        spans = [(done.began_s, done.healed_s) for done in self.faults if done.planned.kind in MAY_FAIL_READS]
        return [
            one
            for one in self.operations
            if one.kind not in WRITES
            and one.outcome is Outcome.FAILED
            and not impatient(one)
            and not any(one.invoked_s <= until_s and one.completed_s >= since_s for since_s, until_s in spans)
        ]

    @property
    def conflicts(self) -> list[Operation]:
        """Writes that were refused because of another one: none is wrong by itself, each can be looked into."""
        return [one for one in self.operations if one.kind in WRITES and one.error == "conflict"]

    @property
    def ok(self) -> bool:
        """Whether every promise was kept, and as much was done as was asked for."""
        judged = self.verdict is not None and self.verdict.ok
        lost = self.bytes_lost or self.lost_files
        return judged and not self.problems and not lost and not self.reads_unexcused and not self.too_little


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
            await go_on(workload.history, WARM_OPERATIONS, "clients are at work")
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
    if not soak.ok or soak.conflicts:
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
        async with inflicted(cluster, planned.fault):
            await asyncio.sleep(planned.hold_s)
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
        f"## Seed {soak.seed}: {_headline(soak)}",
        "",
        about,
        "",
        "| fault | times | reads failed | writes failed | unknown | longest stall: read | write |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [_line(kind, of_kind, felt) for kind, of_kind in sorted(by_kind.items())]
    lines += [f"\n{problem}" for problem in (*soak.problems, soak.too_little) if problem]
    if soak.reads_unexcused:
        lines += ["", "```", *(str(one) for one in soak.reads_unexcused[:READS_SHOWN]), "```"]
    if verdict is not None and not verdict.ok:
        lines += ["", "```", str(verdict), "```"]
    return "\n".join(lines) + "\n"


def _headline(soak: Soak) -> str:
    """What was promised, and whether it was kept."""
    if soak.ok:
        return "nothing lost, every answer explained, no read failed under any single fault that left etcd its majority"
    broken = [
        *(["not every answer explained"] if soak.verdict is not None and not soak.verdict.ok else []),
        *(["not judged"] if soak.verdict is None else []),
        *([f"{soak.bytes_lost} BYTES AND {soak.lost_files} FILES LOST"] if soak.bytes_lost or soak.lost_files else []),
        *([f"{len(soak.reads_unexcused)} reads failed that must not"] if soak.reads_unexcused else []),
        *(["ended early"] if soak.problems else []),
        *(["too little was done"] if soak.too_little else []),
    ]
    return f"NOT PASSED: {', '.join(broken)}"


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


def minima(minutes: float, faults: int | None, operations: int | None) -> tuple[int, int]:
    """How many faults and operations a run must have: what was asked for, else what its length calls for."""
    is_long = minutes >= LONG_MINUTES
    return (
        faults if faults is not None else LONG_FAULTS_MIN * is_long,
        operations if operations is not None else LONG_OPERATIONS_MIN * is_long,
    )


def main() -> int:
    """Run a soak; 0 when every promise was kept."""
    parser = argparse.ArgumentParser(prog="python -m drills.soak", description="Random faults under load.")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    least = "at least so many; of a run of {} minutes or more {}, else 0".format
    parser.add_argument("--faults", type=int, help=least(LONG_MINUTES, LONG_FAULTS_MIN))
    parser.add_argument("--operations", type=int, help=least(LONG_MINUTES, LONG_OPERATIONS_MIN))
    parser.add_argument("--report", type=Path, help="add the report to this file")
    options = parser.parse_args()
    containers = Containers(clocks=True)
    faults_min, operations_min = minima(options.minutes, options.faults, options.operations)
    soak = Soak(options.seed, options.minutes * 60, faults_min, operations_min)
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
