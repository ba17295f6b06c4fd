"""Commits against a real etcd: each failing sequence that the commit transaction was hardened against."""

from __future__ import annotations

import asyncio
import os

import pytest
from msgspec.structs import replace

from copypool.protocol.api import ANY_VERSION
from copypool.protocol.errors import Fenced, Forbidden, Invalid
from copypool.protocol.internal import GROUP_OPS_MAX, CommitEntry, OpenExtentRequest
from copypool.protocol.versions import AHEAD_MAX_MS, BEHIND_MAX_MS, version_at
from copypool_coordinator import keys
from copypool_coordinator.etcd import delete
from kit.catalog_world import World, Writer, allowed, current, extent_row, version_of


async def test_what_is_put_is_found_until_it_is_deleted(world: World) -> None:
    writer = await world.writer(await world.node("n1"))
    first = writer.put("a/b")
    assert await writer.outcomes(first, writer.put("c")) == ["committed", "committed"]
    row = await current(world, "a/b", writer.namespace)
    assert row is not None
    assert (row.version, row.digest, row.record) == (first.version, first.digest, first.segment)
    second = writer.put("a/b", 7)
    assert await writer.outcomes(second, writer.delete("c"), writer.delete("d")) == [
        "committed",
        "committed",
        "not_found",
    ]
    now, before, gone = await world.catalog.lookup(
        [(writer.namespace, "a/b", 0), (writer.namespace, "a/b", first.version), (writer.namespace, "c", 0)]
    )
    assert now is not None
    assert before is not None
    assert (now.version, before.version, gone) == (second.version, first.version, None)
    assert await world.catalog.old_versions(writer.namespace, "a/b") == [first.version]


async def test_a_group_of_creates_costs_one_transaction(world: World) -> None:
    writer = await world.writer(await world.node("n1"))
    before = world.hooked.writes
    assert set(await writer.outcomes(*(writer.put(f"f{n}") for n in range(120)))) == {"committed"}
    assert world.hooked.writes == before + 1


async def test_a1_a_group_cannot_land_after_its_extent_was_sealed(world: World) -> None:
    """A paused coordinator's commit finds the extent sealed by the node's next process: an offset is written once."""
    node = await world.node("n1")
    writer = await world.writer(node)
    await writer.commit(writer.put("kept"))
    late = writer.request(writer.put("late"))

    async def restart_and_seal() -> None:
        await world.register(node, catalog=other)
        reply = await other.seal(writer.extent, by_epoch=(node.node_id, node.epoch))
        assert reply.length == late.old_length

    other = await world.coordinator("c2")
    world.hooked.before_write.append(restart_and_seal)
    with pytest.raises(Fenced):
        await world.catalog.commit(late, allowed)
    assert await current(world, "late") is None
    assert (await extent_row(world, writer.extent)).length == late.old_length


async def test_a2_registering_again_within_the_ttl_fences_the_old_epoch(world: World) -> None:
    node = await world.node("n1")
    writer = await world.writer(node)
    request = writer.request(writer.put("a"))
    assert await world.register(node) > request.epoch
    with pytest.raises(Fenced):
        await world.catalog.commit(request, allowed)
    assert await current(world, "a") is None


async def test_a2_the_new_epoch_cannot_append_to_the_old_epochs_extent(world: World) -> None:
    node = await world.node("n1")
    writer = await world.writer(node)
    await world.register(node)
    with pytest.raises(Fenced):
        await world.catalog.commit(writer.request(writer.put("a")), allowed)


async def test_a5_the_order_of_versions_is_the_order_of_commits(world: World) -> None:
    one, two = await world.writer(await world.node("n1")), await world.writer(await world.node("n2"))
    early, late = one.put("a"), two.put("a")
    assert await two.outcomes(late) == ["committed"]
    reply = await one.commit(early)
    assert (reply.results[0].outcome, reply.results[0].version) == ("stale", late.version)
    assert await two.outcomes(two.delete("a")) == ["committed"]
    again = one.put("a", version=late.version + 1)
    assert await one.outcomes(again) == ["stale"]  # a tombstone's version counts as well
    assert await one.outcomes(replace(one.put("a"), write_id=early.write_id)) == ["committed"]


@pytest.mark.parametrize("skew_ms", [AHEAD_MAX_MS + 1_000, -BEHIND_MAX_MS - 1_000])
async def test_a5_an_implausible_version_is_refused(world: World, skew_ms: int) -> None:
    writer = await world.writer(await world.node("n1"))
    assert await writer.outcomes(writer.put("a", version=version_at(world.now_ms() + skew_ms))) == ["stale"]


