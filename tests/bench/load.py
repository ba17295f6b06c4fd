"""Runs `wrk` with one of the scripts beside this file, and meters the side under load meanwhile."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from bench.frame import CaseFailed
from bench.processes import ChildrenMeter, CpuMeter
from bench.results import Round

_SCRIPTS = Path(__file__).parent / "wrk"
_THREADS = 2
_MARK = "BENCH "


class LoadFailed(CaseFailed):
    """wrk is not there, or said nothing."""


class _Summary(msgspec.Struct):
    requests: int
    seconds: float
    refused: int
    broken: int
    p50_ms: float
    p99_ms: float


def find_wrk() -> str:
    """The program; `LoadFailed` says how to get it."""
    found = shutil.which("wrk")
    if found is None:
        raise LoadFailed("the bench needs wrk: apt-get install wrk")
    return found


def run(
    script: str,
    url: str,
    arguments: Sequence[str],
    *,
    connections: int,
    seconds: int,
    pids: Mapping[str, int],
) -> Round:
    """Put load on `url` for some seconds; the round's side is for the frame to name.

    Blocking, bounded by `seconds` + 20. `LoadFailed` when it cannot run.
    """
    command = [find_wrk(), "-t", str(_THREADS), "-c", str(connections), "-d", f"{seconds}s", "--timeout", "10s"]
    command += ["-s", str(_SCRIPTS / script), url, "--", *arguments]
    meter, children = CpuMeter(pids), ChildrenMeter()
    environment = {**os.environ, "BENCH_WRK_DONE": str(_SCRIPTS / "done.lua")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds + 20, check=False)
    load_s, used = children.read(), meter.read()
    lines = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if done.returncode != 0 or not lines:
        raise LoadFailed(f"wrk ended with {done.returncode}: {done.stderr[-500:] or done.stdout[-500:]}")
    found = msgspec.json.decode(lines[-1].removeprefix(_MARK), type=_Summary)
    count = max(1, found.requests)
    return Round(
        "",
        found.requests,
        found.seconds,
        {name: each * 1e6 / count for name, each in used.items()},
        found.refused + found.broken,
        found.p50_ms,
        found.p99_ms,
        load_s * 1e6 / count,
    )
