"""Green only when proven (invariant 8).

What is lost behind the cluster's back is found, told, healed, and only then green again.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from copypool import Client
from copypool.dev.layout import Tuning
from copypool.protocol.api import Event, LocationInfo
from copypool.protocol.insight import LogRequest
from kit.cluster import QUICK, RealCluster, real_cluster, until
from kit.workload import NAMESPACE

#: Everything is read back again within this time, and must be within twice of it.
SCRUB_S = 8


async def node_under_maintenance(cluster: RealCluster, name: str) -> None:
    """It is waited for: nothing is made again elsewhere, so what is missing stays missing until the node is back."""
    announced = await cluster.cli("maintenance", "node", name, "--for", "10m")
    assert announced.code == 0, announced


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[RealCluster]:
    """A cluster whose scrub is so quick that it finds what no reader meets."""
    with real_cluster(tuning=Tuning(QUICK.grace_s, QUICK.session_ttl_s, SCRUB_S, idle_seal_s=2.0)) as cluster:
        yield cluster


async def locations_of(client: Client, path: str) -> tuple[int, dict[str, LocationInfo]]:
    """The extent of a one-segment file, and its good locations by type of pool."""
    (segment,) = (await client.stat(NAMESPACE, path)).segments
    return segment.extent, {each.pool_type: each for each in segment.locations if each.state == "good"}


async def sealed(client: Client, path: str) -> int:
    """The file's extent, once it is sealed and everything is read back."""

    async def proven() -> bool:
        (segment,) = (await client.stat(NAMESPACE, path)).segments
        return segment.sealed and (await client.insight.prove(namespace=NAMESPACE, prefix=path)).proven

    await until(proven, "the extent is sealed and read back", within_s=60)
    (segment,) = (await client.stat(NAMESPACE, path)).segments
    return segment.extent


async def test_a_proof_counts_files_bytes_and_copies() -> None:
    """Nothing is sealed for being idle here, so all bytes stay young: nothing is read back, and nothing is due."""
    with real_cluster(tuning=msgspec.structs.replace(QUICK, idle_seal_s=3600.0)) as cluster:
        async with cluster.client() as client:
            await check_proof(cluster, client)


async def check_proof(cluster: RealCluster, client: Client) -> None:
    body = random.Random(1).randbytes(5_000)
    for number in range(20):
        await client.put(NAMESPACE, f"proof/some/{number:02}", body)
    await client.put(NAMESPACE, "proof/empty", b"")
    await client.put(NAMESPACE, "other", b"x")
    await client.wait_copied(timeout_s=60, namespace=NAMESPACE)

    found = await client.insight.prove(namespace=NAMESPACE, prefix="proof/")
    assert (found.files, found.bytes, found.sound) == (21, 100_000, True)
    assert [(each.count, each.files, each.bytes) for each in found.copies] == [(2, 21, 100_000)]
    assert [(each.pool, each.files, each.bytes, each.missing_bytes) for each in found.pools] == [
        ("primary", 21, 100_000, 0),
        ("copy", 21, 100_000, 0),
    ]
    assert found.young_bytes == 100_000, "open extents: fsync'd and checked, read back by nobody"
    status = await client.status()
    assert status.unverified_bytes >= 100_000
    shown = await cluster.cli("prove", f"{NAMESPACE}/proof/some/", "--json")
    assert shown.code == 0, shown.err
    assert json.loads(shown.out)["coverage"]["files"] == 20

    whole = await client.insight.prove(pool="copy")
    assert whole.sound
    assert whole.files >= 22

    async def counted() -> bool:
        items = (await client.insight.occupancy()).items
        return {each.pool for each in items if each.namespace == NAMESPACE and each.records >= 22} == {
            "primary",
            "copy",
        }

    await until(counted, "the records are counted in both pools", within_s=60)


async def test_every_file_tells_where_it_is_and_why_a_read_goes_there(cluster: RealCluster, client: Client) -> None:
    await client.put(NAMESPACE, "told", b"tell me")
    await client.wait_copied(timeout_s=60)
    found = await client.insight.explain(NAMESPACE, "told")
    (segment,) = found.segments
    assert found.policy_met
    assert [(copy.rank, copy.pool, copy.counted) for copy in segment.copies] == [
        (1, "primary", True),
        (2, "copy", True),
    ]
    assert "nothing speaks against it" in segment.copies[0].why
    assert "a primary stands before a copy" in segment.copies[1].why

    primary = segment.copies[0].node
    await node_under_maintenance(cluster, primary)
    await cluster.kill(primary)

    async def told() -> bool:
        (now,) = (await client.insight.explain(NAMESPACE, "told")).segments
        away = next(copy for copy in now.copies if copy.node == primary)
        return away.rank == len(now.copies) and "away" in away.why and not now.policy_met and bool(now.doing)

    await until(told, "the explanation shows the loss and what is being done", within_s=60)
    shown = await cluster.cli("explain", f"{NAMESPACE}/told")
    assert shown.code == 3
    assert shown.out.decode().startswith(f"{NAMESPACE}/told is NOT where policy says")
    assert (await cluster.cli("maintenance", "end", primary)).code == 0


