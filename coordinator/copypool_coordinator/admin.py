"""First rows, tokens, what the leader notes of nodes, and who leads."""

from __future__ import annotations

from msgspec.structs import replace

from copypool.protocol.api import NamespaceSpec
from copypool.protocol.errors import BrokenInvariant, Conflict, NotFound, OutcomeUnknown
from copypool_coordinator import keys, rows
from copypool_coordinator.core import Core, LeaderGuard, leader_guard
from copypool_coordinator.etcd import create_equals, delete, get, put
from copypool_coordinator.namedrows import change_row, ensure_row
from copypool_coordinator.policies import Policies
from copypool_coordinator.pools import ensure_pool
from copypool_coordinator.rows import FORMAT, ClockRow, ClusterRow, LeaderRow, NodeRow, PoolRow, TokenRow

FACT_TIMEOUT_S = 5.0


class Admin:
    """Administration of one catalog."""

    def __init__(self, core: Core, policies: Policies) -> None:
        self._core = core
        self._policies = policies

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
        copies, _ = await ensure_pool(etcd, copy_pool, "copy")
        if await etcd.get(keys.named(keys.NAMESPACE, namespace)) is None:
            await change_row(
                self._core,
                keys.named(keys.POOL, primary_pool),
                PoolRow,
                lambda row: None if row.copy_pools else replace(row, copy_pools=[copies.id]),
                f"pool {primary_pool!r}",
            )
            await self._policies.create_namespace(NamespaceSpec(namespace, primary_pool, [copy_pool]))
        await self._core.caught_up(kv.mod_revision, FACT_TIMEOUT_S)
        return cluster.id

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

    # -- nodes -------------------------------------------------------------------------------------
    async def set_node_away(self, node_id: int, away_since_ms: int, leader: LeaderGuard) -> None:
        """Note since when a node is away; 0: it is back.

        Raises:
            NotLeader: the term is over.
        """
        await self._core.wait_for(lambda view: node_id in view.nodes_by_id, FACT_TIMEOUT_S)
        key = keys.named(keys.NODE, self._core.view.nodes_by_id[node_id].name)

        def changed(row: NodeRow) -> NodeRow | None:
            return None if row.away_since_ms == away_since_ms else replace(row, away_since_ms=away_since_ms)

        await change_row(self._core, key, NodeRow, changed, f"node {node_id}", [leader_guard(leader)])

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
        row = ClockRow(FORMAT, self._core.clock.to_write_ms(leader.term), worked_ms, trouble)
        answer = await self._core.etcd.txn(
            [guard.compare], [put(keys.CLOCK, rows.encode(row))], [get(guard.compare.key)]
        )
        if not answer.succeeded:
            raise guard.error
        return answer.revision

    async def resign(self, leader: LeaderGuard) -> None:
        """Delete the leader key if it is still this term's. Safe to repeat."""
        await self._core.etcd.txn([leader.compare()], [delete(keys.LEADER)], [get(keys.LEADER)])
