"""What operators see: is every live byte where policy says and read back, and if not, why, in sentences. Pure.

`build` sums the marks of extents off policy; it invents nothing and hides nothing: while changed extents wait to be
looked at, or no leader works, or this coordinator has not heard from etcd, the answer is not green (invariant 8).
Bytes of open extents are young: fsync'd by their writer and checked by who copied them, but nobody has read them back.
They do not spoil green, and they are never called proven: `unverified_bytes` counts them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING

from copypool.protocol.api import StatusReply
from copypool.protocol.insight import WAY_OUT
from copypool.protocol.protection import ScrubProgress
from copypool_coordinator import exposure, mounting, rpo
from copypool_coordinator.heartbeats import Heartbeats
from copypool_coordinator.lists import names_of, nodes, pool_name, silent_nodes
from copypool_coordinator.offpolicy import Mark
from copypool_coordinator.policy import Policy, away_since_ms
from copypool_coordinator.protection import VolumeFacts, is_empty
from copypool_coordinator.rows import ExtentRow, OpenRow
from copypool_coordinator.windows import window_state

if TYPE_CHECKING:
    from copypool_coordinator.view import ClusterView

#: Extents that a reason is derived from; the counts are of all.
_SAMPLE = 64
#: A reading that is older than so many scrub periods will hardly be in time: its proof ends after two.
SCRUB_LATE = 1.5
#: A leader that writes no clock for this long does not work, or clocks are this far apart.
CLOCK_MAX_MS = 15_000
#: A pass of the controllers takes seconds at most.
PASS_MAX_MS = 60_000
#: The leader writes its clock every second: an older view may not know the newest rows.
HEARD_MAX_S = 3.0


@dataclass(frozen=True, slots=True)
class StatusFacts:
    """What `build` goes by, besides the view."""

    marks: Mapping[int, Mark]
    pending: int  #: changed extents that were not looked at yet
    places: Mapping[int, VolumeFacts]
    heartbeats: Heartbeats
    policy: Policy
    now_ms: int  #: cluster time
    now_s: float  #: monotonic
    heard_age_s: float  #: since the mirror's last event
    sampled: bool  #: the open extents could be read
    brake: str
    coordinator: str
    catalog_bytes: int
    opened: Mapping[int, OpenRow] = field(default_factory=dict)  #: the open extents' commit rows
    scrub: ScrubProgress | None = None
    current: bool = True  #: memory shows everything that was committed before the question
    catalog_down: bool = False  #: etcd does not answer


def build(view: ClusterView, facts: StatusFacts, namespace: str = "") -> StatusReply:
    """The whole answer; with `namespace` it names no other one, for callers that must not learn of them."""
    marks = facts.marks.values()
    debts = [mark for mark in marks if mark.debt]
    counters = list(view.counters.values())
    reply = StatusReply(
        healthy=False,
        reasons=[],
        files=max(0, sum(each.row.files for each in counters)),
        bytes=max(0, sum(each.row.payload_bytes for each in counters)),
        as_of_unix_s=max((each.row.as_of_ms for each in counters), default=0) / 1000,
        debt_bytes=sum(mark.debt_bytes for mark in debts),
        debt_extents=len(debts),
        debt_oldest_s=max((max(0, facts.now_ms - mark.debt_since_ms) / 1000 for mark in debts), default=0.0),
        damaged_locations=sum(mark.damaged for mark in marks),
        under_protected_extents=sum(mark.under_protected for mark in marks),
        unverified_bytes=sum(mark.unread_bytes + mark.stale_bytes for mark in marks) + _young_bytes(view, facts),
        unavailable_files=sum(mark.unavailable_files for mark in marks),
        lost_files=sum(mark.lost_files for mark in marks),
        nodes=[node for node in nodes(view, facts) if not node.taken_out],
        leader=view.leader.row.name if view.leader is not None else "",
        coordinator=facts.coordinator,
        brake=facts.brake,
        catalog_bytes=facts.catalog_bytes,
        catalog_down=facts.catalog_down,
        doubtful_files=sum(mark.doubtful_files for mark in marks),
        holed_extents=sum(mark.holed for mark in marks),
        empty=not any(_holds_something(extent, entry.row, facts) for extent, entry in view.extents.items()),
        pools=rpo.by_pool(view, facts.marks, facts.places, facts.now_ms),
        namespaces=[
            each
            for each in rpo.by_namespace(view, facts.marks, facts.opened, facts.now_ms)
            if namespace in ("", each.namespace)
        ],
        warnings=[
            *exposure.copyless(view, namespace),
            *exposure.left_behind(view, namespace),
            *exposure.warnings(view, facts.places),
            *mounting.not_let_in(view, facts.heartbeats.unmounted(facts.now_s)),
            *_full(view, facts).values(),
        ],
        scrub=facts.scrub,
    )
    reply.reasons = [*_reasons_of_this_answer(view, facts), *_reasons_of_the_data(view, facts, reply)]
    reply.warnings = [each for each in reply.warnings if each not in reply.reasons]
    reply.healthy = not reply.reasons
    return reply


def _holds_something(extent: int, row: ExtentRow, facts: StatusFacts) -> bool:
    if not row.open:
        return not is_empty(row.length)
    opened = facts.opened.get(extent)
    return opened is None or not is_empty(opened.length)


def _young_bytes(view: ClusterView, facts: StatusFacts) -> int:
    """Bytes of open extents that are at policy; those below it are counted by what they lack."""
    return sum(
        opened.length
        for extent, opened in facts.opened.items()
        if (entry := view.extents.get(extent)) is not None
        and entry.row.open
        and not is_empty(opened.length)
        and not ((mark := facts.marks.get(extent)) is not None and mark.under_protected)
    )


def _reasons_of_this_answer(view: ClusterView, facts: StatusFacts) -> list[str]:
    """Why what follows may not be the whole truth."""
    reasons = []
    if facts.catalog_down:
        reasons.append(
            "etcd does not answer (catalog_down): lookups by name and writes fail until it does; all that "
            f"{facts.coordinator} shows is from its memory, {facts.heard_age_s:.0f} s old"
        )
        return [*reasons, *_reasons_of_the_nodes(view, facts)]
    if facts.heard_age_s > HEARD_MAX_S:
        reasons.append(
            f"{facts.coordinator} has not heard from etcd for {facts.heard_age_s:.0f} s: what it shows may be old"
        )
    elif view.leader is None:
        reasons.append("no coordinator leads: nothing is copied, repaired or verified until one does")
    elif not facts.current:
        reasons.append(f"{facts.coordinator} has not caught up with etcd: what it shows may be a moment old")
    if not view.nodes:
        reasons.append(
            "no storage node has ever joined this catalog: if the cluster had nodes, its etcd was replaced by an empty "
            "one; the volumes are untouched, bring the right etcd back"
        )
    reasons += _reasons_of_the_leader(view, facts)
    if not facts.sampled:
        reasons.append("etcd did not tell how long the open extents are: their newest bytes are not counted")
    if facts.pending:
        reasons.append(f"{facts.pending} changed extents were not looked at yet")
    return [*reasons, *_reasons_of_the_nodes(view, facts)]


def _reasons_of_the_nodes(view: ClusterView, facts: StatusFacts) -> list[str]:
    """Nodes that may be dead: their bytes count as long as their sessions live, but green would be a guess."""
    silent = silent_nodes(view, facts)
    if not silent:
        return []
    longest_s = max(silent.values())
    if len(silent) == len(view.sessions) > 1:
        return [f"{facts.coordinator} has heard no node for {min(silent.values()):.0f} s: it may be cut off from them"]
    names = sorted(view.nodes_by_id[node].name for node in silent if node in view.nodes_by_id)
    return [f"{names_of(names)} silent for {longest_s:.0f} s: away when the session ends without a word"]


def _reasons_of_the_leader(view: ClusterView, facts: StatusFacts) -> list[str]:
    """Whether the leader's own work goes on: a leader that only renews its lease heals nothing."""
    if view.leader is None or view.clock is None:
        return []
    name, clock = view.leader.row.name, view.clock
    if facts.now_ms - clock.unix_ms > CLOCK_MAX_MS:
        return [f"{name} leads, but has not written its clock for {(facts.now_ms - clock.unix_ms) // 1000} s"]
    reasons = []
    idle_ms = clock.unix_ms - clock.worked_ms
    if clock.worked_ms and idle_ms > PASS_MAX_MS:
        reasons.append(f"{name} leads, but its controllers have not finished a pass for {idle_ms // 1000} s")
    if clock.trouble:
        reasons.append(f"{name} leads: {clock.trouble}")
    return reasons


