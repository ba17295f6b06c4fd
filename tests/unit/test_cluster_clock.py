"""Cluster time over coordinators whose wall clocks differ, and jump."""

from __future__ import annotations

from copypool_coordinator.clock import AGREE_MS, BACK_MS, ROWS, STEER_RATIO, ClusterClock

HOUR_MS = 3_600_000
SECOND_MS = 1_000
TERM = 7


class Machine:
    """A machine's clocks, turned by hand: a wall clock that may be wrong, and one that only goes on."""

    def __init__(self, wall_ms: int) -> None:
        self.wall_ms = wall_ms
        self.steady_ms = 123_456
        self.clock = ClusterClock(lambda: self.wall_ms, lambda: self.steady_ms)

    def passes(self, time_ms: int) -> None:
        self.wall_ms += time_ms
        self.steady_ms += time_ms


def following(at_ms: int) -> Machine:
    """A coordinator whose clock is right, and that follows a leader."""
    machine = Machine(at_ms)
    machine.clock.found(at_ms - SECOND_MS)
    machine.clock.heard(at_ms, TERM)
    return machine


def leading(at_ms: int) -> Machine:
    """A coordinator that leads after another one did."""
    machine = following(at_ms)
    assert machine.clock.to_write_ms(TERM + 1) == at_ms
    return machine


def second_of(leader: Machine, follower: Machine) -> None:
    """A second goes by; the leader writes and the other one hears it."""
    for machine in (leader, follower):
        machine.passes(SECOND_MS)
    follower.clock.heard(leader.clock.to_write_ms(TERM + 1), TERM + 1)


# -- steps of a wall clock ------------------------------------------------------------------------
def test_a_step_of_the_wall_clock_between_two_rows_is_not_told_to_anybody() -> None:
    for step_ms in (HOUR_MS, -HOUR_MS):
        machine = following(9 * HOUR_MS)
        machine.wall_ms += step_ms
        assert machine.clock.now_ms() == 9 * HOUR_MS
        machine.passes(500)
        assert machine.clock.now_ms() == 9 * HOUR_MS + 500


def test_a_leader_whose_wall_clock_is_stepped_does_not_take_the_cluster_with_it() -> None:
    for step_ms in (HOUR_MS, -HOUR_MS):
        leader, follower = leading(9 * HOUR_MS), following(9 * HOUR_MS)
        leader.wall_ms += step_ms
        for second in range(1, 61):
            second_of(leader, follower)
            right_ms = 9 * HOUR_MS + second * SECOND_MS
            for machine in (leader, follower):
                assert abs(machine.clock.now_ms() - right_ms) <= second * SECOND_MS * STEER_RATIO


def test_cluster_time_comes_to_the_leader_s_wall_clock_slowly_and_stops_there() -> None:
    for error_ms in (3 * SECOND_MS, -3 * SECOND_MS):
        leader = leading(9 * HOUR_MS)
        leader.wall_ms += error_ms
        before_ms = leader.clock.now_ms()
        for second in range(600):
            leader.passes(SECOND_MS)
            assert leader.clock.to_write_ms(TERM + 1) > before_ms, "it never goes back"
            before_ms = leader.clock.now_ms()
            if second == 100:
                assert leader.wall_ms != before_ms
        assert leader.wall_ms == before_ms


def test_a_leader_that_slept_is_steered_for_a_bounded_time() -> None:
    leader = leading(9 * HOUR_MS)
    leader.wall_ms += HOUR_MS
    leader.passes(HOUR_MS)
    assert leader.clock.to_write_ms(TERM + 1) - 10 * HOUR_MS <= 100


# -- who knows the time ---------------------------------------------------------------------------
def test_a_clock_that_is_far_from_the_catalog_s_is_not_told_before_a_leader_was_heard() -> None:
    for error_ms in (HOUR_MS, -HOUR_MS):
        machine = Machine(9 * HOUR_MS + error_ms)
        assert not machine.clock.known
        machine.clock.found(9 * HOUR_MS)
        assert not machine.clock.known
        machine.passes(300)
        machine.clock.now_ms()
        machine.clock.heard(9 * HOUR_MS + 300, TERM)
        assert machine.clock.known
        assert machine.clock.now_ms() == 9 * HOUR_MS + 300


