"""Twins in the catalog, on a real etcd: what a commit claims, how a twin ends, who else may touch it (A2, A13, A21)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest
from msgspec.structs import replace

from copypool.protocol.api import NamespaceSpec, OnCopyFailure
from copypool.protocol.errors import Fenced, Invalid, Unavailable
from copypool.protocol.internal import (
    EXTENT_HEADER_BYTES,
    Claim,
    CommitReply,
    OpenExtentRequest,
    OwnExtentsRequest,
    ProgressReport,
    VerifyReport,
)
from copypool_coordinator import keys, rows, twins
from copypool_coordinator.protection import is_appended, may_leave
from copypool_coordinator.rows import ExtentRow, Location, OpenRow, VolumeRow
from copypool_coordinator.view import Versioned
from kit.catalog_world import TestNode, World, Writer, allowed


@dataclass
class Pair:
    """A writer, its twin's node, and the rows as etcd has them."""

    world: World
    writer: Writer
    twin: TestNode

    def claim(self) -> list[Claim]:
        return [Claim(self.twin.node_id, self.twin.epoch, self.twin.volume)]

    async def commit(self, path: str, *, claimed: bool = True, seal: bool = False) -> CommitReply:
        request = self.writer.request(self.writer.put(path), seal=seal, claims=self.claim() if claimed else [])
        reply = await self.world.catalog.commit(request, allowed)
        self.writer.took(request, reply)
        return reply

    async def row(self) -> ExtentRow:
        kv = await self.world.etcd.get(keys.extent(self.writer.extent))
        assert kv is not None
        return rows.decode(kv.value, ExtentRow)

    async def open(self) -> OpenRow | None:
        kv = await self.world.etcd.get(keys.open_extent(self.writer.extent))
        return None if kv is None else rows.decode(kv.value, OpenRow)

    async def location(self) -> Location:
        return next(each for each in (await self.row()).locations if each.volume == self.twin.volume)


async def paired(world: World, on_failure: OnCopyFailure = "continue") -> Pair:
    node = await world.node("n1")
    twin = await world.node("n2", "copy", "copy")
    spec = NamespaceSpec("strict", ack="copy", on_copy_failure=on_failure)
    namespace = await world.catalog.create_namespace(spec)
    class_id = world.catalog.view.namespaces["strict"].row.class_id
    opened = await world.catalog.open_extent(
        OpenExtentRequest(node.node_id, node.epoch, node.volume, class_id),
        lambda _class, _volume: world.catalog.view.volumes_by_id[twin.volume],
    )
    assert opened.twin is not None
    assert (opened.twin.node_id, opened.twin.volume, opened.twin.generation) == (twin.node_id, twin.volume, 2)
    await world.catalog.wait_for(lambda view: opened.extent in view.extents, 60.0)
    writer = Writer(world, node, namespace.id, class_id, node.volume, opened.extent, 1, opened.revision)
    return Pair(world, writer, twin)


async def test_a_claimed_group_is_copied_the_moment_it_is_committed(world: World) -> None:
    pair = await paired(world)
    await pair.commit("a")
    opened, row = await pair.open(), await pair.row()
    assert opened is not None
    assert opened.uncopied_since_ms == 0
    assert opened.twin == row.twin == 2
    assert world.catalog.view.copied_length(row) >= opened.length
    assert is_appended(row, await pair.location())


async def test_a_commit_without_the_claim_ends_the_twin_at_what_it_holds(world: World) -> None:
    told: list[tuple[int, Location, str]] = []
    world.catalog.on_twin_ended(lambda *what: told.append(what))
    pair = await paired(world)
    await pair.commit("a")
    length = pair.writer.length
    await pair.commit("b", claimed=False)
    await pair.commit("c", claimed=False)
    location, row, opened = await pair.location(), await pair.row(), await pair.open()
    assert (location.state, location.length, location.records) == ("good", length, 1)
    assert (row.twin, row.twin_node) == (0, 0)
    assert opened is not None
    assert opened.twin == 0
    assert opened.uncopied_since_ms > 0
    assert [(extent, left.length) for extent, left, _ in told] == [(pair.writer.extent, length)], "told once"
    with pytest.raises(Invalid):  # it never becomes one again
        await pair.commit("d")


