"""The mirror of a range loses nothing, whatever is done to its stream (A8)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager

import pytest

from copypool.protocol.errors import CatalogDown, OutcomeUnknown
from copypool_coordinator.etcd import (
    Changed,
    Etcd,
    EtcdSettings,
    KeyValue,
    Listed,
    MirrorEvent,
    delete,
    put,
)
from kit.etcd_process import EtcdCluster
from kit.etcd_proxy import EtcdProxy

RANGE = (b"/c/", b"/c0")
DEADLINE_S = 60.0


class Replay:
    """What a consumer of the mirror knows, and how it came to know it.

    Changes of one range come in the order of their revisions; between ranges no order is promised.
    """

    def __init__(self, *, one_range: bool) -> None:
        self._one_range = one_range
        self.rows: dict[bytes, KeyValue] = {}
        self.revision = 0
        self.listings: list[Listed] = []
        self.changes: list[Changed] = []
        self._news = asyncio.Event()

    def take(self, event: MirrorEvent) -> None:
        if isinstance(event, Listed):
            self.listings.append(event)
            self.rows = {row.key: row for row in event.rows}
        else:
            assert event.revision > self.revision or not self._one_range, "a change came twice or out of order"
            assert not {row.key for row in event.puts} & set(event.deletes)
            self.changes.append(event)
            self.rows.update({row.key: row for row in event.puts})
            for key in event.deletes:
                self.rows.pop(key, None)
        self.revision = max(self.revision, event.revision)
        self._news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                self._news.clear()
                await self._news.wait()


@asynccontextmanager
async def following(
    etcd: Etcd, *ranges: tuple[bytes, bytes], page: int = 1000, silence_s: float = 30.0
) -> AsyncGenerator[Replay, None]:
    replay = Replay(one_range=len(ranges) < 2)

    async def consume() -> None:
        async with aclosing(etcd.mirror(ranges or (RANGE,), page=page, silence_s=silence_s)) as events:
            async for event in events:
                replay.take(event)

    task = asyncio.create_task(consume())
    try:
        yield replay
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@asynccontextmanager
async def connected(*endpoints: str, timeout_s: float = 20.0) -> AsyncGenerator[Etcd, None]:
    etcd = await Etcd.connect(EtcdSettings(endpoints, timeout_s=timeout_s))
    try:
        yield etcd
    finally:
        await etcd.close()


async def write_many(etcd: Etcd, count: int, *, in_flight: int = 64) -> int:
    """`count` transactions of their own revision, one in eight a delete; the last revision."""

    async def lane(first: int) -> int:
        revision = 0
        for number in range(first, count, in_flight):
            key = b"/c/%05d" % (number % 997)
            op = delete(key) if number % 8 == 7 else put(key, b"%d" % number)
            revision = (await etcd.txn([], [op])).revision
        return revision

    return max(await asyncio.gather(*(lane(first) for first in range(in_flight))))


async def truth(etcd: Etcd) -> dict[bytes, KeyValue]:
    return {row.key: row for row in (await etcd.range(*RANGE)).rows}


async def test_lists_then_follows_puts_and_deletes_in_revision_order() -> None:
    async with EtcdCluster() as cluster, connected(*cluster.endpoints) as etcd:
        await etcd.txn([], [put(b"/c/old", b"1"), put(b"/d/outside", b"1")])
        async with following(etcd) as replay:
            await replay.until(lambda: bool(replay.listings))
            assert [row.key for row in replay.listings[0].rows] == [b"/c/old"]
            assert replay.listings[0].reason == "start"
            both = await etcd.txn([], [put(b"/c/a", b"1"), put(b"/c/b", b"1"), delete(b"/c/old")])
            await replay.until(lambda: replay.revision >= both.revision)
            assert len(replay.changes) == 1
            assert {row.key for row in replay.changes[0].puts} == {b"/c/a", b"/c/b"}
            assert replay.changes[0].deletes == [b"/c/old"]
            await etcd.txn([], [put(b"/d/outside", b"2")])
            last = await etcd.txn([], [delete(b"/c/a")])
            await replay.until(lambda: replay.revision >= last.revision)
            assert replay.rows == await truth(etcd)
            assert len(replay.listings) == 1


async def test_a_listing_of_many_pages_is_of_one_revision() -> None:
    async with EtcdCluster() as cluster, connected(*cluster.endpoints) as etcd:
        for first in range(0, 2000, 100):
            await etcd.txn([], [put(b"/c/%05d" % number, b"0") for number in range(first, first + 100)])
        async with following(etcd, page=50) as replay:
            changing = asyncio.create_task(write_many(etcd, 500, in_flight=8))
            await replay.until(lambda: bool(replay.listings))
            listed = replay.listings[0]
            assert len(listed.rows) >= 1900
            assert all(row.mod_revision <= listed.revision for row in listed.rows)
            last = await changing
            await replay.until(lambda: replay.revision >= last)
            assert replay.rows == await truth(etcd)


@pytest.mark.parametrize("every", [2, 3, 5])
async def test_no_event_is_lost_when_the_stream_is_cut_after_every_kth_message_of_a_catch_up(every: int) -> None:
    events = 6000

    def cut_after(connection: int) -> int | None:
        # Connection 0 lists and follows; the later ones get "created" and then `every` - 1 replies with events.
        return None if connection == 0 else every

    async with (
        EtcdCluster() as cluster,
        EtcdProxy(cluster.members[0].client_port, cut_after) as proxy,
        connected(*cluster.endpoints) as direct,
        connected(proxy.endpoint) as etcd,
    ):
        await direct.txn([], [put(b"/c/first", b"1")])
        async with following(etcd) as replay:
            await replay.until(lambda: bool(replay.listings))
            await proxy.pause()
            last = await write_many(direct, events)
            await proxy.resume()
            await replay.until(lambda: replay.revision >= last)
            assert proxy.cuts >= 1, "the stream was never cut: this shows nothing"
            assert replay.rows == await truth(direct)
            assert len(replay.listings) == 1, "a cut without compaction needs no new listing"


async def test_no_event_is_lost_when_the_stream_is_cut_right_after_created() -> None:
    cut_once = {1: 1}
    async with (
        EtcdCluster() as cluster,
        EtcdProxy(cluster.members[0].client_port, cut_once.get) as proxy,
        connected(*cluster.endpoints) as direct,
        connected(proxy.endpoint) as etcd,
        following(etcd) as replay,
    ):
        await replay.until(lambda: bool(replay.listings))
        await proxy.pause()
        last = await write_many(direct, 2500)
        await proxy.resume()
        await replay.until(lambda: replay.revision >= last)
        assert proxy.cuts == 1
        assert replay.rows == await truth(direct)


async def test_a_catch_up_larger_than_a_message_hands_on_whole_revisions() -> None:
    """etcd sends it in fragments of 2 MB, which end anywhere."""
    async with (
        EtcdCluster() as cluster,
        EtcdProxy(cluster.members[0].client_port) as proxy,
        connected(*cluster.endpoints) as direct,
        connected(proxy.endpoint) as etcd,
        following(etcd) as replay,
    ):
        await replay.until(lambda: bool(replay.listings))
        await proxy.pause()
        last = 0
        for first in range(5):
            puts = [put(b"/c/%d/%03d" % (first, number), b"v" * 11_000) for number in range(128)]
            last = (await direct.txn([], puts)).revision
        await proxy.resume()
        await replay.until(lambda: replay.revision >= last)
        for change in replay.changes:
            revisions = [row.mod_revision for row in change.puts]
            assert all(revisions.count(revision) == 128 for revision in revisions)
        assert len(replay.rows) == 5 * 128


async def test_a_compaction_while_away_gives_a_new_listing_with_the_deletes_visible() -> None:
    async with (
        EtcdCluster() as cluster,
        EtcdProxy(cluster.members[0].client_port) as proxy,
        connected(*cluster.endpoints) as direct,
        connected(proxy.endpoint) as etcd,
    ):
        await direct.txn([], [put(b"/c/stays", b"1"), put(b"/c/goes", b"1")])
        async with following(etcd) as replay:
            await replay.until(lambda: bool(replay.listings))
            await proxy.pause()
            gone = await direct.txn([], [delete(b"/c/goes")])
            later = await direct.txn([], [put(b"/d/elsewhere", b"1")])
            await direct.compact(later.revision)
            await direct.compact(gone.revision)
            await proxy.resume()
            await replay.until(lambda: len(replay.listings) == 2)
            assert replay.listings[1].reason == "compacted"
            assert set(replay.rows) == {b"/c/stays"}
            last = await direct.txn([], [put(b"/c/new", b"1")])
            await replay.until(lambda: replay.revision >= last.revision)
            assert set(replay.rows) == {b"/c/stays", b"/c/new"}


async def ticking(etcd: Etcd, stop: asyncio.Event) -> None:
    """The clock row that somebody writes all the time."""
    number = 0
    while not stop.is_set():
        number += 1
        await etcd.txn([], [put(b"/c/clock", b"%d" % number)], timeout_s=DEADLINE_S)
        await asyncio.sleep(0.1)


@asynccontextmanager
async def clock(etcd: Etcd) -> AsyncGenerator[None, None]:
    stop = asyncio.Event()
    task = asyncio.create_task(ticking(etcd, stop))
    try:
        yield
    finally:
        stop.set()
        await task


async def test_a_silent_stream_is_replaced_by_a_new_listing_from_another_member() -> None:
    async with (
        EtcdCluster(members=3) as cluster,
        EtcdProxy(cluster.members[0].client_port) as proxy,
        connected(cluster.members[1].endpoint) as writer,
        connected(proxy.endpoint, cluster.members[2].endpoint) as etcd,
        clock(writer),
        following(etcd, silence_s=2.0) as replay,
    ):
        await replay.until(lambda: len(replay.changes) >= 2)
        proxy.swallow_replies = True
        before = len(replay.listings)  # a machine that pauses for long enough is silence, too
        last = await writer.txn([], [put(b"/c/while-silent", b"1")])
        await replay.until(lambda: b"/c/while-silent" in replay.rows)
        assert "silent" in [listing.reason for listing in replay.listings[before:]]
        assert replay.revision >= last.revision
        seen = len(replay.changes)
        await replay.until(lambda: len(replay.changes) > seen)


async def _kill(cluster: EtcdCluster) -> None:
    await cluster.members[0].kill()


async def _freeze(cluster: EtcdCluster) -> None:
    cluster.members[0].stop()


@pytest.mark.parametrize("harm", [_kill, _freeze])
async def test_the_mirror_goes_on_when_the_member_in_use_dies_or_freezes(
    harm: Callable[[EtcdCluster], Awaitable[None]],
) -> None:
    async with (
        EtcdCluster(members=3) as cluster,
        connected(*cluster.endpoints[1:]) as writer,
        connected(*cluster.endpoints) as etcd,
        following(etcd, silence_s=1.0) as replay,
    ):
        await replay.until(lambda: bool(replay.listings))
        await writer.txn([], [put(b"/c/before", b"1")])
        await replay.until(lambda: b"/c/before" in replay.rows)
        await harm(cluster)
        await put_until_taken(writer, b"/c/after")
        await replay.until(lambda: b"/c/after" in replay.rows)


async def put_until_taken(etcd: Etcd, key: bytes) -> None:
    """An idempotent put, through an election."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                await etcd.txn([], [put(key, b"1")], timeout_s=5.0)
            except (CatalogDown, OutcomeUnknown):
                await asyncio.sleep(0.05)
            else:
                return


