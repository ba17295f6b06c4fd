"""What operators set, on real processes: where bytes go and never go, access modes, full and failing disks."""

from __future__ import annotations

import asyncio
import json
import random
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from copypool import Client
from copypool.protocol.api import LocationInfo
from copypool.protocol.errors import Invalid, NoSpace, QuotaExceeded
from copypool.protocol.processes import ProcessInfo, ProcessRequest
from kit.cluster import RealCluster, real_cluster, until
from kit.workload import NAMESPACE

MIB = 1024 * 1024


@contextmanager
def cluster_with_vaults() -> Iterator[RealCluster]:
    """Two primary and two copy nodes; the copy nodes have a second volume each, in the pool `vault`."""
    with real_cluster() as cluster:
        for node in ("node3", "node4"):
            add_volume(cluster, node, f"{node}-b", "vault")
        yield cluster


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[RealCluster]:
    with cluster_with_vaults() as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster: RealCluster) -> RealCluster:
    """Every story leaves the cluster whole."""
    return shared_cluster


@pytest.fixture
async def client(cluster: RealCluster) -> AsyncIterator[Client]:
    async with cluster.client() as client:
        yield client


def add_volume(cluster: RealCluster, node: str, name: str, pool: str) -> None:
    """Give a node one more volume, as an operator does: in its configuration, then a restart."""
    process = cluster.plan.process(node)
    path = cluster.layout.data(node) / name
    path.mkdir(mode=0o700)
    file = cluster.layout.config_file(process)
    added = f', {{ path = "{path}", name = "{name}", pool = "{pool}", pool_type = "copy" }}]\n'
    lines = [line[:-2] + added if line.startswith("volumes = ") else line for line in file.read_text().splitlines(True)]
    file.write_text("".join(lines))
    cluster.supervisor.terminate(node)
    cluster.supervisor.start(node)


async def green(cluster: RealCluster, client: Client, what: str, within_s: float = 60) -> None:
    """Poll until status is green; fails with its reasons."""
    reasons: list[str] = []

    async def healthy() -> bool:
        reasons[:] = (await client.status()).reasons
        return not reasons

    try:
        await until(healthy, what, within_s=within_s)
    except AssertionError as error:
        raise AssertionError(f"{what}: {reasons}") from error


async def proven(client: Client) -> bool:
    """Whether every byte was read back, too."""
    status = await client.status()
    return status.healthy and not status.unverified_bytes


def payload(seed: int, size: int = 50_000) -> bytes:
    return random.Random(seed).randbytes(size)


async def places_of(client: Client, namespace: str, path: str) -> dict[str, LocationInfo]:
    """Pool -> a location of a one-segment file there, a good one if there is one."""
    (segment,) = (await client.stat(namespace, path)).segments
    return {each.pool: each for each in sorted(segment.locations, key=lambda each: each.state == "good")}


async def good_primaries(client: Client, path: str) -> list[tuple[str, str]]:
    """Volume and node of every good location in the primary pool of a one-segment file."""
    (segment,) = (await client.stat(NAMESPACE, path)).segments
    return [(each.volume, each.node) for each in segment.locations if (each.pool, each.state) == ("primary", "good")]


def holds(folder: Path, content: bytes) -> bool:
    """Whether any file below the folder holds these bytes."""
    return any(content in file.read_bytes() for file in folder.rglob("*") if file.is_file())


async def answer(cluster: RealCluster, *arguments: str) -> dict[str, object]:
    """What a command answers as JSON; it must succeed."""
    result = await cluster.cli(*arguments, "--json")
    assert result.code == 0, result.err
    found: dict[str, object] = json.loads(result.out)
    return found


@pytest.mark.timeout(300)  # a lease lives for a minute
async def test_bytes_go_to_the_pools_of_their_namespace_and_nowhere_else() -> None:
    """On a cluster of its own: other stories' files would share an extent that is to be rewritten, and hold that up."""
    with cluster_with_vaults() as cluster:
        async with cluster.client() as client:
            await check_pools(cluster, client)