async def test_a7_an_extent_takes_only_files_of_its_class(world: World) -> None:
    """Namespaces with other copy pools have extents of their own, and a lease for one does not commit in the other."""
    node = await world.node("n1")
    other_id = await world.namespace("archive", [])
    default, archive = await world.writer(node), await world.writer(node, "archive")
    assert default.class_id != archive.class_id
    assert default.extent != archive.extent

    def check(entry: CommitEntry, class_id: int) -> None:
        leased = {default.namespace: default.class_id, other_id: archive.class_id}[entry.namespace]
        if leased != class_id:
            raise Forbidden("the lease is for another class")

    request = default.request(default.put("mine"), default.put("theirs", namespace=other_id))
    reply = await world.catalog.commit(request, check)
    assert [result.outcome for result in reply.results] == ["committed", "forbidden"]
    assert await current(world, "theirs", other_id) is None
    opened = await world.catalog.open_extent(OpenExtentRequest(node.node_id, node.epoch, node.volume, default.class_id))
    assert (opened.extent_class.primary_pool, opened.extent_class.copy_pools) == ("primary", ["copy"])


async def test_a10_i_a_path_twice_in_a_group_does_not_fail_the_others(world: World) -> None:
    writer = await world.writer(await world.node("n1"))
    assert await writer.outcomes(writer.put("a"), writer.put("b"), writer.put("a")) == [
        "committed",
        "committed",
        "contended",
    ]


async def test_a10_ii_a_group_that_is_too_large_for_etcd_leaves_the_rest_to_the_next(world: World) -> None:
    writer = await world.writer(await world.node("n1"))
    paths = [f"f{n}" for n in range(120)]
    await writer.commit(*(writer.put(path) for path in paths))
    reply = await writer.commit(*(writer.put(path) for path in paths))
    outcomes = [result.outcome for result in reply.results]
    assert 40 <= outcomes.count("committed") <= 62
    assert set(outcomes) == {"committed", "contended"}
    assert outcomes == sorted(outcomes)  # the first ones go
    assert [result.crowded for result in reply.results] == [outcome == "contended" for outcome in outcomes]
    assert reply.replaced == outcomes.count("committed")


async def test_a_group_of_new_files_may_be_twice_as_large_as_one_that_replaces(world: World) -> None:
    """Even the last one that a node makes finds room, and a few that replace a file do no harm."""
    writer = await world.writer(await world.node("n1"))
    await writer.commit(writer.put("f7"), writer.put("f8"))
    reply = await writer.commit(*(writer.put(f"f{n}") for n in range(GROUP_OPS_MAX - 1)))
    assert {result.outcome for result in reply.results} == {"committed"}
    assert reply.replaced == 2


async def test_a10_iii_a_lost_race_says_which_compare_failed(world: World) -> None:
    one, two = await world.writer(await world.node("n1")), await world.writer(await world.node("n2"))
    taken = two.put("taken")
    await two.commit(taken)
    reply = await one.commit(one.put("free"), one.put("taken", if_absent=True), one.put("taken2"))
    assert [(result.outcome, result.version > 0) for result in reply.results] == [
        ("committed", True),
        ("conflict", True),
        ("committed", True),
    ]
    assert reply.results[1].version == taken.version


async def test_a10_iv_a_path_that_loses_twice_leaves_and_the_rest_goes_on(world: World) -> None:
    one = await world.writer(await world.node("n1"))
    other = await world.coordinator("c2")
    two = await world.writer(await world.node("n2"), catalog=other)

    async def overwrite() -> None:
        await two.commit(two.put("hot"), catalog=other)

    await overwrite()
    entries = [one.put("hot", version=world.mint() + (5000 << 16)), one.put("cold")]
    world.hooked.before_write += [overwrite] * 6
    reply = await one.commit(*entries)
    assert [result.outcome for result in reply.results] == ["contended", "committed"]
    assert len(world.hooked.before_write) == 2  # a guess, two exact tries, and the one without the path


async def test_a10_v_a_revision_from_a_lagging_memory_is_refused(world: World) -> None:
    writer = await world.writer(await world.node("n1"))
    stale = writer.request(writer.put("a"))
    await writer.commit(writer.put("b"))
    stale.group, stale.old_length, stale.new_length = 1, writer.length, writer.length + 500
    stale.entries = []
    with pytest.raises(Fenced):
        await world.catalog.commit(stale, allowed)


async def test_a10_vii_forbidding_writes_to_a_volume_seals_what_is_open(world: World) -> None:
    writer = await world.writer(await world.node("n1"))
    await writer.commit(writer.put("a"))
    await world.catalog.set_volume_access("v-n1", "destroyed")
    with pytest.raises(Fenced):
        await world.catalog.commit(writer.request(writer.put("b")), allowed)
    with pytest.raises(Fenced):
        await world.writer(writer.node)
    row = await extent_row(world, writer.extent)
    assert (row.open, row.length) == (False, writer.length)


async def test_a11_copy_progress_never_costs_a_commit(world: World) -> None:
    writer = await world.writer(await world.node("n1"))
    copy = await world.node("n2", "copy", "copy")
    leader = await world.lead()

    async def reserve() -> None:
        await world.catalog.reserve_location(writer.extent, copy.volume, leader)

    world.hooked.before_write.append(reserve)
    before = world.hooked.writes
    assert await writer.outcomes(writer.put("a")) == ["committed"]
    assert world.hooked.writes == before + 2  # the reservation and the commit: nothing was tried again


