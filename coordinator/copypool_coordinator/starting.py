"""From what an operator asks for to a process row, and what would come of it. Pure.

The preview is made of the same functions that the process is counted by, on facts in which the request is already
granted: its volumes given up, or emptied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from copypool.protocol.api import AccessMode
from copypool.protocol.errors import Conflict, Invalid, NotFound
from copypool.protocol.processes import (
    SKIPPED_MAX,
    Preview,
    ProcessRequest,
    SkippedEntry,
    SourceShare,
    VolumeIntent,
)
from copypool_coordinator import reclassing
from copypool_coordinator.controllers.processes import FOUND_MAX
from copypool_coordinator.heartbeats import Loads
from copypool_coordinator.jobs import EMPTYING
from copypool_coordinator.obstacles import Obstacles
from copypool_coordinator.offpolicy import Mark
from copypool_coordinator.orders import Orders
from copypool_coordinator.policy import Facts
from copypool_coordinator.protection import VolumeFacts, is_empty
from copypool_coordinator.recovery import prospect
from copypool_coordinator.remaining import Left, bad_on, dies, gone_already, left, standing_wanted
from copypool_coordinator.rows import FORMAT, OpenRow, ProcessRow

if TYPE_CHECKING:
    from copypool_coordinator.view import ClusterView

#: A volume that is fuller than the mean of its pool by less than this part of itself is left alone.
REBALANCE_SLACK = 0.05
#: Verbs whose work is pulls.
_COPYING = ("restore", "move", "drain", "rebalance", "backup")
EXTENTS_MAX = 20_000  #: of one restore of a namespace or prefix


@dataclass(frozen=True, slots=True)
class Plan:
    """A process to be started: its row, and what is set together with it."""

    row: ProcessRow
    access: AccessMode | None = None
    intent: VolumeIntent | None = None
    notes: tuple[str, ...] = ()
    refused: str = ""  #: why it can be previewed and not be started


def draft(view: ClusterView, request: ProcessRequest, who: str, now_ms: int) -> Plan:
    """The row of a request, before anything is counted.

    Raises:
        Invalid: the request does not say what, or says too much.
        NotFound: there is no such volume, node, pool.
        Conflict: the volume is not in a state in which this can be done.
    """
    given = [name for name in ("volume", "node", "pool", "namespace") if getattr(request, name)]
    if len(given) > 1:
        raise Invalid(f"name one thing, not {' and '.join(given)}")
    kind = given[0] if given else ""
    allowed = {
        "restore": ("volume", "node", "pool", "namespace"),
        "audit": ("volume",),
        "move": ("volume",),
        "drain": ("node",),
        "rebalance": ("", "pool"),
        "delete": ("volume",),
        "backup": ("pool",),
        "rewrite": ("namespace",),
    }[request.verb]
    if kind not in allowed:
        raise Invalid(f"{request.verb} takes {' or '.join(each or 'nothing' for each in allowed)}")
    row = ProcessRow(FORMAT, request.verb, _what(request), who, now_ms, [], [], fix=request.fix)
    if kind == "volume":
        row.volumes = [_volume(view, request.volume)]
    elif kind == "node":
        row.volumes = _volumes_of(view, request.node)
    elif kind == "pool":
        row.pools = [_pool(view, request.pool)]
    if request.verb == "rewrite":
        row.namespace = _namespace(view, request.namespace)
    if request.verb == "restore" and row.volumes:
        note = "the volumes are set `destroyed`: nothing is read there and nothing is erased"
        return Plan(row, access="destroyed", notes=(note,))
    if request.verb in ("move", "drain"):
        note = "the volumes take no new bytes until they are released (`--end`); they are read until all is elsewhere"
        return Plan(row, intent="drain", notes=(note,))
    if request.verb == "delete":
        return _delete(view, request, row)
    if request.verb == "backup":
        _backup(view, request, row)
    elif request.verb == "audit":
        row.known_bad = bad_on(view, row.volumes)[:FOUND_MAX]
        if row.known_bad:
            note = (
                f"{len(row.known_bad)} locations there are marked damaged or missing already (see `query damaged`): "
                "they are not read again but replaced; until then their good blocks are a last source"
            )
            return Plan(row, notes=(note,))
    return Plan(row)


def _what(request: ProcessRequest) -> str:
    for kind in ("volume", "node", "pool"):
        if getattr(request, kind):
            return f"{kind} {getattr(request, kind)}"
    if request.namespace:
        return f"namespace {request.namespace}" + (f" below {request.prefix!r}" if request.prefix else "")
    return "all pools"


def _volume(view: ClusterView, name: str) -> int:
    entry = view.volumes.get(name)
    if entry is None:
        raise NotFound(f"there is no volume {name!r}: see `copypool volumes`")
    return entry.row.id


def _volumes_of(view: ClusterView, name: str) -> list[int]:
    entry = view.nodes.get(name)
    if entry is None:
        raise NotFound(f"there is no node {name!r}: see `copypool nodes`")
    volumes = sorted(view.volumes_by_node.get(entry.row.id, ()))
    if not volumes:
        raise Conflict(f"node {name!r} has no volumes")
    return volumes


def _pool(view: ClusterView, name: str) -> int:
    entry = view.pools.get(name)
    if entry is None:
        raise NotFound(f"there is no pool {name!r}: see `copypool pools`")
    return entry.row.id


def _namespace(view: ClusterView, name: str) -> int:
    entry = view.namespaces.get(name)
    if entry is None or entry.row.state != "live":
        raise NotFound(f"there is no namespace {name!r}: see `copypool namespace list`")
    return entry.row.id


def _delete(view: ClusterView, request: ProcessRequest, row: ProcessRow) -> Plan:
    entry = view.volumes[request.volume]
    if request.force and request.force != request.volume:
        raise Invalid(f"--force repeats the volume's name, which is {request.volume!r}")
    held = len(view.extents_by_volume.get(entry.row.id, ()))
    refused = ""
    if held and not request.discard_data:
        refused = (
            f"volume {request.volume!r} holds {held} extents: `move data` first, `restore` it if it is lost, "
            "or --discard-data"
        )
    return Plan(row, intent="force" if request.force else "discard", refused=refused)


def _backup(view: ClusterView, request: ProcessRequest, row: ProcessRow) -> None:
    primary = row.pools[0]
    if view.pools_by_id[primary].row.type != "primary":
        raise Invalid(f"{request.pool!r} is a copy pool: a backup is of a primary pool")
    wanted = {
        pool for known in view.classes.values() if known.row.primary_pool == primary for pool in known.row.copy_pools
    }
    copies = [_pool(view, name) for name in request.to] or sorted(wanted)
    for pool, name in zip(copies, request.to, strict=False):
        if pool not in wanted:
            raise Conflict(f"no namespace has its primary copies in {request.pool!r} and copies in {name!r}")
    if not copies:
        raise Conflict(f"no namespace asks for copies of what is in {request.pool!r}")
    row.pools = [primary, *copies]


def refuse_twins(view: ClusterView, row: ProcessRow) -> None:
    """The same thing is not done twice at a time; different ones are safe beside each other.

    Of those that end by giving volumes back, only one at a time is about a volume: the first to end would give it back
    under the other.

    Raises:
        Conflict: such a process runs.
    """
    for name, entry in view.processes.items():
        other = entry.row
        if other.state != "running":
            continue
        same = other.verb == row.verb and other.what == row.what and other.pools == row.pools
        both = row.verb in EMPTYING and other.verb in EMPTYING and set(row.volumes) & set(other.volumes)
        if same or both or (row.verb == "rebalance" and other.verb == "rebalance"):
            raise Conflict(
                f"process {name} ({other.verb} of {other.what}) is at that already: `copypool process show {name}`",
                process=name,
            )


def refuse_futile(view: ClusterView, facts: Facts, marks: Mapping[int, Mark], plan: Plan) -> None:
    """A volume is not taken out of service for a move of which nothing can be done, and a rewriting of which nothing
    ever can is not begun, nor is what the request was not allowed to do. `facts` as for the preview.

    Raises:
        Conflict: none of its extents can go anywhere now, or get another class; or its volume is not empty.
    """
    if plan.refused:
        raise Conflict(plan.refused)
    if plan.row.verb == "rewrite":
        _refuse_futile_rewriting(view, facts, marks, plan.row)
    if plan.row.verb not in ("move", "drain"):
        return
    obstacles = Obstacles(view, facts)
    why = ""
    held = 0
    for one in left(view, facts, marks, plan.row):
        if is_empty(one.bytes):
            continue
        obstacle = obstacles.of(plan.row.verb, one)
        if obstacle is None or obstacle.waits:
            return
        why = why or obstacle.why
        held += 1
    if held:
        raise Conflict(
            f"nothing of {plan.row.what} can move now, so nothing was begun: {why} (--preview lists all {held} "
            "extents). Add a volume on another node to the pool or bring back who is away; `restore` what is lost; to "
            "merely stop writes there, `volume update V --access readonly`",
            blocked_extents=held,
        )


def _refuse_futile_rewriting(view: ClusterView, facts: Facts, marks: Mapping[int, Mark], row: ProcessRow) -> None:
    """While leases of the policy before live, they may bring extents that can be rewritten: it waits for their end."""
    items = left(view, facts, marks, row)
    if not items or reclassing.lease_left_ms(view.namespaces_by_id[row.namespace].row, row.created_ms):
        return
    obstacles = Obstacles(view, facts)
    found = [obstacles.of(row.verb, one) for one in items]
    final = [obstacle.why for obstacle in found if obstacle is not None and obstacle.final]
    if len(final) == len(items):
        raise Conflict(
            f"nothing of {row.what} can be rewritten, so nothing was begun: {final[0]} (--preview lists all "
            f"{len(items)} extents)",
            blocked_extents=len(items),
        )


def take_marks(view: ClusterView, row: ProcessRow, opened: Mapping[int, OpenRow]) -> None:
    """Backup: remember what is committed now. `opened` must have been read after the request came."""
    row.until_extent = max(view.extents, default=-1)
    row.lengths = sorted((extent, sample.length) for extent, sample in opened.items())


def fullness(view: ClusterView, loads: Loads) -> dict[int, tuple[int, int]]:
    """Volume -> (used, total) bytes, of what it may take: its size limit, or its file system.

    What is on its way out is as good as gone, else what was moved a moment ago would be moved once more.
    """
    found = {}
    for volume, load in loads.items():
        entry = view.volumes_by_id.get(volume)
        limit = entry.row.limit_bytes if entry is not None else 0
        total = min(load.report.total_bytes, limit or load.report.total_bytes)
        leaving = sum(
            location.length
            for extent in view.extents_by_volume.get(volume, ())
            for location in view.extents[extent].row.locations
            if location.volume == volume and location.state == "dropping"
        )
        found[volume] = (max(0, total - load.report.free_bytes - leaving), total)
    return found


def take_surplus(view: ClusterView, facts: Facts, row: ProcessRow, sizes: Mapping[int, tuple[int, int]]) -> None:
    """Rebalance: how many bytes are to go off which volumes. `sizes`: volume -> (used, total) bytes."""
    pools = row.pools or sorted(view.pools_by_id)
    for pool in pools:
        members = [
            volume
            for volume, place in facts.places.items()
            if place.pool == pool and place.writable and sizes.get(volume, (0, 0))[1] > 0
        ]
        total = sum(sizes[volume][1] for volume in members)
        if len(members) < 2 or not total:
            continue
        mean = sum(sizes[volume][0] for volume in members) / total
        for volume in members:
            used, size = sizes[volume]
            held = sum(
                view.extents[extent].row.length
                for extent in view.extents_by_volume.get(volume, ())
                if not view.extents[extent].row.open
            )
            surplus = min(held, round(used - mean * size))
            if surplus > REBALANCE_SLACK * size:
                row.volumes.append(volume)
                row.budget.append((volume, surplus))
    row.total_bytes = sum(size for _, size in row.budget)


def granted(facts: Facts, plan: Plan) -> Facts:
    """The facts as they will be once the request is granted; their chooser must know of it already."""
    places: dict[int, VolumeFacts] = dict(facts.places)
    for volume in plan.row.volumes:
        place = places.get(volume)
        if place is None:
            continue
        if plan.access == "destroyed":
            places[volume] = replace(place, up=False, counted=False, writable=False, destroyed=True)
        elif plan.intent:
            places[volume] = replace(place, writable=False, intent=plan.intent)
    orders = facts.orders
    if plan.row.verb == "restore" and not plan.row.volumes:
        orders = Orders(
            orders.audits,
            orders.urgent_pools | set(plan.row.pools),
            orders.urgent_extents | set(plan.row.extents),
            orders.moves,
            orders.crowded,
        )
    return replace(facts, places=places, orders=orders, standings={})


def preview(view: ClusterView, facts: Facts, marks: Mapping[int, Mark], plan: Plan) -> Preview:
    """What would come of it. `facts` are those of the granted request."""
    row = plan.row
    items = left(view, facts, marks, row)
    gone = [one for one in items if row.verb == "restore" and one.volume and gone_already(view, facts, one)]
    items = [one for one in items if one not in gone]
    obstacles = Obstacles(view, facts)
    stuck = [(one, why.why) for one in items if (why := obstacles.of(row.verb, one)) is not None and not why.waits]
    blocked = {one.extent for one, _ in stuck}
    able = [] if row.verb in ("audit", "delete") else [one for one in items if one.extent not in blocked]
    if row.verb == "rewrite":  # bytes are read only for what a pool of the new class lacks
        able = [one for one in able if (now := standing_wanted(view, facts, one)) is not None and not now.satisfied]
    origins = _origins(view, facts, able)
    size = row.total_bytes if row.verb == "rebalance" else sum(one.bytes for one in items)
    notes = [*plan.notes, *([f"refused as it is: {plan.refused}"] if plan.refused else [])]
    if gone:
        notes.append(f"{len(gone)} more extents are leaving it already, and nothing of them is lacking elsewhere")
    if row.verb == "rewrite":
        notes += _lease_note(view, row)
    if facts.brake:
        notes.append(facts.brake)
    if not items and not size:
        notes.append(_nothing(row))
    return Preview(
        verb=row.verb,
        what=row.what,
        extents=len(items),
        bytes=size,
        records=sum(one.records for one in items),
        sources=origins.volumes,
        blocked=_entries(stuck),
        blocked_extents=len(stuck),
        blocked_bytes=sum(one.bytes for one, _ in stuck),
        blocked_records=sum(one.records for one, _ in stuck),
        dies_extents=_dying(view, facts, row) if row.verb == "delete" else 0,
        eta_s=_eta_s(view, row, size),
        notes=notes,
        shares=origins.shares,
        merged=_entries(origins.merged),
        merged_extents=len(origins.merged),
        merged_bytes=sum(one.bytes for one, _ in origins.merged),
        merged_records=sum(one.records for one, _ in origins.merged),
    )


def _lease_note(view: ClusterView, row: ProcessRow) -> list[str]:
    left_ms = reclassing.lease_left_ms(view.namespaces_by_id[row.namespace].row, row.created_ms)
    return (
        [f"leases from before the update live for {-(-left_ms // 1000)} s: it does not end sooner"] if left_ms else []
    )


def _entries(items: Sequence[tuple[Left, str]]) -> list[SkippedEntry]:
    return [SkippedEntry(one.extent, one.bytes, one.records, why) for one, why in items[:SKIPPED_MAX]]


@dataclass(frozen=True, slots=True)
class _Origins:
    """Where the bytes of extents would come from."""

    volumes: list[str]
    shares: list[SourceShare]
    merged: list[tuple[Left, str]]  #: what has no whole location, and why


def _origins(view: ClusterView, facts: Facts, items: Sequence[Left]) -> _Origins:
    volumes: set[int] = set()
    shares: dict[int, tuple[int, int]] = {}
    merged: list[tuple[Left, str]] = []
    for one in items:
        row = view.extents[one.extent].row
        known = facts.committed(one.extent, row)
        committed = row.length if known is None else known
        if is_empty(committed):
            continue
        expected = prospect(row, committed, facts.places)
        volumes.update(expected.volumes)
        if expected.outlook == "merge":
            merged.append((one, expected.why))
        elif expected.outlook == "whole":
            extents, size = shares.get(expected.volumes[0], (0, 0))
            shares[expected.volumes[0]] = (extents + 1, size + one.bytes)
    by_name = {facts.places[volume].name: share for volume, share in shares.items()}
    return _Origins(
        sorted(facts.places[volume].name for volume in volumes),
        [SourceShare(name, *by_name[name]) for name in sorted(by_name)],
        merged,
    )


def _dying(view: ClusterView, facts: Facts, row: ProcessRow) -> int:
    return sum(
        dies(facts, extent, view.extents[extent].row, volume)
        for volume in row.volumes
        for extent in view.extents_by_volume.get(volume, ())
    )


def _nothing(row: ProcessRow) -> str:
    if row.verb == "backup":
        return "nothing to copy: 0 bytes"
    return "nothing to do"


def _eta_s(view: ClusterView, row: ProcessRow, size: int) -> float | None:
    """By the pace of the last process of the same verb that did something, else of the last one that copies too."""
    paces: dict[str, float] = {}
    for _, entry in sorted(view.processes.items()):
        past = entry.row
        took_ms = past.ended_ms - past.created_ms
        if past.done_bytes and took_ms > 0:
            paces[past.verb] = took_ms / past.done_bytes / 1000
            if past.verb in _COPYING:
                paces["copying"] = paces[past.verb]
    pace = paces.get(row.verb, paces.get("copying") if row.verb in _COPYING else None)
    return None if pace is None else size * pace
