"""What goes wrong at nodes and coordinators, and what a caller of the client sees of it: nothing, as long as it can."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest

from copypool import (
    CatalogDown,
    Client,
    Conflict,
    DigestMismatch,
    NoSpace,
    NotFound,
    OutcomeUnknown,
    Unauthorized,
    Unavailable,
    sources,
)
from copypool.coordinators import CALL_DEADLINE_S
from copypool.protocol.api import PART_BYTES
from copypool.protocol.errors import CopypoolError, Fenced, Overloaded
from copypool.protocol.stripes import BLOCK_BYTES, STRIPE_BYTES
from kit.eventually import eventually
from kit.fake_cluster import PATIENT, QUICK, FakeCluster
from kit.fake_node_api import Faults

NS = "default"
SIZE = STRIPE_BYTES + 2 * BLOCK_BYTES + 777
DATA = bytes(range(256)) * (SIZE // 256) + b"z" * (SIZE % 256)


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    async with FakeCluster(primaries=2, copies=1) as running:
        yield running


@pytest.fixture
async def client(cluster: FakeCluster) -> AsyncIterator[Client]:
    async with await cluster.client() as connected:
        yield connected


async def put_and_copy(cluster: FakeCluster, client: Client) -> None:
    await client.put(NS, "f", DATA)
    cluster.copy_all()


def primary_of(cluster: FakeCluster) -> Faults:
    return cluster.holders(cluster.current(1, "f").segments[0].extent)[0].faults


#: Bytes of the body at which something breaks: the first, in the prelude, at block edges, in the middle, the last.
BYTES = [0, 20, BLOCK_BYTES + 271, BLOCK_BYTES + 272, BLOCK_BYTES + 273, 2_000_000, STRIPE_BYTES + 300, SIZE + 299]


def refuse(faults: Faults, _at: int) -> None:
    faults.refuse = True


def cut(faults: Faults, at: int) -> None:
    faults.cut_at = at


def stall(faults: Faults, at: int) -> None:
    faults.stall_at = at


def flip(faults: Faults, at: int) -> None:
    faults.flip_at = at


@pytest.mark.parametrize("at", BYTES)
@pytest.mark.parametrize(("fault", "reason"), [(cut, "error"), (stall, ("stall", "timeout")), (flip, "checksum")])
async def test_a_read_goes_on_at_the_failed_byte(
    cluster: FakeCluster,
    fault: Callable[[Faults, int], None],
    reason: str | tuple[str, ...],
    at: int,
) -> None:
    async with await cluster.client(timeouts=QUICK if fault is stall else PATIENT) as client:
        await put_and_copy(cluster, client)
        failing = f"{cluster.holders(cluster.current(1, 'f').segments[0].extent)[0].name}-v1"
        fault(primary_of(cluster), at)
        async with await client.open(NS, "f") as reader:
            got = b"".join([piece async for piece in reader])
    assert got == DATA
    (told,) = [report for report in cluster.reports if report[1] == failing]  # a slow machine may fail the others too
    assert told[2] in reason


async def test_a_stream_that_was_cut_off_while_its_consumer_left_it_alone_is_nobodys_fault(
    cluster: FakeCluster, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node gives up who takes nothing for minutes; so does the network in between."""
    monkeypatch.setattr(sources, "LEFT_ALONE_S", 0.05)
    await put_and_copy(cluster, client)
    primary_of(cluster).cut_at = 3_000_000
    async with await client.open(NS, "f") as reader:
        pieces = aiter(reader)
        got = await anext(pieces)
        primary_of(cluster).cut_at = None
        await asyncio.sleep(2 * sources.LEFT_ALONE_S)
        got += b"".join([piece async for piece in pieces])
    assert got == DATA
    await client.close()
    assert cluster.reports == []
    asked = [node.id for node in cluster.nodes for _ in node.reads]
    assert len(asked) == 2
    assert len(set(asked)) == 1


async def test_only_the_missing_bytes_are_asked_of_the_next_source(cluster: FakeCluster, client: Client) -> None:
    await put_and_copy(cluster, client)
    primary_of(cluster).cut_at = 3_000_000
    assert await client.get(NS, "f") == DATA
    asked = cluster.nodes[2].reads[0][1]
    start = int(asked.removeprefix("bytes=").split("-")[0])
    assert start % BLOCK_BYTES == 0
    assert 3_000_000 - 2 * BLOCK_BYTES <= start <= 3_000_000


async def test_a_dead_node_costs_no_error(cluster: FakeCluster, client: Client) -> None:
    await put_and_copy(cluster, client)
    await cluster.holders(cluster.current(1, "f").segments[0].extent)[0].stop()
    assert await client.get(NS, "f") == DATA
    assert await client.get(NS, "f", start=-1) == DATA[-1:]


async def test_two_locations_with_different_bad_blocks_hold_every_byte(cluster: FakeCluster, client: Client) -> None:
    await put_and_copy(cluster, client)
    ref = cluster.current(1, "f").segments[0]
    primary, copy = cluster.holders(ref.extent)
    for block in (3, 20, 40):
        cluster.flip(primary, ref, block * BLOCK_BYTES)
    for block in (9, 21, 64):
        cluster.flip(copy, ref, block * BLOCK_BYTES + 5)
    assert await client.get(NS, "f") == DATA


