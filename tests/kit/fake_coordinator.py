"""A coordinator and its catalog in memory, for tests of the node: truthful about revisions, fencing and refusals.

It keeps the rules that the node relies on (one commit in flight per extent by its revision, a group that has landed is
recognised, sealed is final, un-noted refusals are kept) and breaks them never; what a test can ask for are lost
requests, lost replies, held calls, errors, and forced outcomes of single paths.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec
from aiohttp import web

from copypool.protocol import internal
from copypool.protocol.api import ANY_VERSION, AccessMode, LocationState, SegmentRef
from copypool.protocol.capability import (
    AppendCapability,
    PullCapability,
    ReadCapability,
    WriteCapability,
    derive_key,
    derive_node_keys,
    seal_capability,
)
from copypool.protocol.errors import (
    CatalogDown,
    Conflict,
    CopypoolError,
    Fenced,
    Forbidden,
    Unauthorized,
    Unavailable,
    to_body,
)
from copypool.protocol.internal import EXTENT_HEADER_BYTES, EntryResult, ExtentClass, Refusal
from copypool.protocol.twins import TwinTarget

MASTER = b"m" * 32
JOIN_TOKEN = "let-me-in-let-me-in-let-me-in"
LIFE_MS = 60_000


@dataclass
class Extent:
    """Rows `o/` and `e/` of one extent."""

    id: int
    volume: int
    node: int
    epoch: int
    revision: int
    generation: int = 1
    length: int = EXTENT_HEADER_BYTES
    group: int = -1
    sealed: bool = False
    refusals: list[Refusal] = field(default_factory=list)
    twin: TwinTarget | None = None  #: while it gets every group


@dataclass
class Row:
    """A file's row."""

    version: int
    tombstone: bool
    size: int
    digest: bytes
    write_id: bytes
    segment: SegmentRef
    header_bytes: int
    recent: list[tuple[bytes, int]] = field(default_factory=list)


#: Of a transaction: what etcd takes, less what the extent itself needs; and what one record may come to.
OPERATIONS_MAX, COSTLIEST = 126, 3
CROWDED = EntryResult("contended", 0, "the group is too large", crowded=True)


