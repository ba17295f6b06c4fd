"""Files in and out of a fake cluster: sizes, names, ranges, trees, and what is left behind."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from copypool import Client, Conflict, DigestRefused, Invalid, NotFound, RangeNotSatisfiable, TooLarge
from copypool import sync as blocking
from copypool.protocol.api import PART_BYTES, SMALL_MAX_BYTES
from copypool.protocol.digests import digest_of, format_digest
from copypool.protocol.errors import CopypoolError, PreconditionFailed
from copypool.protocol.stripes import BLOCK_BYTES, STRIPE_BYTES
from copypool.protocol.tokens import Principal, Role
from kit.eventually import eventually
from kit.fake_cluster import ADMIN, FakeCluster

NS = "default"


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    async with FakeCluster() as running:
        yield running


@pytest.fixture
async def client(cluster: FakeCluster) -> AsyncIterator[Client]:
    async with await cluster.client() as connected:
        yield connected


def payload(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize(
    "size",
    [
        0,
        1,
        BLOCK_BYTES - 1,
        BLOCK_BYTES,
        BLOCK_BYTES + 1,
        SMALL_MAX_BYTES,
        SMALL_MAX_BYTES + 1,
        STRIPE_BYTES - 1,
        STRIPE_BYTES,
        STRIPE_BYTES + 1,
    ],
)
async def test_what_was_put_is_got(client: Client, size: int) -> None:
    data = payload(size)
    stored = await client.put(NS, "a/file", data, metadata={"who": "é"})
    assert (stored.size, stored.digest) == (size, format_digest(digest_of(data)))
    assert await client.get(NS, "a/file") == data
    stat = await client.stat(NS, "a/file")
    assert (stat.size, stat.version, stat.metadata) == (size, stored.version, {"who": "é"})


@pytest.mark.parametrize("extra", [0, 1, PART_BYTES + 3])
async def test_a_stream_of_unknown_length_is_stored_in_parts(cluster: FakeCluster, client: Client, extra: int) -> None:
    data = payload(PART_BYTES + extra)

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(data), 700_001):
            yield data[at : at + 700_001]

    stored = await client.put(NS, "big", pieces(), digest=format_digest(digest_of(data)))
    assert stored.size == len(data)
    async with await client.open(NS, "big") as reader:
        assert await reader.read() == data
    segments = cluster.current(1, "big").segments
    assert len(segments) == -(-len(data) // PART_BYTES)
    if extra:
        assert len({node for ref in segments for node in cluster.holders(ref.extent)}) == 2, "parts go to both nodes"
    assert cluster.in_flight_max <= 4


async def test_a_file_with_a_manifest_is_read_in_ranges(cluster: FakeCluster, client: Client, tmp_path: Path) -> None:
    cluster.inline_max = 1
    data = payload(2 * PART_BYTES + 12_345)
    local = tmp_path / "source"
    local.write_bytes(data)
    await client.put(NS, "big", local)
    assert cluster.current(1, "big").manifest is not None
    edges = [0, 1, BLOCK_BYTES, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES, len(data) - 1, len(data)]
    for start in edges:
        for stop in (start, start + 1, start + BLOCK_BYTES, PART_BYTES + 5, len(data)):
            assert await client.get(NS, "big", start=start, stop=stop) == data[start:stop], (start, stop)
    assert await client.download(NS, "big", tmp_path / "copy") == len(data)
    assert (tmp_path / "copy").read_bytes() == data
    assert names_in(tmp_path) == ["copy", "source"]


async def test_ranges_behave_like_slices(client: Client) -> None:
    data = payload(300_000)
    await client.put(NS, "f", data)
    for start, stop in [(0, 10), (-5, None), (-300_000, -1), (BLOCK_BYTES, BLOCK_BYTES), (299_999, 400_000), (5, 2)]:
        assert await client.get(NS, "f", start=start, stop=stop) == data[start:stop]
    with pytest.raises(RangeNotSatisfiable):
        await client.get(NS, "f", start=300_001)


GOOD_NAMES = [
    "a",
    "a/b",
    "ä/ö",
    "e\u0301",
    "é",
    "%2e%2e",
    "a b",
    "a+b",
    "a?b#c",
    "-x",
    "~",
    "x" * 1024,
    "line\nfeed",
    "...",
]
BAD_NAMES = ["", "/a", "a/", "a//b", ".", "..", "a/../b", "a/./b", "nul\0", "\udcff"]


@pytest.mark.parametrize("name", GOOD_NAMES)
async def test_every_good_name_round_trips(client: Client, name: str) -> None:
    await client.put(NS, name, name.encode())
    assert await client.get(NS, name) == name.encode()
    assert [entry.path async for entry in client.list(NS)] == [name]
    await client.delete(NS, name)
    with pytest.raises(NotFound):
        await client.get(NS, name)


@pytest.mark.parametrize("name", BAD_NAMES)
async def test_every_bad_name_is_refused_before_anything_is_sent(
    cluster: FakeCluster, client: Client, name: str
) -> None:
    for call in (client.put(NS, name, b""), client.get(NS, name), client.delete(NS, name), client.stat(NS, name)):
        with pytest.raises(Invalid):
            await call
    with pytest.raises(TooLarge):
        await client.put(NS, "x" * 1025, b"")
    assert not cluster.writes
    assert not cluster.lookups


async def test_look_alikes_are_two_files(client: Client) -> None:
    await client.put(NS, "e\u0301", b"1")
    await client.put(NS, "é", b"2")
    assert await client.get(NS, "e\u0301") == b"1"
    assert await client.get(NS, "é") == b"2"


async def test_if_absent_and_a_wrong_digest_leave_the_file_alone(cluster: FakeCluster, client: Client) -> None:
    await client.put(NS, "f", b"first")
    with pytest.raises(Conflict):
        await client.put(NS, "f", b"second", if_absent=True)
    with pytest.raises(DigestRefused):
        await client.put(NS, "f", b"third", digest=format_digest(digest_of(b"other")))
    big = payload(PART_BYTES + 1)
    with pytest.raises(DigestRefused):
        await client.put(NS, "f", big, digest=format_digest(digest_of(b"other")))
    assert await client.get(NS, "f") == b"first"


async def test_old_versions_can_be_read(client: Client) -> None:
    first = await client.put(NS, "f", b"first")
    await client.put(NS, "f", b"second")
    assert await client.get(NS, "f", version=first.version) == b"first"
    assert (await client.stat(NS, "f")).older_versions == [first.version]


async def test_listing_pages_and_sums_up_folders(client: Client) -> None:
    await client.put_many(NS, [(f"d{n % 3}/f{n:03}", b"x") for n in range(30)])
    names = [entry.path async for entry in client.list(NS, page=7)]
    assert names == sorted(f"d{n % 3}/f{n:03}" for n in range(30))
    folders = [(entry.path, entry.is_prefix) async for entry in client.list(NS, delimiter="/", page=2)]
    assert folders == [("d0/", True), ("d1/", True), ("d2/", True)]


async def test_many_small_files_travel_in_batches(cluster: FakeCluster, client: Client) -> None:
    files = [(f"d/{n}", str(n).encode()) for n in range(1000)]
    result = await client.put_many(NS, files)
    assert (result.files, result.bytes) == (1000, sum(len(data) for _, data in files))
    assert result.complete
    assert len({write_id for _, write_id, _ in cluster.writes}) == 1000
    assert sum(call == "lease" for coordinator in cluster.coordinators for call in coordinator.calls) <= 3
    assert await client.get(NS, "d/999") == b"999"


async def test_a_failed_file_of_many_is_named(client: Client) -> None:
    with pytest.raises(Invalid) as raised:
        await client.put_many(NS, [("ok", b"1"), ("../no", b"2")])
    assert raised.value.details["path"] == "../no"
    result = await client.put_many(NS, [("ok", b"1"), ("../no", b"2")], keep_going=True)
    assert (result.files, result.failures, result.failed[0].path) == (1, 1, "../no")
    assert not result.complete


def make_tree(folder: Path) -> dict[str, bytes]:
    files = {f"d{n % 7}/s{n % 3}/f{n}": payload(n * 37 % 5000, n) for n in range(400)}
    files["large"] = payload(SMALL_MAX_BYTES * 2 + 1)
    files["empty"] = b""
    for name, data in files.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    return files


async def test_a_tree_comes_back_as_it_was(cluster: FakeCluster, client: Client, tmp_path: Path) -> None:
    source = tmp_path / "source"
    files = make_tree(source)
    (source / "link").symlink_to("large")
    files["link"] = files["large"]
    (source / "folder-link").symlink_to("d0")
    stored = await client.put_tree(source, NS, "tree")
    assert (stored.files, stored.skipped) == (len(files), ["folder-link"])
    assert not stored.complete, "something was skipped"
    fetched = await client.get_tree(NS, "tree", tmp_path / "target")
    assert (fetched.files, fetched.bytes) == (len(files), sum(map(len, files.values())))
    found = {
        str(p.relative_to(tmp_path / "target")): p.read_bytes() for p in (tmp_path / "target").rglob("*") if p.is_file()
    }
    assert found == files
    assert max(map(len, cluster.lookups)) <= 128


async def test_a_tree_with_a_name_that_is_file_and_folder_is_refused_whole(client: Client, tmp_path: Path) -> None:
    for name in ("t/x", "t/a", "t/a/b"):
        await client.put(NS, name, b"1")
    with pytest.raises(Conflict, match="t/a"):
        await client.get_tree(NS, "t", tmp_path / "out")
    assert not (tmp_path / "out").exists()


async def test_a_tree_never_leaves_its_folder(client: Client, tmp_path: Path) -> None:
    await client.put(NS, "t/link/f", b"1")
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Conflict, match="link"):
        await client.get_tree(NS, "t", tmp_path / "out")
    assert not names_in(tmp_path / "elsewhere")


async def test_a_token_for_a_prefix_writes_below_it_only(cluster: FakeCluster) -> None:
    cluster.tokens["cpt_team"] = Principal("team", Role.writer, NS, "team/a")
    async with await cluster.client("cpt_team") as client:
        await client.put(NS, "team/a/f", b"1")
        await client.put(NS, "team/a/deep/f", b"2")
        await client.put_many(NS, [("team/a/x/1", b"1"), ("team/a/y/2", b"2")])
        assert await client.get(NS, "team/a/deep/f") == b"2"
        for path in ("team/ab", "team/b/f", "f"):
            with pytest.raises(NotFound):
                await client.put(NS, path, b"no")
            with pytest.raises(NotFound):
                await client.get(NS, path)


async def test_a_cancelled_put_and_download_leave_nothing(cluster: FakeCluster, client: Client, tmp_path: Path) -> None:
    await client.put(NS, "f", payload(3 * SMALL_MAX_BYTES))
    cluster.nodes[0].faults.stall_at = cluster.nodes[1].faults.stall_at = 200_000
    before = asyncio.all_tasks()
    for work in (client.download(NS, "f", tmp_path / "out"), client.get_tree(NS, "", tmp_path)):
        running = asyncio.create_task(work)
        await eventually(lambda: any(node.reads for node in cluster.nodes), "a node is being read")
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert not names_in(tmp_path)
    for node in cluster.nodes:
        node.faults.silent = True
    running = asyncio.create_task(client.put(NS, "g", payload(PART_BYTES * 2)))
    await eventually(lambda: any("lease" in server.calls for server in cluster.coordinators), "a lease was asked for")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await client.close()
    ours = [task for task in asyncio.all_tasks() - before if "web_protocol" not in repr(task)]
    assert not ours
    with pytest.raises(NotFound):
        cluster.current(1, "g")


async def test_waiting_for_copies(cluster: FakeCluster, client: Client) -> None:
    await client.put(NS, "f", b"1")
    with pytest.raises(CopypoolError, match="not copied"):
        await client.wait_copied(0.2)
    cluster.copy_all()
    assert (await client.wait_copied(5)).done
    assert (await client.status()).healthy


async def test_the_blocking_client_works_from_threads(cluster: FakeCluster, tmp_path: Path) -> None:
    urls = [coordinator.url for coordinator in cluster.coordinators]

    def use() -> None:
        with blocking.Client(coordinators=urls, token=ADMIN) as client:
            client.put(NS, "f", b"hello")
            assert client.get(NS, "f", start=1) == b"ello"
            with client.open(NS, "f") as reader:
                assert b"".join(reader) == b"hello"
            client.put_many(NS, [(f"m/{n}", b"x") for n in range(100)])
            assert len(list(client.list(NS, "m/"))) == 100
            assert client.download(NS, "f", tmp_path / "f") == 5
            with pytest.raises(NotFound):
                client.get(NS, "none")
            client.close()
            with pytest.raises(CopypoolError, match="closed"):
                client.status()

    await asyncio.gather(*(asyncio.to_thread(use) for _ in range(3)))


@pytest.mark.parametrize("size_bytes", [4, PART_BYTES + 1])
async def test_if_version_replaces_and_deletes_only_that_version(client: Client, size_bytes: int) -> None:
    first = await client.put(NS, "f", b"first")
    second = await client.put(NS, "f", bytes(size_bytes), if_version=first.version)
    with pytest.raises(PreconditionFailed):
        await client.put(NS, "f", bytes(size_bytes), if_version=first.version)
    with pytest.raises(PreconditionFailed):
        await client.delete(NS, "f", if_version=first.version)
    assert (await client.stat(NS, "f")).version == second.version
    await client.delete(NS, "f", if_version=second.version)
    with pytest.raises(Invalid):
        await client.put(NS, "f", b"x", if_version=-1)


async def test_a_closed_client_says_so(cluster: FakeCluster) -> None:
    async with await cluster.client() as client:
        await client.put(NS, "f", b"x")
    with pytest.raises(Invalid, match="closed"):
        await client.put(NS, "f", b"x")
    with pytest.raises(Invalid, match="closed"):
        await client.get(NS, "f")


async def test_a_download_into_a_folder_that_is_not_there_is_refused(client: Client, tmp_path: Path) -> None:
    await client.put(NS, "f", b"x")
    with pytest.raises(Invalid, match="there is no folder"):
        await client.download(NS, "f", tmp_path / "missing" / "f")
    assert names_in(tmp_path) == []
