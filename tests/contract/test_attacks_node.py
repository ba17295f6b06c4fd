"""Failing sequences that the node was hardened against, played step by step on its real code (tests/ATTACKS.md)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from copypool.protocol.api import CompleteRequest, PartRef, Receipt
from copypool.protocol.digests import digest_of, parse_digest
from copypool.protocol.errors import Conflict, CopypoolError, NotFound, from_response
from copypool.protocol.internal import (
    DropCommand,
    ExtentClass,
    InventoryReport,
    ProgressReport,
    PullCommand,
    PullSource,
)
from copypool.protocol.routes import CAPABILITY, MSGPACK
from kit.eventually import eventually
from kit.fake_coordinator import FakeCoordinator, running
from kit.node_process import NodeUnderTest, quick_limits, running_node
from kit.rebuilding import rebuild

MIB = 1024 * 1024


@pytest.fixture
async def coordinator() -> AsyncIterator[FakeCoordinator]:
    async with running() as fake:
        yield fake


def extent_files(folder: Path, name: str = "n1") -> list[Path]:
    return sorted((folder / name / "volume" / "extents").glob("??/*.ext"))


async def content(node: NodeUnderTest, receipt: Receipt) -> bytes:
    assert receipt.segment is not None
    return (await node.get(receipt.segment, receipt.version))[1]


# -- A1: offsets are rewritten ------------------------------------------------------------------
async def test_a1_i_a_commit_that_lands_after_the_restart_shows_no_bytes(
    tmp_path: Path, coordinator: FakeCoordinator
) -> None:
    """G is fsync'd and its commit is paused; the node dies, starts, cuts and writes H; then the commit goes on."""
    async with running_node(tmp_path, coordinator, crash=True) as node:
        kept = await node.put("kept", b"k" * 3000)
        paused = coordinator.hold("commit")
        lost = asyncio.create_task(node.put("g", b"G" * 5000))
        await eventually(lambda: coordinator.waiting["commit"] == 1, "the commit of G is paused")
        committed = coordinator.extents[1].length
        assert node.extent_file(1).stat().st_size > committed + 5000, "G is on the disk"
    assert isinstance((await asyncio.gather(lost, return_exceptions=True))[0], Exception)
    assert coordinator.waiting["commit"] == 1, "and goes on when it goes on"
    coordinator.holds.clear()
    async with running_node(tmp_path, coordinator) as node:
        other = await node.put("h", b"H" * 5000)
        assert other.segment is not None
        assert other.segment.extent != 1, "no offset of the old extent is written again"
        paused.set()
        await eventually(lambda: coordinator.waiting["commit"] == 0, "the commit of G has been answered")
        assert (1, "g") not in coordinator.files
        assert coordinator.extents[1].length == committed
        assert await content(node, kept) == b"k" * 3000
        assert await content(node, other) == b"H" * 5000
        assert not node.node.holdings.find(1, node.node.volumes[0], 1).damaged  # type: ignore[union-attr]
    assert set(rebuild(extent_files(tmp_path))) == {(1, "kept"), (1, "h")}


