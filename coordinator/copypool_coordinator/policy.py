"""What the controllers go by: settings, facts of a pass, the leader's memory, the brake. Pure.

A plan is a function of the mirrored view, these facts and the time. What only this leader remembers (`Memory`) makes
it cheaper or more patient, never safer: a new leader starts with an empty one and repeats some commands, which are
idempotent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from copypool_coordinator.orders import Orders
from copypool_coordinator.protection import Standing, VolumeFacts, assess
from copypool_coordinator.rows import ExtentRow, Location, NodeRow, OpenRow
from copypool_coordinator.spreading import crowded
from copypool_coordinator.windows import window_state

if TYPE_CHECKING:
    from copypool_coordinator.view import ClusterView


@dataclass(frozen=True, slots=True)
class Policy:
    """Settings of the controllers. Milliseconds and bytes."""

    session_ttl_ms: int = 15_000
    grace_ms: int = 600_000  #: a node may be away this long before its bytes are rebuilt elsewhere
    #: Bytes that have no copy yet and whose destination is away go elsewhere after this: debt, not re-replication.
    debt_patience_ms: int = 30_000
    scrub_period_ms: int = 14 * 24 * 3_600_000
    #: A sealed location that its own node has not read back by then is told to.
    first_verify_delay_ms: int = 5_000
    follow_ms: int = 1_000  #: a copy of an open extent is told of new bytes at most this often
    repeat_ms: int = 30_000  #: a command without visible effect is given again
    given_up_repeat_ms: int = 60_000  #: a pull that its node gave up; sooner when a source has come
    #: A location that was told to go on for this long, and did not, is not waited for (full disk, failing pulls).
    stalled_ms: int = 300_000
    #: Between two tries of the same stall: a longer pause had another cause (no source, no session, a closed window).
    try_pause_max_ms: int = 90_000
    verify_lost_ms: int = 120_000  #: a verify without verdict is asked for again
    decision_life_ms: int = 3_600_000  #: an older decision to take a location away is made anew
    drop_delay_ms: int = 330_000  #: life of a read capability + 30 s, between leaving the row and deleting
    pulls_per_volume: int = 16  #: unfinished pulls that a destination volume is told of
    verifies_per_volume: int = 2  #: routine ones that a volume is told of
    urgent_verifies_per_volume: int = 16  #: those that a drop, or an operator's audit, waits for
    scrub_bytes_per_s: int = 32 * 1024 * 1024  #: per volume, at most, for locations that have been verified before
    scrub_floor_bytes_per_s: int = 1024 * 1024  #: per volume, at least
    process_patience_ms: int = 60_000  #: a process with nothing left that could go on ends after this

    @property
    def proof_life_ms(self) -> int:
        """A verification older than this proves nothing (invariant 8)."""
        return 2 * self.scrub_period_ms


class LocationKey(NamedTuple):
    """One location, for good: generations are never reused."""

    extent: int
    volume: int
    generation: int


class Told(NamedTuple):
    """What a node was told about a location."""

    at_ms: int
    epoch: int  #: of the session that was told; a new one has forgotten
    up_to: int
    sealed: bool
    sources: frozenset[tuple[int, int]] = frozenset()  #: (node, epoch) of those that a pull was told of


class Tries(NamedTuple):
    """Commands to bring a location on that have not moved it yet, whether they arrived or not."""

    first_ms: int
    last_ms: int
    length: int  #: where it stands


#: (extent row, pool id) -> volume id for a new location, or None.
Chooser = Callable[[ExtentRow, int], "int | None"]


@dataclass(slots=True)
class Memory:
    """What this leader remembers of its own doing. Bounded by the extents off policy; lost with the term."""

    #: When it was decided that a location is not needed any more: survivors are read back after that (A16).
    decided: dict[LocationKey, int] = field(default_factory=dict)
    pulls: dict[LocationKey, Told] = field(default_factory=dict)
    pulling: dict[int, set[int]] = field(default_factory=dict)  #: volume -> extents with an unfinished pull
    tries: dict[LocationKey, Tries] = field(default_factory=dict)
    verifies: dict[LocationKey, Told] = field(default_factory=dict)
    verifying: dict[int, set[LocationKey]] = field(default_factory=dict)  #: volume -> locations being read back
    scrub_from_ms: dict[int, int] = field(default_factory=dict)  #: volume -> no routine verify before this time
    _known: dict[int, set[LocationKey]] = field(default_factory=dict)

    def note_decided(self, key: LocationKey, now_ms: int) -> None:
        """The location was found not to be needed."""
        self.decided[key] = now_ms
        self._known.setdefault(key.extent, set()).add(key)

    def note_try(self, key: LocationKey, length: int, policy: Policy, now_ms: int) -> None:
        """A location that stands at `length` is about to be told to pull."""
        known = self.tries.get(key)
        goes_on = self.stalled(key, length, policy) or (
            known is not None and known.length == length and now_ms - known.last_ms <= policy.try_pause_max_ms
        )
        self.tries[key] = Tries(known.first_ms if known is not None and goes_on else now_ms, now_ms, length)
        self._known.setdefault(key.extent, set()).add(key)

    def stalled(self, key: LocationKey, length: int, policy: Policy) -> bool:
        """Whether a location that stands at `length` was told to go on again and again, in vain. Until it moves."""
        known = self.tries.get(key)
        return known is not None and known.length == length and known.last_ms - known.first_ms >= policy.stalled_ms

    def note_pull(self, key: LocationKey, told: Told) -> None:
        """A node was told to pull."""
        self.pulls[key] = told
        self.pulling.setdefault(key.volume, set()).add(key.extent)
        self._known.setdefault(key.extent, set()).add(key)

    def note_verify(self, key: LocationKey, told: Told) -> None:
        """A node was told to read a location back."""
        self.verifies[key] = told
        self.verifying.setdefault(key.volume, set()).add(key)
        self._known.setdefault(key.extent, set()).add(key)

    def settle(self, extent: int, row: ExtentRow | None, policy: Policy, now_ms: int) -> None:
        """Compare what is remembered of an extent with its row, and forget what is done or gone."""
        keys = self._known.get(extent)
        if keys is None:
            return
        by_key = {(each.volume, each.generation): each for each in row.locations} if row is not None else {}
        for key in list(keys):
            location = by_key.get((key.volume, key.generation))
            pull, verify = self.pulls.get(key), self.verifies.get(key)
            if pull is not None and (location is None or location.stalled or _pulled(location, pull)):
                self.pulling.get(key.volume, set()).discard(extent)
                if location is None or (pull.sealed and _pulled(location, pull)):
                    del self.pulls[key]
            if verify is not None and (location is None or _answered(location, verify, policy, now_ms)):
                self.verifying.get(key.volume, set()).discard(key)
                del self.verifies[key]
            if location is None:
                self.decided.pop(key, None)
            if key in self.tries and (location is None or location.length != self.tries[key].length):
                del self.tries[key]
            if not any(key in table for table in (self.decided, self.pulls, self.tries, self.verifies)):
                keys.discard(key)
        if not keys:
            del self._known[extent]


def _pulled(location: Location, told: Told) -> bool:
    """The row shows what the pull was to bring about, or that it cannot any more."""
    if location.state not in ("copying", "good"):
        return True
    return location.length >= told.up_to and (not told.sealed or location.verified_ms > 0)


def _answered(location: Location, told: Told, policy: Policy, now_ms: int) -> bool:
    """A verdict younger than the question, or none for so long that the question is lost."""
    if location.state != "good" or location.verified_ms >= told.at_ms:
        return True
    return now_ms - told.at_ms >= policy.verify_lost_ms


@dataclass(slots=True)
class Facts:
    """What one pass goes by, besides the view."""

    policy: Policy
    places: Mapping[int, VolumeFacts]
    opened: Mapping[int, OpenRow]  #: sample of `o/`, at most seconds old
    memory: Memory
    choose: Chooser
    stored_bytes: Mapping[int, int] = field(default_factory=dict)  #: by volume, as their nodes say
    brake: str = ""  #: why nothing that is merely away may be rebuilt, or ""
    orders: Orders = field(default_factory=Orders)
    closed: frozenset[int] = frozenset()  #: copy pools whose window is closed: nothing new is copied into them
    failing: Mapping[int, str] = field(default_factory=dict)  #: volume -> the write error that its node met there
    standings: dict[int, Standing] = field(default_factory=dict)
    crowded: dict[int, int] = field(default_factory=dict)  #: extent -> volume whose failure domain it shares
    #: Pulls and verifies that this pass asks for, by volume: they are not in `memory` before they are performed.
    pulls_asked: Counter[int] = field(default_factory=Counter)
    verifies_asked: Counter[int] = field(default_factory=Counter)

    def may_pull(self, volume: int) -> bool:
        """Whether another location on this volume may begin to pull; counts it if so."""
        if len(self.memory.pulling.get(volume, ())) + self.pulls_asked[volume] >= self.policy.pulls_per_volume:
            return False
        self.pulls_asked[volume] += 1
        return True

    def may_verify(self, volume: int, limit: int) -> bool:
        """Whether another location on this volume may be read back beside fewer than `limit`; counts it if so."""
        if len(self.memory.verifying.get(volume, ())) + self.verifies_asked[volume] >= limit:
            return False
        self.verifies_asked[volume] += 1
        return True

    def counted(self, location: Location) -> bool:
        """Whether this location counts as protection if it is good."""
        place = self.places.get(location.volume)
        return place is not None and place.counted

    def readable(self, location: Location) -> bool:
        """Whether it counts and can be read back now: what is offsite cannot."""
        place = self.places.get(location.volume)
        return place is not None and place.counted and place.up

    def committed(self, extent: int, row: ExtentRow) -> int | None:
        """The committed length; None for an open extent that was not sampled yet."""
        if not row.open:
            return row.length
        sample = self.opened.get(extent)
        return None if sample is None else sample.length

    def standing(self, view: ClusterView, extent: int, row: ExtentRow) -> Standing | None:
        """The extent's standing, computed once a pass; None when its length or class is not known yet."""
        known = self.standings.get(extent)
        if known is not None:
            return known
        committed = self.committed(extent, row)
        extent_class = view.classes.get(row.class_id)
        if committed is None or extent_class is None:
            return None
        known = assess(row, committed, extent_class.row, self.places)
        if extent not in self.orders.moves and (volume := crowded(row, known, self.places, self.choose)) is not None:
            self.crowded[extent] = volume
        if (moving_off := self.moving_off(extent)) is not None:
            known = assess(row, committed, extent_class.row, self.places, moving_off)
        self.standings[extent] = known
        return known

    def moving_off(self, extent: int) -> int | None:
        """The volume that this extent is to go off: by an operator's order, or into another failure domain."""
        return self.orders.moves.get(extent, self.crowded.get(extent))


