"""What a small cluster, or a policy without copies, cannot protect, in plain sentences. Pure.

Nothing here is about what is wrong now, but about what would be lost, or could not be rebuilt, with the next failure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from copypool_coordinator import reclassing
from copypool_coordinator.placement import FLOOR_BYTES
from copypool_coordinator.protection import VolumeFacts

if TYPE_CHECKING:
    from copypool_coordinator.heartbeats import Loads
    from copypool_coordinator.rows import NamespaceRow
    from copypool_coordinator.view import ClusterView

#: Extents of older classes that one answer looks at: the first one of a namespace ends the search for it.
_LOOKED_AT_MAX = 2_000


def not_rebuildable(view: ClusterView, places: Mapping[int, VolumeFacts]) -> list[str]:
    """Primary pools in use with a single node: its loss could be read around, but not healed (never green)."""
    found = []
    for pool in sorted(_primary_pools_in_use(view)):
        nodes = _holders(view, places, pool)
        if len(nodes) == 1:
            found.append(
                f"no second primary node in pool {_pool(view, pool)!r}: what is lost with {_node(view, nodes.pop())} "
                "could not be rebuilt; add a node with a volume in the pool"
            )
    return found


def thinned(view: ClusterView, places: Mapping[int, VolumeFacts]) -> list[str]:
    """Pools in use with several nodes, of which one or none takes bytes now."""
    found = []
    primary = _primary_pools_in_use(view)
    for pool in sorted(primary | _copy_pools_in_use(view).keys()):
        there = _holders(view, places, pool)
        taking = {place.node for place in places.values() if place.pool == pool and place.writable}
        if len(there) < 2 or len(taking) > 1:
            continue
        others = _named(sorted(_node(view, node) for node in there - taking))
        if taking:
            name = _node(view, taking.pop())
            so = f"what is lost with {name} could not be rebuilt"
            if pool not in primary:
                so = f"new bytes have no copy there while {name} is away"
            found.append(f"in pool {_pool(view, pool)!r} only {name} takes bytes now: until {others} does, {so}")
        else:
            found.append(
                f"in pool {_pool(view, pool)!r} no node takes bytes now: nothing is written or rebuilt there until one "
                f"does ({others}); see `copypool volumes`"
            )
    return found


def full(view: ClusterView, places: Mapping[int, VolumeFacts], loads: Loads) -> dict[int, str]:
    """Pools in use of which every volume that takes bytes is full, with a sentence; one that was not heard is not."""
    primary = _primary_pools_in_use(view)
    found = {}
    for pool in sorted(primary | _copy_pools_in_use(view).keys()):
        taking = [place for place in places.values() if place.pool == pool and place.writable]
        rooms = [loads[place.volume].report.free_bytes if place.volume in loads else None for place in taking]
        if not taking or any(room is None or room >= FLOOR_BYTES for room in rooms):
            continue
        names = _named(sorted(place.name for place in taking))
        so = "writes to it end with `no_space`" if pool in primary else "new bytes get no copy there"
        found[pool] = f"pool {_pool(view, pool)!r} is full ({names}): {so}; add a volume, or make room"
    return found


def warnings(view: ClusterView, places: Mapping[int, VolumeFacts]) -> list[str]:
    """What the cluster as it is cannot protect against, though everything is where policy says."""
    found = thinned(view, places)
    nodes = {place.node for place in places.values() if not place.destroyed}
    if len(nodes) == 1:
        found.append(f"{_node(view, next(iter(nodes)))} is the only node with volumes: its loss is the loss of all")
    for level in ("host", "zone"):
        where = {
            getattr(view.nodes_by_id[node].row, level) or f"node {node}" for node in nodes if node in view.nodes_by_id
        }
        if len(nodes) > 1 and len(where) == 1:
            found.append(f"all nodes are in one {level} ({where.pop()}): nothing protects against its loss")
    for pool, copies in sorted(_copy_pools_in_use(view).items()):
        holders = _holders(view, places, pool)
        if len(holders) == 1 and copies:
            found.append(
                f"copy pool {_pool(view, pool)!r} is on one node, {_node(view, holders.pop())}: while it is away, new "
                "bytes have no copy there"
            )
    return found


def copyless(view: ClusterView, only: str = "") -> list[str]:
    """Namespaces whose policy wants no copies (or one of them), as a sentence; none: nothing to say.

    Apart from the other warnings, because a token that is limited to a namespace must not learn of others.
    """
    names = [
        name
        for name, namespace in sorted(view.namespaces.items())
        if namespace.row.state == "live"
        and only in ("", name)
        and (known := view.classes.get(namespace.row.class_id)) is not None
        and not known.row.copy_pools
    ]
    if not names:
        return []
    return [f"by policy namespace {_named(names)} has no copy pool: each byte is on one volume and lost with it"]


def left_behind(view: ClusterView, only: str = "") -> list[str]:
    """Namespaces with files of an older policy that wants fewer copies (or one of them), a sentence each.

    Such extents are where *their* policy wants them, so nothing else tells of them.
    """
    found = []
    budget = _LOOKED_AT_MAX
    for name, entry in sorted(view.namespaces.items()):
        if entry.row.state != "live" or only not in ("", name) or not entry.row.past_classes:
            continue
        lack, looked_at = _lack_copies(view, entry.row, budget)
        budget -= looked_at
        if lack:
            found.append(
                f"files of namespace {name!r} that were stored before its policy changed {lack} the copies that it "
                f"wants now: `copypool namespace rewrite {name}` makes them"
            )
    return found


def _lack_copies(view: ClusterView, namespace: NamespaceRow, budget: int) -> tuple[str, int]:
    """`lack`; `may lack` when `budget` extents do not make that clear; empty: none does. And how many it looked at."""
    looked_at = 0
    for class_id in namespace.past_classes:
        if _copy_pools(view, namespace.class_id) <= _copy_pools(view, class_id):
            continue
        for extent in view.extents_by_class.get(class_id, ()):
            if reclassing.may_hold(namespace, view.extents[extent].row):
                return "lack", looked_at
            if looked_at == budget:
                return "may lack", looked_at
            looked_at += 1
    return "", looked_at


def _copy_pools(view: ClusterView, class_id: int) -> set[int]:
    return set(view.classes[class_id].row.copy_pools) if class_id in view.classes else set()


def _holders(view: ClusterView, places: Mapping[int, VolumeFacts], pool: int) -> set[int]:
    """Nodes with a volume in this pool that was mounted once and is not given up."""
    return {
        place.node
        for volume, place in places.items()
        if place.pool == pool and not place.destroyed
        if (entry := view.volumes_by_id.get(volume)) is not None and entry.row.epoch
    }


def _classes_in_use(view: ClusterView) -> set[int]:
    return {entry.row.class_id for entry in view.namespaces.values() if entry.row.state == "live"}


def _primary_pools_in_use(view: ClusterView) -> set[int]:
    return {view.classes[each].row.primary_pool for each in _classes_in_use(view) if each in view.classes}


def _copy_pools_in_use(view: ClusterView) -> dict[int, int]:
    found: dict[int, int] = {}
    for class_id in _classes_in_use(view):
        for pool in view.classes[class_id].row.copy_pools if class_id in view.classes else ():
            found[pool] = found.get(pool, 0) + 1
    return found


def _pool(view: ClusterView, pool: int) -> str:
    entry = view.pools_by_id.get(pool)
    return entry.name if entry is not None else str(pool)


def _node(view: ClusterView, node: int) -> str:
    entry = view.nodes_by_id.get(node)
    return entry.name if entry is not None else str(node)


def _named(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown} and {len(names) - 5} others" if len(names) > 5 else shown
