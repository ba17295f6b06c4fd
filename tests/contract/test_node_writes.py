"""What a node promises to clients that write: real node code, real files, a fake coordinator."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import pytest

from copypool.protocol.api import SMALL_MAX_BYTES, BatchEntry
from copypool.protocol.digests import digest_of, format_digest
from copypool.protocol.errors import (
    CatalogDown,
    Conflict,
    DigestRefused,
    Fenced,
    Forbidden,
    Invalid,
    NotFound,
    OutcomeUnknown,
    Overloaded,
    PreconditionFailed,
    TooLarge,
    Unavailable,
)
from copypool.protocol.internal import EntryResult, Refusal, VerifyReport
from copypool.protocol.routes import DIGEST, METADATA, WRITE_ID, encode_metadata
from copypool_node.format import find_seal_footer
from copypool_node.group import CALM_GROUPS
from copypool_node.scanner import GroupSeen, RecordSeen, Scanner
from kit.eventually import eventually
from kit.fake_coordinator import FakeCoordinator, running
from kit.node_process import NodeUnderTest, quick_limits, running_node


@pytest.fixture
async def coordinator() -> AsyncIterator[FakeCoordinator]:
    async with running() as fake:
        yield fake


@pytest.fixture(params=["short way", "long way"])
async def node(
    tmp_path: Path, coordinator: FakeCoordinator, request: pytest.FixtureRequest
) -> AsyncIterator[NodeUnderTest]:
    async with running_node(tmp_path, coordinator, long_way=request.param == "long way") as under_test:
        yield under_test


async def test_a_small_body_is_committed_before_its_receipt_and_reads_back(node: NodeUnderTest) -> None:
    body = os.urandom(4096)
    receipt = await node.put("a/b.txt", body)
    row = node.coordinator.files[1, "a/b.txt"]
    assert (row.version, row.size, row.digest) == (receipt.version, 4096, digest_of(body))
    assert receipt.digest == format_digest(digest_of(body))
    assert receipt.volumes == ["n1-a"]
    assert receipt.segment is not None
    status, content, _ = await node.get(receipt.segment, receipt.version)
    assert (status, content) == (200, body)


def entry(path: str, payload: bytes, *, write_id: bytes = b"") -> tuple[BatchEntry, bytes]:
    return BatchEntry(path, len(payload), write_id or os.urandom(8)), payload


def scan(node: NodeUnderTest, extent: int) -> list[object]:
    """Every group and record of an extent's file up to its committed length, checked."""
    data = node.extent_file(extent).read_bytes()[: node.coordinator.extents[extent].length]
    scanner = Scanner(extent)
    events: list[object] = list(scanner.feed(data))
    assert scanner.verified_length == len(data)
    return events


async def test_an_empty_body_and_a_unicode_path(node: NodeUnderTest) -> None:
    receipt = await node.put("ä/☃ 1", b"", headers={METADATA: encode_metadata({"k": "v"})})
    assert receipt.segment is not None
    assert receipt.segment.length == 0
    status, content, _ = await node.get(receipt.segment, receipt.version)
    assert (status, content) == (200, b"")
    records = [one for one in scan(node, receipt.segment.extent) if isinstance(one, RecordSeen)]
    assert (records[0].header.path, records[0].header.metadata) == ("ä/☃ 1", {"k": "v"})


async def test_concurrent_writers_share_groups(node: NodeUnderTest) -> None:
    gate = node.coordinator.hold("commit")
    first = asyncio.create_task(node.put("first", b"1"))
    await eventually(lambda: node.coordinator.waiting["commit"] == 1, "the first group is being committed")
    others = [asyncio.create_task(node.put(f"f{index}", b"x" * index)) for index in range(40)]
    await eventually(lambda: node.node.metrics.in_work == 41, "all writes have come")
    await eventually(lambda: node.node.metrics.group_records.total() >= 2, "the second group is on the disk")
    gate.set()
    receipts = [await one for one in (first, *others)]
    commits = node.coordinator.requests["commit"]
    assert len({receipt.version for receipt in receipts}) == 41
    assert len(commits) < 10, "one commit holds many records"
    assert node.coordinator.waiting["commit"] == 0


