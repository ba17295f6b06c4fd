"""Sessions, volumes, extents and locations against a real etcd: who may change what,
and what races do to it (invariant 2)."""

from __future__ import annotations

import asyncio
import os

import pytest
from msgspec.structs import replace

from copypool.protocol.errors import Conflict, Fenced, Forbidden, Invalid, NotLeader
from copypool.protocol.internal import (
    EXTENT_HEADER_BYTES,
    InventoryReport,
    JoinRequest,
    MountRequest,
    OpenExtentRequest,
    OwnExtentsRequest,
    ProgressReport,
    PullGivenUp,
    RegisterRequest,
    VerifyReport,
)
from copypool_coordinator import keys, rows
from copypool_coordinator.core import LeaderGuard
from copypool_coordinator.etcd import delete, put
from copypool_coordinator.rows import ExtentRow, Location
from kit.catalog_world import TestNode, World, Writer, allowed


async def extent_row(world: World, extent: int) -> ExtentRow:
    kv = await world.etcd.get(keys.extent(extent))
    assert kv is not None
    return rows.decode(kv.value, ExtentRow)


async def location(world: World, extent: int, volume: int) -> Location:
    (found,) = [each for each in (await extent_row(world, extent)).locations if each.volume == volume]
    return found


async def settled(world: World) -> None:
    """Let the view know everything that was written so far."""
    written = await world.etcd.txn([], [put(keys.ROOT + b"c/~settled", b"")])
    await world.catalog.wait_for(lambda view: view.revision >= written.revision, 60.0)


async def copied(world: World, writer: Writer, holder: TestNode, leader: LeaderGuard, length: int) -> int:
    """Reserve a location and fill it up to `length`; its generation."""
    generation = await world.catalog.reserve_location(writer.extent, holder.volume, leader)
    await world.catalog.report_progress(progress(writer, holder, generation, length, finished=True))
    return generation


def progress(
    writer: Writer, holder: TestNode, generation: int, length: int, *, finished: bool = False, verified: bool = False
) -> ProgressReport:
    return ProgressReport(
        holder.node_id, holder.epoch, writer.extent, holder.volume, generation, length, 1, finished, verified
    )


def verify(writer: Writer, holder: TestNode, generation: int, *, good: bool, digest: bytes = b"") -> VerifyReport:
    evidence = "" if good else "a block at 4096 failed its checksum"
    return VerifyReport(
        holder.node_id, holder.epoch, writer.extent, holder.volume, generation, writer.length, good, digest, evidence
    )


async def seal(world: World, writer: Writer) -> None:
    node = writer.node
    await world.catalog.seal(writer.extent, by_epoch=(node.node_id, node.epoch))


# -- sessions and volumes ---------------------------------------------------------------------------
async def test_a_node_joins_once_and_its_name_is_its_own(world: World) -> None:
    nonce = os.urandom(16)
    first = await world.catalog.join(JoinRequest("n1", nonce))
    assert (await world.catalog.join(JoinRequest("n1", nonce))).id == first.id
    with pytest.raises(Conflict):
        await world.catalog.join(JoinRequest("n1", os.urandom(16)))
    assert (await world.catalog.join(JoinRequest("n2", os.urandom(16)))).id != first.id


async def test_the_name_of_a_node_without_session_and_volumes_is_free(world: World) -> None:
    """A machine is gone for good, with its state folder: its successor has the same name, as pods do."""
    await world.lead()
    lost = await world.node("n1")
    session = keys.session(lost.node_id)
    volume = keys.named(keys.VOLUME, "v-n1")
    successor = JoinRequest("n1", os.urandom(16))
    with pytest.raises(Conflict):
        await world.catalog.join(successor)
    await world.etcd.txn([], [delete(session)])
    with pytest.raises(Conflict, match="copypool delete volume"):
        await world.catalog.join(successor)
    await world.etcd.txn([], [delete(volume)])
    row = await world.catalog.join(successor)
    assert row.id != lost.node_id
    assert (await world.catalog.join(successor)).id == row.id


