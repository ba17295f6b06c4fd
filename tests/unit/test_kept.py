"""What is kept of small files is bounded, and is what the digest says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from copypool_coordinator.kept import ENTRY_MAX_BYTES, Kept


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def test_what_was_used_longest_ago_makes_room() -> None:
    kept = Kept(2 * 1300)
    kept.add(key(1), b"1" * 1000)
    kept.add(key(2), b"2" * 1000)
    assert kept.get(key(1)) == b"1" * 1000
    kept.add(key(3), b"3" * 1000)
    assert (kept.get(key(1)), kept.get(key(2)), kept.get(key(3))) == (b"1" * 1000, None, b"3" * 1000)


def test_long_files_and_a_cache_of_nothing_hold_nothing() -> None:
    kept = Kept(10 * ENTRY_MAX_BYTES)
    kept.add(key(1), bytes(ENTRY_MAX_BYTES + 1))
    assert kept.get(key(1)) is None
    none = Kept(0)
    none.add(key(1), b"")
    assert none.get(key(1)) is None


@given(
    st.integers(0, 5000),
    st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=60),
)
def test_it_is_bounded_and_never_gives_other_bytes(max_bytes: int, steps: list[tuple[bool, int]]) -> None:
    kept = Kept(max_bytes)
    for adds, number in steps:
        if adds:
            kept.add(key(number), bytes([number]) * (number * 150))
        assert kept.get(key(number)) in (None, bytes([number]) * (number * 150))
        assert 0 <= kept.size_bytes <= max_bytes
