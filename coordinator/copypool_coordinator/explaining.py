"""What is known of one segment, and what the controllers would do about it next, in sentences. Pure.

The order of reading comes from `routing`, protection from `proof`, the next steps from the controllers' own plans:
an explanation that had rules of its own would be one more thing to be wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from copypool.protocol.api import AccessMode, SegmentRef
from copypool.protocol.insight import WAY_OUT, CopyExplained, SegmentExplained
from copypool_coordinator.controllers import audit, copy, health, repair
from copypool_coordinator.controllers.actions import (
    Action,
    BeginDrop,
    CallOff,
    Decide,
    FinishDrop,
    Pull,
    Reserve,
    SealExtent,
    Verify,
)
from copypool_coordinator.mounting import is_unavailable
from copypool_coordinator.obstacles import Obstacles
from copypool_coordinator.policy import Facts, away_since_ms
from copypool_coordinator.proof import Domain, Piece, at_policy, held_up_to, is_proven
from copypool_coordinator.recovery import Prospect, outlook_of_range, prospect
from copypool_coordinator.remaining import Left
from copypool_coordinator.routing import Reasoned, end_of, held_bytes, reach_of
from copypool_coordinator.rows import ExtentRow, Location
from copypool_coordinator.windows import window_state

if TYPE_CHECKING:
    from copypool_coordinator.view import ClusterView


def segment(
    view: ClusterView,
    facts: Facts,
    now_ms: int,
    row: ExtentRow,
    ref: SegmentRef,
    ranked: Sequence[Reasoned],
    domains: dict[int, Domain],
) -> SegmentExplained:
    """One segment; `row` is its extent's, as far as the commit row bears it out."""
    known = view.classes.get(row.class_id)
    wanted = () if known is None else (known.row.primary_pool, *known.row.copy_pools)
    end = end_of(ref)
    held = held_up_to(row, end, max(end, row.length), facts.places, domains)
    expected = prospect(row, committed_of(facts, ref.extent, row), facts.places)
    piece = Piece(ref.length, held, wanted)
    counted = {each.volume for each in held}
    proven = is_proven(piece, now_ms, facts.policy.proof_life_ms)
    return SegmentExplained(
        extent=ref.extent,
        offset=ref.offset,
        length=ref.length,
        sealed=not row.open,
        primary_pool=_pool(view, wanted[0]) if wanted else "",
        copy_pools=[_pool(view, pool) for pool in wanted[1:]],
        ack="primary" if known is None else known.row.ack,
        copies=_copies(view, row, ref, ranked, counted),
        policy_met=at_policy(piece),
        proven=proven,
        lacks=[*_lost(facts, row, ref, expected), *_lacks(view, facts, now_ms, row, piece)],
        doing=_doing(view, facts, now_ms, ref.extent, row, piece, expected),
    )


def committed_of(facts: Facts, extent: int, row: ExtentRow) -> int:
    """Committed bytes; of an open extent that nobody sampled those of its row."""
    committed = facts.committed(extent, row)
    return row.length if committed is None else committed


def _lost(facts: Facts, row: ExtentRow, ref: SegmentRef, expected: Prospect) -> list[str]:
    """What no location gives any more, and what ends that; nothing when all of the extent can be had."""
    end = end_of(ref)
    outlook, why = (
        outlook_of_range(row, ref.offset, end, max(end, row.length), facts.places) if ref.length else ("", "")
    )
    if outlook == "lost":
        return [f"it is lost: {why}: store the file again, or delete it"]
    found = [f"it may be lost: {why}"] if outlook == "doubtful" else []
    if expected.outlook == "lost":
        found.append(f"its extent cannot be copied as a whole: {expected.why}. The way out: {WAY_OUT}")
    return found


