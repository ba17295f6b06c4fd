"""Copy debt by pool and by namespace: what would be lost with the primaries now, and how old it is. Pure.

Debt is known per extent and pool. Whose it is stands in the extent's shares: a namespace owes what lies between the
end of the copy and the end of its own last group there. That is exact where one namespace writes to an extent and an
upper bound where several do; it is never 0 while something of the namespace is uncopied.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from copypool.protocol.protection import NamespaceProtection, PoolProtection
from copypool_coordinator.locations import OTHERS, shares_of
from copypool_coordinator.offpolicy import Mark
from copypool_coordinator.protection import VolumeFacts
from copypool_coordinator.rows import ExtentRow, OpenRow

if TYPE_CHECKING:
    from copypool_coordinator.view import ClusterView

_OTHERS_NAME = "(others)"


@dataclass(slots=True)
class _Debt:
    size_bytes: int = 0
    records: int = 0
    since_ms: int = 0

    def add(self, size_bytes: int, records: int, since_ms: int) -> None:
        self.size_bytes += size_bytes
        self.records += records
        self.since_ms = min(self.since_ms or since_ms, since_ms)

    def age_s(self, now_ms: int) -> float:
        return max(0, now_ms - self.since_ms) / 1000 if self.size_bytes else 0.0


def by_pool(
    view: ClusterView, marks: Mapping[int, Mark], places: Mapping[int, VolumeFacts], now_ms: int
) -> list[PoolProtection]:
    """Every pool, primary ones first."""
    debts: dict[int, _Debt] = {}
    damaged: Counter[int] = Counter()
    missing: Counter[int] = Counter()
    for extent, mark in marks.items():
        records = dict(mark.debt_records)
        for pool, size in mark.debt:
            debts.setdefault(pool, _Debt()).add(size, records.get(pool, 0), mark.debt_since_ms)
        if mark.damaged or mark.missing:
            entry = view.extents.get(extent)
            for location in () if entry is None else entry.row.locations:
                place = places.get(location.volume)
                if place is None or place.destroyed:
                    continue
                damaged[place.pool] += location.state == "damaged"
                missing[place.pool] += location.state == "missing"
    found = []
    for name, pool_entry in view.pools.items():
        debt = debts.get(pool_entry.row.id, _Debt())
        found.append(
            PoolProtection(
                name,
                pool_entry.row.type,
                debt.size_bytes,
                debt.records,
                debt.age_s(now_ms),
                damaged[pool_entry.row.id],
                missing[pool_entry.row.id],
            )
        )
    found.sort(key=lambda each: (each.type != "primary", each.pool))
    return found


def by_namespace(
    view: ClusterView, marks: Mapping[int, Mark], opened: Mapping[int, OpenRow], now_ms: int
) -> list[NamespaceProtection]:
    """Every live namespace, by name; what cannot be told apart comes last, and only when it owes something."""
    debts: dict[int, _Debt] = {}
    for extent, mark in marks.items():
        entry = view.extents.get(extent)
        if not mark.debt or entry is None:
            continue
        for namespace, size, records in owed_by(entry.row, opened.get(extent), mark):
            debts.setdefault(namespace, _Debt()).add(size, records, mark.debt_since_ms)
    found = []
    for name, namespace_entry in sorted(view.namespaces.items()):
        debt = debts.pop(namespace_entry.row.id, _Debt())
        extent_class = view.classes.get(namespace_entry.row.class_id)
        pools = [] if extent_class is None else extent_class.row.copy_pools
        names = [view.pools_by_id[pool].name for pool in pools if pool in view.pools_by_id]
        found.append(NamespaceProtection(name, names, debt.size_bytes, debt.records, debt.age_s(now_ms)))
    rest = _Debt()
    for debt in debts.values():
        rest.add(debt.size_bytes, debt.records, debt.since_ms)
    if rest.size_bytes:
        found.append(NamespaceProtection(_OTHERS_NAME, [], rest.size_bytes, rest.records, rest.age_s(now_ms)))
    return found


def owed_by(row: ExtentRow, opened: OpenRow | None, mark: Mark) -> Iterable[tuple[int, int, int]]:
    """(namespace, bytes, records) of each namespace that owes something in this extent, over all copy pools."""
    at: ExtentRow | OpenRow = opened if row.open and opened is not None else row
    records = dict(mark.debt_records)
    for share in shares_of(at):
        size = count = 0
        for pool, debt in mark.debt:
            behind = share.end - (at.length - debt)
            if behind > 0:
                size += behind
                count += min(share.records, records.get(pool, 0))
        if size:
            yield share.namespace, size, count


def end_of_namespace(row: ExtentRow, opened: OpenRow | None, namespace: int) -> int:
    """Up to where the extent may hold bytes of the namespace; 0: it holds none."""
    at: ExtentRow | OpenRow = opened if row.open and opened is not None else row
    return max((share.end for share in shares_of(at) if share.namespace in (namespace, OTHERS)), default=0)
