"""A copy pool's bandwidth budget holds on the wire, and a copy pool's window holds up no rebuilding of primaries."""

from __future__ import annotations

import asyncio
import random
import time
from datetime import UTC, datetime, timedelta

import aiohttp

from copypool import Client, sync
from copypool.protocol.processes import ProcessRequest
from kit.cluster import RealCluster, until
from kit.workload import NAMESPACE

MIB = 1024 * 1024
BUDGET_BYTES_S = 2 * MIB
FILES, FILE_BYTES = 6, 2 * MIB
#: Bytes that may come at once beside the budget: half a second of it, a chunk for each volume, what a sample misses.
SLACK_BYTES = 3 * MIB
LIMIT = "copypool_node_volume_pull_limit_bytes_per_second"


async def limits(cluster: RealCluster, pool: str) -> list[int]:
    """What the nodes keep to now, for each of the pool's volumes."""
    found = []
    async with aiohttp.ClientSession() as http:
        for process in cluster.plan.of("node"):
            async with http.get(f"{process.url}/metrics") as response:
                lines = (await response.text()).splitlines()
            found += [int(float(line.rpartition(" ")[2])) for line in lines if line.startswith(LIMIT + "{")
                      and f'pool="{pool}"' in line]  # fmt: skip
    return found


async def test_copies_into_a_pool_keep_to_its_budget(cluster: RealCluster, client: Client) -> None:
    await client.policies.pool_update("copy", budget_bytes_s=BUDGET_BYTES_S)

    async def shared_out() -> bool:
        return await limits(cluster, "copy") == [BUDGET_BYTES_S // 2] * 2

    await until(shared_out, "both copy volumes keep to their share", within_s=60)
    before = await cluster.pulled_bytes()
    began_s = time.monotonic()
    for number in range(FILES):
        await client.put(NAMESPACE, f"budget/{number}", random.Random(number).randbytes(FILE_BYTES))

    async def copied() -> bool:
        """Bytes are counted before the clock is read, so that a slow machine can only make the bound wider."""
        pulled = await cluster.pulled_bytes() - before
        allowed = BUDGET_BYTES_S * (time.monotonic() - began_s) + SLACK_BYTES
        assert pulled <= allowed, f"{pulled} bytes were pulled where {allowed:.0f} were allowed"
        return pulled >= FILES * FILE_BYTES and not (await client.status()).debt_bytes

    await until(copied, "all is copied, at the budget's pace", within_s=60)
    assert await limits(cluster, "primary") == [0, 0], "other pools have no budget"
    await client.policies.pool_update("copy", budget_bytes_s=0)


async def test_primaries_are_rebuilt_while_the_copy_pool_s_window_is_closed(
    cluster: RealCluster, client: Client
) -> None:
    content = random.Random(99).randbytes(MIB)
    await client.put(NAMESPACE, "window/primary", content)
    await client.wait_copied(timeout_s=60)
    (segment,) = (await client.stat(NAMESPACE, "window/primary")).segments
    (primary,) = [each for each in segment.locations if each.pool_type == "primary"]
    later = datetime.now(UTC) + timedelta(hours=12)
    await client.policies.pool_update("copy", window=f"0 {later.hour} * * *", window_s=3600)
    assert not (await client.policies.pool("copy")).window_open
    await cluster.kill(primary.node)

    async def rebuilt() -> bool:
        (now,) = (await client.stat(NAMESPACE, "window/primary")).segments
        return any(
            each.pool_type == "primary" and each.state == "good" and each.node != primary.node for each in now.locations
        )

    await until(rebuilt, "the primary is rebuilt from the copy, window or not", within_s=60)
    assert not (await client.policies.pool("copy")).window_open, "it was closed all the while"
    assert await client.get(NAMESPACE, "window/primary") == content
    await client.policies.pool_update("copy", window="")
    await cluster.start(primary.node)


async def test_the_blocking_client_asks_and_operates_as_well(cluster: RealCluster, client: Client) -> None:
    """A program without an event loop, beside the cluster."""
    await client.put(NAMESPACE, "blocking", b"x")
    await client.wait_copied(timeout_s=60)
    urls = [process.url for process in cluster.plan.of("coordinator")]
    token = cluster.layout.admin_token.read_text().strip()

    def program() -> tuple[int, str, str]:
        with sync.Client(coordinators=urls, token=token) as blocking:
            found = blocking.insight.prove(namespace=NAMESPACE, prefix="blocking")
            started = blocking.operator.start(ProcessRequest("backup", pool="primary"))
            *_, ended = blocking.operator.follow(started.id)
            return found.files, ended.state, blocking.policies.pool("copy").info.type

    assert await asyncio.to_thread(program) == (1, "done", "copy")
