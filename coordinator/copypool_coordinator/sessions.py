"""Who takes part: nodes (joined once, registered per process), coordinators, and volumes claimed by nodes.

The epoch of a node is the mod revision of its registration. Only `register` writes `s/<node>`, by compare-and-swap, so
a newer registration is a newer epoch, and whatever compares an older one changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from dataclasses import dataclass

from msgspec.structs import replace

from copypool.protocol.errors import CatalogDown, Conflict, CopypoolError, Fenced, NotFound, OutcomeUnknown, Overloaded
from copypool.protocol.internal import JoinRequest, MountRequest, RegisterRequest
from copypool.protocol.names import check_name
from copypool_coordinator import keys, rows
from copypool_coordinator.core import ROUNDS_MAX, Core, check_guards, session_guard
from copypool_coordinator.etcd import Compare, KeyValue, create_equals, delete, get, mod_equals, put
from copypool_coordinator.ids import take_ids
from copypool_coordinator.pools import ensure_pool
from copypool_coordinator.rows import FORMAT, CoordinatorRow, NodeRow, SessionRow, VolumeRow
from copypool_coordinator.stopping import returned

log = logging.getLogger(__name__)

FACT_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Registered:
    """A session."""

    epoch: int
    ttl_s: int
    lease: int


class Sessions:
    """Sessions of one catalog, and this coordinator's own."""

    def __init__(self, core: Core, ttl_s: int) -> None:
        self._core = core
        self._ttl_s = ttl_s
        self._own: asyncio.Task[None] | None = None
        self._own_lease = 0

    # -- nodes -------------------------------------------------------------------------------------
    async def join(self, request: JoinRequest) -> NodeRow:
        """The node's row. Safe to repeat with the same nonce.

        The name of a node that has registered once and has neither a session nor a volume any more is free: its machine
        is gone, all that it held was restored and its volumes were deleted. Who joins under it is a new node.

        Raises:
            Conflict: the name belongs to a node with another nonce.
        """
        key = keys.named(keys.NODE, check_name(request.name, "node name"))
        nonce_sha256 = hashlib.sha256(request.nonce).digest()
        kv = await self._core.etcd.get(key)
        if kv is not None and rows.decode(kv.value, NodeRow).nonce_sha256 != nonce_sha256:
            kv = await self._freed(kv)
        if kv is None:
            node_id = take_ids(self._core.etcd, "node")
            row = NodeRow(FORMAT, (await node_id)[0], nonce_sha256, "", "", "")
            with contextlib.suppress(OutcomeUnknown):  # read below
                await self._core.etcd.txn([create_equals(key, 0)], [put(key, rows.encode(row))], [get(key)])
            kv = await self._core.etcd.get(key)
            if kv is None:
                raise Overloaded(f"the row of node {request.name} did not stay: repeat")
        row = rows.decode(kv.value, NodeRow)
        if row.nonce_sha256 != nonce_sha256:
            raise Conflict(
                f"another node is called {request.name!r}: choose another name, or bring its state folder; if it is "
                "lost for good, `copypool restore node` and then `copypool delete volume` for each of its volumes free "
                "the name"
            )
        return row

    async def _freed(self, kv: KeyValue) -> KeyValue | None:
        """Take the row of a node away that has neither a session nor a volume; the row when it stays.

        A volume is claimed under a session alone: while there is none, none can be added.
        """
        row = rows.decode(kv.value, NodeRow)
        if not row.url:
            return kv  # it has joined a moment ago
        session = keys.session(row.id)
        found = await self._core.etcd.txn([], [get(session)])
        await self._core.caught_up(found.revision, FACT_TIMEOUT_S)
        if found.responses[0] or self._core.view.volumes_by_node.get(row.id):
            return kv
        with contextlib.suppress(OutcomeUnknown):  # read by the caller
            await self._core.etcd.txn(
                [mod_equals(kv.key, kv.mod_revision), create_equals(session, 0)], [delete(kv.key)]
            )
        return await self._core.etcd.get(kv.key)

    async def register(self, request: RegisterRequest) -> Registered:
        """Start a session, or recognise the process's own. A crashed process's session is taken over at once.

        When it returns, no commit of an earlier epoch of this node can land any more.

        Raises:
            NotFound: the node has not joined.
            Overloaded: processes of this node register against each other.
        """
        await self._core.wait_for(lambda view: request.node_id in view.nodes_by_id, FACT_TIMEOUT_S)
        name = self._core.view.nodes_by_id[request.node_id].name
        key, node_key = keys.session(request.node_id), keys.named(keys.NODE, name)
        lease = 0
        for _ in range(ROUNDS_MAX):
            found = await self._core.etcd.txn([], [get(key), get(node_key)])
            session, node = found.responses
            if not node:
                raise NotFound(f"there is no node {request.node_id}: it has to join again")
            if session:
                known = rows.decode(session[0].value, SessionRow)
                if known.nonce == request.nonce:
                    return Registered(session[0].mod_revision, self._ttl_s, known.lease)
            lease = lease or await self._core.etcd.lease_grant(self._ttl_s)
            row = SessionRow(FORMAT, lease, request.nonce, request.url, self._core.now_ms())
            compares = [mod_equals(key, session[0].mod_revision if session else 0)]
            ops = [put(key, rows.encode(row), lease)]
            described = _described(node[0], request)
            if described is not None:
                compares.append(mod_equals(node_key, node[0].mod_revision))
                ops.append(put(node_key, rows.encode(described)))
            try:
                answer = await self._core.etcd.txn(compares, ops, [get(key)])
            except OutcomeUnknown:
                continue  # the nonce tells
            if answer.succeeded:
                return Registered(answer.revision, self._ttl_s, lease)
        raise Overloaded(f"node {request.node_id} registers more than once at a time: is its state folder used twice?")

    async def renew(self, node_id: int, epoch: int) -> bool:
        """Renew the lease of this epoch's session; False when that session is over."""
        session = self._core.view.sessions.get(node_id)
        if session is not None and session.mod_revision == epoch:
            lease = session.row.lease
        else:
            kv = await self._core.etcd.get(keys.session(node_id))
            if kv is None or kv.mod_revision != epoch:
                return False
            lease = rows.decode(kv.value, SessionRow).lease
        return await self._core.etcd.lease_keep_alive(lease) > 0

    # -- volumes -----------------------------------------------------------------------------------
    async def mount(self, request: MountRequest) -> tuple[VolumeRow, int]:
        """Claim a volume for a node; its row and the catalog's revision. The pool is made at its first volume.

        A repeated claim is known by its nonce, or by the session that made it. A row whose epoch is below the claim's
        says that the catalog is older than the volume: the node has it mounted, for reading alone.

        Raises:
            Conflict: a clone, a rolled-back disk, or a volume that is not what its label says.
            Fenced: the session is over.
        """
        check_name(request.name, "volume name")
        pool = (await ensure_pool(self._core.etcd, check_name(request.pool, "pool name"), request.pool_type))[0].id
        key = keys.named(keys.VOLUME, request.name)
        guard = session_guard(request.node_id, request.epoch)
        reads = [get(guard.compare.key), get(key)]
        volume_id = 0
        for _ in range(ROUNDS_MAX):
            found = await self._core.etcd.txn([], reads)
            check_guards([guard], found.responses[:1])
            compares = [guard.compare]
            kv = found.responses[1][0] if found.responses[1] else None
            known = rows.decode(kv.value, VolumeRow) if kv is not None else None
            if known is not None:
                if _is_repeat(known, request):
                    if known.session == request.epoch:
                        return known, found.revision
                    row = replace(known, session=request.epoch)
                else:
                    row = _claimed(known, request, pool)
                    compares += await self._holder_gone(known, request)
            else:
                volume_id = volume_id or (await take_ids(self._core.etcd, "volume"))[0]
                row = _first_claim(volume_id, request, pool)
            compares.append(mod_equals(key, kv.mod_revision if kv is not None else 0))
            try:
                answer = await self._core.etcd.txn(compares, [put(key, rows.encode(row))], reads)
            except OutcomeUnknown:
                continue  # the claim tells
            if answer.succeeded:
                return row, answer.revision
        raise Overloaded(f"volume {request.name} changes too fast: repeat")

    async def _holder_gone(self, row: VolumeRow, request: MountRequest) -> list[Compare]:
        """Compares that no other node holds the volume now: a clone must not take it from the disk that is in use."""
        if row.node == request.node_id or not row.session:
            return []
        key = keys.session(row.node)
        session = await self._core.etcd.get(key)
        revision = session.mod_revision if session is not None else 0
        if revision == row.session:
            raise Conflict(
                f"volume {request.name!r} is mounted by node {row.node}: this is a clone, "
                "or its disk was moved and that node has to be restarted without it"
            )
        return [mod_equals(key, revision)]

    # -- coordinators ------------------------------------------------------------------------------
    async def announce(self, url: str) -> None:
        """Put this coordinator's leased row and keep it until `close`."""
        await self._put_own(url)
        if self._own is None:
            self._own = asyncio.create_task(self._keep_own(url), name="coordinator session")

    async def close(self) -> None:
        """Give this coordinator's session up."""
        if self._own is not None:
            self._own.cancel()
            await asyncio.wait([self._own])
            with contextlib.suppress(CopypoolError, TimeoutError):
                async with asyncio.timeout(2.0):
                    await self._core.etcd.lease_revoke(self._own_lease)

    async def _put_own(self, url: str) -> None:
        self._own_lease = await self._core.etcd.lease_grant(self._ttl_s)
        row = CoordinatorRow(FORMAT, url, self._core.now_ms())
        key = keys.named(keys.COORDINATOR, self._core.name)
        await self._core.etcd.txn([], [put(key, rows.encode(row), self._own_lease)])

    async def _keep_own(self, url: str) -> None:
        while True:
            await asyncio.sleep(self._ttl_s / 3)
            try:
                if await self._core.etcd.lease_keep_alive(self._own_lease) == 0:
                    await self._put_own(url)
            except (CatalogDown, Fenced, OutcomeUnknown) as error:
                log.warning("this coordinator's session: %s", error.message)


