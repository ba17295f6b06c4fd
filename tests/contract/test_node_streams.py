"""Bodies longer than a megabyte, parts and manifests: real node code, real files, a fake coordinator."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import msgspec
import pytest

from copypool.protocol.api import CompleteRequest, PartRef, Receipt, SegmentRef
from copypool.protocol.digests import digest_of, format_digest, parse_digest
from copypool.protocol.errors import (
    Conflict,
    DigestRefused,
    Invalid,
    OutcomeUnknown,
    Overloaded,
    TooLarge,
    from_response,
)
from copypool.protocol.internal import EntryResult
from copypool.protocol.routes import CAPABILITY, DIGEST, MSGPACK, WRITE_ID
from copypool.protocol.stripes import STRIPE_BYTES
from copypool_node.body import Body
from copypool_node.format import find_seal_footer
from copypool_node.scanner import RecordSeen, Scanner
from kit.eventually import eventually
from kit.fake_coordinator import FakeCoordinator, running
from kit.node_process import NodeUnderTest, quick_limits, running_node

MIB = 1024 * 1024


@pytest.fixture
async def coordinator() -> AsyncIterator[FakeCoordinator]:
    async with running() as fake:
        yield fake


@pytest.fixture
async def node(tmp_path: Path, coordinator: FakeCoordinator) -> AsyncIterator[NodeUnderTest]:
    async with running_node(tmp_path, coordinator) as under_test:
        yield under_test


async def chunked(body: bytes, size: int = 300_000) -> AsyncIterator[bytes]:
    for at in range(0, len(body), size):
        yield body[at : at + size]


async def read_back(node: NodeUnderTest, receipt: Receipt) -> bytes:
    assert receipt.segment is not None
    status, content, _ = await node.get(receipt.segment, receipt.version)
    assert status == 200
    return content


@pytest.mark.parametrize(
    "size", [MIB, MIB + 1, STRIPE_BYTES - 1, STRIPE_BYTES, STRIPE_BYTES + 1, 2 * STRIPE_BYTES, 9 * MIB + 17]
)
@pytest.mark.parametrize("known", [True, False])
async def test_a_long_body_is_stored_stripe_by_stripe(node: NodeUnderTest, size: int, known: bool) -> None:
    body = os.urandom(size)
    receipt = await node.put("long", body if known else chunked(body))
    assert receipt.digest == format_digest(digest_of(body))
    assert receipt.size == size
    assert await read_back(node, receipt) == body
    assert receipt.segment is not None
    data = node.extent_file(receipt.segment.extent).read_bytes()
    scanner = Scanner(receipt.segment.extent)
    seen = [one for one in scanner.feed(data) if isinstance(one, RecordSeen)]
    assert (seen[0].length, seen[0].digest) == (size, digest_of(body))


async def test_a_long_body_lets_go_of_what_is_put_together(
    node: NodeUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed_out: list[list[bytes]] = []
    kept = 0
    stripe = Body.stripe

    async def watched(body: Body) -> tuple[list[bytes], bool]:
        nonlocal kept
        kept = max(kept, sum(map(bool, handed_out)))
        chunks, last = await stripe(body)
        handed_out.append(chunks)
        return chunks, last

    monkeypatch.setattr(Body, "stripe", watched)
    await node.put("long", os.urandom(5 * STRIPE_BYTES))
    assert len(handed_out) == 5
    assert kept == 1  # the stripe that is put together while the next one comes


async def test_a_short_body_of_unknown_length_shares_a_group(node: NodeUnderTest) -> None:
    receipt = await node.put("short", chunked(b"x" * 5000, 1000))
    assert await read_back(node, receipt) == b"x" * 5000
    assert node.node.volumes[0].streams == {}


async def test_an_extent_is_free_for_the_next_body_until_it_is_full(
    tmp_path: Path, coordinator: FakeCoordinator
) -> None:
    async with running_node(tmp_path, coordinator, limits=quick_limits(extent_soft_bytes=5 * MIB)) as node:
        extents = []
        for index in range(4):
            receipt = await node.put(f"f{index}", os.urandom(2 * MIB))
            assert receipt.segment is not None
            extents.append(receipt.segment.extent)
        assert extents == [1, 1, 1, 2]
        await eventually(lambda: node.node.metrics.verified_extents == 1, "the full extent is verified")


async def test_a_body_that_breaks_off_leaves_nothing_and_its_extent_is_cut(node: NodeUnderTest) -> None:
    kept = await node.put("kept", os.urandom(2 * MIB))
    length = node.coordinator.extents[1].length

    async def breaking() -> AsyncIterator[bytes]:
        yield os.urandom(6 * MIB)
        await eventually(lambda: node.extent_file(1).stat().st_size > length + 4 * MIB, "a stripe is written")
        raise ConnectionResetError("the client goes away")

    with pytest.raises((aiohttp.ClientError, ConnectionResetError, Invalid)):
        await node.put("gone", breaking())
    await eventually(lambda: node.node.metrics.extents_sealed == 1, "the extent is sealed")
    assert (1, "gone") not in node.coordinator.files
    data = node.extent_file(1).read_bytes()
    footer = find_seal_footer(data, 1, 0)
    assert footer is not None
    assert (footer.length, len(data) - length < 4096) == (length, True)
    assert len(await read_back(node, kept)) == 2 * MIB


async def test_a_body_shorter_than_stated_stores_nothing(node: NodeUnderTest) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", node.server.port)
    head = f"PUT /v1/files/1/x HTTP/1.1\r\nHost: x\r\n{CAPABILITY}: {node.write_capability()}\r\n"
    head += f"{WRITE_ID}: {'ab' * 8}\r\nContent-Length: {3 * MIB}\r\n\r\n"
    writer.write(head.encode() + bytes(2 * MIB))
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    await eventually(lambda: node.node.metrics.errors.get("invalid", 0) == 1, "the node refuses it")
    assert not node.coordinator.requests["commit"]
    del reader


async def test_a_body_that_stalls_is_given_up(tmp_path: Path, coordinator: FakeCoordinator) -> None:
    async with running_node(tmp_path, coordinator, limits=quick_limits(body_stall_s=0.2)) as node:
        gate = asyncio.Event()

        async def stalling() -> AsyncIterator[bytes]:
            yield bytes(2 * MIB)
            await gate.wait()

        with pytest.raises((Invalid, aiohttp.ClientError)):
            await node.put("slow", stalling())
        gate.set()


async def test_a_wrong_digest_of_a_long_body_stores_nothing(node: NodeUnderTest) -> None:
    with pytest.raises(DigestRefused):
        await node.put("bad", os.urandom(2 * MIB), headers={DIGEST: format_digest(digest_of(b"other"))})
    assert not node.coordinator.requests["commit"]
    await eventually(lambda: node.coordinator.extents[1].sealed, "its extent ends")
    await node.put("good", os.urandom(2 * MIB))


async def test_a_refused_long_body_is_answered_after_its_note(node: NodeUnderTest) -> None:
    await node.put("taken", b"1")
    with pytest.raises(Conflict):
        await node.put("taken", os.urandom(2 * MIB), headers={"If-None-Match": "*"})
    assert all(extent.refusals == [] for extent in node.coordinator.extents.values())


async def test_a_long_body_that_lost_a_race_is_to_be_sent_again(node: NodeUnderTest) -> None:
    """Its bytes are gone by then, and `conflict` would name a condition that nobody has set."""
    node.coordinator.outcomes["hot"].append(EntryResult("stale", 7))
    with pytest.raises(Overloaded):
        await node.put("hot", os.urandom(2 * MIB))
    assert (await node.put("hot", os.urandom(2 * MIB))).version


async def test_more_long_bodies_than_extents_wait_and_then_are_told(
    tmp_path: Path, coordinator: FakeCoordinator
) -> None:
    limits = quick_limits(streams_per_class=1, stream_wait_s=0.1)
    async with running_node(tmp_path, coordinator, limits=limits) as node:
        gate = asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield bytes(2 * MIB)
            await gate.wait()
            yield b"end"

        first = asyncio.create_task(node.put("slow", slow()))
        await eventually(lambda: bool(coordinator.extents), "the first body has its extent")
        with pytest.raises(Overloaded):
            await node.put("next", bytes(2 * MIB))
        gate.set()
        assert (await first).size == 2 * MIB + 3


async def test_the_limit_of_the_capability_holds_for_unknown_lengths(node: NodeUnderTest) -> None:
    with pytest.raises((TooLarge, aiohttp.ClientError)):
        await node.put("x", chunked(bytes(3 * MIB)), capability=node.write_capability(max_bytes=2 * MIB))
    await eventually(lambda: node.node.metrics.errors == {"too_large": 1}, "the node refuses it")
    assert not node.coordinator.requests["commit"]


async def test_a_lost_commit_reply_of_a_long_body(node: NodeUnderTest) -> None:
    node.coordinator.lose_replies["commit"] = 1
    receipt = await node.put("long", os.urandom(2 * MIB))
    assert node.coordinator.files[1, "long"].version == receipt.version


async def test_an_unknown_outcome_of_a_long_body_is_settled_by_the_seal(
    tmp_path: Path, coordinator: FakeCoordinator
) -> None:
    async with running_node(tmp_path, coordinator, limits=quick_limits(commit_wait_s=0.3)) as node:
        gate = coordinator.hold("commit")
        with pytest.raises(OutcomeUnknown):
            await node.put("held", os.urandom(2 * MIB))
        gate.set()
        await eventually(lambda: (1, "held") in coordinator.files, "it lands after all")


async def test_parts_and_a_manifest_make_one_file(node: NodeUnderTest) -> None:
    upload = "ab" * 16
    bodies = [os.urandom(2 * MIB), os.urandom(2 * MIB), b"end"]
    parts = []
    for number, body in enumerate(bodies):
        receipt = await node.put("big", body, kind=f"parts/1/{upload}/{number}")
        assert receipt.segment is not None
        parts.append(PartRef(number, receipt.version, parse_digest(receipt.digest), receipt.segment))
    whole = b"".join(bodies)
    asked = CompleteRequest(upload, parts, len(whole), digest_of(whole), os.urandom(8), metadata={"k": "v"})
    headers = {CAPABILITY: node.write_capability(), "Content-Type": MSGPACK, "Accept": MSGPACK}
    async with node.http.post(
        f"{node.url}/v1/complete/1/big", data=msgspec.msgpack.encode(asked), headers=headers
    ) as response:
        content = await response.read()
        assert response.status == 201, from_response(response.status, content)
    receipt = msgspec.msgpack.decode(content, type=Receipt)
    row = node.coordinator.files[1, "big"]
    assert (row.size, row.digest) == (len(whole), digest_of(whole))
    manifest = await read_back(node, receipt)
    segments = msgspec.msgpack.decode(manifest, type=list[SegmentRef])
    assert segments == [part.segment for part in parts]
    data = node.extent_file(row.segment.extent).read_bytes()
    scanner = Scanner(row.segment.extent)
    records = [one for one in scanner.feed(data) if isinstance(one, RecordSeen)]
    assert scanner.verified_length == len(data), "the manifest's footer is that of its payload"
    assert records[-1].header.kind == "manifest"
    told = (records[-1].header.file_bytes, records[-1].header.file_digest)
    assert told == (len(whole), digest_of(whole)), "volumes alone tell what the parts make"