async def test_a1_ii_writer_and_twin_are_the_same_after_the_writer_lost_a_group(
    tmp_path: Path, coordinator: FakeCoordinator
) -> None:
    """G is at the twin; the writer restarts without it and writes H: H has other offsets, and G goes from the twin."""
    async with running_node(tmp_path, coordinator, name="n2", pool_type="copy") as twin:
        async with running_node(tmp_path, coordinator, name="n1", crash=True) as writer:
            coordinator.extent_class = ExtentClass(1, "primary", ["copy"], "copy", "fail")
            coordinator.twins = [(twin.node.session.node_id, twin.volume, "n2-a")]
            await writer.put("kept", b"k" * 3000)
            paused = coordinator.hold("commit")
            lost = asyncio.create_task(writer.put("g", b"G" * 5000))
            await eventually(lambda: coordinator.waiting["commit"] == 1, "the commit of G is paused")
            assert b"G" * 5000 in twin.extent_file(1).read_bytes(), "the twin has G"
        await asyncio.gather(lost, return_exceptions=True)
        coordinator.holds.clear()
        async with running_node(tmp_path, coordinator, name="n1") as writer:
            other = await writer.put("h", b"H" * 5000)
            paused.set()
            await eventually(lambda: coordinator.waiting["commit"] == 0, "the commit of G has been answered")
            assert other.segment is not None
            assert other.segment.extent != 1
            row = coordinator.extents[1]
            assert row.sealed
            ids = writer.node.session.node_id, twin.node.session.node_id
            source = PullSource(ids[0], writer.url, row.length, coordinator.pull_capability(*ids, 1))
            await twin.command("pull", PullCommand(1, 1, twin.volume, 2, row.length, True, [], b"", [source]))
            await eventually(lambda: twin.node.volumes[0].disk.get(1).sealed, "the twin has its footer")  # type: ignore[union-attr]
            both = [one.extent_file(1).read_bytes() for one in (writer, twin)]
            assert both[0][: row.length] == both[1][: row.length]
            assert not any(b"G" * 500 in one for one in both)
            assert (1, "g") not in coordinator.files
            assert set(rebuild(extent_files(tmp_path, "n2"))) >= {(1, "kept")}


# -- A3: a wrong, empty or older catalog --------------------------------------------------------
@pytest.mark.parametrize("identity", ["kept", "lost"])
async def test_a3_ii_a_catalog_that_was_made_anew_takes_nothing_from_a_volume(
    tmp_path: Path, coordinator: FakeCoordinator, identity: str
) -> None:
    """etcd was re-created empty, or is another cluster's: no session, no inventory, no drop; the files stay."""
    async with running_node(tmp_path, coordinator) as node:
        for number in range(3):
            await node.put(f"f{number}", os.urandom(3000))
        command_key = coordinator.command_key(node.node.session.node_id)
    before = {path: path.read_bytes() for path in extent_files(tmp_path)}
    label = (tmp_path / "n1" / "volume" / "label").read_bytes()
    if identity == "lost":
        (tmp_path / "n1" / "state" / "identity").unlink()
    async with running() as empty:
        empty.cluster_id = b"another cluster!"
        async with running_node(tmp_path, empty, wait=False) as node:
            verb = "register" if identity == "kept" else "heartbeat"
            await eventually(lambda: len(empty.requests[verb]) >= 2, "the node has tried")
            assert not node.node.ready
            drop = msgspec.msgpack.encode(DropCommand(9, 1, 1, 1))
            async with node.http.post(
                f"{node.url}/i/drop", data=drop, headers={"Authorization": command_key}
            ) as response:
                assert response.status >= 400
            capability = empty.write_capability(1, 1)
            with pytest.raises(CopypoolError):
                await node.put("more", b"1", capability=capability)
            assert not empty.requests["inventory"]
            assert not empty.requests["mount"]
    assert {path: path.read_bytes() for path in extent_files(tmp_path)} == before
    assert (tmp_path / "n1" / "volume" / "label").read_bytes() == label


# -- A5: what the volumes tell -------------------------------------------------------------------
async def complete(node: NodeUnderTest, path: str, bodies: list[bytes]) -> None:
    """An upload in parts, and its completion."""
    upload = os.urandom(16).hex()
    parts = []
    for number, body in enumerate(bodies):
        receipt = await node.put(path, body, kind=f"parts/1/{upload}/{number}")
        assert receipt.segment is not None
        parts.append(PartRef(number, receipt.version, parse_digest(receipt.digest), receipt.segment))
    whole = b"".join(bodies)
    asked = CompleteRequest(upload, parts, len(whole), digest_of(whole), os.urandom(8))
    headers = {CAPABILITY: node.write_capability(), "Content-Type": MSGPACK, "Accept": MSGPACK}
    url = f"{node.url}/v1/complete/1/{path}"
    async with node.http.post(url, data=msgspec.msgpack.encode(asked), headers=headers) as response:
        answer = await response.read()
        assert response.status == 201, from_response(response.status, answer)


