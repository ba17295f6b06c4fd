"""What this node counts, and the families of its page `/metrics`; `METRICS.md` is made from them. Plain numbers.

Gauges are asked for when the page is made: see `gauges`.
"""

from __future__ import annotations

from copypool.telemetry import certificates, process
from copypool.telemetry.metrics import SIZES, Family, Histogram, Page, Requests, one

_VOLUME = ("volume", "pool")

REQUESTS = Family("copypool_node_requests_total", "counter", "Answered requests.", ("route", "code"))
DURATION = Family(
    "copypool_node_request_duration_seconds",
    "histogram",
    "From a request's head to its answer's end.",
    ("route",),
)
GROUP = Family("copypool_node_group_records", "histogram", "Records that share one fsync and one commit.")
SYNC = Family("copypool_node_write_sync_seconds", "histogram", "One write and fsync: a group's, or a long body's last.")
COMMIT = Family("copypool_node_commit_seconds", "histogram", "One commit at the coordinators, repeats included.")
TWIN = Family("copypool_node_twin_seconds", "histogram", "One write here and at the twin, side by side (`ack copy`).")
PUT_BYTES = Family("copypool_node_put_bytes_total", "counter", "Payload stored for clients.")
GET_BYTES = Family("copypool_node_get_bytes_total", "counter", "Payload asked for by clients and coordinators.")
PULLED_BYTES = Family(
    "copypool_node_pulled_bytes_total",
    "counter",
    "Bytes received from other nodes: copies in copy pools, rebuilt primaries in primary pools.",
    ("pool", "pool_type"),
)
PULLS = Family("copypool_node_pulls_total", "counter", "Pulls of an extent that ended.", ("pool", "outcome"))
SERVED_BYTES = Family("copypool_node_served_pull_bytes_total", "counter", "Bytes sent to other nodes that pull.")
TWIN_BYTES = Family("copypool_node_twin_bytes_total", "counter", "Bytes appended to twins of other nodes' extents.")
TWINS_FAILED = Family("copypool_node_twins_failed_total", "counter", "Twins that failed or were too slow.")
SEALED = Family("copypool_node_extents_sealed_total", "counter", "Extents whose seal was written.")
VERIFIED = Family("copypool_node_verified_extents_total", "counter", "Extents read back and found good.")
DAMAGED = Family("copypool_node_damaged_extents_total", "counter", "Extents read back and found bad or missing.")

IN_WORK = Family("copypool_node_requests_in_work", "gauge", "Requests in work.")
SESSION = Family("copypool_node_session_alive", "gauge", "1: the node has a session with the coordinators.")
LEASE_MARGIN = Family(
    "copypool_node_lease_margin_seconds", "gauge", "What is left of the session if nothing renews it any more."
)
HOLDINGS = Family("copypool_node_holdings", "gauge", "Extent files on this node's mounted volumes.")
FILL = Family(
    "copypool_node_fill_ratio",
    "gauge",
    "Share of its limit that the fullest of a kind has taken.",
    ("bound",),
)
FREE = Family("copypool_node_volume_free_bytes", "gauge", "Room for new data: the reserve is taken off.", _VOLUME)
TOTAL = Family("copypool_node_volume_total_bytes", "gauge", "Size of the volume's file system.", _VOLUME)
RESERVE = Family("copypool_node_volume_reserve_bytes", "gauge", "Kept free for deletes and repair.", _VOLUME)
STORED = Family("copypool_node_volume_stored_bytes", "gauge", "Sizes of all extent files.", _VOLUME)
OPEN_EXTENTS = Family("copypool_node_volume_open_extents", "gauge", "Extents that take appends.", _VOLUME)
QUEUED = Family("copypool_node_volume_queued_bytes", "gauge", "Payload that waits for a group.", _VOLUME)
PROBE_AGE = Family(
    "copypool_node_volume_probe_age_seconds",
    "gauge",
    "Since the disk last took a write and an fsync.",
    _VOLUME,
)
WRITABLE = Family("copypool_node_volume_writable", "gauge", "1: the volume takes writes.", _VOLUME)
SAFE_MODE = Family(
    "copypool_node_volume_safe_mode",
    "gauge",
    "1: the catalog is older than the volume; it serves reads only.",
    _VOLUME,
)
UNKNOWN = Family(
    "copypool_node_volume_unknown_extents", "gauge", "Extent files that the catalog does not know.", _VOLUME
)
VERIFY_QUEUE = Family("copypool_node_volume_verify_queue", "gauge", "Locations that wait to be verified.", _VOLUME)
PULL_QUEUE = Family("copypool_node_volume_pull_queue", "gauge", "Pulls that run or wait.", _VOLUME)
PULL_LIMIT = Family(
    "copypool_node_volume_pull_limit_bytes_per_second",
    "gauge",
    "The volume's share of its pool's bandwidth budget; 0: pulls run as fast as they can.",
    _VOLUME,
)

