"""Cluster time of several coordinators on a real etcd, one of which has a wrong wall clock."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from copypool.protocol.versions import version_at
from copypool_coordinator.catalog import Catalog
from copypool_coordinator.clock import ClusterClock, steady_ms, wall_ms
from copypool_coordinator.etcd import Etcd, EtcdSettings
from kit.catalog_world import World
from kit.eventually import eventually

HOUR_MS = 3_600_000
SLACK_MS = 60_000  #: two reads of a clock on a busy machine: far from the hour that the wrong one is off


class Stepped:
    """A coordinator's catalog whose wall clock is set by hand."""

    def __init__(self) -> None:
        self.error_ms = 0
        self.catalog: Catalog

    def clock(self) -> ClusterClock:
        return ClusterClock(lambda: wall_ms() + self.error_ms, steady_ms)

    def is_right(self) -> bool:
        return abs(self.catalog.now_ms() - wall_ms()) < SLACK_MS


async def catalog_with(stack: AsyncExitStack, endpoint: str, clock: ClusterClock) -> Catalog:
    etcd = await Etcd.connect(EtcdSettings((endpoint,)))
    stack.push_async_callback(etcd.close)
    catalog = Catalog(etcd, "c2", clock=clock)
    await catalog.start()
    stack.push_async_callback(catalog.close)
    await catalog.ready(60.0)
    return catalog


async def stepped_one(stack: AsyncExitStack, endpoint: str, error_ms: int = 0) -> Stepped:
    """A second coordinator, whose wall clock is wrong by so much from its start on."""
    one = Stepped()
    one.error_ms = error_ms
    one.catalog = await catalog_with(stack, endpoint, one.clock())
    return one


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as made:
        yield made


async def test_a_coordinator_that_starts_with_a_wrong_clock_waits_for_the_leader_s(
    world: World, endpoint: str, stack: AsyncExitStack
) -> None:
    guard = await world.lead()
    await world.catalog.write_clock(guard)
    wrong = await stepped_one(stack, endpoint, HOUR_MS)
    assert not wrong.catalog.time_known
    revision = await world.catalog.write_clock(guard)
    await wrong.catalog.wait_for(lambda view: view.revision >= revision, 60.0)
    assert wrong.catalog.time_known
    assert wrong.is_right()


@pytest.mark.parametrize("step_ms", [HOUR_MS, -HOUR_MS])
async def test_writes_go_on_through_a_coordinator_whose_clock_is_stepped(
    world: World, endpoint: str, stack: AsyncExitStack, step_ms: int
) -> None:
    """What a node mints by the time of one coordinator is committed by any other one."""
    guard = await world.lead()
    await world.catalog.write_clock(guard)
    stepped = await stepped_one(stack, endpoint)
    assert stepped.catalog.time_known, "both clocks are right"
    writer = await world.writer(await world.node("n1"))
    stepped.error_ms = step_ms
    minted = writer.put("a", version=version_at(stepped.catalog.now_ms()))
    assert await writer.outcomes(minted) == ["committed"]

    async def has_heard() -> bool:
        return writer.extent in stepped.catalog.view.extents

    await eventually(has_heard, "the other coordinator knows the extent")
    reply = await writer.commit(writer.put("b"), catalog=stepped.catalog)
    assert [result.outcome for result in reply.results] == ["committed"]
    assert stepped.is_right()


@pytest.mark.parametrize("step_ms", [HOUR_MS, -HOUR_MS])
async def test_a_leader_whose_clock_is_stepped_writes_what_it_wrote_before(
    world: World, endpoint: str, stack: AsyncExitStack, step_ms: int
) -> None:
    guard = await world.lead()
    await world.catalog.write_clock(guard)
    stepped = await stepped_one(stack, endpoint)
    stepped.error_ms = step_ms
    revision = await stepped.catalog.write_clock(guard)
    await world.catalog.wait_for(lambda view: view.revision >= revision, 60.0)
    assert abs(world.catalog.view.clock_ms - wall_ms()) < SLACK_MS
