"""The story of damage and repair as people read it: each event alone says which extent, volume and node it is about."""

from __future__ import annotations

from collections.abc import Sequence

from copypool_coordinator.chronicle import Chronicle
from copypool_coordinator.metrics import Metrics
from copypool_coordinator.policy import LocationKey
from copypool_coordinator.repairs import Repairs
from copypool_coordinator.rows import EventRow, Location


async def test_events_name_the_extent_the_volume_and_the_node() -> None:
    written: list[EventRow] = []

    async def append(events: Sequence[EventRow]) -> Sequence[str]:
        written.extend(events)
        return [f"e{len(written) - len(events) + number}" for number in range(len(events))]

    async def recall(since_ms: int) -> Sequence[tuple[str, EventRow]]:
        return []

    chronicle = Chronicle(append, "c1", lambda: 1)
    repairs = Repairs(chronicle, recall, Metrics())
    old, new = LocationKey(7, 1, 2), LocationKey(7, 2, 3)
    damaged = Location(1, 2, "damaged", 100, 1, evidence="block 3 has another checksum")
    await repairs.noticed(old, damaged, "node1-a", "node1")
    repairs.started(new, "node2-a", "its location on node1-a is damaged", old)
    repairs.look(new, Location(2, 3, "good", 100, 1), 100, "node2-a")
    await chronicle.flush()
    assert [(event.kind, event.message, event.cause) for event in written] == [
        (
            "LocationDamaged",
            "the location of extent 7 on node1-a of node1 (generation 2) is damaged: block 3 has another checksum",
            "",
        ),
        ("RepairStarted", "extent 7 gets a new location on node2-a: its location on node1-a is damaged", "e0"),
        ("LocationRepaired", "extent 7 is whole on node2-a again: 100 bytes", "e1"),
    ]
