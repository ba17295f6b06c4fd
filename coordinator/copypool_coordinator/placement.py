"""Where bytes are put: write leases and destinations of copies. Pure; randomness comes in as a seed.

Facts are the view (what the catalog says) and the loads (what nodes said within the last seconds). A volume takes
bytes only when both agree: `readwrite`, its node's session lives, a fresh heartbeat, a fresh fsync probe, and room
above the floor. Among those the choice is random, weighted by free space and inverse to the queue, so that a new
volume fills up faster without being flooded, and two coordinators do not choose alike.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from copypool.protocol.errors import NoSpace, Unavailable
from copypool.protocol.internal import EXTENT_SOFT_BYTES
from copypool_coordinator.heartbeats import Loads, VolumeLoad
from copypool_coordinator.rows import ClassRow, ExtentRow, VolumeRow
from copypool_coordinator.view import ClusterView, Versioned

#: Room that stays on a volume beyond the body that is placed: other bodies are under way at the same time.
FLOOR_BYTES = 16 * 1024 * 1024
#: A queue this long halves a volume's weight.
_QUEUE_HALF_BYTES = 16 * 1024 * 1024
LEASES_MAX = 8
_NAMES_MAX = 5  #: of nodes in one message


class Option(NamedTuple):
    """A volume that could be chosen."""

    volume: VolumeRow
    key: float  #: larger is better


def choose_leases(
    view: ClusterView,
    loads: Loads,
    extent_class: ClassRow,
    *,
    count: int,
    size_bytes: int,
    avoid_nodes: Collection[int] = (),
    for_delete: bool = False,
    may_have_twin: Callable[[int], bool] = lambda node: True,
    seed: int,
) -> list[int]:
    """Up to `count` volume ids of the class's primary pool, best first, on different nodes as long as there are any.

    Nodes to avoid come last, since a slow answer is better than none. `for_delete` needs no room: every volume keeps
    a reserve for tombstones. `may_have_twin`: whether a node that writes there finds what its ack rule demands.

    Raises:
        NoSpace: volumes can be reached, and none has room.
        Unavailable: no volume of the pool can be reached.
    """
    pool = extent_class.primary_pool
    usable = [(volume, load) for volume, load in _usable(view, loads, pool) if may_have_twin(volume.node)]
    floor = 0 if for_delete else FLOOR_BYTES + size_bytes
    options = _weighted(((volume, load) for volume, load in usable if load.report.free_bytes >= floor), seed)
    if not options:
        name = view.pools_by_id[pool].name if pool in view.pools_by_id else str(pool)
        missed = _away_text(view, pool)
        if usable:
            raise NoSpace(
                f"no volume of the pool {name!r} has room for {size_bytes} bytes{missed}: add volumes or free space"
            )
        if _usable(view, loads, pool):
            raise no_twin(view, extent_class)
        raise Unavailable(f"no volume of the pool {name!r} can be written to now{missed}: see `copypool volumes`")
    options.sort(key=lambda option: -option.key)
    return _spread([option.volume for option in options], avoid_nodes)[:count]


def _away_text(view: ClusterView, pool: int) -> str:
    """Which nodes with volumes of the pool are away, for who wonders why there is no room; "" when none is."""
    nodes = {volume.row.node for volume in view.volumes.values() if volume.row.pool == pool and volume.row.node}
    names = sorted(view.nodes_by_id[node].name for node in nodes if node in view.nodes_by_id and not view.node_up(node))
    if not names:
        return ""
    more = f" and {len(names) - _NAMES_MAX} more" if len(names) > _NAMES_MAX else ""
    return f" ({', '.join(names[:_NAMES_MAX])}{more} away)"


def choose_destination(extent: ExtentRow, pool: int, view: ClusterView, loads: Loads, seed: int = 0) -> int | None:
    """The volume of `pool` that a new copy of this extent goes to; None when there is none.

    Always on a node without any location of the extent, whatever that location's state; preferably in another host
    and zone than all of them.
    """
    nodes: set[int] = set()
    hosts: set[str] = set()
    zones: set[str] = set()
    for location in extent.locations:
        volume = view.volumes_by_id.get(location.volume)
        if volume is None:
            continue
        nodes.add(volume.row.node)
        node = view.nodes_by_id.get(volume.row.node)
        if node is not None:
            hosts.add(node.row.host)
            zones.add(node.row.zone)
    need = FLOOR_BYTES + (EXTENT_SOFT_BYTES if extent.open else extent.length)
    options = _weighted(
        (
            (volume, load)
            for volume, load in _usable(view, loads, pool)
            if volume.node not in nodes and load.report.free_bytes >= need
        ),
        seed,
    )
    if not options:
        return None

    def badness(option: Option) -> tuple[bool, bool, float]:
        node = view.nodes_by_id[option.volume.node].row
        return (node.host in hosts, node.zone in zones, -option.key)

    return min(options, key=badness).volume.id


def no_twin(view: ClusterView, extent_class: ClassRow) -> Unavailable:
    """Why nothing can be written in a class that acknowledges only what a copy holds as well."""
    pool = view.pools_by_id.get(extent_class.copy_pools[0]) if extent_class.copy_pools else None
    name = "a copy pool" if pool is None else f"pool {pool.name!r}"
    return Unavailable(
        f"no volume of {name} in another failure domain takes bytes now, and the ack rule is `copy` or fail: "
        "nothing was stored",
        twin=True,
    )


def choose_twin(
    view: ClusterView,
    loads: Loads,
    extent_class: ClassRow,
    writer_node: int,
    *,
    avoid_nodes: Collection[int] = (),
    seed: int,
) -> Versioned[VolumeRow] | None:
    """The volume for the twin of a new extent of this class that `writer_node` writes; None: there is none.

    In the first copy pool, on another node and host; in another zone too, if one of the two pools is spread over
    zones, and preferably anyway: a copy in the writer's own failure domain would make a false receipt (A21). Nodes to
    avoid come last.
    """
    writer = view.nodes_by_id.get(writer_node)
    pool = view.pools_by_id.get(extent_class.copy_pools[0]) if extent_class.copy_pools else None
    primary = view.pools_by_id.get(extent_class.primary_pool)
    if writer is None or pool is None or primary is None:
        return None
    zones = "zone" in (primary.row.spread, pool.row.spread)
    need = FLOOR_BYTES + EXTENT_SOFT_BYTES
    options = []
    for option in _weighted(
        ((volume, load) for volume, load in _usable(view, loads, pool.row.id) if load.report.free_bytes >= need), seed
    ):
        node = view.nodes_by_id[option.volume.node].row
        same_zone = node.zone == writer.row.zone
        if node.id == writer_node or node.host == writer.row.host or (zones and same_zone):
            continue
        options.append(((node.id in avoid_nodes, same_zone, -option.key), option.volume.id))
    return view.volumes_by_id[min(options)[1]] if options else None


def _usable(view: ClusterView, loads: Loads, pool: int) -> list[tuple[VolumeRow, VolumeLoad]]:
    """Volumes of the pool that take bytes now, apart from room."""
    found = []
    for volume_id, load in loads.items():
        volume = view.volumes_by_id.get(volume_id)
        if volume is None:
            continue
        row = volume.row
        if row.pool != pool or row.access != "readwrite" or row.intent or row.node != load.node_id:
            continue
        if row.node in view.nodes_by_id and view.node_up(row.node) and load.writable:
            found.append((row, load))
    return found


def _weighted(options: Iterable[tuple[VolumeRow, VolumeLoad]], seed: int) -> list[Option]:
    """Random keys after Efraimidis and Spirakis (2006): sorting by them draws by weight without replacement."""
    rng = random.Random(seed)
    drawn = []
    for volume, load in sorted(options, key=lambda item: item[0].id):
        weight = max(1.0, load.report.free_bytes) / (1.0 + load.report.queued_bytes / _QUEUE_HALF_BYTES)
        # The logarithm of u ** (1 / weight), which would be 1.0 for every weight of this size.
        drawn.append(Option(volume, -rng.expovariate(1.0) / weight))
    return drawn


def _spread(volumes: list[VolumeRow], avoid_nodes: Collection[int]) -> list[int]:
    """Volume ids in order, but a node's second volume after every node's first, and nodes to avoid at the end."""
    rounds: dict[int, int] = {}
    turns = []
    for place, volume in enumerate(volumes):
        turn = rounds.get(volume.node, 0)
        rounds[volume.node] = turn + 1
        turns.append((volume.node in avoid_nodes, turn, place, volume.id))
    return [volume_id for _, _, _, volume_id in sorted(turns)]