async def check_pools(cluster: RealCluster, client: Client) -> None:
    """A7: small files of two namespaces never share an extent when their policies differ."""
    await answer(cluster, "pool", "update", "vault", "--description", "the cellar", "--spread", "zone")
    for name, pools in (("open", ["copy", "vault"]), ("secret", ["copy"])):
        await client.namespace_create(name, copy_pools=pools)
    await client.put("open", "a", payload(1))
    await client.put("secret", "a", payload(2))
    await client.wait_copied(timeout_s=60)

    assert set(await places_of(client, "open", "a")) == {"primary", "copy", "vault"}
    assert set(await places_of(client, "secret", "a")) == {"primary", "copy"}
    vaults = [cluster.layout.data(node) / f"{node}-b" for node in ("node3", "node4")]
    assert any(holds(vault, payload(1)[1000:1100]) for vault in vaults)
    assert not any(holds(vault, payload(2)[1000:1100]) for vault in vaults)

    # A changed policy is that of new extents, until older ones are rewritten.
    shown = await answer(cluster, "namespace", "update", "secret", "--copy-pool", "copy", "--copy-pool", "vault")
    assert set(await places_of(client, "secret", "a")) == {"primary", "copy"}
    assert shown["rewriting"] is False
    async with cluster.client() as fresh:  # a lease that was given out before is good for its minute
        await fresh.put("secret", "b", payload(3))
    await client.wait_copied(timeout_s=60)
    assert set(await places_of(client, "secret", "b")) == {"primary", "copy", "vault"}
    assert (await answer(cluster, "namespace", "rewrite", "secret", "--preview"))["extents"] == 1
    process = await answer(cluster, "namespace", "rewrite", "secret", "--no-wait")

    async def rewritten() -> bool:
        details = await client.policies.namespace("secret")
        return not details.older_extents and "vault" in await places_of(client, "secret", "a")

    await until(rewritten, "the older extent has the new policy", within_s=60)
    await client.wait_copied(timeout_s=60)
    assert (await places_of(client, "secret", "a"))["vault"].state == "good"
    assert await client.get("secret", "a") == payload(2)

    async def ended() -> ProcessInfo | None:
        shown = await client.operator.process(str(process["id"]))
        return None if shown.state == "running" else shown

    shown = await until(ended, "old leases are over, and with them the rewriting", within_s=120)
    assert (shown.state, shown.skipped_total, shown.done_extents >= 1) == ("done", 0, True), shown


async def test_the_preview_of_a_rewriting_goes_by_the_policy_that_extents_get(
    cluster: RealCluster, client: Client
) -> None:
    await answer(cluster, "pool", "create", "empty", "--type", "copy")
    await client.namespace_create("hollow", copy_pools=["copy"])
    await client.put("hollow", "a", payload(6))
    await client.wait_copied(timeout_s=60)
    for pools, blocked in ((("copy", "empty"), 1), (("copy",), 0)):
        await client.policies.namespace_update("hollow", copy_pools=pools)
        found = await client.operator.preview(ProcessRequest("rewrite", namespace="hollow"))
        assert found.blocked_extents == blocked, found
        assert all(each.why.startswith("no volume of pool 'empty'") for each in found.blocked)
        assert any("leases from before the update" in note for note in found.notes)


async def test_a_copy_window_holds_copies_back_and_says_until_when(cluster: RealCluster, client: Client) -> None:
    later = datetime.now(UTC) + timedelta(hours=12)
    await answer(cluster, "pool", "update", "copy", "--window", f"0 {later.hour} * * *", "--window-for", "1h")

    async def stays_in_debt() -> bool:
        await client.put(NAMESPACE, "window", payload(4))
        status = await client.status()
        return any("window opens at" in reason for reason in status.reasons) and status.debt_bytes > 0

    await until(stays_in_debt, "debt that waits for its window", within_s=60)
    await answer(cluster, "pool", "update", "copy", "--window", "always")
    await client.wait_copied(timeout_s=60)


