"""What this coordinator counts, and all families of its page `/metrics`; `METRICS.md` is made from them.

`copypool_coordinator_*` is about this process, `copypool_*` (see `protection_metrics`) about the cluster, the same on
every coordinator. Labels are routes, codes, pools and ids, never paths, names of namespaces or tokens.
"""

from __future__ import annotations

from copypool.telemetry import certificates, process
from copypool.telemetry.metrics import SIZES, Family, Histogram, Page, Requests, one
from copypool_coordinator import protection_metrics

REQUESTS = Family("copypool_coordinator_requests_total", "counter", "Answered requests.", ("route", "code"))
DURATION = Family(
    "copypool_coordinator_request_duration_seconds",
    "histogram",
    "From a request's head to its answer's end.",
    ("route",),
)
LOOKUP = Family("copypool_coordinator_lookup_batch_files", "histogram", "Files per directory transaction.", ())
COMMIT = Family("copypool_coordinator_commit_seconds", "histogram", "One group commit in the catalog.")
PASS = Family("copypool_coordinator_pass_seconds", "histogram", "One look and plan of the controllers, while it leads.")
FALLBACKS = Family(
    "copypool_coordinator_read_fallbacks_total", "counter", "Small reads served by another than the first location."
)
MISMATCHES = Family(
    "copypool_coordinator_digest_mismatches_total", "counter", "Payloads that arrived here with a wrong digest."
)
KEPT_READS = Family(
    "copypool_coordinator_kept_reads_total", "counter", "Small files answered with content that memory still held."
)
KEPT_BYTES = Family("copypool_coordinator_kept_bytes", "gauge", "Memory that the content of small files takes.")
STEPS = Family(
    "copypool_coordinator_steps_total",
    "counter",
    "Steps of the controllers that ended, while this coordinator led: Pull, Reserve, Verify, SealExtent, ...",
    ("step", "outcome"),
)
REPAIRS_STARTED = Family(
    "copypool_coordinator_repairs_started_total", "counter", "Locations begun to be made again elsewhere."
)
REPAIRED = Family("copypool_coordinator_repaired_extents_total", "counter", "Locations that are whole again.")
REPAIRED_BYTES = Family("copypool_coordinator_repaired_bytes_total", "counter", "Bytes of these.")

IN_WORK = Family("copypool_coordinator_requests_in_work", "gauge", "Requests in work.")
FILL = Family(
    "copypool_coordinator_fill_ratio", "gauge", "Share of its limit that the fullest of a kind has taken.", ("bound",)
)
MIRROR_REVISION = Family("copypool_coordinator_mirror_revision", "gauge", "Revision of etcd that memory shows.")
MIRROR_AGE = Family("copypool_coordinator_mirror_age_seconds", "gauge", "Since the last event of the mirror of etcd.")
LEADS = Family("copypool_coordinator_leader", "gauge", "1: this coordinator leads.")
LEASE_MARGIN = Family(
    "copypool_coordinator_lease_margin_seconds",
    "gauge",
    "How long a leader leads without a renewal.",
)

#: Everything that the page may hold.
FAMILIES = (
    *(
        REQUESTS,
        DURATION,
        LOOKUP,
        COMMIT,
        PASS,
        FALLBACKS,
        MISMATCHES,
        KEPT_READS,
        KEPT_BYTES,
        STEPS,
        REPAIRS_STARTED,
        REPAIRED,
        REPAIRED_BYTES,
    ),
    *(IN_WORK, FILL, MIRROR_REVISION, MIRROR_AGE, LEADS, LEASE_MARGIN),
    *protection_metrics.FAMILIES,
    *certificates.FAMILIES,
    *process.FAMILIES,
)


class Metrics:
    """What this process counts. Writing is an addition; `page` is asked for by /metrics alone."""

    def __init__(self) -> None:
        self.requests = Requests()
        self.lookup_batch = Histogram(SIZES)
        self.commit_seconds = Histogram()
        self.pass_seconds = Histogram()  #: of the controllers, requests that had their turn meanwhile included
        self.fallbacks = 0  #: small reads that another location than the first one served
        self.digest_mismatches = 0  #: payloads that arrived here with another digest than their row's
        self.kept_reads = 0  #: small files whose content was in memory
        self.steps: dict[tuple[str, str], int] = {}  #: by step and outcome, "done" or an error's code
        self.repairs_started = 0
        self.repaired = 0
        self.repaired_bytes = 0

    def count_step(self, step: str, outcome: str) -> None:
        """A step of the controllers ended."""
        self.steps[step, outcome] = self.steps.get((step, outcome), 0) + 1

    def page(self) -> Page:
        """What was counted."""
        return (
            (REQUESTS, self.requests.totals()),
            (DURATION, self.requests.durations()),
            (LOOKUP, one(self.lookup_batch)),
            (COMMIT, one(self.commit_seconds)),
            (PASS, one(self.pass_seconds)),
            (FALLBACKS, one(self.fallbacks)),
            (MISMATCHES, one(self.digest_mismatches)),
            (KEPT_READS, one(self.kept_reads)),
            (STEPS, sorted(self.steps.items())),
            (REPAIRS_STARTED, one(self.repairs_started)),
            (REPAIRED, one(self.repaired)),
            (REPAIRED_BYTES, one(self.repaired_bytes)),
        )
