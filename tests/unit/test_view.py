"""The view: any stream of changes leaves the same state as a listing of what they lead to, indexes included."""

from __future__ import annotations

import random

import pytest

from copypool.protocol.errors import BrokenInvariant
from copypool_coordinator import keys, rows
from copypool_coordinator.etcd import Changed, KeyValue, Listed
from copypool_coordinator.rows import (
    FORMAT,
    ClassRow,
    ExtentRow,
    Location,
    NodeRow,
    PoolRow,
    ProcessRow,
    Row,
    SessionRow,
    VolumeRow,
)
from copypool_coordinator.view import DECODED_MAX, ClusterView


def kv(key: bytes, value: Row | bytes, revision: int = 1) -> KeyValue:
    return KeyValue(key, value if isinstance(value, bytes) else rows.encode(value), revision, revision, 1, 0)


def extent(writer: int, *volumes: int, opened: bool = False, length: int = 9000) -> ExtentRow:
    locations = [Location(volume, 1, "good", length, 1) for volume in (writer, *volumes)]
    return ExtentRow(FORMAT, 1, opened, 1, writer, 7, 0, locations, length)


def volume(number: int, pool: int, access: str = "readwrite") -> VolumeRow:
    return VolumeRow(FORMAT, number, b"u", pool, number, 1, access)  # type: ignore[arg-type]


def some_change(chance: random.Random, revision: int) -> tuple[bytes, KeyValue | None]:
    """A row put (or deleted) somewhere in cluster state."""
    number = chance.randrange(1, 4)
    made: list[tuple[bytes, Row | bytes]] = [
        (keys.extent(number), extent(number, chance.randrange(4, 6), opened=chance.random() < 0.5)),
        (keys.named(keys.VOLUME, f"v{number}"), volume(number, number)),
        (keys.named(keys.NODE, f"n{number}"), NodeRow(FORMAT, number, b"", "", "", "")),
        (keys.named(keys.POOL, f"p{number}"), PoolRow(FORMAT, number, "primary")),
        (keys.session(number), SessionRow(FORMAT, 1, b"", "", 0)),
        (keys.fence(number, chance.choice(["a", "b/c", "ö"])), b""),
        (keys.named(keys.PROCESS, f"x{number}"), ProcessRow(FORMAT, "audit", "volume v", "t", number, [1], [])),
    ]
    key, row = chance.choice(made)
    return key, None if chance.random() < 0.3 else kv(key, row, revision)


def shape(view: ClusterView) -> object:
    """Everything that the view says, without empty index entries."""
    return (
        {name: (each.row, each.mod_revision) for name, each in view.volumes.items()},
        {number: each.name for number, each in view.volumes_by_id.items()},
        {number: found for number, found in view.volumes_by_node.items() if found},
        {name: each.row for name, each in view.nodes.items()},
        {number: each.name for number, each in view.nodes_by_id.items()},
        {name: each.row for name, each in view.pools.items()},
        {number: each.mod_revision for number, each in view.sessions.items()},
        {number: each.row for number, each in view.extents.items()},
        {number: found for number, found in view.extents_by_volume.items() if found},
        {number: found for number, found in view.open_by_volume.items() if found},
        {number: found for number, found in view.fences.items() if found},
        {name: each.row for name, each in view.processes.items()},
    )


@pytest.mark.parametrize("seed", range(20))
def test_changes_and_a_listing_lead_to_the_same_view(seed: int) -> None:
    chance = random.Random(seed)
    followed = ClusterView()
    followed.apply(Listed((), 1, "start"))
    state: dict[bytes, KeyValue] = {}
    for revision in range(2, 120):
        key, row = some_change(chance, revision)
        if row is None:
            state.pop(key, None)
            followed.apply(Changed(revision, [], [key]))
        else:
            state[key] = row
            followed.apply(Changed(revision, [row], []))
        listed = ClusterView()
        listed.apply(Listed(tuple(state[each] for each in sorted(state)), revision, "start"))
        assert shape(followed) == shape(listed)
        assert followed.revision == listed.revision == revision


