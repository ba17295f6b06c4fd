"""What namespaces occupy in pools, and what volumes hold. Pure: rows in, rows for people out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from copypool.protocol.insight import ContentEntry, Occupancy
from copypool_coordinator.locations import OTHERS, shares_of
from copypool_coordinator.offpolicy import Mark
from copypool_coordinator.protection import VolumeFacts, reach
from copypool_coordinator.rows import ExtentRow, Location, OpenRow

if TYPE_CHECKING:
    from copypool_coordinator.view import ClusterView

_SHARED_NAME = "(shared)"


@dataclass(slots=True)
class _Sums:
    extents: int = 0
    records: int = 0
    payload_bytes: int = 0
    uncopied_bytes: int = 0


class OccupancySums:
    """Adds extents up, by namespace and pool. A pool has an extent once, however many volumes hold it."""

    def __init__(self) -> None:
        self._sums: dict[tuple[int, int], _Sums] = {}

    def add(self, row: ExtentRow, opened: OpenRow | None, mark: Mark | None, places: Mapping[int, VolumeFacts]) -> None:
        """Take one extent in."""
        at: ExtentRow | OpenRow = opened if row.open and opened is not None else row
        pools = {
            places[each.volume].pool
            for each in row.locations
            if each.volume in places and each.state in ("good", "copying", "damaged")
        }
        debts = dict(mark.debt) if mark is not None else {}
        for share in shares_of(at):
            for pool in pools | debts.keys():
                sums = self._sums.setdefault((share.namespace, pool), _Sums())
                sums.extents += 1
                sums.records += share.records
                sums.payload_bytes += share.payload_bytes
                behind = share.end - (at.length - debts.get(pool, 0))
                sums.uncopied_bytes += max(0, behind) if pool in debts else 0

    def result(self, view: ClusterView) -> list[Occupancy]:
        """The sums, by namespace; those that extents do not tell apart last."""
        found = []
        for (namespace, pool), sums in self._sums.items():
            entry = view.pools_by_id.get(pool)
            found.append(
                Occupancy(
                    namespace_name(view, namespace),
                    entry.name if entry is not None else str(pool),
                    entry.row.type if entry is not None else "primary",
                    sums.extents,
                    sums.records,
                    sums.payload_bytes,
                    sums.uncopied_bytes,
                )
            )
        found.sort(
            key=lambda each: (each.namespace == _SHARED_NAME, each.namespace, each.pool_type != "primary", each.pool)
        )
        return found


def namespace_name(view: ClusterView, namespace: int) -> str:
    """Its name; that of one which is gone is its number."""
    if namespace == OTHERS:
        return _SHARED_NAME
    entry = view.namespaces_by_id.get(namespace)
    return entry.name if entry is not None else f"({namespace}, deleted)"


def content_of(
    view: ClusterView,
    extent: int,
    row: ExtentRow,
    opened: OpenRow | None,
    volume: int,
    places: Mapping[int, VolumeFacts],
) -> Iterable[ContentEntry]:
    """The extent's locations on this volume; more than one only while one replaces another."""
    at: ExtentRow | OpenRow = opened if row.open and opened is not None else row
    for location in row.locations:
        if location.volume != volume:
            continue
        length = reach(row, location, at.length) if location.state == "good" else location.length
        yield ContentEntry(
            extent=extent,
            generation=location.generation,
            state=location.state,
            length=length,
            records=at.records if length >= at.length else location.records,
            open=row.open,
            good_elsewhere=sum(1 for each in row.locations if _covers(row, each, location, length, at.length, places)),
            verified_unix_s=location.verified_ms / 1000 if location.verified_ms else None,
            namespaces=[namespace_name(view, share.namespace) for share in shares_of(at)],
            evidence=location.evidence,
        )


def _covers(
    row: ExtentRow, each: Location, location: Location, length: int, committed: int, places: Mapping[int, VolumeFacts]
) -> bool:
    place = places.get(each.volume)
    return (
        each.volume != location.volume
        and each.state == "good"
        and place is not None
        and place.counted
        and reach(row, each, committed) >= length
    )