def _copies(
    view: ClusterView, row: ExtentRow, ref: SegmentRef, ranked: Sequence[Reasoned], counted: set[int]
) -> list[CopyExplained]:
    order = {
        (each.place.volume_id, each.place.state, each.place.reach): (rank, each.why)
        for rank, each in enumerate(ranked, start=1)
    }
    found = []
    for location in row.locations:
        volume = view.volumes_by_id.get(location.volume)
        reach = reach_of(location, row)
        rank, why = order.get((location.volume, location.state, reach), (0, _unreadable(view, location)))
        if ref.offset <= location.bad_offset < end_of(ref):
            why += f"; the block at offset {location.bad_offset} of the extent, in this segment, is bad there"
        node = view.nodes_by_id.get(volume.row.node) if volume is not None else None
        pool = view.pools_by_id.get(volume.row.pool) if volume is not None else None
        access: AccessMode = volume.row.access if volume is not None else "destroyed"
        found.append(
            CopyExplained(
                volume=volume.name if volume is not None else str(location.volume),
                pool=pool.name if pool is not None else "",
                pool_type=pool.row.type if pool is not None else "primary",
                node=node.name if node is not None else "",
                host=node.row.host if node is not None else "",
                zone=node.row.zone if node is not None else "",
                access=access,
                generation=location.generation,
                state=location.state,
                reachable=view.volume_reachable(location.volume),
                counted=location.volume in counted and location.state == "good",
                held_bytes=held_bytes(ref, reach),
                verified_unix_s=location.verified_ms / 1000 if location.verified_ms else None,
                evidence=location.evidence,
                rank=rank,
                why=why,
            )
        )
    found.sort(key=lambda each: (each.rank == 0, each.rank))
    return found


def _unreadable(view: ClusterView, location: Location) -> str:
    volume = view.volumes_by_id.get(location.volume)
    if volume is not None and volume.row.access == "offsite":
        return "offsite: no program can read there"
    return "its volume or node is not in the catalog any more"


def _lacks(view: ClusterView, facts: Facts, now_ms: int, row: ExtentRow, piece: Piece) -> list[str]:
    found = []
    for pool in piece.wanted:
        here = [each for each in piece.held if each.pool == pool]
        if not here:
            found.append(f"no good location of it in pool {_pool(view, pool)!r} that counts")
        for each in here:
            if each.young:
                found.append(f"{_volume(view, each.volume)} has it in an open extent: read back once that is sealed")
            elif not each.verified_ms:
                found.append(f"{_volume(view, each.volume)} has not read it back yet")
            elif now_ms - each.verified_ms > facts.policy.proof_life_ms:
                found.append(
                    f"{_volume(view, each.volume)} read it back last at {_time(each.verified_ms)}: too long ago"
                )
    if not found and not at_policy(piece):
        found.append("its locations share a node")
    for location in row.locations:
        if location.state in ("damaged", "missing"):
            evidence = f": {location.evidence}" if location.evidence else ""
            since = _time(location.changed_ms)
            found.append(f"{_volume(view, location.volume)} is {location.state} since {since}{evidence}")
    return found


def _doing(
    view: ClusterView, facts: Facts, now_ms: int, extent: int, row: ExtentRow, piece: Piece, expected: Prospect
) -> list[str]:
    found = []
    committed = facts.committed(extent, row)
    for location in row.locations:
        of = f" of {committed}" if committed is not None else ""
        if location.stalled and location.state in ("copying", "good"):
            name = _volume(view, location.volume)
            found.append(f"{name} stands still at {location.length}{of} bytes: {location.stalled}")
        elif location.state == "copying":
            found.append(f"{_volume(view, location.volume)} is pulling it: {location.length}{of} bytes there")
        elif location.state == "dropping":
            found.append(f"{_volume(view, location.volume)} is leaving: not needed any more")
        place = facts.places.get(location.volume)
        if place is None or place.up:
            continue
        since_ms = away_since_ms(view, place.node, now_ms)
        if since_ms and not place.destroyed:
            found.append(_waiting(view, facts, now_ms, place.node, since_ms))
        elif is_unavailable(view, location.volume) and location.state == "good":
            found.append(f"waiting: {place.name} is unavailable by an operator's word; nothing replaces it meanwhile")
    if expected.outlook != "lost":
        found += _waits_for(view, facts, now_ms, extent, row, piece)
    if facts.brake and (found or not at_policy(piece)):
        found.append(facts.brake)
    steps = next_steps(view, facts, now_ms, extent)
    if expected.outlook == "lost":
        # A pull ends before the bytes that nobody has: to announce it would promise what cannot come.
        steps = [each for each in steps if not isinstance(each, Pull)]
    found += [f"next: {_said(view, action)}" for action in steps]
    return list(dict.fromkeys(found))


