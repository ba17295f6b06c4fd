"""A whole real cluster in a temporary folder, for tests: real processes, real etcd, loopback only.

    with real_cluster() as cluster:                     # blocking; a module's fixture can share one
        async with cluster.client() as client: ...      # an admin's client
        await cluster.kill("node1")                     # kill -9; also stop, cont, start, terminate
        await until(lambda: cluster.is_green(client), "status is green", within_s=30)

When the block ends no process and no file of the cluster is left. `COPYPOOL_TEST_KEEP=1` keeps the folder, to read
its logs.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

from copypool import Client
from copypool.dev.layout import Sizes, Tuning
from copypool.dev.supervisor import Supervisor
from copypool.protocol.errors import CopypoolError

T = TypeVar("T")

#: Sessions end and rebuilding begins soon, so that a story of loss and repair takes seconds.
QUICK = Tuning(grace_s=2, session_ttl_s=5, idle_seal_s=10.0)
POLL_S = 0.1
CLI_TIMEOUT_S = 90.0


async def until(condition: Callable[[], Awaitable[T]], what: str, *, within_s: float) -> T:
    """Poll until `condition` gives something true, and return that. Fails naming `what` and the last answer or error.

    Errors of Copypool count as "not yet": the cluster under test is being hurt.
    """
    deadline = time.monotonic() + within_s
    while True:
        last: object
        try:
            last = await condition()
            if last:
                return last
        except CopypoolError as exc:
            last = exc
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}; last: {last!r}"
        await asyncio.sleep(POLL_S)


class CliResult(NamedTuple):
    """What a run of `copypool` gave."""

    code: int
    out: bytes
    err: str


class RealCluster:
    """A running cluster. Its own methods never block the event loop."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self.layout = supervisor.layout
        self.plan = supervisor.load()

    # -- clients ------------------------------------------------------------------------------
    @asynccontextmanager
    async def client(self, token: str | None = None) -> AsyncIterator[Client]:
        """An SDK client; the cluster's admin unless a token is given."""
        coordinators = [process.url for process in self.plan.of("coordinator")]
        admin = self.layout.admin_token.read_text().strip()
        async with await Client.connect(
            coordinators=coordinators, token=token or admin, ca_file=self.ca_file
        ) as client:
            yield client

    @property
    def ca_file(self) -> str | None:
        """Whom clients trust; None where there is no TLS."""
        return self.layout.certificate("operator").authority if self.plan.tls else None

    async def cli(self, *arguments: str, stdin: bytes = b"") -> CliResult:
        """Run the command line tool as a process, with the cluster's profile."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "copypool.cli.main",
            *arguments,
            env={**os.environ, "COPYPOOL_PROFILE": str(self.layout.profile_file)},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            out, err = await asyncio.wait_for(process.communicate(stdin), CLI_TIMEOUT_S)
        except BaseException:
            process.kill()
            await process.wait()
            raise
        assert process.returncode is not None
        return CliResult(process.returncode, out, err.decode("utf-8", "replace"))

    async def is_green(self, client: Client) -> bool:
        """Whether every live byte is proven to be where policy says."""
        return (await client.status()).healthy

    async def is_at_rest(self, client: Client) -> bool:
        """Whether no process that an operator started is under way."""
        return not await client.operator.processes(running=True)

    async def pulled_bytes(self) -> int:
        """Bytes that the running nodes have pulled from each other since each of them started."""
        return await asyncio.to_thread(self.supervisor.pulled_bytes)

    # -- faults -------------------------------------------------------------------------------
    async def kill(self, name: str) -> None:
        """kill -9; the process is gone when this returns."""
        assert await asyncio.to_thread(self.supervisor.kill, name), f"{name} was not running"

    async def terminate(self, name: str) -> None:
        """SIGTERM, and wait for the end."""
        await asyncio.to_thread(self.supervisor.terminate, name)

    async def stop(self, name: str) -> None:
        """Freeze (SIGSTOP)."""
        assert await asyncio.to_thread(self.supervisor.stop, name), f"{name} was not running"

    async def cont(self, name: str) -> None:
        """Go on (SIGCONT)."""
        assert await asyncio.to_thread(self.supervisor.cont, name), f"{name} was not running"

    async def start(self, name: str) -> None:
        """Start again, and wait until it is ready."""
        await asyncio.to_thread(self.supervisor.start, name)

    async def heal(self) -> None:
        """Everything runs again and is ready: what every test leaves behind for the next one."""
        for process in self.plan.processes:
            await asyncio.to_thread(self.supervisor.cont, process.name)
        await asyncio.to_thread(self.supervisor.up)

    # -- disks --------------------------------------------------------------------------------
    def extent_files(self, node: str, extent: int | None = None) -> list[Path]:
        """The extent files on a node's volume, of one extent or of all."""
        name = "*" if extent is None else f"{extent:016x}"
        return sorted(self.layout.volume(node).glob(f"extents/*/{name}.*.ext"))

    def flip(self, node: str, extent: int, offset: int) -> None:
        """Flip one bit of a stored byte, as a bad disk does."""
        (path,) = self.extent_files(node, extent)
        with path.open("r+b") as file:
            file.seek(offset)
            (byte,) = file.read(1)
            file.seek(offset)
            file.write(bytes([byte ^ 1]))
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def real_cluster(sizes: Sizes | None = None, tuning: Tuning = QUICK, *, tls: bool = False) -> Iterator[RealCluster]:
    """A cluster that is ready when the block begins and gone, processes and files, when it ends.

    With `tls`, TLS on every link, and certificates asked for between servers.

    It ends with SIGTERM too, as CI sends it to a cancelled run: the processes are detached and would stay.
    """
    root = Path(tempfile.mkdtemp(prefix="copypool-test-"))
    supervisor = Supervisor(root / "cluster")
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        supervisor.up(sizes or Sizes(), tuning, tls=tls)
        yield RealCluster(supervisor)
    finally:
        keep = bool(os.environ.get("COPYPOOL_TEST_KEEP"))
        supervisor.down(wipe=not keep)
        if not keep:
            shutil.rmtree(root)
        signal.signal(signal.SIGTERM, before)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
