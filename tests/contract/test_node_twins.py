"""Simultaneous write: a group is at the writer and at its twin, or the receipt does not say so (A13)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import msgspec
import pytest
from aiohttp import web

from copypool.protocol.api import OnCopyFailure, Receipt, SegmentRef
from copypool.protocol.capability import AppendCapability, derive_node_keys, seal_capability
from copypool.protocol.errors import DigestMismatch, Fenced, Forbidden, Unavailable, from_response
from copypool.protocol.internal import CommitRequest, DropCommand, ExtentClass, PullCommand, PullSource
from copypool.protocol.routes import CAPABILITY
from copypool.protocol.twins import AppendReply
from copypool_node.handlers_twin import TwinHandlers
from kit.eventually import eventually
from kit.fake_coordinator import LIFE_MS, MASTER, FakeCoordinator, running
from kit.faulty_disk import FaultyDisk
from kit.node_process import NodeUnderTest, quick_limits, running_node

MIB = 1024 * 1024


@pytest.fixture
async def coordinator() -> AsyncIterator[FakeCoordinator]:
    async with running() as fake:
        yield fake


def with_rule(coordinator: FakeCoordinator, on_failure: OnCopyFailure, *places: NodeUnderTest) -> None:
    """Extents opened from now on have the ack rule `copy`, with twins at these places."""
    coordinator.extent_class = ExtentClass(1, "primary", ["copy"], "copy", on_failure)
    coordinator.twins = [(one.node.session.node_id, one.volume, one.node.volumes[0].name) for one in places]


@asynccontextmanager
async def pair(
    tmp_path: Path, coordinator: FakeCoordinator, on_failure: OnCopyFailure, **limits: float
) -> AsyncIterator[tuple[NodeUnderTest, NodeUnderTest]]:
    async with AsyncExitStack() as stack:
        patient = quick_limits(**limits)
        writer = await stack.enter_async_context(running_node(tmp_path, coordinator, name="n1", limits=patient))
        twin = await stack.enter_async_context(
            running_node(tmp_path, coordinator, name="n2", pool_type="copy", limits=patient)
        )
        with_rule(coordinator, on_failure, twin)
        yield writer, twin


def committed(coordinator: FakeCoordinator, node: NodeUnderTest, extent: int = 1) -> bytes:
    return node.extent_file(extent).read_bytes()[: coordinator.extents[extent].length]


def commits(coordinator: FakeCoordinator) -> list[CommitRequest]:
    return [one for one in coordinator.requests["commit"] if isinstance(one, CommitRequest)]


@pytest.fixture
def appends_fail(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What becomes of the next appends: `late` (they land, nobody hears), `lost` (never arrive), else as usual."""
    plan: list[str] = []
    original = TwinHandlers.append

    async def disturbed(self: TwinHandlers, request: web.BaseRequest, rest: str, query: str) -> web.Response:
        fate = plan.pop(0) if plan else ""
        if fate == "lost":
            raise Unavailable("lost on purpose")
        answer = await original(self, request, rest, query)
        if fate == "late":
            assert request.transport is not None
            request.transport.close()  # too late for whoever asked
        return answer

    monkeypatch.setattr(TwinHandlers, "append", disturbed)
    return plan


# -- both hold it -----------------------------------------------------------------------------
async def test_a_receipt_names_both_volumes_and_both_files_are_the_same(
    tmp_path: Path, coordinator: FakeCoordinator
) -> None:
    async with pair(tmp_path, coordinator, "fail") as (writer, twin):
        bodies = {f"f{number}": os.urandom(3000) for number in range(20)}
        receipts = await asyncio.gather(*(writer.put(path, body) for path, body in bodies.items()))
        assert {receipt.ack for receipt in receipts} == {"copy"}
        assert all(receipt.volumes == ["n1-a", "n2-a"] for receipt in receipts)
        assert committed(coordinator, writer) == committed(coordinator, twin)
        assert all(len(one.claims) == 1 for one in commits(coordinator))
        for receipt in receipts:  # the twin serves what was acknowledged, before anybody tells it of the commit
            assert receipt.segment is not None
            _, content, _ = await twin.get(receipt.segment, receipt.version)
            assert content == bodies[receipt.path]


