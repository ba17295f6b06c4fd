"""Protection as Prometheus gauges, from the same answer as `status`, and the state of etcd. Pure.

Namespaces are labelled by id, not by name: /metrics asks for no token, and names of tenants are theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from copypool.protocol.api import StatusReply
from copypool.protocol.protection import NamespaceProtection, PoolProtection, ScrubProgress
from copypool.telemetry.metrics import Family, Page, by_label, one
from copypool_coordinator.etcd_size import EtcdSize

#: A page tells of the namespaces that wait longest for their copies; a Prometheus must not grow with tenants.
NAMESPACES_MAX = 256


def _gauge(name: str, text: str, *labels: str) -> Family:
    return Family(f"copypool_{name}", "gauge", text, labels)


_OF_STATUS: tuple[tuple[Family, Callable[[StatusReply], float]], ...] = (
    (
        _gauge("healthy", "1: every live byte is where policy says, and proven or young."),
        lambda status: status.healthy,
    ),
    (_gauge("debt_bytes", "Bytes not copied yet, over all copy pools."), lambda status: status.debt_bytes),
    (_gauge("debt_oldest_seconds", "Age of the oldest byte not copied yet."), lambda status: status.debt_oldest_s),
    (_gauge("damaged_locations", "Locations marked damaged."), lambda status: status.damaged_locations),
    (_gauge("under_protected_extents", "Extents below policy."), lambda status: status.under_protected_extents),
    (
        _gauge("unverified_bytes", "Bytes at policy, not read back everywhere; young ones too."),
        lambda status: status.unverified_bytes,
    ),
    (_gauge("unavailable_files", "Files that cannot be read now."), lambda status: status.unavailable_files),
    (_gauge("lost_files", "Files without any location."), lambda status: status.lost_files),
    (_gauge("doubtful_files", "Files that only damaged locations reach."), lambda status: status.doubtful_files),
    (_gauge("files", "Files stored, as of the last flush of the counters."), lambda status: status.files),
    (_gauge("stored_bytes", "Bytes of files stored, as of the same."), lambda status: status.bytes),
    (_gauge("brake_engaged", "1: re-replication is held."), lambda status: bool(status.brake)),
    (_gauge("leaders", "1: a coordinator leads."), lambda status: bool(status.leader)),
)
_NODES = _gauge("nodes", "Nodes by state: up, silent (not heard lately), away (no session, but volumes).", "state")
_OF_POOLS: tuple[tuple[Family, Callable[[PoolProtection], float]], ...] = (
    (_gauge("pool_debt_bytes", "Bytes not in the pool yet.", "pool"), lambda pool: pool.debt_bytes),
    (_gauge("pool_debt_records", "Records not in the pool yet.", "pool"), lambda pool: pool.debt_records),
    (
        _gauge("pool_debt_oldest_seconds", "The recovery point: age of the oldest byte not in the pool yet.", "pool"),
        lambda pool: pool.debt_oldest_s,
    ),
    (_gauge("pool_damaged_locations", "Damaged locations.", "pool"), lambda pool: pool.damaged_locations),
    (_gauge("pool_missing_locations", "Missing extent files.", "pool"), lambda pool: pool.missing_locations),
)
_OF_NAMESPACES: tuple[tuple[Family, Callable[[NamespaceProtection], float]], ...] = (
    (
        _gauge("namespace_debt_bytes", "Bytes of the namespace not copied yet, at most.", "namespace_id"),
        lambda space: space.debt_bytes,
    ),
    (
        _gauge("namespace_debt_records", "Records of the namespace not copied yet, at most.", "namespace_id"),
        lambda space: space.debt_records,
    ),
    (
        _gauge(
            "namespace_debt_oldest_seconds",
            "The recovery point: age of the oldest byte of the namespace that is not copied yet, at most.",
            "namespace_id",
        ),
        lambda space: space.debt_oldest_s,
    ),
)
_OF_SCRUB: tuple[tuple[Family, Callable[[ScrubProgress], float]], ...] = (
    (_gauge("scrub_oldest_seconds", "Age of the oldest reading back."), lambda scrub: scrub.oldest_s),
    (_gauge("scrub_period_seconds", "Everything is read back within."), lambda scrub: scrub.period_s),
    (_gauge("scrub_bytes_per_second", "Read back lately."), lambda scrub: scrub.bytes_per_s),
    (_gauge("scrub_unread_extents", "Extents never read back."), lambda scrub: scrub.unread_extents),
)
_EXTENTS = _gauge("extents", "Extents in the catalog.")
_CATALOG_DOWN = _gauge("catalog_down", "1: etcd does not answer this coordinator.")
_WINDOW = _gauge("pool_window_open", "1: the copy pool has no copy window, or it is open.", "pool")
_SESSIONS = _gauge("nodes_with_session", "Nodes with a session.")
_MEMBERS = _gauge("etcd_members", "Members of etcd that are configured.")
_MEMBERS_UP = _gauge("etcd_members_up", "Members of etcd that answered when they were last asked.")
_DB = _gauge("etcd_db_bytes", "Size of etcd's database, the largest member's: what counts against the quota.")
_USED = _gauge("etcd_db_used_bytes", "Of it, what is in use.")
_QUOTA = _gauge("etcd_quota_bytes", "Size at which etcd takes no more writes, by the setting etcd.quota_bytes.")
_DAYS = _gauge("etcd_quota_days", "Days until that size at the growth of the last day; +Inf: it does not grow.")
_ALARMS = _gauge("etcd_alarms", "Alarms raised in etcd.")

#: Everything that this module may put on the page.
FAMILIES = (
    *(family for family, _ in _OF_STATUS),
    _NODES,
    *(family for family, _ in _OF_POOLS),
    *(family for family, _ in _OF_NAMESPACES),
    *(family for family, _ in _OF_SCRUB),
    *(_EXTENTS, _SESSIONS, _CATALOG_DOWN, _WINDOW, _MEMBERS, _MEMBERS_UP, _DB, _USED, _QUOTA, _DAYS, _ALARMS),
)


def page(status: StatusReply, namespace_ids: Mapping[str, int]) -> Page:
    """Protection, as `status` tells it."""
    for family, value in _OF_STATUS:
        yield family, one(float(value(status)))
    yield _NODES, [((state,), sum(node.state == state for node in status.nodes)) for state in ("up", "silent", "away")]
    for of_pool, value_of_pool in _OF_POOLS:
        yield of_pool, [((pool.pool,), float(value_of_pool(pool))) for pool in status.pools]
    longest = sorted(status.namespaces, key=lambda each: each.debt_oldest_s, reverse=True)
    known = [each for each in longest if each.namespace in namespace_ids][:NAMESPACES_MAX]
    spaces = [(str(namespace_ids[each.namespace]), each) for each in known]
    for of_space, value_of_space in _OF_NAMESPACES:
        yield of_space, [((number,), float(value_of_space(space))) for number, space in spaces]
    for of_scrub, value_of_scrub in _OF_SCRUB:
        yield of_scrub, () if status.scrub is None else one(float(value_of_scrub(status.scrub)))


def catalog_page(extents: int, sessions: int, windows: Mapping[str, float], *, down: bool) -> Page:
    """What memory holds of the catalog; `windows`: copy pool -> whether it is being copied to."""
    return (
        (_EXTENTS, one(extents)),
        (_SESSIONS, one(sessions)),
        (_CATALOG_DOWN, one(down)),
        (_WINDOW, by_label(windows)),
    )


def etcd_page(size: EtcdSize, quota_bytes: int, quota_days: float) -> Page:
    """The state of etcd."""
    return (
        (_MEMBERS, one(size.members)),
        (_MEMBERS_UP, one(size.members_up)),
        (_DB, one(size.db_bytes)),
        (_USED, one(size.used_bytes)),
        (_QUOTA, one(quota_bytes)),
        (_DAYS, one(quota_days)),
        (_ALARMS, one(size.alarms)),
    )
