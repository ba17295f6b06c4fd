"""Wall clocks that jump: by libfaketime, in processes that were started with a clock of their own."""

from __future__ import annotations

from dataclasses import dataclass
from http.client import HTTPException

from drills.cluster import DrillCluster
from kit.cluster import until

HEALED_S = 10.0
SLACK_S = 60.0  #: no step is as small, and no two answers lie so far apart


async def ahead_s(cluster: DrillCluster, name: str) -> float | None:
    """How far a member's wall clock is ahead of this machine's; None without an answer."""
    try:
        return await cluster.do(cluster.containers.ahead_s, name)
    except (OSError, HTTPException):
        return None


@dataclass(slots=True)
class Stepped:
    """A process's wall clock jumps, and jumps back."""

    name: str
    ahead_s: int

    async def inject(self, cluster: DrillCluster) -> None:
        await cluster.do(cluster.containers.set_clock, self.name, self.ahead_s)

    async def felt(self, cluster: DrillCluster) -> bool:
        """Its answers show the other time; without an answer nothing was felt."""
        return await self._is_ahead(cluster, self.ahead_s)

    async def _is_ahead(self, cluster: DrillCluster, by_s: int) -> bool:
        found_s = await ahead_s(cluster, self.name)
        return found_s is not None and abs(found_s - by_s) < SLACK_S

    async def heal(self, cluster: DrillCluster) -> None:
        await cluster.do(cluster.containers.set_clock, self.name, 0)
        await cluster.ready(self.name)
        await until(lambda: self._is_ahead(cluster, 0), f"the clock of {self.name} is right again", within_s=HEALED_S)


@dataclass(slots=True)
class LeaderStepped:
    """The wall clock of the coordinator that leads jumps, and jumps back."""

    ahead_s: int
    stepped: Stepped | None = None

    async def inject(self, cluster: DrillCluster) -> None:
        self.stepped = Stepped(await cluster.leader(), self.ahead_s)
        await self.stepped.inject(cluster)

    async def felt(self, cluster: DrillCluster) -> bool:
        return self.stepped is not None and await self.stepped.felt(cluster)

    async def heal(self, cluster: DrillCluster) -> None:
        if self.stepped is not None:
            await self.stepped.heal(cluster)