async def test_long_bodies_go_to_the_twin_stripe_by_stripe(tmp_path: Path, coordinator: FakeCoordinator) -> None:
    async with pair(tmp_path, coordinator, "fail") as (writer, twin):
        body = os.urandom(21 * MIB + 17)
        receipt = await writer.put("long", body)
        assert (receipt.ack, receipt.volumes) == ("copy", ["n1-a", "n2-a"])
        assert committed(coordinator, writer) == committed(coordinator, twin)
        assert receipt.segment is not None
        _, content, _ = await twin.get(receipt.segment, receipt.version)
        assert content == body


async def test_both_killed_right_after_the_ack_both_have_it(tmp_path: Path, coordinator: FakeCoordinator) -> None:
    async with AsyncExitStack() as stack:
        writer = await stack.enter_async_context(running_node(tmp_path, coordinator, name="n1", crash=True))
        twin = await stack.enter_async_context(
            running_node(tmp_path, coordinator, name="n2", pool_type="copy", crash=True)
        )
        with_rule(coordinator, "fail", twin)
        receipt = await writer.put("a", b"precious")
    assert receipt.segment is not None
    async with (
        running_node(tmp_path, coordinator, name="n1") as writer,
        running_node(tmp_path, coordinator, name="n2", pool_type="copy") as twin,
    ):
        for node in (writer, twin):
            _, content, _ = await node.get(receipt.segment, receipt.version)
            assert content == b"precious"
        assert coordinator.copies[1, twin.volume] == (2, "good", coordinator.extents[1].length)


# -- the twin fails: continue -----------------------------------------------------------------
@pytest.mark.parametrize("fate", ["lost", "late"])
async def test_continue_a_twin_that_missed_a_group_gets_no_further_one(
    tmp_path: Path,
    coordinator: FakeCoordinator,
    appends_fail: list[str],
    monkeypatch: pytest.MonkeyPatch,
    fate: str,
) -> None:
    monkeypatch.setattr("copypool_node.twin_gate.CONTINUE_FIRST_S", 300.0)  # no next extent takes its place here
    async with pair(tmp_path, coordinator, "continue") as (writer, twin):
        first = await writer.put("a", b"1")
        length = coordinator.extents[1].length
        appends_fail.append(fate)
        second = await writer.put("b", b"2")
        third = await writer.put("c", b"3")
        assert [first.ack, second.ack, third.ack] == ["copy", "primary", "primary"]
        assert second.volumes == ["n1-a"]
        assert coordinator.copies[1, twin.volume] == (2, "good", length), "claims what was committed with it, no more"
        assert [len(one.claims) for one in commits(coordinator)] == [1, 0, 0]
        assert commits(coordinator)[1].twin_failure
        held = twin.extent_file(1).read_bytes()
        assert committed(coordinator, writer).startswith(held), "a prefix of the truth: no hole, nothing twice"


async def test_continue_a_twin_killed_between_append_and_commit_is_claimed_if_its_session_lives(
    tmp_path: Path, coordinator: FakeCoordinator
) -> None:
    async with pair(tmp_path, coordinator, "continue") as (writer, twin):
        await writer.put("a", b"1")
        held = coordinator.hold("commit")
        putting = asyncio.create_task(writer.put("b", b"2"))
        await eventually(lambda: coordinator.waiting["commit"] == 1, "the commit is under way")
        await twin.node.crash()
        held.set()
        receipt = await putting
        assert receipt.ack == "copy", "its bytes are fsync'd there and its epoch is the one that was compared"
        assert receipt.segment is not None
        assert committed(coordinator, writer) == committed(coordinator, twin)


