"""What operators say of nodes that are away: announced maintenance, and that a brake is to be released.

Each change is one compare-and-swap of one row, so it is kept over changes of leader. What follows from it is decided
in `policy`.
"""

from __future__ import annotations

from msgspec.structs import replace

from copypool.protocol.errors import Invalid
from copypool.protocol.policies import MAINTENANCE_MAX_S
from copypool_coordinator import keys
from copypool_coordinator.core import Core, LeaderGuard, leader_guard
from copypool_coordinator.namedrows import change_row
from copypool_coordinator.rows import ClusterRow, NodeRow

FACT_TIMEOUT_S = 5.0


class Absences:
    """Maintenance and the brake of one catalog. Safe to repeat, all of it."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def release_brake(self) -> None:
        """Believe in every absence until now: what was lost before is rebuilt once its grace time is over."""
        now_ms = self._core.now_ms()
        _, revision = await change_row(
            self._core,
            keys.CLUSTER_ROW,
            ClusterRow,
            lambda row: None if row.brake_released_ms >= now_ms else replace(row, brake_released_ms=now_ms),
            "cluster",
        )
        await self._core.caught_up(revision, FACT_TIMEOUT_S)

    async def set_maintenance(self, node: str, for_s: int) -> tuple[NodeRow, bool]:
        """Announce that a node will be away for this long from now on; 0 ends it. Kept over changes of leader.

        The row, and whether it was changed: ending what has ended changes nothing.

        Raises:
            NotFound, Invalid: there is no such node, or the time is out of bounds.
        """
        if not 0 <= for_s <= MAINTENANCE_MAX_S:
            raise Invalid(
                f"maintenance lasts 1 s to {MAINTENANCE_MAX_S} s: it ends by itself, so that it is not forgotten"
            )
        now_ms = self._core.now_ms()
        until_ms = now_ms + for_s * 1000 if for_s else 0
        changed = False

        def change(row: NodeRow) -> NodeRow | None:
            nonlocal changed
            changed = bool(for_s) or row.maintenance_until_ms > now_ms
            return replace(row, maintenance_until_ms=until_ms) if changed else None

        row, revision = await change_row(self._core, keys.named(keys.NODE, node), NodeRow, change, f"node {node!r}")
        await self._core.caught_up(revision, FACT_TIMEOUT_S)
        return row, changed

    async def end_maintenances(self, leader: LeaderGuard) -> list[str]:
        """Note that maintenances have run out; the nodes of which this is told for the first time. Safe to repeat.

        The time itself stays in the row: the grace time runs from it.

        Raises:
            NotLeader: the term is over.
        """
        now_ms = self._core.now_ms()
        told = []
        for name in [entry.name for entry in self._core.view.nodes.values() if _is_news(entry.row, now_ms)]:
            news = False

            def noted(row: NodeRow) -> NodeRow | None:
                nonlocal news
                news = _is_news(row, now_ms)  # memory may lag behind what was told a moment ago
                return replace(row, maintenance_told_ms=row.maintenance_until_ms) if news else None

            key = keys.named(keys.NODE, name)
            await change_row(self._core, key, NodeRow, noted, f"node {name!r}", [leader_guard(leader)])
            if news:
                told.append(name)
        return told


def _is_news(row: NodeRow, now_ms: int) -> bool:
    return row.maintenance_told_ms != row.maintenance_until_ms and 0 < row.maintenance_until_ms <= now_ms
