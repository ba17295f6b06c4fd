"""What a coordinator knows of the cluster, in memory, kept by the mirror of `/cp/c/`. Pure: events in, facts out.

It owns the indexes that routing and the controllers read; it does no I/O and knows no clock. Directory rows and
open-extent rows are not here: the first are read when asked for, the second change with every commit.
The mirrored range is one watch, so rows change here in the order in which they changed in etcd.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict, deque
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from copypool.protocol.errors import BrokenInvariant
from copypool_coordinator import keys, rows, twins
from copypool_coordinator.etcd import Changed, KeyValue, Listed, MirrorEvent
from copypool_coordinator.rows import (
    ClassRow,
    ClockRow,
    ClusterRow,
    CoordinatorRow,
    CountersRow,
    ExtentRow,
    LeaderRow,
    NamespaceRow,
    NodeRow,
    PoolRow,
    ProcessRow,
    R,
    SessionRow,
    TokenRow,
    VolumeRow,
)

Named = TypeVar("Named", PoolRow, NamespaceRow, NodeRow, VolumeRow)

#: Longer than any extent.
_WHOLE = 1 << 62
#: Access modes in which a volume's bytes can be read by a program now (given a live session of its node).
_MOUNTED = ("readwrite", "readonly")


@dataclass(slots=True)
class Versioned(Generic[R]):
    """A row and where it stands in etcd's history."""

    row: R
    mod_revision: int
    create_revision: int
    name: str  #: the last part of the key: the name, or the id as text

    @property
    def epoch(self) -> int:
        """Of a session: the epoch that fences. The same number as the mod revision."""
        return self.mod_revision


#: Rows of extents that are kept decoded: one takes ten times the room of its bytes.
DECODED_MAX = 4_096


class ExtentEntry:
    """An extent's row: the bytes that etcd has, decoded when somebody asks. Extents are many, and few are asked for."""

    __slots__ = ("_decoded", "_row", "_value", "mod_revision")

    def __init__(self, kv: KeyValue, decoded: deque[ExtentEntry]) -> None:
        self._value = kv.value
        self._decoded = decoded  #: those with a row, the oldest first; shared by all of a view
        self._row: ExtentRow | None = None
        self.mod_revision = kv.mod_revision
        self._keep(_decoded(kv, ExtentRow))

    @property
    def row(self) -> ExtentRow:
        """Equal, and not always the same, from call to call."""
        return self._keep(rows.decode(self._value, ExtentRow)) if self._row is None else self._row

    def _keep(self, row: ExtentRow) -> ExtentRow:
        self._row = row
        self._decoded.append(self)
        if len(self._decoded) > DECODED_MAX:
            self._decoded.popleft()._row = None
        return row


