"""Real etcd members on loopback ports, for tests: start, kill, stop (SIGSTOP), continue, restart, by process id.

    async with EtcdCluster(members=3) as cluster:
        cluster.endpoints                  # ("127.0.0.1:40001", ...)
        await cluster.members[0].kill()
        await cluster.members[0].restart()

The members use `etcd` from PATH, fsync as in production, keep their data and a log in a temporary directory, and
are gone when the context ends. Without an etcd on PATH the start raises; a test is never skipped.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

READY_TIMEOUT_S = 60.0
POLL_S = 0.03
#: Below those that Linux hands out to outgoing connections: one of them would take the port of a process that is about
#: to start, or is killed and started again.
_PORTS = range(20_000, 32_000)


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nothing listens on at this moment, all different."""
    found: list[int] = []
    with ExitStack() as sockets:
        for port in random.sample(_PORTS, len(_PORTS)):
            listener = sockets.enter_context(socket.socket())
            with suppress(OSError):
                listener.bind(("127.0.0.1", port))
                found.append(port)
            if len(found) == count:
                return found
    raise RuntimeError(f"no {count} free ports on 127.0.0.1")


class EtcdMember:
    """One etcd process. Its methods block a thread, not the event loop."""

    def __init__(self, name: str, directory: Path, ports: Sequence[int], arguments: Sequence[str]) -> None:
        client_port, peer_port, metrics_port = ports
        self.name = name
        self.endpoint = f"127.0.0.1:{client_port}"
        self.client_port = client_port
        self.peer_url = f"http://127.0.0.1:{peer_port}"
        self.log_path = directory / f"{name}.log"
        self._health_url = f"http://127.0.0.1:{metrics_port}"
        self._data = directory / name
        self._arguments = list(arguments)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id of the running member."""
        assert self._process is not None, f"{self.name} does not run"
        return self._process.pid

    def start_blocking(self, initial_cluster: str, scheme: str, state: str = "new") -> None:
        """Start the process; does not wait until it serves. `state` is `--initial-cluster-state`."""
        program = shutil.which("etcd")
        if program is None:
            raise RuntimeError("these tests need etcd on PATH (Debian: etcd-server)")
        command = [program, "--name", self.name, "--data-dir", str(self._data)]
        command += ["--listen-client-urls", f"{scheme}://{self.endpoint}"]
        command += ["--advertise-client-urls", f"{scheme}://{self.endpoint}"]
        command += ["--listen-peer-urls", self.peer_url, "--initial-advertise-peer-urls", self.peer_url]
        command += ["--initial-cluster", initial_cluster, "--initial-cluster-state", state]
        command += ["--listen-metrics-urls", self._health_url]
        command += ["--logger", "zap", "--log-level", "warn", *self._arguments]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        atexit.register(self.end_blocking)

    def await_ready_blocking(self) -> None:
        """Wait until the member serves linearizable reads."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            assert self._process is not None
            if self._process.poll() is not None:
                raise RuntimeError(f"etcd {self.name} ended at its start:\n{self.log_path.read_text()[-2000:]}")
            try:
                with urllib.request.urlopen(f"{self._health_url}/health", timeout=1.0) as reply:
                    if b'"true"' in reply.read():
                        return
            except OSError:
                pass
            time.sleep(POLL_S)
        log = self.log_path.read_text()[-2000:]
        raise RuntimeError(f"etcd {self.name} did not serve within {READY_TIMEOUT_S} s:\n{log}")

    def end_blocking(self) -> None:
        """Kill the process, stopped or not, and reap it; safe to repeat."""
        atexit.unregister(self.end_blocking)
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def wipe_blocking(self) -> None:
        """Delete the data of a member that does not run, as a disk that is gone."""
        assert self._process is None, f"{self.name} still runs"
        shutil.rmtree(self._data)

    def stop(self) -> None:
        """SIGSTOP: connections stay up, nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def cont(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)


class Member:
    """A member as a test sees it: the same things, awaitable."""

    def __init__(self, member: EtcdMember, initial_cluster: str, scheme: str) -> None:
        self._member = member
        self._initial_cluster = initial_cluster
        self._scheme = scheme
        self.name = member.name
        self.endpoint = member.endpoint
        self.client_port = member.client_port
        self.peer_url = member.peer_url
        self.log_path = member.log_path

    @property
    def pid(self) -> int:
        """The process id of the running member."""
        return self._member.pid

    async def start(self) -> None:
        """Start it and wait until it serves."""
        await self.launch()
        await asyncio.to_thread(self._member.await_ready_blocking)

    async def launch(self, state: str = "new") -> None:
        """Start it without waiting: members of a cluster need each other to become ready."""
        await asyncio.to_thread(self._member.start_blocking, self._initial_cluster, self._scheme, state)

    async def ready(self) -> None:
        """Wait until it serves."""
        await asyncio.to_thread(self._member.await_ready_blocking)

    async def kill(self) -> None:
        """SIGKILL; the data stays."""
        await asyncio.to_thread(self._member.end_blocking)

    async def wipe(self) -> None:
        """Delete its data, after `kill`."""
        await asyncio.to_thread(self._member.wipe_blocking)

    async def restart(self) -> None:
        """SIGKILL if it runs, start on the same data and ports, wait until it serves."""
        await self.kill()
        await self.start()

    def stop(self) -> None:
        """SIGSTOP: connections stay up, nothing answers."""
        self._member.stop()

    def cont(self) -> None:
        """SIGCONT."""
        self._member.cont()


class EtcdCluster:
    """A cluster of `members` etcd processes, gone at the end of the context.

    `server_tls` is (CA, certificate, key): clients must then speak TLS, and show a certificate of that CA when
    `client_certificates` is set. `arguments` go to every member.
    """

    def __init__(
        self,
        members: int = 1,
        *,
        arguments: Sequence[str] = (),
        server_tls: tuple[Path, Path, Path] | None = None,
        client_certificates: bool = False,
    ) -> None:
        self._count = members
        self._arguments = list(arguments)
        if server_tls is not None:
            authority, certificate, key = (str(path) for path in server_tls)
            self._arguments += ["--cert-file", certificate, "--key-file", key]
            if client_certificates:
                self._arguments += ["--trusted-ca-file", authority, "--client-cert-auth"]
        if members > 1:
            self._arguments += ["--heartbeat-interval", "50", "--election-timeout", "500"]
        self._scheme = "http" if server_tls is None else "https"
        self._directory: Path | None = None
        self.members: list[Member] = []

    @property
    def endpoints(self) -> tuple[str, ...]:
        """host:port of every member, as `EtcdSettings` takes them."""
        return tuple(member.endpoint for member in self.members)

    async def __aenter__(self) -> EtcdCluster:
        self._directory = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="copypool-etcd-"))
        ports = free_ports(3 * self._count)
        raw = [
            EtcdMember(f"m{index}", self._directory, ports[3 * index : 3 * index + 3], self._arguments)
            for index in range(self._count)
        ]
        initial_cluster = ",".join(f"{member.name}={member.peer_url}" for member in raw)
        self.members = [Member(member, initial_cluster, self._scheme) for member in raw]
        try:
            for member in self.members:
                await member.launch()
            for member in self.members:
                await member.ready()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    async def _end(self) -> None:
        for member in self.members:
            await member.kill()
        if self._directory is not None:
            await asyncio.to_thread(shutil.rmtree, self._directory)
