"""Counters and histograms of this node, in Prometheus' text format. Plain numbers: no locks, one event loop."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping

_BUCKETS_MS = (0.5, 1, 2, 5, 10, 20, 50, 100, 250, 1000, 5000)
_BUCKETS_RECORDS = (1, 2, 4, 8, 16, 32, 64, 128)


class Histogram:
    """Counts of observations per bucket, their sum and number."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Add one observation."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def total(self) -> int:
        """How many observations there were."""
        return sum(self._counts)

    def lines(self, name: str) -> Iterable[str]:
        """Text format."""
        total = 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self._sum}"
        yield f"{name}_count {total}"


class Metrics:
    """Everything that this process counts; gauges are asked for when the page is made."""

    def __init__(self) -> None:
        self.group_records = Histogram(_BUCKETS_RECORDS)
        self.write_sync_ms = Histogram(_BUCKETS_MS)
        self.commit_ms = Histogram(_BUCKETS_MS)
        self.twin_ms = Histogram(_BUCKETS_MS)
        self.put_bytes = 0
        self.get_bytes = 0
        self.pulled_bytes = 0
        self.served_pull_bytes = 0
        self.twin_bytes = 0
        self.twins_failed = 0
        self.errors: dict[str, int] = {}
        self.requests: dict[str, int] = {}
        self.extents_sealed = 0
        self.verified_extents = 0
        self.damaged_extents = 0

    def count_error(self, code: str) -> None:
        """One request was answered with this error code."""
        self.errors[code] = self.errors.get(code, 0) + 1

    def count_request(self, kind: str) -> None:
        """One request of this kind came in."""
        self.requests[kind] = self.requests.get(kind, 0) + 1

    def render(self, gauges: Callable[[], Mapping[str, float]]) -> str:
        """The page `/metrics`."""
        lines: list[str] = []
        for name, histogram in (
            ("copypool_node_group_records", self.group_records),
            ("copypool_node_write_sync_ms", self.write_sync_ms),
            ("copypool_node_commit_ms", self.commit_ms),
            ("copypool_node_twin_ms", self.twin_ms),
        ):
            lines.append(f"# TYPE {name} histogram")
            lines += histogram.lines(name)
        for name in (
            "put_bytes",
            "get_bytes",
            "pulled_bytes",
            "served_pull_bytes",
            "twin_bytes",
            "twins_failed",
            "extents_sealed",
            "verified_extents",
            "damaged_extents",
        ):
            lines.append(f"# TYPE copypool_node_{name}_total counter")
            lines.append(f"copypool_node_{name}_total {getattr(self, name)}")
        for name, label, values in (
            ("copypool_node_errors_total", "code", self.errors),
            ("copypool_node_requests_total", "kind", self.requests),
        ):
            lines.append(f"# TYPE {name} counter")
            lines += [f'{name}{{{label}="{key}"}} {count}' for key, count in sorted(values.items())]
        previous = ""
        for name, value in gauges().items():
            base = name.partition("{")[0]
            if base != previous:
                lines.append(f"# TYPE copypool_node_{base} gauge")
                previous = base
            lines.append(f"copypool_node_{name} {value}")
        return "\n".join(lines) + "\n"
