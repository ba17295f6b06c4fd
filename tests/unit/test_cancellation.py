"""Cancelled while its helpers fail, a task is cancelled: a failure must not hide the order to end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import cast

import pytest

from copypool.deleting import delete_listed
from copypool.protocol.api import ListEntry, Receipt
from copypool.protocol.errors import NotLeader, Unavailable
from copypool.writing import Writer
from copypool_coordinator.catalog import Catalog, LeaderGuard
from copypool_coordinator.leader import Leader
from copypool_coordinator.rows import LeaderRow
from copypool_coordinator.view import ClusterView
from copypool_node.handlers_write import outcome_of

_PATIENCE_S = 1.5


class QuietEtcd:
    """Grants every lease."""

    async def lease_grant(self, ttl_s: int) -> int:
        return ttl_s

    async def lease_keep_alive(self, lease: int) -> int:
        return lease

    async def lease_revoke(self, lease: int) -> None:
        await asyncio.sleep(0)


class QuietCatalog:
    """Elects whoever asks."""

    heard_s = 0.0

    def __init__(self) -> None:
        self.etcd = QuietEtcd()
        self.view = ClusterView()
        self.view.ready = True

    def now_ms(self) -> int:
        return 1

    async def wait_for(self, predicate: Callable[[ClusterView], bool], timeout_s: float) -> None:
        if not predicate(self.view):
            await asyncio.sleep(timeout_s)

    async def campaign(self, row: LeaderRow, lease: int) -> LeaderGuard:
        return LeaderGuard(1, 1)

    async def write_clock(self, guard: LeaderGuard, worked_ms: int, trouble: str) -> None:
        await asyncio.sleep(0)


async def ends(task: asyncio.Task[None]) -> bool:
    """Whether a task that was cancelled is over soon; it is in any case when this returns."""
    await asyncio.wait([task], timeout=_PATIENCE_S)
    over = task.done()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return over


@pytest.mark.parametrize("failure", [NotLeader("deposed"), ZeroDivisionError("a bug")], ids=["deposed", "bug"])
@pytest.mark.parametrize("turns", range(5))
async def test_a_candidacy_that_is_cancelled_while_its_duties_fail_ends(turns: int, failure: Exception) -> None:
    began = asyncio.Event()

    async def lead(guard: LeaderGuard) -> None:
        began.set()
        raise failure

    leader = Leader(cast(Catalog, QuietCatalog()), "c1", "http://c1", lead)
    task = asyncio.create_task(leader.run())
    await began.wait()
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    assert await ends(task)


async def test_two_duties_that_fail_in_different_ways_end_the_term_alone() -> None:
    terms: list[int] = []

    async def lead(guard: LeaderGuard) -> None:
        terms.append(guard.term)
        raise ExceptionGroup("two", [NotLeader("deposed"), ZeroDivisionError("a bug")])

    leader = Leader(cast(Catalog, QuietCatalog()), "c1", "http://c1", lead)
    task = asyncio.create_task(leader.run())
    async with asyncio.timeout(60):
        while len(terms) < 2:
            assert not task.done()
            await asyncio.sleep(0.01)
    task.cancel()
    assert await ends(task)


class RefusedWriter:
    """Deletes nothing."""

    def __init__(self) -> None:
        self.refused = asyncio.Event()

    async def delete(self, namespace: str, path: str, *, deadline_s: float) -> None:
        self.refused.set()
        raise Unavailable("no node can be reached")


@pytest.mark.parametrize("turns", range(4))
async def test_a_call_that_is_cancelled_while_its_parts_fail_is_cancelled(turns: int) -> None:
    async def entries() -> AsyncIterator[ListEntry]:
        yield ListEntry("a")
        await asyncio.Event().wait()

    writer = RefusedWriter()
    work = delete_listed(cast(Writer, writer), "ns", entries(), keep_going=False, deadline_s=1.0)
    task = asyncio.create_task(work)
    await writer.refused.wait()
    for _ in range(turns):
        await asyncio.sleep(0)
    before_its_end = task.cancel()
    await asyncio.wait([task], timeout=_PATIENCE_S)
    assert task.cancelled() == before_its_end
    if not task.cancelled():
        assert isinstance(task.exception(), Unavailable)


async def test_a_batch_that_is_cancelled_ends_and_one_that_the_writer_gave_up_is_unknown() -> None:
    waiting: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(outcome_of(waiting))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task], timeout=_PATIENCE_S)
    assert task.cancelled()

    given_up: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
    given_up.cancel()
    assert (await outcome_of(given_up)).code == "outcome_unknown"
