"""Operators' drills on real processes: what they say beforehand is what happens when it is done for real."""

from __future__ import annotations

import asyncio
import json
import random
from datetime import UTC, datetime, timedelta

import pytest

from copypool import Client
from copypool.protocol.errors import Unavailable
from copypool.protocol.insight import LogRequest
from kit.checker import check
from kit.cluster import RealCluster, until
from kit.excuses import of_loss
from kit.workload import NAMESPACE, Load, Workload

LOAD = Load(
    seed=4,
    clients=6,
    operations_max=400,
    duration_max_s=15.0,
    prefix="loss",
    folders=3,
    folder_files=8,
    medium_max_bytes=100_000,
    large_share=0.0,
    impatient_share=0.0,
)


async def hold_copies(cluster: RealCluster) -> None:
    """Nothing new is copied from now on: the window of the copy pool opens half a day from now."""
    later = datetime.now(UTC) + timedelta(hours=12)
    held = await cluster.cli("pool", "update", "copy", "--window", f"0 {later.hour} * * *", "--window-for", "1h")
    assert held.code == 0, held.err


async def copy_again(cluster: RealCluster, client: Client) -> None:
    """Everything is copied again."""
    freed = await cluster.cli("pool", "update", "copy", "--window", "always")
    assert freed.code == 0, freed.err
    await client.wait_copied(timeout_s=60)


async def primaries(cluster: RealCluster) -> list[str]:
    """The nodes of the primary pool."""
    return [process.name for process in cluster.plan.of("node") if process.pool_type == "primary"]


# -- reading from copies -----------------------------------------------------------------------
async def test_copies_alone_give_every_file_and_the_log_keeps_it(cluster: RealCluster, client: Client) -> None:
    source = random.Random(1)
    bodies = {f"drill/{number:02}": source.randbytes(source.randrange(30_000)) for number in range(30)}
    await client.namespace_create("drilled")
    for path, body in bodies.items():
        await client.put("drilled", path, body)
    await client.put("drilled", "drill/parts", source.randbytes(40 << 20))
    await client.wait_copied(timeout_s=60)
    for name in await primaries(cluster):
        await cluster.stop(name)  # whoever asks a primary now waits in vain
    try:
        shown = await cluster.cli(
            "drill", "read-from-copies", "--sample", "1000", "--seed", "9", "--rate", "0", "--json", "--namespace",
            "drilled",
        )  # fmt: skip
    finally:
        for name in await primaries(cluster):
            await cluster.cont(name)
    assert shown.code == 0, shown
    found = json.loads(shown.out)
    assert found["passed"]
    assert found["drill"]["read_files"] == 31
    assert found["drill"]["read_bytes"] == (40 << 20) + sum(map(len, bodies.values()))
    assert client.reports.failovers == 0

    events = [event async for event in client.insight.log(LogRequest(kinds=["DrillReadFromCopies"]))]
    assert "31 of 31 sampled files" in events[-1].message
    assert "seed 9" in events[-1].message


async def test_what_is_not_copied_yet_is_counted_apart(cluster: RealCluster, client: Client) -> None:
    await client.namespace_create("owing")
    await client.put("owing", "before", b"x" * 1000)
    await client.wait_copied(timeout_s=60)
    await hold_copies(cluster)
    await client.put("owing", "after", b"y" * 2000)
    shown = await cluster.cli("drill", "read-from-copies", "--sample", "1000", "--json", "--namespace", "owing")
    assert shown.code == 3, shown
    drill = json.loads(shown.out)["drill"]
    assert (drill["debt_files"], drill["debt_bytes"], drill["failed_files"]) == (1, 2000, 0)
    assert drill["debt_oldest_s"] > 0
    assert [problem["what"] for problem in drill["problems"]] == ["owing/after"]
    await copy_again(cluster, client)
    found = await client.drills.read_from_copies(sample=1000, namespace="owing")
    assert found.passed


async def test_a_copy_with_a_flipped_byte_is_not_taken_for_one(cluster: RealCluster, client: Client) -> None:
    """In a namespace of its own: it is read at once, before the cluster may find and mend the byte by itself."""
    body = random.Random(2).randbytes(300_000)
    await client.namespace_create("worn")
    await client.put("worn", "flipped", body)
    await client.wait_copied(timeout_s=60)
    (segment,) = (await client.stat("worn", "flipped")).segments
    copy = next(each for each in segment.locations if each.pool_type == "copy")
    cluster.flip(copy.node, segment.extent, copy.offset + 70_000)
    found = await client.drills.read_from_copies(sample=1000, namespace="worn", seed=1)
    assert found.failed_files == 1
    assert found.problems[0].what == "worn/flipped"
    assert "digest_mismatch" in found.problems[0].why

    async def mended() -> bool:
        return (await client.drills.read_from_copies(sample=1000, namespace="worn")).passed

    await until(mended, "the drill's report had the copy verified and made again", within_s=60)
    assert await client.get("worn", "flipped") == body


