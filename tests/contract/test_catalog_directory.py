"""Lookups, listings, uploads, sweeps, counters, events and administration against a real etcd."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import pytest

from copypool.protocol.api import ListEntry, NamespaceSpec, SegmentRef
from copypool.protocol.errors import Conflict, Invalid, NotFound, NotLeader
from copypool.protocol.internal import CommitEntry
from copypool_coordinator import keys, rows
from copypool_coordinator.etcd import RangeResult, delete, get
from copypool_coordinator.etcd.requests import TXN_MAX_OPS
from copypool_coordinator.rows import FORMAT, CountersRow, EventRow, ExtentRow, FileFlag, FileRow, TokenRow
from kit.catalog_world import World, Writer
from kit.eventually import eventually


async def filled(world: World, *paths: str) -> Writer:
    """A writer that has committed these files."""
    writer = await world.writer(await world.node("n1"))
    for start in range(0, len(paths), 100):
        outcomes = await writer.outcomes(*(writer.put(path) for path in paths[start : start + 100]))
        assert set(outcomes) == {"committed"}
    return writer


async def listed(world: World, prefix: str = "", delimiter: str = "", limit: int = 1000, scope: str = "") -> list[str]:
    """All names of a listing, page by page."""
    names: list[str] = []
    after = ""
    while True:
        entries, after = await world.catalog.list(1, prefix, delimiter, after, limit, scope)
        assert len(entries) <= limit
        names += [entry.path for entry in entries]
        if not after:
            return names


def fences(count: int, pattern: str) -> list[str]:
    """Paths that have fence rows."""
    found: list[str] = []
    number = 0
    while len(found) < count:
        path = pattern.format(number)
        if keys.is_fence(path):
            found.append(path)
        number += 1
    return sorted(found)


NAMES = [
    "a",
    "a/b",
    "a/b/c",
    "a/c",
    "a-b",
    "a.b/x",
    "b",
    "team/a",
    "team/a/x",
    "team/ab",
    "team/a-x",
    "ö/ß",
    "z/\U0001f600",
]


async def test_a_listing_is_in_byte_order_and_whole(world: World) -> None:
    await filled(world, *NAMES)
    assert await listed(world) == sorted(NAMES, key=str.encode)
    for limit in (1, 2, 3, 5):
        assert await listed(world, limit=limit) == sorted(NAMES, key=str.encode)


@pytest.mark.parametrize("limit", [1, 2, 1000])
async def test_a_delimiter_folds_what_is_below(world: World, limit: int) -> None:
    await filled(world, *NAMES)
    assert await listed(world, delimiter="/", limit=limit) == ["a", "a-b", "a.b/", "a/", "b", "team/", "z/", "ö/"]
    assert await listed(world, "a/", "/", limit) == ["a/b", "a/b/", "a/c"]
    assert await listed(world, "te", "/", limit) == ["team/"]
    assert await listed(world, "team/a", "/", limit) == ["team/a", "team/a-x", "team/a/", "team/ab"]


@pytest.mark.parametrize("delimiter", ["", "/"])
async def test_a_scope_ends_at_a_path_boundary_also_in_cursors(world: World, delimiter: str) -> None:
    await filled(world, *NAMES)
    assert await listed(world, "team/", scope="team/a") == ["team/a", "team/a/x"]
    assert await listed(world, "team/ab", delimiter, scope="team/a") == []
    assert await listed(world, "", "/", scope="team/a") == ["team/"]
    entries, after = await world.catalog.list(1, "", delimiter, "team/a/x", 10, "team/a")
    assert (entries, after) == ([], "")
    assert await listed(world, "team/a/", delimiter, 1, "team/a/") == ["team/a/x"]


async def test_a_listing_shows_what_the_row_says(world: World) -> None:
    writer = await world.writer(await world.node("n1"))
    put = writer.put("dir/a", 123)
    await writer.commit(put, writer.put("dir/gone"))
    await writer.commit(writer.delete("dir/gone"))
    entries, after = await world.catalog.list(1, "dir/", "/", "", 10)
    assert (entries, after) == ([ListEntry("dir/a", put.version, 123, "blake3:" + put.digest.hex())], "")
    with pytest.raises(Invalid):
        await world.catalog.list(1, "", ",", "", 10)


async def test_b1_no_range_of_a_listing_reaches_past_the_next_fence(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks = fences(4, "m/{}")
    paths = sorted({*marks, *(f"m/{n}" for n in range(0, 3000, 7))})
    await filled(world, *paths)
    await world.catalog.wait_for(lambda view: len(view.fences[1]) >= 4, 60.0)
    assert set(marks) <= set(world.catalog.view.fences[1])
    counted: list[int] = []
    real: Callable[..., object] = world.etcd.range

    async def counting(key: bytes, end: bytes, **more: int) -> RangeResult:
        found = await real(key, end, **more)  # type: ignore[misc]
        assert isinstance(found, RangeResult)
        counted.append(found.count)
        return found

    monkeypatch.setattr(world.etcd, "range", counting)
    assert await listed(world, limit=50) == paths
    between = [sum(low <= path < high for path in paths) for low, high in zip(["", *marks], [*marks, "~"], strict=True)]
    assert max(counted) <= max(between)


async def test_a_page_over_nothing_but_tombstones_still_comes_to_an_end(world: World) -> None:
    paths = [f"d/{n:04}" for n in range(300)]
    writer = await filled(world, *paths, "z")
    for start in range(0, 300, 30):
        await writer.commit(*(writer.delete(path) for path in paths[start : start + 30]))
    assert await listed(world, limit=2) == ["z"]
    assert await listed(world, delimiter="/", limit=1) == ["z"]


async def test_a_lookup_takes_128_reads_and_no_more(world: World) -> None:
    writer = await filled(world, "a")
    found = await world.catalog.lookup([(writer.namespace, "a", 0)] * TXN_MAX_OPS)
    assert len(found) == TXN_MAX_OPS
    assert None not in found
    with pytest.raises(Invalid):
        await world.catalog.lookup([(writer.namespace, "a", 0)] * (TXN_MAX_OPS + 1))
    assert await world.catalog.lookup([]) == []


async def test_old_versions_come_newest_first(world: World) -> None:
    writer = await filled(world, "a", "ab")
    entries = []
    for minute in (0, 1, 60, 60 * 24):
        world.skew_ms = minute * 60_000
        entries.append(writer.put("a"))
        await writer.commit(entries[-1])
    versions = [entry.version for entry in reversed(entries)]
    assert (await world.catalog.old_versions(1, "a"))[:3] == versions[1:]
    assert len(await world.catalog.old_versions(1, "a")) == 4
    assert await world.catalog.old_versions(1, "a", 2) == versions[1:3]


async def test_a14_a_file_comes_with_the_extents_it_needs(world: World) -> None:
    """What memory does not know is read; an extent that the row names is there, also while the file changes."""
    writer = await world.writer(await world.node("n1"))
    put = writer.put("a")
    await writer.commit(put)
    row, extents, opened = await world.catalog.file_with_facts(1, "a")
    assert row is not None
    assert (row.version, set(extents), opened[writer.extent].row.length) == (
        put.version,
        {writer.extent},
        writer.length,
    )
    await writer.commit(writer.put("a"), seal=True)
    assert (await world.catalog.file_with_facts(1, "a")).open == {}
    assert (await world.catalog.file_with_facts(1, "a", put.version)).row is not None
    assert (await world.catalog.file_with_facts(1, "b")).row is None


# -- uploads ----------------------------------------------------------------------------------------
def part(writer: Writer, upload: bytes, number: int, path: str = "big") -> CommitEntry:
    return writer.entry("part", path, 1000, upload=upload, part=number)


def manifest(writer: Writer, upload: bytes, parts: list[CommitEntry], path: str = "big") -> CommitEntry:
    return writer.entry(
        "manifest",
        path,
        sum(each.size for each in parts),
        upload=upload,
        segments=[each.segment for each in parts],
        part_versions=[each.version for each in parts],
    )


async def rows_of_upload(world: World, upload: bytes) -> int:
    key = keys.upload(1, upload)
    return len((await world.etcd.range(key, key + b"0")).rows)


async def test_parts_become_one_file_and_are_swept(world: World) -> None:
    writer = await world.writer(await world.node("n1"))
    upload = os.urandom(16)
    parts = []
    for number in range(3):
        parts.append(part(writer, upload, number))
        assert await writer.outcomes(parts[-1]) == ["committed"]
    assert await rows_of_upload(world, upload) == 4
    complete = manifest(writer, upload, parts)
    assert await writer.outcomes(complete) == ["committed"]
    (row,) = await world.catalog.lookup([(1, "big", 0)])
    assert row is not None
    assert (row.flags, row.size, row.segments) == (FileFlag.multipart, 3000, [each.segment for each in parts])
    again = manifest(writer, upload, parts)
    again.write_id, again.digest = complete.write_id, complete.digest
    assert await writer.outcomes(again) == ["replayed"]
    assert await writer.outcomes(manifest(writer, upload, parts)) == ["invalid"]

    async def swept() -> bool:
        return await rows_of_upload(world, upload) == 0

    await eventually(swept, "the parts are swept")


async def test_a_manifest_names_each_part_as_it_is_stored(world: World) -> None:
    writer = await world.writer(await world.node("n1"))
    upload = os.urandom(16)
    first = []
    for number in range(2):
        first.append(part(writer, upload, number))
        assert await writer.outcomes(first[-1]) == ["committed"]
    resent = part(writer, upload, 1)
    assert await writer.outcomes(resent) == ["committed"]
    assert await writer.outcomes(manifest(writer, upload, first)) == ["invalid"]
    assert await writer.outcomes(manifest(writer, upload, [first[0], resent], "other")) == ["invalid"]
    assert await writer.outcomes(manifest(writer, upload, [resent, first[0]])) == ["invalid"]
    assert await writer.outcomes(manifest(writer, upload, [first[0], resent, first[1]])) == ["invalid"]
    assert await writer.outcomes(manifest(writer, os.urandom(16), [first[0]])) == ["invalid"]
    assert await writer.outcomes(manifest(writer, upload, [first[0], resent])) == ["committed"]


async def test_a_part_sent_again_while_complete_reads_the_parts_is_noticed(world: World) -> None:
    one, two = await world.writer(await world.node("n1")), await world.writer(await world.node("n2"))
    other = await world.coordinator("c2")
    upload = os.urandom(16)
    parts = []
    for number in range(2):
        parts.append(part(one, upload, number))
        assert await one.outcomes(parts[-1]) == ["committed"]

    async def resend() -> None:
        await two.commit(part(two, upload, 0), catalog=other)

    world.hooked.before_write.append(resend)
    assert await one.outcomes(manifest(one, upload, parts)) == ["invalid"]
    assert (await world.catalog.lookup([(1, "big", 0)])) == [None]


async def test_parts_of_one_upload_do_not_disturb_each_other(world: World) -> None:
    upload = os.urandom(16)
    writers = [await world.writer(await world.node(f"n{n}")) for n in range(6)]
    entries = [part(writer, upload, number) for number, writer in enumerate(writers)]
    outcomes = await asyncio.gather(*(writer.outcomes(entry) for writer, entry in zip(writers, entries, strict=True)))
    assert outcomes == [["committed"]] * 6
    repeat = part(writers[0], upload, 0)
    repeat.write_id, repeat.digest = entries[0].write_id, entries[0].digest
    assert await writers[0].outcomes(repeat) == ["replayed"]
    assert await writers[1].outcomes(part(writers[1], upload, 9, "another path")) == ["invalid"]


async def test_a_file_of_many_parts_has_them_in_its_manifest_record(world: World) -> None:
    writer = await world.writer(await world.node("n1"))
    upload = os.urandom(16)
    parts = []
    for number in range(70):
        parts.append(part(writer, upload, number))
        assert await writer.outcomes(parts[-1]) == ["committed"]
    assert await writer.outcomes(manifest(writer, upload, parts)) == ["committed"]
    (row,) = await world.catalog.lookup([(1, "big", 0)])
    assert row is not None
    assert (row.flags, row.segments) == (FileFlag.multipart | FileFlag.in_manifest, None)


async def test_abandoned_uploads_are_swept_and_living_ones_are_not(world: World) -> None:
    writer = await world.writer(await world.node("n1"))
    leader = await world.lead()
    dead, orphaned, living = (os.urandom(16) for _ in range(3))
    await writer.commit(part(writer, dead, 0))
    await writer.commit(part(writer, orphaned, 0))
    await world.etcd.txn([], [delete(keys.upload(1, orphaned))])
    begun_before_ms = world.now_ms() + 10
    world.skew_ms = 60_000
    await writer.commit(part(writer, living, 0))
    assert await world.catalog.sweep_uploads(begun_before_ms, leader) == 2
    assert [await rows_of_upload(world, upload) for upload in (dead, orphaned, living)] == [0, 0, 2]
    await world.catalog.resign(leader)
    with pytest.raises(NotLeader):
        await world.catalog.sweep_uploads(world.now_ms() + 100, leader)


# -- counters, events, administration ---------------------------------------------------------------
async def test_b2_counters_follow_commits_and_survive_a_restart(world: World) -> None:
    writer = await filled(world, "a", "b", "c")
    await writer.commit(writer.put("a", 10), writer.delete("b"))
    await world.catalog.counters.flush()
    kv = await world.etcd.get(keys.named(keys.COUNTERS, "c1"))
    assert kv is not None
    row = rows.decode(kv.value, CountersRow)
    assert (row.files, row.payload_bytes, row.dead) == (2, 110, {writer.extent: (2, 200)})
    restarted = await world.coordinator("c1")
    await restarted.commit(writer.request(writer.put("d")), lambda entry, class_id: None)
    await restarted.counters.flush()
    await restarted.wait_for(lambda view: view.counters["c1"].row.files == 3, 60.0)
    assert restarted.counters.totals()[:2] == (3, 210)


async def test_b2_dead_sums_move_into_the_extent_rows_once(world: World) -> None:
    writer = await filled(world, "a")
    leader = await world.lead()
    await writer.commit(writer.put("a"))
    await world.catalog.counters.flush()
    await world.catalog.wait_for(lambda view: bool(view.counters), 60.0)
    assert await world.catalog.fold_counters(leader) == 1
    assert await world.catalog.fold_counters(leader) == 0
    await writer.commit(writer.put("a"))
    await world.catalog.counters.flush()
    assert await world.catalog.fold_counters(leader) == 1
    kv = await world.etcd.get(keys.extent(writer.extent))
    assert kv is not None
    row = rows.decode(kv.value, ExtentRow)
    assert (row.dead_records, row.dead_bytes, row.open) == (2, 200, True)


async def test_events_keep_their_order_and_their_bound(world: World) -> None:
    leader = await world.lead()
    events = [EventRow(FORMAT, n, "NodeAway", "c1", f"message {n}") for n in range(150)]
    ids = await world.catalog.append_events(events)
    assert ids == sorted(set(ids))
    assert [row for _, row in await world.catalog.events("", 200)] == events
    assert [event_id for event_id, _ in await world.catalog.events(ids[9], 5)] == ids[10:15]
    assert await world.catalog.trim_events(100, leader) == 50
    assert await world.catalog.trim_events(100, leader) == 0
    assert [event_id for event_id, _ in await world.catalog.events("", 1)] == [ids[50]]


async def test_bootstrap_may_be_repeated_and_keeps_the_first_cluster_id(world: World) -> None:
    before = world.catalog.view.cluster
    assert before is not None
    names = {"primary_pool": "primary", "copy_pool": "copy", "namespace": "default"}
    again = await world.catalog.bootstrap(os.urandom(16), **names)
    assert again == before.row.id
    assert {name: (pool.row.id, pool.row.type) for name, pool in world.catalog.view.pools.items()} == {
        "primary": (1, "primary"),
        "copy": (2, "copy"),
    }


async def test_equal_policies_share_a_class_and_names_are_taken_once(world: World) -> None:
    await world.catalog.create_pool("copy2", "copy")
    one = await world.catalog.create_namespace(NamespaceSpec("one", "primary", ["copy", "copy2"]))
    two = await world.catalog.create_namespace(NamespaceSpec("two", "primary", ["copy2", "copy"]))
    view = world.catalog.view
    assert view.namespaces["one"].row.class_id == view.namespaces["two"].row.class_id
    assert one.id != two.id
    assert await world.catalog.create_namespace(NamespaceSpec("one", "primary", ["copy", "copy2"])) == one
    with pytest.raises(Conflict):
        await world.catalog.create_namespace(NamespaceSpec("one", "primary", ["copy"]))
    with pytest.raises(Invalid):
        await world.catalog.create_namespace(NamespaceSpec("three", "copy", ["copy"]))
    with pytest.raises(NotFound):
        await world.catalog.create_namespace(NamespaceSpec("three", "primary", ["nowhere"]))
    with pytest.raises(Conflict):
        await world.catalog.create_pool("copy2", "primary")


async def test_tokens_come_and_go(world: World) -> None:
    row = TokenRow(FORMAT, "ci", 2, "default", "", 0)
    await world.catalog.create_token(b"h" * 32, row)
    assert world.catalog.view.tokens[b"h" * 32].row == row
    with pytest.raises(Conflict):
        await world.catalog.create_token(b"i" * 32, row)
    await world.catalog.revoke_token("ci")
    assert world.catalog.view.tokens == {}
    with pytest.raises(NotFound):
        await world.catalog.revoke_token("ci")


async def test_one_leads_at_a_time_and_only_it_writes_the_clock(world: World) -> None:
    first = await world.lead()
    with pytest.raises(AssertionError):
        await world.lead("c2")
    revision = await world.catalog.write_clock(first)
    await world.catalog.wait_for(lambda view: view.revision >= revision and view.clock_ms > 0, 60.0)
    await world.catalog.resign(first)
    second = await world.lead("c2")
    await world.catalog.resign(first)
    with pytest.raises(NotLeader):
        await world.catalog.write_clock(first)
    assert await world.catalog.write_clock(second) > revision


async def test_a_coordinator_announces_itself_and_leaves(world: World) -> None:
    other = await world.coordinator("c2")
    await other.announce("http://c2")
    await world.catalog.wait_for(lambda view: "c2" in view.coordinators, 60.0)
    assert world.catalog.view.coordinators["c2"].row.url == "http://c2"
    await other.close()
    await world.catalog.wait_for(lambda view: "c2" not in view.coordinators, 60.0)


async def test_a_small_file_costs_no_more_than_300_bytes(world: World) -> None:
    """Key and value of a file at a usual path, and etcd's own 90 bytes a row."""
    path = "home/alice/projects/thesis/figures/chapter-3/fig-0017.png"
    await filled(world, path)
    answer = await world.etcd.txn([], [get(keys.file(1, path))])
    (kv,) = answer.responses[0]
    row = rows.decode(kv.value, FileRow)
    row.record = SegmentRef(900_000, 60_000_000, 60_000)
    assert 90 + len(kv.key) + len(rows.encode(row)) <= 300