async def test_one_commit_is_in_flight_and_the_next_group_is_written_meanwhile(node: NodeUnderTest) -> None:
    await node.put("before", b"0")
    gate = node.coordinator.hold("commit")
    writes = [asyncio.create_task(node.put("one", b"1"))]
    await eventually(lambda: node.coordinator.waiting["commit"] == 1, "the first commit is under way")
    groups = node.node.metrics.group_records.total()
    writes.append(asyncio.create_task(node.put("two", b"2")))
    await eventually(lambda: node.node.metrics.group_records.total() == groups + 1, "the next group is written")
    assert node.coordinator.waiting["commit"] == 1
    gate.set()
    await asyncio.gather(*writes)


async def test_while_a_commit_is_in_flight_the_next_group_waits_until_it_is_as_large(node: NodeUnderTest) -> None:
    gate = node.coordinator.hold("commit")
    first = asyncio.create_task(node.batch([entry(f"first/{index}", b"1") for index in range(3)]))
    await eventually(lambda: node.coordinator.waiting["commit"] == 1, "the first group is being committed")
    writes = [asyncio.create_task(node.put("one", b"1"))]
    await eventually(lambda: node.node.metrics.in_work == 2, "the write has come")
    writes += [asyncio.create_task(node.put(path, b"2")) for path in ("two", "three")]
    await eventually(lambda: node.node.metrics.group_records.total() == 2, "the second group is on the disk")
    gate.set()
    await asyncio.gather(first, *writes)
    assert [len(commit.entries) for commit in node.coordinator.requests["commit"]] == [3, 3]


async def test_a_batch_that_replaces_files_is_stored_in_a_few_groups(node: NodeUnderTest) -> None:
    """Puts were taken to create files: the group that is too large goes on in the next ones, not one by one."""
    for number in range(CALM_GROUPS):
        await node.put(f"calm/{number}", b"0")
    for content in (b"first", b"second"):
        before = len(node.coordinator.requests["commit"])
        reply = await node.batch([entry(f"f{number}", content) for number in range(238)])
        assert all(result.receipt is not None for result in reply.results)
        assert len(node.coordinator.requests["commit"]) - before <= {b"first": 3, b"second": 7}[content]
    assert {row.digest for (_, path), row in node.coordinator.files.items() if path.startswith("f")} == {
        digest_of(b"second")
    }


async def test_batches_that_fill_a_group_are_committed_beside_it_and_single_files_are_not(node: NodeUnderTest) -> None:
    await node.put("before", b"0")
    gate = node.coordinator.hold("commit")
    first = asyncio.create_task(node.batch([entry(f"a{number}", b"1") for number in range(400)]))
    await eventually(lambda: node.node.metrics.group_records.total() == 3, "the first lane has written all it may")
    assert node.coordinator.waiting["commit"] == 1
    second = asyncio.create_task(node.batch([entry(path, b"2") for path in ("a1", "twice", "twice")]))
    await eventually(lambda: node.coordinator.waiting["commit"] == 2, "another extent's commit is under way too")
    single = asyncio.create_task(node.put("single", b"3"))
    await eventually(lambda: node.node.metrics.in_work == 3, "the write has come")
    gate.set()
    replies = [await first, await second]
    assert all(result.receipt is not None for reply in replies for result in reply.results)
    kept = [result.receipt for result in replies[1].results if result.receipt is not None]
    assert node.coordinator.files[1, "twice"].version == kept[2].version
    commits = node.coordinator.requests["commit"]
    placed = {one.path: commit.extent for commit in commits for one in commit.entries}
    assert placed["single"] == placed["a399"] != placed["twice"]
    assert (await single).version


async def test_a_node_that_stops_finishes_the_second_lane_as_well(tmp_path: Path, coordinator: FakeCoordinator) -> None:
    async with running_node(tmp_path, coordinator, limits=quick_limits(shutdown_s=30.0)) as node:
        gate = coordinator.hold("commit")
        writes = [
            asyncio.create_task(node.batch([entry(f"{batch}/{number}", b"1") for number in range(400)]))
            for batch in "ab"
        ]
        await eventually(lambda: coordinator.waiting["commit"] == 2, "both lanes commit")
        stop = asyncio.create_task(node.node.stop())
        await eventually(lambda: node.node.session.stopping, "the stop has begun")
        gate.set()
        replies = await asyncio.gather(*writes)
        await stop
    assert all(result.receipt is not None for reply in replies for result in reply.results)