async def test_several_ranges_are_mirrored_without_what_lies_between() -> None:
    async with EtcdCluster() as cluster, connected(*cluster.endpoints) as etcd:
        await etcd.txn([], [put(b"/c/a", b"1"), put(b"/c/o/1", b"1"), put(b"/c/s", b"1")])
        async with following(etcd, (b"/c/", b"/c/o/"), (b"/c/o0", b"/c0")) as replay:
            await replay.until(lambda: bool(replay.listings))
            assert set(replay.rows) == {b"/c/a", b"/c/s"}
            await etcd.txn([], [put(b"/c/o/1", b"2")])
            await etcd.txn([], [put(b"/c/a", b"2")])
            await etcd.txn([], [put(b"/c/s", b"2")])
            await replay.until(lambda: {row.value for row in replay.rows.values()} == {b"2"})
            assert b"/c/o/1" not in replay.rows


async def test_nothing_is_lost_when_the_stream_stops_in_one_range_only() -> None:
    """Each range keeps its own position, so a cut between two replies of one transaction loses neither."""
    cuts = {1: 3}
    async with (
        EtcdCluster() as cluster,
        EtcdProxy(cluster.members[0].client_port, cuts.get) as proxy,
        connected(*cluster.endpoints) as direct,
        connected(proxy.endpoint) as etcd,
    ):
        rows: dict[bytes, bytes] = {}
        async with aclosing(etcd.mirror([(b"/a/", b"/a0"), (b"/b/", b"/b0")], silence_s=30.0)) as events:
            async with asyncio.timeout(DEADLINE_S):
                assert isinstance(await anext(events), Listed)
                await proxy.pause()
                for number in range(50):
                    await direct.txn([], [put(b"/a/%d" % number, b"1"), put(b"/b/%d" % number, b"1")])
                await proxy.resume()
                while len(rows) < 100:
                    event = await anext(events)
                    assert isinstance(event, Changed)
                    rows.update({row.key: row.value for row in event.puts})
        assert proxy.cuts == 1


