"""The scrub is fast enough for its deadline, within its bounds, and tells how old the oldest reading is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from copypool_coordinator.controllers.actions import Verify
from copypool_coordinator.policy import Policy
from copypool_coordinator.rows import FORMAT, ExtentRow, Location
from copypool_coordinator.scrubbing import ScrubLedger, due_after_ms, pause_ms, rate_bytes_per_s
from kit.toy_cluster import MIB, ToyCluster

DAY_MS = 86_400_000


@given(st.integers(0, 1 << 45), st.integers(1, 64))
def test_all_that_falls_due_at_once_is_read_before_the_period_ends(stored: int, extent_mib: int) -> None:
    policy = Policy(scrub_bytes_per_s=1 << 40)
    extents = max(1, stored // (extent_mib * MIB))
    took_ms = extents * pause_ms(policy, stored, extent_mib * MIB)
    assert due_after_ms(policy) + took_ms <= policy.scrub_period_ms


def test_the_rate_has_a_floor_and_a_ceiling() -> None:
    policy = Policy()
    assert rate_bytes_per_s(policy, 0) == policy.scrub_floor_bytes_per_s
    assert rate_bytes_per_s(policy, 1 << 60) == policy.scrub_bytes_per_s
    assert policy.scrub_floor_bytes_per_s < rate_bytes_per_s(policy, 4 << 40) < policy.scrub_bytes_per_s


def extent(*verified_ms: int, length: int = 10 * MIB) -> ExtentRow:
    locations = [Location(number, 1, "good", length, 5, at_ms) for number, at_ms in enumerate(verified_ms, start=1)]
    return ExtentRow(FORMAT, 1, False, 1, 1, 1, 0, locations, length=length)


def test_the_ledger_shows_the_oldest_location_of_all() -> None:
    policy, now_ms = Policy(), 100 * DAY_MS
    ledger = ScrubLedger()
    ledger.note(1, extent(now_ms - DAY_MS, now_ms - 9 * DAY_MS), policy, now_ms)
    ledger.note(2, extent(now_ms - 3 * DAY_MS), policy, now_ms)
    ledger.note(3, extent(0, now_ms), policy, now_ms)
    found = ledger.progress(policy, now_ms)
    assert found.unread_extents == 1
    assert found.oldest_s / 86_400 == pytest.approx(9, abs=0.1)
    ledger.note(1, extent(now_ms - DAY_MS, now_ms - DAY_MS), policy, now_ms)
    assert ledger.progress(policy, now_ms).oldest_s / 86_400 == pytest.approx(3, abs=0.1)
    ledger.note(2, None, policy, now_ms)
    ledger.note(3, extent(now_ms, now_ms), policy, now_ms)
    assert ledger.progress(policy, now_ms).oldest_s / 86_400 == pytest.approx(1, abs=0.1)


def test_the_ledger_shows_the_speed_and_counts_each_reading_once() -> None:
    policy, now_ms = Policy(), 100 * DAY_MS
    ledger = ScrubLedger()
    for _ in range(3):
        ledger.note(1, extent(now_ms - 1_000, now_ms - 2_000), policy, now_ms)
    assert ledger.progress(policy, now_ms).bytes_per_s == 20 * MIB / 300
    assert ledger.progress(policy, now_ms + 600_000).bytes_per_s == 0


def test_the_plan_paces_what_was_read_before_and_not_what_is_new() -> None:
    cluster = ToyCluster()
    cluster.open_extent(7, writer=1, length=MIB)
    cluster.settle()
    cluster.seal(7)
    cluster.wait(cluster.policy.first_verify_delay_ms)
    first = [action for action in cluster.plan() if isinstance(action, Verify)]
    assert [action.pause_ms for action in first] == [0] * len(first) != []
    cluster.settle()
    cluster.wait(due_after_ms(cluster.policy) - 60_000)
    assert not any(isinstance(action, Verify) for action in cluster.plan())
    cluster.wait(120_000)
    again = [action for action in cluster.plan() if isinstance(action, Verify)]
    assert [action.pause_ms for action in again] == [1_000, 1_000], "1 MiB at the floor of 1 MiB/s, on two volumes"