async def test_a2_a_lost_registration_reply_fences_nobody(world: World) -> None:
    """Two coordinators register the same process: both answer the same epoch. A new process gets a newer one."""
    node = await world.node("n1")
    other = await world.coordinator("c2")
    epoch = node.epoch
    assert await world.register(node, node.nonce, other) == epoch
    request = RegisterRequest(node.node_id, os.urandom(16), "http://n1", "z1", "n1", "0")
    one, two = await asyncio.gather(world.catalog.register(request), other.register(request))
    assert one.epoch == two.epoch > epoch
    assert not await world.catalog.renew(node.node_id, epoch)
    assert await world.catalog.renew(node.node_id, one.epoch)


async def test_a2_a_registration_with_a_lost_reply_is_recognised_by_its_nonce(world: World) -> None:
    node = await world.node("n1")
    request = RegisterRequest(node.node_id, os.urandom(16), "http://n1", "z1", "n1", "0")
    world.hooked.lost += [True]
    registered = await world.catalog.register(request)
    kv = await world.etcd.get(keys.session(node.node_id))
    assert kv is not None
    assert registered.epoch == kv.mod_revision


async def test_a_session_ends_with_its_lease(world: World) -> None:
    node = await world.node("n1")
    lease = world.catalog.view.sessions[node.node_id].row.lease
    await world.etcd.lease_revoke(lease)
    await world.catalog.wait_for(lambda view: not view.node_up(node.node_id), 60.0)
    assert not await world.catalog.renew(node.node_id, node.epoch)
    assert not world.catalog.view.volume_reachable(node.volume)


async def test_c12_a_clone_or_a_rolled_back_disk_is_refused(world: World) -> None:
    node, thief = await world.node("n1"), await world.node("n2")
    uuid = os.urandom(16)
    claim = MountRequest(node.node_id, node.epoch, "disk", uuid, "primary", "primary", 1, b"a" * 16)
    row, _ = await world.catalog.mount(claim)
    assert (await world.catalog.mount(claim))[0] == row  # the reply was lost
    await world.register(node)
    repeated = replace(claim, epoch=node.epoch)  # the process died before it noted the answer
    assert (await world.catalog.mount(repeated))[0] == replace(row, session=node.epoch)
    row, _ = await world.catalog.mount(replace(claim, epoch=node.epoch, label_epoch=2, nonce=b"b" * 16))
    assert row.epoch == 2
    clone = replace(claim, node_id=thief.node_id, epoch=thief.epoch, label_epoch=2, nonce=b"c" * 16)
    rolled_back = replace(claim, epoch=node.epoch, label_epoch=1, nonce=b"a" * 16)
    swapped = replace(claim, epoch=node.epoch, uuid=os.urandom(16), label_epoch=3)
    unknown = replace(claim, epoch=node.epoch, name="other", label_epoch=7)
    for refused in (clone, rolled_back, swapped, unknown):
        with pytest.raises(Conflict):
            await world.catalog.mount(refused)
    with pytest.raises(Conflict):
        await world.catalog.mount(replace(claim, epoch=node.epoch, pool_type="copy", label_epoch=3))


async def test_a3_a_catalog_that_went_back_lets_a_volume_in_but_does_not_take_its_claim_down(world: World) -> None:
    """The label counts more mounts than the row: reads go on, and the newer catalog finds its own epoch again."""
    node = await world.node("n1")
    claim = MountRequest(node.node_id, node.epoch, "disk", os.urandom(16), "primary", "primary", 1, b"a" * 16)
    known, _ = await world.catalog.mount(claim)
    await world.register(node)
    ahead = replace(claim, epoch=node.epoch, label_epoch=5, nonce=b"d" * 16)
    row, _ = await world.catalog.mount(ahead)
    assert row == replace(known, session=node.epoch)
    assert (await world.catalog.mount(ahead))[0] == row
    await world.catalog.wait_for(lambda view: view.volume_reachable(row.id), 60.0)


