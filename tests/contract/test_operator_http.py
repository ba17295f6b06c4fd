"""What operators say and ask over HTTP on a real etcd: the brake, maintenance, policies, the newest events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from copypool_coordinator import keys, rows
from copypool_coordinator.etcd import put
from copypool_coordinator.rows import FORMAT, EventRow
from kit.coordinator_process import PlayedNode, Running, running_coordinator
from kit.eventually import eventually


@pytest.fixture
async def coordinator(endpoint: str) -> AsyncIterator[Running]:
    async with running_coordinator(endpoint, session_ttl_s=10) as running:
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

    await eventually(refused, "there is nothing to release")
    operator = await coordinator.token("op", "operator")
    # They never renew their sessions: all three are lost at about the same time.
    for node in await asyncio.gather(*(PlayedNode.join(coordinator, f"n{number}") for number in range(3))):
        await node.close()

    async def braked() -> bool:
        return bool(await brake_of(coordinator))

    await eventually(braked, "most nodes were lost at once")
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

    await eventually(ended, "its end by itself is in the log")
    status, reply = await coordinator.rpc("maintenance", {"node": "n1", "for_s": 0})
    assert (status, reply["until_unix_s"]) == (200, None)
    assert len(await told(coordinator, "MaintenanceEnded")) == 1, "what has ended is not ended again"


async def test_a_maintenance_ended_by_hand_is_told_once(coordinator: Running) -> None:
    await (await PlayedNode.join(coordinator, "n1")).close()
    assert (await coordinator.rpc("maintenance", {"node": "n1", "for_s": 600}))[0] == 200
    for _ in range(2):
        assert (await coordinator.rpc("maintenance", {"node": "n1", "for_s": 0}))[0] == 200
    assert await told(coordinator, "MaintenanceEnded") == ["n1 is expected to be there"]


async def test_the_newest_events_are_shown_in_order_and_followed_from_there(coordinator: Running) -> None:
    catalog = coordinator.coordinator._catalog
    assert catalog is not None
    wanted = [EventRow(FORMAT, catalog.now_ms(), "Wanted", "t", f"number {number}") for number in range(1_200)]
    other = [EventRow(FORMAT, catalog.now_ms(), "Other", "t", "later")]
    await catalog.append_events(wanted)
    await catalog.append_events(other)
    status, reply = await coordinator.rpc("log", {"kinds": ["Wanted"], "newest": True, "limit": 3})
    assert status == 200, reply
    assert [event["message"] for event in reply["events"]] == ["number 1197", "number 1198", "number 1199"]
    assert not reply["more"]
    await catalog.append_events([EventRow(FORMAT, catalog.now_ms(), "Wanted", "t", "new")])
    _, after = await coordinator.rpc("log", {"kinds": ["Wanted"], "after": reply["next_after"]})
    assert [event["message"] for event in after["events"]] == ["new"]


async def test_old_events_count_among_the_newest(coordinator: Running) -> None:
    """Also those from before the times that are looked at first."""
    catalog = coordinator.coordinator._catalog
    assert catalog is not None
    await catalog.append_events([EventRow(FORMAT, catalog.now_ms(), "Wanted", "t", "new")])
    for days in (40, 2):
        old_ms = catalog.now_ms() - days * 86_400_000
        event = rows.encode(EventRow(FORMAT, old_ms, "Wanted", "t", f"{days} days old"))
        await catalog.etcd.txn([], [put(keys.EVENTS + f"{old_ms:012x}0000abcdef".encode(), event)])
    _, reply = await coordinator.rpc("log", {"kinds": ["Wanted"], "newest": True, "limit": 10})
    assert [event["message"] for event in reply["events"]] == ["40 days old", "2 days old", "new"]
    _, reply = await coordinator.rpc("log", {"kinds": ["Wanted"], "newest": True, "limit": 2})
    assert [event["message"] for event in reply["events"]] == ["2 days old", "new"]


async def test_a_rule_for_failed_copies_needs_writes_that_wait_for_copies(coordinator: Running) -> None:
    status, reply = await coordinator.rpc("namespace_create", {"name": "odd", "on_copy_failure": "fail"})
    assert (status, "goes with the ack rule" in reply["message"]) == (400, True)
    strict = {"name": "strict", "ack": "copy", "on_copy_failure": "fail"}
    assert (await coordinator.rpc("namespace_create", strict))[0] == 200
    status, reply = await coordinator.rpc("namespace_update", {"name": "strict", "ack": "primary"})
    assert (status, reply["info"]["on_copy_failure"]) == (200, "continue"), "it went with the rule"
    status, _ = await coordinator.rpc("namespace_update", {"name": "strict", "on_copy_failure": "fail"})
    assert status == 400


async def test_a_volume_that_no_node_has_is_on_no_node(coordinator: Running) -> None:
    status, reply = await coordinator.rpc("volume_define", {"name": "later", "pool": "primary"})
    assert (status, reply["info"]["node"]) == (200, "")
