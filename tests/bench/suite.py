"""Which cases there are, in the order they run and stand in the table."""

from __future__ import annotations

from bench import small, streams, trees
from bench.frame import Case

SUITE: tuple[Case, ...] = (
    *small.CASES,
    *streams.CASES,
    *trees.CASES,
)