def places(view: ClusterView, refusing: Collection[int] = ()) -> dict[int, VolumeFacts]:
    """What is true of every volume now, by id. `refusing`: volumes that their nodes stopped writing to."""
    found = {}
    for name, volume in view.volumes.items():
        row = volume.row
        up = view.volume_reachable(row.id)
        node, pool = view.nodes_by_id.get(row.node), view.pools_by_id.get(row.pool)
        found[row.id] = VolumeFacts(
            volume=row.id,
            name=name,
            pool=row.pool,
            node=row.node,
            up=up,
            counted=up or row.access == "offsite",
            writable=up and row.access == "readwrite" and row.id not in refusing and not row.intent,
            destroyed=row.access == "destroyed",
            host=node.row.host if node is not None else "",
            zone=node.row.zone if node is not None else "",
            spread=pool.row.spread if pool is not None else "host",
            intent=row.intent,
        )
    return found


def closed_pools(view: ClusterView, backups: Collection[int], now_ms: int) -> frozenset[int]:
    """Copy pools whose window is closed now and that no operator's backup copies into."""
    return frozenset(
        entry.row.id
        for entry in view.pools.values()
        if entry.row.window and entry.row.id not in backups
        if not window_state(entry.row.window, entry.row.window_s, now_ms).open
    )


