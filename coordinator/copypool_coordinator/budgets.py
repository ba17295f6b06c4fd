"""Bandwidth budgets of pools, shared out to volumes. Pure.

A pool's budget is for all pulls into it together. Each volume that can take bytes gets an equal share with its node's
next heartbeat, and its node enforces it; so the sum is never above the budget, and below it while some volumes have
nothing to pull. Shares are not lent: a budget protects somebody else's use of the network.
"""

from __future__ import annotations

from copypool_coordinator.view import ClusterView


def pull_share_bytes_s(view: ClusterView, volume_id: int) -> int:
    """How fast this volume may pull; 0: as fast as it can."""
    volume = view.volumes_by_id.get(volume_id)
    pool = None if volume is None else view.pools_by_id.get(volume.row.pool)
    if pool is None or not pool.row.budget_bytes_s:
        return 0
    sharing = sum(
        1
        for each in view.volumes.values()
        if each.row.pool == pool.row.id and each.row.access == "readwrite" and view.node_up(each.row.node)
    )
    return max(1, pool.row.budget_bytes_s // max(1, sharing))
