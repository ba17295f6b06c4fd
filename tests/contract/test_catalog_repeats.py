"""Repeated commits against a real etcd: a write id is applied once, whatever became of the first reply (A6, A18)."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from copypool.protocol.digests import digest_of
from copypool.protocol.errors import OutcomeUnknown
from copypool.protocol.internal import Refusal
from copypool_coordinator import keys
from copypool_coordinator.etcd import delete
from copypool_coordinator.judging import FIRST_SENT_AHEAD_MAX_MS, RECENT_MAX, RETRY_WINDOW_MS
from kit.catalog_world import World, allowed, current, extent_row, version_of


async def test_a6_a_repeated_put_is_never_applied_twice(world: World) -> None:
    """Put W lands, its reply is lost; another client overwrites; the repeat of W must not come back."""
    one, two = await world.writer(await world.node("n1")), await world.writer(await world.node("n2"))
    first_sent_ms = world.now_ms()
    put = one.put("a", write_id=b"WWWWWWWW")
    await one.commit(put)
    overwrite = two.put("a")
    await two.commit(overwrite)
    reply = await one.commit(one.put("a", write_id=b"WWWWWWWW", first_sent_ms=first_sent_ms))
    assert (reply.results[0].outcome, reply.results[0].version) == ("replayed", put.version)
    assert await version_of(world, "a") == overwrite.version


async def test_a6_a_repeated_delete_does_not_delete_the_next_file(world: World) -> None:
    one, two = await world.writer(await world.node("n1")), await world.writer(await world.node("n2"))
    await one.commit(one.put("a"))
    tombstone = one.delete("a", write_id=b"DDDDDDDD")
    assert await one.outcomes(tombstone) == ["committed"]
    assert await one.outcomes(one.delete("a", write_id=b"DDDDDDDD")) == ["replayed"]
    again = two.put("a")
    assert await two.outcomes(again) == ["committed"]
    assert await one.outcomes(one.delete("a", write_id=b"DDDDDDDD")) == ["replayed"]
    assert await version_of(world, "a") == again.version


async def test_a6_an_honest_first_write_to_a_busy_path_is_applied(world: World) -> None:
    """Its time of first sending lies after, or a little before, a dozen overwrites by others."""
    writer = await world.writer(await world.node("n1"))
    first_sent_ms = world.now_ms()
    for _ in range(12):
        await writer.commit(writer.put("a", first_sent_ms=world.now_ms()))
    assert await writer.outcomes(writer.put("a", first_sent_ms=first_sent_ms)) == ["committed"]


async def test_a6_what_the_memory_cannot_tell_is_unknown(world: World) -> None:
    writer = await world.writer(await world.node("n1"))
    old = world.now_ms() - RETRY_WINDOW_MS - 1
    assert await writer.outcomes(writer.put("a", first_sent_ms=old)) == ["unknown_write"]
    assert await current(world, "a") is None
    first_sent_ms = world.now_ms()
    await writer.commit(writer.put("a", write_id=b"WWWWWWWW", first_sent_ms=first_sent_ms))
    for _ in range(RECENT_MAX):
        await writer.commit(writer.put("a"))
    repeat = writer.put("a", write_id=b"WWWWWWWW", first_sent_ms=first_sent_ms)
    assert await writer.outcomes(repeat) == ["replayed"]
    await writer.commit(writer.put("a"))
    repeat = writer.put("a", write_id=b"WWWWWWWW", first_sent_ms=first_sent_ms)
    assert await writer.outcomes(repeat) == ["unknown_write"]
    assert await writer.outcomes(writer.put("a")) == ["committed"]  # a first try says "now"


async def test_a6_a_tombstone_row_is_swept_after_the_window_and_not_before(world: World) -> None:
    writer = await world.writer(await world.node("n1"))
    leader = await world.lead()
    await writer.commit(writer.put("gone"), writer.put("back"))
    await writer.commit(writer.delete("gone"), writer.delete("back"))
    await writer.commit(writer.put("back"))
    assert await world.catalog.sweep_tombstones(world.now_ms(), leader) == 0
    assert await writer.outcomes(writer.delete("gone")) == ["not_found"]
    world.skew_ms = RETRY_WINDOW_MS + 60_000
    assert await world.catalog.sweep_tombstones(world.now_ms(), leader) == 2
    assert await world.etcd.get(keys.file(writer.namespace, "gone")) is None
    assert await current(world, "back") is not None
    assert await world.catalog.sweep_tombstones(world.now_ms(), leader) == 0


@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize("overwrites", [True, False])
async def test_a18_a_lost_reply_is_resolved_by_reading(world: World, applied: bool, overwrites: bool) -> None:
    writer = await world.writer(await world.node("n1"))
    if overwrites:
        await writer.commit(writer.put("a"), writer.put("b"))
    world.hooked.lost += [applied]
    entries = [writer.put("a"), writer.put("b", if_absent=True)]
    reply = await writer.commit(*entries)
    assert [each.outcome for each in reply.results] == ["committed", "conflict" if overwrites else "committed"]
    assert await version_of(world, "a") == entries[0].version
    assert len(await world.catalog.old_versions(writer.namespace, "a")) == int(overwrites)
    assert await writer.outcomes(writer.put("c")) == ["committed"]


async def test_a18_a_landed_group_is_recognised_through_any_coordinator(world: World) -> None:
    writer = await world.writer(await world.node("n1"))
    other = await world.coordinator("c2")
    await writer.commit(writer.put("exists"))
    entries = [
        writer.put("new"),
        writer.put("exists", if_absent=True),
        writer.delete("nothing"),
        writer.put("old", first_sent_ms=world.now_ms() - RETRY_WINDOW_MS - 1),
    ]
    request = writer.request(*entries)
    first = await world.catalog.commit(request, allowed)
    for catalog in (other, world.catalog):
        assert await catalog.commit(request, allowed) == replace(first, replaced=-1)  # that alone nobody knows any more
    writer.took(request, first)
    assert [refusal.index for refusal in writer.refused] == [1, 2, 3]
    noting = writer.request()
    await other.commit(noting, allowed)
    opened = (await world.catalog.read_open([writer.extent]))[writer.extent]
    assert (opened.row.refusals, opened.row.records, opened.row.group) == ([], 2, 2)


@pytest.mark.parametrize("by", ["commit", "owner", "leader"])
async def test_a18_a_landed_group_is_recognised_after_the_seal(world: World, by: str) -> None:
    """The seal is final: a node that asks about its last group afterwards gets the same answer."""
    node = await world.node("n1")
    writer = await world.writer(node)
    entries = [writer.put("a"), writer.delete("nothing")]
    request = writer.request(*entries, seal=by == "commit")
    first = await world.catalog.commit(request, allowed)
    if by == "owner":
        await world.catalog.seal(writer.extent, by_epoch=(node.node_id, node.epoch))
    elif by == "leader":
        leader = await world.lead()
        await world.etcd.txn([], [delete(keys.session(node.node_id))])
        await world.catalog.seal(writer.extent, leader=leader)
    again = await world.catalog.commit(request, allowed)
    assert (again.length, again.results) == (first.length, first.results)
    row = await extent_row(world, writer.extent)
    assert (row.length, row.records, row.refusals) == (request.new_length, 1, [Refusal(0, 1)])


async def test_a18_nothing_is_said_while_nobody_knows(world: World) -> None:
    writer = await world.writer(await world.node("n1"))
    world.hooked.lost += [False] * 20
    request = writer.request(writer.put("a"))
    with pytest.raises(OutcomeUnknown):
        await world.catalog.commit(request, allowed)
    world.hooked.lost.clear()
    assert (await world.catalog.commit(request, allowed)).results[0].outcome == "committed"


async def test_a_write_id_with_other_content_is_no_repeat(world: World) -> None:
    """Neither of the current version nor of a replaced one, and a delete is not a repeat of a put."""
    writer = await world.writer(await world.node("n1"))
    put = writer.put("a", write_id=b"WWWWWWWW")
    await writer.commit(put)
    other = (
        lambda: writer.put("a", write_id=b"WWWWWWWW", digest=digest_of(b"other")),
        lambda: writer.put("a", 99, write_id=b"WWWWWWWW"),
        lambda: writer.delete("a", write_id=b"WWWWWWWW"),
    )
    for entry in other:
        reply = await writer.commit(entry())
        assert (reply.results[0].outcome, reply.results[0].version) == ("other_write", put.version)
    await writer.commit(writer.put("a"))
    for entry in (other[0], other[2]):
        reply = await writer.commit(entry())
        assert (reply.results[0].outcome, reply.results[0].version) == ("other_write", put.version)
    assert await writer.outcomes(writer.put("a", write_id=b"WWWWWWWW")) == ["replayed"]


async def test_a_part_of_other_content_under_its_write_id_is_no_repeat(world: World) -> None:
    writer = await world.writer(await world.node("n1"))
    upload = b"u" * 16
    part = writer.entry("part", "a", write_id=b"PPPPPPPP", upload=upload)
    assert await writer.outcomes(part) == ["committed"]
    assert await writer.outcomes(writer.entry("part", "a", write_id=b"PPPPPPPP", upload=upload)) == ["replayed"]
    other = writer.entry("part", "a", write_id=b"PPPPPPPP", upload=upload, digest=digest_of(b"other"))
    assert await writer.outcomes(other) == ["other_write"]


async def test_a_write_id_first_sent_in_the_future_is_refused(world: World) -> None:
    """Nothing would ever be too old to be told apart from a first try."""
    writer = await world.writer(await world.node("n1"))
    far = world.now_ms() + FIRST_SENT_AHEAD_MAX_MS + 1_000
    assert await writer.outcomes(writer.put("a", first_sent_ms=far)) == ["invalid"]
    assert await writer.outcomes(writer.put("a", first_sent_ms=world.now_ms() + 1_000)) == ["committed"]
