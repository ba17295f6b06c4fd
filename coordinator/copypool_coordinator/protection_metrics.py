"""Protection as Prometheus gauges, from the same answer as `status`. Pure.

Namespaces are labelled by id, not by name: /metrics asks for no token, and names of tenants are theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from copypool.protocol.api import StatusReply

_Sample = tuple[str, float]  #: labels in braces or "", value


def lines(status: StatusReply, namespace_ids: Mapping[str, int]) -> list[str]:
    """Lines of the page."""
    found: list[str] = []
    plain = (
        ("copypool_healthy", "1: every live byte is where policy says, and proven or young.", float(status.healthy)),
        ("copypool_debt_bytes", "Bytes not copied yet, over all copy pools.", status.debt_bytes),
        ("copypool_debt_oldest_seconds", "Age of the oldest byte not copied yet.", status.debt_oldest_s),
        ("copypool_damaged_locations", "Locations marked damaged.", status.damaged_locations),
        ("copypool_under_protected_extents", "Extents below policy.", status.under_protected_extents),
        (
            "copypool_unverified_bytes",
            "Bytes at policy, not read back everywhere; young ones too.",
            status.unverified_bytes,
        ),
        ("copypool_unavailable_files", "Files that cannot be read now.", status.unavailable_files),
        ("copypool_lost_files", "Files without any location.", status.lost_files),
        ("copypool_doubtful_files", "Files that only damaged locations reach.", status.doubtful_files),
        ("copypool_files", "Files stored, as of the last flush of the counters.", status.files),
        ("copypool_stored_bytes", "Bytes of files stored, as of the same.", status.bytes),
        ("copypool_brake", "1: re-replication is held.", float(bool(status.brake))),
        ("copypool_nodes_away", "Nodes without a session.", sum(node.state == "away" for node in status.nodes)),
        ("copypool_nodes_silent", "Nodes not heard lately.", sum(node.state == "silent" for node in status.nodes)),
        ("copypool_catalog_down", "1: etcd does not answer.", float(status.catalog_down)),
    )
    for name, text, value in plain:
        found += _gauge(name, text, [("", float(value))])
    pools = [(f'{{pool="{each.pool}"}}', each) for each in status.pools]
    found += _gauge(
        "copypool_pool_debt_bytes", "Bytes not in the pool yet.", [(at, each.debt_bytes) for at, each in pools]
    )
    found += _gauge(
        "copypool_pool_debt_records", "Records not in the pool yet.", [(at, each.debt_records) for at, each in pools]
    )
    found += _gauge(
        "copypool_pool_debt_oldest_seconds",
        "Age of the oldest byte not in the pool yet.",
        [(at, each.debt_oldest_s) for at, each in pools],
    )
    found += _gauge(
        "copypool_pool_damaged_locations", "Damaged locations.", [(at, each.damaged_locations) for at, each in pools]
    )
    found += _gauge(
        "copypool_pool_missing_locations", "Missing extent files.", [(at, each.missing_locations) for at, each in pools]
    )
    spaces = [
        (f'{{namespace_id="{namespace_ids[each.namespace]}"}}', each)
        for each in status.namespaces
        if each.namespace in namespace_ids
    ]
    found += _gauge(
        "copypool_namespace_debt_bytes",
        "Bytes of the namespace not copied yet, at most.",
        [(at, each.debt_bytes) for at, each in spaces],
    )
    found += _gauge(
        "copypool_namespace_debt_records",
        "Records of the namespace not copied yet, at most.",
        [(at, each.debt_records) for at, each in spaces],
    )
    found += _gauge(
        "copypool_namespace_debt_oldest_seconds",
        "Age of the oldest byte of the namespace that is not copied yet, at most.",
        [(at, each.debt_oldest_s) for at, each in spaces],
    )
    scrub = status.scrub
    if scrub is not None:
        found += _gauge("copypool_scrub_oldest_seconds", "Age of the oldest reading back.", [("", scrub.oldest_s)])
        found += _gauge("copypool_scrub_period_seconds", "Everything is read back within.", [("", scrub.period_s)])
        found += _gauge("copypool_scrub_bytes_per_second", "Read back lately.", [("", scrub.bytes_per_s)])
        found += _gauge("copypool_scrub_unread_extents", "Never read back.", [("", float(scrub.unread_extents))])
    return found


def _gauge(name: str, text: str, samples: Iterable[_Sample]) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} gauge", *(f"{name}{at} {value:g}" for at, value in samples)]