def cluster() -> ClusterView:
    """Two nodes, a primary and a copy volume, one extent on both."""
    view = ClusterView()
    made = [
        kv(keys.named(keys.POOL, "primary"), PoolRow(FORMAT, 1, "primary")),
        kv(keys.named(keys.POOL, "copy"), PoolRow(FORMAT, 2, "copy")),
        kv(keys.named(keys.CLASS, "1/2/primary"), ClassRow(FORMAT, 1, 1, [2], "primary")),
        kv(keys.named(keys.VOLUME, "v1"), volume(1, 1)),
        kv(keys.named(keys.VOLUME, "v2"), volume(2, 2)),
        kv(keys.session(1), SessionRow(FORMAT, 1, b"", "", 0)),
        kv(keys.session(2), SessionRow(FORMAT, 1, b"", "", 0)),
        kv(keys.extent(5), extent(1, 2)),
    ]
    view.apply(Listed(tuple(made), 1, "start"))
    return view


def test_what_may_come_off_policy_is_dirty_once() -> None:
    view = cluster()
    assert view.take_dirty() == {5}
    assert view.take_dirty() == set()
    view.apply(Changed(2, [], [keys.session(2)]))
    assert view.take_dirty() == {5}
    view.apply(Changed(3, [kv(keys.named(keys.VOLUME, "v1"), volume(1, 1, "readonly"), 3)], []))
    assert view.take_dirty() == {5}
    view.apply(Changed(4, [kv(keys.named(keys.PROCESS, "x"), ProcessRow(FORMAT, "audit", "", "", 1, [], []), 4)], []))
    assert view.take_dirty() == set()
    view.apply(Changed(5, [], [keys.extent(5)]))
    assert view.take_dirty() == {5}


def test_a_listing_marks_also_what_is_gone() -> None:
    view = cluster()
    view.take_dirty()
    view.apply(Listed((), 9, "compacted"))
    assert view.take_dirty() == {5}
    assert view.extents == {}


@pytest.mark.parametrize(
    ("access", "lives", "reachable", "counts"),
    [
        ("readwrite", True, True, True),
        ("readonly", True, True, True),
        ("readwrite", False, False, False),
        ("unavailable", True, False, False),
        ("destroyed", True, False, False),
        ("offsite", False, False, True),
    ],
)
def test_reachable_and_counted(access: str, lives: bool, reachable: bool, counts: bool) -> None:
    view = cluster()
    view.apply(Changed(2, [kv(keys.named(keys.VOLUME, "v2"), volume(2, 2, access), 2)], []))
    if not lives:
        view.apply(Changed(3, [], [keys.session(2)]))
    assert (view.volume_reachable(2), view.volume_counts(2)) == (reachable, counts)


def test_copied_is_what_the_slowest_copy_pool_holds() -> None:
    view = cluster()
    row = extent(1)
    assert view.copied_length(row) == 0
    row.locations += [Location(2, 2, "copying", 5000, 1), Location(2, 3, "damaged", 9000, 1)]
    assert view.copied_length(row) == 5000
    view.classes[1].row.copy_pools = []
    assert view.copied_length(row) > 1 << 60


def test_the_next_fence_is_above_and_in_byte_order() -> None:
    view = ClusterView()
    paths = ["a", "a/b", "\uffff", "\U00010000"]
    view.apply(Listed(tuple(kv(keys.fence(1, path), b"") for path in paths), 1, "start"))
    found, at = [], ""
    while (fence := view.next_fence(1, at)) is not None:
        found.append(fence)
        at = fence
    assert found == sorted(paths, key=str.encode)
    assert view.next_fence(1, "", 3) == found[2]
    assert view.next_fence(2, "") is None


def test_a_row_of_a_newer_release_is_refused_by_name() -> None:
    """After a way back that went too far an operator has to learn what this release cannot read, and who can."""
    row = ProcessRow(FORMAT, "audit", "", "root", 0, [], [])
    row.verb = "of-tomorrow"  # type: ignore[assignment]
    with pytest.raises(BrokenInvariant, match=r"x/p1.*of-tomorrow.*a newer release wrote it"):
        ClusterView().apply(Changed(5, [kv(keys.named(keys.PROCESS, "p1"), row)], []))


def test_of_many_extents_all_are_told_and_few_are_kept_decoded() -> None:
    count = 3 * DECODED_MAX
    view = ClusterView()
    view.apply(Listed(tuple(kv(keys.extent(each), extent(1, 2, length=each)) for each in range(count)), 1, "start"))
    assert [entry.row.length for entry in view.extents.values()] == list(range(count))
    assert view.decoded == DECODED_MAX
    kept = view.extents[count - 1].row
    assert view.extents[count - 1].row is kept
    view.apply(Changed(2, [kv(keys.extent(5), extent(1, 3, length=77), 2)], []))
    assert (view.extents[5].row.length, view.extents_by_volume[3]) == (77, {5})
