"""One drill: clients at work, a fault, its healing, and the judgement. What it measured is a row of the table."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from copypool import Client
from copypool.protocol.api import AckRule, OnCopyFailure
from drills.cluster import DrillCluster
from drills.faults import Fault, inflicted
from drills.table import Row
from kit.checker import check
from kit.cluster import until
from kit.history import History, Kind, Operation, Outcome, availability
from kit.workload import Load, Workload

WARM_OPERATIONS = 60  #: before the fault: connections are up, leases are held, extents are open
CALM_OPERATIONS = 40  #: after the healing: work goes on
CLIENTS = 8
IMPATIENT_S = 1.0  #: of what a workload gives up on purpose, and of no other operation
KIB = 1024
_HISTORIES = Path("build/drills")


@dataclass(frozen=True, slots=True)
class Drill:
    """A fault, how long it lasts, and what is promised meanwhile."""

    name: str
    fault: Fault
    hold_s: float = (
        8.0  #: from the injection's end to the healing; beyond session and grace it is a loss to the cluster
    )
    seed: int = 1
    ack: AckRule = "copy"
    on_copy_failure: OnCopyFailure = "fail"
    reads_fail_max: int | None = 0  #: None: this fault may fail reads
    writes_fail_max: int | None = 0  #: None: this fault may fail writes
    unknown_max: int | None = None  #: writes that nobody answers; None: this fault may take answers away
    green_within_s: float = 120.0
    lost: Sequence[str] = ()  #: nodes whose session must be over before the healing
    short: bool = False  #: belongs to the short set

    @property
    def slug(self) -> str:
        """Its name for files and paths."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower())


def set_of(drills: Iterable[Drill]) -> list[ParameterSet]:
    """Drills as parameters of a test."""
    return [pytest.param(drill, id=drill.slug, marks=[pytest.mark.short] if drill.short else []) for drill in drills]


@asynccontextmanager
async def at_work(
    client: Client, name: str, seed: int, clients: int = CLIENTS, history: History | None = None
) -> AsyncIterator[Workload]:
    """A workload while the block runs, recorded in `history` if one is given; all of it has ended when it is left."""
    load = Load(
        seed=seed,
        clients=clients,
        operations_max=1_000_000,
        duration_max_s=3600.0,
        prefix=f"drills/{name}",
        folders=4,
        folder_files=16,
        medium_max_bytes=256 * KIB,
        large_max_bytes=3 << 20,
        think_s=0.05,
    )
    workload = Workload(client, load, history)
    running = asyncio.create_task(workload.run())
    try:
        yield workload
        workload.stop()
        await running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def answered(history: History, since: int, count: int) -> bool:
    """Whether so many operations that began after the first `since` were answered well."""
    found = [one for one in history.operations()[since:] if one.outcome is Outcome.OK]
    return len(found) >= count


async def go_on(history: History, count: int, what: str, within_s: float = 60.0) -> None:
    """Wait until `count` more operations were answered."""
    since = len(history)

    async def enough() -> bool:
        return answered(history, since, count)

    await until(enough, what, within_s=within_s)


async def perform(cluster: DrillCluster, drill: Drill) -> Row:
    """Run a drill and judge it.

    Raises:
        AssertionError: the history is not explained, a byte is lost, an operation failed that must not, or not green in
            time.
    """
    async with cluster.client() as client:
        await cluster.acknowledge(client, drill.ack, drill.on_copy_failure)
        await cluster.green(client, f"{drill.name}: green before", drill.green_within_s)
        async with at_work(client, drill.slug, drill.seed) as workload:
            history = workload.history
            await go_on(history, WARM_OPERATIONS, "clients are at work")
            began_s = history.now_s()
            async with inflicted(cluster, drill.fault):
                await asyncio.sleep(drill.hold_s)
                for node in drill.lost:
                    await until(partial(is_away, client, node), f"the session of {node} is over", within_s=30)
            await go_on(history, CALM_OPERATIONS, "work goes on after the healing")
            await cluster.green(client, f"{drill.name}: green again", drill.green_within_s)
            green_s = history.now_s()
        await workload.read_everything()
        status = await cluster.green(client, f"{drill.name}: green at the end", drill.green_within_s)
    operations = history.operations()
    felt = [one for one in operations if not impatient(one)]
    row = Row.of(drill.name, availability(felt, began_s, green_s), green_s - began_s, bytes_lost(operations))
    try:
        verdict = check(operations, final=True)
        assert verdict.ok, str(verdict)
        assert not row.bytes_lost, f"{row.bytes_lost} bytes cannot be read at the end"
        assert not status.lost_files, f"{status.lost_files} files are lost"
        kept_to(drill, row, [one for one in felt if one.completed_s >= began_s and one.invoked_s <= green_s])
    except AssertionError:
        print(f"{drill}: the history is in {await asyncio.to_thread(keep, history, drill.slug)}")
        raise
    return row


def kept_to(drill: Drill, row: Row, felt: Iterable[Operation]) -> None:
    """Compare a row with what its drill promises; `felt` are the operations that it counts."""
    for what, count, most in (
        ("reads failed", row.reads_failed, drill.reads_fail_max),
        ("writes failed", row.writes_failed, drill.writes_fail_max),
        ("writes were not answered", row.writes_unknown, drill.unknown_max),
    ):
        if most is not None and count > most:
            bad = [str(one) for one in felt if one.outcome is not Outcome.OK and not one.found_nothing]
            raise AssertionError("\n".join([f"{count} {what}; {most} may", *bad[:20]]))


async def is_away(client: Client, node: str) -> bool:
    """Whether a node's session is over."""
    return any(info.name == node and info.state == "away" for info in await client.nodes())


def keep(history: History, name: str) -> Path:
    """Write a history down, to be looked at and judged again. Blocks."""
    _HISTORIES.mkdir(parents=True, exist_ok=True)
    path = _HISTORIES / f"{name}-{int(time.time())}.jsonl"
    history.dump(path)
    return path


def impatient(operation: Operation) -> bool:
    """Whether the client gave up before any store could be blamed: its outcome counts, its failure does not."""
    return operation.error == "timeout" and operation.completed_s - operation.invoked_s < IMPATIENT_S


def bytes_lost(operations: list[Operation]) -> int:
    """Bytes of files that the final reading could not read."""
    sizes = {one.path: one.size_bytes for one in operations if one.kind is Kind.PUT and one.outcome is Outcome.OK}
    lost = {one.path for one in operations if one.final and one.kind is Kind.GET and one.outcome is not Outcome.OK}
    return sum(sizes.get(path, 0) for path in lost)
