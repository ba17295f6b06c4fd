"""Pulls, verifies and drops on command: the destination claims only what it has checked, written and
fsync'd (invariant 2)."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from copypool.protocol.api import PoolType, Receipt, SegmentRef
from copypool.protocol.digests import digest_of
from copypool.protocol.errors import Fenced, Forbidden, RangeNotSatisfiable, Unavailable, from_response
from copypool.protocol.internal import (
    DropCommand,
    DropReply,
    ProgressReport,
    PullCommand,
    PullGivenUp,
    PullSource,
    VerifyCommand,
    VerifyReport,
)
from copypool.protocol.routes import CAPABILITY
from copypool_node import pull
from copypool_node.pacing import Pace
from kit.eventually import eventually
from kit.fake_coordinator import FakeCoordinator, running
from kit.faulty_disk import FaultyDisk
from kit.node_process import NodeUnderTest, quick_limits, running_node

MIB = 1024 * 1024
STRANGER = 77  #: a node id that no heartbeat names: its URL is taken from the command


@pytest.fixture
async def coordinator() -> AsyncIterator[FakeCoordinator]:
    async with running() as fake:
        yield fake


@pytest.fixture
async def source(tmp_path: Path, coordinator: FakeCoordinator) -> AsyncIterator[NodeUnderTest]:
    async with running_node(tmp_path, coordinator, name="n1") as node:
        yield node


class FaultySource:
    """Serves raw bytes of an extent as a node does, up to what a test lets through."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.dies_at: int | None = None  #: file offset at which the connection breaks, each time
        self.asked: list[int] = []
        self.url = ""

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        start, stop = int(request.query["from"]), int(request.query["to"])
        self.asked.append(start)
        response = web.StreamResponse()
        response.content_length = stop - start
        await response.prepare(request)
        end = stop if self.dies_at is None else max(start, min(stop, self.dies_at))
        await response.write(self.data[start:end])
        if end < stop:
            assert request.transport is not None
            request.transport.close()
        return response

    def listed(self) -> PullSource:
        """As the leader names it."""
        return PullSource(STRANGER, self.url, len(self.data), "")