async def test_a_twin_that_never_got_a_group_claims_nothing(world: World) -> None:
    pair = await paired(world)
    await pair.commit("a", claimed=False)
    location = await pair.location()
    assert (location.state, location.length) == ("copying", 0)


async def test_a2_a_stale_twin_fails_the_commit_and_without_it_the_same_group_lands(world: World) -> None:
    pair = await paired(world)
    await pair.commit("a")
    stale = pair.claim()
    await world.register(pair.twin)
    request = pair.writer.request(pair.writer.put("b"), claims=stale)
    for _ in range(2):
        with pytest.raises(Unavailable) as refused:
            await world.catalog.commit(request, allowed)
        assert refused.value.details["claim"] == pair.twin.node_id
    reply = await world.catalog.commit(replace(request, claims=[]), allowed)
    assert [each.outcome for each in reply.results] == ["committed"]
    assert (await pair.location()).length == request.old_length


async def test_a_twin_on_another_volume_or_node_is_not_counted(world: World) -> None:
    pair = await paired(world)
    other = await world.node("n3", "copy", "copy")
    for claim in (
        Claim(pair.twin.node_id, pair.twin.epoch, other.volume),
        Claim(other.node_id, other.epoch, pair.twin.volume),
    ):
        with pytest.raises(Invalid):
            await world.catalog.commit(pair.writer.request(pair.writer.put("a"), claims=[claim]), allowed)


@pytest.mark.parametrize("claimed", [True, False])
async def test_a_repeat_after_a_lost_reply_is_recognised_with_the_same_claims(world: World, claimed: bool) -> None:
    pair = await paired(world)
    await pair.commit("a")
    request = pair.writer.request(pair.writer.put("b"), claims=pair.claim() if claimed else [])
    first = await world.catalog.commit(request, allowed)
    again = await world.catalog.commit(request, allowed)
    assert again == replace(first, replaced=-1)
    opened = await pair.open()
    assert opened is not None
    assert bool(opened.twin) is claimed


async def test_an_unknown_outcome_of_the_ending_commit_is_resolved(world: World) -> None:
    pair = await paired(world)
    await pair.commit("a")
    world.hooked.lost = [True]
    await pair.commit("b", claimed=False)
    assert (await pair.row()).twin == 0
    assert (await pair.location()).records == 1


@pytest.mark.parametrize("claimed", [True, False])
async def test_the_seal_gives_the_twin_what_it_was_claimed_for(world: World, claimed: bool) -> None:
    pair = await paired(world)
    await pair.commit("a")
    length = pair.writer.length
    await pair.commit("b", claimed=claimed, seal=True)
    row, location = await pair.row(), await pair.location()
    assert not row.open
    assert row.twin == 0
    assert location.length == (row.length if claimed else length)


async def test_the_leader_seals_a_dead_writers_extent_and_the_twin_is_whole(world: World) -> None:
    pair = await paired(world)
    await pair.commit("a")
    guard = await world.lead()
    await world.register(pair.writer.node)
    reply = await world.catalog.seal(pair.writer.extent, leader=guard)
    location = await pair.location()
    assert (location.state, location.length, location.records) == ("good", reply.length, 1)


async def test_the_twins_node_is_told_the_committed_length_after_a_restart(world: World) -> None:
    pair = await paired(world)
    twin = pair.twin
    request = OwnExtentsRequest(twin.node_id, twin.epoch, twin.volume)
    (own,) = (await world.catalog.own_extents(request)).extents
    assert (own.length, own.writer) == (0, False)
    await pair.commit("a")
    (own,) = (await world.catalog.own_extents(request)).extents
    assert (own.length, own.writer, own.sealed) == (pair.writer.length, False, False)


# -- others keep off --------------------------------------------------------------------------
async def test_nobody_reports_a_pull_into_a_live_twin(world: World) -> None:
    pair = await paired(world)
    await pair.commit("a")
    twin, extent = pair.twin, pair.writer.extent
    report = ProgressReport(
        twin.node_id, twin.epoch, extent, twin.volume, 2, EXTENT_HEADER_BYTES, 0, finished=False, verified=False
    )
    with pytest.raises(Fenced):
        await world.catalog.report_progress(report)


