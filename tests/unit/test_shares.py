"""What each namespace has in an extent: kept by commits, carried through the seal, bounded."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from copypool_coordinator import locations
from copypool_coordinator.locations import OTHERS, SHARES_MAX, shares_of, with_shares
from copypool_coordinator.rows import FORMAT, OpenRow, Share

groups = st.lists(
    st.dictionaries(st.integers(1, 12), st.tuples(st.integers(1, 5), st.integers(0, 100)), min_size=1, max_size=5),
    max_size=20,
)


@given(groups)
def test_shares_add_up_and_never_understate_where_a_namespace_ends(put: list[dict[int, tuple[int, int]]]) -> None:
    shares: list[Share] = []
    records: Counter[int] = Counter()
    ends: dict[int, int] = {}
    for number, group in enumerate(put, start=1):
        shares = with_shares(shares, group, number * 100)
        for namespace, (count, _) in group.items():
            records[namespace] += count
            ends[namespace] = number * 100
    by_name = {share.namespace: share for share in shares}
    assert len(by_name) == len(shares) <= SHARES_MAX + 1
    assert sum(share.records for share in shares) == sum(records.values())
    for namespace, end in ends.items():
        share = by_name.get(namespace) or by_name[OTHERS]
        assert share.end >= end, "a debt of this namespace would be hidden"
        if namespace in by_name:
            assert share.records == records[namespace]


def test_a_row_of_an_older_version_counts_as_anybodys() -> None:
    old = OpenRow(FORMAT, 5000, 3, 7, 900, 0)
    assert shares_of(old) == [Share(OTHERS, 5000, 7, 900)]
    assert shares_of(OpenRow(FORMAT, 4096, -1, 0, 0, 0)) == []


def test_the_seal_keeps_them() -> None:
    row, opened = locations.opened(1, 1, 1, 1, 0)
    grown = locations.next_open(
        opened, length=9000, group=0, records=2, payload_bytes=50, noted=[], refused=[], copied_length=0, now_ms=5,
        put={3: (2, 50)},
    )  # fmt: skip
    assert locations.sealed(row, grown, 6).shares == [Share(3, 9000, 2, 50)]