async def test_a_block_bad_everywhere_is_never_delivered(cluster: FakeCluster, client: Client) -> None:
    await put_and_copy(cluster, client)
    ref = cluster.current(1, "f").segments[0]
    for node in cluster.holders(ref.extent):
        cluster.flip(node, ref, 5 * BLOCK_BYTES + 1)
    got: list[bytes] = []

    async def collect() -> None:
        async with await client.open(NS, "f") as reader:
            async for piece in reader:
                got.append(piece)  # noqa: PERF401 - what came before the error counts

    with pytest.raises(DigestMismatch):
        await collect()
    assert b"".join(got) == DATA[: 5 * BLOCK_BYTES]
    assert await client.get(NS, "f", start=6 * BLOCK_BYTES) == DATA[6 * BLOCK_BYTES :]


async def test_when_all_sources_fail_the_same_version_is_looked_up_once_more(
    cluster: FakeCluster, client: Client
) -> None:
    await put_and_copy(cluster, client)
    version = cluster.current(1, "f").version
    ref = cluster.current(1, "f").segments[0]
    async with await client.open(NS, "f") as reader:
        moved = cluster.nodes[1] if ref.extent in cluster.nodes[0].extents else cluster.nodes[0]
        content = cluster.holders(ref.extent)[0].extents[ref.extent]
        for node in cluster.holders(ref.extent):
            del node.extents[ref.extent]
        moved.extents[ref.extent] = content
        await client.put(NS, "f", b"newer")
        assert await reader.read() == DATA
        assert reader.version == version


async def test_a_version_that_is_gone_is_not_found_never_other_bytes(cluster: FakeCluster, client: Client) -> None:
    await put_and_copy(cluster, client)
    async with await client.open(NS, "f") as reader:
        for node in cluster.nodes:
            node.extents.clear()
        del cluster.files[(1, "f")]
        await client.put(NS, "f", b"newer")
        with pytest.raises(NotFound):
            await reader.read()


async def test_nothing_reachable_is_unavailable_and_soon(cluster: FakeCluster, client: Client) -> None:
    await put_and_copy(cluster, client)
    for node in cluster.nodes:
        await node.stop()
    asked = len(cluster.lookups)
    with pytest.raises(Unavailable, match="refused"):
        await client.get(NS, "f")
    assert len(cluster.lookups) - asked <= 4, "it is not asked for until a deadline"


async def test_an_expired_capability_is_renewed(cluster: FakeCluster, client: Client) -> None:
    for node in cluster.nodes:
        node.capability_life_ms = -1
    await put_and_copy(cluster, client)
    async with await client.open(NS, "f") as reader:
        for node in cluster.nodes:
            node.capability_life_ms = 60_000
        assert await reader.read() == DATA
    assert not cluster.reports


async def test_a_slow_source_is_hedged_within_the_budget(cluster: FakeCluster) -> None:
    async with await cluster.client(timeouts=replace(PATIENT, first_byte_s=90.0)) as client:  # slow, and not silent
        await client.put(NS, "f", b"small")
        cluster.copy_all()
        for _ in range(100):
            await client.get(NS, "f")
        slow = primary_of(cluster)
        slow.delay_s = 60.0
        async with asyncio.timeout(30):
            assert await client.get(NS, "f") == b"small", "nobody waits for the slow one"
        assert client.segments.hedges >= 1
        slow.delay_s = 0.35
        for _ in range(20):
            await client.get(NS, "f")
        reads = sum(len(node.reads) for node in cluster.nodes)
        assert client.segments.hedges <= 0.05 * reads + 1


# -- writes ---------------------------------------------------------------------------------------
def write_ids(cluster: FakeCluster) -> set[tuple[str, str]]:
    return {(write_id, first_sent) for _, write_id, first_sent in cluster.writes}


@pytest.mark.parametrize("error", [NoSpace("full"), Fenced("sealed"), Unavailable("away"), Overloaded("busy")])
async def test_a_refused_write_goes_to_another_node_under_the_same_id(
    cluster: FakeCluster, client: Client, error: CopypoolError
) -> None:
    for node in cluster.nodes:
        node.faults.error_write = error
    cluster.nodes[0].faults.refuse_writes = cluster.nodes[1].faults.refuse_writes = 1
    await client.put(NS, "f", b"data")
    assert await client.get(NS, "f") == b"data"
    assert len(write_ids(cluster)) == 1


async def test_a_lost_reply_is_repeated_with_the_same_id_and_applied_once(cluster: FakeCluster, client: Client) -> None:
    cluster.nodes[0].faults.lose_replies = cluster.nodes[1].faults.lose_replies = 1
    stored = await client.put(NS, "f", b"data", if_absent=True)
    assert stored.replayed
    assert len(cluster.files[(1, "f")]) == 1
    assert len(cluster.writes) >= 2
    assert len(write_ids(cluster)) == 1
    cluster.nodes[0].faults.lose_replies = cluster.nodes[1].faults.lose_replies = 1
    await client.delete(NS, "f")
    assert len(cluster.files[(1, "f")]) == 2