async def test_a21_ii_no_row_comes_up_under_a_dead_namespace(world: World) -> None:
    node = await world.node("n1")
    doomed = await world.namespace("doomed", ["copy"])
    writer = await world.writer(node)

    async def delete_namespace() -> None:
        await world.etcd.txn([], [delete(keys.named(keys.NAMESPACE, "doomed"))])

    world.hooked.before_write.append(delete_namespace)
    request = writer.request(writer.put("a", namespace=doomed), writer.put("b"))
    reply = await world.catalog.commit(request, allowed)
    assert [result.outcome for result in reply.results] == ["forbidden", "committed"]
    assert await current(world, "a", doomed) is None


async def test_a21_ii_a_namespace_made_anew_is_another_one(world: World) -> None:
    doomed = await world.namespace("doomed", ["copy"])
    await world.etcd.txn([], [delete(keys.named(keys.NAMESPACE, "doomed"))])
    assert await world.namespace("doomed", ["copy"]) != doomed


async def test_c2_a_path_with_a_digit_is_not_an_old_version(world: World) -> None:
    writer = await world.writer(await world.node("n1"))
    first = writer.put("a")
    await writer.commit(first, writer.put("a/1"))
    await writer.commit(writer.put("a"), writer.put("a/1"))
    assert await world.catalog.old_versions(writer.namespace, "a") == [first.version]


async def test_a_seal_in_the_commit_survives_a_change_of_the_row(world: World) -> None:
    writer = await world.writer(await world.node("n1"))
    copy = await world.node("n2", "copy", "copy")
    leader = await world.lead()

    async def reserve() -> None:
        await world.catalog.reserve_location(writer.extent, copy.volume, leader)

    world.hooked.before_write.append(reserve)
    reply = await writer.commit(writer.put("a"), seal=True)
    assert reply.results[0].outcome == "committed"
    row = await extent_row(world, writer.extent)
    assert (row.open, row.length, len(row.locations)) == (False, writer.length, 2)
    assert (row.locations[0].length, row.locations[0].records) == (writer.length, 1)
    assert await world.catalog.read_open([writer.extent]) == {}


async def test_a_commit_that_does_not_follow_is_refused(world: World) -> None:
    writer = await world.writer(await world.node("n1"))
    request = writer.request(writer.put("a"))
    for wrong in (replace(request, group=3), replace(request, old_length=5000), replace(request, new_length=1)):
        with pytest.raises((Invalid, Fenced)):
            await world.catalog.commit(wrong, allowed)
    beyond = writer.put("b", size=1 << 30)
    reply = await world.catalog.commit(replace(request, entries=[beyond]), allowed)
    assert reply.results[0].outcome == "invalid"


async def test_many_writers_of_one_path_leave_one_line_of_versions(world: World) -> None:
    writers: list[Writer] = [await world.writer(await world.node(f"n{n}")) for n in range(4)]

    async def write(writer: Writer) -> list[int]:
        versions = []
        for _ in range(8):
            entry = writer.put("hot", write_id=os.urandom(8))
            reply = await writer.commit(entry)
            if reply.results[0].outcome == "committed":
                versions.append(entry.version)
        return versions

    landed = [version for versions in await asyncio.gather(*map(write, writers)) for version in versions]
    history = [await version_of(world, "hot"), *await world.catalog.old_versions(1, "hot")]
    assert sorted(landed, reverse=True) == history


async def test_a_conditional_write_changes_only_the_version_that_it_names(world: World) -> None:
    one, two = await world.writer(await world.node("n1")), await world.writer(await world.node("n2"))
    assert await one.outcomes(one.put("a", if_version=ANY_VERSION)) == ["conflict"]
    first = one.put("a")
    await one.commit(first)
    mine = one.put("a", write_id=b"MMMMMMMM", if_version=first.version)
    assert await one.outcomes(mine) == ["committed"]
    for make in (two.put, two.delete):
        reply = await two.commit(make("a", if_version=first.version))
        assert (reply.results[0].outcome, reply.results[0].version) == ("conflict", mine.version)
    repeat = one.put("a", write_id=b"MMMMMMMM", if_version=first.version)
    assert await one.outcomes(repeat) == ["replayed"], "its own first try is not what it lost against"
    assert await two.outcomes(two.delete("a", if_version=mine.version)) == ["committed"]
    reply = await two.commit(two.put("a", if_version=mine.version))
    assert (reply.results[0].outcome, reply.results[0].version) == ("conflict", 0)
    assert await two.outcomes(two.delete("a", if_version=mine.version)) == ["not_found"]


async def test_of_two_conditional_writes_one_wins(world: World) -> None:
    one, two = await world.writer(await world.node("n1")), await world.writer(await world.node("n2"))
    first = one.put("a")
    await one.commit(first)
    outcomes = await asyncio.gather(
        one.outcomes(one.put("a", if_version=first.version)), two.outcomes(two.put("a", if_version=first.version))
    )
    assert sorted(map(tuple, outcomes)) == [("committed",), ("conflict",)]