async def test_c12_a_clone_does_not_take_a_volume_from_the_node_that_has_it_mounted(world: World) -> None:
    node, thief = await world.node("n1"), await world.node("n2")
    claim = MountRequest(node.node_id, node.epoch, "disk", os.urandom(16), "primary", "primary", 1, b"a" * 16)
    await world.catalog.mount(claim)
    clone = replace(claim, node_id=thief.node_id, epoch=thief.epoch, label_epoch=2, nonce=b"c" * 16)
    with pytest.raises(Conflict, match="mounted by node"):
        await world.catalog.mount(clone)
    await world.catalog.mount(replace(claim, label_epoch=2, nonce=b"b" * 16))
    await world.register(node)  # it has started anew, without the disk: that was moved
    row, _ = await world.catalog.mount(replace(clone, label_epoch=3))
    assert row.node == thief.node_id


async def test_a_volume_that_its_node_runs_without_cannot_be_reached(world: World) -> None:
    node = await world.node("n1")
    assert world.catalog.view.volume_reachable(node.volume)
    await world.register(node)
    await world.catalog.wait_for(lambda view: view.sessions[node.node_id].mod_revision == node.epoch, 60.0)
    assert not world.catalog.view.volume_reachable(node.volume)


async def test_a_fenced_node_mounts_nothing(world: World) -> None:
    node = await world.node("n1")
    stale = MountRequest(node.node_id, node.epoch, "disk", os.urandom(16), "primary", "primary", 1)
    await world.register(node)
    with pytest.raises(Fenced):
        await world.catalog.mount(stale)


# -- extents ----------------------------------------------------------------------------------------
async def test_c1_extent_ids_are_dense_and_never_used_twice(world: World) -> None:
    node = await world.node("n1")
    other = await world.coordinator("c2")
    world.hooked.lost += [False]  # a block that nobody knows whether it was taken is skipped
    opened = [
        (await world.writer(node, catalog=catalog)).extent for catalog in (world.catalog, other, world.catalog, other)
    ]
    assert len(set(opened)) == 4
    assert opened[2] == opened[0] + 1
    assert opened[3] == opened[1] + 1


async def test_c1_an_extent_exists_in_full_or_not_at_all(world: World) -> None:
    node = await world.node("n1")
    writer = await world.writer(node)
    row = await extent_row(world, writer.extent)
    assert (row.open, row.epoch, row.length) == (True, node.epoch, 0)
    assert row.locations == [Location(node.volume, 1, "good", 0, 0, 0, row.opened_ms)]
    opened = (await world.catalog.read_open([writer.extent]))[writer.extent]
    assert (opened.mod_revision, opened.row.length) == (writer.revision, EXTENT_HEADER_BYTES)
    stale = OpenExtentRequest(node.node_id, node.epoch, node.volume, writer.class_id)
    await world.register(node)
    count = len(world.catalog.view.extents)
    with pytest.raises(Fenced):
        await world.catalog.open_extent(stale)
    await settled(world)
    assert len(world.catalog.view.extents) == count


async def test_c1_an_open_with_a_lost_reply_leaves_no_second_extent(world: World) -> None:
    node = await world.node("n1")
    await world.writer(node)
    world.hooked.lost += [True]
    writer = await world.writer(node)
    assert await writer.outcomes(writer.put("a")) == ["committed"]
    assert len(world.catalog.view.extents) == 2


