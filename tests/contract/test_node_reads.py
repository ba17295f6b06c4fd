"""What a node promises to readers: never a wrong byte, own holdings only, no coordinator needed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from urllib.parse import quote

import aiohttp
import msgspec
import pytest
from yarl import URL

from copypool.protocol.api import Receipt, SegmentRef
from copypool.protocol.capability import derive_node_keys
from copypool.protocol.errors import (
    DigestMismatch,
    Forbidden,
    Invalid,
    NotFound,
    RangeNotSatisfiable,
    Unavailable,
    from_response,
)
from copypool.protocol.internal import ReadItem, ReadManyReply, ReadManyRequest, RecordInfo, VerifyReport
from copypool.protocol.routes import (
    CAPABILITY,
    DIGEST,
    MEDIUM,
    METADATA,
    MSGPACK,
    READ_FROM,
    STRIPES,
    WRITE_ID,
    encode_metadata,
)
from copypool.protocol.stripes import (
    BLOCK_BYTES,
    SOLE_PRELUDE_BYTES,
    STRIPE_BYTES,
    decode_prelude,
    first_bad_block,
    split_range,
)
from copypool.serving.heads import Asked, Told
from copypool.telemetry.metrics import TEXT_FORMAT
from copypool_node import metrics, reader
from copypool_node.extent_file import ExtentFile
from copypool_node.handlers_read import SHORT_MAX_BYTES
from kit import metrics_page
from kit.eventually import eventually
from kit.fake_coordinator import LIFE_MS, MASTER, FakeCoordinator, running
from kit.node_process import NodeUnderTest, running_node
from kit.ways import LONG_WAY

SIZE = 2 * STRIPE_BYTES + 3 * BLOCK_BYTES + 17
EDGES = sorted(
    {
        edge + by
        for edge in (0, 1, BLOCK_BYTES, 17 * BLOCK_BYTES, STRIPE_BYTES, 2 * STRIPE_BYTES, SIZE)
        for by in (-1, 0, 1)
        if 0 <= edge + by <= SIZE
    }
)


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


def unpack(receipt: Receipt, content: bytes, start: int, stop: int) -> bytes:
    """What an SDK does with a raw answer: check every block, cut the wanted bytes out."""
    segment = receipt.segment
    assert segment is not None
    at, found = 0, b""
    for part in split_range(segment.offset, segment.length, start, stop):
        prelude = decode_prelude(content[at : at + part.prelude_bytes], segment.extent, part.prelude_offset)
        assert prelude is not None
        data = content[at + part.prelude_bytes : at + part.prelude_bytes + part.data_bytes]
        assert first_bad_block(data, prelude, segment.extent, part) is None
        found += data[part.skip_bytes : part.skip_bytes + part.take_bytes]
        at += part.prelude_bytes + part.data_bytes
    assert at == len(content)
    return found


async def test_the_short_way_answers_as_the_long_one(tmp_path: Path, coordinator: FakeCoordinator) -> None:
    async with (
        running_node(tmp_path, coordinator) as node,
        aiohttp.ClientSession() as short,
        aiohttp.ClientSession(headers=LONG_WAY) as long,
    ):
        receipts = [await node.put(f"f{size}", os.urandom(size)) for size in (0, 1, 4096, 4097, SHORT_MAX_BYTES)]
        targets = []
        for receipt in receipts:
            segment = receipt.segment
            assert segment is not None
            place = f"/v1/segments/{segment.extent}/{segment.offset}/{segment.length}"
            for raw in (False, True):
                capability = coordinator.read_capability(node.node.session.node_id, segment, receipt.version, raw=raw)
                good = f"{place}?v={receipt.version}"
                targets += [
                    (good, capability),
                    (f"{good}&cap={quote(capability)}", ""),
                    (good, ""),
                    (place, capability),
                ]
                targets += [
                    (f"{place}0?v=1", capability),
                    (f"{place}/x", capability),
                    ("/v1/segments/a/b/c", capability),
                ]
        targets.append((f"/v1/segments/77/4096/4096?v={receipts[0].version}", targets[0][1]))
        for target, capability in targets:
            for accept in ("*/*", MSGPACK, MSGPACK):  # the last one: as it was read before
                headers = {CAPABILITY: capability, "Accept": accept} if capability else {"Accept": accept}
                told = []
                for way in (short, long):
                    async with way.get(URL(node.url + target, encoded=True), headers=headers) as response:
                        kept = sorted((name, value) for name, value in response.headers.items() if name != "Date")
                        told.append((response.status, kept, await response.read()))
                assert told[0] == told[1], target
        assert _on_the_short_way(node) == 2  # `short`, and the client that put the files


async def test_a_put_goes_the_short_way_and_is_answered_as_on_the_long_one(
    tmp_path: Path, coordinator: FakeCoordinator
) -> None:
    async with (
        running_node(tmp_path, coordinator) as node,
        aiohttp.ClientSession() as short,
        aiohttp.ClientSession(headers=LONG_WAY) as long,
    ):
        good = {CAPABILITY: node.write_capability(), "Accept": MSGPACK}
        wrong: list[dict[str, str]] = [
            {CAPABILITY: ""},
            {CAPABILITY: node.write_capability(max_bytes=3)},
            {WRITE_ID: "x"},
            {DIGEST: "blake3:" + "0" * 64},
            {DIGEST: "md5:1"},
            {METADATA: "{"},
            {"Copypool-First-Sent": "then"},
            {"If-Match": "x"},
        ]
        for changes in [{}, {METADATA: encode_metadata({"a": "b"})}, {"If-Match": "*"}, *wrong]:
            told = []
            for number, way in enumerate((short, long)):
                headers = {**good, WRITE_ID: os.urandom(8).hex(), **changes}
                url = f"{node.url}/v1/files/1/way{number}?ns=default"
                async with way.put(url, data=b"content", headers=headers) as response:
                    content = await response.read()
                    kept = sorted(name for name in response.headers if name != "Date")
                    what: object = content
                    if response.status == 201:
                        receipt = msgspec.msgpack.decode(content, type=Receipt)
                        what = (receipt.namespace, receipt.size, receipt.digest, receipt.replayed)
                    told.append((response.status, kept, what))
            assert told[0] == told[1], changes
            assert (told[0][0] == 201) is (changes not in wrong)
        assert _on_the_short_way(node) == 1


def _expired(node: NodeUnderTest, segment: SegmentRef) -> None:
    node.node.session.clock.adopt(node.coordinator.now_ms() + LIFE_MS + 1)


def _key_withdrawn(node: NodeUnderTest, segment: SegmentRef) -> None:
    session = node.node.session
    session.keys = {2: derive_node_keys(MASTER, session.node_id, 2)}


def _key_replaced(node: NodeUnderTest, segment: SegmentRef) -> None:
    session = node.node.session
    session.keys = {1: derive_node_keys(b"n" * 32, session.node_id, 1)}


def _byte_flipped(node: NodeUnderTest, segment: SegmentRef) -> None:
    with node.extent_file(segment.extent).open("r+b") as file:
        file.seek(segment.offset + SOLE_PRELUDE_BYTES + 7)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def _dropped(node: NodeUnderTest, segment: SegmentRef) -> None:
    for holding in node.node.holdings.covering(segment.extent, 0):
        node.node.holdings.remove(holding)


@pytest.mark.parametrize("in_query", [False, True], ids=["header", "query"])
@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        (_expired, Forbidden),
        (_key_withdrawn, Forbidden),
        (_key_replaced, Forbidden),
        (_byte_flipped, DigestMismatch),
        (_dropped, Unavailable),
    ],
)
async def test_a_request_that_was_answered_before_is_refused_once_its_right_or_its_bytes_are_gone(
    tmp_path: Path,
    coordinator: FakeCoordinator,
    change: Callable[[NodeUnderTest, SegmentRef], None],
    refusal: type[Exception],
    in_query: bool,
) -> None:
    async with running_node(tmp_path, coordinator) as node:
        receipt = await node.put("a", b"x" * 4096)
        segment = receipt.segment
        assert segment is not None
        session = node.node.session
        capability = coordinator.read_capability(session.node_id, segment, receipt.version, raw=False)
        target = f"/v1/segments/{segment.extent}/{segment.offset}/{segment.length}?v={receipt.version}"
        if in_query:
            asked = Asked("GET", f"{target}&cap={quote(capability)}", {})
        else:
            asked = Asked("GET", target, {CAPABILITY: capability})
        for _ in range(2):
            told = node.server.shortcut(asked)
            assert isinstance(told, Told)
            assert told.body == b"x" * 4096
        change(node, segment)
        answering = node.server.shortcut(asked)  # no heartbeat comes between this and the change
        assert answering is not None
        assert not isinstance(answering, Told)
        told = await answering(asked)
        assert told is not None
        assert isinstance(from_response(told.status, told.body, told.headers["Content-Type"]), refusal)


async def test_a_heartbeat_with_the_same_keys_closes_nothing(node: NodeUnderTest) -> None:
    session = node.node.session
    keys = session.keys
    for _ in range(2):
        renewed_s = session.renewed_s
        await eventually(lambda before_s=renewed_s: session.renewed_s > before_s, "a heartbeat")
    assert session.keys is keys


def _on_the_short_way(node: NodeUnderTest) -> int:
    """Connections that aiohttp has not taken over."""
    assert node.server._listening is not None
    assert node.server._listening._shortcuts is not None
    return len(node.server._listening._shortcuts.connections)


async def test_ranges_at_all_edges_in_both_forms(node: NodeUnderTest) -> None:
    body = os.urandom(SIZE)
    receipt = await node.put("long", body)
    assert receipt.segment is not None
    for start in EDGES:
        for stop in (edge for edge in EDGES if edge > start):
            headers = {"Range": f"bytes={start}-{stop - 1}"}
            status, content, answered = await node.get(receipt.segment, receipt.version, headers=headers)
            assert (status, content) == (206, body[start:stop])
            assert answered["Content-Range"] == f"bytes {start}-{stop - 1}/{SIZE}"
            status, content, answered = await node.get(receipt.segment, receipt.version, raw=True, headers=headers)
            assert status == 206
            assert answered["Content-Type"] == STRIPES
            assert unpack(receipt, content, start, stop) == body[start:stop]


async def test_a_read_from_the_medium_gives_the_same_bytes_and_asks_no_cache(
    node: NodeUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies = {"short": os.urandom(5_000), "long": os.urandom(SIZE)}
    receipts = {path: await node.put(path, body) for path, body in bodies.items()}

    async def cached(*_: object) -> bytes:
        raise AssertionError("the page cache was asked")

    monkeypatch.setattr(ExtentFile, "read", cached)
    for path, body in bodies.items():
        segment = receipts[path].segment
        assert segment is not None
        headers = {READ_FROM: MEDIUM}
        status, content, _ = await node.get(segment, receipts[path].version, raw=True, headers=headers)
        assert status == 200
        assert unpack(receipts[path], content, 0, len(body)) == body


async def test_whole_raw_reads_suffixes_and_ranges_that_are_ignored(node: NodeUnderTest) -> None:
    body = os.urandom(100_000)
    receipt = await node.put("f", body)
    assert receipt.segment is not None
    _, content, _ = await node.get(receipt.segment, receipt.version, raw=True)
    assert unpack(receipt, content, 0, len(body)) == body
    for text, status, expected in (
        ("bytes=-5", 206, body[-5:]),
        ("bytes=99990-", 206, body[99_990:]),
        ("bytes=0-999999", 206, body),
        ("lines=1-2", 200, body),
        ("bytes=0-1,4-5", 200, body),
    ):
        got = await node.get(receipt.segment, receipt.version, headers={"Range": text})
        assert got[:2] == (status, expected), text
    with pytest.raises(RangeNotSatisfiable):
        await node.get(receipt.segment, receipt.version, headers={"Range": "bytes=100000-"})
    for text in ("bytes=5-2", "abc", "bytes=-"):
        with pytest.raises(Invalid):
            await node.get(receipt.segment, receipt.version, headers={"Range": text})


async def test_head_tells_the_size_without_a_body(node: NodeUnderTest) -> None:
    receipt = await node.put("f", os.urandom(100_000))
    assert receipt.segment is not None
    status, content, headers = await node.get(receipt.segment, receipt.version, method="HEAD")
    assert (status, content, headers["Content-Length"]) == (200, b"", "100000")


async def test_a_capability_covers_one_segment_of_one_version(node: NodeUnderTest) -> None:
    one, two = await node.put("a", b"1"), await node.put("b", b"22")
    assert one.segment is not None
    assert two.segment is not None
    capability = node.coordinator.read_capability(1, one.segment, one.version, raw=False)
    other = f"{two.segment.extent}/{two.segment.offset}/{two.segment.length}?v={two.version}"
    same = f"{one.segment.extent}/{one.segment.offset}/{one.segment.length}?v={two.version}"
    for target in (other, same):
        async with node.http.get(f"{node.url}/v1/segments/{target}", headers={CAPABILITY: capability}) as response:
            assert response.status == 403
    url = f"{node.url}/v1/segments/{one.segment.extent}/{one.segment.offset}/1?v={one.version}&cap={capability}"
    async with node.http.get(url) as response:
        assert (response.status, await response.read()) == (200, b"1")
        assert response.headers["Referrer-Policy"] == "no-referrer"
    for capability in ("", node.write_capability()):
        async with node.http.get(url.partition("&")[0], headers={CAPABILITY: capability}) as response:
            assert response.status == 403


async def test_bytes_behind_the_committed_length_are_not_served(node: NodeUnderTest) -> None:
    receipt = await node.put("a", b"1")
    assert receipt.segment is not None
    beyond = msgspec.structs.replace(receipt.segment, offset=node.coordinator.extents[1].length)
    with pytest.raises(Unavailable):
        await node.get(beyond, receipt.version)


async def test_no_flipped_byte_of_a_small_file_is_delivered(node: NodeUnderTest) -> None:
    body = bytes(range(256)) * 2
    receipt = await node.put("small", body)
    assert receipt.segment is not None
    file = node.extent_file(1)
    good = file.read_bytes()
    first = receipt.segment.offset
    for at in range(first, first + 20 + len(body), 7):
        _put(file, at, bytes([good[at] ^ 0x40]))
        with pytest.raises(DigestMismatch):
            await node.get(receipt.segment, receipt.version)
        _put(file, at, good[at : at + 1])
    assert (await node.get(receipt.segment, receipt.version))[1] == body
    await eventually(
        lambda: any(isinstance(one, VerifyReport) for one in node.coordinator.requests["verified"]),
        "a failed read makes the node verify",
    )


async def test_a_bad_block_in_the_middle_cuts_the_connection_before_it(node: NodeUnderTest) -> None:
    body = os.urandom(SIZE)
    receipt = await node.put("long", body)
    assert receipt.segment is not None
    bad = STRIPE_BYTES + 5 * BLOCK_BYTES
    (part,) = split_range(receipt.segment.offset, SIZE, bad, bad + 1)
    file = node.extent_file(receipt.segment.extent)
    at = part.data_offset + 9
    _put(file, at, bytes([file.read_bytes()[at] ^ 1]))
    capability = node.coordinator.read_capability(1, receipt.segment, receipt.version, raw=False)
    segment = receipt.segment
    url = f"{node.url}/v1/segments/{segment.extent}/{segment.offset}/{segment.length}?v={receipt.version}"
    received = bytearray()

    async def read() -> None:
        async with node.http.get(url, headers={CAPABILITY: capability}) as response:
            async for chunk in response.content.iter_any():
                received.extend(chunk)

    with pytest.raises(aiohttp.ClientError):
        await read()
    assert len(received) <= bad
    assert body.startswith(bytes(received))
    headers = {"Range": f"bytes={bad + BLOCK_BYTES}-"}
    assert (await node.get(segment, receipt.version, headers=headers))[1] == body[bad + BLOCK_BYTES :]


async def test_only_the_nodes_own_verify_marks_damage(node: NodeUnderTest) -> None:
    receipt = await node.put("f", os.urandom(100))
    assert receipt.segment is not None
    file = node.extent_file(1)
    _put(file, receipt.segment.offset + 30, b"\xff\x00\xff")
    with pytest.raises(DigestMismatch):
        await node.get(receipt.segment, receipt.version)
    await eventually(lambda: len(node.coordinator.requests["verified"]) == 1, "the verify's report")
    (report,) = node.coordinator.requests["verified"]
    assert isinstance(report, VerifyReport)
    assert (report.good, report.missing) == (False, False)
    assert report.bad_offset == receipt.segment.offset + 20, "the first byte of the bad block"


async def test_a_record_header_is_read_with_a_capability_for_it(node: NodeUnderTest) -> None:
    receipt = await node.put("a/b", b"1", headers={METADATA: encode_metadata({"x": "y"})})
    segment = receipt.segment
    assert segment is not None
    for header_bytes, version, error in (
        (receipt.header_bytes, receipt.version, None),
        (0, receipt.version, Forbidden),
        (receipt.header_bytes, receipt.version + 1, NotFound),
    ):
        capability = node.coordinator.read_capability(1, segment, version, raw=False, header_bytes=header_bytes)
        url = f"{node.url}/v1/record/{segment.extent}/{segment.offset}?v={version}"
        async with node.http.get(url, headers={CAPABILITY: capability, "Accept": MSGPACK}) as response:
            content = await response.read()
            if error is not None:
                assert isinstance(from_response(response.status, content, response.content_type), error)
                continue
        info = msgspec.msgpack.decode(content, type=RecordInfo)
        assert info == RecordInfo("file", 1, "a/b", receipt.version, {"x": "y"})


async def test_many_reads_in_one_call(node: NodeUnderTest) -> None:
    bodies = [os.urandom(100 * index) for index in range(10)]
    receipts = [await node.put(f"f{index}", body) for index, body in enumerate(bodies)]
    segments = [receipt.segment for receipt in receipts if receipt.segment is not None]
    items = [ReadItem(one.extent, one.offset, one.length) for one in segments]
    items.append(ReadItem(99, 4096, 5))
    items.append(ReadItem(1, 4097, 5))
    reply = msgspec.msgpack.decode(await node.command("read-many", ReadManyRequest(items)), type=ReadManyReply)
    assert [one.payload for one in reply.items[:10]] == bodies
    assert [one.code for one in reply.items] == [""] * 10 + ["unavailable", "digest_mismatch"]


async def test_reads_go_on_without_any_coordinator(node: NodeUnderTest) -> None:
    receipt = await node.put("f", b"still there")
    assert receipt.segment is not None
    for verb in ("heartbeat", "commit", "register"):
        node.coordinator.lose_requests[verb] = 10_000
    assert (await node.get(receipt.segment, receipt.version))[1] == b"still there"


async def test_health_pages_and_unknown_paths(node: NodeUnderTest) -> None:
    await node.put("f", b"1")
    for path, status in (("/livez", 200), ("/readyz", 200), ("/metrics", 200), ("/nope", 404), ("/v1/x/y", 404)):
        async with node.http.get(node.url + path) as response:
            text = await response.text()
            assert response.status == status, text
    async with node.http.get(node.url + "/metrics") as response:
        assert response.headers["Content-Type"] == TEXT_FORMAT
        page = metrics_page.check(await response.text(), metrics.FAMILIES)
    assert [each.value for each in page["copypool_node_group_records"].samples if each.name.endswith("_count")] == [1]
    answered = {(each.labels["route"], each.labels["code"]) for each in page["copypool_node_requests_total"].samples}
    assert {("PUT files", "ok"), ("/livez", "ok"), ("other", "not_found")} <= answered
    assert page["copypool_node_lease_margin_seconds"].samples[0].value > 0
    fills = {each.labels["bound"]: each.value for each in page["copypool_node_fill_ratio"].samples}
    assert {"connections", "queue_records", "pulls"} < fills.keys()
    assert all(0 <= value <= 1 for value in fills.values())
    async with node.http.post(node.url + "/i/drop", data=b"", headers={"Authorization": "Command 00"}) as response:
        assert response.status == 401


def _put(file: Path, at: int, data: bytes) -> None:
    with file.open("r+b") as opened:
        opened.seek(at)
        opened.write(data)


async def put_unanswered(node: NodeUnderTest) -> tuple[asyncio.Task[Receipt], asyncio.Event, SegmentRef, int]:
    """A put whose commit has landed while its answer is held, until the event is set; and what it stored."""
    coordinator = node.coordinator
    coordinator.lose_replies["commit"] = 1
    gate = coordinator.hold("commit", after=1)
    write = asyncio.create_task(node.put("new", b"just committed"))
    await eventually(lambda: coordinator.waiting["commit"] == 1, "the commit has landed and its answer is awaited")
    row = coordinator.files[1, "new"]
    assert row.segment is not None
    return write, gate, row.segment, row.version


async def test_a_read_that_comes_before_the_answer_to_its_commit_waits_for_it(
    node: NodeUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The catalog has the file, so readers find it; the node that wrote it has not heard so yet."""
    monkeypatch.setattr(reader, "LANDING_WAIT_S", 60.0)
    write, gate, segment, version = await put_unanswered(node)
    read = asyncio.create_task(node.get(segment, version))
    await eventually(lambda: node.node.metrics.in_work == 2, "the read has come")
    gate.set()
    assert (await read)[1] == b"just committed"
    await write


async def test_a_read_waits_for_the_answer_to_a_commit_for_a_while_only(
    node: NodeUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "LANDING_WAIT_S", 0.05)
    write, gate, segment, version = await put_unanswered(node)
    with pytest.raises(Unavailable):
        await node.get(segment, version)
    gate.set()
    await write