#: Everything that the page may hold.
FAMILIES = (
    *(REQUESTS, DURATION, GROUP, SYNC, COMMIT, TWIN, PUT_BYTES, GET_BYTES, PULLED_BYTES, PULLS, SERVED_BYTES),
    *(TWIN_BYTES, TWINS_FAILED, SEALED, VERIFIED, DAMAGED, IN_WORK, SESSION, LEASE_MARGIN, HOLDINGS, FILL),
    *(FREE, TOTAL, RESERVE, STORED, OPEN_EXTENTS, QUEUED, PROBE_AGE, WRITABLE, SAFE_MODE, UNKNOWN),
    *(VERIFY_QUEUE, PULL_QUEUE, PULL_LIMIT),
    *certificates.FAMILIES,
    *process.FAMILIES,
)


class Metrics:
    """Everything that this process counts."""

    def __init__(self) -> None:
        self.requests = Requests()
        self.in_work = 0
        self.group_records = Histogram(SIZES)
        self.write_sync_s = Histogram()
        self.commit_s = Histogram()
        self.twin_s = Histogram()
        self.put_bytes = 0
        self.get_bytes = 0
        self.pulled_bytes: dict[tuple[str, str], int] = {}  #: by pool and its type
        self.pulls: dict[tuple[str, str], int] = {}  #: by pool and outcome
        self.served_pull_bytes = 0
        self.twin_bytes = 0
        self.twins_failed = 0
        self.errors: dict[str, int] = {}  #: answered ones, by code
        self.extents_sealed = 0
        self.verified_extents = 0
        self.damaged_extents = 0

    def count_error(self, code: str) -> None:
        """One request was answered with this error code."""
        self.errors[code] = self.errors.get(code, 0) + 1

    def count_pulled(self, pool: str, pool_type: str, size_bytes: int) -> None:
        """Bytes of a pull have arrived."""
        self.pulled_bytes[pool, pool_type] = self.pulled_bytes.get((pool, pool_type), 0) + size_bytes

    def count_pull(self, pool: str, outcome: str) -> None:
        """A pull ended: "done", "ended" (not wanted any more) or "failed"."""
        self.pulls[pool, outcome] = self.pulls.get((pool, outcome), 0) + 1

    def page(self) -> Page:
        """What was counted."""
        return (
            (REQUESTS, self.requests.totals()),
            (DURATION, self.requests.durations()),
            (GROUP, one(self.group_records)),
            (SYNC, one(self.write_sync_s)),
            (COMMIT, one(self.commit_s)),
            (TWIN, one(self.twin_s)),
            (PUT_BYTES, one(self.put_bytes)),
            (GET_BYTES, one(self.get_bytes)),
            (PULLED_BYTES, sorted(self.pulled_bytes.items())),
            (PULLS, sorted(self.pulls.items())),
            (SERVED_BYTES, one(self.served_pull_bytes)),
            (TWIN_BYTES, one(self.twin_bytes)),
            (TWINS_FAILED, one(self.twins_failed)),
            (SEALED, one(self.extents_sealed)),
            (VERIFIED, one(self.verified_extents)),
            (DAMAGED, one(self.damaged_extents)),
            (IN_WORK, one(self.in_work)),
        )