async def test_damage_at_the_twin_seals_the_extent(world: World) -> None:
    pair = await paired(world)
    await pair.commit("a")
    twin, extent = pair.twin, pair.writer.extent
    report = VerifyReport(twin.node_id, twin.epoch, extent, twin.volume, 2, 0, False, b"", "block 3", 5000)
    outcome = await world.catalog.report_verified(report)
    assert (outcome.kind, outcome.sealed) == ("damaged", True)
    location = await pair.location()
    assert (location.state, location.length) == ("damaged", pair.writer.length)
    with pytest.raises(Fenced):
        await pair.commit("b")


async def test_an_access_mode_that_forbids_writing_to_the_twin_seals_the_extent(world: World) -> None:
    pair = await paired(world)
    await pair.commit("a")
    await world.catalog.set_volume_access("v-n2", "readonly")
    assert not (await pair.row()).open
    with pytest.raises(Fenced):
        await pair.commit("b")


async def test_a_live_twin_is_not_dropped(world: World) -> None:
    pair = await paired(world)
    await pair.commit("a")
    guard = await world.lead()
    extent, twin = pair.writer.extent, pair.twin
    for forced in (False, True):
        assert not await world.catalog.begin_drop(extent, twin.volume, 2, guard, forced=forced)
    row = await pair.row()
    assert not may_leave(row, await pair.location(), pair.writer.length, lambda _: True, 1)


async def test_without_a_place_fail_opens_no_extent_and_continue_opens_one_without_a_twin(world: World) -> None:
    node = await world.node("n1")
    for on_failure in ("fail", "continue"):
        await world.catalog.create_namespace(NamespaceSpec(on_failure, ack="copy", on_copy_failure=on_failure))
        class_id = world.catalog.view.namespaces[on_failure].row.class_id
        request = OpenExtentRequest(node.node_id, node.epoch, node.volume, class_id)
        if on_failure == "fail":
            with pytest.raises(Unavailable) as refused:
                await world.catalog.open_extent(request, lambda _class, _volume: None)
            assert refused.value.details["twin"]
        else:
            reply = await world.catalog.open_extent(request, lambda _class, _volume: None)
            assert reply.twin is None
            assert (reply.extent_class.ack, reply.extent_class.on_copy_failure) == ("copy", "continue")


async def test_a_twins_volume_that_changes_meanwhile_is_looked_at_again(world: World) -> None:
    pair = await paired(world)
    node, twin = pair.writer.node, pair.twin
    asked = 0

    def choose(_class: object, _volume: object) -> Versioned[VolumeRow] | None:
        nonlocal asked
        asked += 1
        known = world.catalog.view.volumes_by_id[twin.volume]
        return known if known.row.access == "readwrite" else None

    async def readonly() -> None:
        other = await world.coordinator("c2")
        await other.set_volume_access("v-n2", "readonly")

    world.hooked.before_write = [readonly]
    reply = await world.catalog.open_extent(
        OpenExtentRequest(node.node_id, node.epoch, node.volume, pair.writer.class_id),
        choose,
    )
    assert reply.twin is None
    assert asked == 2


def test_memory_that_lags_behind_the_end_of_a_twin_counts_it_for_nothing() -> None:
    row = ExtentRow(1, 1, True, 1, 10, 5, 0, [Location(10, 1, "good", 0, 0)], next_generation=2)
    row = twins.added(row, 20, 2, 0)
    live = OpenRow(1, 9000, 3, 4, 100, 0, twin=2)
    over = OpenRow(1, 9000, 3, 4, 100, 0, twin=0)
    assert twins.live(twins.as_sampled(row, live)) is not None
    assert twins.live(twins.as_sampled(row, None)) is not None
    assert twins.live(twins.as_sampled(row, over)) is None


async def test_commits_and_ends_race_and_the_twin_never_claims_more_than_it_was_claimed_for(world: World) -> None:
    pair = await paired(world)
    guard = await world.lead()
    await pair.commit("a")
    length = pair.writer.length
    without = pair.writer.request(pair.writer.put("b"))
    results = await asyncio.gather(
        world.catalog.commit(without, allowed),
        world.catalog.seal(pair.writer.extent, leader=guard, fencing=False),
        return_exceptions=True,
    )
    assert all(not isinstance(each, BaseException) or isinstance(each, Fenced) for each in results)
    assert (await pair.location()).length == length