def test_a_clock_that_agrees_with_the_catalog_s_is_used_at_once() -> None:
    machine = Machine(9 * HOUR_MS)
    machine.clock.found(9 * HOUR_MS - AGREE_MS)
    assert machine.clock.known
    assert machine.clock.now_ms() == 9 * HOUR_MS


def test_the_first_leader_that_is_heard_replaces_what_was_guessed() -> None:
    machine = Machine(9 * HOUR_MS)
    machine.clock.found(9 * HOUR_MS - AGREE_MS)
    machine.clock.heard(9 * HOUR_MS - AGREE_MS + 200, TERM)
    assert machine.clock.now_ms() <= 9 * HOUR_MS - AGREE_MS + 200 + BACK_MS
    machine.passes(2 * SECOND_MS)
    assert machine.clock.now_ms() == 9 * HOUR_MS - AGREE_MS + 200 + 2 * SECOND_MS


def test_who_leads_a_cluster_that_was_off_takes_its_own_clock() -> None:
    machine = Machine(9 * HOUR_MS)
    machine.clock.found(2 * HOUR_MS)
    assert machine.clock.to_write_ms(TERM) == 9 * HOUR_MS
    assert machine.clock.known


def test_no_leader_moves_cluster_time_back() -> None:
    machine = Machine(9 * HOUR_MS)
    machine.clock.found(10 * HOUR_MS)
    assert machine.clock.to_write_ms(TERM) == 10 * HOUR_MS


def test_the_first_leader_of_a_cluster_begins_with_its_own_clock() -> None:
    machine = Machine(9 * HOUR_MS)
    assert machine.clock.to_write_ms(TERM) == 9 * HOUR_MS


# -- rows that are late ---------------------------------------------------------------------------
def test_a_row_that_was_late_does_not_hold_time_back() -> None:
    machine = following(9 * HOUR_MS)
    for late_ms in (20, 900, 3000, 50):
        machine.passes(SECOND_MS)
        right_ms = machine.wall_ms
        machine.clock.heard(right_ms - late_ms, TERM)
        assert machine.clock.now_ms() == right_ms


def test_rows_that_were_held_up_together_do_not_hold_time_back() -> None:
    machine = following(9 * HOUR_MS)
    machine.passes(20 * SECOND_MS)
    for late_s in range(20, 0, -1):
        machine.clock.heard(machine.wall_ms - late_s * SECOND_MS, TERM)
        assert machine.clock.now_ms() == machine.wall_ms


def test_a_leader_does_not_fall_back_by_the_way_of_its_own_rows() -> None:
    leader = leading(9 * HOUR_MS)
    for _ in range(100):
        leader.passes(400)
        leader.clock.heard(leader.wall_ms - 400, TERM + 1)
        leader.passes(600)
        assert leader.clock.to_write_ms(TERM + 1) == leader.wall_ms


def test_a_row_that_is_read_again_and_again_does_not_hold_time_back() -> None:
    machine = following(9 * HOUR_MS)
    for _ in range(2 * ROWS):
        machine.passes(5 * SECOND_MS)
        machine.clock.found(9 * HOUR_MS)
        assert machine.clock.now_ms() == machine.wall_ms


def test_the_time_of_another_leader_is_taken_over_at_once() -> None:
    machine = following(9 * HOUR_MS)
    machine.passes(SECOND_MS)
    assert machine.clock.now_ms() == machine.wall_ms
    machine.clock.heard(machine.wall_ms - 4 * SECOND_MS, TERM + 1)
    assert machine.clock.now_ms() == machine.wall_ms - 4 * SECOND_MS + BACK_MS
    machine.passes(2 * BACK_MS)
    assert machine.clock.now_ms() == machine.wall_ms - 4 * SECOND_MS
    machine.clock.heard(machine.wall_ms + HOUR_MS, TERM + 2)
    assert machine.clock.now_ms() == machine.wall_ms + HOUR_MS
