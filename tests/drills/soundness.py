"""What a drill must leave behind: a cluster that the next one can begin with. Who leaves another one has failed.

Green is not enough: it says where bytes are, not whether somebody can write. So the traces of every fault are looked
for, and files are stored, read and deleted through each coordinator.
"""

from __future__ import annotations

import asyncio

from copypool.protocol.errors import CopypoolError
from drills.clocks import SLACK_S, ahead_s
from drills.cluster import DrillCluster
from drills.layout import NAMESPACE
from drills.networks import in_force
from kit.cluster import until

SOUND_S = 60.0  #: for all of it
READY_S = 20.0
GREEN_S = 30.0  #: the drill has waited for it before
FILES = 8  #: through each coordinator; places are drawn, so that every primary node gets some
PATIENCE_S = 5.0  #: of one write: nothing is there any more that it would have to wait for
_PREFIX = "sound/"
_RUNNING = ("R", "S", "D", "I")


async def sound(cluster: DrillCluster) -> None:
    """Return when a cluster is as a drill found it.

    Raises:
        AssertionError: what is wrong with it.
    """
    try:
        async with asyncio.timeout(SOUND_S):
            traces = await traces_of(cluster)
            assert not traces, f"the drill has left traces: {'; '.join(traces)}"
            # A node that registers anew is up for the cluster before it takes writes.
            names = [member.name for member in cluster.layout.members]
            await cluster.do(cluster.containers.await_ready, names, READY_S)
            async with cluster.client() as client:
                await cluster.green(client, "green after the drill", GREEN_S)
            for coordinator in cluster.layout.of("coordinator"):
                await used(cluster, coordinator.url)
    except RuntimeError as exc:
        raise AssertionError(f"the drill has left a cluster that is not ready: {exc}") from exc
    except TimeoutError as exc:
        raise AssertionError(f"the drill has left a cluster that cannot be looked at within {SOUND_S} s") from exc


async def traces_of(cluster: DrillCluster) -> list[str]:
    """What shows that a fault is still there."""
    found = []
    for member in cluster.layout.members:
        name = member.name
        state = await cluster.do(cluster.containers.process_state, name)
        if state not in _RUNNING:
            found.append(f"{name} does not run (state {state or 'none'!r})")
            continue
        if rules := await in_force(cluster, name):
            found.append(f"packets to {name} are dropped: {rules}")
        if cluster.containers.has_clock(name):
            error_s = await ahead_s(cluster, name)
            if error_s is None or abs(error_s) > SLACK_S:
                found.append(f"the clock of {name} is wrong by {error_s} s")
    return found


async def used(cluster: DrillCluster, coordinator: str) -> None:
    """Store, read and delete files through one coordinator.

    Raises:
        AssertionError: one of the calls failed.
    """
    paths = [f"{_PREFIX}{number}" for number in range(FILES)]
    async with cluster.client([coordinator], PATIENCE_S) as client:

        async def one(path: str) -> None:
            content = path.encode() * 100
            await client.put(NAMESPACE, path, content)
            assert await client.get(NAMESPACE, path) == content, f"{path} is read back as something else"
            await client.delete(NAMESPACE, path)

        async def known() -> bool:
            return bool(await client.nodes())

        await until(known, f"{coordinator} answers", within_s=PATIENCE_S)
        ends = await asyncio.gather(*(one(path) for path in paths), return_exceptions=True)
    failed = [end for end in ends if isinstance(end, BaseException)]
    for end in failed:
        if not isinstance(end, (CopypoolError, AssertionError)):
            raise end
    assert not failed, f"{len(failed)} of {FILES} files cannot be stored, read and deleted: {failed[0]}"
