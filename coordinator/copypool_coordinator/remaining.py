"""What a process has left. Pure; previews and runs go by the same functions.

A process owns no work: controllers do it. So what is left is read off the rows, by whichever coordinator is asked, and
a process can neither lose count nor claim what is not so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from copypool_coordinator import locations, reclassing
from copypool_coordinator.controllers.filling import is_source
from copypool_coordinator.locations import before_drop
from copypool_coordinator.offpolicy import Mark
from copypool_coordinator.policy import Facts
from copypool_coordinator.protection import (
    Standing,
    assess,
    is_appended,
    is_empty,
    may_leave,
    reach,
)
from copypool_coordinator.rows import ExtentRow, Location, ProcessRow

if TYPE_CHECKING:
    from copypool_coordinator.view import ClusterView


class Left(NamedTuple):
    """One extent that a process is not done with."""

    extent: int
    bytes: int
    records: int
    volume: int = 0  #: that it is to leave, or to be read back on
    pool: int = 0  #: that it is to be whole in
    namespace: int = 0  #: whose present class it is to have


def left(view: ClusterView, facts: Facts, marks: Mapping[int, Mark], row: ProcessRow) -> list[Left]:
    """Everything that the process is not done with, by extent."""
    if row.verb == "backup":
        found = _debts(view, facts, marks, row)
    elif row.verb == "audit":
        found = _unread(view, facts, row)
    elif row.verb == "rewrite":
        found = _older(view, facts, marks, row)
    elif row.verb == "rebalance":
        found = _on_volumes(view, facts, {volume for _, volume in row.moves}, dict(row.moves), drops_count=False)
    elif row.verb == "restore" and not row.volumes:
        found = _not_whole(view, facts, marks, row)
    else:
        found = _on_volumes(view, facts, set(row.volumes), None, drops_count=row.verb in ("restore", "delete"))
    return sorted(found)


def _on_volumes(
    view: ClusterView, facts: Facts, volumes: set[int], only: Mapping[int, int] | None, *, drops_count: bool
) -> Iterator[Left]:
    for volume in volumes:
        for extent in view.extents_by_volume.get(volume, ()):
            if only is not None and only.get(extent) != volume:
                continue
            row = view.extents[extent].row
            for location in row.locations:
                if location.volume != volume or (location.state == "dropping" and not drops_count):
                    continue
                committed = facts.committed(extent, row)
                length = location.length if committed is None else reach(row, location, committed)
                records = _records(facts, extent, row) if is_appended(row, location) else location.records
                yield Left(extent, length, records, volume)
                break


def _records(facts: Facts, extent: int, row: ExtentRow) -> int:
    """Committed records of the extent; while it is open its sample knows."""
    opened = facts.opened.get(extent) if row.open else None
    return row.records if opened is None else opened.records


def _debts(view: ClusterView, facts: Facts, marks: Mapping[int, Mark], row: ProcessRow) -> Iterator[Left]:
    """Debt of the copy pools `row.pools[1:]`, of the primary pool `row.pools[0]`, as far as it is as old as the
    process."""
    lengths = dict(row.lengths)
    for extent, mark in marks.items():
        entry = view.extents.get(extent)
        if entry is None or not mark.debt or extent > row.until_extent:
            continue
        extent_class = view.classes.get(entry.row.class_id)
        committed = lengths.get(extent, facts.committed(extent, entry.row))
        if extent_class is None or committed is None or extent_class.row.primary_pool != row.pools[0]:
            continue
        for pool in assess(entry.row, committed, extent_class.row, facts.places).copies:
            if pool.pool in row.pools[1:] and pool.debt_bytes:
                yield Left(extent, pool.debt_bytes, _records(facts, extent, entry.row), pool=pool.pool)


def _unread(view: ClusterView, facts: Facts, row: ProcessRow) -> Iterator[Left]:
    """Good locations on the audited volumes that were not read back since; with `fix`, bad ones as well."""
    for volume in row.volumes:
        for extent in view.extents_by_volume.get(volume, ()):
            entry = view.extents[extent].row
            committed = facts.committed(extent, entry) or 0
            for location in entry.locations:
                if location.volume != volume:
                    continue
                if entry.open:
                    due = entry.opened_ms < row.created_ms and location.state == "good"
                    due = due and not is_empty(committed)
                elif location.state == "good":
                    whole = location.length >= entry.length and not is_empty(entry.length)
                    due = whole and location.verified_ms < row.created_ms
                else:
                    due = row.fix and location.state != "dropping" and is_bad(location, row.created_ms)
                if due:
                    yield Left(extent, committed, _records(facts, extent, entry), volume)


def is_bad(location: Location, since_ms: int) -> bool:
    """Whether this location is bad, or was and is on its way out, by what happened to it since then."""
    state = before_drop(location) if location.state == "dropping" else location.state
    return state in ("damaged", "missing") and location.changed_ms >= since_ms


def bad_on(view: ClusterView, volumes: Sequence[int], since_ms: int = 0) -> list[tuple[int, int]]:
    """(extent, generation) of every bad location on these volumes."""
    return [
        (extent, location.generation)
        for volume in volumes
        for extent in sorted(view.extents_by_volume.get(volume, ()))
        for location in view.extents[extent].row.locations
        if location.volume == volume and is_bad(location, since_ms)
    ]


def _not_whole(view: ClusterView, facts: Facts, marks: Mapping[int, Mark], row: ProcessRow) -> Iterator[Left]:
    """Sealed extents that are not whole in the pools of the process (or, when it names extents, in any)."""
    named = set(row.extents)
    for extent in sorted(named) if named else list(marks):
        entry = view.extents.get(extent)
        standing = None if entry is None else facts.standing(view, extent, entry.row)
        if entry is None or standing is None or entry.row.open or is_empty(standing.committed):
            continue
        for pool in standing.pools:
            if (named or pool.pool in row.pools) and not pool.staying:
                yield Left(extent, standing.committed, entry.row.records, pool=pool.pool)
                break


def _older(view: ClusterView, facts: Facts, marks: Mapping[int, Mark], row: ProcessRow) -> Iterator[Left]:
    """Extents from before the process that have a past class of the namespace, or the present one and lack copies."""
    entry = view.namespaces_by_id.get(row.namespace)
    if entry is None:
        return
    namespace = entry.row
    for class_id in namespace.past_classes:
        for extent in view.extents_by_class.get(class_id, ()):
            known = view.extents[extent].row
            if reclassing.may_hold(namespace, known):
                yield Left(extent, facts.committed(extent, known) or 0, known.records, namespace=namespace.id)
    for extent, mark in marks.items():
        if extent not in view.extents:
            continue
        known = view.extents[extent].row
        if known.class_id != namespace.class_id or known.opened_ms >= row.created_ms:
            continue
        if (mark.debt or mark.under_protected) and reclassing.held_bytes(known, namespace.id) is not None:
            yield Left(extent, facts.committed(extent, known) or 0, known.records, namespace=namespace.id)


def dies(facts: Facts, extent: int, row: ExtentRow, volume: int) -> bool:
    """Whether the last good bytes of some range would go if this volume's location went now (invariant 5).

    What is open is sealed before anything of it goes: it is judged as it will be then.
    """
    opened = facts.opened.get(extent) if row.open else None
    if opened is not None:
        row = locations.sealed(row, opened, opened.uncopied_since_ms)
    committed = facts.committed(extent, row)
    return any(
        location.volume == volume
        and is_source(location)
        and not may_leave(row, location, row.length if committed is None else committed, facts.counted, 1)
        for location in row.locations
    )


def as_wanted(view: ClusterView, facts: Facts, one: Left) -> ExtentRow:
    """The extent's row as the process wants it: of a rewriting, sealed and of the class that it is to get."""
    row = view.extents[one.extent].row
    entry = view.namespaces_by_id.get(one.namespace) if one.namespace else None
    return row if entry is None else reclassing.as_rewritten(view, row, facts.opened.get(one.extent), entry.row)


def standing_wanted(view: ClusterView, facts: Facts, one: Left) -> Standing | None:
    """The extent against the class that the process wants it to have; None when length or class is not known yet."""
    row = as_wanted(view, facts, one)
    if row == view.extents[one.extent].row:
        return facts.standing(view, one.extent, row)
    extent_class = view.classes.get(row.class_id)
    if extent_class is None:
        return None
    return assess(row, row.length, extent_class.row, facts.places, facts.moving_off(one.extent))


def gone_already(view: ClusterView, facts: Facts, one: Left) -> bool:
    """Whether this extent's location there is on its way out and nothing is lacking without it."""
    row = view.extents[one.extent].row
    here = [each for each in row.locations if each.volume == one.volume]
    standing = facts.standing(view, one.extent, row)
    return all(each.state == "dropping" for each in here) and standing is not None and standing.satisfied