def away_since_ms(view: ClusterView, node_id: int, now_ms: int) -> int:
    """Since when a node is away, 0 when it is not; an absence nobody has written down yet begins now."""
    if view.node_up(node_id):
        return 0
    node = view.nodes_by_id.get(node_id)
    return now_ms if node is None or node.row.away_since_ms == 0 else node.row.away_since_ms


def taken_out(view: ClusterView, node_id: int) -> bool:
    """Whether nothing is missing with a node that is not up: it has no volume, any more or yet."""
    return not view.node_up(node_id) and not view.volumes_by_node.get(node_id)


def absent_since_ms(view: ClusterView, volume_id: int, node_id: int, now_ms: int) -> int:
    """Since when a volume is away with its node, or since when that runs without it; 0 when neither."""
    away_ms = away_since_ms(view, node_id, now_ms)
    if away_ms or view.volume_mounted(volume_id):
        return away_ms
    return max(1, view.sessions[node_id].row.since_ms)


def patience_over(node: NodeRow | None, away_ms: int, patience_ms: int, now_ms: int) -> bool:
    """Whether a node that is away since `away_ms` has been waited for; announced maintenance does not count."""
    until = 0 if node is None else node.maintenance_until_ms
    return now_ms - max(away_ms, until) >= patience_ms


