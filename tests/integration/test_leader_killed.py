"""A restore whose leader is killed over and over: the pulls belong to their destinations, so next to nothing is redone.

The pool's budget makes the restore last as long as the kills take. Bytes are counted at the nodes (C8, invariant 7).
"""

from __future__ import annotations

import asyncio
import random
from functools import partial

import pytest

from copypool import Client
from copypool.dev.layout import Sizes
from copypool.protocol.processes import ProcessRequest
from kit.cluster import RealCluster, real_cluster, until
from kit.workload import NAMESPACE, all_read_back

MIB = 1024 * 1024
FILE_BYTES = 32 * MIB
#: For one kill and the election after it (7 s on an idle machine): the restore does not end before the last of them.
KILL_S = 25


async def restored_under_kills(cluster: RealCluster, client: Client, *, size_mib: int, kills: int) -> None:
    """Store, lose the volume of node1, restore it, and kill every leader meanwhile."""
    seed = random.Random(7)
    files = {}
    for number in range(size_mib * MIB // FILE_BYTES):
        files[f"big/{number:03d}"] = content = seed.randbytes(FILE_BYTES)
        await client.put(NAMESPACE, f"big/{number:03d}", content)
    await client.wait_copied(timeout_s=300)
    await until(lambda: cluster.is_green(client), "all is proven", within_s=300)

    await cluster.start("node2")  # the place to rebuild on joins only now, so all of it is on node1
    await cluster.kill("node1")
    held = {volume.name: volume.extents for volume in await client.volumes()}["node1-a"]
    assert held >= len(files) // 2
    slow = await cluster.cli("pool", "update", "primary", "--budget", str(size_mib * MIB // (kills * KILL_S)))
    assert slow.code == 0, slow
    process = (await client.operator.start(ProcessRequest("restore", volume="node1-a"))).id
    before = await cluster.pulled_bytes()
    elections = await elected(client)
    for number in range(kills):
        shown = await client.operator.process(process)
        assert shown.state == "running", f"over after {number} kills, too soon: {shown}"
        leader = await until(lambda: leading(client), "one leads", within_s=60)
        await cluster.kill(leader)
        await cluster.start(leader)
        following = partial(elected_beyond, client, elections + number + 1)
        await until(following, "the next one leads", within_s=60)
    assert (await cluster.cli("pool", "update", "primary", "--budget", "0")).code == 0
    async with asyncio.timeout(300):
        async for shown in client.operator.follow(process):
            ended = shown
    assert ended.state == "done", ended
    assert ended.done_bytes == ended.total_bytes >= size_mib * MIB
    pulled = await cluster.pulled_bytes() - before
    assert pulled < 1.05 * ended.total_bytes, f"{pulled} bytes pulled for {ended.total_bytes}"
    assert await all_read_back(client, files) == []


async def leading(client: Client) -> str:
    """The leader's name."""
    return (await client.status()).leader


async def elected(client: Client) -> int:
    """How many leaders there were: a restarted one may be the next as well."""
    return sum([event.kind == "LeaderElected" async for event in client.events()])


async def elected_beyond(client: Client, count: int) -> bool:
    """Whether there were that many leaders by now."""
    return await elected(client) >= count


async def run(size_mib: int, kills: int) -> None:
    with real_cluster(Sizes(coordinators=2, primary_nodes=2, copy_nodes=1)) as cluster:
        async with cluster.client() as client:
            await cluster.terminate("node2")
            await restored_under_kills(cluster, client, size_mib=size_mib, kills=kills)


async def test_a_restore_whose_leader_is_killed_three_times_redoes_next_to_nothing() -> None:
    await run(size_mib=96, kills=3)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_restore_of_two_gib_whose_leader_is_killed_twenty_times() -> None:
    await run(size_mib=2048, kills=20)