def _described(kv: KeyValue, request: RegisterRequest) -> NodeRow | None:
    """The node's row with what the process says of itself; None when that is what it says already."""
    row = rows.decode(kv.value, NodeRow)
    described = replace(returned(row), url=request.url, zone=request.zone, host=request.host)
    return None if described == row else described


def _is_repeat(row: VolumeRow, request: MountRequest) -> bool:
    """Whether the row shows this very claim."""
    if (row.uuid, row.node, row.epoch) != (request.uuid, request.node_id, request.label_epoch):
        return False
    return row.session == request.epoch or (request.nonce != b"" and row.claim == request.nonce)


def _claimed(row: VolumeRow, request: MountRequest, pool: int) -> VolumeRow:
    if not row.uuid:
        return _claimed_first(row, request, pool)
    if row.uuid != request.uuid:
        raise Conflict(f"volume {request.name!r} is another disk: its label has another uuid")
    if row.pool != pool:
        raise Conflict(f"volume {request.name!r} is in another pool than its label says")
    if request.label_epoch > row.epoch + 1:
        # Some catalog has confirmed a later mount than this one knows: this one went back. The disk is let in, for what
        # it holds can be read; its claim is not taken down, so that the catalog which knows it finds it as it left it.
        return replace(row, node=request.node_id, session=request.epoch)
    if request.label_epoch != row.epoch + 1:
        raise Conflict(
            f"volume {request.name!r} is claimed with epoch {request.label_epoch}, the catalog has {row.epoch}: "
            "a clone, or a disk that was rolled back"
        )
    return replace(
        row, node=request.node_id, epoch=request.label_epoch, session=request.epoch, claim=request.nonce
    )  # fmt: skip


def _claimed_first(row: VolumeRow, request: MountRequest, pool: int) -> VolumeRow:
    """The row of a volume that was defined and is mounted for the first time: what was set stays."""
    if row.pool != pool:
        raise Conflict(f"volume {request.name!r} is defined in another pool than its label says")
    if row.node and row.node != request.node_id:
        raise Conflict(f"volume {request.name!r} is defined for another node")
    first = _first_claim(row.id, request, pool)
    return replace(
        first,
        access=row.access,
        location_text=row.location_text,
        limit_bytes=row.limit_bytes,
        access_since_ms=row.access_since_ms,
    )


def _first_claim(volume_id: int, request: MountRequest, pool: int) -> VolumeRow:
    if request.label_epoch != 1:
        raise Conflict(
            f"volume {request.name!r} was mounted {request.label_epoch - 1} times, but this catalog does not know it: "
            "it was taken out (`copypool delete volume`), or this is an older or another catalog. To use the disk of "
            "one that was taken out, empty it and give it to the node under a new name"
        )
    return VolumeRow(
        FORMAT,
        volume_id,
        request.uuid,
        pool,
        request.node_id,
        request.label_epoch,
        "readwrite",
        session=request.epoch,
        claim=request.nonce,
    )