async def test_an_outcome_nobody_could_tell_is_said_so(cluster: FakeCluster) -> None:
    for node in cluster.nodes:
        node.faults.lose_replies = 1000
    async with await cluster.client(write_deadline_s=0.5) as client:
        with pytest.raises(OutcomeUnknown):
            await client.put(NS, "f", b"data")
        with pytest.raises(OutcomeUnknown):
            await client.put_many(NS, [("g", b"1"), ("h", b"2")])


async def test_a_dead_node_is_left_for_another_one(cluster: FakeCluster, client: Client) -> None:
    await client.put(NS, "a", b"1")
    await cluster.nodes[0].stop()
    for number in range(4):
        await client.put(NS, f"f{number}", b"1")
    assert (await client.put_many(NS, [(f"m{number}", b"1") for number in range(600)])).files == 600


async def test_no_room_anywhere_is_told_at_once(cluster: FakeCluster, client: Client) -> None:
    for coordinator in cluster.coordinators:
        coordinator.no_space = True
    with pytest.raises(NoSpace):
        await client.put(NS, "f", b"data")
    assert sum(coordinator.calls.count("lease") for coordinator in cluster.coordinators) == 1, "it is not asked again"


async def test_a_lost_part_is_sent_again_from_memory(cluster: FakeCluster, client: Client) -> None:
    cluster.nodes[0].faults.lose_replies = 1
    cluster.nodes[1].faults.error_write = NoSpace("full")
    cluster.nodes[1].faults.refuse_writes = 1
    data = DATA * (2 * PART_BYTES // len(DATA) + 1)

    async def once() -> AsyncIterator[bytes]:
        for at in range(0, len(data), 1_000_003):
            yield data[at : at + 1_000_003]

    await client.put(NS, "big", once())
    assert await client.get(NS, "big") == data


async def test_files_of_a_batch_are_repeated_one_by_one(cluster: FakeCluster, client: Client) -> None:
    cluster.nodes[0].faults.entry_errors = cluster.nodes[1].faults.entry_errors = 30
    cluster.nodes[0].faults.lose_replies = 1
    result = await client.put_many(NS, [(f"f{number}", b"x") for number in range(500)])
    assert (result.files, result.failures) == (500, 0)
    assert all(len(history) == 1 for history in cluster.files.values()), "nothing is applied twice"
    assert len({write_id for _, write_id, _ in cluster.writes}) == 500
    again = await client.put_many(NS, [("f1", b"y")], if_absent=True, keep_going=True)
    assert isinstance(again.failed[0].error, Conflict)


# -- coordinators ---------------------------------------------------------------------------------
async def test_any_coordinator_will_do(cluster: FakeCluster, client: Client) -> None:
    await client.put(NS, "f", b"1")
    await cluster.coordinators[0].stop()
    assert await client.get(NS, "f") == b"1"
    await cluster.coordinators[0].start()
    cluster.coordinators[1].refuse = True
    assert await client.get(NS, "f") == b"1"
    cluster.coordinators[0].error = Unavailable("starting")
    cluster.coordinators[1].refuse = False
    assert await client.get(NS, "f") == b"1"


async def test_a_silent_coordinator_is_left_within_its_answer_time(cluster: FakeCluster) -> None:
    async with await cluster.client(timeouts=QUICK) as client:
        await client.put(NS, "f", b"1")
        for coordinator in cluster.coordinators[:1]:
            coordinator.silent = True
        assert await client.get(NS, "f") == b"1", "the call is not over before another one is asked"


async def test_a_catalog_that_is_down_is_told_soon(
    cluster: FakeCluster, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("copypool.coordinators.CATALOG_PATIENCE_S", 0.2)
    await put_and_copy(cluster, client)
    reader = await client.open(NS, "f")
    for coordinator in cluster.coordinators:
        coordinator.error = CatalogDown("etcd does not answer")
    started = time.monotonic()
    with pytest.raises(CatalogDown):
        await client.get(NS, "f")
    assert time.monotonic() - started < CALL_DEADLINE_S / 2
    async with reader:
        assert await reader.read() == DATA, "a reader that knows its segments goes on"


async def test_the_wrong_token_is_not_repeated(cluster: FakeCluster) -> None:
    async with await cluster.client("cpt_wrong") as client:
        with pytest.raises(Unauthorized):
            await client.get(NS, "f")
        with pytest.raises(Unauthorized):
            await client.put(NS, "f", b"")
    assert sum(len(coordinator.calls) for coordinator in cluster.coordinators) == 2


async def test_leaving_a_reader_early_ends_its_transfers(cluster: FakeCluster, client: Client) -> None:
    await client.put(NS, "big", DATA * (2 * PART_BYTES // len(DATA) + 1))
    before = asyncio.all_tasks()
    async with await client.open(NS, "big") as reader:
        async for _ in reader:
            break
    await eventually(lambda: not [t for t in asyncio.all_tasks() - before if "read ahead" in t.get_name()], "pumps end")