class Cut(NamedTuple):
    """A time in which this leader could not reach etcd: sessions that ended then tell nothing about their nodes."""

    from_ms: int
    until_ms: int


def _lost_since_ms(view: ClusterView, node: NodeRow) -> int:
    """Since when a node is away, or is there without any of its volumes; 0: it is there, or never was."""
    if not view.node_up(node.id):
        return node.away_since_ms
    volumes = view.volumes_by_node.get(node.id, ())
    if not volumes or any(view.volume_mounted(volume) for volume in volumes):
        return 0
    return max(1, view.sessions[node.id].row.since_ms)


def _was_missed(view: ClusterView, node: NodeRow, since_ms: int) -> bool:
    """Whether something was to be rebuilt for this node when it was lost.

    One that had been given up, emptied or taken out before is not missed. One that an operator gives up afterwards is
    still a part of the outage: that is a word about its own bytes, and lets nothing of the other nodes be rebuilt.
    """
    for volume in view.volumes_by_node.get(node.id, ()):
        row = view.volumes_by_id[volume].row
        if row.access == "destroyed":
            if row.access_since_ms > since_ms:
                return True
            continue
        if not row.intent or any(
            each.volume == volume and each.state != "dropping"
            for extent in view.extents_by_volume.get(volume, ())
            for each in view.extents[extent].row.locations
        ):
            return True
    return False


def brake_released_ms(view: ClusterView) -> int:
    """When an operator released the brake last; 0: never."""
    return 0 if view.cluster is None else view.cluster.row.brake_released_ms


def brake(view: ClusterView, policy: Policy, cut: Cut | None, released_ms: int, now_ms: int) -> str:
    """Why re-replication is held, as a sentence; "" when it is not (A12).

    Held while more than max(1, a third) of all nodes are away that went within one session lifetime: that is an
    outage, and copying everything would make it worse. Announced maintenance is no outage, nor is the end of a node
    that had been emptied or given up. Also held for one grace time after this leader was cut from etcd, for nodes that
    were lost around then. `released_ms` is an operator's word: absences before it are believed.
    """
    lost = sorted(
        (since, node.name)
        for node in view.nodes.values()
        for since in (_lost_since_ms(view, node.row),)
        if since and node.row.maintenance_until_ms <= since
        if since > released_ms and _was_missed(view, node.row, since)
    )
    members = sum(not taken_out(view, node.row.id) for node in view.nodes.values())
    limit = max(1.0, members / 3)
    first = 0
    for last, (since, _) in enumerate(lost):
        while since - lost[first][0] > policy.session_ttl_ms:
            first += 1
        if last - first + 1 > limit:
            names = ", ".join(name for _, name in lost[first : last + 1])
            return (
                f"{last - first + 1} of {members} nodes were lost within {policy.session_ttl_ms // 1000} s "
                f"({names}): nothing is rebuilt until they are back or an operator says that they will not be "
                "(`copypool release brake`)"
            )
    if cut is not None and now_ms - cut.until_ms < policy.grace_ms:
        names = ", ".join(
            name for since, name in lost if cut.from_ms <= since <= cut.until_ms + 2 * policy.session_ttl_ms
        )
        if names:
            return (
                f"this leader was cut from etcd for {(cut.until_ms - cut.from_ms) // 1000} s and lost {names} then: "
                f"nothing is rebuilt until they are back, for {policy.grace_ms // 1000} s, or `copypool release brake`"
            )
    return ""
