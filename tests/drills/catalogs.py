"""Faults of etcd that a healthy etcd never shows: it stalls, forgets, goes back, or is empty."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from drills.cluster import DrillCluster
from drills.faults import Paused, all_down
from kit.cluster import until

MEMBERS = ("etcd1", "etcd2", "etcd3")
#: Revisions between a compaction and the head: etcd 3.4 may go back to a compacted revision when it is killed there.
KEPT_REVISIONS = 50
MOVED_ON_S = 60.0  #: within which there are as many


@dataclass(slots=True)
class LeaderMoved:
    """etcd's leader hands over to another member."""

    before: str = ""  #: who led

    async def inject(self, cluster: DrillCluster) -> None:
        leader = await cluster.etcd_leader()
        self.before = leader.name
        members = (await cluster.ask_etcd(leader, "cluster/member/list"))["members"]
        target = next(each["ID"] for each in members if each["name"] != leader.name)
        await cluster.ask_etcd(leader, "maintenance/transfer-leadership", targetID=target)

    async def felt(self, cluster: DrillCluster) -> bool:
        return bool(self.before) and (await cluster.etcd_leader()).name != self.before

    async def heal(self, cluster: DrillCluster) -> None:
        """Nothing to do."""


@dataclass(slots=True)
class Compacted:
    """etcd forgets all but the newest revisions while a coordinator sleeps: its watch cannot go on where it was."""

    sleeper: str
    slept_at: int = 0  #: etcd's revision when it fell asleep

    async def inject(self, cluster: DrillCluster) -> None:
        await Paused([self.sleeper]).inject(cluster)
        self.slept_at = await head_of(cluster)

    async def felt(self, cluster: DrillCluster) -> bool:
        return await Paused([self.sleeper]).felt(cluster)

    async def heal(self, cluster: DrillCluster) -> None:
        try:
            if self.slept_at:
                await self._compact(cluster)
        finally:
            await Paused([self.sleeper]).heal(cluster)

    async def _compact(self, cluster: DrillCluster) -> None:
        async def unseen() -> int | None:
            revision = await head_of(cluster) - KEPT_REVISIONS
            return revision if revision > self.slept_at else None

        what = f"etcd can forget what {self.sleeper} has not seen; without it this drills nothing"
        revision = await until(unseen, what, within_s=MOVED_ON_S)
        answer = await cluster.ask_etcd(await cluster.etcd_leader(), "kv/compaction", revision=revision, physical=True)
        assert answer, "etcd was not compacted"


async def head_of(cluster: DrillCluster) -> int:
    """etcd's revision."""
    status = await cluster.ask_etcd(await cluster.etcd_leader(), "maintenance/status")
    return int(status["header"]["revision"])


@dataclass(slots=True)
class QuorumLost:
    """Two of three members are killed."""

    names: Sequence[str] = MEMBERS[:2]

    async def inject(self, cluster: DrillCluster) -> None:
        for name in self.names:
            await cluster.kill(name)

    async def felt(self, cluster: DrillCluster) -> bool:
        return await all_down(cluster, self.names)

    async def heal(self, cluster: DrillCluster) -> None:
        await cluster.start(*self.names)


async def stop_all(cluster: DrillCluster) -> None:
    """kill -9 of every member."""
    for name in MEMBERS:
        await cluster.kill(name)


async def keep(cluster: DrillCluster, name: str) -> None:
    """Stop etcd, remember what it has, and start it again."""
    await stop_all(cluster)
    for member in MEMBERS:
        data = cluster.etcd_data(member)
        await cluster.do(_copy, data, data.with_name(name))
    await cluster.start(*MEMBERS)


async def put_in_place(cluster: DrillCluster, name: str, aside: str) -> None:
    """Stop etcd, put its data aside, and start it with what was kept as `name`; empty where nothing was."""
    await stop_all(cluster)
    for member in MEMBERS:
        data = cluster.etcd_data(member)
        await cluster.do(_put_in_place, data, name, aside)
    await cluster.start(*MEMBERS)


def _copy(source: Path, target: Path) -> None:
    """Copy a folder; the processes in the containers are no root, and what is copied must stay theirs."""
    shutil.copytree(source, target)
    for path in (source, *source.rglob("*")):
        owner = path.stat()
        os.chown(target / path.relative_to(source), owner.st_uid, owner.st_gid)


def _put_in_place(data: Path, name: str, aside: str) -> None:
    shutil.rmtree(data.with_name(aside), ignore_errors=True)
    data.rename(data.with_name(aside))
    if data.with_name(name).exists():
        data.with_name(name).rename(data)
