"""Faults of disks, and what an operator does about them where the cluster cannot do it alone."""

from __future__ import annotations

import errno
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from copypool import Client
from copypool.protocol.processes import ProcessInfo, ProcessRequest
from drills.cluster import DrillCluster
from kit.cluster import until

_MENDED_S = 90.0
OLDER = "older"  #: name of a volume as it was


async def run(client: Client, request: ProcessRequest) -> ProcessInfo:
    """Start a process and follow it to its end."""
    info = await client.operator.start(request)
    async for shown in client.operator.follow(info.id):
        info = shown
    return info


async def well_again(cluster: DrillCluster, node: str) -> None:
    """An operator's word that a node's disk is well, if the cluster had made it read-only."""
    volume = cluster.containers.volumes[node]
    async with cluster.client() as client:
        if (await client.policies.volume(volume)).info.access == "readonly":
            await client.policies.volume_update(volume, access="readwrite")


async def replaced(cluster: DrillCluster, node: str) -> None:
    """What an operator does about a disk whose content is lost: restore it elsewhere, mount an empty one, forget it."""
    lost = cluster.containers.volumes[node]
    await cluster.kill(node)
    async with cluster.client() as client:
        ended = await run(client, ProcessRequest("restore", volume=lost))
        assert ended.state == "done", f"restore of {lost}: {ended}"
        await cluster.do(cluster.containers.new_disk, node)
        await cluster.start(node)
        ended = await run(client, ProcessRequest("delete", volume=lost))
        assert ended.state == "done", f"delete of {lost}: {ended}"


@dataclass(slots=True)
class Full:
    """No byte is free on a node's disk."""

    node: str

    async def inject(self, cluster: DrillCluster) -> None:
        await cluster.do(cluster.containers.disks[self.node].fill)

    async def felt(self, cluster: DrillCluster) -> bool:
        return await cluster.do(cluster.containers.disks[self.node].refusal) == errno.ENOSPC

    async def heal(self, cluster: DrillCluster) -> None:
        await cluster.do(cluster.containers.disks[self.node].free)
        await well_again(cluster, self.node)


async def mounted_anew(cluster: DrillCluster, node: str) -> None:
    """Kill a node, mount its disk again, start it, and say that the disk is well."""
    disk = cluster.containers.disks[node]
    await cluster.kill(node)
    await cluster.do(disk.unmount)
    await cluster.do(disk.mount)
    await cluster.start(node)
    await well_again(cluster, node)


@dataclass(slots=True)
class ReadOnly:
    """A node's file system makes itself read-only, as ext4 does after an error of its own."""

    node: str

    async def inject(self, cluster: DrillCluster) -> None:
        await cluster.do(cluster.containers.disks[self.node].fail_to_read_only)

    async def felt(self, cluster: DrillCluster) -> bool:
        return await cluster.do(cluster.containers.disks[self.node].refusal) == errno.EROFS

    async def heal(self, cluster: DrillCluster) -> None:
        await mounted_anew(cluster, self.node)


@dataclass(slots=True)
class Failing:
    """Every read and write of a node's disk fails (EIO), and what was not fsync'd is gone."""

    node: str

    async def inject(self, cluster: DrillCluster) -> None:
        await cluster.do(cluster.containers.disks[self.node].shut_down)

    async def felt(self, cluster: DrillCluster) -> bool:
        return await cluster.do(cluster.containers.disks[self.node].refusal) == errno.EIO

    async def heal(self, cluster: DrillCluster) -> None:
        await mounted_anew(cluster, self.node)


@dataclass(slots=True)
class Flipped:
    """Bits of extent files are flipped under a running node."""

    node: str
    seed: int
    files: int = 2
    victims: Sequence[str] = field(default_factory=list)

    async def inject(self, cluster: DrillCluster) -> None:
        disk = cluster.containers.disks[self.node]
        self.victims = await cluster.do(disk.flip, random.Random(self.seed), self.files, 3)

    async def felt(self, cluster: DrillCluster) -> bool:
        return bool(self.victims)

    async def heal(self, cluster: DrillCluster) -> None:
        async with cluster.client() as client:
            await run(client, ProcessRequest("audit", volume=cluster.containers.volumes[self.node], fix=True))


@dataclass(slots=True)
class Deleted:
    """Extent files are deleted under a running node, which is then restarted."""

    node: str
    seed: int
    files: int = 2
    victims: Sequence[str] = field(default_factory=list)

    async def inject(self, cluster: DrillCluster) -> None:
        disk = cluster.containers.disks[self.node]
        self.victims = await cluster.do(disk.delete, random.Random(self.seed), self.files)

    async def felt(self, cluster: DrillCluster) -> bool:
        return bool(self.victims)

    async def heal(self, cluster: DrillCluster) -> None:
        await cluster.kill(self.node)
        await cluster.start(self.node)
        await well_again(cluster, self.node)


@dataclass(slots=True)
class Wiped:
    """A node comes back with an empty disk, which it must not take for its volume."""

    node: str

    async def inject(self, cluster: DrillCluster) -> None:
        await cluster.kill(self.node)
        await cluster.do(cluster.containers.disks[self.node].wipe)
        await cluster.do(cluster.containers.start, self.node)

    async def felt(self, cluster: DrillCluster) -> bool:
        return not await cluster.do(cluster.containers.disks[self.node].extents)

    async def heal(self, cluster: DrillCluster) -> None:
        await refused(cluster, self.node)
        await replaced(cluster, self.node)


@dataclass(slots=True)
class Stale:
    """A node comes back with its disk as it was before it had gone on writing there."""

    node: str
    go_on_s: float = 4.0

    async def inject(self, cluster: DrillCluster) -> None:
        disk = cluster.containers.disks[self.node]
        await cluster.kill(self.node)
        await cluster.do(disk.keep, OLDER)
        await cluster.start(self.node)

    async def felt(self, cluster: DrillCluster) -> bool:
        return await cluster.do((cluster.containers.disks[self.node].path / OLDER).is_dir)

    async def heal(self, cluster: DrillCluster) -> None:
        disk = cluster.containers.disks[self.node]
        await cluster.kill(self.node)
        await cluster.do(disk.give_back, OLDER)
        await cluster.do(cluster.containers.start, self.node)
        await refused(cluster, self.node)
        await replaced(cluster, self.node)


async def refused(cluster: DrillCluster, node: str) -> None:
    """Wait until a node has looked at its disk and said that it is not what the catalog knows."""

    async def said() -> bool:
        log = await cluster.do(cluster.containers.log, node, 20)
        return "cannot be used now" in log or "cannot be mounted now" in log

    await until(said, f"{node} refuses the disk", within_s=_MENDED_S)
