"""Wall clocks that jump: by libfaketime, in processes that were started with a clock of their own."""

from __future__ import annotations

from dataclasses import dataclass
from http.client import HTTPException

from drills.cluster import DrillCluster

SLACK_S = 60.0


@dataclass(slots=True)
class Stepped:
    """A process's wall clock jumps, and jumps back."""

    name: str
    ahead_s: int

    async def inject(self, cluster: DrillCluster) -> None:
        await cluster.do(cluster.containers.set_clock, self.name, self.ahead_s)

    async def felt(self, cluster: DrillCluster) -> bool:
        """Its answers show the other time; without an answer nothing was felt."""
        try:
            ahead_s = await cluster.do(cluster.containers.ahead_s, self.name)
        except (OSError, HTTPException):
            return False
        return abs(ahead_s - self.ahead_s) < SLACK_S

    async def heal(self, cluster: DrillCluster) -> None:
        await cluster.do(cluster.containers.set_clock, self.name, 0)
        await cluster.ready(self.name)


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
