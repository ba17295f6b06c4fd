"""The coordinator as it stands, for `/metrics`: leadership, the catalog in memory, how full what is bounded is."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from copypool.telemetry.metrics import Page, by_label, one
from copypool_coordinator import metrics, protection_metrics
from copypool_coordinator.windows import window_state

if TYPE_CHECKING:
    from collections.abc import Mapping

    from copypool_coordinator.catalog import Catalog
    from copypool_coordinator.leader import Leader
    from copypool_coordinator.overview import Overview


def process_page(in_work: int, fills: Mapping[str, float], kept_bytes: int) -> Page:
    """What there is from the first moment. `fills`: bound -> share of its limit."""
    return (metrics.IN_WORK, one(in_work)), (metrics.FILL, by_label(fills)), (metrics.KEPT_BYTES, one(kept_bytes))


def catalog_page(catalog: Catalog) -> Page:
    """What memory holds of the catalog, from memory."""
    view = catalog.view
    yield metrics.MIRROR_REVISION, one(view.revision)
    yield metrics.MIRROR_AGE, one(time.monotonic() - catalog.heard_s)
    now_ms = catalog.now_ms()
    windows = {
        name: float(window_state(pool.row.window, pool.row.window_s, now_ms).open)
        for name, pool in view.pools.items()
        if pool.row.type == "copy"
    }
    yield from protection_metrics.catalog_page(len(view.extents), len(view.sessions), windows, down=bool(catalog.away))


def leader_page(leader: Leader) -> Page:
    """Whether this coordinator leads, and for how long without a renewal."""
    leads = leader.guard is not None
    margin_s = leader.believed_until_s - time.monotonic() if leads else 0.0
    return (metrics.LEADS, one(leads)), (metrics.LEASE_MARGIN, one(max(0.0, margin_s)))


def etcd_page(overview: Overview, quota_bytes: int) -> Page:
    """Size of etcd, and when it will be full."""
    size = overview.etcd
    if not size.members:
        return ()
    return protection_metrics.etcd_page(size, quota_bytes, overview.growth.days_to(quota_bytes, size.db_bytes))