async def test_only_the_writers_node_and_the_leader_seal(world: World) -> None:
    node, other = await world.node("n1"), await world.node("n2")
    writer = await world.writer(node)
    leader = await world.lead()
    with pytest.raises(Forbidden):
        await world.catalog.seal(writer.extent, by_epoch=(other.node_id, other.epoch))
    with pytest.raises(Fenced):
        await world.catalog.seal(writer.extent, by_epoch=(node.node_id, node.epoch + 1))
    with pytest.raises(Conflict):
        await world.catalog.seal(writer.extent, leader=leader)  # its writer lives
    await world.catalog.resign(leader)
    await world.etcd.txn([], [delete(keys.session(node.node_id))])
    with pytest.raises(NotLeader):
        await world.catalog.seal(writer.extent, leader=leader)
    sealed = await world.catalog.seal(writer.extent, leader=await world.lead())
    assert (sealed.length, sealed.group) == (EXTENT_HEADER_BYTES, -1)


async def test_a_seal_ends_at_the_committed_length_and_may_be_repeated(world: World) -> None:
    node = await world.node("n1")
    writer = await world.writer(node)
    await writer.commit(writer.put("a"), writer.delete("nothing"))
    await world.register(node)
    world.hooked.lost += [True]
    first = await world.catalog.seal(writer.extent, by_epoch=(node.node_id, node.epoch))
    assert (first.length, first.group, first.generation) == (writer.length, 0, 1)
    assert first.refusals == writer.refused
    assert await world.catalog.seal(writer.extent, by_epoch=(node.node_id, node.epoch)) == first
    assert (await location(world, writer.extent, node.volume)).length == writer.length


async def test_a_restarted_node_learns_which_extents_it_has_to_seal(world: World) -> None:
    node = await world.node("n1")
    open_, sealed = await world.writer(node), await world.writer(node)
    await open_.commit(open_.put("a"))
    await sealed.commit(sealed.put("b"), seal=True)
    await world.register(node)
    reply = await world.catalog.own_extents(OwnExtentsRequest(node.node_id, node.epoch, node.volume))
    found = {each.extent: (each.length, each.sealed, each.writer) for each in reply.extents}
    assert found == {open_.extent: (open_.length, False, True), sealed.extent: (sealed.length, True, False)}
    assert (reply.next_after, reply.revision >= node.epoch) == (-1, True)
    after = OwnExtentsRequest(node.node_id, node.epoch, node.volume, min(found))
    assert [each.extent for each in (await world.catalog.own_extents(after)).extents] == [max(found)]


# -- locations --------------------------------------------------------------------------------------
async def test_a9_i_a_deposed_leader_drops_nothing(world: World) -> None:
    writer = await world.writer(await world.node("n1"))
    copy = await world.node("n2", "copy", "copy")
    old = await world.lead()
    await writer.commit(writer.put("a"), seal=True)
    generation = await copied(world, writer, copy, old, writer.length)
    await world.catalog.resign(old)
    new = await world.lead("c2")
    assert new.term > old.term
    for call in (
        world.catalog.begin_drop(writer.extent, copy.volume, generation, old),
        world.catalog.confirm_drop(writer.extent, copy.volume, generation, old),
        world.catalog.call_off_drop(writer.extent, copy.volume, generation, old),
        world.catalog.finish_drop(writer.extent, copy.volume, generation, old),
        world.catalog.set_location_state(writer.extent, copy.volume, generation, "missing", "", old),
        world.catalog.set_node_away(copy.node_id, 1, old),
    ):
        with pytest.raises(NotLeader):
            await call
    with pytest.raises(NotLeader):
        await world.catalog.reserve_location(writer.extent, writer.volume + 100, old)
    assert await world.catalog.begin_drop(writer.extent, copy.volume, generation, new)


