"""The faults of a soak come from its seed, and are within what policy promises to survive."""

from __future__ import annotations

from itertools import islice

import pytest

from drills.faults import Both, Fault, Killed, Paused
from drills.schedule import NODES, schedule

FAULTS = 500


def names_of(fault: Fault) -> list[str]:
    match fault:
        case Killed(name):
            return [name]
        case Paused(names):
            return list(names)
        case _:
            return []


@pytest.mark.short
def test_a_seed_repeats_its_faults() -> None:
    one, other, third = (list(islice(schedule(seed), FAULTS)) for seed in (1, 1, 2))
    assert one == other
    assert one != third


@pytest.mark.short
def test_two_at_once_never_take_two_nodes() -> None:
    pairs = [planned.fault for planned in islice(schedule(1), FAULTS) if isinstance(planned.fault, Both)]
    assert pairs
    for pair in pairs:
        names = names_of(pair.first) + names_of(pair.second)
        assert len(names) == 2
        assert len(set(NODES).intersection(names)) <= 1
