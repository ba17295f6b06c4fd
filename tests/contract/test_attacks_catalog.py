"""Failing sequences that the catalog was hardened against, played on a real etcd (tests/ATTACKS.md).

Those of the commit transaction are in `test_catalog_commit`, those of locations in `test_catalog_locations`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec.structs import replace

from copypool.protocol.api import NamespaceSpec, SegmentRef
from copypool.protocol.errors import Fenced, OutcomeUnknown, Unavailable
from copypool.protocol.internal import InventoryReport, ProgressReport
from copypool_coordinator import keys, rows
from copypool_coordinator.etcd import delete, put
from copypool_coordinator.locating import Locator
from copypool_coordinator.rows import ExtentRow, FileRow, Location
from kit.catalog_world import TestNode, World, Writer


async def locations(world: World, writer: Writer, holder: TestNode) -> list[Location]:
    kv = await world.etcd.get(keys.extent(writer.extent))
    assert kv is not None
    row = rows.decode(kv.value, ExtentRow)
    return [each for each in row.locations if each.volume == holder.volume]


def progress(writer: Writer, holder: TestNode, generation: int, *, finished: bool = True) -> ProgressReport:
    return ProgressReport(
        holder.node_id, holder.epoch, writer.extent, holder.volume, generation, writer.length, 1, finished, False
    )


# -- A7: classes ---------------------------------------------------------------------------------
async def test_a7_ii_ack_rules_never_share_an_extent(world: World) -> None:
    """So a twin that is slow, or that cannot be had, holds up nobody whose namespace does not ask for one."""
    node = await world.node("n1")
    await world.catalog.create_namespace(NamespaceSpec("strict", "primary", ["copy"], "copy", "fail"))
    await world.catalog.create_namespace(NamespaceSpec("lenient", "primary", ["copy"], "copy", "continue"))
    with pytest.raises(Unavailable):
        await world.writer(node, "strict")
    default, lenient = await world.writer(node), await world.writer(node, "lenient")
    classes = {world.catalog.view.namespaces[name].row.class_id for name in ("default", "lenient", "strict")}
    assert len(classes) == 3
    assert default.extent != lenient.extent
    assert await default.outcomes(default.put("a")) == ["committed"]


# -- A9: an inventory races a receipt --------------------------------------------------------------
async def test_a9_iii_an_inventory_during_a_pull_takes_no_location_away(world: World) -> None:
    """D does not hold the file yet when its inventory is taken; the pull ends; the report comes last."""
    writer = await world.writer(await world.node("n1"))
    copy = await world.node("n2", "copy", "copy")
    leader = await world.lead()
    await writer.commit(writer.put("a"), seal=True)
    generation = await world.catalog.reserve_location(writer.extent, copy.volume, leader)
    revision = (await world.etcd.txn([], [put(keys.ROOT + b"c/~now", b"")])).revision
    taken = InventoryReport(copy.node_id, copy.epoch, copy.volume, revision, [writer.extent], [])
    assert await world.catalog.apply_inventory(taken) == [], "a location that is being filled is not missing"
    await world.catalog.report_progress(progress(writer, copy, generation))
    assert await world.catalog.apply_inventory(taken) == [], "it was taken before the receipt"
    (location,) = await locations(world, writer, copy)
    assert (location.state, location.length) == ("good", writer.length)


# -- A14: memory is newer than the row ---------------------------------------------------------------
async def move(world: World, namespace: int, path: str, old: Writer, new: Writer) -> None:
    """What reclaiming will do: the same version has other segments, and the old extent is gone."""
    key = keys.file(namespace, path)
    kv = await world.etcd.get(key)
    assert kv is not None
    row = rows.decode(kv.value, FileRow)
    place = SegmentRef(new.extent, row.record.offset, row.record.length)
    assert row.segments is None, "an inline file: its record is its segment"
    moved = replace(row, record=place)
    done = await world.etcd.txn([], [put(key, rows.encode(moved)), delete(keys.extent(old.extent))])
    await world.catalog.wait_for(lambda view: view.revision >= done.revision, 60.0)


async def two_extents(world: World) -> tuple[Writer, Writer]:
    """A file `a` in the first of two sealed extents."""
    node = await world.node("n1")
    old, new = await world.writer(node), await world.writer(node)
    await old.commit(old.put("a"), seal=True)
    await new.commit(new.put("b", 5000), seal=True)
    return old, new


async def test_a14_ii_a_row_that_was_read_before_its_extent_went_is_read_again(world: World) -> None:
    """The lookup has the row; the file moves and the extent is dropped; memory, newer than the row, knows neither."""
    old, new = await two_extents(world)
    (row,) = await world.catalog.lookup([(old.namespace, "a", 0)])
    assert row is not None
    await move(world, old.namespace, "a", old, new)
    assert old.extent not in world.catalog.view.extents, "memory is newer than the row"
    nobody = cast(Any, SimpleNamespace())
    locator = Locator(world.catalog, nobody, nobody, nobody, nobody, "z1")
    located = await locator.locate(old.namespace, "a", row, 0)
    assert [segment.extent for segment in located.segments] == [new.extent]
    assert set(located.extents) >= {new.extent}
    assert located.row.version == row.version


async def test_a14_ii_a_file_that_moves_between_row_and_extents_is_read_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = await two_extents(world)
    reads = 0
    original = world.etcd.txn

    async def txn(compares: Any, success: Any, failure: Any = (), **more: Any) -> Any:
        nonlocal reads
        reads += 1
        if reads == 2:  # the row was read, its extents were not
            await move(world, old.namespace, "a", old, new)
        return await original(compares, success, failure, **more)

    monkeypatch.setattr(world.etcd, "txn", txn)
    facts = await world.catalog.file_with_facts(old.namespace, "a")
    assert facts.row is not None
    assert facts.row.record.extent == new.extent
    assert set(facts.extents) == {new.extent}


# -- A18: a lost reply of anything but a commit ---------------------------------------------------------
@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize("step", ["reserve", "receipt", "seal", "begin_drop", "confirm_drop", "finish_drop"])
async def test_a18_ii_a_step_whose_reply_is_lost_is_done_once(world: World, step: str, applied: bool) -> None:
    """Every change of an extent's row: after an unknown outcome it is read again, and nothing is done twice."""
    writer = await world.writer(await world.node("n1"))
    copy = await world.node("n2", "copy", "copy")
    leader = await world.lead()
    await writer.commit(writer.put("a"))
    node = writer.node

    def lose(name: str) -> None:
        if name == step:
            world.hooked.lost.append(applied)

    lose("seal")
    sealed = await resolved(lambda: world.catalog.seal(writer.extent, by_epoch=(node.node_id, node.epoch)))
    assert sealed.length == writer.length
    lose("reserve")
    generation = await resolved(lambda: world.catalog.reserve_location(writer.extent, copy.volume, leader))
    assert [each.generation for each in await locations(world, writer, copy)] == [generation]
    lose("receipt")
    await resolved(lambda: world.catalog.report_progress(progress(writer, copy, generation)))
    assert [each.state for each in await locations(world, writer, copy)] == ["good"]
    lose("begin_drop")
    assert await resolved(lambda: world.catalog.begin_drop(writer.extent, copy.volume, generation, leader))
    assert [each.state for each in await locations(world, writer, copy)] == ["dropping"]
    lose("confirm_drop")
    assert await resolved(
        lambda: world.catalog.confirm_drop(writer.extent, copy.volume, generation, leader, forced=True)
    )
    assert [each.erasing for each in await locations(world, writer, copy)] == [True]
    lose("finish_drop")
    await resolved(lambda: world.catalog.finish_drop(writer.extent, copy.volume, generation, leader))
    assert await locations(world, writer, copy) == []
    assert not world.hooked.lost, "the reply of every step was lost that should be"
    with pytest.raises(Fenced):
        await world.catalog.report_progress(progress(writer, copy, generation))


async def resolved(call: Callable[[], Any]) -> Any:
    """What a caller does: an outcome that stayed unknown is asked for again, level-triggered, a few times."""
    for _ in range(3):
        try:
            return await call()
        except OutcomeUnknown:
            continue
    return await call()