async def test_a5_volumes_alone_tell_what_the_catalog_tells(tmp_path: Path, coordinator: FakeCoordinator) -> None:
    """Overwrites (i), refused records (ii), a completed upload and an abandoned one (iii), deletes (v)."""
    limits = quick_limits(extent_soft_bytes=20_000)
    async with running_node(tmp_path, coordinator, limits=limits) as node:
        for number in range(12):
            await node.put(f"f{number % 5}", os.urandom(4000))
        with pytest.raises(Conflict):
            await node.put("f0", os.urandom(4000), headers={"If-None-Match": "*"})
        await node.delete("f1")
        with pytest.raises(NotFound):
            await node.delete("f1")
        await node.delete("f2")
        await node.put("f2", b"back")
        await complete(node, "big", [os.urandom(2 * MIB), os.urandom(2 * MIB), b"end"])
        await node.put("abandoned", os.urandom(2 * MIB), kind=f"parts/1/{os.urandom(16).hex()}/0")
        with pytest.raises(Conflict):
            await node.put("f3", b"last word", headers={"If-None-Match": "*"})
    async with running_node(tmp_path, coordinator, limits=limits):
        assert all(extent.sealed for extent in coordinator.extents.values())
    told = rebuild(extent_files(tmp_path))
    known = {key: row for key, row in coordinator.files.items() if not row.tombstone}
    assert set(known) == {(1, path) for path in ("f0", "f2", "f3", "f4", "big")}
    assert {key: (one.version, one.digest, one.size) for key, one in told.items()} == {
        key: (row.version, row.digest, row.size) for key, row in known.items()
    }


# -- A9: an inventory while a pull runs -----------------------------------------------------------
async def test_a9_iii_a_half_pulled_file_is_neither_unknown_nor_missing(
    tmp_path: Path, coordinator: FakeCoordinator
) -> None:
    """The reservation is in the catalog before the file is on the disk: an inventory in between judges nothing."""
    async with running_node(tmp_path, coordinator, name="n1") as source:
        await source.put("f", os.urandom(5000))
        first = coordinator.extents[1].length
        await source.put("g", os.urandom(5000))
        row = coordinator.extents[1]

        def order(to: NodeUnderTest, up_to: int) -> PullCommand:
            ids = source.node.session.node_id, to.node.session.node_id
            named = PullSource(ids[0], source.url, row.length, coordinator.pull_capability(*ids, 1))
            return PullCommand(1, 1, to.volume, 7, up_to, False, [], b"", [named])

        async with running_node(tmp_path, coordinator, name="n2", pool_type="copy", crash=True) as to:
            coordinator.copies[1, to.volume] = (7, "copying", 0)
            await to.command("pull", order(to, first))
            await eventually(lambda: bool(coordinator.requests["progress"]), "a part is there")
            coordinator.copies[1, to.volume] = (7, "copying", 0)  # as if its report had been lost
        async with running_node(tmp_path, coordinator, name="n2", pool_type="copy") as to:
            assert to.node.volumes[0].unknown_extents == 0
            assert not [one for one in coordinator.requests["inventory"] if isinstance(one, InventoryReport)]
            await to.command("pull", order(to, row.length))

            def done() -> bool:
                told = [one for one in coordinator.requests["progress"] if isinstance(one, ProgressReport)]
                return told[-1].finished and told[-1].length == row.length

            await eventually(done, "the pull ends")
            assert coordinator.copies[1, to.volume] == (7, "good", row.length)
            assert to.extent_file(1).read_bytes() == source.extent_file(1).read_bytes()[: row.length]
