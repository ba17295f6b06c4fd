"""A catalog on a real etcd, with nodes that exist only as their calls: for tests of the catalog itself.

async with catalog_world(endpoint) as world:
    node = await world.node("n1")
    writer = await world.writer(node, "default")
    reply = await writer.commit(writer.put("a"), writer.put("b"))
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from copypool.protocol.api import NamespaceSpec, PoolType, SegmentRef
from copypool.protocol.digests import digest_of
from copypool.protocol.errors import OutcomeUnknown
from copypool.protocol.internal import (
    EXTENT_HEADER_BYTES,
    Claim,
    CommitEntry,
    CommitReply,
    CommitRequest,
    JoinRequest,
    MountRequest,
    OpenExtentRequest,
    RecordKind,
    Refusal,
    RegisterRequest,
)
from copypool.protocol.versions import VersionClock
from copypool_coordinator import keys, rows
from copypool_coordinator.catalog import Catalog, CatalogSettings
from copypool_coordinator.clock import ClusterClock
from copypool_coordinator.core import LeaderGuard
from copypool_coordinator.etcd import Compare, Etcd, EtcdSettings, Op, TxnResult, delete
from copypool_coordinator.etcd.attempts import Attempts
from copypool_coordinator.etcd.requests import Delete, Put
from copypool_coordinator.rows import FORMAT, ExtentRow, FileRow, LeaderRow
from kit.etcd_process import EtcdMember, free_ports

HEADER_BYTES = 64


def allowed(entry: CommitEntry, class_id: int) -> None:
    """The capability check of a test that is about something else."""


@dataclass
class TestNode:
    """A node as the catalog sees it."""

    __test__ = False
    name: str
    node_id: int
    epoch: int
    nonce: bytes
    volume: int = 0
    volumes: dict[str, int] = field(default_factory=dict)  #: by pool


@dataclass
class Writer:
    """One open extent and what its node knows of it."""

    world: World
    node: TestNode
    namespace: int
    class_id: int
    volume: int
    extent: int
    generation: int
    revision: int
    length: int = EXTENT_HEADER_BYTES
    group: int = 0
    refused: list[Refusal] = field(default_factory=list)  #: not noted yet
    sealed: bool = False
    cursor: int = EXTENT_HEADER_BYTES

    def entry(
        self,
        kind: RecordKind,
        path: str,
        size: int = 100,
        *,
        write_id: bytes | None = None,
        version: int | None = None,
        first_sent_ms: int = 0,
        if_absent: bool = False,
        namespace: int | None = None,
        upload: bytes = b"",
        part: int = 0,
        segments: list[SegmentRef] | None = None,
        part_versions: list[int] | None = None,
        digest: bytes | None = None,
        if_version: int = 0,
    ) -> CommitEntry:
        """A record of the next group; its bytes follow those of the record before. Its write id makes its content."""
        write_id = os.urandom(8) if write_id is None else write_id
        stored = size if kind in ("file", "part") else 0
        place = SegmentRef(self.extent, self.cursor + HEADER_BYTES, stored)
        self.cursor += HEADER_BYTES + stored
        return CommitEntry(
            kind,
            self.namespace if namespace is None else namespace,
            path,
            self.world.mint() if version is None else version,
            size,
            digest_of(b"" if kind == "tombstone" else write_id) if digest is None else digest,
            write_id,
            first_sent_ms,
            place,
            HEADER_BYTES,
            if_absent,
            0,
            upload,
            part,
            segments or [],
            part_versions or [],
            if_version,
        )

    def put(self, path: str, size: int = 100, **more: object) -> CommitEntry:
        """A file."""
        return self.entry("file", path, size, **more)  # type: ignore[arg-type]

    def delete(self, path: str, **more: object) -> CommitEntry:
        """A tombstone."""
        return self.entry("tombstone", path, 0, **more)  # type: ignore[arg-type]

    def request(self, *entries: CommitEntry, seal: bool = False, claims: list[Claim] | None = None) -> CommitRequest:
        """The next group."""
        self.cursor += HEADER_BYTES
        return CommitRequest(
            self.node.node_id,
            self.node.epoch,
            self.extent,
            self.revision,
            self.group,
            self.length,
            self.cursor,
            list(self.refused),
            list(entries),
            [],
            claims or [],
            seal,
        )

    def took(self, request: CommitRequest, reply: CommitReply) -> None:
        """Note what a reply says."""
        assert reply.length == request.new_length
        self.refused = [
            Refusal(request.group, index) for index, each in enumerate(reply.results) if each.outcome != "committed"
        ]
        self.revision, self.length, self.group = reply.revision, request.new_length, request.group + 1
        self.cursor = self.length
        self.sealed = request.seal

    async def commit(self, *entries: CommitEntry, seal: bool = False, catalog: Catalog | None = None) -> CommitReply:
        """Commit the next group."""
        request = self.request(*entries, seal=seal)
        reply = await (catalog or self.world.catalog).commit(request, allowed)
        self.took(request, reply)
        return reply

    async def outcomes(self, *entries: CommitEntry) -> list[str]:
        """Commit the next group and say what became of its records."""
        return [result.outcome for result in (await self.commit(*entries)).results]


class World:
    """One etcd, one or more coordinators' catalogs, and clocks that a test may set."""

    def __init__(self, endpoints: tuple[str, ...], stack: AsyncExitStack) -> None:
        self._endpoints = endpoints
        self._stack = stack
        self.skew_ms = 0  #: added to every clock of every coordinator
        self._wall = ClusterClock()
        self._versions = VersionClock()
        self.catalog: Catalog
        self.etcd: Etcd

    @property
    def hooked(self) -> HookedEtcd:
        """The first coordinator's client, to be disturbed."""
        assert isinstance(self.etcd, HookedEtcd)
        return self.etcd

    def now_ms(self) -> int:
        """Cluster time."""
        return self._wall.now_ms() + self.skew_ms

    def mint(self) -> int:
        """A version as an honest node mints it."""
        return self._versions.mint(self.now_ms())

    async def coordinator(self, name: str, etcd: Etcd | None = None) -> Catalog:
        """Another coordinator's catalog, ready."""
        if etcd is None:
            etcd = await Etcd.connect(EtcdSettings(self._endpoints))
            self._stack.push_async_callback(etcd.close)
        clock = ClusterClock(self.now_ms, self.now_ms)
        catalog = Catalog(etcd, name, CatalogSettings(silence_s=60.0, flush_s=3600.0), clock)
        await catalog.start()
        self._stack.push_async_callback(catalog.close)
        await catalog.ready(60.0)
        return catalog

    async def node(self, name: str, pool: str = "primary", pool_type: PoolType = "primary") -> TestNode:
        """A joined, registered node with one volume, `v-<name>`."""
        nonce = os.urandom(16)
        joined = await self.catalog.join(JoinRequest(name, nonce))
        node = TestNode(name, joined.id, 0, b"")
        await self.register(node)
        await self.mount(node, f"v-{name}", pool, pool_type)
        return node

    async def register(self, node: TestNode, nonce: bytes | None = None, catalog: Catalog | None = None) -> int:
        """Register a new process of the node (or repeat with its nonce); the epoch."""
        node.nonce = os.urandom(16) if nonce is None else nonce
        request = RegisterRequest(node.node_id, node.nonce, f"http://{node.name}", "z1", node.name, "0")
        node.epoch = (await (catalog or self.catalog).register(request)).epoch
        epoch = node.epoch
        await self.catalog.wait_for(lambda view: view.revision >= epoch, 60.0)
        return epoch

    async def mount(self, node: TestNode, volume: str, pool: str, pool_type: PoolType) -> int:
        """Mount a new volume of a node; its id."""
        request = MountRequest(node.node_id, node.epoch, volume, os.urandom(16), pool, pool_type, 1, os.urandom(16))
        row, revision = await self.catalog.mount(request)
        await self.catalog.wait_for(lambda view: view.revision >= revision, 60.0)
        node.volumes[pool] = row.id
        node.volume = row.id
        return row.id

    async def namespace(self, name: str, copy_pools: list[str]) -> int:
        """A new namespace on the primary pool; its id."""
        for pool in copy_pools:
            await self.catalog.create_pool(pool, "copy")
        return (await self.catalog.create_namespace(NamespaceSpec(name, "primary", copy_pools))).id

    async def writer(self, node: TestNode, namespace: str = "default", catalog: Catalog | None = None) -> Writer:
        """A new open extent on the node's volume for the namespace's class."""
        catalog = catalog or self.catalog
        known = catalog.view.namespaces[namespace].row
        volume = node.volumes.get("primary", node.volume)
        opened = await catalog.open_extent(OpenExtentRequest(node.node_id, node.epoch, volume, known.class_id))
        extent = opened.extent
        await catalog.wait_for(lambda view: extent in view.extents, 60.0)
        return Writer(
            self, node, known.id, known.class_id, volume, extent, opened.generation, opened.revision
        )  # fmt: skip

    async def lead(self, name: str = "c1") -> LeaderGuard:
        """Become the leader."""
        lease = await self.etcd.lease_grant(60)
        guard = await self.catalog.campaign(LeaderRow(FORMAT, name, "http://c1"), lease)
        assert guard is not None
        return guard