async def test_access_modes(cluster: RealCluster, client: Client) -> None:
    await client.put(NAMESPACE, "modes", payload(5))
    await client.wait_copied(timeout_s=60)
    await green(cluster, client, "green", within_s=60)
    placed = await places_of(client, NAMESPACE, "modes")
    primary, copy = placed["primary"].volume, placed["copy"].volume

    with pytest.raises(Invalid, match="offsite"):
        await client.policies.volume_update(primary, access="offsite")
    # Readonly: bytes go elsewhere, nothing is worse protected, and no write ever fails.
    await client.policies.volume_update(primary, access="readonly")
    for number in range(8):
        stored = await client.put(NAMESPACE, f"readonly/{number}", payload(number))
        assert primary not in stored.volumes
    await client.wait_copied(timeout_s=60)
    await green(cluster, client, "green with a readonly volume", within_s=60)
    # Unavailable: reads are served from the copy, and nothing is rebuilt.
    await client.policies.volume_update(primary, access="unavailable")
    assert await client.get(NAMESPACE, "modes") == payload(5)
    assert not await cluster.is_green(client)
    await client.policies.volume_update(primary, access="readwrite")
    await green(cluster, client, "green again", within_s=60)
    # Offsite: it counts as a copy, and is not read. What was read back before it left stays proven while it is away.
    assert (await cluster.cli("audit", "volume", copy)).code == 0
    await until(lambda: proven(client), "all is read back", within_s=60)
    details = await client.policies.volume_update(copy, access="offsite", location_text="bank, box 7")
    assert (details.location_text, details.info.reachable) == ("bank, box 7", False)
    assert details.verified_oldest_unix_s is not None
    await green(cluster, client, "green with an offsite copy", within_s=60)
    entry = (await client.stat(NAMESPACE, "modes")).segments[0]
    assert {each.volume for each in entry.locations if each.reachable} == {primary}
    await client.policies.volume_update(copy, access="readwrite")
    # Destroyed: rebuilt elsewhere at once; it erased nothing.
    await client.policies.volume_update(primary, access="destroyed")

    async def rebuilt() -> bool:
        return any(volume != primary for volume, _ in await good_primaries(client, "modes"))

    await until(rebuilt, "the primary is on another volume", within_s=60)
    assert await client.get(NAMESPACE, "modes") == payload(5)
    await client.policies.volume_update(primary, access="readwrite")


async def test_a_full_volume_is_passed_over_and_a_full_pool_refuses_early(cluster: RealCluster, client: Client) -> None:
    await answer(cluster, "volume", "update", "node1-a", "--limit", "1")

    async def reported(volume: str, full: bool) -> bool:
        found = {each.name: each.free_bytes for each in await client.volumes()}
        return (found[volume] == 0) == full

    await until(lambda: reported("node1-a", True), "node1 says that it is full", within_s=60)
    async with cluster.client() as fresh:
        for number in range(8):
            assert "node1-a" not in (await fresh.put(NAMESPACE, f"full/{number}", payload(number))).volumes
    await answer(cluster, "volume", "update", "node2-a", "--limit", "1")
    await until(lambda: reported("node2-a", True), "node2 says that it is full", within_s=60)

    async def refused() -> bool:
        async with cluster.client() as fresh:
            try:
                await fresh.put(NAMESPACE, "full/never", b"x")
            except NoSpace as error:
                return "primary" in error.message
        return False

    await until(refused, "every coordinator knows that the pool is full", within_s=60)
    result = await cluster.cli("rm", f"{NAMESPACE}/full/0")
    assert result.code == 0, "a full pool takes deletes: " + result.err
    assert await client.get(NAMESPACE, "full/1") == payload(1)
    for volume in ("node1-a", "node2-a"):
        await client.policies.volume_update(volume, limit_bytes=0)
        await until(lambda volume=volume: reported(volume, False), "room again", within_s=60)  # type: ignore[misc]


