"""Planned stops of nodes on a real etcd: announced by the node itself, one after the other, over when it is back."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest

from copypool.protocol import internal
from copypool.protocol.errors import Forbidden, Invalid
from kit.coordinator_process import PlayedNode, Running, running_coordinator
from kit.eventually import eventually


@pytest.fixture
async def coordinator(endpoint: str) -> AsyncIterator[Running]:
    # Nobody renews these nodes' sessions: they have to outlast a test.
    async with running_coordinator(endpoint, session_ttl_s=60) as running:
        yield running


@pytest.fixture
async def nodes(coordinator: Running) -> AsyncIterator[list[PlayedNode]]:
    joined = [await PlayedNode.join(coordinator, name) for name in ("n1", "n2")]

    async def leads() -> bool:
        status, reply = await coordinator.rpc("brake_release", {})
        return status == 409 and "no brake is on" in reply["message"]

    await eventually(leads, "this coordinator leads")
    yield joined
    for node in joined:
        await node.close()


async def ask(node: PlayedNode, for_s: int = 600, *, anyway: bool = False) -> list[str]:
    request = internal.StopRequest(node.id, for_s, anyway)
    return (await node.call("stop", request, internal.StopReply)).waits_for


async def come_back(node: PlayedNode) -> None:
    """A new process of the node registers and mounts its volume."""
    register = internal.RegisterRequest(node.id, os.urandom(16), node.url, "z", node.name, "test")
    node.epoch = (await node.call("register", register, internal.RegisterReply)).epoch


async def maintenance(coordinator: Running, node: PlayedNode) -> float | None:
    """Until when the node may be away."""
    _, reply = await coordinator.rpc("nodes", {})
    found: float | None = next(each for each in reply["items"] if each["name"] == node.name)["maintenance_until_unix_s"]
    return found


async def test_a_stop_is_maintenance_until_the_node_is_back(coordinator: Running, nodes: list[PlayedNode]) -> None:
    assert await ask(nodes[0]) == []
    assert await maintenance(coordinator, nodes[0]) is not None
    assert await ask(nodes[0]) == [], "safe to repeat"
    await come_back(nodes[0])

    async def over() -> bool:
        return await maintenance(coordinator, nodes[0]) is None

    await eventually(over, "its return ends it")


async def test_an_operators_longer_maintenance_outlasts_a_restart(
    coordinator: Running, nodes: list[PlayedNode]
) -> None:
    assert (await coordinator.rpc("maintenance", {"node": "n1", "for_s": 3600}))[0] == 200
    announced = await maintenance(coordinator, nodes[0])
    assert await ask(nodes[0], 60) == []
    await come_back(nodes[0])
    assert await maintenance(coordinator, nodes[0]) == announced


async def test_nodes_stop_one_after_the_other(nodes: list[PlayedNode]) -> None:
    first, second = nodes
    assert await ask(first) == []
    assert await ask(second) == ["n1"]
    assert await ask(second) == ["n1"], "asking announces nothing"
    await come_back(first)
    assert await ask(second) == ["n1"], "it is back without its volume: its bytes cannot be read yet"
    mount = internal.MountRequest(
        first.id, first.epoch, "n1-b", os.urandom(16), "primary", "primary", 1, os.urandom(16)
    )
    await first.call("mount", mount, internal.MountReply)
    assert await ask(second) == ["n1"], "one volume of two"


async def test_who_must_stop_stops(nodes: list[PlayedNode]) -> None:
    assert await ask(nodes[0]) == []
    assert await ask(nodes[1], anyway=True) == []


async def test_a_node_speaks_for_itself_alone(nodes: list[PlayedNode]) -> None:
    request = internal.StopRequest(nodes[1].id, 600, True)
    with pytest.raises(Forbidden):
        await nodes[0].call("stop", request, internal.StopReply)
    for for_s in (0, 10**9):
        with pytest.raises(Invalid):
            await ask(nodes[0], for_s)
