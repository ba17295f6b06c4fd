"""The machine below everything: what its disk takes, and what etcd makes of it."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from bench.frame import CaseFailed, Found, Gauge, Ground
from bench.processes import ChildrenMeter
from bench.results import Round

DD = "dd conv=fsync"
MIB = 1024 * 1024
_DEADLINE_S = 150.0


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
            body, count, begun = os.urandom(4096), 0, time.monotonic()
            while (seconds := time.monotonic() - begun) < ground.plan.seconds / 2:
                os.pwrite(fd, body, 4096 * count)
                os.fdatasync(fd)
                count += 1
        finally:
            os.close(fd)
            place.unlink()
        rates.append(count / seconds)
    found.figure("appends of 4 KiB, one `fdatasync` each", rates, "/s")


CASES = (Gauge("disk", "the disk below it all", _syncs, note="no target: what the rest stands on"),)
