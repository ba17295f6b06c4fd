"""Copypool as shipped, on this machine: one etcd, one coordinator, one primary node, one copy node.

In `one_copy` the second copy of every write is owed, as after any loss of a node.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from bench.frame import awaited
from copypool import Client
from copypool.coordinators import Coordinators
from copypool.dev.layout import Cluster, Sizes, Tuning
from copypool.dev.supervisor import Supervisor
from copypool.protocol.api import LeaseReply, LeaseRequest, WriteLease
from copypool.transport import Transport

T = TypeVar("T", bound=msgspec.Struct)

NAMESPACE = "default"  #: its ack rule is `primary`
ACK_COPY = "ack-copy"  #: the namespace
SIZES = Sizes(etcd=1, coordinators=1, primary_nodes=1, copy_nodes=1)
#: A node that the bench ends stays a member: nothing is to be rebuilt while figures are taken.
TUNING = Tuning(grace_s=3600, session_ttl_s=15)


class CopypoolSide:
    """The running cluster."""

    def __init__(self, supervisor: Supervisor, cluster: Cluster) -> None:
        self.supervisor = supervisor
        self._cluster = cluster
        self.coordinator = cluster.of("coordinator")[0].url
        self.token = supervisor.layout.admin_token.read_text().strip()
        self.node = cluster.of("node")[0].url
        self.profile = supervisor.layout.profile_file  #: for the command line tool

    @property
    def pids(self) -> dict[str, int]:
        """Every process that runs, by name."""
        found = {process.name: self.supervisor.pid(process.name) for process in self._cluster.processes}
        return {name: pid for name, pid in found.items() if pid}

    async def client(self) -> Client:
        """An admin's client, as the profile of `copypool dev` makes it."""
        return await Client.connect(coordinators=[self.coordinator], token=self.token)

    async def ask(self, verb: str, request: msgspec.Struct, reply: type[T]) -> T:
        """One call of a coordinator, as the SDK makes it."""
        async with Transport() as transport:
            return await Coordinators(transport, [self.coordinator], self.token).call(verb, request, reply)

    async def lease(self, namespace: str) -> WriteLease:
        """A write lease, good for a minute."""
        return (await self.ask("lease", LeaseRequest(namespace), LeaseReply)).leases[0]

    def end_copies(self) -> None:
        """End the copy node."""
        self.supervisor.terminate("node2")

    def begin_copies(self) -> None:
        """Start the copy node."""
        self.supervisor.start("node2")


@contextmanager
def copypool_cluster(root: Path | None = None) -> Iterator[CopypoolSide]:
    """A cluster that is ready when the block begins and gone, processes and files, when it ends."""
    folder = Path(tempfile.mkdtemp(prefix="copypool-bench-", dir=root))
    supervisor = Supervisor(folder / "cluster")
    try:
        yield CopypoolSide(supervisor, supervisor.up(SIZES, TUNING))
    finally:
        supervisor.down(wipe=True)
        shutil.rmtree(folder)


@contextmanager
def one_copy() -> Iterator[CopypoolSide]:
    """A cluster whose copy node is down: a write leaves one durable copy, as with a peer of one copy."""
    with copypool_cluster() as side:
        side.end_copies()
        yield side


@contextmanager
def two_copies() -> Iterator[CopypoolSide]:
    """A cluster with its copy node, and a namespace `ACK_COPY` whose writes are answered when both have fsync'd."""
    with copypool_cluster() as side:
        awaited(_make_namespace(side))
        yield side


async def _make_namespace(side: CopypoolSide) -> None:
    async with await side.client() as client:
        await client.namespace_create(ACK_COPY, ack="copy", on_copy_failure="fail")
