"""kill -9 of any process under load: what was acknowledged is there (invariant 1), what was not is not half there."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from copypool import Client
from kit.cluster import QUICK, RealCluster, real_cluster, until
from kit.workload import NAMESPACE, Writers, all_read_back, working


async def leader_of(client: Client) -> str:
    return (await client.status()).leader


@pytest.mark.parametrize("victim", ["node1", "node3", "coordinator1", "leader", "etcd1"])
async def test_no_acknowledged_file_is_lost(cluster: RealCluster, client: Client, victim: str) -> None:
    writers = Writers(client, f"kill/{victim}")
    async with working(writers, count=8):
        await until(lambda: writers.acked_beyond(100), "writers are at work", within_s=60)
        name = (
            await until(lambda: leader_of(client), "there is a leader", within_s=60) if victim == "leader" else victim
        )
        await cluster.kill(name)
        at_kill = len(writers.acked)
        if victim == "etcd1":  # the only member: no write can be acknowledged without it
            await cluster.start(name)
        await until(lambda: writers.acked_beyond(at_kill + 100), f"writes go on after the loss of {name}", within_s=45)
        await cluster.start(name)
    assert await all_read_back(client, writers.acked) == []

    # Nothing half-visible: what is listed can be read, also the files whose outcome nobody told the writers.
    listed = [entry.path async for entry in client.list(NAMESPACE, f"kill/{victim}/")]
    assert set(writers.acked) <= set(listed)
    for path in set(listed) - set(writers.acked):
        assert (await client.get(NAMESPACE, path)).startswith(path.encode())
    await until(lambda: cluster.is_green(client), "status is green again", within_s=60)


async def test_a_frozen_primary_node_delays_reads_but_fails_none(cluster: RealCluster, client: Client) -> None:
    content = b"still here" * 1000
    stored = [await client.put(NAMESPACE, f"frozen/{n}", content) for n in range(20)]
    await client.wait_copied(timeout_s=60)
    node = stored[0].volumes[0].rpartition("-")[0]
    await cluster.stop(node)
    for n in range(20):
        assert await client.get(NAMESPACE, f"frozen/{n}") == content
    await cluster.cont(node)


async def test_a_leader_that_is_lost_is_replaced(cluster: RealCluster, client: Client) -> None:
    old = await until(lambda: leader_of(client), "there is a leader", within_s=60)
    await cluster.kill(old)

    async def replaced() -> bool:
        return await leader_of(client) not in ("", old)

    await until(replaced, f"{old} is replaced", within_s=60)
    await client.put(NAMESPACE, "led/by-another", b"x")
    await client.wait_copied(timeout_s=60)


async def test_status_is_never_green_while_a_lost_primary_is_not_rebuilt(cluster: RealCluster, client: Client) -> None:
    stored = await client.put(NAMESPACE, "missed/file", b"held by a node that dies" * 1000)
    await client.wait_copied(timeout_s=60)
    await until(lambda: cluster.is_green(client), "status is green", within_s=60)
    node = stored.volumes[0].rpartition("-")[0]
    await cluster.kill(node)

    async def missed() -> bool:
        status = await client.status()
        away = [each.name for each in status.nodes if each.state == "away"]
        if away and status.healthy:
            (segment,) = (await client.stat(NAMESPACE, "missed/file")).segments
            good = {place.node for place in segment.locations if place.pool_type == "primary" and place.state == "good"}
            assert good - {node}, "green, although the only primary is on a node that is away"
            return True
        return False

    await until(missed, "the primary is rebuilt elsewhere", within_s=60)


async def test_a_node_that_is_killed_is_missed_while_its_session_still_lives() -> None:
    """Its session lives so long that the cluster has nothing but its silence to go by."""
    with real_cluster(tuning=msgspec.structs.replace(QUICK, session_ttl_s=20)) as cluster:
        async with cluster.client() as client:
            await until(lambda: cluster.is_green(client), "status is green", within_s=60)
            await cluster.kill("node1")

            async def silent() -> bool:
                status = await client.status()
                states = {each.name: each.state for each in status.nodes}
                assert states["node1"] != "away", "its session has ended"
                return not status.healthy and states["node1"] == "silent"

            await until(silent, "the node is missed", within_s=60)


async def test_all_processes_killed_at_once_lose_nothing_acknowledged(cluster: RealCluster, client: Client) -> None:
    writers = Writers(client, "blackout")
    async with working(writers, count=8):
        await until(lambda: writers.acked_beyond(200), "writers are at work", within_s=60)
        await asyncio.gather(*(cluster.kill(process.name) for process in cluster.plan.processes))
    await cluster.heal()
    assert await all_read_back(client, writers.acked) == []
    await until(lambda: cluster.is_green(client), "status is green again", within_s=60)
