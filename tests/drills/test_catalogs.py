"""etcd stalls, loses its quorum, forgets, goes back or is empty."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from copypool import Client
from drills import catalogs
from drills.catalogs import Compacted, LeaderMoved, QuorumLost
from drills.cluster import DrillCluster
from drills.faults import Blackout, Paused
from drills.story import Drill, at_work, go_on, keep, perform, set_of
from drills.table import Row
from kit.checker import check
from kit.cluster import until
from kit.history import History

STALLED_S = 12.0  #: longer than every lease, A12
NEWER_OPERATIONS = 1200
OLDER_S = 20.0  #: what a catalog of the past is given to do harm in

DRILLS = [
    Drill("etcd leader moved", LeaderMoved(), 4.0),
    Drill("compaction past a sleeping coordinator", Compacted("coordinator1"), STALLED_S),
    Drill(
        "etcd stalled beyond every lease",
        Paused(catalogs.MEMBERS),
        STALLED_S,
        reads_fail_max=None,
        writes_fail_max=None,
        short=True,
    ),
    Drill("etcd quorum lost and back", QuorumLost(), STALLED_S, reads_fail_max=None, writes_fail_max=None),
    Drill("everything killed at once", Blackout(), 0.0, reads_fail_max=None, writes_fail_max=None),
]


@pytest.mark.parametrize("drill", set_of(DRILLS))
async def test_catalogs(shared_cluster: DrillCluster, record: Callable[[Row], None], drill: Drill) -> None:
    record(await perform(shared_cluster, drill))


@pytest.mark.parametrize("past", ["older", "empty"])
async def test_a_catalog_of_the_past_deletes_nothing(shared_cluster: DrillCluster, past: str) -> None:
    """A3: a snapshot, or nothing at all, in etcd's place: no extent file goes or shrinks, and all is back after."""
    cluster = shared_cluster
    everything = [member.name for member in cluster.layout.members if member.kind != "etcd"]
    async with cluster.client() as client:
        await cluster.acknowledge(client, "copy", "fail")
        history = History()
        await some_work(client, f"past-{past}", history, 150, seed=1)
        if past == "older":
            await catalogs.keep(cluster, "older")
        # Far ahead: a catalog of the past that goes on counting must not overtake this one meanwhile.
        await some_work(client, f"past-{past}", history, NEWER_OPERATIONS, seed=2)
        await cluster.green(client, "green before the catalog goes back")
    before = await cluster.do(extents, cluster)
    await catalogs.put_in_place(cluster, past, aside="newer")
    await asyncio.sleep(OLDER_S / 2)
    for name in everything:  # and once more for processes that start under it
        await cluster.kill(name)
        await cluster.do(cluster.containers.start, name)
    if past == "older":
        await until(lambda: in_safe_mode(cluster), "volumes are in safe mode, and status says so", within_s=60)
    await asyncio.sleep(OLDER_S / 2)
    meanwhile = await cluster.do(extents, cluster)
    shrunk = {name: (size, meanwhile.get(name)) for name, size in before.items() if meanwhile.get(name, -1) < size}
    assert not shrunk, f"the catalog of the past took data away: {shrunk}"

    await catalogs.put_in_place(cluster, "newer", aside="wrong")
    for name in everything:
        await cluster.kill(name)
    await cluster.start(*everything)
    async with cluster.client() as client:
        await cluster.green(client, "green under the newest catalog")
        async with at_work(client, f"past-{past}", seed=3, history=history) as workload:
            await go_on(history, 50, "work goes on")
        await workload.read_everything()
        await cluster.green(client, "green at the end")
    verdict = check(history.operations(), final=True)
    assert verdict.ok, f"{verdict}\n{await cluster.do(keep, history, f'past-{past}')}"


async def some_work(client: Client, name: str, history: History, operations: int, seed: int) -> None:
    """Clients at work for a while; nothing runs when it returns."""
    async with at_work(client, name, seed, history=history):
        await go_on(history, operations, "clients are at work", within_s=120)


def extents(cluster: DrillCluster) -> dict[str, int]:
    """Size of every extent file that has a group in it, by node and name."""
    return {
        f"{node}/{path.name}": path.stat().st_size
        for node, disk in cluster.containers.disks.items()
        for path in disk.extents()
    }


async def in_safe_mode(cluster: DrillCluster) -> bool:
    """Whether status says that volumes do not trust the catalog."""
    async with cluster.client() as client:
        return any("safe mode" in reason for reason in (await client.status()).reasons)