class HookedEtcd(Etcd):
    """The real client, with a test between it and etcd: before a write, and after it."""

    def __init__(self, settings: EtcdSettings, attempts: Attempts) -> None:
        super().__init__(settings, attempts)
        self.before_write: list[Callable[[], Awaitable[None]]] = []  #: one per write, in order
        self.lost: list[bool] = []  #: for the next writes: True: applied, reply lost; False: never sent, nobody knows
        self.writes = 0

    async def txn(
        self,
        compares: Sequence[Compare],
        success: Sequence[Op],
        failure: Sequence[Op] = (),
        *,
        timeout_s: float | None = None,
    ) -> TxnResult:
        """A transaction, disturbed as told."""
        if not any(isinstance(op, (Put, Delete)) for op in success):
            return await super().txn(compares, success, failure, timeout_s=timeout_s)
        self.writes += 1
        if self.before_write:
            await self.before_write.pop(0)()
        if not self.lost:
            return await super().txn(compares, success, failure, timeout_s=timeout_s)
        if self.lost.pop(0):
            await super().txn(compares, success, failure, timeout_s=timeout_s)
        raise OutcomeUnknown("the reply was lost")


@contextmanager
def shared_etcd() -> Iterator[str]:
    """One etcd for many tests, each of which begins by emptying it."""
    directory = Path(tempfile.mkdtemp(prefix="copypool-catalog-"))
    member = EtcdMember("m0", directory, free_ports(3), [])
    try:
        member.start_blocking(f"m0={member.peer_url}", "http")
        member.await_ready_blocking()
        yield member.endpoint
    finally:
        member.end_blocking()
        shutil.rmtree(directory)


