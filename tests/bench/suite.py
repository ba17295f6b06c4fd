"""Which cases there are, in the order they run and stand in the table."""

from __future__ import annotations

from bench import copying, disk, failures, scale, small, streams, trees
from bench.frame import Case

SUITE: tuple[Case, ...] = (
    *disk.CASES,
    *small.CASES,
    *streams.CASES,
    *trees.CASES,
    *copying.CASES,
    *failures.CASES,
    *scale.CASES,
    *small.COPY_CASES,
    *streams.COPY_CASES,
)