async def test_a9_ii_a_late_receipt_makes_no_location(world: World) -> None:
    writer = await world.writer(await world.node("n1"))
    copy = await world.node("n2", "copy", "copy")
    leader = await world.lead()
    await writer.commit(writer.put("a"), seal=True)
    late = await world.catalog.reserve_location(writer.extent, copy.volume, leader)
    assert await world.catalog.reserve_location(writer.extent, copy.volume, leader) == late
    assert await world.catalog.begin_drop(writer.extent, copy.volume, late, leader)
    with pytest.raises(Fenced):
        await world.catalog.report_progress(progress(writer, copy, late, writer.length, finished=True))
    with pytest.raises(Conflict):
        await world.catalog.finish_drop(writer.extent, copy.volume, late, leader)
    assert await world.catalog.confirm_drop(writer.extent, copy.volume, late, leader)
    await world.catalog.finish_drop(writer.extent, copy.volume, late, leader)
    await world.catalog.finish_drop(writer.extent, copy.volume, late, leader)
    again = await world.catalog.reserve_location(writer.extent, copy.volume, leader)
    assert again > late
    with pytest.raises(Fenced):
        await world.catalog.report_progress(progress(writer, copy, late, writer.length, finished=True))
    assert (await location(world, writer.extent, copy.volume)).state == "copying"


async def test_why_a_pull_was_given_up_stays_in_the_row_until_it_goes_on(world: World) -> None:
    writer = await world.writer(await world.node("n1"))
    copy = await world.node("n2", "copy", "copy")
    leader = await world.lead()
    await writer.commit(writer.put("a"), seal=True)
    generation = await world.catalog.reserve_location(writer.extent, copy.volume, leader)

    epoch = copy.epoch

    def report(why: str) -> PullGivenUp:
        return PullGivenUp(copy.node_id, epoch, writer.extent, copy.volume, generation, 0, why, False)

    await world.catalog.report_given_up(report("x" * 1000))
    held = await location(world, writer.extent, copy.volume)
    assert (held.state, held.stalled, held.stalled_here) == ("copying", "x" * 300, False)
    before = await world.etcd.get(keys.extent(writer.extent))
    await world.catalog.report_given_up(report("x" * 1000))
    assert await world.etcd.get(keys.extent(writer.extent)) == before, "what is said twice is written once"
    await world.catalog.report_progress(progress(writer, copy, generation, writer.length, finished=True))
    held = await location(world, writer.extent, copy.volume)
    assert (held.state, held.stalled) == ("good", "")
    await world.catalog.report_given_up(report("late"))
    assert (await location(world, writer.extent, copy.volume)).stalled == ""
    await world.register(copy)
    with pytest.raises(Fenced):
        await world.catalog.report_given_up(report("old"))


async def test_a_drop_is_called_off_until_it_is_confirmed_and_never_after(world: World) -> None:
    """The compares of rows decide, whatever a leader believes: no node is told to delete what may still come back."""
    writer = await world.writer(await world.node("n1"))
    copy = await world.node("n2", "copy", "copy")
    leader = await world.lead()
    await writer.commit(writer.put("a"), seal=True)
    catalog, extent = world.catalog, writer.extent
    generation = await copied(world, writer, copy, leader, writer.length)
    assert not await catalog.confirm_drop(extent, copy.volume, generation, leader), "it does not go"
    assert await catalog.begin_drop(extent, copy.volume, generation, leader)
    assert await catalog.call_off_drop(extent, copy.volume, generation, leader)
    assert await catalog.call_off_drop(extent, copy.volume, generation, leader)
    assert (await location(world, extent, copy.volume)).state == "good"
    with pytest.raises(Conflict):
        await catalog.finish_drop(extent, copy.volume, generation, leader)

    assert await catalog.begin_drop(extent, copy.volume, generation, leader)
    assert not await catalog.confirm_drop(extent, copy.volume, generation, leader), "the survivor was not read back"
    assert await catalog.confirm_drop(extent, copy.volume, generation, leader, forced=True)
    assert not await catalog.call_off_drop(extent, copy.volume, generation, leader)
    assert await catalog.confirm_drop(extent, copy.volume, generation, leader), "another leader goes on"
    await catalog.finish_drop(extent, copy.volume, generation, leader)


