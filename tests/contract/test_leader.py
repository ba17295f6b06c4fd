"""One leader at a time, on a real etcd: elected, resigned, cut off, deposed (invariant 4)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from copypool.protocol.errors import NotLeader
from copypool_coordinator import keys
from copypool_coordinator.catalog import Catalog, LeaderGuard
from copypool_coordinator.etcd import Etcd, EtcdSettings, delete
from copypool_coordinator.leader import Leader
from kit.etcd_process import EtcdCluster
from kit.etcd_proxy import EtcdProxy
from kit.eventually import eventually


class Candidate:
    """A coordinator's candidacy, and the times of its terms on the loop's clock."""

    def __init__(self, catalog: Catalog, name: str) -> None:
        self.catalog = catalog
        self.leader = Leader(catalog, name, f"http://{name}", self._lead)
        self.began: list[tuple[float, LeaderGuard]] = []
        self.ended: list[float] = []
        self.task: asyncio.Task[None] | None = None

    async def _lead(self, guard: LeaderGuard) -> None:
        loop = asyncio.get_running_loop()
        self.began.append((loop.time(), guard))
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.append(loop.time())

    @property
    def leads(self) -> bool:
        return self.leader.guard is not None

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.task


@asynccontextmanager
async def candidate(endpoint: str, name: str) -> AsyncIterator[Candidate]:
    etcd = await Etcd.connect(EtcdSettings((endpoint,), timeout_s=3.0))
    catalog = Catalog(etcd, name)
    await catalog.start()
    await catalog.ready(60.0)
    one = Candidate(catalog, name)
    one.task = asyncio.create_task(one.leader.run())
    try:
        yield one
    finally:
        await one.stop()
        await catalog.close()
        await etcd.close()


async def test_the_next_one_leads_at_once_when_the_leader_resigns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lease would outlive the test: whoever waited for its end would not lead in time."""
    monkeypatch.setattr("copypool_coordinator.leader.LEASE_S", 300)
    async with EtcdCluster(members=1) as cluster, candidate(cluster.endpoints[0], "c1") as first:
        await eventually(lambda: first.leads, "c1 leads")
        async with candidate(cluster.endpoints[0], "c2") as second:
            await eventually(lambda: second.catalog.view.leader is not None, "c2 knows the leader")
            assert not second.leads
            await first.stop()
            await eventually(lambda: second.leads, "c2 leads")
            assert second.began[0][1].term > first.began[0][1].term


async def test_a_leader_that_is_cut_off_stops_before_the_next_one_begins() -> None:
    async with (
        EtcdCluster(members=1) as cluster,
        EtcdProxy(cluster.members[0].client_port) as proxy,
        candidate(proxy.endpoint, "c1") as first,
    ):
        await eventually(lambda: first.leads, "c1 leads")
        async with candidate(cluster.endpoints[0], "c2") as second:
            await eventually(lambda: second.catalog.view.leader is not None, "c2 knows the leader")
            await proxy.pause()
            await eventually(lambda: second.leads, "c2 leads")
            assert first.ended, "the old one was still leading"
            assert first.ended[0] <= second.began[0][0]
            with pytest.raises(NotLeader):
                await second.catalog.write_clock(first.began[0][1])
            await proxy.resume()


async def test_a_leader_whose_key_is_taken_away_stops_at_once_and_may_lead_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("copypool_coordinator.leader.LEASE_S", 300)
    async with EtcdCluster(members=1) as cluster, candidate(cluster.endpoints[0], "c1") as only:
        await eventually(lambda: only.leads, "c1 leads")
        await only.catalog.etcd.txn([], [delete(keys.LEADER)])
        await eventually(lambda: len(only.ended) == 1, "the first term ends")
        await eventually(lambda: len(only.began) == 2, "the second term begins")
        assert only.began[1][1].term > only.began[0][1].term


async def test_the_clock_row_moves_while_somebody_leads() -> None:
    async with EtcdCluster(members=1) as cluster, candidate(cluster.endpoints[0], "c1") as only:
        await eventually(lambda: only.catalog.view.clock_ms > 0, "a clock row")
        seen_ms = only.catalog.view.clock_ms
        await eventually(lambda: only.catalog.view.clock_ms > seen_ms, "a newer clock row")


async def test_a_duty_that_fails_ends_the_term_and_not_the_candidacy() -> None:
    async with EtcdCluster(members=1) as cluster, candidate(cluster.endpoints[0], "c1") as only:
        terms: list[int] = []

        async def failing(guard: LeaderGuard) -> None:
            terms.append(guard.term)
            raise ZeroDivisionError("a bug")

        await only.stop()
        leader = Leader(only.catalog, "c1", "http://c1", failing)
        task = asyncio.create_task(leader.run())
        try:
            await eventually(lambda: len(terms) >= 2, "a second term")
            assert not task.done()
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
