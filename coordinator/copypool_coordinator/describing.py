"""What people are told of one pool, one volume, one namespace's older extents. Pure: view in, structs out.

Those that walk many extents give the event loop its turn in between.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from copypool.protocol.api import PoolInfo, VolumeInfo
from copypool.protocol.policies import PoolDetails, VolumeDetails
from copypool_coordinator import reclassing
from copypool_coordinator.offpolicy import Mark
from copypool_coordinator.policy import places
from copypool_coordinator.rows import NamespaceRow, PoolRow, VolumeRow
from copypool_coordinator.view import ClusterView, Versioned
from copypool_coordinator.windows import window_state

_SLICE = 2_000
_NAMES_MAX = 20


def pool(view: ClusterView, entry: Versioned[PoolRow], info: PoolInfo, now_ms: int) -> PoolDetails:
    """One pool."""
    row = entry.row
    state = window_state(row.window, row.window_s, now_ms)
    using = [
        name
        for name, namespace in sorted(view.namespaces.items())
        if (known := view.classes.get(namespace.row.class_id)) is not None
        and row.id in (known.row.primary_pool, *known.row.copy_pools)
    ]
    return PoolDetails(
        info=info,
        copy_pools=[_pool_name(view, each) for each in row.copy_pools],
        spread=row.spread,
        window=row.window,
        window_s=row.window_s,
        window_open=state.open,
        window_changes_unix_s=state.changes_ms / 1000 if state.changes_ms else None,
        budget_bytes_s=row.budget_bytes_s,
        description=row.description,
        namespaces=using,
        volumes=[name for name, volume in sorted(view.volumes.items()) if volume.row.pool == row.id],
    )


async def volume(view: ClusterView, entry: Versioned[VolumeRow], info: VolumeInfo) -> VolumeDetails:
    """One volume; walks its extents."""
    row = entry.row
    facts = places(view)
    states: Counter[str] = Counter()
    oldest_ms = unverified = only_here = 0
    for number, extent in enumerate(list(view.extents_by_volume.get(row.id, ()))):
        if number % _SLICE == _SLICE - 1:
            await asyncio.sleep(0)
        known = view.extents.get(extent)
        if known is None:
            continue
        here = [each for each in known.row.locations if each.volume == row.id]
        for location in here:
            states[location.state] += 1
            if location.state == "good" and not known.row.open:
                unverified += not location.verified_ms
                if location.verified_ms:
                    oldest_ms = min(oldest_ms or location.verified_ms, location.verified_ms)
        full = {
            each.volume
            for each in known.row.locations
            if each.state == "good" and each.length >= known.row.length
            if (place := facts.get(each.volume)) is not None and (place.counted or each.volume == row.id)
        }
        only_here += not known.row.open and full == {row.id}
    return VolumeDetails(
        info=info,
        location_text=row.location_text,
        limit_bytes=row.limit_bytes,
        access_reason=row.access_reason,
        access_since_unix_s=row.access_since_ms / 1000 if row.access_since_ms else None,
        mounted=row.uuid != b"",
        locations=dict(states),
        unverified=unverified,
        verified_oldest_unix_s=oldest_ms / 1000 if oldest_ms else None,
        only_here=only_here,
    )


@dataclass(slots=True)
class OlderExtents:
    """Extents of a namespace's past classes in which it has records."""

    extents: int = 0
    payload_bytes: int = 0  #: of this namespace, put in
    shared_with: list[str] = field(default_factory=list)
    obstacle: str = ""


async def older_extents(view: ClusterView, namespace: NamespaceRow) -> OlderExtents:
    """What is left of older policies; walks the extents of those classes."""
    found = OlderExtents()
    shared: set[int] = set()
    unfit = 0
    number = 0
    for class_id in namespace.past_classes:
        for extent in list(view.extents_by_class.get(class_id, ())):
            number += 1
            if number % _SLICE == 0:
                await asyncio.sleep(0)
            known = view.extents.get(extent)
            if known is None or known.row.class_id != class_id:
                continue
            if known.row.open:
                # What it holds is known once it is sealed.
                found.extents += reclassing.may_be_written_by_old_leases(namespace, known.row)
                continue
            held = reclassing.held_bytes(known.row, namespace.id)
            if held is None:
                continue
            found.extents += 1
            found.payload_bytes += held
            verdict = reclassing.judge(view, known.row, namespace.class_id)
            shared |= verdict.others
            unfit += verdict.moves_primary
    found.shared_with = sorted(_namespace_name(view, each) for each in shared)[:_NAMES_MAX]
    if unfit:
        found.obstacle = (
            f"{unfit} extents would have to move to another primary pool: their bytes are not rewritten by this version"
        )
    elif shared:
        found.obstacle = (
            f"records of namespaces with another policy ({', '.join(found.shared_with)}) are in the same extents: "
            "give them the same policy, or let their extents be reclaimed"
        )
    return found


async def lacking_extents(view: ClusterView, marks: Mapping[int, Mark], namespace: NamespaceRow) -> tuple[int, int]:
    """Sealed extents of the namespace's present class that are not where it wants them, and the payload there.

    Those that only just got the class are among them until their copies are there. Walks what is off policy.
    """
    extents = payload_bytes = 0
    for number, (extent, mark) in enumerate(list(marks.items())):
        if number % _SLICE == _SLICE - 1:
            await asyncio.sleep(0)
        known = view.extents.get(extent)
        if known is None or known.row.open or known.row.class_id != namespace.class_id:
            continue
        held = reclassing.held_bytes(known.row, namespace.id)
        if held is not None and (mark.debt or mark.under_protected):
            extents += 1
            payload_bytes += held
    return extents, payload_bytes


def _pool_name(view: ClusterView, pool_id: int) -> str:
    entry = view.pools_by_id.get(pool_id)
    return str(pool_id) if entry is None else entry.name


def _namespace_name(view: ClusterView, namespace: int) -> str:
    entry = view.namespaces_by_id.get(namespace)
    return "unknown" if entry is None else entry.name
