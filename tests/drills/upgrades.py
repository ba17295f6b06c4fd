"""Replacing the release of running members, one after the other, as helm/runbooks/upgrade.md does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from drills.cluster import DrillCluster
from drills.layout import CONF, Layout
from drills.releases import Release

ANNOUNCED_S = 120  #: a node that is replaced is back after this time at the latest
TURN_S = 60  #: it waits so long for others that stopped before it
_STOP = "copypool-node-stop"
OLDER = "older release"


def upgrade_order(layout: Layout) -> list[str]:
    """Coordinators, then primary nodes, then copy nodes. etcd has releases of its own, and is left alone."""
    nodes = layout.of("node")
    ordered = [
        *layout.of("coordinator"),
        *(node for node in nodes if node.pool == "primary"),
        *(node for node in nodes if node.pool != "primary"),
    ]
    return [member.name for member in ordered]


async def replace_member(cluster: DrillCluster, name: str, release: Release) -> None:
    """Stop a member in order, start another release in its place, and wait until that serves.

    Raises:
        RuntimeError: it does not serve in time; with what it said.
    """
    containers = cluster.containers
    is_node = cluster.layout.member(name).kind == "node"
    announced = not is_node or await announce_stop(cluster, name)
    if not announced:
        async with cluster.client() as client:
            await client.policies.maintenance(name, ANNOUNCED_S)
    await cluster.terminate(name)
    await cluster.do(containers.replace, name, release)
    await cluster.ready(name)
    if not announced:
        async with cluster.client() as client:
            await client.policies.maintenance(name, 0)


async def announce_stop(cluster: DrillCluster, name: str) -> bool:
    """Have a node announce its stop, as the chart does; False when its release cannot, or the leader's cannot.

    An administrator's word then does the same.
    """
    containers = cluster.containers
    if not containers.releases[name].has_program(_STOP):
        return False
    leading = containers.releases[await cluster.leader()].has_program(_STOP)
    wait_s = TURN_S if leading else 0  #: an older leader stays where it is
    command = [_STOP, f"--config={CONF}/node.toml", f"--for={ANNOUNCED_S}", f"--wait={wait_s}"]
    code, said = await cluster.do(containers.inside, name, *command)
    if leading:
        assert code == 0, f"{name} could not announce its stop: {said}"
    else:
        assert OLDER in said, f"{name} could not announce its stop, and does not say why: {said}"
    return code == 0


@dataclass(slots=True)
class Replaced:
    """Members run `release` from now on; with `back`, they run that again in the end."""

    release: Release
    names: Sequence[str]
    back: Release | None = None

    async def inject(self, cluster: DrillCluster) -> None:
        for name in self.names:
            await replace_member(cluster, name, self.release)

    async def felt(self, cluster: DrillCluster) -> bool:
        """Their processes run its image."""
        images = {name: await cluster.do(cluster.containers.image, name) for name in self.names}
        return bool(images) and all(
            image == self.release.image(cluster.layout.member(name).kind) for name, image in images.items()
        )

    async def heal(self, cluster: DrillCluster) -> None:
        if self.back is not None:
            for name in self.names:
                if cluster.containers.releases[name] != self.back:
                    await replace_member(cluster, name, self.back)
        await cluster.ready(*(member.name for member in cluster.layout.members))