async def test_a9_iv_an_inventory_does_not_judge_what_is_younger(world: World) -> None:
    node = await world.node("n1")
    old = await world.writer(node)
    await old.commit(old.put("a"), seal=True)
    await settled(world)
    revision = world.catalog.view.revision
    young = await world.writer(node)
    await young.commit(young.put("b"), seal=True)
    await settled(world)
    report = InventoryReport(node.node_id, node.epoch, node.volume, revision, [old.extent, young.extent, 999], [])
    outcomes = await world.catalog.apply_inventory(report)
    assert [(each.extent, each.kind) for each in outcomes] == [(old.extent, "missing")]
    assert (await location(world, young.extent, node.volume)).state == "good"
    assert (await location(world, old.extent, node.volume)).length == old.length


async def test_progress_never_claims_more_than_is_committed_or_by_a_fenced_node(world: World) -> None:
    writer = await world.writer(await world.node("n1"))
    copy = await world.node("n2", "copy", "copy")
    leader = await world.lead()
    await writer.commit(writer.put("a"))
    generation = await world.catalog.reserve_location(writer.extent, copy.volume, leader)
    with pytest.raises(Invalid):
        await world.catalog.report_progress(progress(writer, copy, generation, writer.length + 1))
    await world.catalog.report_progress(progress(writer, copy, generation, writer.length, finished=True))
    await world.catalog.report_progress(progress(writer, copy, generation, writer.length - 1))  # late
    held = await location(world, writer.extent, copy.volume)
    assert (held.state, held.length, held.verified_ms) == ("good", writer.length, 0)
    fenced = progress(writer, copy, generation, writer.length)
    await world.register(copy)
    with pytest.raises(Fenced):
        await world.catalog.report_progress(fenced)


async def test_a_pull_that_ends_short_of_a_sealed_extent_is_not_good(world: World) -> None:
    writer = await world.writer(await world.node("n1"))
    copy = await world.node("n2", "copy", "copy")
    leader = await world.lead()
    await writer.commit(writer.put("a"))
    told = writer.length
    await writer.commit(writer.put("b"), seal=True)
    generation = await copied(world, writer, copy, leader, told)
    assert (await location(world, writer.extent, copy.volume)).state == "copying"
    report = progress(writer, copy, generation, writer.length, finished=True, verified=True)
    await world.catalog.report_progress(report)
    held = await location(world, writer.extent, copy.volume)
    assert (held.state, held.verified_ms > 0) == ("good", True)


async def test_a4_the_only_holder_of_acked_bytes_never_leaves(world: World) -> None:
    """A committed 40, B copied 30 of it; A dies; C is rebuilt from B: A's row stays, whatever its state."""
    a = await world.node("n1")
    writer = await world.writer(a)
    b, c = await world.node("n2", "copy", "copy"), await world.node("n3")
    leader = await world.lead()
    await writer.commit(writer.put("first"))
    short = writer.length
    await copied(world, writer, b, leader, short)
    await writer.commit(writer.put("second"))
    await world.etcd.txn([], [delete(keys.session(a.node_id))])
    await world.catalog.seal(writer.extent, leader=leader)
    await copied(world, writer, c, leader, short)
    await settled(world)
    assert not await world.catalog.begin_drop(writer.extent, a.volume, 1, leader)
    await world.catalog.set_location_state(writer.extent, a.volume, 1, "missing", "its node is away", leader)
    assert not await world.catalog.begin_drop(writer.extent, a.volume, 1, leader)
    assert (await location(world, writer.extent, a.volume)).length == writer.length


async def test_a4_two_drops_at_once_leave_one_location(world: World) -> None:
    writer = await world.writer(await world.node("n1"))
    copy = await world.node("n2", "copy", "copy")
    leader = await world.lead()
    await writer.commit(writer.put("a"), seal=True)
    generation = await copied(world, writer, copy, leader, writer.length)
    await settled(world)
    dropped = await asyncio.gather(
        world.catalog.begin_drop(writer.extent, copy.volume, generation, leader),
        world.catalog.begin_drop(writer.extent, writer.volume, 1, leader),
    )
    assert sorted(dropped) == [False, True]