async def test_an_outage_is_told_and_survived() -> None:
    told: list[str] = []
    async with (
        EtcdCluster() as cluster,
        connected(*cluster.endpoints) as etcd,
        aclosing(etcd.mirror([RANGE], on_trouble=told.append)) as events,
        asyncio.timeout(DEADLINE_S),
    ):
        assert isinstance(await anext(events), Listed)
        await cluster.members[0].kill()
        restart = asyncio.create_task(_restart_and_put(cluster))
        event = await anext(events)
        while not isinstance(event, Changed):
            event = await anext(events)
        assert [row.key for row in event.puts] == [b"/c/after"]
        await restart
    assert told


async def _restart_and_put(cluster: EtcdCluster) -> None:
    await cluster.members[0].restart()
    async with connected(*cluster.endpoints) as writer:
        await writer.txn([], [put(b"/c/after", b"1")])


async def test_closing_the_client_ends_its_mirrors_with_an_error_and_not_as_if_cancelled() -> None:
    async with EtcdCluster() as cluster, connected(*cluster.endpoints) as etcd, asyncio.timeout(DEADLINE_S):
        events = etcd.mirror([RANGE])
        assert isinstance(await anext(events), Listed)
        next_event = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        await etcd.close()
        with pytest.raises(CatalogDown, match="closed"):
            await next_event
