"""`python -m bench`: run the cases, print the table, keep table and JSON in `tests/bench/results/`."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import msgspec

from bench import seaweed, suite
from bench.copypool_side import copypool_cluster
from bench.load import LoadFailed, find_wrk
from bench.results import Report, table
from copypool.dev.etcd_binary import find_etcd

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("copypool", "aiohttp", "uvloop", "msgspec", "blake3", "crc32c", "grpcio")


def main() -> int:
    """0 when every case ran and no request failed; a target that is not met is said, and is no failure."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute: shorter rounds, one of each side")
    parser.add_argument("--only", default="", help="keys of cases, with commas: " + ", ".join(_keys()))
    parser.add_argument("--no-peer", action="store_true", help="measure Copypool alone")
    parser.add_argument("--seconds", type=int, help="of load per round")
    parser.add_argument("--pause", action="store_true", help="wait before the load, so that a profiler can attach")
    parser.add_argument("--no-save", action="store_true", help="print only")
    options = parser.parse_args()
    plan = suite.QUICK if options.quick else suite.Plan()
    if options.seconds:
        plan = suite.Plan(**{**asdict(plan), "seconds": options.seconds})
    wanted = set(filter(None, options.only.split(","))) or set(_keys())
    if unknown := wanted - set(_keys()):
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    chosen = [case for case in suite.SUITE if case.key in wanted]
    try:
        with_peer = not options.no_peer and any(case.peer is not None for case in chosen)
        report = _run(chosen, plan, with_peer=with_peer, pause=options.pause)
    except LoadFailed as exc:
        print(f"bench: {exc}", file=sys.stderr)
        return 1
    if not options.no_save:
        _save(report)
    return int(any(each.failed for case in report.cases for each in case.rounds))


def _keys() -> list[str]:
    return [case.key for case in suite.SUITE]


def _run(chosen: list[suite.Case], plan: suite.Plan, *, with_peer: bool, pause: bool) -> Report:
    find_wrk()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="copypool-bench-files-")))
        peer = stack.enter_context(seaweed.seaweed()) if with_peer else None
        side = stack.enter_context(copypool_cluster())
        side.end_copies()
        ground = suite.Ground(side, peer, plan, folder)
        if pause:
            input(f"{side.pids} — Enter goes on")
        report = Report(
            taken_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            machine=_machine(),
            versions=_versions(with_peer=with_peer),
            settings={key: str(value) for key, value in asdict(plan).items()} | _SETTINGS,
            cases=[suite.run(case, ground, _say) for case in chosen],
        )
        print(f"\n{table(report)}", flush=True)  # before the sides are taken down: that may take a while on a busy disk
        return report


_SETTINGS = {
    "cluster": "1 etcd (fsync), 1 coordinator, 1 primary node, 1 copy node (down but for the case `copies`)",
    "copypool": "authentication on, checksums on, fsync on, ack rule `primary`",
    "peer": "weed server -filer, one copy, PUTs with fsync=true",
    "bodies": "random",
}


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def _machine() -> dict[str, str]:
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpus": str(os.cpu_count()),
        "cpu": model[0].partition(":")[2].strip() if model else platform.machine(),
        "kernel": platform.release(),
        "load_before": f"{os.getloadavg()[0]:.1f}",
    }


def _versions(*, with_peer: bool) -> dict[str, str]:
    found = {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()}
    etcd = subprocess.run([find_etcd().path, "--version"], capture_output=True, text=True, timeout=30, check=False)
    found["etcd"] = etcd.stdout.splitlines()[0] if etcd.stdout else "?"
    return found | ({"seaweedfs": seaweed.version(seaweed.find_weed())} if with_peer else {})


def _save(report: Report) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "latest.json").write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    head = f"Taken {report.taken_at} on {report.machine['cpus']} x {report.machine['cpu']}.\n\n"
    (RESULTS / "latest.md").write_text(head + table(report) + "\n")


if __name__ == "__main__":
    sys.exit(main())
