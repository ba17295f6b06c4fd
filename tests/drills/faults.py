"""What can go wrong with processes, and how it ends: small objects that inject a fault and heal it.

A fault's text says all that is needed to repeat it. `felt` looks for the fault where it must show, so that a drill
whose fault does not come fails. `heal` returns when the cause has gone and every process serves; what the cluster then
has to mend, it mends by itself. `heal` is safe without `inject`.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

from drills.cluster import DrillCluster
from kit.cluster import until

FELT_S = 30.0  #: within which a fault that was injected must show
_STOPPED = "T"  #: a process's state in /proc after SIGSTOP


class Fault(Protocol):
    """Something that goes wrong."""

    async def inject(self, cluster: DrillCluster) -> None:
        """Make it so."""

    async def felt(self, cluster: DrillCluster) -> bool:
        """Whether it is there now. Changes nothing; may be asked again."""
        ...

    async def heal(self, cluster: DrillCluster) -> None:
        """Take the cause away."""


@asynccontextmanager
async def inflicted(cluster: DrillCluster, fault: Fault) -> AsyncIterator[None]:
    """The fault is there while the block runs, and healed when it is left.

    Raises:
        AssertionError: it was injected, and does not show within `FELT_S`.
    """
    try:
        await fault.inject(cluster)
        await felt(cluster, fault)
        yield
    finally:
        await fault.heal(cluster)


async def felt(cluster: DrillCluster, fault: Fault, within_s: float | None = None) -> None:
    """Wait until a fault that was injected shows; fails when it does not."""
    await until(
        lambda: fault.felt(cluster), f"{fault} is there; without it this drills nothing", within_s=within_s or FELT_S
    )


async def all_down(cluster: DrillCluster, names: Sequence[str]) -> bool:
    """Whether none of these processes runs; False for nobody."""
    pids = [await cluster.do(cluster.containers.pid, name) for name in names]
    return bool(pids) and not any(pids)


@dataclass(slots=True)
class Killed:
    """kill -9, and a restart on the same disk."""

    name: str

    async def inject(self, cluster: DrillCluster) -> None:
        await cluster.kill(self.name)

    async def felt(self, cluster: DrillCluster) -> bool:
        return await all_down(cluster, [self.name])

    async def heal(self, cluster: DrillCluster) -> None:
        await cluster.start(self.name)


@dataclass(slots=True)
class LeaderKilled:
    """kill -9 of the coordinator that leads."""

    name: str = ""

    async def inject(self, cluster: DrillCluster) -> None:
        self.name = await cluster.leader()
        await cluster.kill(self.name)

    async def felt(self, cluster: DrillCluster) -> bool:
        return bool(self.name) and await all_down(cluster, [self.name])

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

    async def felt(self, cluster: DrillCluster) -> bool:
        return bool(self.name) and await all_down(cluster, [self.name])

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

    async def felt(self, cluster: DrillCluster) -> bool:
        states = [await cluster.do(cluster.containers.process_state, name) for name in self.names]
        return bool(states) and all(state == _STOPPED for state in states)

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

    async def felt(self, cluster: DrillCluster) -> bool:
        return await self.first.felt(cluster) and await self.second.felt(cluster)

    async def heal(self, cluster: DrillCluster) -> None:
        try:
            await self.second.heal(cluster)
        finally:
            await self.first.heal(cluster)


@dataclass(slots=True)
class RollingRestart:
    """Every process once, one after the other: SIGTERM, start, ready. Nothing is left to heal."""

    order: Sequence[str] = field(default_factory=list)
    before: dict[str, int] = field(default_factory=dict)  #: process ids, before the first was restarted

    async def inject(self, cluster: DrillCluster) -> None:
        self.before = await self._pids(cluster)
        for name in self.before:
            await cluster.terminate(name)
            await cluster.start(name)

    async def felt(self, cluster: DrillCluster) -> bool:
        now = await self._pids(cluster)
        return bool(self.before) and all(now[name] not in (0, pid) for name, pid in self.before.items())

    async def _pids(self, cluster: DrillCluster) -> dict[str, int]:
        names = self.order or [member.name for member in cluster.layout.members]
        return {name: await cluster.do(cluster.containers.pid, name) for name in names}

    async def heal(self, cluster: DrillCluster) -> None:
        await cluster.ready(*(member.name for member in cluster.layout.members))


@dataclass(slots=True)
class Blackout:
    """kill -9 of everything at once."""

    async def inject(self, cluster: DrillCluster) -> None:
        await asyncio.gather(*(cluster.kill(member.name) for member in cluster.layout.members))

    async def felt(self, cluster: DrillCluster) -> bool:
        return await all_down(cluster, [member.name for member in cluster.layout.members])

    async def heal(self, cluster: DrillCluster) -> None:
        await cluster.start(*(member.name for member in cluster.layout.members))