async def test_versions_rise_in_the_order_of_the_media(node: NodeUnderTest) -> None:
    receipts = [await node.put("same", bytes([index])) for index in range(5)]
    versions = [receipt.version for receipt in receipts]
    assert versions == sorted(set(versions))


async def test_a_path_twice_in_one_batch_takes_two_groups_in_order(node: NodeUnderTest) -> None:
    reply = await node.batch([entry("a", b"1"), entry("b", b"2"), entry("a", b"3")])
    versions = [result.receipt.version for result in reply.results if result.receipt is not None]
    assert len(versions) == 3
    assert versions[2] > versions[0]
    assert node.coordinator.files[1, "a"].version == versions[2]


async def test_of_two_contents_for_a_path_in_one_batch_the_later_one_stays(node: NodeUnderTest) -> None:
    """Also when the first one finds no room in its group while the second one's is written already."""
    for number in range(CALM_GROUPS):
        await node.put(f"calm/{number}", b"0")
    await node.batch([entry(f"f{number}", b"first") for number in range(238)])
    groups = node.node.metrics.group_records.total()
    gate = node.coordinator.hold("commit")
    files = [entry(f"f{number}", b"second") for number in range(300)]
    files.insert(119, entry("f100", b"third"))  # in the group behind
    batch = asyncio.create_task(node.batch(files))
    await eventually(lambda: node.node.metrics.group_records.total() == groups + 2, "a group waits behind the first")
    gate.set()
    results = [result.receipt for result in (await batch).results if result.receipt is not None]
    assert len(results) == len(files)
    row = node.coordinator.files[1, "f100"]
    assert (row.digest, row.version) == (digest_of(b"third"), results[119].version)
    assert results[100].version < row.version


async def test_a_refusal_is_answered_only_once_it_is_noted_on_disk_and_committed(node: NodeUnderTest) -> None:
    await node.put("taken", b"1")
    with pytest.raises(Conflict):
        await node.put("taken", b"2", headers={"If-None-Match": "*"})
    (extent,) = node.coordinator.extents.values()
    assert extent.refusals == [], "the note was committed before the client was told"
    noted = [one.header.refusals for one in scan(node, extent.id) if isinstance(one, GroupSeen)]
    assert noted == [(), (), (Refusal(1, 0),)]


async def test_a_refusal_waits_for_the_commit_of_its_note(node: NodeUnderTest) -> None:
    await node.put("taken", b"1")
    gate = node.coordinator.hold("commit", after=1)
    refused = asyncio.create_task(node.put("taken", b"2", headers={"If-None-Match": "*"}))
    await eventually(lambda: node.coordinator.waiting["commit"] == 1, "the note is being committed")
    assert not refused.done()
    assert len(node.coordinator.extents[1].refusals) == 1
    gate.set()
    with pytest.raises(Conflict):
        await refused


async def test_a_repeated_write_id_is_answered_as_a_replay(node: NodeUnderTest) -> None:
    first = await node.put("w", b"1", write_id=b"w" * 8)
    await node.put("w", b"2")
    again = await node.put("w", b"1", write_id=b"w" * 8)
    assert again.replayed
    assert again.version == first.version
    assert node.coordinator.files[1, "w"].version > first.version


async def test_a_lost_commit_reply_is_repeated_as_it_is(node: NodeUnderTest) -> None:
    await node.put("before", b"0")
    node.coordinator.lose_replies["commit"] = 2
    receipt = await node.put("lost", b"1")
    assert node.coordinator.files[1, "lost"].version == receipt.version
    repeats = node.coordinator.requests["commit"][1:]
    assert len(repeats) == 3
    assert repeats[0] == repeats[1] == repeats[2]


async def test_a_lost_commit_request_is_repeated(node: NodeUnderTest) -> None:
    node.coordinator.lose_requests["commit"] = 3
    await node.put("late", b"1")
    assert len(node.coordinator.requests["commit"]) == 1


