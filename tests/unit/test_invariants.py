"""Each invariant of the design is named where the code keeps it, and by the tests that try to break it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("client/copypool", "node/copypool_node", "coordinator/copypool_coordinator")

INVARIANTS = {
    1: "acked means durable: fsync'd where the receipt says and committed by a quorum before the ack",
    2: "an offset is written once; a location is a verified, fsync'd prefix of the truth",
    3: "no byte is delivered that was not checked",
    4: "a fenced node, an old epoch, an old leader term changes nothing",
    5: "the last good location of a live byte is never deleted",
    6: "no background job lowers protection, even for a moment",
    7: "every job can be killed and resumed; a client's write is applied once",
    8: "green is proven",
    9: "everything is bounded",
}

_NAMED = re.compile(r"invariants?((?:\s+|,\s*|\s+and\s+)\d)+", re.IGNORECASE)


def named_in(folder: Path) -> dict[int, list[str]]:
    """Invariant -> files that name it."""
    found: dict[int, list[str]] = {number: [] for number in INVARIANTS}
    for path in sorted(folder.rglob("*.py")):
        if path == Path(__file__):
            continue
        for match in _NAMED.finditer(path.read_text()):
            for number in re.findall(r"\d", match[0]):
                found[int(number)].append(str(path.relative_to(ROOT)))
    return found


@pytest.mark.parametrize("number", INVARIANTS)
def test_the_code_names_it_where_it_keeps_it(number: int) -> None:
    places = [place for source in SOURCES for place in named_in(ROOT / source)[number]]
    assert places, f"no source names invariant {number}: {INVARIANTS[number]}"


@pytest.mark.parametrize("number", INVARIANTS)
def test_tests_name_it_where_they_attack_it(number: int) -> None:
    places = [place for place in named_in(ROOT / "tests")[number] if "/kit/" not in place]
    assert places, f"no test names invariant {number}: {INVARIANTS[number]}"
