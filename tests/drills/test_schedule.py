"""The faults of a soak come from its seed, and are within what policy promises to survive."""

from __future__ import annotations

from itertools import islice

import pytest

from drills.clocks import SLACK_S, LeaderStepped, Stepped
from drills.faults import Both, Fault, Killed, Paused, RollingRestart
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
def test_clocks_jump_both_ways_and_everything_is_restarted() -> None:
    """Also nodes' and coordinators', and the leader's; a step must be seen beside `SLACK_S`."""
    planned = list(islice(schedule(1), FAULTS))
    steps = [each.fault for each in planned if isinstance(each.fault, (Stepped, LeaderStepped))]
    assert {fault.ahead_s > 0 for fault in steps} == {True, False}
    assert all(abs(fault.ahead_s) > SLACK_S for fault in steps)
    assert {type(fault) for fault in steps} == {Stepped, LeaderStepped}
    assert any(isinstance(each.fault, RollingRestart) for each in planned)


@pytest.mark.short
def test_two_at_once_never_take_two_nodes() -> None:
    pairs = [planned.fault for planned in islice(schedule(1), FAULTS) if isinstance(planned.fault, Both)]
    assert pairs
    for pair in pairs:
        names = names_of(pair.first) + names_of(pair.second)
        assert len(names) == 2
        assert len(set(NODES).intersection(names)) <= 1
