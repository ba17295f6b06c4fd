"""`POST /n/<verb>`: what nodes ask of coordinators. Thin: who is it, is it about itself, then the catalog.

A node may speak only for itself and its current epoch; that it is the extent's writer, and that its session lives, is
compared inside the catalog's transactions and not here, where memory may lag.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec
from aiohttp import web

from copypool.protocol.api import AccessMode, ReadReport
from copypool.protocol.capability import WriteCapability, check_write
from copypool.protocol.errors import CallerError, Forbidden, Invalid, NotLeader, Unavailable
from copypool.protocol.internal import (
    CommitEntry,
    CommitRequest,
    Done,
    HeartbeatReply,
    HeartbeatRequest,
    InventoryReport,
    JoinReply,
    JoinRequest,
    MountReply,
    MountRequest,
    OpenExtentRequest,
    OwnExtentsRequest,
    Peer,
    ProgressReport,
    PullFault,
    PullGivenUp,
    RegisterReply,
    RegisterRequest,
    SealRequest,
    StopReply,
    StopRequest,
    VerifyReport,
    VolumeDirective,
)
from copypool.protocol.names import check_name, check_path
from copypool_coordinator.auth import Auth
from copypool_coordinator.budgets import pull_share_bytes_s
from copypool_coordinator.capabilities import Mint
from copypool_coordinator.catalog import Catalog
from copypool_coordinator.exchange import answer, read_body, read_struct
from copypool_coordinator.heartbeats import Heartbeats
from copypool_coordinator.metrics import Metrics
from copypool_coordinator.placement import choose_twin
from copypool_coordinator.reports import Reports
from copypool_coordinator.rows import ClassRow, VolumeRow
from copypool_coordinator.stopping import Turns
from copypool_coordinator.view import Versioned

Handler = Callable[[web.BaseRequest], Awaitable[web.Response]]
S = TypeVar("S", bound=msgspec.Struct)

_HEARTBEAT_VOLUMES_MAX = 1024
_AVOID_MAX = 64


class NodeApi:
    """Handlers of `/n/*`."""

    def __init__(
        self,
        catalog: Catalog,
        auth: Auth,
        mint: Mint,
        heartbeats: Heartbeats,
        metrics: Metrics,
        reports: Reports,
        turns: Turns,
        *,
        body_bytes: int,
    ) -> None:
        self._reports = reports
        self._turns = turns
        self._catalog = catalog
        self._view = catalog.view
        self._auth = auth
        self._mint = mint
        self._heartbeats = heartbeats
        self._metrics = metrics
        self._body_bytes = body_bytes
        self._commit_decoder = msgspec.msgpack.Decoder(CommitRequest)

    def routes(self) -> dict[str, Handler]:
        """Path -> handler."""
        return {
            "/n/join": self._join,
            "/n/register": self._register,
            "/n/heartbeat": self._heartbeat,
            "/n/mount": self._mount,
            "/n/open": self._open,
            "/n/commit": self._commit,
            "/n/seal": self._seal,
            "/n/extents": self._extents,
            "/n/inventory": self._inventory,
            "/n/progress": self._progress,
            "/n/verified": self._verified,
            "/n/fault": self._fault,
            "/n/given-up": self._given_up,
            "/n/stop": self._stop,
        }

    async def _from_node(self, request: web.BaseRequest, struct: type[S]) -> S:
        """The body, after the caller has proven to be the node that it names."""
        node_id = self._auth.node(request.headers.get("Authorization"))
        body = await read_struct(request, struct, self._body_bytes)
        _own(node_id, getattr(body, "node_id", None))
        return body

    # -- joining, sessions, volumes ----------------------------------------------------------------
    async def _join(self, request: web.BaseRequest) -> web.Response:
        self._auth.joining(request.headers.get("Authorization"))
        body = await read_struct(request, JoinRequest, self._body_bytes)
        check_name(body.name, "node name")
        if len(body.nonce) != 16:
            raise Invalid("the join nonce has 16 bytes")
        row = await self._catalog.join(body)
        return answer(
            request,
            JoinReply(self._cluster_id(), row.id, self._mint.credential(row.id), self._mint.command_key(row.id)),
        )

    async def _stop(self, request: web.BaseRequest) -> web.Response:
        body = await self._from_node(request, StopRequest)
        try:
            waits_for = await self._turns.ask(body.node_id, body.for_s, anyway=body.anyway)
        except NotLeader as exc:
            # A Service leads to any coordinator, and keeps to the one that it chose: the caller needs the address.
            if not exc.details.get("leader"):
                raise
            return answer(request, StopReply([], str(exc.details["leader"])))
        return answer(request, StopReply(waits_for))

    async def _register(self, request: web.BaseRequest) -> web.Response:
        body = await self._from_node(request, RegisterRequest)
        if not body.url.startswith(("http://", "https://")) or len(body.url) > 512:
            raise Invalid("a node's url begins with http:// or https://")
        registered = await self._catalog.register(body)
        return answer(
            request,
            RegisterReply(
                cluster_id=self._cluster_id(),
                epoch=registered.epoch,
                ttl_s=registered.ttl_s,
                term=self._term(),
                keys=self._mint.keys_for(body.node_id),
                cluster_time_ms=self._catalog.now_ms(),
                coordinators=self._coordinators(),
            ),
        )

    async def _heartbeat(self, request: web.BaseRequest) -> web.Response:
        body = await self._from_node(request, HeartbeatRequest)
        if len(body.volumes) > _HEARTBEAT_VOLUMES_MAX:
            raise Invalid(f"a heartbeat reports at most {_HEARTBEAT_VOLUMES_MAX} volumes")
        view = self._view
        own = view.volumes_by_node.get(body.node_id, ())
        body.volumes = [report for report in body.volumes if report.volume in own]
        self._heartbeats.note(body, time.monotonic())
        if body.renew:
            alive = await self._catalog.renew(body.node_id, body.epoch)
        else:
            alive = self._seems_alive(body.node_id, body.epoch)
        peers = [
            Peer(node.row.id, node.name, view.sessions[node.row.id].row.url)
            for node in view.nodes_by_id.values()
            if node.row.id in view.sessions
        ]
        return answer(
            request,
            HeartbeatReply(
                session_alive=alive,
                cluster_time_ms=self._catalog.now_ms(),
                term=self._term(),
                coordinators=self._coordinators(),
                peers=peers,
                volumes=[self._directive(volume) for volume in sorted(own)],
                keys=self._mint.keys_for(body.node_id),
                revision=view.revision,
            ),
        )

    def _directive(self, volume: int) -> VolumeDirective:
        row = self._view.volumes_by_id[volume].row
        # A volume that is being emptied is read and deleted from, and takes no new bytes: its node may know that too.
        access: AccessMode = "readonly" if row.intent and row.access == "readwrite" else row.access
        share = pull_share_bytes_s(self._view, volume)
        return VolumeDirective(volume, access, share, row.limit_bytes, row.access_since_ms)

    def _seems_alive(self, node_id: int, epoch: int) -> bool:
        """Whether memory has a reason to say that the session is over.

        It says so only of epochs that it must have seen: memory that lags, or stands still because etcd is away,
        ends no session. The one that renews the lease, and every commit, know for certain.
        """
        session = self._view.sessions.get(node_id)
        if session is not None and session.epoch >= epoch:
            return session.epoch == epoch
        return epoch > self._view.revision

    async def _mount(self, request: web.BaseRequest) -> web.Response:
        body = await self._from_node(request, MountRequest)
        check_name(body.name, "volume name")
        check_name(body.pool, "pool name")
        if len(body.uuid) != 16:
            raise Invalid("the uuid of a volume has 16 bytes")
        row, revision = await self._catalog.mount(body)
        return answer(request, MountReply(row.id, row.pool, row.access, revision, row.epoch))

    # -- extents -----------------------------------------------------------------------------------
    async def _open(self, request: web.BaseRequest) -> web.Response:
        body = await self._from_node(request, OpenExtentRequest)
        reply = await self._catalog.open_extent(body, lambda extent_class, _: self._twin(extent_class, body))
        if reply.twin is not None:
            reply.twin.capability = self._mint.append(reply.twin, body.node_id, reply.extent, self._catalog.now_ms())
        return answer(request, reply)

    def _twin(self, extent_class: ClassRow, request: OpenExtentRequest) -> Versioned[VolumeRow] | None:
        return choose_twin(
            self._view,
            self._heartbeats.loads(time.monotonic()),
            extent_class,
            request.node_id,
            avoid_nodes=request.avoid_nodes[:_AVOID_MAX],
            seed=random.getrandbits(32),
        )

    async def _seal(self, request: web.BaseRequest) -> web.Response:
        body = await self._from_node(request, SealRequest)
        return answer(request, await self._catalog.seal(body.extent, by_epoch=(body.node_id, body.epoch)))

    async def _extents(self, request: web.BaseRequest) -> web.Response:
        return answer(request, await self._catalog.own_extents(await self._from_node(request, OwnExtentsRequest)))

    async def _inventory(self, request: web.BaseRequest) -> web.Response:
        await self._catalog.apply_inventory(await self._from_node(request, InventoryReport))
        return answer(request, Done())

    async def _progress(self, request: web.BaseRequest) -> web.Response:
        await self._catalog.report_progress(await self._from_node(request, ProgressReport))
        return answer(request, Done())

    async def _verified(self, request: web.BaseRequest) -> web.Response:
        await self._catalog.report_verified(await self._from_node(request, VerifyReport))
        return answer(request, Done())

    async def _given_up(self, request: web.BaseRequest) -> web.Response:
        await self._catalog.report_given_up(await self._from_node(request, PullGivenUp))
        return answer(request, Done())

    async def _fault(self, request: web.BaseRequest) -> web.Response:
        """Taken like a client's report of a failed read: the source is told to verify, and nothing is marked by it."""
        fault = await self._from_node(request, PullFault)
        entry = self._view.extents.get(fault.extent)
        for location in entry.row.locations if entry is not None else ():
            volume = self._view.volumes_by_id.get(location.volume)
            if volume is not None and volume.row.node == fault.source_node:
                self._reports.add([ReadReport(fault.extent, volume.name, fault.source_node, "checksum", 1)])
        return answer(request, Done())

    # -- commits -----------------------------------------------------------------------------------
    async def _commit(self, request: web.BaseRequest) -> web.Response:
        node_id = self._auth.node(request.headers.get("Authorization"))
        content = await read_body(request, self._body_bytes)
        try:
            body = self._commit_decoder.decode(content)
        except msgspec.MsgspecError as exc:
            raise Invalid(f"the body is not a valid CommitRequest: {exc}") from exc
        _own(node_id, body.node_id)
        started_s = time.perf_counter()
        reply = await self._catalog.commit(body, EntryCheck(self._mint, body, self._catalog.now_ms()))
        self._metrics.commit_seconds.observe(time.perf_counter() - started_s)
        return answer(request, reply)

    # -- facts of replies --------------------------------------------------------------------------
    def _cluster_id(self) -> bytes:
        if self._view.cluster is None:
            raise Unavailable("the catalog has no cluster row yet")
        return self._view.cluster.row.id

    def _term(self) -> int:
        leader = self._view.leader
        return 0 if leader is None else leader.create_revision

    def _coordinators(self) -> list[str]:
        return [coordinator.row.url for coordinator in self._view.coordinators.values()]


