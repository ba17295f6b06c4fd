"""nginx of this machine serving one folder: the ceiling of GET. Debian's, on PATH or unpacked by `.ci/setup-bench`."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from bench.frame import CaseFailed, PeerMissing

HOST = "127.0.0.1"
NAME = "nginx"
_READY_S = 10.0
_STOP_S = 10.0
#: As one would set it up for static files: a worker per core, sendfile, no log of requests.
_CONFIGURATION = """
{user}
worker_processes auto;
daemon off;
pid {root}/pid;
error_log stderr error;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  keepalive_requests 1000000;
  client_body_temp_path {root}/body;
  proxy_temp_path {root}/proxy;
  fastcgi_temp_path {root}/fastcgi;
  uwsgi_temp_path {root}/uwsgi;
  scgi_temp_path {root}/scgi;
  server {{ listen {host}:{port}; location / {{ root {root}/files; }} }}
}}
"""


class Nginx:
    """The running server; what stands in `files` is served."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, files: Path) -> None:
        self._process = process
        self.url = url
        self.files = files

    @property
    def pids(self) -> dict[str, int]:
        """The workers; the master has nothing to do with requests."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return {f"worker{number}": int(pid) for number, pid in enumerate(children, 1)}


def find_nginx() -> str:
    """The program: beside this interpreter, on PATH or where Debian has it; `PeerMissing` says how to get it."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/sbin"])
    found = shutil.which("nginx", path=places)
    if found is None:
        raise PeerMissing("apt-get install nginx-light")
    return found


def version(program: str) -> str:
    """What it says of itself."""
    done = subprocess.run([program, "-v"], capture_output=True, text=True, timeout=30, check=False)
    return done.stderr.strip().rpartition("/")[2]


@contextmanager
def nginx() -> Iterator[Nginx]:
    """A server that answers when the block begins; gone, process and files, when it ends."""
    program = find_nginx()
    root = Path(tempfile.mkdtemp(prefix="copypool-bench-nginx-"))
    (root / "files").mkdir()
    with closing(socket.socket()) as free:
        free.bind((HOST, 0))
        port = int(free.getsockname()[1])
    # Workers are another user by default, who may not enter a temporary folder.
    user = "user root;" if os.geteuid() == 0 else ""
    (root / "conf").write_text(_CONFIGURATION.format(user=user, root=root, host=HOST, port=port))
    with (root / "log").open("wb") as log:
        command = [program, "-p", str(root), "-e", "stderr", "-c", str(root / "conf")]
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=root)
    try:
        _wait(process, port, root / "log")
        yield Nginx(process, f"http://{HOST}:{port}", root / "files")
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_STOP_S)
        shutil.rmtree(root)


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection((HOST, port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise CaseFailed(f"nginx is not ready: {log.read_text('utf-8', 'replace')[-300:]}")
