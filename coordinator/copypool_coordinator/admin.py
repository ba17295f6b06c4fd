"""What people and the leader set: first rows, namespaces, tokens, access modes, and who leads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from copypool.protocol.api import AccessMode, AckRule, NamespaceInfo, NamespaceSpec, PoolType
from copypool.protocol.errors import BrokenInvariant, Conflict, Invalid, NotFound, OutcomeUnknown, Overloaded
from copypool.protocol.names import check_name
from copypool_coordinator import keys, locations, rows
from copypool_coordinator.changing import Change, Seen
from copypool_coordinator.core import ROUNDS_MAX, Core, Guard, LeaderGuard, check_guards, leader_guard
from copypool_coordinator.etcd import create_equals, delete, get, mod_equals, put
from copypool_coordinator.extents import Extents
from copypool_coordinator.ids import take_ids
from copypool_coordinator.pools import ensure_class, ensure_pool, ensure_row
from copypool_coordinator.rows import (
    FORMAT,
    ClassRow,
    ClockRow,
    ClusterRow,
    LeaderRow,
    NamespaceRow,
    NodeRow,
    PoolRow,
    R,
    TokenRow,
    VolumeRow,
)

FACT_TIMEOUT_S = 5.0


class Admin:
    """Administration of one catalog."""

    def __init__(self, core: Core, extents: Extents) -> None:
        self._core = core
        self._extents = extents

    async def bootstrap(self, cluster_id: bytes, *, primary_pool: str, copy_pool: str, namespace: str) -> bytes:
        """Make the rows of an empty catalog that are missing; the cluster's id.

        Raises:
            BrokenInvariant: the catalog is of a newer format than this program knows.
        """
        etcd = self._core.etcd
        answer = await etcd.txn(
            [create_equals(keys.FORMAT, 0)],
            [put(keys.FORMAT, b"%d" % FORMAT), get(keys.FORMAT)],
            [get(keys.FORMAT)],
        )
        found = int(answer.responses[-1][0].value)
        if found > FORMAT:
            raise BrokenInvariant(f"the catalog has format {found}, this program knows {FORMAT}: run a newer one")
        cluster, kv = await ensure_row(etcd, keys.CLUSTER_ROW, ClusterRow(FORMAT, cluster_id, self._core.now_ms()))
        await ensure_pool(etcd, primary_pool, "primary")
        await ensure_pool(etcd, copy_pool, "copy")
        if await etcd.get(keys.named(keys.NAMESPACE, namespace)) is None:
            await self.create_namespace(NamespaceSpec(namespace, primary_pool, [copy_pool]))
        await self._core.caught_up(kv.mod_revision, FACT_TIMEOUT_S)
        return cluster.id

    # -- policy ------------------------------------------------------------------------------------
    async def create_pool(self, name: str, pool_type: PoolType) -> PoolRow:
        """See `pools.ensure_pool`."""
        return await ensure_pool(self._core.etcd, check_name(name, "pool name"), pool_type)

    async def ensure_class(self, primary_pool: int, copy_pools: Sequence[int], ack: AckRule) -> int:
        """See `pools.ensure_class`."""
        return (await ensure_class(self._core.etcd, primary_pool, copy_pools, ack)).id

    async def create_namespace(self, spec: NamespaceSpec) -> NamespaceInfo:
        """Make a namespace, whose class is made with it.

        Raises:
            Conflict: there is one of this name with another policy.
            NotFound, Invalid: a pool is not there, or not of the type that it is used as.
        """
        etcd = self._core.etcd
        key = keys.named(keys.NAMESPACE, check_name(spec.name, "namespace name"))
        primary = await self._pool(spec.primary_pool, "primary")
        copies = [await self._pool(name, "copy") for name in spec.copy_pools]
        wanted: ClassRow = await ensure_class(etcd, primary.id, [pool.id for pool in copies], spec.ack)
        kv = await etcd.get(key)
        if kv is not None:
            row = rows.decode(kv.value, NamespaceRow)
        else:
            row, kv = await ensure_row(
                etcd, key, NamespaceRow(FORMAT, (await take_ids(etcd, "namespace"))[0], wanted.id)
            )
        if row.class_id != wanted.id or row.state != "live":
            raise Conflict(f"there is a namespace {spec.name!r} with another policy")
        await self._core.caught_up(kv.mod_revision, FACT_TIMEOUT_S)
        return NamespaceInfo(spec.name, row.id, spec.primary_pool, list(spec.copy_pools), spec.ack)

    async def _pool(self, name: str, pool_type: PoolType) -> PoolRow:
        kv = await self._core.etcd.get(keys.named(keys.POOL, name))
        if kv is None:
            raise NotFound(f"there is no pool {name!r}")
        row = rows.decode(kv.value, PoolRow)
        if row.type != pool_type:
            raise Invalid(f"the pool {name!r} is a {row.type} pool, not a {pool_type} pool")
        return row

    # -- tokens ------------------------------------------------------------------------------------
    async def create_token(self, token_sha256: bytes, row: TokenRow) -> None:
        """Store a token under its hash; this coordinator honours it when the call returns.

        Raises:
            Conflict: the name is taken.
        """
        if any(known.row.name == row.name for known in self._core.view.tokens.values()):
            raise Conflict(f"there is a token {row.name!r}")
        stored, kv = await ensure_row(self._core.etcd, keys.token(token_sha256), row)
        if stored != row:
            raise Conflict(f"there is a token {stored.name!r} with this secret")
        await self._core.caught_up(kv.mod_revision, FACT_TIMEOUT_S)

    async def revoke_token(self, name: str) -> None:
        """Delete every token of this name; effective here when it returns, elsewhere within the mirror's lag.

        Raises:
            NotFound: there is none.
        """
        hashes = [sha256 for sha256, known in self._core.view.tokens.items() if known.row.name == name]
        if not hashes:
            raise NotFound(f"there is no token {name!r}")
        for sha256 in hashes:
            await self._core.etcd.txn([], [delete(keys.token(sha256))])
        await self._core.wait_for(lambda view: not view.tokens.keys() & set(hashes), FACT_TIMEOUT_S)

    # -- volumes and nodes -------------------------------------------------------------------------
    async def set_volume_access(self, name: str, access: AccessMode) -> VolumeRow:
        """Set an access mode. When it returns, nothing more is committed on a volume that may not be written.

        New extents compare the volume's row; the open ones are sealed here (A10).
        """
        key = keys.named(keys.VOLUME, name)

        def changed(row: VolumeRow) -> VolumeRow | None:
            return None if row.access == access else replace(row, access=access)

        row, revision = await self._change(key, VolumeRow, changed, f"volume {name!r}", [])
        if access != "readwrite":
            await self._core.caught_up(revision, FACT_TIMEOUT_S)
            opened = list(self._core.view.open_by_volume[row.id])
            async with asyncio.TaskGroup() as group:
                for extent in opened:
                    group.create_task(self._end(extent))
        return row

    async def _end(self, extent: int) -> None:
        now_ms = self._core.now_ms()

        def decide(seen: Seen) -> Change[None]:
            if seen.open is None:
                return Change(None)
            return Change(None, locations.sealed(seen.row, seen.open, now_ms), seals=True)

        await self._extents.rows.change(extent, decide, [])

    async def set_node_away(self, node_id: int, away_since_ms: int, leader: LeaderGuard) -> None:
        """Note since when a node is away; 0: it is back.

        Raises:
            NotLeader: the term is over.
        """
        await self._core.wait_for(lambda view: node_id in view.nodes_by_id, FACT_TIMEOUT_S)
        key = keys.named(keys.NODE, self._core.view.nodes_by_id[node_id].name)

        def changed(row: NodeRow) -> NodeRow | None:
            return None if row.away_since_ms == away_since_ms else replace(row, away_since_ms=away_since_ms)

        await self._change(key, NodeRow, changed, f"node {node_id}", [leader_guard(leader)])

    async def _change(
        self, key: bytes, kind: type[R], changed: Callable[[R], R | None], what: str, guards: list[Guard]
    ) -> tuple[R, int]:
        """Compare-and-swap on a named row; the row and the revision at which it was written."""
        reads = [*(get(guard.compare.key) for guard in guards), get(key)]
        for _ in range(ROUNDS_MAX):
            found = await self._core.etcd.txn([], reads)
            check_guards(guards, found.responses[:-1])
            if not found.responses[-1]:
                raise NotFound(f"there is no {what}")
            kv = found.responses[-1][0]
            row = changed(rows.decode(kv.value, kind))
            if row is None:
                return rows.decode(kv.value, kind), kv.mod_revision
            compares = [*(guard.compare for guard in guards), mod_equals(key, kv.mod_revision)]
            try:
                answer = await self._core.etcd.txn(compares, [put(key, rows.encode(row))], reads)
            except OutcomeUnknown:
                continue
            if answer.succeeded:
                return row, answer.revision
        raise Overloaded(f"{what} changes too fast: repeat")

    # -- leadership --------------------------------------------------------------------------------
    async def campaign(self, row: LeaderRow, lease: int) -> LeaderGuard | None:
        """Take the leader key under the lease if it is free, or recognise it as taken under this lease."""
        try:
            answer = await self._core.etcd.txn(
                [create_equals(keys.LEADER, 0)], [put(keys.LEADER, rows.encode(row), lease)], [get(keys.LEADER)]
            )
        except OutcomeUnknown:
            kv = await self._core.etcd.get(keys.LEADER)
            return LeaderGuard(kv.create_revision) if kv is not None and kv.lease == lease else None
        if answer.succeeded:
            return LeaderGuard(answer.revision)
        held = answer.responses[0]
        return LeaderGuard(held[0].create_revision) if held and held[0].lease == lease else None

    async def write_clock(self, leader: LeaderGuard, worked_ms: int = 0, trouble: str = "") -> int:
        """Write the clock row, and with it how the controllers are getting on; etcd's revision.

        Raises:
            NotLeader: the term is over.
        """
        guard = leader_guard(leader)
        row = ClockRow(FORMAT, self._core.now_ms(), worked_ms, trouble)
        answer = await self._core.etcd.txn(
            [guard.compare], [put(keys.CLOCK, rows.encode(row))], [get(guard.compare.key)]
        )
        if not answer.succeeded:
            raise guard.error
        return answer.revision

    async def resign(self, leader: LeaderGuard) -> None:
        """Delete the leader key if it is still this term's. Safe to repeat."""
        await self._core.etcd.txn([leader.compare()], [delete(keys.LEADER)], [get(keys.LEADER)])
