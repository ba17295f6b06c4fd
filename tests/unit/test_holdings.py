"""Which file of an extent is read: a damaged one stays of use while its replacement grows (A15)."""

from __future__ import annotations

from typing import cast

import pytest

from copypool_node.extent_file import ExtentFile
from copypool_node.holdings import Holding, Holdings
from copypool_node.volumes import MountedVolume

E = 7
ONE, OTHER = cast(MountedVolume, object()), cast(MountedVolume, object())


def holding(volume: MountedVolume, generation: int, length: int, *, damaged: bool = False) -> Holding:
    return Holding(volume, cast(ExtentFile, None), E, generation, length, damaged=damaged)


def test_a_damaged_file_stays_until_it_is_dropped_while_its_replacement_grows_beside_it() -> None:
    holdings = Holdings()
    damaged = holdings.add(holding(ONE, 1, 100, damaged=True))
    fresh = holdings.add(holding(ONE, 2, 0))
    assert holdings.covering(E, 100) == [damaged]
    assert holdings.find(E, ONE, 1) is damaged
    fresh.length = 100
    assert holdings.covering(E, 100) == [fresh, damaged]
    holdings.remove(damaged)
    assert holdings.covering(E, 100) == [fresh]


def test_the_same_file_is_indexed_once() -> None:
    holdings = Holdings()
    holdings.add(holding(ONE, 1, 50))
    again = holdings.add(holding(ONE, 1, 60))
    assert list(holdings) == [again]


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [(0, 100, "damaged"), (0, 40, "fresh"), (40, 100, "damaged"), (90, 200, "damaged"), (100, 200, None)],
)
def test_who_pulls_is_given_the_file_that_has_the_bytes(start: int, stop: int, expected: str | None) -> None:
    holdings = Holdings()
    named = {
        "damaged": holdings.add(holding(ONE, 1, 100, damaged=True)),
        "fresh": holdings.add(holding(ONE, 2, 40)),
        None: None,
    }
    assert holdings.source(E, start, stop) is named[expected]
    assert holdings.longest(E) == 100


def test_among_files_that_have_the_bytes_a_sound_one_is_best() -> None:
    holdings = Holdings()
    holdings.add(holding(ONE, 1, 100, damaged=True))
    sound = holdings.add(holding(OTHER, 1, 100))
    assert holdings.source(E, 0, 100) is sound
    assert holdings.source(E + 1, 0, 100) is None
    assert holdings.longest(E + 1) == 0
