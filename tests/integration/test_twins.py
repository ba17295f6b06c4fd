"""Simultaneous write on real processes: what a receipt with ack rule `copy` promises is there when a node is not."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from copypool import Client
from copypool.protocol.errors import NotFound, Unavailable
from kit.cluster import RealCluster, until

STRICT, LENIENT = "strict", "lenient"


@pytest.fixture
async def client(cluster: RealCluster, client: Client) -> Client:
    await client.namespace_create(STRICT, ack="copy", on_copy_failure="fail")
    await client.namespace_create(LENIENT, ack="copy", on_copy_failure="continue")
    return client


def node_of(volume: str) -> str:
    return volume.rpartition("-")[0]


@asynccontextmanager
async def impatient(cluster: RealCluster) -> AsyncIterator[Client]:
    """A client that gives a write up after a few seconds."""
    coordinators = [process.url for process in cluster.plan.of("coordinator")]
    token = cluster.layout.admin_token.read_text().strip()
    async with await Client.connect(coordinators=coordinators, token=token, write_deadline_s=4.0) as client:
        yield client


@pytest.mark.parametrize("lost", ["writer", "twin"])
async def test_an_acknowledged_byte_survives_the_loss_of_either_node_at_once(
    cluster: RealCluster, client: Client, lost: str
) -> None:
    bodies = {f"{lost}/{n}": os.urandom(3 * 1024 * 1024 if n == 0 else 5000) for n in range(12)}
    receipts = await asyncio.gather(*(client.put(STRICT, path, body) for path, body in bodies.items()))
    assert all(receipt.ack == "copy" and len(receipt.volumes) == 2 for receipt in receipts)
    places = {(node_of(receipt.volumes[0]), node_of(receipt.volumes[1])) for receipt in receipts}
    assert all(writer != twin for writer, twin in places)
    last = await client.put(STRICT, f"{lost}/last", b"the very last word")
    bodies[f"{lost}/last"] = b"the very last word"
    victim = node_of(last.volumes[0 if lost == "writer" else 1])
    await cluster.kill(victim)
    for path, body in reversed(bodies.items()):
        assert await client.get(STRICT, path) == body, f"{path} after the loss of {victim}"

    # Others take over both parts, and still no ack without two places.
    async def stored() -> bool:
        receipt = await client.put(STRICT, f"{lost}/after", b"x")
        return receipt.ack == "copy" and victim not in map(node_of, receipt.volumes)

    await until(stored, "writes go on with both places elsewhere", within_s=60)
    await cluster.start(victim)
    await until(lambda: cluster.is_green(client), "status is green again", within_s=60)
    for path, body in bodies.items():
        assert await client.get(STRICT, path) == body


async def test_without_copies_strict_refuses_lenient_owes_and_both_heal(cluster: RealCluster, client: Client) -> None:
    await client.put(STRICT, "before", b"1")

    async def both() -> bool:
        """A twin that is too slow once is done without, for as long as the class allows it."""
        return (await client.put(LENIENT, "before", b"1")).ack == "copy"

    await until(both, "the lenient class writes to a twin, too", within_s=60)
    for name in ("node3", "node4"):
        await cluster.kill(name)
    async with impatient(cluster) as hurried:
        with pytest.raises(Unavailable):
            await hurried.put(STRICT, "refused", b"2")
    with pytest.raises(NotFound):
        await client.get(STRICT, "refused")
    receipt = await client.put(LENIENT, "owed", b"3" * 100_000)
    assert (receipt.ack, len(receipt.volumes)) == ("primary", 1)

    async def owes() -> bool:
        return (await client.status()).debt_bytes >= 100_000

    await until(owes, "the debt is shown", within_s=60)
    for name in ("node3", "node4"):
        await cluster.start(name)

    async def stored() -> bool:
        return (await client.put(STRICT, "again", b"4")).ack == "copy"

    await until(stored, "strict writes again", within_s=60)
    await client.wait_copied(timeout_s=60)
    assert await client.get(LENIENT, "owed") == b"3" * 100_000

    async def told() -> bool:
        return "TwinEnded" in [event.kind async for event in client.events()]

    await until(told, "the log tells of the twin's end", within_s=60)