async def test_a_disk_that_refuses_a_write_becomes_readonly_by_itself(cluster: RealCluster, client: Client) -> None:
    process = psutil.Process(await asyncio.to_thread(cluster.supervisor.pid, "node1"))
    soft, hard = process.rlimit(psutil.RLIMIT_FSIZE)
    process.rlimit(psutil.RLIMIT_FSIZE, (MIB, resource.RLIM_INFINITY))  # writes beyond 1 MiB of a file fail
    try:

        async def given_up() -> bool:
            # Acknowledged all the same: the client goes on to the other node.
            await client.put(NAMESPACE, "refused", payload(6, 2 * MIB))
            details = await client.policies.volume("node1-a")
            return details.info.access == "readonly" and bool(details.access_reason)

        await until(given_up, "node1's volume is readonly", within_s=60)
        status = await client.status()
        assert any("node1-a" in reason and "refused a write" in reason for reason in status.reasons), status.reasons

        async def told() -> int:
            kinds = [(event.kind, event.volume) async for event in client.events()]
            return kinds.count(("VolumeReadonly", "node1-a"))

        assert await until(told, "the event is written", within_s=60) == 1

        async def up() -> bool:
            return {node.name: node.state for node in (await client.status()).nodes}["node1"] == "up"

        await until(up, "node1 still serves reads", within_s=60)
    finally:
        process.rlimit(psutil.RLIMIT_FSIZE, (soft, hard))
    assert await client.get(NAMESPACE, "refused") == payload(6, 2 * MIB)
    await client.policies.volume_update("node1-a", access="readwrite")

    async def written_again() -> bool:
        async with cluster.client() as fresh:  # the old one has leases for the other node
            return "node1-a" in (await fresh.put(NAMESPACE, "accepted", payload(7))).volumes

    await until(written_again, "node1's volume takes writes again", within_s=60)
    await green(cluster, client, "green again", within_s=60)


async def test_the_loss_of_a_copy_node_makes_nothing_readonly(cluster: RealCluster, client: Client) -> None:
    await cluster.kill("node3")
    for number in range(20):
        await client.put(NAMESPACE, f"loss/{number}", payload(number))
    await client.wait_copied(timeout_s=60)
    await cluster.start("node3")


async def test_maintenance_is_shown_survives_a_leader_and_ends(cluster: RealCluster, client: Client) -> None:
    await client.put(NAMESPACE, "maintained", payload(8))
    await client.wait_copied(timeout_s=60)
    node = (await places_of(client, NAMESPACE, "maintained"))["primary"].node
    await answer(cluster, "maintenance", "node", node, "--for", "10m")
    await cluster.kill(node)

    async def leading() -> str:
        return (await client.status()).leader

    leader = await until(leading, "there is a leader", within_s=60)
    await cluster.kill(leader)

    async def waited_for() -> bool:
        status = await client.status()
        shown = {each.name: each for each in status.nodes}[node]
        waiting = any(
            f"waiting for {node} for 5" in reason or f"waiting for {node} for 6" in reason for reason in status.reasons
        )
        return status.leader not in ("", leader) and shown.maintenance_until_unix_s is not None and waiting

    await until(waited_for, "another leader waits for the node until its maintenance is over", within_s=60)
    assert await client.get(NAMESPACE, "maintained") == payload(8)
    await cluster.start(leader)
    assert (await answer(cluster, "maintenance", "end", node))["until_unix_s"] is None

    async def rebuilt() -> bool:
        return any(holder != node for _, holder in await good_primaries(client, "maintained"))

    await until(rebuilt, "the grace time is over, and the primary is rebuilt", within_s=60)
    await cluster.start(node)


async def test_a_namespace_at_its_quota_refuses_writes_and_takes_deletes(cluster: RealCluster, client: Client) -> None:
    await client.namespace_create("small", quota_bytes=100_000)
    for number in range(3):
        await client.put("small", str(number), payload(number))

    async def refused() -> bool:
        async with cluster.client() as fresh:
            try:
                await fresh.put("small", "more", b"x")
            except QuotaExceeded as error:
                return error.details["quota_bytes"] == 100_000
        return False

    await until(refused, "every coordinator has counted", within_s=60)
    for number in range(3):
        await client.delete("small", str(number))

    async def room() -> bool:
        return (await client.policies.namespace("small")).bytes < 100_000

    await until(room, "the deletes are counted", within_s=60)