def _waits_for(view: ClusterView, facts: Facts, now_ms: int, extent: int, row: ExtentRow, piece: Piece) -> list[str]:
    """Why the pools that lack it do not get it now: a window, or nowhere to write to."""
    obstacles = Obstacles(view, facts, now_ms)
    size = committed_of(facts, extent, row)
    found = []
    for pool in piece.wanted:
        if any(each.pool == pool for each in piece.held):
            continue
        entry = view.pools_by_id.get(pool)
        if entry is not None and pool in facts.closed:
            opens_ms = window_state(entry.row.window, entry.row.window_s, now_ms).changes_ms
            when = f"opens at {_time(opens_ms)}" if opens_ms else "never opens"
            found.append(f"pool {entry.name!r}: its copy window {when}")
        obstacle = obstacles.of("restore", Left(extent, size, row.records, pool=pool))
        if obstacle is not None:
            found.append(f"waiting: {obstacle.why}")
    return found


def next_steps(view: ClusterView, facts: Facts, now_ms: int, extent: int) -> list[Action]:
    """What the controllers would ask for, for this extent, in a pass now."""
    steps: list[Action] = [step for step in health.plan(view, facts) if getattr(step, "extent", None) == extent]
    for controller in (copy, repair, audit):
        steps += controller.plan(view, facts, now_ms, [extent])
    return steps


def _waiting(view: ClusterView, facts: Facts, now_ms: int, node: int, since_ms: int) -> str:
    entry = view.nodes_by_id.get(node)
    name = entry.name if entry is not None else f"node {node}"
    planned_ms = entry.row.maintenance_until_ms if entry is not None else 0
    until_ms = max(since_ms, planned_ms) + facts.policy.grace_ms
    planned = ", in maintenance" if planned_ms > now_ms else ""
    if until_ms > now_ms:
        return f"{name} is away since {_time(since_ms)}{planned}: waited for until {_time(until_ms)}"
    return f"{name} is away since {_time(since_ms)}: not waited for any more"


def _said(view: ClusterView, action: Action) -> str:
    match action:
        case Reserve():
            return f"a new location on {_volume(view, action.volume)}: {action.why}"
        case Pull():
            sources = _joined(_volume(view, source.volume) for source in action.sources)
            return f"{_volume(view, action.location.volume)} pulls up to byte {action.up_to} from {sources}"
        case Verify():
            return f"{_volume(view, action.location.volume)} reads it back: {action.why}"
        case Decide():
            return f"{_volume(view, action.location.volume)} is not needed; the others are read back before it goes"
        case BeginDrop():
            return f"{_volume(view, action.location.volume)} begins to leave: {action.why}"
        case CallOff():
            return f"{_volume(view, action.location.volume)} stays: {action.why}"
        case FinishDrop():
            return f"{_volume(view, action.location.volume)} deletes its file"
        case SealExtent():
            return f"the extent is sealed: {action.why}"
        case _:
            return type(action).__name__


def _joined(names: Iterable[str]) -> str:
    return ", ".join(names) or "nowhere: no source is left"


def _time(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _pool(view: ClusterView, pool: int) -> str:
    entry = view.pools_by_id.get(pool)
    return entry.name if entry is not None else str(pool)


def _volume(view: ClusterView, volume: int) -> str:
    entry = view.volumes_by_id.get(volume)
    return entry.name if entry is not None else f"volume {volume}"
