"""A cluster without I/O for the controllers' plans: rows in a real view, obedient nodes, a clock turned by hand.

It does to the rows what the catalog's transactions and the nodes' reports would do, one action at a time, so that a
test can stop after any of them. Every change checks the invariants that no plan may break.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from msgspec.structs import replace

from copypool.protocol.api import AccessMode, LocationState, PoolType
from copypool.protocol.processes import VolumeIntent
from copypool_coordinator import keys, locations, orders, rows
from copypool_coordinator.controllers import audit, copy, health, repair
from copypool_coordinator.controllers.actions import (
    Action,
    BeginDrop,
    CallOff,
    Decide,
    FinishDrop,
    Forget,
    MarkAway,
    MarkReturned,
    Pull,
    Reserve,
    SealExtent,
    Verify,
)
from copypool_coordinator.controllers.filling import sessions_of
from copypool_coordinator.etcd import Changed, KeyValue
from copypool_coordinator.policy import Facts, LocationKey, Memory, Policy, Told, brake, places
from copypool_coordinator.protection import may_leave, reach, wanted_total
from copypool_coordinator.rows import (
    FORMAT,
    ClassRow,
    ExtentRow,
    Location,
    NodeRow,
    OpenRow,
    PoolRow,
    Row,
    SessionRow,
    VolumeRow,
)
from copypool_coordinator.view import ClusterView

MIB = 1024 * 1024
PRIMARY, COPY = 1, 2
CLASS = 1


class ToyCluster:
    """Nodes are numbered from 1; node N has volume N, in the primary or the copy pool."""

    def __init__(self, primary_nodes: int = 2, copy_nodes: int = 2, policy: Policy | None = None) -> None:
        self.policy = policy or Policy(grace_ms=60_000)
        self.now_ms = 1_000_000
        self.view = ClusterView()
        self.view.ready = True
        self.memory = Memory()
        self.opened: dict[int, OpenRow] = {}
        self.bytes_on: dict[LocationKey, int] = {}  #: what is on the disks, whatever the rows say
        self.pulled_bytes = 0
        self.avoided: frozenset[int] = frozenset()  #: volumes that are not chosen as destinations
        self.stuck: frozenset[int] = frozenset()  #: volumes that nothing is written to, whatever they are told
        self.full: frozenset[int] = frozenset()  #: volumes whose nodes give every pull up
        self.broken: frozenset[int] = frozenset()  #: extents that no sources together have
        self.rotten: set[tuple[int, int]] = set()  #: (extent, volume) that a verify will find bad
        self.history: list[Action] = []
        self.checks: list[Callable[[], None]] = []
        self._revision = 0
        self.put(keys.named(keys.POOL, "primary"), PoolRow(FORMAT, PRIMARY, "primary"))
        self.put(keys.named(keys.POOL, "copy"), PoolRow(FORMAT, COPY, "copy"))
        self.put(keys.named(keys.CLASS, "default"), ClassRow(FORMAT, CLASS, PRIMARY, [COPY], "primary"))
        for node in range(1, primary_nodes + copy_nodes + 1):
            self.add_node(node, "primary" if node <= primary_nodes else "copy")

    # -- rows ----------------------------------------------------------------------------------
    def put(self, key: bytes, row: Row) -> int:
        """Write a row as a transaction would; its revision."""
        self._revision += 1
        kv = KeyValue(key, rows.encode(row), self._revision, self._revision, 1, 0)
        self.view.apply(Changed(self._revision, [kv], []))
        return self._revision

    def delete(self, key: bytes) -> None:
        """Delete a row."""
        self._revision += 1
        self.view.apply(Changed(self._revision, [], [key]))

    def row(self, extent: int) -> ExtentRow:
        """The extent's row."""
        return self.view.extents[extent].row

    def location(self, extent: int, volume: int) -> Location:
        """The newest location of the extent on a volume."""
        return max(
            (each for each in self.row(extent).locations if each.volume == volume), key=lambda each: each.generation
        )

    def put_extent(self, extent: int, row: ExtentRow) -> None:
        """Write an extent's row, and check what must hold after every write."""
        self.put(keys.extent(extent), row)

    # -- nodes ---------------------------------------------------------------------------------
    def add_node(self, node: int, pool_type: PoolType) -> None:
        """A new node with one volume and a session."""
        name = f"node{node}"
        self.put(keys.named(keys.NODE, name), NodeRow(FORMAT, node, b"", f"http://{name}", f"zone{node}", name))
        pool = PRIMARY if pool_type == "primary" else COPY
        self.put(keys.named(keys.VOLUME, f"volume{node}"), VolumeRow(FORMAT, node, b"", pool, node, 1, "readwrite"))
        self.up(node)

    def up(self, node: int) -> int:
        """Start a session; its epoch."""
        return self.put(keys.session(node), SessionRow(FORMAT, 1, b"", f"http://node{node}", self.now_ms))

    def without_volume(self, node: int) -> None:
        """The node starts anew and does not find its disk."""
        row = self.view.volumes[f"volume{node}"].row
        self.put(keys.named(keys.VOLUME, f"volume{node}"), replace(row, session=self.view.sessions[node].mod_revision))
        self.up(node)

    def down(self, node: int) -> None:
        """The session ends."""
        self.delete(keys.session(node))

    def delete_volume(self, node: int) -> None:
        """The node's volume is deleted, empty."""
        self.delete(keys.named(keys.VOLUME, f"volume{node}"))

    def set_access(self, node: int, access: AccessMode) -> None:
        """An operator's word about the node's volume."""
        row = self.view.volumes[f"volume{node}"].row
        self.put(keys.named(keys.VOLUME, f"volume{node}"), replace(row, access=access, access_since_ms=self.now_ms))

    def set_intent(self, node: int, intent: VolumeIntent) -> None:
        """What a process wants of the node's volume."""
        row = self.view.volumes[f"volume{node}"].row
        self.put(keys.named(keys.VOLUME, f"volume{node}"), replace(row, intent=intent))

    # -- extents -------------------------------------------------------------------------------
    def open_extent(self, extent: int, writer: int, length: int) -> None:
        """An open extent with this committed length."""
        epoch = self.view.sessions[writer].mod_revision
        row, opened = locations.opened(CLASS, writer, writer, epoch, self.now_ms)
        self.opened[extent] = opened
        self.put_extent(extent, row)
        self.write(extent, length)

    def write(self, extent: int, length: int) -> None:
        """Commit up to this length."""
        before = self.opened[extent]
        self.opened[extent] = OpenRow(
            FORMAT, length, before.group + 1, length // 1000, length, before.uncopied_since_ms or self.now_ms
        )
        self.bytes_on[LocationKey(extent, self.row(extent).writer_volume, 1)] = length

    def seal(self, extent: int) -> None:
        """The extent ends at its committed length."""
        opened = self.opened.pop(extent)
        self.put_extent(extent, locations.sealed(self.row(extent), opened, self.now_ms))

    def committed(self, extent: int) -> int:
        """The committed length."""
        row = self.row(extent)
        return self.opened[extent].length if row.open else row.length

    def mark(self, extent: int, volume: int, state: LocationState) -> None:
        """A node's own verdict on a location."""
        location = self.location(extent, volume)
        self.put_extent(extent, locations.marked(self.row(extent), location, state, "found bad", self.now_ms))

    # -- planning and performing ---------------------------------------------------------------
    def facts(self) -> Facts:
        """What a pass goes by now."""
        return Facts(
            policy=self.policy,
            places=places(self.view),
            opened=dict(self.opened),
            memory=self.memory,
            choose=self._choose,
            brake=brake(self.view, self.policy, None, 0, self.now_ms),
            orders=orders.gather(self.view),
        )

    def _choose(self, row: ExtentRow, pool: int) -> int | None:
        known = places(self.view)
        avoid = self.avoided | orders.gather(self.view).crowded
        taken = {
            known[each.volume].node
            for each in row.locations
            if not known[each.volume].destroyed and not known[each.volume].leaving
        }
        free = [
            each.volume
            for each in known.values()
            if each.pool == pool and each.writable and each.node not in taken and each.volume not in avoid
        ]
        return min(free, default=None)

    def plan(self, extents: Iterable[int] | None = None) -> list[Action]:
        """What the controllers ask for now."""
        facts = self.facts()
        chosen = list(self.view.extents if extents is None else extents)
        for extent in chosen:
            entry = self.view.extents.get(extent)
            self.memory.settle(extent, None if entry is None else entry.row, self.policy, self.now_ms)
        return [
            *health.plan(self.view, facts),
            *copy.plan(self.view, facts, self.now_ms, chosen),
            *repair.plan(self.view, facts, self.now_ms, chosen),
            *audit.plan(self.view, facts, self.now_ms, chosen),
        ]

    def perform(self, action: Action) -> None:
        """Do one action as the catalog and obedient nodes would."""
        self.history.append(action)
        match action:
            case MarkAway(node) | MarkReturned(node):
                away_ms = self.now_ms if isinstance(action, MarkAway) else 0
                before = self.view.nodes_by_id[node].row
                after = replace(before, away_since_ms=away_ms)
                self.put(keys.named(keys.NODE, f"node{node}"), after)
            case SealExtent(extent):
                if self.row(extent).open:
                    self.seal(extent)
            case Reserve(extent, volume):
                reserved = locations.reserved(self.row(extent), volume, self.now_ms)
                if reserved is not None:
                    self.put_extent(extent, reserved[0])
            case Pull():
                self._pull(action)
            case Verify():
                self._verify(action)
            case Decide(key):
                self.memory.note_decided(key, self.now_ms)
            case BeginDrop():
                self._begin_drop(action)
            case CallOff(key):
                row = self.row(key.extent)
                location = locations.find(row, key.volume, key.generation)
                if location is not None and location.state == "dropping":
                    self.put_extent(key.extent, locations.called_off(row, location, self.now_ms) or row)
            case Forget() | FinishDrop():
                self._finish_drop(action)
        for check in self.checks:
            check()

    def _pull(self, action: Pull) -> None:
        key = action.location
        row = self.row(key.extent)
        location = locations.find(row, key.volume, key.generation)
        if location is None or not self.view.node_up(action.node):
            return  # the command arrives nowhere, or its reports meet no location
        self.memory.note_try(key, location.length, self.policy, self.now_ms)
        sessions = sessions_of(self.view, action.sources)
        self.memory.note_pull(key, Told(self.now_ms, action.epoch, action.up_to, action.sealed, sessions))
        if key.volume in self.stuck:
            return
        if key.volume in self.full or key.extent in self.broken:
            here = key.volume in self.full
            why = "no room" if here else "no source brings it on"
            self.put_extent(key.extent, locations.given_up(row, location, location.length, why, here))
            return
        best = max((source.length for source in action.sources), default=0)
        length = max(location.length, min(action.up_to, best))
        self.pulled_bytes += length - location.length
        self.bytes_on[key] = length
        self.put_extent(
            key.extent,
            locations.progressed(
                row,
                location,
                length,
                length // 1000,
                finished=length == action.up_to,
                verified=action.sealed and length == action.up_to,
                now_ms=self.now_ms,
            ),
        )

    def _verify(self, action: Verify) -> None:
        key = action.location
        row = self.row(key.extent)
        location = locations.find(row, key.volume, key.generation)
        if location is None or not self.view.node_up(action.node):
            return
        self.memory.note_verify(key, Told(self.now_ms, action.epoch, action.length, action.sealed))
        if (key.extent, key.volume) in self.rotten:
            self.put_extent(key.extent, locations.marked(row, location, "damaged", "rotten", self.now_ms))
            return
        self.put_extent(key.extent, locations.verified(row, location, action.length, b"digest", self.now_ms))

    def _begin_drop(self, action: BeginDrop) -> None:
        key = action.location
        row = self.row(key.extent)
        location = locations.find(row, key.volume, key.generation)
        known = places(self.view)
        extent_class = self.view.classes[row.class_id].row
        if location is None or location.state == "dropping":
            return
        if action.forced or may_leave(
            row,
            location,
            self.committed(key.extent),
            lambda other: known[other.volume].counted,
            action.wanted or wanted_total(extent_class),
            self.memory.decided.get(key, self.now_ms),
        ):
            decided_ms = self.memory.decided.get(key, self.now_ms)
            self.put_extent(key.extent, locations.dropping(row, location, self.now_ms, decided_ms))

    def _finish_drop(self, action: Forget | FinishDrop) -> None:
        if self.confirm_drop(action) and (isinstance(action, Forget) or self.view.node_up(action.node)):
            self.erase(action)

    def confirm_drop(self, action: Forget | FinishDrop) -> bool:
        """The transaction that is the point of no return; whether it was passed."""
        key = action.location
        row = self.row(key.extent)
        location = locations.find(row, key.volume, key.generation)
        if location is None or location.state != "dropping":
            return False
        known = places(self.view)
        allowed = location.erasing or action.forced
        if allowed or may_leave(
            row,
            location,
            self.committed(key.extent),
            lambda other: known[other.volume].counted,
            action.wanted,
            max(1, location.decided_ms),
        ):
            self.put_extent(key.extent, locations.erasing(row, location))
            return True
        return False

    def erase(self, action: Forget | FinishDrop) -> None:
        """What the node and the last transaction do: a location that is given up keeps its file."""
        key = action.location
        row = self.row(key.extent)
        location = locations.find(row, key.volume, key.generation)
        if isinstance(action, FinishDrop):
            self.bytes_on.pop(key, None)
        if location is not None:
            assert location.erasing, "nobody may be told to delete what could still be called off"
            self.put_extent(key.extent, locations.without_location(row, location))

    def perform_all(self, actions: Iterable[Action]) -> None:
        """One after the other."""
        for action in actions:
            self.perform(action)

    def settle(self, rounds: int = 20, step_ms: int = 100) -> None:
        """Plan and perform until nothing is left to do, or fail."""
        for _ in range(rounds):
            actions = self.plan()
            if not actions:
                return
            for action in actions:
                self.perform(action)
            self.now_ms += step_ms
        raise AssertionError(f"still busy after {rounds} rounds: {actions}")

    def wait(self, ms: int) -> None:
        """Time goes by."""
        self.now_ms += ms

    # -- what must always hold -------------------------------------------------------------------
    def good_reach(self, extent: int) -> int:
        """How far the best good location reaches, wherever it is, as the row says."""
        row = self.row(extent)
        return max(
            (reach(row, each, self.committed(extent)) for each in row.locations if each.state == "good"), default=0
        )

    def held(self, extent: int) -> int:
        """How many of the extent's bytes are on some disk."""
        return max((length for key, length in self.bytes_on.items() if key.extent == extent), default=0)
