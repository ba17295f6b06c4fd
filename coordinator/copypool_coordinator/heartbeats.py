"""What the nodes said last: free space, queues, probes. In memory only, of this coordinator; no I/O, no clock.

Every node tells every coordinator, so this is never fetched and never stored. A restarted coordinator knows nothing
for one heartbeat; places then answer `Unavailable`, which callers repeat.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

from copypool.protocol.internal import HeartbeatRequest, Unmounted, VolumeReport

#: An older heartbeat says nothing any more: three are sent in this time.
FRESH_S = 10.0
#: A volume whose last good write + fsync is older than this takes nothing new: its disk may hang.
PROBE_MAX_AGE_MS = 15_000
#: `loads` is made anew at most this often.
_CACHE_S = 0.1
#: Volumes of one node that are kept in mind as not mounted.
_UNMOUNTED_MAX = 64


class VolumeLoad(NamedTuple):
    """State of a volume as its node said it."""

    node_id: int
    seen_s: float  #: monotonic time of this process when it was said
    report: VolumeReport

    @property
    def writable(self) -> bool:
        """The node itself would take bytes there."""
        return not self.report.read_only and self.report.probe_age_ms <= PROBE_MAX_AGE_MS


Loads: TypeAlias = Mapping[int, VolumeLoad]  #: volume id -> its last report, fresh ones only


class NodeBeat(NamedTuple):
    """When a node spoke last, and in which epoch."""

    epoch: int
    seen_s: float
    version_seen: int
    unmounted: tuple[Unmounted, ...] = ()  #: volumes of its configuration that are not mounted


class Heartbeats:
    """The last heartbeat of every node."""

    def __init__(self) -> None:
        self._nodes: dict[int, NodeBeat] = {}
        self._volumes: dict[int, VolumeLoad] = {}
        self._by_node: dict[int, tuple[int, ...]] = {}
        self._cached: dict[int, VolumeLoad] = {}
        self._cached_until_s = -1.0

    def note(self, request: HeartbeatRequest, now_s: float) -> None:
        """Take a heartbeat in. The caller has checked that it is the node's own; an older epoch changes nothing."""
        known = self._nodes.get(request.node_id)
        if known is not None and known.epoch > request.epoch:
            return
        self._nodes[request.node_id] = NodeBeat(
            request.epoch, now_s, request.version_seen, tuple(request.unmounted[:_UNMOUNTED_MAX])
        )
        for volume in self._by_node.get(request.node_id, ()):
            load = self._volumes.get(volume)
            # A volume that another node reported meanwhile (moved disk) belongs to the later speaker.
            if load is not None and load.node_id == request.node_id:
                del self._volumes[volume]
        for report in request.volumes:
            self._volumes[report.volume] = VolumeLoad(request.node_id, now_s, report)
        self._by_node[request.node_id] = tuple(report.volume for report in request.volumes)
        self._cached_until_s = -1.0

    def loads(self, now_s: float) -> Loads:
        """Reports of volumes whose node spoke within `FRESH_S`."""
        if now_s >= self._cached_until_s:
            self._cached = {volume: load for volume, load in self._volumes.items() if now_s - load.seen_s <= FRESH_S}
            self._cached_until_s = now_s + _CACHE_S
        return self._cached

    def last(self, volume: int) -> VolumeLoad | None:
        """The last report of a volume, however old."""
        return self._volumes.get(volume)

    def age_s(self, node_id: int, now_s: float) -> float | None:
        """Time since the node spoke here; None: not since this process started."""
        beat = self._nodes.get(node_id)
        return None if beat is None else max(0.0, now_s - beat.seen_s)

    def unmounted(self, now_s: float) -> Mapping[tuple[int, str], str]:
        """Why volumes are not mounted, by node and name, as nodes said within `FRESH_S`."""
        return {
            (node_id, each.volume): each.reason
            for node_id, beat in self._nodes.items()
            if now_s - beat.seen_s <= FRESH_S
            for each in beat.unmounted
        }

    def silent(self, epochs: Mapping[int, int], silent_s: float, now_s: float) -> dict[int, float]:
        """Nodes that spoke here in the epoch that they are in (`epochs`), and not for `silent_s`; since how long.

        A session that was never heard here is not silent: this process, or the session, may have just begun.
        """
        return {
            node_id: now_s - beat.seen_s
            for node_id, beat in self._nodes.items()
            if epochs.get(node_id) == beat.epoch and now_s - beat.seen_s > silent_s
        }