async def test_a15_only_a_verify_marks_and_only_a_verify_heals(world: World) -> None:
    writer = await world.writer(await world.node("n1"))
    await writer.commit(writer.put("a"), seal=True)
    outcome = await world.catalog.report_verified(verify(writer, writer.node, 1, good=False))
    assert (outcome.kind, outcome.sealed) == ("damaged", False)
    damaged = await location(world, writer.extent, writer.volume)
    assert (damaged.state, "4096" in damaged.evidence, damaged.length) == ("damaged", True, writer.length)
    assert (await world.catalog.report_verified(verify(writer, writer.node, 1, good=False))).kind == "unchanged"
    outcome = await world.catalog.report_verified(verify(writer, writer.node, 1, good=True, digest=b"d" * 32))
    assert outcome.kind == "healed"
    row = await extent_row(world, writer.extent)
    assert (row.digest, row.locations[0].state, row.locations[0].evidence) == (b"d" * 32, "good", "")


async def test_a15_damage_on_an_open_extent_ends_it(world: World) -> None:
    writer = await world.writer(await world.node("n1"))
    await writer.commit(writer.put("a"))
    outcome = await world.catalog.report_verified(verify(writer, writer.node, 1, good=False))
    assert (outcome.kind, outcome.sealed) == ("damaged", True)
    with pytest.raises(Fenced):
        await world.catalog.commit(writer.request(writer.put("b")), allowed)
    row = await extent_row(world, writer.extent)
    assert (row.length, row.locations[0].length, row.locations[0].state) == (writer.length, writer.length, "damaged")


async def test_a_copy_whose_digest_differs_is_damaged(world: World) -> None:
    writer = await world.writer(await world.node("n1"))
    copy = await world.node("n2", "copy", "copy")
    leader = await world.lead()
    await writer.commit(writer.put("a"), seal=True)
    generation = await copied(world, writer, copy, leader, writer.length)
    first = await world.catalog.report_verified(verify(writer, writer.node, 1, good=True, digest=b"d" * 32))
    assert first.kind == "verified"
    other = await world.catalog.report_verified(verify(writer, copy, generation, good=True, digest=b"e" * 32))
    assert other.kind == "damaged"
    assert (await location(world, writer.extent, copy.volume)).state == "damaged"
    replacement = await world.catalog.reserve_location(writer.extent, copy.volume, leader)
    assert replacement > generation
    assert len((await extent_row(world, writer.extent)).locations) == 3


async def test_an_extent_that_changes_under_every_decision_is_decided_anew(world: World) -> None:
    writer = await world.writer(await world.node("n1"))
    other = await world.coordinator("c2")
    holders = [await world.node(f"h{n}", "copy", "copy") for n in range(4)]
    leader = await world.lead()
    for holder in holders[:3]:

        async def reserve(volume: int = holder.volume) -> None:
            await other.reserve_location(writer.extent, volume, leader)

        world.hooked.before_write.append(reserve)
    generation = await world.catalog.reserve_location(writer.extent, holders[3].volume, leader)
    row = await extent_row(world, writer.extent)
    assert [each.volume for each in row.locations[1:]] == [holder.volume for holder in holders]
    assert generation == 5


async def test_a_node_reports_only_for_its_own_volumes(world: World) -> None:
    writer = await world.writer(await world.node("n1"))
    thief = await world.node("n2")
    await writer.commit(writer.put("a"), seal=True)
    forged = replace(verify(writer, writer.node, 1, good=False), node_id=thief.node_id, epoch=thief.epoch)
    with pytest.raises(Forbidden):
        await world.catalog.report_verified(forged)
    with pytest.raises(Forbidden):
        await world.catalog.own_extents(OwnExtentsRequest(thief.node_id, thief.epoch, writer.volume))