@asynccontextmanager
async def serving(data: bytes) -> AsyncIterator[FaultySource]:
    faulty = FaultySource(data)
    runner = web.ServerRunner(web.Server(faulty.handle, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    faulty.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield faulty
    finally:
        await runner.cleanup()


def order(
    coordinator: FakeCoordinator, to: NodeUnderTest, sources: list[PullSource], *, digest: bytes = b"", extent: int = 1
) -> PullCommand:
    """What the leader says: bring extent 1 to its committed length."""
    row = coordinator.extents[extent]
    return PullCommand(1, extent, to.volume, 1, row.length, row.sealed, list(row.refusals), digest, sources)


def from_node(coordinator: FakeCoordinator, node: NodeUnderTest, to: NodeUnderTest, extent: int = 1) -> PullSource:
    """A real node as a source."""
    source, puller = node.node.session.node_id, to.node.session.node_id
    capability = coordinator.pull_capability(source, puller, extent)
    return PullSource(source, "http://127.0.0.1:1", coordinator.extents[extent].length, capability)


def reports(coordinator: FakeCoordinator) -> list[ProgressReport]:
    return [one for one in coordinator.requests["progress"] if isinstance(one, ProgressReport)]


def given_up(coordinator: FakeCoordinator) -> PullGivenUp:
    (found,) = coordinator.requests["given-up"]
    assert isinstance(found, PullGivenUp)
    return found


async def fill(node: NodeUnderTest) -> list[tuple[Receipt, bytes]]:
    """A few records, small and large, in one extent that streams."""
    stored = []
    for size in (2 * MIB, 9 * MIB + 5, 1 * MIB + 1):
        body = os.urandom(size)
        stored.append((await node.put(f"f{size}", body), body))
    return stored


def committed(coordinator: FakeCoordinator, node: NodeUnderTest, extent: int = 1) -> bytes:
    return node.extent_file(extent).read_bytes()[: coordinator.extents[extent].length]


async def test_a_pull_that_comes_before_its_volume_is_ready_is_refused_and_not_forgotten(
    tmp_path: Path, coordinator: FakeCoordinator, source: NodeUnderTest
) -> None:
    """The catalog shows a volume mounted before its node has compared it; what is taken in then and cannot be begun
    would be told again only after half a minute of silence."""
    async with running_node(tmp_path, coordinator, name="n2", pool_type="copy") as to:
        await eventually(lambda: 1 in to.node.session.peers, "the peers are known")
        await source.put("a", os.urandom(5000))
        (volume,) = to.node.volumes
        ready, volume.ready_epoch = volume.ready_epoch, 0
        with pytest.raises(Unavailable, match="takes no pulls now"):
            await to.command("pull", order(coordinator, to, [from_node(coordinator, source, to)]))
        volume.ready_epoch = ready
        await to.command("pull", order(coordinator, to, [from_node(coordinator, source, to)]))
        await eventually(lambda: len(reports(coordinator)) == 1, "it is pulled")


@pytest.mark.parametrize("pool_type", ["primary", "copy"])
async def test_what_is_rebuilt_has_a_bandwidth_of_its_own_and_copies_do_not(
    tmp_path: Path,
    coordinator: FakeCoordinator,
    source: NodeUnderTest,
    pool_type: PoolType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So much that clients are served beside a rebuild; copies must not fall behind what is written."""
    booked: list[tuple[int, int]] = []

    async def take(pace: Pace, size_bytes: int) -> None:
        booked.append((pace.bytes_s, size_bytes))

    monkeypatch.setattr(Pace, "take", take)
    async with running_node(tmp_path, coordinator, name="n2", pool_type=pool_type) as to:
        await eventually(lambda: 1 in to.node.session.peers, "the peers are known")
        await source.put("a", os.urandom(50_000))
        await to.command("pull", order(coordinator, to, [from_node(coordinator, source, to)]))
        await eventually(lambda: len(reports(coordinator)) == 1, "it is pulled")
        rate = to.node.config.limits.rebuild_bytes_s
    assert rate > 0
    paced = sum(size_bytes for bytes_s, size_bytes in booked if bytes_s == rate)
    assert (paced >= 50_000) if pool_type == "primary" else not paced


async def test_an_open_extent_is_followed_and_finished_when_it_is_sealed(
    tmp_path: Path, coordinator: FakeCoordinator, source: NodeUnderTest
) -> None:
    disk = FaultyDisk()
    async with running_node(tmp_path, coordinator, name="n2", pool_type="copy", disk=disk) as to:
        await eventually(lambda: 1 in to.node.session.peers, "the peers are known")
        first = await source.put("a", os.urandom(5000))
        await to.command("pull", order(coordinator, to, [from_node(coordinator, source, to)]))
        await eventually(lambda: len(reports(coordinator)) == 1, "the first report")
        second = await source.put("b", os.urandom(7000))
        reads = disk.counts["read"]
        await to.command("pull", order(coordinator, to, [from_node(coordinator, source, to)]))
        await eventually(lambda: len(reports(coordinator)) == 2, "the second report")
        one, two = reports(coordinator)
        assert (one.finished, one.verified, one.records, two.records) == (True, False, 1, 2)
        assert two.length == coordinator.extents[1].length
        assert disk.counts["read"] == reads, "what was pulled before is not read again"
        for receipt in (first, second):
            assert receipt.segment is not None
            assert (await to.get(receipt.segment, receipt.version))[0] == 200
        await source.node.volumes[0].lanes[1].stop("test")
        coordinator.seal(1)
        digest = digest_of(committed(coordinator, source))
        await to.command("pull", order(coordinator, to, [from_node(coordinator, source, to)], digest=digest))
        await eventually(lambda: len(reports(coordinator)) == 3, "the last report")
        last = reports(coordinator)[-1]
        assert (last.finished, last.verified, last.length) == (True, True, coordinator.extents[1].length)
        assert to.extent_file(1).read_bytes().startswith(committed(coordinator, source))
        assert to.node.volumes[0].disk.get(1, 1) is not None
        assert to.node.holdings.find(1, to.node.volumes[0]).sealed  # type: ignore[union-attr]


async def test_a_copy_that_went_bad_before_the_seal_is_damage_and_says_so(
    tmp_path: Path, coordinator: FakeCoordinator, source: NodeUnderTest
) -> None:
    """It was claimed, so it is not made anew in silence: the mark comes first, and the other blocks stay."""
    async with running_node(tmp_path, coordinator, name="n2", pool_type="copy") as to:
        await eventually(lambda: 1 in to.node.session.peers, "the peers are known")
        receipt = await source.put("a", os.urandom(200_000))
        await to.command("pull", order(coordinator, to, [from_node(coordinator, source, to)]))
        await eventually(lambda: len(reports(coordinator)) == 1, "the copy is there")
        assert receipt.segment is not None
        length = coordinator.extents[1].length
        with to.extent_file(1).open("r+b") as opened:
            opened.seek(receipt.segment.offset + 70_000)
            opened.write(b"XXXX")
        await source.node.volumes[0].lanes[1].stop("test")
        coordinator.seal(1)
        await to.command("pull", order(coordinator, to, [from_node(coordinator, source, to)]))
        await eventually(lambda: len(coordinator.requests["verified"]) == 1, "the damage is reported")
        (found,) = coordinator.requests["verified"]
        assert isinstance(found, VerifyReport)
        assert (found.good, found.missing, found.volume, found.generation) == (False, False, to.volume, 1)
        assert 0 <= found.bad_offset < length
        assert len(reports(coordinator)) == 1, "nothing more is claimed"
        assert to.extent_file(1).stat().st_size >= length, "the file stays as it is"


async def test_a_location_that_is_to_go_is_a_source_until_it_is_dropped_also_after_a_restart(
    tmp_path: Path, coordinator: FakeCoordinator, source: NodeUnderTest
) -> None:
    """It may hold the last good block of what is damaged elsewhere."""
    async with running_node(tmp_path, coordinator, name="n2", pool_type="copy") as old:
        await eventually(lambda: 1 in old.node.session.peers, "the peers are known")
        await source.put("a", os.urandom(200_000))
        await old.command("pull", order(coordinator, old, [from_node(coordinator, source, old)]))
        await eventually(lambda: len(reports(coordinator)) == 1, "the copy is there")
        length = coordinator.extents[1].length
    coordinator.copies[1, old.volume] = (1, "dropping", length)
    async with (
        running_node(tmp_path, coordinator, name="n2", pool_type="copy") as going,
        running_node(tmp_path, coordinator, name="n3") as to,
    ):
        await eventually(lambda: going.node.session.node_id in to.node.session.peers, "the peers are known")
        await to.command("pull", order(coordinator, to, [from_node(coordinator, going, to)]))
        await eventually(lambda: len(reports(coordinator)) == 2, "it was pulled from what is to go")
        assert to.extent_file(1).read_bytes()[:length] == committed(coordinator, source)
        await going.command("drop", DropCommand(1, 1, going.volume, 1))
        assert going.node.holdings.longest(1) == 0


async def test_a_copy_is_never_cut_back_to_what_an_older_catalog_knows(
    tmp_path: Path, coordinator: FakeCoordinator, source: NodeUnderTest
) -> None:
    async with running_node(tmp_path, coordinator, name="n2", pool_type="copy") as to:
        await eventually(lambda: 1 in to.node.session.peers, "the peers are known")
        await source.put("old", b"1")
        old = coordinator.extents[1].length
        for number in range(4):
            await source.put(f"new/{number}", b"2")
        await to.command("pull", order(coordinator, to, [from_node(coordinator, source, to)]))
        await eventually(lambda: len(reports(coordinator)) == 1, "the copy is there")
        before = to.extent_file(1).read_bytes()
        sealed = order(coordinator, to, [from_node(coordinator, source, to)])
        await to.command("pull", msgspec.structs.replace(sealed, up_to=old, sealed=True))
        await eventually(lambda: bool(to.node.volumes[0].safe_mode), "the volume is in safe mode")
        assert to.extent_file(1).read_bytes() == before


async def test_a_source_that_dies_midway_is_followed_by_the_next_at_the_same_byte(
    tmp_path: Path, coordinator: FakeCoordinator, source: NodeUnderTest
) -> None:
    stored = await fill(source)
    data = committed(coordinator, source)
    async with (
        running_node(tmp_path, coordinator, name="n2", pool_type="copy") as to,
        serving(data) as dying,
        serving(data) as good,
    ):
        dying.dies_at = 7 * MIB
        await to.command("pull", order(coordinator, to, [dying.listed(), good.listed()]))
        await eventually(lambda: any(one.finished for one in reports(coordinator)), "the pull ends")
        assert to.extent_file(1).read_bytes() == data
        assert good.asked[0] > 2 * MIB, "what came from the first source was kept"
        for receipt, body in stored:
            assert receipt.segment is not None
            assert (await to.get(receipt.segment, receipt.version))[1] == body


async def test_bad_bytes_of_a_source_are_never_copied(
    tmp_path: Path, coordinator: FakeCoordinator, source: NodeUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull, "ROUNDS_MAX", 2)
    await fill(source)
    data = committed(coordinator, source)
    bad = bytearray(data)
    bad[5 * MIB] ^= 1
    async with (
        running_node(tmp_path, coordinator, name="n2", pool_type="copy") as to,
        serving(bytes(bad)) as rotten,
        serving(data) as good,
    ):
        await to.command("pull", order(coordinator, to, [rotten.listed()]))
        await eventually(lambda: to.node.puller.queued(to.node.volumes[0]) == 0, "the pull is given up")
        assert not any(one.finished for one in reports(coordinator))
        got = to.extent_file(1).read_bytes()
        assert len(got) <= 5 * MIB
        told = given_up(coordinator)
        assert (told.volume, told.generation, told.length, told.here) == (to.volume, 1, len(got), False)
        assert told.why.startswith(f"no source brings it past byte {len(got)}: node ")
        assert data.startswith(got)
        await to.command("pull", order(coordinator, to, [rotten.listed(), good.listed()]))
        await eventually(lambda: any(one.finished for one in reports(coordinator)), "the pull ends")
        assert to.extent_file(1).read_bytes() == data
        assert good.asked == [max(len(got), rotten.asked[-1])]


async def test_two_damaged_sources_make_one_good_copy(
    tmp_path: Path, coordinator: FakeCoordinator, source: NodeUnderTest
) -> None:
    await fill(source)
    data = committed(coordinator, source)
    first, second = bytearray(data), bytearray(data)
    first[5 * MIB] ^= 1
    second[5 * MIB + 200_000] ^= 1
    async with (
        running_node(tmp_path, coordinator, name="n2", pool_type="copy") as to,
        serving(bytes(first)) as one,
        serving(bytes(second)) as two,
    ):
        await to.command("pull", order(coordinator, to, [one.listed(), two.listed()]))
        await eventually(lambda: any(one.finished for one in reports(coordinator)), "the pull ends")
        assert to.extent_file(1).read_bytes() == data


async def test_a_pull_goes_on_after_a_restart_of_the_destination(
    tmp_path: Path, coordinator: FakeCoordinator, source: NodeUnderTest
) -> None:
    await fill(source)
    data = committed(coordinator, source)
    async with serving(data) as dying:
        dying.dies_at = 9 * MIB
        async with running_node(tmp_path, coordinator, name="n2", pool_type="copy", crash=True) as to:
            await to.command("pull", order(coordinator, to, [dying.listed()]))
            await eventually(lambda: len(dying.asked) > 1, "the source has died once")
            file = to.extent_file(1)
        with file.open("ab") as opened:
            opened.write(b"torn" * 1000)
        coordinator.copies[1, coordinator.volumes[to.node.volumes[0].disk.label.uuid]] = (1, "copying", 0)
        dying.dies_at = None
        dying.asked.clear()
        async with running_node(tmp_path, coordinator, name="n2", pool_type="copy") as to:
            await to.command("pull", order(coordinator, to, [dying.listed()]))
            await eventually(lambda: any(one.finished for one in reports(coordinator)), "the pull ends")
            assert to.extent_file(1).read_bytes() == data
            assert dying.asked[0] > MIB, "what was there was kept"


async def test_progress_is_reported_while_a_long_pull_runs(
    tmp_path: Path, coordinator: FakeCoordinator, source: NodeUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull, "PULL_COMMIT_BYTES", 4 * MIB)
    await fill(source)
    async with running_node(tmp_path, coordinator, name="n2", pool_type="copy") as to:
        await eventually(lambda: 1 in to.node.session.peers, "the peers are known")
        await to.command("pull", order(coordinator, to, [from_node(coordinator, source, to)]))
        await eventually(lambda: any(one.finished for one in reports(coordinator)), "the pull ends")
        lengths = [one.length for one in reports(coordinator)]
        assert len(lengths) >= 3
        assert lengths == sorted(lengths)
        assert [one.finished for one in reports(coordinator)] == [False] * (len(lengths) - 1) + [True]


async def test_an_extent_with_another_digest_is_not_claimed(
    tmp_path: Path, coordinator: FakeCoordinator, source: NodeUnderTest
) -> None:
    await fill(source)
    coordinator.seal(1)
    async with running_node(tmp_path, coordinator, name="n2", pool_type="copy") as to:
        await eventually(lambda: 1 in to.node.session.peers, "the peers are known")
        command = order(coordinator, to, [from_node(coordinator, source, to)], digest=digest_of(b"other"))
        await to.command("pull", command)
        await eventually(lambda: to.node.puller.queued(to.node.volumes[0]) == 0, "the pull ends")
        assert not any(one.finished for one in reports(coordinator))
        assert not given_up(coordinator).here, "another place would not help"


async def test_a_failing_write_ends_the_pull_without_a_claim(
    tmp_path: Path, coordinator: FakeCoordinator, source: NodeUnderTest
) -> None:
    await fill(source)
    disk = FaultyDisk()
    limits = quick_limits(heartbeat_s=5)
    async with running_node(tmp_path, coordinator, name="n2", pool_type="copy", disk=disk, limits=limits) as to:
        disk.fail("write", 3)
        await to.command("pull", order(coordinator, to, [from_node(coordinator, source, to)]))
        await eventually(lambda: to.node.puller.queued(to.node.volumes[0]) == 0, "the pull ends")
        assert not any(one.finished for one in reports(coordinator))
        assert to.node.volumes[0].disk.readonly_reason
        assert given_up(coordinator).here, "another place may do"


async def test_raw_bytes_need_a_capability_and_end_at_the_known_length(
    coordinator: FakeCoordinator, source: NodeUnderTest
) -> None:
    await source.put("a", b"1")
    length = coordinator.extents[1].length
    good = coordinator.pull_capability(1, 2, 1)
    for capability, query, error in (
        (good, f"from=0&to={length + 999}", None),
        (good, f"from={length}&to={length + 1}", RangeNotSatisfiable),
        (coordinator.pull_capability(1, 2, 9), "from=0&to=9", Forbidden),
        (coordinator.read_capability(1, SegmentRef(1, 4096, 1), 1, raw=True), "from=0&to=9", Forbidden),
    ):
        headers = {CAPABILITY: capability}
        async with source.http.get(f"{source.url}/i/raw/1?{query}", headers=headers) as response:
            content = await response.read()
        if error is None:
            assert content == committed(coordinator, source)
        else:
            assert isinstance(from_response(response.status, content, response.content_type), error)


async def test_verify_reports_good_damaged_and_missing(coordinator: FakeCoordinator, source: NodeUnderTest) -> None:
    receipt = await source.put("a", os.urandom(3000))
    length = coordinator.extents[1].length
    command = VerifyCommand(1, 1, source.volume, 1, length, sealed=False, cause="why")
    await source.command("verify", command)
    await eventually(lambda: len(coordinator.requests["verified"]) == 1, "the first report")
    assert receipt.segment is not None
    with source.extent_file(1).open("r+b") as opened:
        opened.seek(receipt.segment.offset + 100)
        opened.write(b"XXXX")
    await source.command("verify", command)
    await source.command("verify", msgspec.structs.replace(command, extent=9))
    await eventually(lambda: len(coordinator.requests["verified"]) == 3, "the other reports")
    found = [one for one in coordinator.requests["verified"] if isinstance(one, VerifyReport)]
    assert [(one.good, one.missing, one.cause) for one in found] == [
        (True, False, "why"),
        (False, False, "why"),
        (False, True, "why"),
    ]
    assert found[0].length == length


async def test_drop_deletes_exactly_that_generation_and_old_terms_are_refused(
    tmp_path: Path, coordinator: FakeCoordinator, source: NodeUnderTest
) -> None:
    await source.put("a", b"1")
    async with running_node(tmp_path, coordinator, name="n2", pool_type="copy") as to:
        await eventually(lambda: 1 in to.node.session.peers, "the peers are known")
        await to.command("pull", order(coordinator, to, [from_node(coordinator, source, to)]))
        await eventually(lambda: len(reports(coordinator)) == 1, "the copy is there")
        file = to.extent_file(1)
        other = await to.command("drop", DropCommand(1, 1, to.volume, 2))
        assert msgspec.msgpack.decode(other, type=DropReply).gone
        assert file.exists()
        await to.command("drop", DropCommand(5, 1, to.volume, 1))
        assert not file.exists()
        await to.command("drop", DropCommand(5, 1, to.volume, 1))
        with pytest.raises(Fenced):
            await to.command("drop", DropCommand(4, 1, to.volume, 1))