class ClusterView:
    """Cluster state as of `revision`. Only `apply` changes it; readers must not."""

    def __init__(self) -> None:
        self.revision = 0
        self.ready = False  #: a listing has been applied
        self.dirty: set[int] = set()
        self._clear()

    def _clear(self) -> None:
        self.pools: dict[str, Versioned[PoolRow]] = {}
        self.pools_by_id: dict[int, Versioned[PoolRow]] = {}
        self.namespaces: dict[str, Versioned[NamespaceRow]] = {}
        self.namespaces_by_id: dict[int, Versioned[NamespaceRow]] = {}
        self.nodes: dict[str, Versioned[NodeRow]] = {}
        self.nodes_by_id: dict[int, Versioned[NodeRow]] = {}
        self.volumes: dict[str, Versioned[VolumeRow]] = {}
        self.volumes_by_id: dict[int, Versioned[VolumeRow]] = {}
        self.volumes_by_node: defaultdict[int, set[int]] = defaultdict(set)
        self.classes: dict[int, Versioned[ClassRow]] = {}
        self.sessions: dict[int, Versioned[SessionRow]] = {}
        self.coordinators: dict[str, Versioned[CoordinatorRow]] = {}
        self.tokens: dict[bytes, Versioned[TokenRow]] = {}
        self.counters: dict[str, Versioned[CountersRow]] = {}
        self.processes: dict[str, Versioned[ProcessRow]] = {}
        self.extents: dict[int, ExtentEntry] = {}
        self._decoded: deque[ExtentEntry] = deque()
        self.extents_by_volume: defaultdict[int, set[int]] = defaultdict(set)
        self.extents_by_class: defaultdict[int, set[int]] = defaultdict(set)
        #: open extents by the volumes that they are appended to: their writer's, and their live twin's
        self.open_by_volume: defaultdict[int, set[int]] = defaultdict(set)
        #: fence paths of a namespace, sorted; code point order of paths is byte order of keys
        self.fences: defaultdict[int, list[str]] = defaultdict(list)
        self.leader: Versioned[LeaderRow] | None = None
        self.cluster: Versioned[ClusterRow] | None = None
        self.format = 0  #: of the whole catalog, 0 while it is empty
        self.clock_ms = 0  #: cluster time in the leader's clock row
        self.clock: ClockRow | None = None

    @property
    def decoded(self) -> int:
        """How many rows of extents are kept decoded now."""
        return len(self._decoded)

    # -- facts -----------------------------------------------------------------------------------
    def node_up(self, node_id: int) -> bool:
        """Whether the node has a live session."""
        return node_id in self.sessions

    def volume_mounted(self, volume_id: int) -> bool:
        """Whether its node has it mounted under the session that lives now: a node may run without its disk."""
        volume = self.volumes_by_id.get(volume_id)
        if volume is None or not volume.row.epoch:  # one that was only defined
            return False
        session = self.sessions.get(volume.row.node)
        return session is not None and volume.row.session in (0, session.mod_revision)

    def volume_reachable(self, volume_id: int) -> bool:
        """Whether the volume's bytes can be read now: its node lives and has it mounted, its access mode allows it."""
        volume = self.volumes_by_id.get(volume_id)
        return volume is not None and volume.row.access in _MOUNTED and self.volume_mounted(volume_id)

    def volume_counts(self, volume_id: int) -> bool:
        """Whether locations there count as protection: reachable now, or known to lie offsite (A16)."""
        volume = self.volumes_by_id.get(volume_id)
        return volume is not None and (volume.row.access == "offsite" or self.volume_reachable(volume_id))

    def open_extents(self) -> list[int]:
        """Ids of all open extents, in no order."""
        return list({extent for extents in self.open_by_volume.values() for extent in extents})

    def copied_length(self, row: ExtentRow) -> int:
        """How far every copy pool of the extent's class holds it: the shortest pool's longest verified prefix.

        A class without copy pools is copied as far as it goes: the answer is the largest possible length.
        """
        extent_class = self.classes.get(row.class_id)
        if extent_class is None:
            return 0
        best = dict.fromkeys(extent_class.row.copy_pools, 0)
        for location in row.locations:
            volume = self.volumes_by_id.get(location.volume)
            if volume is not None and volume.row.pool in best and location.state in ("good", "copying"):
                length = _WHOLE if twins.is_live(row, location) else location.length
                best[volume.row.pool] = max(best[volume.row.pool], length)
        return min(best.values(), default=_WHOLE)

    def next_fence(self, namespace: int, path: str, count: int = 1) -> str | None:
        """The `count`-th fence path of the namespace above `path`."""
        fences = self.fences.get(namespace)
        if not fences:
            return None
        index = bisect_left(fences, path + "\0") + count - 1
        return fences[index] if index < len(fences) else None

    def take_dirty(self) -> set[int]:
        """Extents that may have come off policy since the last call; they are the caller's now."""
        taken, self.dirty = self.dirty, set()
        return taken

    # -- events ----------------------------------------------------------------------------------
    def apply(self, event: MirrorEvent) -> None:
        """Take one event of the mirror in. A listing replaces everything and makes every extent dirty."""
        if isinstance(event, Listed):
            self._apply_listed(event)
        else:
            self._apply_changed(event)

    def _apply_listed(self, event: Listed) -> None:
        self.dirty.update(self.extents)
        self._clear()
        fences = []
        for kv in event.rows:
            kind, rest = _split(kv.key)
            if kind == keys.FENCE:
                fences.append(rest)
            else:
                self._put(kind, rest, kv)
        for rest in fences:
            namespace, path = _fence_of(rest)
            self.fences[namespace].append(path)
        for paths in self.fences.values():
            paths.sort()
        self.revision = event.revision
        self.ready = True

    def _apply_changed(self, event: Changed) -> None:
        for key in event.deletes:
            self._delete(*_split(key))
        for kv in event.puts:
            self._put(*_split(kv.key), kv)
        self.revision = max(self.revision, event.revision)

    def _put(self, kind: bytes, rest: bytes, kv: KeyValue) -> None:
        if kind == keys.EXTENT:
            self._put_extent(int(rest, 16), ExtentEntry(kv, self._decoded))
        elif kind == keys.SESSION:
            node_id = int(rest, 16)
            self.sessions[node_id] = _versioned(kv, SessionRow, rest)
            self._node_changed(node_id)
        elif kind == keys.VOLUME:
            self._put_volume(_versioned(kv, VolumeRow, rest))
        elif kind == keys.NODE:
            node = _named(kv, NodeRow, rest, self.nodes, self.nodes_by_id)
            self._node_changed(node.row.id)
        elif kind == keys.POOL:
            pool = _named(kv, PoolRow, rest, self.pools, self.pools_by_id)
            for volume_id, volume in self.volumes_by_id.items():
                if volume.row.pool == pool.row.id:
                    self._volume_changed(volume_id)  # what is wanted of its extents may have changed
        elif kind == keys.NAMESPACE:
            _named(kv, NamespaceRow, rest, self.namespaces, self.namespaces_by_id)
        elif kind == keys.CLASS:
            extent_class = _versioned(kv, ClassRow, rest)
            self.classes[extent_class.row.id] = extent_class
        elif kind == keys.COORDINATOR:
            self.coordinators[rest.decode()] = _versioned(kv, CoordinatorRow, rest)
        elif kind == keys.TOKEN:
            self.tokens[bytes.fromhex(rest.decode())] = _versioned(kv, TokenRow, rest)
        elif kind == keys.COUNTERS:
            self.counters[rest.decode()] = _versioned(kv, CountersRow, rest)
        elif kind == keys.PROCESS:
            self.processes[rest.decode()] = _versioned(kv, ProcessRow, rest)
        elif kind == keys.FENCE:
            namespace, path = _fence_of(rest)
            paths = self.fences[namespace]
            index = bisect_left(paths, path)
            if index == len(paths) or paths[index] != path:
                insort(paths, path)
        elif not kind:
            self._put_single(kv, rest)

    def _put_single(self, kv: KeyValue, rest: bytes) -> None:
        if kv.key == keys.CLOCK:
            self.clock = _decoded(kv, ClockRow)
            self.clock_ms = self.clock.unix_ms
        elif kv.key == keys.LEADER:
            self.leader = _versioned(kv, LeaderRow, rest)
        elif kv.key == keys.CLUSTER_ROW:
            self.cluster = _versioned(kv, ClusterRow, rest)
        elif kv.key == keys.FORMAT:
            self.format = int(kv.value)

    def _delete(self, kind: bytes, rest: bytes) -> None:
        text = rest.decode()
        if kind == keys.EXTENT:
            self._forget_extent(int(rest, 16))
        elif kind == keys.SESSION:
            if self.sessions.pop(int(rest, 16), None) is not None:
                self._node_changed(int(rest, 16))
        elif kind == keys.VOLUME:
            volume = self.volumes.pop(text, None)
            if volume is not None:
                self._volume_changed(volume.row.id)
                self.volumes_by_id.pop(volume.row.id, None)
                self.volumes_by_node[volume.row.node].discard(volume.row.id)
        elif kind == keys.NODE:
            _forget(text, self.nodes, self.nodes_by_id)
        elif kind == keys.POOL:
            _forget(text, self.pools, self.pools_by_id)
        elif kind == keys.NAMESPACE:
            _forget(text, self.namespaces, self.namespaces_by_id)
        elif kind == keys.COORDINATOR:
            self.coordinators.pop(text, None)
        elif kind == keys.TOKEN:
            self.tokens.pop(bytes.fromhex(text), None)
        elif kind == keys.COUNTERS:
            self.counters.pop(text, None)
        elif kind == keys.PROCESS:
            self.processes.pop(text, None)
        elif kind == keys.FENCE:
            namespace, path = _fence_of(rest)
            paths = self.fences[namespace]
            index = bisect_left(paths, path)
            if index < len(paths) and paths[index] == path:
                del paths[index]
        elif not kind and keys.CLUSTER + rest == keys.LEADER:
            self.leader = None

    def _put_extent(self, extent_id: int, extent: ExtentEntry) -> None:
        before = self.extents.get(extent_id)
        if before is not None:
            self._unindex(extent_id, before.row)
        self.extents[extent_id] = extent
        row = extent.row
        self.extents_by_class[row.class_id].add(extent_id)
        for location in row.locations:
            self.extents_by_volume[location.volume].add(extent_id)
        for volume in _appended_to(row):
            self.open_by_volume[volume].add(extent_id)
        self.dirty.add(extent_id)

    def _forget_extent(self, extent_id: int) -> None:
        before = self.extents.pop(extent_id, None)
        if before is not None:
            self._unindex(extent_id, before.row)
            self.dirty.add(extent_id)

    def _unindex(self, extent_id: int, row: ExtentRow) -> None:
        self.extents_by_class[row.class_id].discard(extent_id)
        for location in row.locations:
            self.extents_by_volume[location.volume].discard(extent_id)
        for volume in _appended_to(row):
            self.open_by_volume[volume].discard(extent_id)

    def _put_volume(self, volume: Versioned[VolumeRow]) -> None:
        before = self.volumes.get(volume.name)
        if before is not None:
            self.volumes_by_node[before.row.node].discard(before.row.id)
        self.volumes[volume.name] = volume
        self.volumes_by_id[volume.row.id] = volume
        self.volumes_by_node[volume.row.node].add(volume.row.id)
        self._volume_changed(volume.row.id)

    def _node_changed(self, node_id: int) -> None:
        for volume_id in self.volumes_by_node.get(node_id, ()):
            self._volume_changed(volume_id)

    def _volume_changed(self, volume_id: int) -> None:
        self.dirty.update(self.extents_by_volume.get(volume_id, ()))