def _reasons_of_the_data(view: ClusterView, facts: StatusFacts, reply: StatusReply) -> list[str]:
    marks = facts.marks.values()
    told = facts.heartbeats.unmounted(facts.now_s)
    reasons = []
    reasons += _reasons_of_files(facts, reply)
    if reply.damaged_locations:
        reasons.append(f"{reply.damaged_locations} locations are damaged: see `copypool query damaged`")
    missing = sum(mark.missing for mark in marks)
    if missing:
        reasons.append(f"{missing} extent files are not on the volume where the catalog has them")
    waiting = mounting.kept_waiting(view, facts.marks)
    unprimary = sum(mark.no_primary and not mark.holed for mark in marks)
    if unprimary:
        reasons.append(f"{unprimary} extents have no good primary location{_when(view, facts, waiting)}")
    reasons += mounting.unavailable(waiting)
    debts: Counter[int] = Counter()
    for mark in marks:
        debts.update(dict(mark.debt))
    for pool, size in sorted(debts.items()):
        reasons.append(
            f"{size} bytes have no copy in pool {pool_name(view, pool)!r} yet, the oldest since "
            f"{reply.debt_oldest_s:.0f} s{_window_text(view, facts, pool)}{_away_text(view, facts, pool)}"
        )
    shared = sum(mark.shared_node for mark in marks)
    if shared:
        reasons.append(f"{shared} extents have all their locations on one node: add a node, or a volume on another")
    crowd = sum(mark.shared_domain for mark in marks)
    if crowd:
        reasons.append(
            f"{crowd} extents are under-protected: locations that should be apart are in one failure domain (host, or "
            "zone where a pool is spread over zones): add a volume in another one, and they move"
        )
    reasons += _stuck(view, facts)
    reasons += [
        f"volume {name!r} is {entry.row.access} since it refused a write: {entry.row.access_reason}"
        for name, entry in sorted(view.volumes.items())
        if entry.row.access_reason
    ]
    reasons += mounting.not_mounted(view, told)
    safe = [name for name, volume in sorted(view.volumes.items()) if _in_safe_mode(facts, volume.row.id)]
    if safe:
        reasons.append(
            f"{names_of(safe)} in safe mode: the catalog is older than what they have seen; "
            "nothing is written or deleted there"
        )
    unread = sum(mark.unread_bytes for mark in marks)
    if unread:
        reasons.append(f"{unread} bytes not yet read back where they were written or copied to")
    stale = sum(mark.stale_bytes for mark in marks)
    if stale:
        days = facts.policy.proof_life_ms / 86_400_000
        reasons.append(f"{stale} bytes were last read back more than {days:.1f} days ago: the scrub is behind")
    elif facts.scrub is not None and facts.scrub.oldest_s > SCRUB_LATE * facts.scrub.period_s:
        reasons.append(
            f"the scrub will miss its deadline: something was last read back {facts.scrub.oldest_s / 86_400:.1f} days "
            f"ago, and everything should be within {facts.scrub.period_s / 86_400:.1f}"
        )
    reasons += exposure.not_rebuildable(view, facts.places)
    if facts.brake:
        reasons.append(facts.brake)
    return reasons