class FakeCoordinator:
    """Use `running()`."""

    def __init__(self) -> None:
        self.url = ""
        self.cluster_id = b"c" * 16
        self.revision = 1000
        self.term = 1
        self.nodes: dict[str, int] = {}
        self.sessions: dict[int, tuple[int, bytes]] = {}  #: node -> (epoch, nonce)
        self.urls: dict[int, str] = {}
        self.volumes: dict[bytes, int] = {}  #: uuid -> id
        self.label_epochs: dict[int, tuple[int, bytes]] = {}
        self.access: dict[int, AccessMode] = {}
        self.extents: dict[int, Extent] = {}
        self.copies: dict[tuple[int, int], tuple[int, LocationState, int]] = {}  #: generation, state, length
        self.files: dict[tuple[int, str], Row] = {}
        self.parts: dict[tuple[bytes, int], internal.CommitEntry] = {}
        self.requests: dict[str, list[msgspec.Struct]] = defaultdict(list)
        self.renewals = 0
        # -- what a test asks for
        self.lose_replies: Counter[str] = Counter()
        self.lose_requests: Counter[str] = Counter()
        self.errors: dict[str, deque[CopypoolError]] = defaultdict(deque)
        self.outcomes: dict[str, deque[EntryResult]] = defaultdict(deque)  #: path -> outcomes of its next tries
        self.catalog_down = False  #: etcd is away: nothing but heartbeats is answered
        self.deaf_to: set[int] = set()  #: nodes whose calls do not arrive
        self.holds: dict[str, asyncio.Event] = {}
        self.waiting: Counter[str] = Counter()  #: calls that a hold keeps
        self.passes: Counter[str] = Counter()  #: calls that go by a hold
        self._next_extent = 1
        self.extent_class = ExtentClass(1, "primary", ["copy"], "primary")
        self.twins: list[tuple[int, int, str]] = []  #: (node, volume, its name) where twins may be, best first

    # -- what a test asks for ---------------------------------------------------------------------
    def hold(self, verb: str, *, after: int = 0) -> asyncio.Event:
        """Calls of this verb, but for the next `after`, wait before they change anything until the event is set."""
        event = self.holds[verb] = asyncio.Event()
        self.passes[verb] = after
        return event

    def end_session(self, node_id: int) -> None:
        """As if the node's lease had run out."""
        self.sessions.pop(node_id, None)

    def now_ms(self) -> int:
        """Cluster time."""
        return time.time_ns() // 1_000_000

    def write_capability(self, node_id: int, volume: int, *, max_bytes: int = 1 << 40, prefix: str = "") -> str:
        """May write namespace 1 in class 1."""
        return seal_capability(
            WriteCapability(1, node_id, volume, 1, 1, prefix, max_bytes, self.now_ms() + LIFE_MS),
            derive_node_keys(MASTER, node_id, 1),
        )

    def read_capability(
        self, node_id: int, segment: SegmentRef, version: int, *, raw: bool, header_bytes: int = 0
    ) -> str:
        """May read this segment."""
        return seal_capability(
            ReadCapability(
                1,
                node_id,
                segment.extent,
                segment.offset,
                segment.length,
                version,
                self.now_ms() + LIFE_MS,
                raw,
                header_bytes,
            ),
            derive_node_keys(MASTER, node_id, 1),
        )

    def pull_capability(self, node_id: int, puller: int, extent: int) -> str:
        """Lets `puller` read raw bytes of the extent from the node."""
        return seal_capability(
            PullCapability(1, node_id, puller, extent, self.now_ms() + LIFE_MS), derive_node_keys(MASTER, node_id, 1)
        )

    def command_key(self, node_id: int) -> str:
        """Value of the header that commands carry."""
        return "Command " + derive_key(MASTER, "command", node_id, 1).hex()

    # -- serving ------------------------------------------------------------------------------
    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """One call."""
        verb = request.path.removeprefix("/n/")
        content = await request.read()
        caller = request.headers.get("Authorization", "").removeprefix("Node ").partition(":")[0]
        if caller.isdecimal() and int(caller) in self.deaf_to:
            return self._drop(request)
        if self.lose_requests[verb] > 0:
            self.lose_requests[verb] -= 1
            return self._drop(request)
        hold = self.holds.get(verb)
        if hold is not None and self.passes[verb] > 0:
            self.passes[verb] -= 1
        elif hold is not None:
            self.waiting[verb] += 1
            await hold.wait()
            self.waiting[verb] -= 1
        try:
            if self.catalog_down and verb != "heartbeat":
                raise CatalogDown("etcd is away on purpose")
            if self.errors[verb]:
                raise self.errors[verb].popleft()
            reply = self._call(verb, content, request.headers.get("Authorization", ""))
        except CopypoolError as exc:
            body = msgspec.msgpack.encode(to_body(exc))
            return web.Response(status=exc.http_status, body=body, content_type="application/msgpack")
        if self.lose_replies[verb] > 0:
            self.lose_replies[verb] -= 1
            return self._drop(request)
        return web.Response(body=msgspec.msgpack.encode(reply), content_type="application/msgpack")

    def _drop(self, request: web.BaseRequest) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        raise ConnectionResetError("lost on purpose")

    def _call(self, verb: str, content: bytes, authorization: str) -> msgspec.Struct:
        struct, handler = self._verbs()[verb]
        body = msgspec.msgpack.decode(content, type=struct)
        if verb == "join":
            if authorization != f"Join {JOIN_TOKEN}":
                raise Unauthorized("not the join token")
        else:
            node_id = getattr(body, "node_id")  # noqa: B009 - every other request has one
            credential = derive_key(MASTER, "credential", node_id, 1).hex()
            if authorization != f"Node {node_id}:{credential}":
                raise Unauthorized("not that node")
        self.requests[verb].append(body)
        return handler(body)

    def _verbs(self) -> dict[str, tuple[type[msgspec.Struct], Callable[..., msgspec.Struct]]]:
        return {
            "join": (internal.JoinRequest, self._join),
            "register": (internal.RegisterRequest, self._register),
            "heartbeat": (internal.HeartbeatRequest, self._heartbeat),
            "mount": (internal.MountRequest, self._mount),
            "extents": (internal.OwnExtentsRequest, self._extents),
            "open": (internal.OpenExtentRequest, self._open),
            "commit": (internal.CommitRequest, self._commit),
            "seal": (internal.SealRequest, self._seal),
            "inventory": (internal.InventoryReport, lambda _: internal.Done()),
            "progress": (internal.ProgressReport, self._progress),
            "given-up": (internal.PullGivenUp, lambda _: internal.Done()),
            "verified": (internal.VerifyReport, lambda _: internal.Done()),
        }

    def _bump(self) -> int:
        self.revision += 1
        return self.revision

    def _check(self, node_id: int, epoch: int) -> None:
        if self.sessions.get(node_id, (0, b""))[0] != epoch:
            raise Fenced(f"epoch {epoch} of node {node_id} is over")

    # -- sessions and volumes -----------------------------------------------------------------
    def _join(self, body: internal.JoinRequest) -> internal.JoinReply:
        node_id = self.nodes.setdefault(body.name, len(self.nodes) + 1)
        return internal.JoinReply(
            self.cluster_id,
            node_id,
            derive_key(MASTER, "credential", node_id, 1),
            derive_key(MASTER, "command", node_id, 1),
        )

    def _register(self, body: internal.RegisterRequest) -> internal.RegisterReply:
        epoch, nonce = self.sessions.get(body.node_id, (0, b""))
        if nonce != body.nonce:
            epoch = self._bump()
            self.sessions[body.node_id] = (epoch, body.nonce)
        self.urls[body.node_id] = body.url
        return internal.RegisterReply(
            self.cluster_id,
            epoch,
            15,
            self.term,
            [derive_node_keys(MASTER, body.node_id, 1)],
            self.now_ms(),
            [self.url],
        )

    def _heartbeat(self, body: internal.HeartbeatRequest) -> internal.HeartbeatReply:
        alive = self.sessions.get(body.node_id, (0, b""))[0] == body.epoch
        self.renewals += body.renew and alive
        return internal.HeartbeatReply(
            alive,
            self.now_ms(),
            self.term,
            [self.url],
            [internal.Peer(node, f"n{node}", url) for node, url in self.urls.items()],
            [internal.VolumeDirective(one.volume, self.access.get(one.volume, "readwrite")) for one in body.volumes],
            [derive_node_keys(MASTER, body.node_id, 1)],
            self.revision,
        )

    def _mount(self, body: internal.MountRequest) -> internal.MountReply:
        self._check(body.node_id, body.epoch)
        volume = self.volumes.setdefault(body.uuid, len(self.volumes) + 1)
        epoch, nonce = self.label_epochs.get(volume, (0, b""))
        if body.label_epoch <= epoch and (body.label_epoch, body.nonce) != (epoch, nonce):
            raise Conflict(f"label epoch {body.label_epoch}, the catalog has {epoch}")
        if body.label_epoch <= epoch + 1:
            epoch = body.label_epoch
            self.label_epochs[volume] = (epoch, body.nonce)
        return internal.MountReply(volume, 1, self.access.get(volume, "readwrite"), self.revision, epoch)

    def _extents(self, body: internal.OwnExtentsRequest) -> internal.OwnExtentsReply:
        found = [
            internal.OwnExtent(one.id, one.generation, "good", one.length, one.sealed, not one.sealed)
            for one in self.extents.values()
            if one.volume == body.volume and one.id > body.after
        ]
        found += [
            internal.OwnExtent(extent, generation, state, length, self.extents[extent].sealed, False)
            for (extent, volume), (generation, state, length) in self.copies.items()
            if volume == body.volume and extent > body.after
        ]
        found += [
            internal.OwnExtent(one.id, one.twin.generation, "good", one.length if one.group >= 0 else 0, False, False)
            for one in self.extents.values()
            if one.twin is not None and one.twin.volume == body.volume and one.id > body.after
        ]
        found.sort(key=lambda one: one.extent)
        page, rest = found[:2], found[2:]
        return internal.OwnExtentsReply(page, page[-1].extent if rest else -1, self.revision)

    # -- extents ------------------------------------------------------------------------------
    def _open(self, body: internal.OpenExtentRequest) -> internal.OpenExtentReply:
        self._check(body.node_id, body.epoch)
        twin = self._twin(body, self._next_extent) if self.extent_class.ack == "copy" else None
        extent = Extent(self._next_extent, body.volume, body.node_id, body.epoch, self._bump(), twin=twin)
        self._next_extent += 1
        self.extents[extent.id] = extent
        return internal.OpenExtentReply(extent.id, extent.generation, extent.revision, self.extent_class, twin)

    def _twin(self, body: internal.OpenExtentRequest, extent: int) -> TwinTarget | None:
        places = sorted(
            (one for one in self.twins if one[0] != body.node_id), key=lambda one: one[0] in body.avoid_nodes
        )
        if not places:
            if self.extent_class.on_copy_failure == "fail":
                raise Unavailable("there is no place for a twin", twin=True)
            return None
        node, volume, name = places[0]
        right = AppendCapability(1, node, body.node_id, extent, volume, 2, self.now_ms() + LIFE_MS)
        text = seal_capability(right, derive_node_keys(MASTER, node, 1))
        return TwinTarget(node, f"n{node}", self.urls[node], volume, name, 2, text)

    def _claimed(self, body: internal.CommitRequest, extent: Extent) -> None:
        """The twin is claimed under a living session, or it ends as a copy of what was committed before."""
        for claim in body.claims:
            assert extent.twin is not None, "a claim for a twin that has ended"
            assert (claim.node_id, claim.volume) == (extent.twin.node_id, extent.twin.volume)
            if self.sessions.get(claim.node_id, (0, b""))[0] != claim.epoch:
                raise Unavailable("the twin's session is over", claim=claim.node_id)
        if extent.twin is not None and not body.claims:
            self._end_twin(extent)

    def _end_twin(self, extent: Extent) -> None:
        twin, extent.twin = extent.twin, None
        if twin is not None:
            length = extent.length if extent.group >= 0 else 0
            self.copies[extent.id, twin.volume] = (twin.generation, "good" if length else "copying", length)

    def _commit(self, body: internal.CommitRequest) -> internal.CommitReply:
        extent = self.extents[body.extent]
        if (extent.group, extent.length) == (body.group, body.new_length):
            refused = {one.index for one in extent.refusals if one.group == body.group}
            results = [
                self._again(entry) if index in refused else EntryResult("committed", entry.version)
                for index, entry in enumerate(body.entries)
            ]
            return internal.CommitReply(extent.revision, extent.length, results)
        self._check(body.node_id, body.epoch)
        if extent.sealed or extent.epoch != body.epoch or extent.revision != body.revision:
            raise Fenced(f"extent {body.extent} is at revision {extent.revision}, sealed: {extent.sealed}")
        assert body.old_length == extent.length, "a group does not begin where the last one ended"
        assert body.group == extent.group + 1, "a group number was left out"
        self._claimed(body, extent)
        keys = [(entry.namespace, entry.path) for entry in body.entries]
        assert len(set(keys)) == len(keys), "a path twice in one group"
        results, replaced, operations = [], 0, 0
        for entry in body.entries:
            result = self._judge(entry) if operations + COSTLIEST <= OPERATIONS_MAX else CROWDED
            results.append(result)
            if result.outcome == "committed":
                replaces = self._replaces(entry)
                replaced += replaces
                operations += 1 + replaces
                self._apply(entry)
        noted = {(one.group, one.index) for one in body.noted}
        assert noted <= {(one.group, one.index) for one in extent.refusals}, "noted what is not refused"
        extent.refusals = [one for one in extent.refusals if (one.group, one.index) not in noted]
        extent.refusals += [
            Refusal(body.group, index) for index, result in enumerate(results) if result.outcome != "committed"
        ]
        extent.group, extent.length, extent.sealed = body.group, body.new_length, body.seal
        if body.seal:
            self._end_twin(extent)
        extent.revision = self._bump()
        return internal.CommitReply(extent.revision, extent.length, results, replaced)

    def _replaces(self, entry: internal.CommitEntry) -> bool:
        row = self.files.get((entry.namespace, entry.path))
        return entry.kind != "part" and row is not None and not row.tombstone

    def _again(self, entry: internal.CommitEntry) -> EntryResult:
        result = self._judge(entry)
        return result if result.outcome != "committed" else EntryResult("contended")

    def _judge(self, entry: internal.CommitEntry) -> EntryResult:
        if self.outcomes[entry.path]:
            return self.outcomes[entry.path].popleft()
        if entry.kind == "part":
            return EntryResult("committed", entry.version)
        row = self.files.get((entry.namespace, entry.path))
        if row is not None:
            if row.write_id == entry.write_id and row.digest != entry.digest:
                return EntryResult("other_write", row.version, "this write id has stored something else")
            for write_id, version in [(row.write_id, row.version), *row.recent]:
                if write_id == entry.write_id:
                    return EntryResult("replayed", version)
            if entry.if_absent and not row.tombstone:
                return EntryResult("conflict", row.version, "it exists")
            if entry.version <= row.version:
                return EntryResult("stale", row.version)
        if entry.if_version and (row is None or row.tombstone or entry.if_version not in (row.version, ANY_VERSION)):
            return EntryResult("conflict", 0 if row is None or row.tombstone else row.version, "not that version")
        if entry.kind == "tombstone" and (row is None or row.tombstone):
            return EntryResult("not_found")
        return EntryResult("committed", entry.version)

    def _apply(self, entry: internal.CommitEntry) -> None:
        if entry.kind == "part":
            self.parts[entry.upload, entry.part] = entry
            return
        old = self.files.get((entry.namespace, entry.path))
        recent = [] if old is None else [(old.write_id, old.version), *old.recent][:4]
        self.files[entry.namespace, entry.path] = Row(
            entry.version,
            entry.kind == "tombstone",
            entry.size,
            entry.digest,
            entry.write_id,
            entry.segment,
            entry.header_bytes,
            recent,
        )

    def _seal(self, body: internal.SealRequest) -> internal.SealReply:
        self._check(body.node_id, body.epoch)
        if self.extents[body.extent].node != body.node_id:
            raise Forbidden("another node wrote it")
        return self.seal(body.extent)

    def seal(self, extent_id: int) -> internal.SealReply:
        """Seal an extent at its committed length, as the leader does for a fenced node."""
        extent = self.extents[extent_id]
        if not extent.sealed:
            extent.sealed = True
            self._end_twin(extent)
            extent.revision = self._bump()
        return internal.SealReply(extent.id, extent.generation, extent.length, extent.refusals, extent.group)

    def _progress(self, body: internal.ProgressReport) -> internal.Done:
        state: LocationState = "good" if body.finished else "copying"
        self.copies[body.extent, body.volume] = (body.generation, state, body.length)
        return internal.Done()


@asynccontextmanager
async def running() -> AsyncIterator[FakeCoordinator]:
    """A fake coordinator that listens on a free loopback port."""
    fake = FakeCoordinator()
    runner = web.ServerRunner(web.Server(fake.handle, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield fake
    finally:
        await runner.cleanup()