async def test_nobody_waits_longer_than_the_deadline_for_an_unknown_outcome(
    tmp_path: Path, coordinator: FakeCoordinator
) -> None:
    async with running_node(tmp_path, coordinator, limits=quick_limits(commit_wait_s=0.3)) as node:
        gate = coordinator.hold("commit")
        with pytest.raises(OutcomeUnknown):
            await node.put("held", b"1")
        gate.set()
        await eventually(lambda: (1, "held") in coordinator.files, "the held group lands")

        async def stored() -> bool:
            try:
                await node.put("other", b"2")
            except OutcomeUnknown:  # on a machine so slow that an ordinary commit takes as long
                return False
            return True

        await eventually(stored, "writes go on")
        assert coordinator.files[1, "other"].version > coordinator.files[1, "held"].version


@pytest.mark.parametrize("outcome", ["stale", "contended"])
async def test_a_lost_race_is_appended_again_with_a_higher_version(
    node: NodeUnderTest, outcome: Literal["stale", "contended"]
) -> None:
    high = node.coordinator.now_ms() + 2000 << 16
    node.coordinator.outcomes["hot"] += [EntryResult(outcome, high), EntryResult(outcome, high)]
    receipt = await node.put("hot", b"1")
    assert receipt.version > high
    assert node.coordinator.files[1, "hot"].version == receipt.version


async def test_a_race_that_is_always_lost_ends(node: NodeUnderTest) -> None:
    node.coordinator.outcomes["hot"] += [EntryResult("contended")] * 10
    with pytest.raises(Overloaded):
        await node.put("hot", b"1")
    assert len(node.coordinator.outcomes["hot"]) == 6, "tried four times"


async def test_fencing_in_the_middle_of_a_commit_starts_a_new_epoch_and_a_new_extent(node: NodeUnderTest) -> None:
    first = await node.put("kept", b"1")
    gate = node.coordinator.hold("commit")
    fenced = asyncio.create_task(node.put("fenced", b"2"))
    await eventually(lambda: node.coordinator.waiting["commit"] == 1, "the commit is under way")
    epoch = node.node.session.epoch
    node.coordinator.end_session(1)
    gate.set()
    with pytest.raises((Fenced, OutcomeUnknown)):
        await fenced
    await eventually(lambda: node.node.session.epoch > epoch and node.node.ready, "a new epoch")
    second = await node.put("new", b"3")
    assert first.segment is not None
    assert second.segment is not None
    assert second.segment.extent > first.segment.extent
    assert node.coordinator.extents[first.segment.extent].sealed
    assert (1, "fenced") not in node.coordinator.files
    sealed = node.extent_file(first.segment.extent).read_bytes()
    footer = find_seal_footer(sealed, first.segment.extent, 0)
    assert footer is not None
    assert footer.length == node.coordinator.extents[first.segment.extent].length


async def test_an_extent_that_was_sealed_by_the_leader_is_left_and_writes_go_on(node: NodeUnderTest) -> None:
    first = await node.put("a", b"1")
    assert first.segment is not None
    node.coordinator.seal(first.segment.extent)
    with pytest.raises(Fenced):
        await node.put("b", b"2")
    second = await node.put("b", b"2")
    assert second.segment is not None
    assert second.segment.extent != first.segment.extent
    length = node.coordinator.extents[first.segment.extent].length
    await eventually(lambda: node.node.metrics.extents_sealed == 1, "the footer is written")
    scanner = Scanner(first.segment.extent)
    scanner.feed(node.extent_file(first.segment.extent).read_bytes())
    assert scanner.seal is not None
    assert scanner.seal.length == length


async def test_full_extents_are_sealed_verified_and_followed_by_the_next(
    tmp_path: Path, coordinator: FakeCoordinator
) -> None:
    async with running_node(tmp_path, coordinator, limits=quick_limits(extent_soft_bytes=256 * 1024)) as node:
        receipts = [await node.put(f"f{index}", os.urandom(100_000)) for index in range(10)]
        extents = {receipt.segment.extent for receipt in receipts if receipt.segment is not None}
        assert len(extents) >= 3
        await eventually(lambda: len(coordinator.requests["verified"]) >= 3, "sealed extents are verified")
        report = coordinator.requests["verified"][0]
        assert isinstance(report, VerifyReport)
        assert report.good
        data = node.extent_file(report.extent).read_bytes()
        assert report.digest == digest_of(data[: report.length])
        for receipt in receipts:
            assert receipt.segment is not None
            assert (await node.get(receipt.segment, receipt.version))[0] == 200


