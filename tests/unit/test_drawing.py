"""The sample of a drill: complete, without repeats, the same for the same seed, and fair."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from copypool_coordinator.drawing import Cut, Stretch, drawn, turn

paths = st.text("abc", min_size=1, max_size=6)


def draw(
    files: dict[int, list[str]], fences: dict[int, list[str]], seed: int, count: int, *, everything: bool = False
) -> list[tuple[int, str]]:
    """Part after part, as a caller asks for them, until there are `count` or the directory has no more."""
    cut = Cut(fences, [*files])
    found: list[tuple[int, str]] = []
    part, left = 0, False
    while True:
        at = turn(cut, seed, part)
        stretch = at.stretch
        names = [
            (path, None)
            for path in sorted(files[stretch.namespace])
            if path > stretch.after and (stretch.last is None or path <= stretch.last)
        ]
        chosen, more = drawn(names, seed, at, cut.parts, count)
        found += [(stretch.namespace, path) for path, _ in chosen]
        left = left or more
        part += 1
        if len(found) >= count and not everything:
            return found[:count]
        if part % cut.parts == 0:
            if not left:
                return found
            left = False


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(st.integers(1, 3), st.lists(paths, unique=True, max_size=60), min_size=1),
    st.lists(paths, unique=True, max_size=5).map(sorted),
    st.integers(0, 1 << 62),
    st.integers(1, 100),
)
def test_every_file_is_drawn_once_wherever_the_fences_stand(
    files: dict[int, list[str]], fences: list[str], seed: int, count: int
) -> None:
    cuts = dict.fromkeys(files, fences)
    found = draw(files, cuts, seed, count, everything=True)
    assert sorted(found) == sorted((namespace, path) for namespace, names in files.items() for path in names)
    assert draw(files, cuts, seed, count, everything=True) == found


def test_stretches_cover_a_namespace_without_a_gap() -> None:
    cut = Cut({1: ["f", "m"]}, [2, 1])
    assert [cut.stretch(number) for number in range(cut.parts)] == [
        Stretch(1, "", "f"),
        Stretch(1, "f", "m"),
        Stretch(1, "m", None),
        Stretch(2, "", None),
    ]


def test_no_file_is_favoured() -> None:
    """Stretches of 2,000, 1,000 and 100 files: each file is among the first 300 about equally often."""
    files = {1: [f"{number:05}" for number in range(3_100)]}
    fences = {1: ["01999", "02999"]}
    hits: Counter[str] = Counter()
    for seed in range(60):
        for _, path in draw(files, fences, seed, 300):
            hits["long" if path <= "01999" else "middle" if path <= "02999" else "short"] += 1
    total = sum(hits.values())
    assert abs(hits["long"] / total - 2_000 / 3_100) < 0.08
    assert abs(hits["middle"] / total - 1_000 / 3_100) < 0.08
    assert abs(hits["short"] / total - 100 / 3_100) < 0.02
