"""Prometheus' text format (version 0.0.4), and the few things that fill it. Pure: no locks, one event loop, no I/O.

A process declares its families once, as constants; its page pairs each with samples at the moment of a scrape. So the
page, the reference (`METRICS.md`) and the alert rules can be held against one list. Counters are plain numbers of
whoever counts: an addition on the hot path, nothing else.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind = Literal["counter", "gauge", "histogram"]

#: Content type of the page.
TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"

#: From a fast fsync to a hung disk or a long stream.
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: its name ends with its unit (`_seconds`, `_bytes`, `_ratio`), a counter's with `_total`.

    Values of labels are of a bounded set: routes, codes, names of pools and volumes; never paths or tokens.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


class Histogram:
    """Counts of observations per bucket, and their sum."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Add one observation."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def total(self) -> int:
        """How many observations there were."""
        return sum(self._counts)

    def lines(self, name: str, labels: str) -> Iterator[str]:
        """Text form; `labels` is `a="b"` pairs without braces, or ""."""
        total = 0
        head = f"{labels}," if labels else ""
        for bound, count in zip((*self._bounds, math.inf), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{{head}le="{_number(bound)}"}} {total}'
        braces = f"{{{labels}}}" if labels else ""
        yield f"{name}_sum{braces} {_number(self._sum)}"
        yield f"{name}_count{braces} {total}"


Sample: TypeAlias = tuple[tuple[str, ...], "float | Histogram"]  #: values of the labels, value
Page: TypeAlias = Iterable[tuple[Family, Iterable[Sample]]]


class Requests:
    """Rate, errors and duration per route. `route` and `code` must come from bounded sets."""

    __slots__ = ("_routes",)

    def __init__(self) -> None:
        self._routes: dict[str, tuple[dict[str, int], Histogram]] = {}

    def count(self, route: str, code: str, took_s: float) -> None:
        """One request was answered, "ok" or with this error code, after `took_s`."""
        entry = self._routes.get(route)
        if entry is None:
            entry = self._routes[route] = ({}, Histogram())
        codes, durations = entry
        codes[code] = codes.get(code, 0) + 1
        durations.observe(took_s)

    def answered(self, code: str) -> int:
        """How many requests were answered with this code, over all routes."""
        return sum(codes.get(code, 0) for codes, _ in self._routes.values())

    def totals(self) -> Iterator[Sample]:
        """Samples with the labels route, code."""
        for route, (codes, _) in sorted(self._routes.items()):
            for code, count in sorted(codes.items()):
                yield (route, code), count

    def durations(self) -> Iterator[Sample]:
        """Samples with the label route."""
        for route, (_, durations) in sorted(self._routes.items()):
            yield (route,), durations


def one(value: float | Histogram) -> Sequence[Sample]:
    """The samples of a family without labels."""
    return (((), value),)


def by_label(values: Mapping[str, float]) -> Sequence[Sample]:
    """The samples of a family with one label."""
    return [((label,), value) for label, value in sorted(values.items())]


def render(page: Page) -> str:
    """The whole page. A family without samples is declared all the same, so that rules can name it."""
    lines: list[str] = []
    for family, samples in page:
        lines += (f"# HELP {family.name} {_help(family.help)}", f"# TYPE {family.name} {family.kind}")
        for values, value in samples:
            labels = ",".join(f'{label}="{_escaped(text)}"' for label, text in zip(family.labels, values, strict=True))
            if isinstance(value, Histogram):
                lines += value.lines(family.name, labels)
            else:
                lines.append(
                    f"{family.name}{{{labels}}} {_number(value)}" if labels else f"{family.name} {_number(value)}"
                )
    lines.append("")
    return "\n".join(lines)


def reference(families: Iterable[Family]) -> str:
    """The table of a `METRICS.md`."""
    lines = ["| name | type | labels | unit | meaning |", "|---|---|---|---|---|"]
    for family in sorted(families, key=lambda each: each.name):
        labels = ", ".join(f"`{label}`" for label in family.labels)
        lines.append(f"| `{family.name}` | {family.kind} | {labels} | {unit_of(family)} | {family.help} |")
    return "\n".join(lines) + "\n"


def unit_of(family: Family) -> str:
    """The unit, as the name says it; "" for plain numbers."""
    name = family.name.removesuffix("_total")
    for unit in ("bytes_per_second", "seconds", "bytes", "ratio", "days", "records", "files"):
        if name.endswith(f"_{unit}"):
            return unit.replace("_per_", "/")
    return ""


def _number(value: float) -> str:
    if value == math.inf:
        return "+Inf"
    return str(int(value)) if value == int(value) else repr(float(value))


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _help(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")