async def test_green_only_when_proven_a_file_removed_behind_its_back(cluster: RealCluster, client: Client) -> None:
    """DOMAIN 3 rows 10 and 3: the copy's file is deleted on disk; nobody reads it; the scrub finds out."""
    content = random.Random(2).randbytes(300_000)
    await client.put(NAMESPACE, "removed", content)
    await client.wait_copied(timeout_s=60)
    extent = await sealed(client, "removed")
    _, locations = await locations_of(client, "removed")
    # Until the pool's window opens nothing is copied, so what is missing is not made again before it is looked for.
    later = datetime.now(UTC) + timedelta(hours=12)
    await client.policies.pool_update("copy", window=f"0 {later.hour} * * *", window_s=3600)
    (file,) = cluster.extent_files(locations["copy"].node, extent)
    file.unlink()

    async def told() -> bool:
        reasons = (await client.status()).reasons
        return any("not on the volume" in reason or "have no copy in pool" in reason for reason in reasons)

    await until(told, "status is not green: the scrub found the copy gone", within_s=60)
    assert not await cluster.is_green(client)
    await client.policies.pool_update("copy", window="")
    await until(lambda: cluster.is_green(client), "a new copy is made, and status is green", within_s=60)
    copies = [process.name for process in cluster.plan.of("node") if process.pool_type == "copy"]
    assert any(cluster.extent_files(name, extent) for name in copies)
    assert await sealed(client, "removed") == extent

    async def story() -> bool:
        kinds = [event.kind async for event in client.insight.log(LogRequest(extent=extent))]
        return {"LocationDamaged", "RepairStarted", "LocationRepaired"} <= {*kinds}

    await until(story, "the log tells of loss and repair", within_s=60)
    assert await client.get(NAMESPACE, "removed") == content


async def test_a_flip_that_nobody_reads_is_found_by_the_scrub_and_the_story_is_told(
    cluster: RealCluster, client: Client
) -> None:
    """DOMAIN 3 rows 5 and 7: the mark is on that location only, and mark and repair are one chain of events."""
    content = random.Random(3).randbytes(300_000)
    await client.put(NAMESPACE, "rotten", content)
    await client.wait_copied(timeout_s=60)
    extent = await sealed(client, "rotten")
    _, locations = await locations_of(client, "rotten")
    cluster.flip(locations["copy"].node, extent, locations["copy"].offset + 70_000)

    async def repaired() -> list[Event]:
        request = LogRequest(kinds=["LocationRepaired"], extent=extent)
        return [event async for event in client.insight.log(request)]

    last = (await until(repaired, "the location is repaired", within_s=60))[-1]
    chain = (await client.insight.chain(last.id)).events
    assert [event.kind for event in chain] == ["LocationDamaged", "RepairStarted", "LocationRepaired"]
    assert chain[0].volume == locations["copy"].volume
    assert (await client.insight.chain(chain[0].id)).events == chain
    shown = await cluster.cli("events", "--chain", last.id, "--json")
    assert [json.loads(line)["kind"] for line in shown.out.splitlines()] == [event.kind for event in chain]
    await until(lambda: cluster.is_green(client), "status is green again", within_s=60)
    assert await client.get(NAMESPACE, "rotten") == content


async def test_the_recovery_point_is_a_number_per_pool_and_namespace(cluster: RealCluster, client: Client) -> None:
    """DOMAIN 3 row 11: without copy nodes debt is told in bytes, records and age; it goes to 0 when they are back."""
    copies = [process.name for process in cluster.plan.of("node") if process.pool_type == "copy"]
    for name in copies:
        await cluster.kill(name)
    await client.put(NAMESPACE, "owed", b"x" * 50_000)

    async def owed() -> bool:
        status = await client.status()
        pool = next(each for each in status.pools if each.pool == "copy")
        namespace = next(each for each in status.namespaces if each.namespace == NAMESPACE)
        return min(pool.debt_bytes, namespace.debt_bytes) >= 50_000 and pool.debt_records > 0 < pool.debt_oldest_s

    await until(owed, "debt is told", within_s=60)
    waited = await cluster.cli("wait", "--copied", "--timeout", "0.5", "--namespace", NAMESPACE)
    assert waited.code == 7, waited
    for name in copies:
        await cluster.start(name)
    waited = await cluster.cli("wait", "--copied", "--timeout", "60", "--namespace", NAMESPACE)
    assert waited.code == 0, waited.err
    await until(lambda: cluster.is_green(client), "status is green again", within_s=60)
    status = await client.status()
    assert [(each.debt_bytes, each.debt_oldest_s) for each in status.namespaces] == [(0, 0.0)]