@asynccontextmanager
async def catalog_world(endpoint: str) -> AsyncIterator[World]:
    """A bootstrapped catalog with pools `primary` and `copy` and the namespace `default`, in an emptied etcd."""
    async with AsyncExitStack() as stack:
        world = World((endpoint,), stack)
        world.etcd = await HookedEtcd.connect(EtcdSettings((endpoint,)))
        stack.push_async_callback(world.etcd.close)
        await world.etcd.txn([], [delete(keys.ROOT, b"/cp0")])
        world.catalog = await world.coordinator("c1", world.etcd)
        await world.catalog.bootstrap(os.urandom(16), primary_pool="primary", copy_pool="copy", namespace="default")
        yield world


async def current(world: World, path: str, namespace: int = 1) -> FileRow | None:
    """The path's row as a lookup gives it."""
    return (await world.catalog.lookup([(namespace, path, 0)]))[0]


async def version_of(world: World, path: str) -> int:
    """The path's current version; 0: none."""
    row = await current(world, path)
    return 0 if row is None else row.version


async def extent_row(world: World, extent: int) -> ExtentRow:
    """The extent's row as etcd has it."""
    kv = await world.etcd.get(keys.extent(extent))
    assert kv is not None
    return rows.decode(kv.value, ExtentRow)
