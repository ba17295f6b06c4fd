"""`python -m bench`: run the cases, print the table, keep table and JSON in `tests/bench/results/` and README."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

from bench import seaweed, storing, suite
from bench.frame import QUICK, PeerMissing, Plan, keys_of
from bench.load import LoadFailed, find_wrk
from bench.results import Report, Row, Run, merge
from bench.running import run
from bench.table import page
from copypool.dev.etcd_binary import find_etcd

_PACKAGES = ("copypool", "aiohttp", "uvloop", "msgspec", "blake3", "crc32c", "grpcio")
_SETTINGS = {
    "cluster": "1 etcd (fsync), 1 coordinator, 1 primary node, 1 copy node (down but where a case says so)",
    "copypool": "authentication on, checksums on, fsync on, ack rule `primary` but where a case says so",
    "bodies": "random",
}


def main() -> int:
    """0 when every case ran to its end and no request failed; a target that is not met is said, and is no failure."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    keys = keys_of(suite.SUITE)
    parser.add_argument("--quick", action="store_true", help="does it all work: one short round each, kept apart")
    parser.add_argument(
        "--only", default="", help="keys of cases, with commas; other rows stay as they are: " + " ".join(keys)
    )
    parser.add_argument("--table", action="store_true", help="measure nothing: write the tables from what is stored")
    parser.add_argument("--no-peer", action="store_true", help="measure Copypool alone; nothing is stored")
    parser.add_argument("--rounds", type=int, help="of each side")
    parser.add_argument("--seconds", type=int, help="of load per round")
    parser.add_argument("--no-save", action="store_true", help="print only")
    options = parser.parse_args()
    if options.table:
        if storing.renew_tables():
            return 0
        print("bench: nothing is stored that this version can read: the tables stay as they are", file=sys.stderr)
        return 1
    wanted = set(filter(None, options.only.split(","))) or set(keys)
    if unknown := wanted - set(keys):
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    try:
        find_wrk()
    except LoadFailed as exc:
        print(f"bench: {exc}", file=sys.stderr)
        return 1
    # A bench that is ended ends what it started.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    rows = _run(wanted, _plan(options), save=not options.no_save and not options.no_peer)
    return int(any(row.error or row.failures() for row in rows))


def _plan(options: argparse.Namespace) -> Plan:
    plan = QUICK if options.quick else Plan()
    given = {name: getattr(options, name) for name in ("rounds", "seconds") if getattr(options, name)}
    return replace(plan, peers=not options.no_peer, **given)


def _run(wanted: set[str], plan: Plan, *, save: bool) -> list[Row]:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    settings = {key: str(value) for key, value in asdict(plan).items()} | _SETTINGS
    circumstances = Run(now, _commit(), _machine(), _versions(), settings)
    rows: list[Row] = []

    def keep(row: Row) -> None:
        rows.append(row)
        if save:  # at once: a run that is ended has kept what it did
            stored = storing.load(plan.quick)
            storing.save(merge(stored, circumstances, [row], keys_of(suite.SUITE)), plan.quick)

    chosen = [case for case in suite.SUITE if case.key in wanted]
    begun = time.monotonic()
    run(chosen, plan, taken_at=now, commit=circumstances.commit, say=_say, keep=keep)
    print(f"\n{page(Report([circumstances], rows))}\n{time.monotonic() - begun:.0f} s", flush=True)
    return rows


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def _commit() -> str:
    """The commit that is measured; with a plus sign when more than results differs from it."""
    try:
        head = _git("rev-parse", "--short", "HEAD").strip()
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", "client", "node", "coordinator", "tests")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head + ("+" if any("tests/bench/results/" not in line for line in changed.splitlines()) else "")


def _git(*arguments: str) -> str:
    place = Path(__file__).parents[2]
    return subprocess.run(["git", *arguments], cwd=place, capture_output=True, text=True, timeout=30, check=True).stdout


def _machine() -> dict[str, str]:
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    memory = Path("/proc/meminfo").read_text().split(maxsplit=2)[1]
    return {
        "cpus": str(os.cpu_count()),
        "cpu": model[0].partition(":")[2].strip() if model else platform.machine(),
        "memory_gib": f"{int(memory) / 1024**2:.0f}",
        "kernel": platform.release(),
        "load_before": f"{os.getloadavg()[0]:.1f}",
    }


def _versions() -> dict[str, str]:
    found = {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()}
    etcd = subprocess.run([find_etcd().path, "--version"], capture_output=True, text=True, timeout=30, check=False)
    found["etcd"] = etcd.stdout.splitlines()[0] if etcd.stdout else "?"
    try:
        found["seaweedfs"] = seaweed.version(seaweed.find_weed())
    except PeerMissing:
        found["seaweedfs"] = "not there"
    return found


if __name__ == "__main__":
    sys.exit(main())
