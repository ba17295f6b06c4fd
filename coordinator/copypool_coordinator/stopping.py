"""Planned stops of nodes, one after the other: a file's primary and its copy must not be away at once because of them.

Whoever replaces the processes of a cluster (StatefulSets roll side by side, an administrator has two terminals) asks
for each node whether it is its turn. The leader alone answers, one at a time, and writes down what it granted in the
transaction that its term guards; so two grants never miss each other. A grant is announced maintenance that ends by
itself when the node registers again.

A turn protects reads from planned work; it is no lock: nothing waits for it for ever, and who must stop, stops.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from msgspec.structs import replace

from copypool.protocol.errors import Invalid, NotLeader
from copypool.protocol.policies import MAINTENANCE_MAX_S
from copypool_coordinator import keys
from copypool_coordinator.core import Core, LeaderGuard, leader_guard
from copypool_coordinator.namedrows import change_row
from copypool_coordinator.policy import Policy, away_since_ms, patience_over
from copypool_coordinator.rows import NodeRow
from copypool_coordinator.view import ClusterView, Versioned

FACT_TIMEOUT_S = 5.0
#: A node that has just registered is waited for until all its volumes are mounted, and no longer than this: a disk
#: that does not come back must not hold up everybody.
SETTLE_MS = 60_000


def waits_for(view: ClusterView, node_id: int, policy: Policy, now_ms: int) -> list[str]:
    """Names of the nodes that have to be back before this one may stop. Pure.

    That is who stops now, who is away and still waited for, and who has just come back without all its disks.
    """
    return sorted(
        node.name
        for node in view.nodes.values()
        if node.row.id != node_id and view.volumes_by_node.get(node.row.id) and not _settled(view, node, policy, now_ms)
    )


def _settled(view: ClusterView, node: Versioned[NodeRow], policy: Policy, now_ms: int) -> bool:
    session = view.sessions.get(node.row.id)
    if session is None:
        return patience_over(node.row, away_since_ms(view, node.row.id, now_ms), policy.grace_ms, now_ms)
    if session.epoch == node.row.stopping_epoch and now_ms < node.row.stopping_until_ms:
        return False
    if now_ms - session.row.since_ms >= SETTLE_MS:
        return True
    return all(view.volume_mounted(volume) for volume in view.volumes_by_node[node.row.id])


def announced(row: NodeRow, epoch: int, until_ms: int) -> NodeRow:
    """The row of a node that stops now. A longer maintenance that an operator announced stays."""
    return replace(
        row,
        stopping_epoch=epoch,
        stopping_until_ms=until_ms,
        maintenance_until_ms=max(row.maintenance_until_ms, until_ms),
    )


def returned(row: NodeRow) -> NodeRow:
    """The row of a node that registers anew: its own stop is over, and the maintenance that was nothing else."""
    if not row.stopping_epoch:
        return row
    own = row.maintenance_until_ms == row.stopping_until_ms
    return replace(
        row,
        stopping_epoch=0,
        stopping_until_ms=0,
        maintenance_until_ms=0 if own else row.maintenance_until_ms,
    )


class Turns:
    """Answers nodes that want to stop."""

    def __init__(self, core: Core, policy: Policy, leading: Callable[[], LeaderGuard | None]) -> None:
        self._core = core
        self._policy = policy
        self._leading = leading
        self._one_at_a_time = asyncio.Lock()

    async def ask(self, node_id: int, for_s: int, *, anyway: bool) -> list[str]:
        """Announce that a node stops now and is away for at most `for_s`, if it is its turn.

        Empty: it is announced, durably. Else who has to be back first, and nothing was announced; with `anyway` it is
        announced all the same. Safe to repeat.

        Raises:
            NotLeader: another coordinator leads; its details have that one's base URL as `leader`, if it is known.
            Invalid: `for_s` is out of bounds.
        """
        if not 1 <= for_s <= MAINTENANCE_MAX_S:
            raise Invalid(f"a stop is announced for 1 s to {MAINTENANCE_MAX_S} s")
        async with self._one_at_a_time:
            leader = self._leading()
            if leader is None:
                known = self._core.view.leader
                url = known.row.url if known is not None else ""
                raise NotLeader("only the leader tells nodes whose turn it is to stop", leader=url)
            now_ms = self._core.now_ms()
            first = waits_for(self._core.view, node_id, self._policy, now_ms)
            if first and not anyway:
                return first
            await self._announce(node_id, now_ms + for_s * 1000, leader)
            return []

    async def _announce(self, node_id: int, until_ms: int, leader: LeaderGuard) -> None:
        view = self._core.view
        session = view.sessions.get(node_id)
        node = view.nodes_by_id.get(node_id)
        if session is None or node is None:
            return  # it is away already: there is nothing to announce
        _, revision = await change_row(
            self._core,
            keys.named(keys.NODE, node.name),
            NodeRow,
            lambda row: announced(row, session.epoch, until_ms),
            f"node {node.name!r}",
            [leader_guard(leader)],
        )
        await self._core.caught_up(revision, FACT_TIMEOUT_S)
