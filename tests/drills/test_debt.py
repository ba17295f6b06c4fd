"""Writes acknowledged before they are copied: what only a lost node held is named beforehand, and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from copypool import Client
from copypool.protocol.digests import digest_of, format_digest
from copypool.protocol.errors import CopypoolError, NotFound
from drills import faults
from drills.cluster import DrillCluster
from drills.faults import Both, Killed
from drills.layout import NAMESPACE
from drills.story import at_work, go_on, impatient, keep
from drills.table import Row
from kit.checker import check
from kit.cluster import until
from kit.excuses import Excused
from kit.history import History, Kind, Outcome, availability

LOST_S = 10.0
ASKER = 1000  #: number of the client that asks for what is unavailable


@pytest.mark.short
async def test_what_only_the_lost_node_held(shared_cluster: DrillCluster, record: Callable[[Row], None]) -> None:
    """Both copy nodes are away, so debt grows; then a primary node goes, the copy nodes come back, and it does too."""
    cluster = shared_cluster
    lost, copies = "node1", Both(Killed("node3"), Killed("node4"))
    async with cluster.client() as client:
        await cluster.acknowledge(client, "primary", "continue")
        await cluster.green(client, "green before")
        history = History()
        async with at_work(client, "debt", seed=1, history=history):
            await go_on(history, 100, "clients are at work")
            await copies.inject(cluster)
            await faults.felt(cluster, copies)
            await go_on(history, 200, "debt grows")
        # Nobody writes now: what the debt says is exact.
        excused = await held_only_by(client, lost, "drills/debt/", history.position)
        assert excused, "no file is on the node alone: this drill drilled nothing"
        began_s = history.now_s()
        await cluster.kill(lost)
        await until(lambda: unavailable(client, len(excused)), "status counts what cannot be read", within_s=60)
        await copies.heal(cluster)
        async with at_work(client, "debt", seed=2, history=history) as workload:
            await go_on(history, 100, "work goes on")
            for one in excused:  # each of them is to be told unavailable, if it is still the current version
                await ask_for(client, history, one.path)
            await asyncio.sleep(LOST_S)
            workload.stop()
        status = await client.status()
        assert not status.lost_files
        await cluster.start(lost)
        await cluster.green(client, "green again")
        back = history.position
        green_s = history.now_s()
        async with at_work(client, "debt", seed=3, history=history) as workload:
            await go_on(history, 50, "work goes on")
        await workload.read_everything()
    operations = history.operations()
    verdict = check(operations, final=True, excused=[replace(one, until=back) for one in excused])
    assert verdict.ok, f"{verdict}\n{await cluster.do(keep, history, 'debt')}"
    felt = availability([one for one in operations if not impatient(one)], began_s, green_s)
    name = f"primary node lost with {len(excused)} files that were in debt, rule `primary`"
    record(Row.of(name, felt, green_s - began_s, 0))


async def held_only_by(client: Client, node: str, prefix: str, since: int) -> list[Excused]:
    """The files that have a segment on no other node."""
    found: list[Excused] = []
    async for entry in client.list(NAMESPACE, prefix):
        stat = await client.stat(NAMESPACE, entry.path)
        whole = [
            {place.node for place in segment.locations if place.state == "good" and place.length >= segment.length}
            for segment in stat.segments
        ]
        if {node} in whole:
            found.append(Excused(entry.path, entry.version, entry.digest, since))
    return found


async def ask_for(client: Client, history: History, path: str) -> None:
    """Read a file, as one more client of the workload."""
    number = history.invoke(ASKER, Kind.GET, path)
    try:
        content = await client.get(NAMESPACE, path)
    except NotFound:
        history.complete(number, Outcome.OK)
    except CopypoolError as exc:
        history.complete(number, Outcome.FAILED, error=exc.code, note=exc.message)
    else:
        history.complete(number, Outcome.OK, digest=format_digest(digest_of(content)))


async def unavailable(client: Client, files: int) -> bool:
    """Whether status counts so many files, of all that were ever current and still have bytes there, or more."""
    return (await client.status()).unavailable_files >= files
