"""The machine below everything: what its disk takes, and what etcd makes of it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from bench.frame import CaseFailed, Found, Gauge, Ground, awaited
from bench.processes import ChildrenMeter
from bench.results import Round
from copypool_coordinator.etcd import Etcd, EtcdSettings, put
from kit.etcd_process import EtcdCluster

DD = "dd conv=fsync"
MIB = 1024 * 1024
_DEADLINE_S = 150.0
_IN_FLIGHT = 64
_ROWS = 60
_ROW_BYTES = 200


def dd_sources(sources: Sequence[Path], folder: Path) -> Round:
    """Copy each file beside itself, all at once, each fsync'd at its end; then they go. Operations are MiB."""
    copies = [folder / f"dd{number}" for number in range(len(sources))]
    size_mib = sum(each.stat().st_size for each in sources) // MIB
    children, begun = ChildrenMeter(), time.monotonic()
    running = [
        subprocess.Popen(["dd", f"if={source}", f"of={copy}", "bs=4M", "conv=fsync", "status=none"])
        for source, copy in zip(sources, copies, strict=True)
    ]
    try:
        codes = [process.wait(_DEADLINE_S) for process in running]
        seconds = time.monotonic() - begun
    finally:
        for process in running:
            process.kill()
            process.wait()
        for copy in copies:
            copy.unlink(missing_ok=True)
    if any(codes):
        raise CaseFailed(f"dd ended with {codes}")
    return Round(DD, size_mib, seconds, {"dd": children.read() * 1e6 / size_mib})


def _syncs(ground: Ground, found: Found) -> None:
    """Appends of 4 KiB, each made durable before the next: what one client without company can get."""
    rates = []
    for _ in range(ground.plan.rounds):
        place = ground.folder / "appends"
        fd = os.open(place, os.O_WRONLY | os.O_CREAT)
        try:
            body, done, begun = os.urandom(4096), 0, time.monotonic()
            while (seconds := time.monotonic() - begun) < ground.plan.seconds / 2:
                os.pwrite(fd, body, 4096 * done)
                os.fdatasync(fd)
                done += 1
        finally:
            os.close(fd)
            place.unlink()
        rates.append(done / seconds)
    found.figure("appends of 4 KiB, one `fdatasync` each", rates, "/s")


def _puts(ground: Ground, found: Found) -> None:
    awaited(_etcd_rates(ground, found))


async def _etcd_rates(ground: Ground, found: Found) -> None:
    """What one member takes from one client: single puts as many clients in flight, and rows in large transactions."""
    async with EtcdCluster() as cluster:
        etcd = await Etcd.connect(EtcdSettings(cluster.endpoints))
        try:
            for rows in (1, _ROWS):
                rates = [await _rate(etcd, rows, ground.plan.seconds / 2) for _ in range(ground.plan.rounds)]
                found.figure(f"rows put, {rows} in a transaction, {_IN_FLIGHT} in flight", rates, "/s")
        finally:
            await etcd.close()


async def _rate(etcd: Etcd, rows: int, seconds: float) -> float:
    begun = time.monotonic()
    numbers = count()

    async def put_on() -> int:
        done = 0
        while time.monotonic() - begun < seconds:
            puts = [put(b"/bench/%012d" % next(numbers), os.urandom(_ROW_BYTES)) for _ in range(rows)]
            await etcd.txn([], puts)
            done += rows
        return done

    stored = sum(await asyncio.gather(*(put_on() for _ in range(_IN_FLIGHT))))
    return stored / (time.monotonic() - begun)


CASES = (
    Gauge("disk", "the disk below it all", _syncs, note="no target: what the rest stands on"),
    Gauge(
        "etcd",
        "etcd below the catalog",
        _puts,
        note=f"one member with fsync, keys of 19 and values of {_ROW_BYTES} bytes, by the coordinator's own client; no "
        "target: a commit of small files is one transaction",
    ),
)