def _reasons_of_files(facts: StatusFacts, reply: StatusReply) -> list[str]:
    """Files that are lost, or may be, or only cannot be read now."""
    names = "`copypool query damaged --files` names them"
    reasons = []
    if reply.lost_files:
        reasons.append(f"{reply.lost_files} files are lost: no location of their bytes is left; {names}")
    doubtful = [mark for mark in facts.marks.values() if mark.doubtful_files]
    holed = [mark for mark in doubtful if mark.holed]
    if holed:
        files = sum(mark.doubtful_files for mark in holed)
        reasons.append(
            f"{len(holed)} extents hold lost bytes, a block that is bad on every location: files with bytes in it are "
            f"lost, the others are readable but not copied again; up to {files} are concerned, by the extents' records "
            f"(files deleted lately are still among them); {names}. The way out: {WAY_OUT}"
        )
    empty = sum(mark.holed and not (mark.doubtful_files or mark.lost_files) for mark in facts.marks.values())
    if empty:
        reasons.append(
            f"{empty} extents hold lost bytes, but no file that is left: nothing is to be done about them, they stay "
            "marked, and are neither copied nor moved, until there is `reclaim`"
        )
    if len(holed) < len(doubtful):
        files = reply.doubtful_files - sum(mark.doubtful_files for mark in holed)
        reasons.append(
            f"{files} files are in {len(doubtful) - len(holed)} extents whose every location is damaged: a block is "
            f"read, and repaired, from whichever has it good; {names}"
        )
    if reply.unavailable_files:
        away = [node.name for node in reply.nodes if node.state == "away"]
        hope = f"; they come back with {names_of(away)}" if away else ""
        reasons.append(f"{reply.unavailable_files} files cannot be read now{hope}")
    return reasons


def _in_safe_mode(facts: StatusFacts, volume: int) -> bool:
    load = facts.heartbeats.last(volume)
    return load is not None and load.report.safe_mode


