"""The node as it stands, for `/metrics`: session, disks against their reserves, and how full everything bounded is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from copypool.protocol.internal import OPEN_EXTENTS_MAX
from copypool.telemetry.metrics import Family, Page, Sample, by_label, one
from copypool_node import metrics

if TYPE_CHECKING:
    from copypool_node.node import Node
    from copypool_node.volumes import MountedVolume


def page(node: Node, connections: int) -> Page:
    """Samples of now, from memory."""
    session = node.session
    yield metrics.SESSION, one(session.alive)
    yield metrics.LEASE_MARGIN, one(session.lease_margin_s(time.monotonic()))
    yield metrics.HOLDINGS, one(len(node.holdings))
    yield metrics.FILL, by_label(fills(node, connections))
    for family, value in _OF_VOLUMES:
        yield family, [_sample(volume, value(volume)) for volume in node.volumes]
    yield metrics.VERIFY_QUEUE, [_sample(volume, len(node.verifiers[volume])) for volume in node.volumes]
    yield metrics.PULL_QUEUE, [_sample(volume, node.puller.queued(volume)) for volume in node.volumes]


def fills(node: Node, connections: int) -> dict[str, float]:
    """Share of its limit that each bounded thing has taken; of many of a kind, the fullest."""
    limits = node.config.limits
    lanes = [lane for volume in node.volumes for lane in volume.all_lanes()]
    streams = [pool for volume in node.volumes for pool in volume.streams.values()]
    return {
        "connections": connections / limits.connections,
        "queue_records": max((lane.queued_records for lane in lanes), default=0) / limits.queue_records,
        "queue_bytes": max((lane.queued_bytes for lane in lanes), default=0) / limits.queue_bytes,
        "streams": max((pool.busy for pool in streams), default=0) / limits.streams_per_class,
        "open_extents": max((volume.open_extents for volume in node.volumes), default=0) / OPEN_EXTENTS_MAX,
        "pulls": sum(node.puller.queued(volume) for volume in node.volumes) / limits.commands_queued,
        "verifies": max((len(one) for one in node.verifiers.values()), default=0) / limits.commands_queued,
        "twins": len(node.twins) / limits.twins_open,
    }


_OF_VOLUMES: tuple[tuple[Family, Callable[[MountedVolume], float]], ...] = (
    (metrics.FREE, lambda volume: volume.disk.free_bytes()),
    (metrics.TOTAL, lambda volume: volume.disk.total_bytes()),
    (metrics.RESERVE, lambda volume: volume.disk.reserve_bytes),
    (metrics.STORED, lambda volume: volume.disk.stored_bytes),
    (metrics.OPEN_EXTENTS, lambda volume: volume.open_extents),
    (metrics.QUEUED, lambda volume: volume.report().queued_bytes),
    (metrics.PROBE_AGE, lambda volume: volume.probe_age_s),
    (metrics.WRITABLE, lambda volume: not volume.refusal()),
    (metrics.SAFE_MODE, lambda volume: bool(volume.safe_mode)),
    (metrics.UNKNOWN, lambda volume: volume.unknown_extents),
    (metrics.PULL_LIMIT, lambda volume: volume.pull_pace.bytes_s),
)


def _sample(volume: MountedVolume, value: float) -> Sample:
    return (volume.name, volume.config.pool), float(value)