async def test_refusals_of_the_last_group_stand_in_the_seal_footer(
    tmp_path: Path, coordinator: FakeCoordinator
) -> None:
    async with running_node(tmp_path, coordinator, limits=quick_limits(extent_soft_bytes=100_000)) as node:
        await node.put("taken", b"1")
        with pytest.raises(Conflict):
            await node.put("taken", os.urandom(200_000), headers={"If-None-Match": "*"})
        data = node.extent_file(1).read_bytes()
        footer = find_seal_footer(data[coordinator.extents[1].length :], 1, coordinator.extents[1].length)
        assert footer is not None
        assert footer.refusals == (Refusal(1, 0),)


async def test_a_wrong_digest_stores_nothing(node: NodeUnderTest) -> None:
    with pytest.raises(DigestRefused):
        await node.put("bad", b"1", headers={DIGEST: format_digest(digest_of(b"2"))})
    assert not node.coordinator.requests["commit"]


async def test_delete_writes_a_tombstone_and_a_second_delete_finds_nothing(node: NodeUnderTest) -> None:
    written = await node.put("gone", b"1")
    deleted = await node.delete("gone")
    assert deleted.version > written.version
    assert deleted.segment is None
    assert node.coordinator.files[1, "gone"].tombstone
    with pytest.raises(NotFound):
        await node.delete("gone")
    kinds = [one.header.kind for one in scan(node, 1) if isinstance(one, RecordSeen)]
    assert kinds == ["file", "tombstone", "tombstone"]


async def test_bad_requests_are_refused_with_a_code(node: NodeUnderTest) -> None:
    with pytest.raises(Invalid):
        await node.put("../x", b"1")
    with pytest.raises(Invalid):
        await node.put("x", b"1", headers={WRITE_ID: "12"})
    with pytest.raises(Forbidden):
        await node.put("x", b"12345", capability=node.write_capability(max_bytes=4))
    with pytest.raises(Forbidden):
        await node.put("x", b"1", kind="files/2")
    with pytest.raises(Forbidden):
        await node.put("x", b"1", capability="bm90IG9uZQ==")
    with pytest.raises(TooLarge):
        await node.put("x", b"1", headers={"Content-Length": str(65 * 1024 * 1024)})
    assert not node.coordinator.requests["commit"]


async def test_a_batch_answers_each_file_on_its_own(node: NodeUnderTest) -> None:
    await node.put("taken", b"0")
    wrong, payload = entry("wrong", b"4")
    wrong.digest = digest_of(b"5")
    taken = BatchEntry("taken", 1, os.urandom(8), if_absent=True)
    reply = await node.batch([entry("good", b"1"), (taken, b"2"), entry("/bad", b"3"), (wrong, payload)])
    assert [result.code for result in reply.results] == ["", "precondition_failed", "invalid", "digest_refused"]


async def test_no_writes_while_the_catalog_says_readonly(node: NodeUnderTest) -> None:
    node.coordinator.access[node.volume] = "readonly"
    await eventually(lambda: node.node.volumes[0].access == "readonly", "the directive arrives")
    with pytest.raises(Unavailable):
        await node.put("x", b"1")


async def test_a_write_id_with_other_content_is_refused_and_acknowledges_nothing(node: NodeUnderTest) -> None:
    first = await node.put("w", b"1", write_id=b"w" * 8)
    with pytest.raises(Conflict) as refused:
        await node.put("w", b"22", write_id=b"w" * 8)
    assert refused.value.details == {"version": first.version}
    with pytest.raises(Conflict):
        await node.delete("w", write_id=b"w" * 8)
    assert node.coordinator.files[1, "w"].version == first.version