class EntryCheck:
    """Whether each entry of a commit is covered by the client's capability that the node passed on.

    A node can only use what a client was given for it: the capability names this node, the extent's class, the
    namespace and a prefix. Each capability's signature is checked once per commit.
    """

    def __init__(self, mint: Mint, request: CommitRequest, now_ms: int) -> None:
        self._mint = mint
        self._node_id = request.node_id
        self._texts = request.capabilities
        self._now_ms = now_ms
        self._opened: dict[int, WriteCapability | Forbidden] = {}

    def __call__(self, entry: CommitEntry, class_id: int) -> None:
        """Raise `Forbidden` unless the entry is covered, in an extent of this class."""
        capability = self._opened.get(entry.capability)
        if capability is None:
            capability = self._opened[entry.capability] = self._open(entry.capability)
        if isinstance(capability, Forbidden):
            raise capability
        if capability.class_id != class_id:
            raise Forbidden("the capability is for another class of extents")
        # A manifest's size is that of its file; the body that made it was bounded by the node.
        size_bytes = 0 if entry.kind == "manifest" else entry.size
        check_write(capability, entry.namespace, entry.path, size_bytes)
        try:
            check_path(entry.path)
        except CallerError as error:
            raise Forbidden(error.message) from error

    def _open(self, index: int) -> WriteCapability | Forbidden:
        if not 0 <= index < len(self._texts):
            return Forbidden("the entry names no capability")
        try:
            return self._mint.open_write(self._texts[index], self._node_id, self._now_ms)
        except Forbidden as error:
            return error


def _own(caller: int, named: object) -> None:
    """A node speaks for itself only."""
    if named != caller:
        raise Forbidden(f"node {caller} may not speak for node {named}")
