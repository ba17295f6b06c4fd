"""What a soak's report says of what happened in it, and when it has passed. No containers."""

from __future__ import annotations

import pytest

from drills import soak
from drills.faults import Killed
from drills.schedule import Planned
from drills.soak import Done, Soak, minima
from kit.checker import Verdict
from kit.history import History, Kind, Outcome

pytestmark = pytest.mark.short


def soak_with(failed: tuple[Kind, str], while_there: str, faults_min: int = 0) -> Soak:
    """A soak of one fault of this kind at 10 to 20 s, under which one operation failed."""
    seconds = 0.0
    history = History(lambda: seconds)
    seconds = 15.0
    kind, error = failed
    history.complete(history.invoke(1, kind, "a"), Outcome.FAILED, error=error)
    run = Soak(1, 60.0, faults_min, verdict=Verdict(operations=1), operations=history.operations())
    run.faults.append(Done(Planned(1, while_there, Killed("node1"), 10.0, False), 10.0, 20.0))
    return run


@pytest.mark.parametrize("kind", ["node killed", "coordinator killed", "disk full", "cut", "etcd member killed"])
def test_a_read_that_failed_under_a_single_fault_breaks_a_promise(kind: str) -> None:
    run = soak_with((Kind.GET, "unavailable"), kind)
    assert not run.ok
    assert "1 reads failed that must not" in soak.report(run)


@pytest.mark.parametrize("kind", sorted(soak.MAY_FAIL_READS))
def test_a_read_that_failed_without_etcd_s_majority_is_excused_by_name(kind: str) -> None:
    run = soak_with((Kind.GET, "catalog_down"), kind)
    assert run.ok
    assert "no read failed under any single fault" in soak.report(run)
    run.faults[0].healed_s = 12.0
    assert not run.ok, "it failed after the fault was healed"


def test_a_refused_write_breaks_no_promise_and_is_kept_to_be_looked_at() -> None:
    run = soak_with((Kind.PUT, "conflict"), "cut")
    assert run.ok
    assert run.conflicts


def test_a_soak_that_did_less_than_was_asked_for_has_not_passed() -> None:
    run = soak_with((Kind.PUT, "conflict"), "cut", faults_min=2)
    assert not run.ok
    assert "2 faults" in soak.report(run)


def test_a_long_soak_has_minima() -> None:
    assert minima(30, None, None) == (200, 100_000)
    assert minima(3, None, None) == (0, 0)
    assert minima(30, 5, 0) == (5, 0)