async def test_continue_a_twin_fenced_before_the_commit_is_not_counted(
    tmp_path: Path, coordinator: FakeCoordinator
) -> None:
    async with pair(tmp_path, coordinator, "continue") as (writer, twin):
        await writer.put("a", b"1")
        length = coordinator.extents[1].length
        held = coordinator.hold("commit")
        putting = asyncio.create_task(writer.put("b", b"2"))
        await eventually(lambda: coordinator.waiting["commit"] == 1, "the commit is under way")
        coordinator.end_session(twin.node.session.node_id)
        held.set()
        receipt = await putting
        assert (receipt.ack, receipt.volumes) == ("primary", ["n1-a"])
        assert coordinator.copies[1, twin.volume] == (2, "good", length)


async def test_continue_the_next_extent_gets_a_twin_again(
    tmp_path: Path, coordinator: FakeCoordinator, appends_fail: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("copypool_node.twin_gate.CONTINUE_FIRST_S", 0.05)
    async with pair(tmp_path, coordinator, "continue") as (writer, _twin):
        await writer.put("a", b"1")
        appends_fail.append("lost")
        assert (await writer.put("b", b"2")).ack == "primary"

        async def again() -> bool:
            return (await writer.put("c", b"3")).ack == "copy"

        await until_true(again)
        assert coordinator.extents[1].sealed
        assert len(coordinator.extents) == 2


async def test_continue_without_a_place_for_a_twin_writes_go_on(tmp_path: Path, coordinator: FakeCoordinator) -> None:
    async with running_node(tmp_path, coordinator, name="n1") as writer:
        with_rule(coordinator, "continue")
        receipt = await writer.put("a", b"1")
        assert (receipt.ack, receipt.volumes) == ("primary", ["n1-a"])


# -- the twin fails: fail ---------------------------------------------------------------------
@pytest.mark.parametrize("fate", ["lost", "late"])
async def test_fail_the_group_is_refused_as_a_whole_and_nothing_is_visible(
    tmp_path: Path, coordinator: FakeCoordinator, appends_fail: list[str], fate: str
) -> None:
    async with pair(tmp_path, coordinator, "fail") as (writer, twin):
        await writer.put("a", b"1")
        length = coordinator.extents[1].length
        appends_fail.append(fate)
        with pytest.raises(Unavailable):
            await writer.put("b", b"2")
        assert (1, "b") not in coordinator.files
        await eventually(lambda: coordinator.extents[1].sealed, "the extent is sealed")
        assert coordinator.extents[1].length == length
        await eventually(lambda: writer.node.volumes[0].disk.get(1).sealed, "the writer has its footer")  # type: ignore[union-attr]
        assert coordinator.copies[1, twin.volume] == (2, "good", length)


async def test_fail_the_class_refuses_early_until_a_twin_can_be_had(
    tmp_path: Path, coordinator: FakeCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("copypool_node.twin_gate.FAIL_FIRST_S", 2.0)  # then twice that, and so on
    async with pair(tmp_path, coordinator, "fail") as (writer, twin):
        places, coordinator.twins = coordinator.twins, []
        for _ in range(20):
            with pytest.raises(Unavailable):
                await writer.put("a", b"1")
        asked = len(coordinator.requests["open"])
        assert asked <= 5, "it does not ask, let alone seal an extent, for every write"
        assert not coordinator.extents
        coordinator.twins = places

        async def stored() -> bool:
            return (await writer.put("a", b"1")).volumes == ["n1-a", twin.node.volumes[0].name]

        await until_true(stored)


async def test_fail_another_twin_is_taken_when_one_has_failed(tmp_path: Path, coordinator: FakeCoordinator) -> None:
    async with (
        pair(tmp_path, coordinator, "fail") as (writer, twin),
        running_node(tmp_path, coordinator, name="n3", pool_type="copy") as other,
    ):
        with_rule(coordinator, "fail", twin, other)
        assert (await writer.put("a", b"1")).volumes == ["n1-a", "n2-a"]
        await twin.server.stop()

        async def stored() -> bool:
            return (await writer.put("b", b"2")).volumes == ["n1-a", "n3-a"]

        await until_true(stored)


async def test_fail_a_long_body_ends_with_its_twin(
    tmp_path: Path, coordinator: FakeCoordinator, appends_fail: list[str]
) -> None:
    async with pair(tmp_path, coordinator, "fail") as (writer, _twin):
        appends_fail += ["", "lost"]
        with pytest.raises(Unavailable):
            await writer.put("long", os.urandom(20 * MIB))
        assert (1, "long") not in coordinator.files
        await eventually(lambda: coordinator.extents[1].sealed, "the extent is sealed")


async def test_continue_a_long_body_goes_on_without_its_twin(
    tmp_path: Path, coordinator: FakeCoordinator, appends_fail: list[str]
) -> None:
    async with pair(tmp_path, coordinator, "continue") as (writer, twin):
        appends_fail += ["", "lost"]
        body = os.urandom(20 * MIB)
        receipt = await writer.put("long", body)
        assert (receipt.ack, receipt.volumes) == ("primary", ["n1-a"])
        assert coordinator.copies[1, twin.volume] == (2, "copying", 0), "nothing was ever committed with it"


async def test_a_broken_disk_of_the_twin_ends_the_twin_alone(tmp_path: Path, coordinator: FakeCoordinator) -> None:
    disk = FaultyDisk()
    async with (
        running_node(tmp_path, coordinator, name="n1") as writer,
        running_node(tmp_path, coordinator, name="n2", pool_type="copy", disk=disk) as twin,
    ):
        with_rule(coordinator, "continue", twin)
        assert (await writer.put("a", b"1")).ack == "copy"
        disk.fail("write")  # whoever writes first, the append or a probe
        assert (await writer.put("b", b"2")).ack == "primary"
        assert not writer.node.volumes[0].disk.readonly_reason


async def test_a_twin_whose_disk_hangs_is_given_up_in_time(tmp_path: Path, coordinator: FakeCoordinator) -> None:
    disk = FaultyDisk()
    async with (
        running_node(tmp_path, coordinator, name="n1", limits=quick_limits(twin_timeout_s=20.0)) as writer,
        running_node(tmp_path, coordinator, name="n2", pool_type="copy", disk=disk) as twin,
    ):
        with_rule(coordinator, "continue", twin)
        assert (await writer.put("a", b"1")).ack == "copy"
        link = writer.node.volumes[0].lanes[1].extents()[0].twin
        assert link is not None
        link._timeout_s = 0.3  # the first append had all the time that it needs on a slow machine
        disk.hold("sync_data")
        assert (await writer.put("b", b"2")).ack == "primary", "it waits for its deadline, not for the disk"
        assert (await writer.put("c", b"3")).ack == "primary"
        disk.let_go("sync_data")


@pytest.mark.parametrize("nth", [1, 4, 7, 10])
async def test_what_a_receipt_says_of_the_twin_survives_any_fault_and_a_power_cut_there(
    tmp_path: Path, coordinator: FakeCoordinator, nth: int
) -> None:
    """The nth change of the twin's disk fails, then its power does: whatever was acknowledged as there is there."""
    disk = FaultyDisk()
    stored: list[tuple[Receipt, bytes]] = []
    async with running_node(tmp_path, coordinator, name="n1") as writer:
        async with running_node(tmp_path, coordinator, name="n2", pool_type="copy", disk=disk, crash=True) as twin:
            with_rule(coordinator, "continue", twin)
            disk.fail("change", nth)
            for number, size in enumerate((10, 3 * MIB, 5000, 200_000)):
                body = os.urandom(size)
                stored.append((await writer.put(f"f{number}", body), body))
        disk.power_cut()
        async with running_node(tmp_path, coordinator, name="n2", pool_type="copy") as twin:
            for receipt, body in stored:
                assert receipt.segment is not None
                for node in [writer, twin] if receipt.ack == "copy" else [writer]:
                    _, content, _ = await node.get(receipt.segment, receipt.version)
                    assert content == body


# -- the twin's own rules ---------------------------------------------------------------------
class Appender:
    """A writer that says what it likes."""

    def __init__(self, coordinator: FakeCoordinator, twin: NodeUnderTest) -> None:
        self.twin = twin
        node = twin.node.session.node_id
        right = AppendCapability(1, node, 99, 1, twin.volume, 2, coordinator.now_ms() + LIFE_MS)
        self.capability = seal_capability(right, derive_node_keys(MASTER, node, 1))

    async def append(self, offset: int, data: bytes, *, extent: int = 1, sync: int = 1) -> AppendReply:
        url = f"{self.twin.url}/i/append/{extent}?offset={offset}&sync={sync}"
        async with self.twin.http.post(url, data=data, headers={CAPABILITY: self.capability}) as response:
            content = await response.read()
            if response.status >= 400:
                raise from_response(response.status, content, response.content_type)
            return msgspec.msgpack.decode(content, type=AppendReply)


async def image_of(writer: NodeUnderTest, coordinator: FakeCoordinator) -> tuple[bytes, list[int]]:
    """An extent's bytes as a writer makes them, and where its groups end."""
    ends = []
    for path in ("a", "b", "c"):
        await writer.put(path, path.encode() * 100)
        ends.append(coordinator.extents[1].length)
    return committed(coordinator, writer), ends


async def test_a_twin_takes_no_hole_no_other_bytes_and_repeats_only_if_they_match(
    tmp_path: Path, coordinator: FakeCoordinator
) -> None:
    async with (
        running_node(tmp_path, coordinator, name="n1") as writer,
        running_node(tmp_path, coordinator, name="n2", pool_type="copy") as twin,
    ):
        image, ends = await image_of(writer, coordinator)
        appender = Appender(coordinator, twin)
        assert (await appender.append(0, image[: ends[0]])).length == ends[0]
        again = await appender.append(4096, image[4096 : ends[0]])
        assert again == AppendReply(twin.node.session.epoch, ends[0])
        assert (await appender.append(ends[0], image[ends[0] : ends[1]])).length == ends[1]
        with pytest.raises(Fenced, match="hole"):
            await appender.append(ends[1] + 8, image[ends[1] : ends[2]])
        with pytest.raises(Fenced):  # after any error it has ended
            await appender.append(ends[1], image[ends[1] : ends[2]])
        assert twin.extent_file(1).read_bytes() == image[: ends[1]]


@pytest.mark.parametrize("wrong", ["other bytes", "torn", "foreign"])
async def test_a_twin_writes_nothing_that_is_not_whole_and_right(
    tmp_path: Path, coordinator: FakeCoordinator, wrong: str
) -> None:
    async with (
        running_node(tmp_path, coordinator, name="n1") as writer,
        running_node(tmp_path, coordinator, name="n2", pool_type="copy") as twin,
    ):
        image, ends = await image_of(writer, coordinator)
        appender = Appender(coordinator, twin)
        await appender.append(0, image[: ends[0]])
        if wrong == "other bytes":
            offset, data = 4096, bytearray(image[4096 : ends[0]])
            data[-40] ^= 1
        elif wrong == "torn":
            offset, data = ends[0], bytearray(image[ends[0] : ends[1] - 1])
        else:
            offset, data = ends[0], bytearray(image[ends[1] : ends[2]])
        with pytest.raises(DigestMismatch):
            await appender.append(offset, bytes(data))
        assert twin.extent_file(1).read_bytes() == image[: ends[0]]


async def test_appending_needs_the_right_to_this_extent(tmp_path: Path, coordinator: FakeCoordinator) -> None:
    async with running_node(tmp_path, coordinator, name="n2", pool_type="copy") as twin:
        appender = Appender(coordinator, twin)
        with pytest.raises(Forbidden):
            await appender.append(0, b"x" * 4096, extent=2)
        appender.capability = coordinator.pull_capability(twin.node.session.node_id, 99, 1)
        with pytest.raises(Forbidden):
            await appender.append(0, b"x" * 4096)


async def test_a_restarted_twin_takes_nothing_more(tmp_path: Path, coordinator: FakeCoordinator) -> None:
    async with running_node(tmp_path, coordinator, name="n1") as writer:
        image, ends = await image_of(writer, coordinator)
        async with running_node(tmp_path, coordinator, name="n2", pool_type="copy", crash=True) as twin:
            await Appender(coordinator, twin).append(0, image[: ends[0]])
        async with running_node(tmp_path, coordinator, name="n2", pool_type="copy") as twin:
            for offset in (ends[0], 0):
                with pytest.raises(Fenced):
                    await Appender(coordinator, twin).append(offset, image[offset : ends[1]])
            assert twin.extent_file(1).read_bytes() == image[: ends[0]]


async def test_a_pull_ends_the_twin_and_cuts_what_nobody_committed(
    tmp_path: Path, coordinator: FakeCoordinator
) -> None:
    async with (
        running_node(tmp_path, coordinator, name="n1") as writer,
        running_node(tmp_path, coordinator, name="n2", pool_type="copy") as twin,
    ):
        image, ends = await image_of(writer, coordinator)
        appender = Appender(coordinator, twin)
        await appender.append(0, image)
        row = coordinator.extents[1]
        source, puller = writer.node.session.node_id, twin.node.session.node_id
        capability = coordinator.pull_capability(source, puller, 1)
        named = [PullSource(source, writer.url, ends[1], capability)]
        # As if the third group had been refused, and the extent sealed without it.
        await twin.command("pull", PullCommand(1, 1, twin.volume, 2, ends[1], True, [], b"", named))
        with pytest.raises(Fenced):
            await appender.append(row.length, image[ends[1] : ends[2]])
        await eventually(lambda: twin.node.volumes[0].disk.get(1).sealed, "the twin has its footer")  # type: ignore[union-attr]
        footer = await twin.node.volumes[0].disk.get(1).read_footer()  # type: ignore[union-attr]
        assert footer is not None
        assert footer.length == ends[1]
        assert twin.extent_file(1).read_bytes().startswith(image[: ends[1]])


async def test_a_first_append_that_comes_after_a_pull_or_a_drop_begins_nothing(
    tmp_path: Path, coordinator: FakeCoordinator
) -> None:
    async with (
        running_node(tmp_path, coordinator, name="n1") as writer,
        running_node(tmp_path, coordinator, name="n2", pool_type="copy") as twin,
    ):
        image, ends = await image_of(writer, coordinator)
        await twin.command("drop", DropCommand(1, 1, twin.volume, 2))
        with pytest.raises(Fenced):
            await Appender(coordinator, twin).append(0, image[: ends[0]])
        assert twin.node.volumes[0].disk.get(1) is None


async def test_a_dropped_twin_is_gone(tmp_path: Path, coordinator: FakeCoordinator) -> None:
    async with (
        running_node(tmp_path, coordinator, name="n1") as writer,
        running_node(tmp_path, coordinator, name="n2", pool_type="copy") as twin,
    ):
        image, ends = await image_of(writer, coordinator)
        appender = Appender(coordinator, twin)
        await appender.append(0, image[: ends[0]])
        await twin.command("drop", DropCommand(1, 1, twin.volume, 2))
        assert twin.node.volumes[0].disk.get(1) is None
        with pytest.raises(Fenced):
            await appender.append(ends[0], image[ends[0] : ends[1]])
        with pytest.raises(Unavailable):
            await twin.get(SegmentRef(1, 4200, 1), 1)


async def until_true(attempt: object, within_s: float = 60.0) -> None:
    """Repeat a write until it says yes; `Unavailable` counts as no."""
    deadline = asyncio.get_running_loop().time() + within_s
    while True:
        try:
            if await attempt():  # type: ignore[operator]
                return
        except (Unavailable, Fenced, aiohttp.ClientError):
            pass
        assert asyncio.get_running_loop().time() < deadline, "not in time"
        await asyncio.sleep(0.02)