def _window_text(view: ClusterView, facts: StatusFacts, pool: int) -> str:
    """When copying into this pool begins, if it has to wait for that."""
    entry = view.pools_by_id.get(pool)
    if entry is None:
        return ""
    state = window_state(entry.row.window, entry.row.window_s, facts.now_ms)
    if state.open:
        return ""
    if not state.changes_ms:
        return ": its copy window never opens"
    opens = datetime.fromtimestamp(state.changes_ms / 1000, UTC)
    return f": its copy window opens at {opens:%Y-%m-%d %H:%M}Z"


def _when(view: ClusterView, facts: StatusFacts, waiting: Mapping[str, int]) -> str:
    """What happens about lost primaries: who is waited for, and for how long."""
    if facts.brake:
        return ""
    waited = _waited(view, facts)
    if not waited and waiting:
        return ""
    return f": waiting for {', '.join(waited.values())}" if waited else ": being rebuilt from copies"


def _waited(view: ClusterView, facts: StatusFacts) -> dict[int, str]:
    """Nodes that are away and waited for, by id: who, and for how long."""
    found = {}
    for node in view.nodes.values():
        since_ms = away_since_ms(view, node.row.id, facts.now_ms)
        left_ms = max(since_ms, node.row.maintenance_until_ms) + facts.policy.grace_ms - facts.now_ms
        if since_ms and left_ms > 0:
            found[node.row.id] = f"{node.name} for {left_ms // 1000} s more"
    return found


def _away_text(view: ClusterView, facts: StatusFacts, pool: int) -> str:
    """Whether what this pool lacks was copied there once, and is on nodes that are away; from a sample of it."""
    lacking = (extent for extent, mark in facts.marks.items() if any(pool == each for each, _ in mark.debt))
    holders = {
        place.node
        for extent in islice(lacking, _SAMPLE)
        if (entry := view.extents.get(extent)) is not None
        for location in entry.row.locations
        if location.state == "good" and (place := facts.places.get(location.volume)) is not None
        if place.pool == pool and not place.destroyed and not view.node_up(place.node)
    }
    if not holders:
        return ""
    names = names_of(sorted(view.nodes_by_id[node].name for node in holders if node in view.nodes_by_id))
    waited = [text for node, text in sorted(_waited(view, facts).items()) if node in holders]
    so = f"waiting for {', '.join(waited)}" if waited else "not waited for any more"
    so = "nothing is made again while the brake is on" if facts.brake else so
    return f": copies on {names} do not count while it is away ({so})"


def _stuck(view: ClusterView, facts: StatusFacts) -> list[str]:
    """Pools that have no place for what they lack; from a sample of the extents."""
    pools: dict[int, bool] = {}
    for extent, mark in islice(facts.marks.items(), _SAMPLE):
        entry = view.extents.get(extent)
        if entry is None:
            continue
        extent_class = view.classes.get(entry.row.class_id)
        lacking = [pool for pool, _ in mark.debt]
        if mark.no_primary and extent_class is not None:
            lacking.append(extent_class.row.primary_pool)
        holders = {facts.places[each.volume].node for each in entry.row.locations if each.volume in facts.places}
        here = {each.volume for each in entry.row.locations if each.state in ("good", "copying", "damaged")}
        for pool in lacking:
            possible = any(
                place.pool == pool and place.writable and (place.node not in holders or place.volume in here)
                for place in facts.places.values()
            )
            pools[pool] = pools.get(pool, False) or possible
    full = _full(view, facts)
    return [
        _stuck_reason(view, facts, pool) if not possible else full[pool]
        for pool, possible in sorted(pools.items())
        if not possible or pool in full
    ]


def _full(view: ClusterView, facts: StatusFacts) -> dict[int, str]:
    return exposure.full(view, facts.places, facts.heartbeats.loads(facts.now_s))


def _stuck_reason(view: ClusterView, facts: StatusFacts, pool: int) -> str:
    name = pool_name(view, pool)
    entry = view.pools_by_id.get(pool)
    primary = entry is not None and entry.row.type == "primary"
    there = [place for place in facts.places.values() if place.pool == pool]
    if not there:
        return f"pool {name!r} has no volume: add a node with a volume in it"
    if primary:
        return f"no second primary volume to rebuild on: add a node with a volume in pool {name!r}"
    if not any(place.writable for place in there):
        return f"no volume of pool {name!r} takes writes now: see `copypool volumes`"
    return f"pool {name!r} has volumes only on nodes that hold the bytes already: add a node with a volume in it"
