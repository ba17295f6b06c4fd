"""A few counters in Prometheus' text form. Labels are route names and codes, never paths, namespaces or tokens."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


class Histogram:
    """Cumulative buckets, sum and count."""

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._text = text
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self) -> Iterable[str]:
        """Text form."""
        yield f"# HELP {self._name} {self._text}"
        yield f"# TYPE {self._name} histogram"
        total = 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            label = "+Inf" if bound == float("inf") else f"{bound:g}"
            yield f'{self._name}_bucket{{le="{label}"}} {total}'
        yield f"{self._name}_sum {self._sum:.6f}"
        yield f"{self._name}_count {total}"


class Metrics:
    """What this process counts. Writing is an addition; `text` is asked for by /metrics alone."""

    def __init__(self) -> None:
        self.requests: dict[tuple[str, int], int] = {}
        self.lookup_batch = Histogram("copypool_lookup_batch_files", "Files per directory transaction.", _SIZES)
        self.commit_seconds = Histogram("copypool_commit_seconds", "Time of one group commit in the catalog.", _SECONDS)
        self.fallbacks = 0  #: small reads that another location than the first one served
        self.digest_mismatches = 0  #: payloads that arrived here with another digest than their row's

    def count(self, route: str, status: int) -> None:
        """One answered request."""
        key = (route, status)
        self.requests[key] = self.requests.get(key, 0) + 1

    def text(self, gauges: Iterable[tuple[str, str, float]]) -> str:
        """The whole page; `gauges` are (name, help, value)."""
        lines = ["# HELP copypool_requests_total Answered requests.", "# TYPE copypool_requests_total counter"]
        for (route, status), count in sorted(self.requests.items()):
            lines.append(f'copypool_requests_total{{route="{route}",status="{status}"}} {count}')
        lines += self.lookup_batch.lines()
        lines += self.commit_seconds.lines()
        for name, text, value in (
            ("copypool_read_fallbacks_total", "Small reads served by another than the first location.", self.fallbacks),
            ("copypool_digest_mismatches_total", "Payloads that arrived with a wrong digest.", self.digest_mismatches),
        ):
            lines += [f"# HELP {name} {text}", f"# TYPE {name} counter", f"{name} {value}"]
        for name, text, gauge in gauges:
            lines += [f"# HELP {name} {text}", f"# TYPE {name} gauge", f"{name} {gauge:g}"]
        return "\n".join(lines) + "\n"