async def test_if_match_replaces_only_the_version_that_it_names(node: NodeUnderTest) -> None:
    first = await node.put("m", b"1")
    second = await node.put("m", b"2", headers={"If-Match": f'"{first.version}"'})
    with pytest.raises(PreconditionFailed) as refused:
        await node.put("m", b"3", headers={"If-Match": f'"{first.version}"'})
    assert refused.value.details == {"version": second.version}
    with pytest.raises(PreconditionFailed):
        await node.put("none", b"3", headers={"If-Match": "*"})
    head = BatchEntry("m", 1, os.urandom(8), if_version=first.version)
    reply = await node.batch([(head, b"4")])
    assert reply.results[0].code == "precondition_failed"
    assert node.coordinator.files[1, "m"].version == second.version


@pytest.mark.parametrize("headers", [{"If-Match": "5"}, {"If-Match": 'W/"5"'}, {"If-Match": '"1", "2"'}])
async def test_a_condition_that_cannot_be_kept_is_refused(node: NodeUnderTest, headers: dict[str, str]) -> None:
    with pytest.raises(Invalid):
        await node.put("m", b"1", headers=headers)
    with pytest.raises(Invalid):
        await node.put("m", b"1", headers={"If-Unmodified-Since": "Sun, 06 Nov 1994 08:49:37 GMT"})
    assert not node.coordinator.files


async def test_without_the_catalog_writes_are_refused_at_once_and_resume_by_themselves(
    node: NodeUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is refused after the patience for an election, the rest before their bytes are taken."""
    before = await node.put("before", b"0")
    node.coordinator.catalog_down = True
    with pytest.raises(CatalogDown):
        await node.put("first", b"1")
    commits = len(node.coordinator.requests["commit"])
    for module in ("link", "open_extent", "volumes"):
        monkeypatch.setattr(f"copypool_node.{module}.CATALOG_PATIENCE_S", 300.0)
    async with asyncio.timeout(60):  # none of the four has such patience
        with pytest.raises(CatalogDown):
            await node.put("small", b"2")
        with pytest.raises(CatalogDown):
            await node.put("long", bytes(SMALL_MAX_BYTES + 1))
        with pytest.raises(CatalogDown):
            await node.delete("before")
        with pytest.raises(CatalogDown):
            await node.batch([entry("batched", b"3")])
    assert len(node.coordinator.requests["commit"]) == commits
    node.coordinator.catalog_down = False

    await eventually(lambda: not node.node.link.catalog_away, "the node hears that etcd is back")
    await node.put("after", b"4")
    assert set(node.coordinator.files) == {(1, "before"), (1, "after")}
    assert before.segment is not None
    extent = node.coordinator.extents[before.segment.extent]
    await eventually(lambda: extent.sealed, "the extent of the refused group is sealed")


async def test_an_unknown_outcome_stays_unknown_while_the_catalog_is_away(node: NodeUnderTest) -> None:
    await node.put("before", b"0")
    node.coordinator.lose_replies["commit"] = 1
    lost = asyncio.create_task(node.put("lost", b"1"))
    await eventually(lambda: (1, "lost") in node.coordinator.files, "it has landed, its reply is lost")
    node.coordinator.catalog_down = True
    await eventually(lambda: node.node.link.catalog_away != "", "the node knows")
    with pytest.raises(CatalogDown):
        await node.put("other", b"2")
    assert not lost.done()
    node.coordinator.catalog_down = False
    receipt = await lost
    assert node.coordinator.files[1, "lost"].version == receipt.version


async def test_a_node_ends_in_time_while_the_catalog_is_away(tmp_path: Path, coordinator: FakeCoordinator) -> None:
    """Also with a commit whose outcome is unknown."""
    async with running_node(tmp_path, coordinator, limits=quick_limits(shutdown_s=30.0)) as node:
        await node.put("before", b"0")
        coordinator.lose_replies["commit"] = 1
        lost = asyncio.create_task(node.put("lost", b"1"))
        await eventually(lambda: (1, "lost") in coordinator.files, "it has landed, its reply is lost")
        coordinator.catalog_down = True
        await eventually(lambda: node.node.link.catalog_away != "", "the node knows")
        async with asyncio.timeout(60):
            await node.node.stop()
        with pytest.raises(OutcomeUnknown):
            await lost
    coordinator.catalog_down = False
