"""What operators say over HTTP on a real etcd: the brake is released, a maintenance ends and is told once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from kit.catalog_world import shared_etcd
from kit.coordinator_process import PlayedNode, Running, running_coordinator
from kit.eventually import eventually


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with shared_etcd() as found:
        yield found


@pytest.fixture
async def coordinator(endpoint: str) -> AsyncIterator[Running]:
    async with running_coordinator(endpoint, session_ttl_s=5) as running:
        yield running


async def told(coordinator: Running, kind: str) -> list[str]:
    """Messages of events of a kind."""
    status, reply = await coordinator.rpc("log", {"kinds": [kind]})
    assert status == 200, reply
    return [event["message"] for event in reply["events"]]


async def brake_of(coordinator: Running) -> str:
    status, reply = await coordinator.rpc("status", {})
    assert status == 200, reply
    return str(reply["brake"])


async def test_the_brake_is_released_by_an_admin_alone_and_only_while_it_is_on(coordinator: Running) -> None:
    async def refused() -> bool:
        """As soon as this coordinator leads."""
        status, reply = await coordinator.rpc("brake_release", {})
        return status == 409 and "no brake is on" in reply["message"]

    await eventually(refused, "there is nothing to release", within_s=20)
    operator = await coordinator.token("op", "operator")
    # They never renew their sessions: all three are lost at about the same time.
    for node in await asyncio.gather(*(PlayedNode.join(coordinator, f"n{number}") for number in range(3))):
        await node.close()

    async def braked() -> bool:
        return bool(await brake_of(coordinator))

    await eventually(braked, "most nodes were lost at once", within_s=30)
    held = await brake_of(coordinator)
    assert "`copypool release brake`" in held, "the sentence names the way out"
    assert (await coordinator.rpc("brake_release", {}, operator))[0] == 403
    status, reply = await coordinator.rpc("brake_release", {})
    assert (status, "of 3 nodes were lost" in reply["brake"]) == (200, True)
    assert await brake_of(coordinator) == ""
    assert len(await told(coordinator, "BrakeReleaseAsked")) == 1
    assert (await coordinator.rpc("brake_release", {}))[0] == 409, "it is off"


async def test_a_maintenance_that_runs_out_is_told_once_and_ended_once(coordinator: Running) -> None:
    await (await PlayedNode.join(coordinator, "n1")).close()
    assert (await coordinator.rpc("maintenance", {"node": "n1", "for_s": 1}))[0] == 200

    async def ended() -> bool:
        return bool(await told(coordinator, "MaintenanceEnded"))

    await eventually(ended, "its end by itself is in the log", within_s=20)
    status, reply = await coordinator.rpc("maintenance", {"node": "n1", "for_s": 0})
    assert (status, reply["until_unix_s"]) == (200, None)
    assert len(await told(coordinator, "MaintenanceEnded")) == 1, "what has ended is not ended again"


async def test_a_maintenance_ended_by_hand_is_told_once(coordinator: Running) -> None:
    await (await PlayedNode.join(coordinator, "n1")).close()
    assert (await coordinator.rpc("maintenance", {"node": "n1", "for_s": 600}))[0] == 200
    for _ in range(2):
        assert (await coordinator.rpc("maintenance", {"node": "n1", "for_s": 0}))[0] == 200
    assert await told(coordinator, "MaintenanceEnded") == ["n1 is expected to be there"]
