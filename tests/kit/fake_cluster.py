"""A whole cluster in one process and in memory, truthful towards clients, with switches for its faults.

    async with FakeCluster() as cluster:
        async with await cluster.client() as client: ...
        cluster.nodes[0].faults.cut_at = 70_000     # the next reads end after that many body bytes

Writes go to nodes of the primary pool; `copy_all` gives every extent a copy on the copy nodes.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from types import TracebackType
from typing import Self

from copypool import Client
from copypool.protocol.api import NamespaceInfo, SegmentPlan, SegmentRef, Source
from copypool.protocol.capability import NodeKeys, ReadCapability, derive_node_keys, seal_capability
from copypool.protocol.errors import NotFound
from copypool.protocol.stripes import STRIPE_BYTES, encode_prelude, prelude_bytes
from copypool.protocol.tokens import Principal, Role
from copypool.protocol.versions import VersionClock
from copypool.transport import Timeouts
from kit.fake_coordinator_api import FakeCoordinator
from kit.fake_node_api import FakeNode
from kit.fake_server import FakeFile

MASTER = b"fake cluster master secret, 32+ b"
ADMIN = "cpt_admin"
FIRST_OFFSET = 4096

#: Short enough for tests, long enough for a busy machine.
QUICK = Timeouts(connect_s=5.0, first_byte_s=1.0, stall_s=1.0, rpc_answer_s=2.0, write_answer_s=5.0)
#: A machine that pauses is no server that does: for whatever does not speak of slow ones.
PATIENT = Timeouts(connect_s=60.0, first_byte_s=60.0, stall_s=60.0, rpc_answer_s=60.0, write_answer_s=60.0)


class FakeCluster:
    """State shared by the fake servers, and the servers themselves."""

    def __init__(self, *, primaries: int = 2, copies: int = 1, coordinators: int = 2) -> None:
        self.namespaces = {"default": NamespaceInfo("default", 1, "primary", ["copy"], "primary")}
        self.files: dict[tuple[int, str], list[FakeFile]] = {}
        self.parts: dict[tuple[str, int], SegmentRef] = {}
        self.tokens = {ADMIN: Principal("admin", Role.admin)}
        self.reports: list[tuple[int, str, str, int]] = []  #: (extent, volume, reason, count)
        self.lookups: list[tuple[str, ...]] = []
        self.writes: list[tuple[str, str, str]] = []  #: (node, write id, first sent) of every body that arrived
        self.in_flight = 0  #: bodies being received now
        self.in_flight_max = 0
        self.clock = VersionClock()
        self.inline_max = 64  #: segments up to which a file has no manifest
        self._extent_ids = itertools.count(1)
        self.nodes = [FakeNode(self, number + 1, number < primaries) for number in range(primaries + copies)]
        self.coordinators = [FakeCoordinator(self, f"coordinator{number + 1}") for number in range(coordinators)]

    async def __aenter__(self) -> Self:
        for server in (*self.nodes, *self.coordinators):
            await server.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*(server.stop() for server in (*self.nodes, *self.coordinators)))

    async def client(self, token: str = ADMIN, timeouts: Timeouts = PATIENT, write_deadline_s: float = 30.0) -> Client:
        """A client of this cluster; use it with `async with`."""
        urls = [coordinator.url for coordinator in self.coordinators]
        return await Client.connect(
            coordinators=urls, token=token, timeouts=timeouts, write_deadline_s=write_deadline_s
        )

    # -- what nodes do ------------------------------------------------------------------------
    def keys(self, node_id: int) -> NodeKeys:
        """The capability keys of a node."""
        return derive_node_keys(MASTER, node_id, 1)

    def now_ms(self) -> int:
        """Cluster time."""
        return int(time.time() * 1000)

    def store(self, node: FakeNode, payload: bytes) -> SegmentRef:
        """Append a record of its own extent at this node."""
        extent = next(self._extent_ids)
        content = bytearray()
        for at in range(0, len(payload), STRIPE_BYTES):
            stripe = payload[at : at + STRIPE_BYTES]
            last = at + STRIPE_BYTES >= len(payload)
            content += encode_prelude(stripe, extent, FIRST_OFFSET + len(content), last=last)
            content += stripe
        node.extents[extent] = content
        return SegmentRef(extent, FIRST_OFFSET, len(payload))

    def commit(self, namespace: int, path: str, file: FakeFile) -> tuple[FakeFile, bool]:
        """Make a version visible; the file and whether its write id had been applied before."""
        history = self.files.setdefault((namespace, path), [])
        for earlier in history:
            if earlier.write_id == file.write_id:
                return earlier, True
        file.version = self.clock.mint(self.now_ms())
        history.append(file)
        return file, False

    def current(self, namespace: int, path: str, version: int = 0) -> FakeFile:
        """The live version of a path, or the named one; `NotFound`."""
        history = self.files.get((namespace, path), [])
        found = [file for file in history if file.version == version] if version else history[-1:]
        if not found or found[0].deleted:
            raise NotFound(f"no file {path!r}")
        return found[0]

    # -- where things are ---------------------------------------------------------------------
    def copy_all(self) -> None:
        """Give every extent a copy on each copy node."""
        for node in self.nodes:
            for copy in self.nodes:
                if node.primary and not copy.primary:
                    for extent, content in node.extents.items():
                        copy.extents.setdefault(extent, bytearray(content))

    def holders(self, extent: int) -> list[FakeNode]:
        """Nodes that hold an extent, primaries first."""
        return [node for node in self.nodes if extent in node.extents]

    def flip(self, node: FakeNode, ref: SegmentRef, payload_at: int) -> None:
        """Flip one bit of a stored payload byte, as a rotten disk does."""
        stripe, inside = divmod(payload_at, STRIPE_BYTES)
        at = 0
        for number in range(stripe + 1):
            size = min(STRIPE_BYTES, ref.length - number * STRIPE_BYTES)
            if number == stripe:
                node.extents[ref.extent][at + prelude_bytes(size) + inside] ^= 0x10
            at += prelude_bytes(size) + size

    def plan(self, ref: SegmentRef, version: int) -> SegmentPlan:
        """Sources of a segment, best first: reachable ones, primaries before copies."""
        sources: list[Source] = []
        for node in self.holders(ref.extent):
            expires_ms = self.now_ms() + node.capability_life_ms
            right = ReadCapability(1, node.id, ref.extent, ref.offset, ref.length, version, expires_ms, True)
            sources.append(
                Source(
                    node_id=node.id,
                    node=node.name,
                    url=node.url,
                    volume=f"{node.name}-v1",
                    pool_type="primary" if node.primary else "copy",
                    state="good",
                    reachable=True,
                    capability=seal_capability(right, self.keys(node.id)),
                )
            )
        return SegmentPlan(ref.extent, ref.offset, ref.length, sources)
