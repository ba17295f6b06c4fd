"""What becomes of a call when a member dies, freezes or answers into the void: never a silent second try."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from copypool.protocol.errors import CatalogDown, OutcomeUnknown
from copypool_coordinator.etcd import Etcd, EtcdSettings, get, put
from kit.etcd_process import EtcdCluster
from kit.etcd_proxy import EtcdProxy
from kit.eventually import eventually


@asynccontextmanager
async def connected(*endpoints: str, timeout_s: float = 5.0) -> AsyncGenerator[Etcd, None]:
    etcd = await Etcd.connect(EtcdSettings(endpoints, timeout_s=timeout_s))
    try:
        yield etcd
    finally:
        await etcd.close()


async def test_a_lost_reply_is_an_unknown_outcome_and_the_transaction_is_not_sent_again() -> None:
    async with (
        EtcdCluster() as cluster,
        EtcdProxy(cluster.members[0].client_port) as proxy,
        connected(*cluster.endpoints) as direct,
        connected(proxy.endpoint, *cluster.endpoints) as etcd,
    ):
        await etcd.txn([], [put(b"k", b"1")])
        proxy.swallow_replies = True
        with pytest.raises(OutcomeUnknown):
            await etcd.txn([], [put(b"k", b"2")], timeout_s=1.0)

        async def applied() -> bool:
            row = await direct.get(b"k")
            return row is not None and row.value == b"2"

        await eventually(applied, "it is applied")
        # The other endpoint serves what comes next.
        assert (await etcd.txn([], [put(b"k", b"3")])).succeeded
        row = await direct.get(b"k")
        assert row is not None
        assert (row.value, row.version) == (b"3", 3), "each was applied once"


async def test_a_connection_cut_while_a_transaction_is_under_way_is_an_unknown_outcome() -> None:
    async with (
        EtcdCluster() as cluster,
        EtcdProxy(cluster.members[0].client_port) as proxy,
        connected(*cluster.endpoints) as direct,
        connected(proxy.endpoint, *cluster.endpoints) as etcd,
    ):
        proxy.swallow_replies = True
        under_way = asyncio.create_task(etcd.txn([], [put(b"k", b"1")]))

        async def applied() -> bool:
            return await direct.get(b"k") is not None

        await eventually(applied, "the transaction is applied")
        await proxy.pause()
        with pytest.raises(OutcomeUnknown):
            await under_way
        row = await direct.get(b"k")
        assert row is not None
        assert row.version == 1


async def test_a_read_whose_reply_is_lost_is_answered_by_another_member_in_time() -> None:
    async with (
        EtcdCluster() as cluster,
        EtcdProxy(cluster.members[0].client_port) as proxy,
        connected(proxy.endpoint, *cluster.endpoints, timeout_s=5.0) as etcd,
    ):
        await etcd.txn([], [put(b"k", b"1")])
        proxy.swallow_replies = True
        async with asyncio.timeout(60):
            row = await etcd.get(b"k")
            lookup = await etcd.txn([], [get(b"k")])
        assert row is not None
        assert lookup.responses[0] == (row,)


async def test_a_refused_connection_is_an_outage_at_once_and_proves_that_nothing_was_sent() -> None:
    async with EtcdCluster() as cluster, connected(*cluster.endpoints, timeout_s=90.0) as etcd:
        await cluster.members[0].kill()
        async with asyncio.timeout(60):  # seven calls: not one waits for its own deadline
            with pytest.raises((CatalogDown, OutcomeUnknown)):
                await etcd.txn([], [put(b"k", b"1")])
            for _ in range(3):
                with pytest.raises(CatalogDown):
                    await etcd.txn([], [put(b"k", b"1")])
                with pytest.raises(CatalogDown):
                    await etcd.get(b"k")
        await cluster.members[0].start()

        async def taken() -> bool:
            with suppress(CatalogDown):
                return (await etcd.txn([], [put(b"k", b"1")])).succeeded
            return False

        await eventually(taken, "the member is used again")


async def test_no_member_at_all_is_an_outage_within_the_timeout() -> None:
    async with asyncio.timeout(60):
        with pytest.raises(CatalogDown, match="takes a connection"):
            await Etcd.connect(EtcdSettings(("127.0.0.1:1",), timeout_s=1.0))


async def _kill(cluster: EtcdCluster, index: int) -> None:
    await cluster.members[index].kill()


async def _freeze(cluster: EtcdCluster, index: int) -> None:
    cluster.members[index].stop()


@pytest.mark.parametrize("harm", [_kill, _freeze])
async def test_writes_go_on_in_bounded_time_when_the_leader_that_is_in_use_dies_or_freezes(
    harm: Callable[[EtcdCluster, int], Awaitable[None]],
) -> None:
    """A counter that only grows by a compare: every acknowledged step is in the store, none is there twice."""
    async with EtcdCluster(members=3) as cluster:
        async with connected(*cluster.endpoints) as asking:
            leader = [status.is_leader for status in await asking.status()].index(True)
        order = [cluster.endpoints[leader], *(e for e in cluster.endpoints if e != cluster.endpoints[leader])]
        async with connected(*order) as etcd:
            for step in range(5):
                await etcd.txn([], [put(b"step/%d" % step, b"")])
            await harm(cluster, leader)
            acknowledged, unknown = 0, 0
            async with asyncio.timeout(80):
                for step in range(5, 10):
                    while True:
                        try:
                            await etcd.txn([], [put(b"step/%d" % step, b"")])
                            acknowledged += 1
                            break
                        except OutcomeUnknown:
                            unknown += 1
                        except CatalogDown:
                            await asyncio.sleep(0.05)
            assert acknowledged == 5
            rows = (await etcd.range(b"step/", b"step0")).rows
            assert len(rows) == 10
            assert sum(row.version - 1 for row in rows) <= unknown, "written twice without having been told"


async def test_a_member_without_a_quorum_refuses_at_once_and_changes_nothing() -> None:
    async with EtcdCluster(members=3) as cluster, connected(*cluster.endpoints, timeout_s=2.0) as etcd:
        await cluster.members[1].kill()
        await cluster.members[2].kill()
        async with asyncio.timeout(60):
            while True:
                with pytest.raises((CatalogDown, OutcomeUnknown)) as refused:
                    await etcd.txn([], [put(b"k", b"1")])
                if isinstance(refused.value, CatalogDown) and "no leader" in refused.value.message:
                    break
        with pytest.raises(CatalogDown, match="no leader"):
            await etcd.get(b"k")


async def test_cancelling_a_call_ends_it_and_leaves_the_client_usable() -> None:
    async with (
        EtcdCluster() as cluster,
        EtcdProxy(cluster.members[0].client_port) as proxy,
        connected(proxy.endpoint, timeout_s=20.0) as etcd,
    ):
        proxy.swallow_replies = True
        under_way = asyncio.create_task(etcd.txn([], [put(b"k", b"1")]))
        await eventually(lambda: proxy.swallowed_bytes > 0, "a reply is lost")
        under_way.cancel()
        with pytest.raises(asyncio.CancelledError):
            await under_way
        await proxy.pause()
        proxy.swallow_replies = False
        await proxy.resume()

        async def read() -> bool:
            with suppress(CatalogDown):
                return await etcd.get(b"k") is not None
            return False

        await eventually(read, "the client reads again")


async def test_closing_fails_what_is_under_way_and_leaves_no_task() -> None:
    async with EtcdCluster() as cluster, EtcdProxy(cluster.members[0].client_port) as proxy:
        before = asyncio.all_tasks()
        etcd = await Etcd.connect(EtcdSettings((proxy.endpoint,), timeout_s=20.0))
        proxy.swallow_replies = True
        write = asyncio.create_task(etcd.txn([], [put(b"k", b"1")]))
        read = asyncio.create_task(etcd.get(b"k"))
        await eventually(lambda: proxy.swallowed_bytes > 0, "a reply is lost")
        await etcd.close()
        with pytest.raises(OutcomeUnknown):
            await write
        with pytest.raises(CatalogDown):
            await read
        with pytest.raises(CatalogDown):
            await etcd.get(b"k")
        await etcd.close()
        await proxy.pause()
        await eventually(lambda: not asyncio.all_tasks() - before, "every task of the client ends")
