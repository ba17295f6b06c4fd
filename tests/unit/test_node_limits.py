"""What an operator's settings do at a node: size limits of volumes, shares of a bandwidth budget."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from copypool.protocol.errors import NoSpace
from copypool_node.pacing import BURST_S, Pace
from copypool_node.space import SpaceLedger

MIB = 1024 * 1024


def test_a_size_limit_refuses_data_and_repair_and_takes_deletes() -> None:
    ledger = SpaceLedger("v", 0, 1000 * MIB, 2000 * MIB)
    ledger.limit_bytes, ledger.used_bytes = 10 * MIB, 9 * MIB
    ledger.admit(MIB, "data")
    for purpose in ("data", "repair"):
        with pytest.raises(NoSpace, match="limit"):
            ledger.admit(1, purpose)  # type: ignore[arg-type]
    ledger.admit(MIB, "tombstone")
    ledger.limit_bytes = 0
    ledger.admit(100 * MIB, "data")


@given(
    limit=st.integers(1, 1 << 30),
    used=st.integers(0, 1 << 31),
    free=st.integers(0, 1 << 32),
    sizes=st.lists(st.integers(0, 1 << 28), max_size=8),
)
def test_what_is_admitted_never_passes_the_limit_nor_the_disk(
    limit: int, used: int, free: int, sizes: list[int]
) -> None:
    ledger = SpaceLedger("v", 0, free, free)
    ledger.limit_bytes, ledger.used_bytes = limit, used
    admitted = 0
    for size in sizes:
        try:
            ledger.admit(size, "data")
        except NoSpace:
            continue
        admitted += size
    assert admitted == 0 or (used + admitted <= limit and admitted <= free)


def test_a_new_rate_holds_for_what_comes_next() -> None:
    now = [100.0]
    pace = Pace(0, lambda: now[0])
    assert pace.reserve(1 << 30) == 0.0, "no limit"
    pace.set_rate(MIB)
    now[0] += 10
    waits = [pace.reserve(MIB) for _ in range(4)]
    assert waits == pytest.approx([0.0, 1 - BURST_S, 2 - BURST_S, 3 - BURST_S])
    pace.set_rate(0)
    assert pace.reserve(1 << 30) == 0.0
