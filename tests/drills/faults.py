"""What can go wrong with processes, and how it ends: small objects that inject a fault and heal it.

A fault's text says all that is needed to repeat it. `inject` returns when the fault is there, `heal` when its cause has
gone and every process serves; what the cluster then has to mend, it mends by itself. `heal` is safe without `inject`.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from drills.cluster import DrillCluster


class Fault(Protocol):
    """Something that goes wrong."""

    async def inject(self, cluster: DrillCluster) -> None:
        """Make it so."""

    async def heal(self, cluster: DrillCluster) -> None:
        """Take the cause away."""


@dataclass(slots=True)
class Killed:
    """kill -9, and a restart on the same disk."""

    name: str

    async def inject(self, cluster: DrillCluster) -> None:
        await cluster.kill(self.name)

    async def heal(self, cluster: DrillCluster) -> None:
        await cluster.start(self.name)


@dataclass(slots=True)
class LeaderKilled:
    """kill -9 of the coordinator that leads."""

    name: str = ""

    async def inject(self, cluster: DrillCluster) -> None:
        self.name = await cluster.leader()
        await cluster.kill(self.name)

    async def heal(self, cluster: DrillCluster) -> None:
        if self.name:
            await cluster.start(self.name)


@dataclass(slots=True)
class EtcdLeaderKilled:
    """kill -9 of the member that leads etcd."""

    name: str = ""

    async def inject(self, cluster: DrillCluster) -> None:
        self.name = (await cluster.etcd_leader()).name
        await cluster.kill(self.name)

    async def heal(self, cluster: DrillCluster) -> None:
        if self.name:
            await cluster.start(self.name)


@dataclass(slots=True)
class Paused:
    """SIGSTOP, and SIGCONT: a zombie, once its lease has run out."""

    names: Sequence[str]

    async def inject(self, cluster: DrillCluster) -> None:
        for name in self.names:
            await cluster.do(cluster.containers.send, name, signal.SIGSTOP)

    async def heal(self, cluster: DrillCluster) -> None:
        for name in self.names:
            await cluster.do(cluster.containers.send, name, signal.SIGCONT)
        await cluster.ready(*self.names)


@dataclass(slots=True)
class Both:
    """Two faults at once; the second is healed first."""

    first: Fault
    second: Fault

    async def inject(self, cluster: DrillCluster) -> None:
        await self.first.inject(cluster)
        await self.second.inject(cluster)

    async def heal(self, cluster: DrillCluster) -> None:
        try:
            await self.second.heal(cluster)
        finally:
            await self.first.heal(cluster)


@dataclass(slots=True)
class RollingRestart:
    """Every process once, one after the other: SIGTERM, start, ready. Nothing is left to heal."""

    order: Sequence[str] = field(default_factory=list)

    async def inject(self, cluster: DrillCluster) -> None:
        for name in self.order or [member.name for member in cluster.layout.members]:
            await cluster.terminate(name)
            await cluster.start(name)

    async def heal(self, cluster: DrillCluster) -> None:
        await cluster.ready(*(member.name for member in cluster.layout.members))


@dataclass(slots=True)
class Blackout:
    """kill -9 of everything at once."""

    async def inject(self, cluster: DrillCluster) -> None:
        await asyncio.gather(*(cluster.kill(member.name) for member in cluster.layout.members))

    async def heal(self, cluster: DrillCluster) -> None:
        await cluster.start(*(member.name for member in cluster.layout.members))
