"""A `ClusterView` made by hand, row by row, through the same door as the real one: mirror events."""

from __future__ import annotations

from copypool.protocol.api import AccessMode, LocationState, PoolType
from copypool.protocol.internal import HeartbeatRequest, VolumeReport
from copypool_coordinator import keys, rows
from copypool_coordinator.etcd import Changed, KeyValue, Listed
from copypool_coordinator.heartbeats import Heartbeats
from copypool_coordinator.rows import (
    FORMAT,
    ClassRow,
    ExtentRow,
    Location,
    NamespaceRow,
    NodeRow,
    PoolRow,
    Row,
    SessionRow,
    TokenRow,
    VolumeRow,
)
from copypool_coordinator.view import ClusterView

GIB = 1 << 30


class LittleView:
    """Builds a view and the heartbeats that go with it. Node ids and volume ids are the caller's."""

    def __init__(self) -> None:
        self.view = ClusterView()
        self.view.apply(Listed((), 1, "start"))
        self.heartbeats = Heartbeats()
        self.revision = 1

    def put(self, key: bytes, row: Row) -> None:
        self.revision += 1
        value = KeyValue(key, rows.encode(row), self.revision, self.revision, 1, 0)
        self.view.apply(Changed(self.revision, [value], []))

    def delete(self, key: bytes) -> None:
        self.revision += 1
        self.view.apply(Changed(self.revision, [], [key]))

    def pool(self, pool_id: int, name: str, pool_type: PoolType) -> None:
        self.put(keys.named(keys.POOL, name), PoolRow(FORMAT, pool_id, pool_type))

    def extent_class(self, class_id: int, primary: int, copies: list[int]) -> None:
        self.put(keys.named(keys.CLASS, str(class_id)), ClassRow(FORMAT, class_id, primary, copies, "primary"))

    def namespace(self, name: str, namespace_id: int, class_id: int) -> None:
        self.put(keys.named(keys.NAMESPACE, name), NamespaceRow(FORMAT, namespace_id, class_id))

    def token(self, sha256: bytes, row: TokenRow) -> None:
        self.put(keys.token(sha256), row)

    def node(self, node_id: int, *, zone: str = "z", host: str = "", up: bool = True) -> None:
        name = f"node{node_id}"
        url = f"http://{name}.test"
        self.put(keys.named(keys.NODE, name), NodeRow(FORMAT, node_id, b"", url, zone, host or name))
        if up:
            self.put(keys.session(node_id), SessionRow(FORMAT, 1, b"", url, 0))

    def node_down(self, node_id: int) -> None:
        self.delete(keys.session(node_id))

    def volume(self, volume_id: int, node_id: int, pool_id: int, access: AccessMode = "readwrite") -> None:
        row = VolumeRow(FORMAT, volume_id, bytes(16), pool_id, node_id, 1, access)
        self.put(keys.named(keys.VOLUME, f"vol{volume_id}"), row)

    def extent(
        self, extent_id: int, locations: list[Location], *, length: int = 0, writer: tuple[int, int] | None = None
    ) -> ExtentRow:
        """A sealed extent of `length`, or an open one with `writer` = (node, volume)."""
        node, volume = writer or (0, 0)
        row = ExtentRow(FORMAT, 1, writer is not None, node, volume, 1, 0, locations, length=length)
        self.put(keys.extent(extent_id), row)
        return row

    def beat(self, node_id: int, reports: dict[int, VolumeReport], now_s: float = 0.0, epoch: int = 1) -> None:
        """A heartbeat with a report per volume."""
        self.heartbeats.note(HeartbeatRequest(node_id, epoch, False, list(reports.values())), now_s)


def report(
    volume: int,
    *,
    free: int = 10 * GIB,
    queued: int = 0,
    probe_age_ms: int = 0,
    read_only: bool = False,
) -> VolumeReport:
    """What a node says of a volume."""
    return VolumeReport(volume, free, 100 * GIB, 0, queued, probe_age_ms, read_only, 0, 0, 0)


def at(volume: int, length: int, state: LocationState = "good") -> Location:
    """A location."""
    return Location(volume, 1, state, length, 0)