def _appended_to(row: ExtentRow) -> tuple[int, ...]:
    """The volumes that take every group of an open extent."""
    if not row.open:
        return ()
    twin = twins.live(row)
    return (row.writer_volume,) if twin is None else (row.writer_volume, twin.volume)


def _split(key: bytes) -> tuple[bytes, bytes]:
    """Kind (with its slash; empty for single rows) and rest of a key of cluster state."""
    kind, slash, rest = key[len(keys.CLUSTER) :].partition(b"/")
    return (kind + slash, rest) if slash else (b"", kind)


def _fence_of(rest: bytes) -> tuple[int, str]:
    namespace, _, path = rest.partition(b"/")
    return int(namespace, 16), path.decode()


def _versioned(kv: KeyValue, row: type[R], rest: bytes) -> Versioned[R]:
    return Versioned(_decoded(kv, row), kv.mod_revision, kv.create_revision, rest.decode())


def _decoded(kv: KeyValue, row: type[R]) -> R:
    """The row of a value.

    Raises:
        BrokenInvariant: this release cannot read it. Going on without it would be going on with a hole in the view.
    """
    try:
        return rows.decode(kv.value, row)
    except msgspec.MsgspecError as exc:
        raise BrokenInvariant(
            f"the catalog's row {kv.key.decode('utf-8', 'backslashreplace')} cannot be read ({exc}): a newer release "
            "wrote it, and has to run here"
        ) from exc


def _named(
    kv: KeyValue,
    row: type[Named],
    rest: bytes,
    by_name: dict[str, Versioned[Named]],
    by_id: dict[int, Versioned[Named]],
) -> Versioned[Named]:
    entry = _versioned(kv, row, rest)
    by_name[entry.name] = entry
    by_id[entry.row.id] = entry
    return entry


def _forget(name: str, by_name: dict[str, Versioned[Named]], by_id: dict[int, Versioned[Named]]) -> None:
    entry = by_name.pop(name, None)
    if entry is not None and by_id.get(entry.row.id) is entry:
        del by_id[entry.row.id]