async def test_copies_that_cannot_be_reached_are_told_from_debt(cluster: RealCluster, client: Client) -> None:
    await client.namespace_create("far")
    await client.put("far", "reach", b"z" * 5000)
    await client.wait_copied(timeout_s=60)
    copies = [process.name for process in cluster.plan.of("node") if process.pool_type == "copy"]
    for name in copies:
        await cluster.kill(name)

    async def told() -> bool:
        found = await client.drills.read_from_copies(sample=1000, namespace="far")
        return not found.passed and found.away_files == found.files and not found.debt_files

    await until(told, "the copies are away", within_s=60)


async def test_a_drill_that_is_interrupted_tells_what_it_did(
    cluster: RealCluster, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("copypool.drills._KEEP_S", 60.0)
    await client.namespace_create("slow")
    for number in range(6):
        await client.put("slow", str(number), b"s" * 100_000)
    await client.wait_copied(timeout_s=60)
    first = asyncio.Event()
    drill = asyncio.create_task(
        client.drills.read_from_copies(namespace="slow", seed=77, rate_bytes_s=10_000, on_file=lambda _: first.set())
    )
    await asyncio.wait_for(first.wait(), 60)
    drill.cancel()
    with pytest.raises(asyncio.CancelledError):
        await drill
    told = [event.message async for event in client.insight.log(LogRequest(kinds=["DrillReadFromCopies"]))]
    assert told[-1].startswith("interrupted: ")
    assert "seed 77" in told[-1]


# -- losing a node -----------------------------------------------------------------------------
async def test_a_simulated_loss_is_what_happens_when_the_node_is_killed(cluster: RealCluster, client: Client) -> None:
    """Ack rule `primary`: what only the lost node holds is named beforehand, exactly, and comes back with it."""
    await client.wait_copied(timeout_s=60)
    await hold_copies(cluster)
    await client.put(NAMESPACE, "parts", random.Random(3).randbytes(70 << 20))  # three parts, on both nodes
    work = Workload(client, LOAD)
    await work.run()
    victim = (await primaries(cluster))[0]
    report = await client.drills.lose_node(victim, names=1000)
    named = {file.path: file for file in report.files}
    assert len(named) == report.counts.unavailable_files == report.counts.lost_files > 0
    assert all(file.state == "unavailable" and file.lost and not file.before for file in report.files)
    assert not report.passed
    shown = await cluster.cli("drill", "lose-node", victim, "--simulate", "--json")
    assert shown.code == 3, shown
    assert json.loads(shown.out)["report"]["counts"]["unavailable_files"] == len(named)

    since = work.history.position
    await cluster.kill(victim)
    await work.read_everything()

    async def as_foretold() -> bool:
        status = await client.status()
        again = await client.drills.lose_node(victim, names=1000)
        already = {file.path for file in again.files if file.before}
        return status.unavailable_files > 0 and already == set(named)

    await until(as_foretold, "the cluster tells of the same files once the session has ended", within_s=60)
    missing: set[str] = set()
    async for entry in client.list(NAMESPACE):
        try:
            await client.get(NAMESPACE, entry.path)
        except Unavailable:
            missing.add(entry.path)
    assert missing == set(named)

    await cluster.start(victim)
    await until(lambda: readable(client, missing), "all of it is back", within_s=60)
    recorded = {operation.path for operation in work.history.operations()}
    excused = of_loss((file for file in report.files if file.path in recorded), since, work.history.position)
    await work.read_everything()
    verdict = check(work.history.operations(), final=True, excused=excused)
    assert verdict.ok, str(verdict)
    await copy_again(cluster, client)


async def readable(client: Client, paths: set[str]) -> bool:
    """Whether each of these files can be read."""
    for path in paths:
        await client.get(NAMESPACE, path)
    return True


async def test_what_would_be_rebuilt_is_rebuilt_where_it_was_said(cluster: RealCluster, client: Client) -> None:
    source = random.Random(5)
    for number in range(40):
        await client.put(NAMESPACE, f"rebuilt/{number:02}", source.randbytes(20_000))
    await client.wait_copied(timeout_s=60)
    # What earlier stories have lost is mended first: it counts as under-protected without being this node's.
    await until(lambda: cluster.is_green(client), "all is mended", within_s=60)
    victim = (await primaries(cluster))[0]
    report = await client.drills.lose_node(victim)
    forecast = report.forecast
    assert report.passed, report
    assert (forecast.served_extents, forecast.unavailable_extents) == (forecast.extents, 0)
    assert forecast.rebuild_extents == forecast.under_protected_extents > 0
    assert report.counts.unavailable_files == 0
    (place,) = forecast.places
    before = {entry.extent async for entry in client.insight.content(place.volume)}

    await cluster.kill(victim)
    for number in range(40):
        await client.get(NAMESPACE, f"rebuilt/{number:02}")

    async def rebuilt() -> set[int]:
        now = [entry async for entry in client.insight.content(place.volume) if entry.state == "good"]
        found = {entry.extent for entry in now} - before
        return found if len(found) == forecast.rebuild_extents else set()

    await until(rebuilt, f"{forecast.rebuild_extents} extents are on {place.volume}", within_s=60)
    assert not (await client.status()).unavailable_files
    await cluster.start(victim)

    async def measured() -> bool:
        """The log tells of a repair about a second after its end."""
        again = (await client.drills.lose_node(victim)).forecast
        return bool(again.bytes_per_s) and again.rate_from.startswith("measured")

    await until(measured, "the repairs of a moment ago are a measure", within_s=60)
