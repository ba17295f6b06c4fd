"""Which cases there are, in the order they run and stand in the table."""

from __future__ import annotations

from bench import disk, small, streams, trees
from bench.frame import Case

SUITE: tuple[Case, ...] = (
    *disk.CASES,
    *small.CASES,
    *streams.CASES,
    *trees.CASES,
    *small.COPY_CASES,
    *streams.COPY_CASES,
)
