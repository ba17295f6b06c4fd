"""Explanations, pages of extents, filters and chains of events: pure parts and their little shells."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import pytest

from copypool.protocol.api import SegmentRef
from copypool.protocol.errors import NotFound
from copypool.protocol.insight import LogRequest, SegmentExplained
from copypool_coordinator import explaining, locations, routing
from copypool_coordinator.catalog import Catalog
from copypool_coordinator.eventlog import LogReader, first_id
from copypool_coordinator.occupancy import OccupancySums, content_of
from copypool_coordinator.policy import places
from copypool_coordinator.proving import domains_of
from copypool_coordinator.rows import FORMAT, EventRow, Share
from kit.toy_cluster import MIB, ToyCluster

E = 7


def explained(cluster: ToyCluster, zone: str = "", brake: str = "") -> SegmentExplained:
    ref = SegmentRef(E, 4096, 1000)
    row = cluster.row(E)
    ranked = routing.explain(cluster.view, {}, row, ref, zone=zone)
    assert [each.place for each in ranked] == routing.sources(routing.rank(cluster.view, {}, row, zone=zone), ref)
    facts = cluster.facts()
    facts.brake = facts.brake or brake
    return explaining.segment(cluster.view, facts, cluster.now_ms, row, ref, ranked, domains_of(cluster.view))


def test_the_explanation_gives_the_order_of_reading_with_its_reasons() -> None:
    cluster = ToyCluster()
    cluster.open_extent(E, writer=1, length=MIB)
    cluster.settle()
    found = explained(cluster)
    assert [copy.rank for copy in found.copies] == [1, 2]
    assert found.copies[0].node == "node1"
    assert "a primary stands before a copy" in found.copies[1].why
    assert (found.policy_met, found.proven, found.doing) == (True, False, [])
    assert found.lacks == [f"volume{n} has it in an open extent: read back once that is sealed" for n in (1, 3)]
    far = explained(cluster, zone=found.copies[1].zone)
    assert far.copies[0].zone == found.copies[1].zone
    assert "in another zone than the reader" in far.copies[1].why


def test_a_lost_primary_is_waited_for_in_words_then_rebuilt() -> None:
    cluster = ToyCluster()
    cluster.open_extent(E, writer=1, length=MIB)
    cluster.settle()
    cluster.seal(E)
    cluster.settle()
    cluster.down(1)
    cluster.settle()
    found = explained(cluster)
    assert not found.policy_met
    assert "no good location of it in pool 'primary' that counts" in found.lacks
    assert any("node1 is away since" in doing and "waited for until" in doing for doing in found.doing)
    assert found.copies[-1].node == "node1"
    assert "its node is away" in found.copies[-1].why
    cluster.wait(cluster.policy.grace_ms + 1_000)
    assert any("next: a new location on volume2" in doing for doing in explained(cluster).doing)


def with_a_block_bad_on_both(offset: int) -> ToyCluster:
    """A sealed extent whose two locations have the same bad block; a replacement was given up at it."""
    cluster = ToyCluster()
    cluster.open_extent(E, writer=1, length=MIB)
    cluster.settle()
    cluster.seal(E)
    cluster.settle()
    for volume in (1, 3):
        row, location = cluster.row(E), cluster.location(E, volume)
        cluster.put_extent(E, locations.marked(row, location, "damaged", "bad", cluster.now_ms, bad_offset=offset))
    reserved = locations.reserved(cluster.row(E), 4, cluster.now_ms)
    assert reserved is not None
    cluster.put_extent(E, reserved[0])
    row, location = cluster.row(E), cluster.location(E, 4)
    cluster.put_extent(E, locations.given_up(row, location, 0, "no source has the block", False))
    return cluster


def test_a_file_with_a_block_that_is_bad_everywhere_is_called_lost_and_nothing_is_promised() -> None:
    found = explained(with_a_block_bad_on_both(4_500))
    assert found.lacks[0] == (
        "it is lost: the block at offset 4500 of its extent is bad on volume1, volume3, and no other location has it: "
        "store the file again, or delete it"
    )
    bad = [copy.volume for copy in found.copies if "offset 4500 of the extent, in this segment, is bad" in copy.why]
    assert sorted(bad) == ["volume1", "volume3"]
    assert f"volume4 stands still at 0 of {MIB} bytes: no source has the block" in found.doing
    assert not any("is pulling it" in doing or "pulls up to" in doing for doing in found.doing)


def test_a_file_beside_a_lost_block_is_told_what_holds_its_copies_up_and_what_to_do() -> None:
    found = explained(with_a_block_bad_on_both(20_000))
    assert not any("it is lost" in lack for lack in found.lacks)
    assert "the block at offset 20000 is bad on" in found.lacks[0]
    assert "store the readable files of the extent again" in found.lacks[0]


def test_what_is_waited_for_is_told_also_when_nothing_is_under_way() -> None:
    cluster = ToyCluster()
    for node in (3, 4):
        cluster.set_access(node, "readonly")
    cluster.open_extent(E, writer=1, length=MIB)
    cluster.settle()
    assert explained(cluster).doing == [
        "waiting: no volume of pool 'copy' takes writes now: see `copypool volumes`",
    ]
    found = explained(cluster, brake="re-replication is held")
    assert "re-replication is held" in found.doing


def test_occupancy_is_by_namespace_and_pool() -> None:
    cluster = ToyCluster()
    cluster.open_extent(E, writer=1, length=MIB)
    cluster.opened[E].shares = [Share(5, MIB, 3, 900)]
    sums = OccupancySums()
    sums.add(cluster.row(E), cluster.opened[E], None, places(cluster.view))
    (only,) = sums.result(cluster.view)
    assert (only.pool, only.extents, only.records, only.payload_bytes) == ("primary", 1, 3, 900)
    assert only.namespace == "(5, deleted)"
    cluster.settle()
    entries = content_of(cluster.view, E, cluster.row(E), cluster.opened[E], 1, places(cluster.view))
    assert [(entry.length, entry.good_elsewhere, entry.open) for entry in entries] == [(MIB, 1, True)]


class Log:
    """The event log of a catalog, in a list."""

    def __init__(self) -> None:
        self.events_there: list[tuple[str, EventRow]] = []

    def add(self, at_ms: int, kind: str, cause: str = "", volume: str = "") -> str:
        event_id = f"{at_ms:012x}{len(self.events_there):04x}abcdef"
        self.events_there.append((event_id, EventRow(FORMAT, at_ms, kind, "c1", "said", 7, volume, "", cause)))
        return event_id

    async def events(self, after: str, limit: int) -> Sequence[tuple[str, EventRow]]:
        return sorted(each for each in self.events_there if each[0] > after)[:limit]


def reader_of(log: Log) -> LogReader:
    return LogReader(cast(Catalog, SimpleNamespace(events=log.events)))


async def test_a_chain_is_found_from_any_of_its_events() -> None:
    log = Log()
    read = log.add(1_000, "ReadFallback")
    log.add(1_500, "NodeAway")
    mark = log.add(2_000, "LocationDamaged", read)
    begun = log.add(3_000, "RepairStarted", mark)
    done = log.add(4_000, "LocationRepaired", begun)
    for number in range(1_200):
        log.add(5_000 + number, "Noise")
    for start in (read, mark, begun, done):
        chain = await reader_of(log).chain(start)
        assert [event.kind for event in chain.events] == [
            "ReadFallback", "LocationDamaged", "RepairStarted", "LocationRepaired",
        ]  # fmt: skip
        assert not chain.truncated
    with pytest.raises(NotFound):
        await reader_of(log).chain("0" * 22)


async def test_filters_and_cursors_lose_no_event() -> None:
    log = Log()
    wanted = [log.add(1_000 + number, "A" if number % 3 else "B", volume="v") for number in range(2_500)]
    request = LogRequest(kinds=["B"], volume="v", since_unix_s=1.5, limit=100)
    found: list[str] = []
    while True:
        reply = await reader_of(log).find(request)
        found += [event.id for event in reply.events]
        request.after = reply.next_after
        if not reply.more:
            break
    assert found == [each for number, each in enumerate(wanted) if number % 3 == 0 and number >= 500]
    assert first_id(0) == ""
    later = log.add(9_000, "B", volume="v")
    assert [event.id for event in (await reader_of(log).find(request)).events] == [later]
