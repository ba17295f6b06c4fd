"""Lists that operators see: nodes, volumes, pools, what is damaged. Pure; sums and judgements are in `status`."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from copypool.protocol.api import DamagedEntry, DamagedReply, NodeInfo, PoolInfo, VolumeInfo
from copypool_coordinator.policy import away_since_ms, taken_out

if TYPE_CHECKING:
    from copypool_coordinator.status import StatusFacts
    from copypool_coordinator.view import ClusterView

#: Damaged locations in one answer.
DAMAGED_MAX = 10_000
#: A node sends five heartbeats in the life of a session; three missed ones are shown before the session ends.
SILENT_SHARE = 3 / 5


def silent_nodes(view: ClusterView, facts: StatusFacts) -> dict[int, float]:
    """Nodes whose sessions live but who were not heard here for three heartbeats; since how many seconds."""
    epochs = {node: session.mod_revision for node, session in view.sessions.items()}
    return facts.heartbeats.silent(epochs, SILENT_SHARE * facts.policy.session_ttl_ms / 1000, facts.now_s)


def nodes(view: ClusterView, facts: StatusFacts) -> list[NodeInfo]:
    """Every node, by name; those that were taken out as well."""
    loads = facts.heartbeats.loads(facts.now_s)
    silent = silent_nodes(view, facts)
    found = []
    for name, node in sorted(view.nodes.items()):
        row = node.row
        session = view.sessions.get(row.id)
        volumes = view.volumes_by_node.get(row.id, set())
        reports = [loads[volume].report for volume in volumes if volume in loads]
        since_ms = away_since_ms(view, row.id, facts.now_ms)
        found.append(
            NodeInfo(
                name=name,
                id=row.id,
                state="away" if session is None else "silent" if row.id in silent else "up",
                zone=row.zone,
                host=row.host,
                url=session.row.url if session is not None else row.url,
                epoch=session.mod_revision if session is not None else 0,
                away_since_unix_s=since_ms / 1000 if since_ms else None,
                volumes=len(volumes),
                free_bytes=sum(report.free_bytes for report in reports),
                total_bytes=sum(report.total_bytes for report in reports),
                heartbeat_age_s=facts.heartbeats.age_s(row.id, facts.now_s),
                maintenance_until_unix_s=_still(row.maintenance_until_ms, facts.now_ms),
                taken_out=taken_out(view, row.id),
            )
        )
    return found


def _still(until_ms: int, now_ms: int) -> float | None:
    """A time that is not over yet."""
    return until_ms / 1000 if until_ms > now_ms else None


def volumes(view: ClusterView, facts: StatusFacts) -> list[VolumeInfo]:
    """Every volume, by name; sizes as its node said last, however long ago."""
    damaged = Counter(
        each.volume
        for extent, mark in facts.marks.items()
        if mark.damaged and extent in view.extents
        for each in view.extents[extent].row.locations
        if each.state == "damaged"
    )
    found = []
    for name, volume in sorted(view.volumes.items()):
        row = volume.row
        load = facts.heartbeats.last(row.id)
        pool = view.pools_by_id.get(row.pool)
        node = view.nodes_by_id.get(row.node)
        found.append(
            VolumeInfo(
                name=name,
                id=row.id,
                pool=pool_name(view, row.pool),
                pool_type=pool.row.type if pool is not None else "primary",
                node=node.name if node is not None else str(row.node or ""),
                access=row.access,
                reachable=view.volume_reachable(row.id),
                free_bytes=load.report.free_bytes if load is not None else 0,
                total_bytes=load.report.total_bytes if load is not None else 0,
                extents=len(view.extents_by_volume.get(row.id, ())),
                stored_bytes=load.report.stored_bytes if load is not None else 0,
                damaged=damaged[row.id],
                unknown_extents=load.report.unknown_extents if load is not None else 0,
                intent=row.intent,
            )
        )
    return found


def pools(view: ClusterView, facts: StatusFacts) -> list[PoolInfo]:
    """Every pool, by name. An extent counts once for each volume of the pool that it is on."""
    debts: Counter[int] = Counter()
    for mark in facts.marks.values():
        debts.update(dict(mark.debt))
    infos = {
        entry.row.id: PoolInfo(name, entry.row.id, entry.row.type, 0, 0, 0, 0, debts[entry.row.id])
        for name, entry in sorted(view.pools.items())
    }
    seen: dict[int, set[int]] = {}
    for volume in volumes(view, facts):
        row = view.volumes_by_id[volume.id].row
        info = infos.get(row.pool)
        if info is None:
            continue
        info.volumes += 1
        info.extents += volume.extents
        info.stored_bytes += volume.stored_bytes
        seen.setdefault(row.pool, set()).add(row.node)
    for pool, info in infos.items():
        info.nodes = len(seen.get(pool, ()))
    return list(infos.values())


def damaged(view: ClusterView, facts: StatusFacts) -> DamagedReply:
    """Locations marked damaged or missing, by extent; at most `DAMAGED_MAX`."""
    found = []
    for extent, mark in sorted(facts.marks.items()):
        entry = view.extents.get(extent)
        if entry is None or not (mark.damaged or mark.missing):
            continue
        for location in entry.row.locations:
            place = facts.places.get(location.volume)
            if location.state not in ("damaged", "missing") or place is None:
                continue
            node = view.nodes_by_id.get(place.node)
            evidence = location.evidence or ("the file is not there" if location.state == "missing" else "")
            found.append(
                DamagedEntry(
                    extent=extent,
                    volume=place.name,
                    node=node.name if node is not None else str(place.node),
                    generation=location.generation,
                    since_unix_s=location.changed_ms / 1000,
                    evidence=evidence,
                    state=location.state,
                    bad_offset=location.bad_offset,
                )
            )
            if len(found) >= DAMAGED_MAX:
                return DamagedReply(found)
    return DamagedReply(found)


def pool_name(view: ClusterView, pool: int) -> str:
    entry = view.pools_by_id.get(pool)
    return entry.name if entry is not None else str(pool)


def names_of(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown} and {len(names) - 5} others" if len(names) > 5 else shown
