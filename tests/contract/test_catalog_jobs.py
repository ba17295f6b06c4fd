"""Processes and what they want of volumes, on a real etcd: one transaction, one leader, no intent without a process."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from copypool.protocol.errors import Conflict, NotFound, NotLeader
from copypool_coordinator import keys
from copypool_coordinator.core import LeaderGuard
from copypool_coordinator.etcd import put
from copypool_coordinator.rows import FORMAT, ProcessRow, VolumeRow
from kit.catalog_world import TestNode, World


async def settled(world: World) -> None:
    """Let the view know everything that was written so far."""
    written = await world.etcd.txn([], [put(keys.ROOT + b"c/~settled", b"")])
    await world.catalog.wait_for(lambda view: view.revision >= written.revision, 60.0)


def volume_of(world: World, node: TestNode) -> VolumeRow:
    return world.catalog.view.volumes_by_id[node.volume].row


def drain(world: World, node: TestNode) -> ProcessRow:
    return ProcessRow(FORMAT, "drain", f"node {node.name}", "tester", world.now_ms(), [node.volume], [])


async def test_a_process_and_its_intent_are_there_together_and_a_repeat_is_recognised(world: World) -> None:
    node = await world.node("n1")
    writer = await world.writer(node)
    await writer.commit(writer.put("a"))
    await settled(world)
    jobs = world.catalog.jobs
    row = await jobs.start("p1", drain(world, node), intent="drain")
    assert volume_of(world, node).intent == "drain"
    await settled(world)
    assert not world.catalog.view.extents[writer.extent].row.open, "nothing more is committed there"
    again = await jobs.start("p1", replace(row, what="something else"), intent="drain")
    assert again.what == row.what, "the one that is there is answered"
    with pytest.raises(Conflict, match="emptied otherwise"):
        await jobs.start("p2", replace(row, verb="delete"), intent="discard")
    assert "p2" not in world.catalog.view.processes


@pytest.mark.parametrize("applied", [True, False])
async def test_an_unknown_outcome_of_a_start_is_resolved_by_reading(world: World, applied: bool) -> None:
    node = await world.node("n1")
    world.hooked.lost = [applied]
    row = await world.catalog.jobs.start("p1", drain(world, node), intent="drain")
    assert row == world.catalog.view.processes["p1"].row
    assert volume_of(world, node).intent == "drain"


async def test_a_deposed_leader_writes_no_process_on(world: World) -> None:
    node = await world.node("n1")
    jobs = world.catalog.jobs
    row = await jobs.start("p1", drain(world, node), intent="drain")
    leader = await world.lead()
    revision = world.catalog.view.processes["p1"].mod_revision
    with pytest.raises(NotLeader):
        await jobs.write("p1", revision, replace(row, state="done"), LeaderGuard(leader.create_revision - 1))
    with pytest.raises(NotLeader):
        await jobs.trim(["p1"], LeaderGuard(leader.create_revision - 1))
    await settled(world)
    assert world.catalog.view.processes["p1"].row.state == "running"


async def test_what_was_planned_from_an_older_row_is_not_written(world: World) -> None:
    """An operator's cancel in between is not overwritten by the leader's count."""
    node = await world.node("n1")
    jobs = world.catalog.jobs
    row = await jobs.start("p1", drain(world, node), intent="drain")
    leader = await world.lead()
    revision = world.catalog.view.processes["p1"].mod_revision
    assert (await jobs.cancel("p1", "somebody")).cancelled_by == "somebody"
    assert (await jobs.cancel("p1", "else")).cancelled_by == "somebody", "the first word counts"
    assert not await jobs.write("p1", revision, replace(row, done_bytes=5), leader)
    with pytest.raises(NotFound):
        await jobs.cancel("p9", "somebody")


async def test_an_ended_process_gives_back_what_it_had_set(world: World) -> None:
    node = await world.node("n1")
    jobs = world.catalog.jobs
    lost = replace(drain(world, node), verb="restore")
    row = await jobs.start("p1", lost, access="destroyed")
    assert (row.access_before, volume_of(world, node).access) == (["readwrite"], "destroyed")
    leader = await world.lead()
    revision = world.catalog.view.processes["p1"].mod_revision
    assert await jobs.write("p1", revision, replace(row, state="cancelled"), leader, give_back=[node.volume])
    await settled(world)
    assert volume_of(world, node).access == "readwrite"


async def test_a_cancelled_restore_leaves_the_intent_of_another_process(world: World) -> None:
    node = await world.node("n1")
    jobs = world.catalog.jobs
    await jobs.start("p1", drain(world, node), intent="drain")
    row = await jobs.start("p2", replace(drain(world, node), verb="restore"), access="destroyed")
    leader = await world.lead()
    revision = world.catalog.view.processes["p2"].mod_revision
    assert await jobs.write("p2", revision, replace(row, state="cancelled"), leader, give_back=[node.volume])
    await settled(world)
    assert (volume_of(world, node).access, volume_of(world, node).intent) == ("readwrite", "drain")


async def test_a_volume_that_holds_something_is_not_removed(world: World) -> None:
    node = await world.node("n1")
    writer = await world.writer(node)
    await writer.commit(writer.put("a"))
    await settled(world)
    jobs = world.catalog.jobs
    row = await jobs.start("p1", replace(drain(world, node), verb="delete"), intent="discard")
    leader = await world.lead()
    revision = world.catalog.view.processes["p1"].mod_revision
    with pytest.raises(Conflict, match="still holds"):
        await jobs.write("p1", revision, replace(row, state="done"), leader, remove_volume=node.volume)
    empty = await world.node("n2")
    row = await jobs.start("p2", replace(drain(world, empty), verb="delete"), intent="discard")
    revision = world.catalog.view.processes["p2"].mod_revision
    assert await jobs.write("p2", revision, replace(row, state="done"), leader, remove_volume=empty.volume)
    await settled(world)
    assert empty.volume not in world.catalog.view.volumes_by_id


async def test_a_volume_is_released_once_nobody_empties_it(world: World) -> None:
    node = await world.node("n1")
    jobs = world.catalog.jobs
    row = await jobs.start("p1", drain(world, node), intent="drain")
    with pytest.raises(Conflict, match="cancel that first"):
        await jobs.release([node.volume])
    leader = await world.lead()
    ended = replace(row, state="done")
    assert await jobs.write("p1", world.catalog.view.processes["p1"].mod_revision, ended, leader)
    await settled(world)
    assert volume_of(world, node).intent == "drain"
    assert await jobs.release([node.volume]) == [world.catalog.view.volumes_by_id[node.volume].name]
    assert volume_of(world, node).intent == ""
    assert await jobs.release([node.volume]) == []
    await jobs.start("p2", drain(world, node), intent="drain")
    assert await jobs.write("p2", world.catalog.view.processes["p2"].mod_revision, ended, leader)
    await settled(world)
    await jobs.start("p3", replace(row, verb="delete"), intent="discard")
    assert volume_of(world, node).intent == "discard", "what was emptied may be deleted"
    await jobs.trim(["p1"], leader)
    assert await world.etcd.get(keys.named(keys.PROCESS, "p1")) is None
