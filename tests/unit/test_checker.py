"""The checker catches every violation that is planted, by name and with the operations that show it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kit.checker import Verdict, check
from kit.history import NEVER, Availability, History, Kind, Listed, Outcome, availability

F = "d/file"


class Script:
    """A history written by hand. Each call is a whole operation; `begin` and `end` let others run in between."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.history = History(clock=self._tick)

    def _tick(self) -> float:
        self.now_s += 1.0
        return self.now_s

    def begin(self, kind: Kind, digest: str = "", *, path: str = F, client: int = 0, final: bool = False) -> int:
        return self.history.invoke(client, kind, path, digest=digest, final=final)

    def end(
        self,
        number: int,
        outcome: Outcome = Outcome.OK,
        *,
        digest: str = "",
        version: int = 0,
        error: str = "",
        entries: tuple[Listed, ...] = (),
    ) -> int:
        self.history.complete(number, outcome, digest=digest, version=version, error=error, entries=entries)
        return number

    def put(
        self, digest: str, outcome: Outcome = Outcome.OK, version: int = 0, path: str = F, *, error: str = ""
    ) -> int:
        return self.end(self.begin(Kind.PUT, digest, path=path), outcome, version=version, error=error)

    def delete(self, outcome: Outcome = Outcome.OK, version: int = 0, error: str = "") -> int:
        return self.end(self.begin(Kind.DELETE), outcome, version=version, error=error)

    def get(self, digest: str, path: str = F, *, final: bool = False) -> int:
        return self.end(self.begin(Kind.GET, path=path, final=final), digest=digest)

    def stat(self, digest: str, version: int) -> int:
        return self.end(self.begin(Kind.STAT), digest=digest, version=version)

    def list(self, *entries: tuple[str, int, str], prefix: str = "d/", final: bool = False) -> int:
        listed = tuple(Listed(*entry) for entry in entries)
        return self.end(self.begin(Kind.LIST, path=prefix, final=final), entries=listed)

    def verdict(self, *, final: bool = False, states_max: int = 10_000) -> Verdict:
        return check(self.history.operations(), final=final, states_max=states_max)

    def explained(self) -> None:
        verdict = self.verdict()
        assert verdict.ok, str(verdict)

    def caught(self, kind: str, *numbers: int, final: bool = False, states_max: int = 10_000) -> None:
        """Exactly one violation, of this kind, told by exactly these operations."""
        verdict = self.verdict(final=final, states_max=states_max)
        assert [violation.kind for violation in verdict.violations] == [kind], str(verdict)
        assert [operation.number for operation in verdict.violations[0].story] == list(numbers), str(verdict)


@pytest.fixture
def script() -> Script:
    return Script()


# -- what may happen -----------------------------------------------------------------------------------------------
def test_one_client_that_reads_what_it_wrote(script: Script) -> None:
    script.get("")
    script.put("a", version=1)
    script.get("a")
    script.put("b", version=2)
    script.stat("b", 2)
    script.list((F, 2, "b"))
    script.delete(version=3)
    script.delete(Outcome.FAILED, error="not_found")
    script.list()
    script.get("")
    script.explained()


def test_a_read_beside_a_write_may_see_either_state(script: Script) -> None:
    script.put("a")
    writing = script.begin(Kind.PUT, "b")
    script.get("a")
    script.get("b")
    script.end(writing)
    script.explained()


def test_an_unknown_write_may_land_late_or_never(script: Script) -> None:
    script.put("a")
    script.put("late", Outcome.UNKNOWN)
    script.put("never", Outcome.UNKNOWN)
    script.get("a")
    script.put("b")
    script.get("b")
    script.get("late")
    script.delete(Outcome.UNKNOWN)
    script.get("late")
    script.get("")
    script.explained()


def test_a_write_whose_client_died_may_have_landed(script: Script) -> None:
    script.begin(Kind.PUT, "a")
    script.get("a")
    script.delete()
    script.explained()


def test_empty_files_share_a_digest(script: Script) -> None:
    script.put("empty", version=1)
    script.put("a", version=2)
    script.put("empty", version=3)
    script.stat("empty", 3)
    script.explained()


# -- what must not -------------------------------------------------------------------------------------------------
def test_lost_acknowledged_write(script: Script) -> None:
    script.get("")
    script.delete(Outcome.FAILED, error="not_found")
    kept = script.put("a")
    script.put("x", Outcome.UNKNOWN)
    script.caught("lost_write", kept, script.get(""))


def test_stale_read(script: Script) -> None:
    old = script.put("a")
    script.get("a")
    new = script.put("b")
    script.caught("stale_read", old, new, script.get("a"))


def test_two_reads_that_disagree_on_the_order(script: Script) -> None:
    first = script.begin(Kind.PUT, "a")
    second = script.begin(Kind.PUT, "b")
    script.end(first)
    script.end(second)
    script.get("b")
    script.get("a")
    verdict = script.verdict()
    assert [violation.kind for violation in verdict.violations] == ["stale_read"], str(verdict)


def test_resurrection_of_a_deleted_file(script: Script) -> None:
    put = script.put("a")
    delete = script.delete()
    script.caught("resurrection", put, delete, script.get("a"))


def test_a_retried_put_that_is_applied_twice(script: Script) -> None:
    """A6: the first attempt lands and is read, another client overwrites it, the retry lands again."""
    retried = script.begin(Kind.PUT, "a", client=1)
    script.get("a")
    other = script.put("b")
    script.get("b")
    script.end(retried)
    again = script.get("a")
    verdict = script.verdict()
    assert [violation.kind for violation in verdict.violations] == ["applied_twice"], str(verdict)
    told = {operation.number for operation in verdict.violations[0].story}
    assert {retried, again} <= told <= {retried, retried + 1, other, other + 1, again}


def test_an_unknown_put_that_is_applied_twice(script: Script) -> None:
    put = script.put("a", Outcome.UNKNOWN)
    seen = script.get("a")
    other = script.put("b")
    script.get("b")
    verdict = script.verdict()
    assert verdict.ok, str(verdict)
    script.caught("applied_twice", put, seen, other, script.get("a"))


def test_a_retried_delete_that_is_applied_twice(script: Script) -> None:
    """A6: the retry deletes what another client stored after the first attempt."""
    script.put("a")
    retried = script.begin(Kind.DELETE, client=1)
    script.get("")
    script.put("b")
    script.get("b")
    script.end(retried)
    script.get("")
    verdict = script.verdict()
    assert [violation.kind for violation in verdict.violations] == ["lost_write"], str(verdict)


def test_one_write_with_two_versions(script: Script) -> None:
    put = script.put("a", version=5)
    script.caught("applied_twice", put, script.stat("a", 7))


def test_an_unknown_write_told_with_two_versions(script: Script) -> None:
    put = script.put("a", Outcome.UNKNOWN)
    script.stat("a", 5)
    script.stat("a", 7)
    verdict = script.verdict()
    assert [violation.kind for violation in verdict.violations] == ["applied_twice"], str(verdict)
    assert verdict.violations[0].story[0].number == put


def test_corrupt_bytes(script: Script) -> None:
    script.put("a")
    script.caught("corrupt_bytes", script.get("other"))


def test_bytes_of_another_file(script: Script) -> None:
    script.put("a")
    script.put("b", path="d/other")
    script.caught("corrupt_bytes", script.get("b"))


def test_a_failed_put_that_shows(script: Script) -> None:
    script.put("a")
    failed = script.put("b", Outcome.FAILED)
    script.caught("failed_write_visible", failed, script.get("b"))


def test_a_failed_delete_that_shows(script: Script) -> None:
    put = script.put("a")
    failed = script.delete(Outcome.FAILED, error="unavailable")
    script.caught("failed_write_visible", put, failed, script.get(""))


def test_a_write_that_is_read_before_it_is_sent(script: Script) -> None:
    early = script.get("a")
    script.caught("read_before_write", early, script.put("a"))


def test_versions_that_fall(script: Script) -> None:
    first = script.put("a", version=9)
    script.put("b", version=10)
    script.end(script.begin(Kind.GET), digest="b")
    last = script.put("c", version=8)
    script.caught("version_order", first + 1, last)


def test_two_writes_with_one_version(script: Script) -> None:
    first = script.begin(Kind.PUT, "a")
    second = script.begin(Kind.PUT, "b")
    script.end(first, version=4)
    script.end(second, version=4)
    script.caught("version_order", first, second)


def test_versions_against_the_order_that_readers_saw(script: Script) -> None:
    """Both orders of the overlapping writes would do, but versions and reads disagree on which it was."""
    first = script.begin(Kind.PUT, "a")
    second = script.begin(Kind.PUT, "b")
    script.end(first, version=2)
    script.end(second, version=1)
    seen = script.get("b")
    verdict = script.verdict()
    assert [violation.kind for violation in verdict.violations] == ["stale_read"], str(verdict)
    assert verdict.violations[0].story[-1].number == seen


def test_a_delete_of_what_is_not_there(script: Script) -> None:
    script.put("a")
    first = script.delete()
    script.caught("deleted_nothing", first, script.delete())


def test_a_listing_that_misses_an_old_file(script: Script) -> None:
    script.put("a", version=1)
    missed = script.put("b", version=2, path="d/old")
    script.caught("list_missed", missed, script.list((F, 1, "a")))


def test_a_listing_that_shows_an_old_version(script: Script) -> None:
    old = script.put("a", version=1)
    new = script.put("b", version=2)
    script.caught("stale_read", old, new, script.list((F, 1, "a")))


def test_a_listing_with_a_file_that_nobody_wrote(script: Script) -> None:
    script.put("a", version=1)
    script.caught("phantom_file", script.list((F, 1, "a"), ("d/ghost", 2, "b")))


@pytest.mark.parametrize(
    "entries",
    [((F, 1, "a"), (F, 1, "a")), (("d/other", 2, "b"), (F, 1, "a")), ((F, 1, "a"), ("d/other", 2, "b"), ("e", 3, "c"))],
    ids=["twice", "out of order", "outside"],
)
def test_a_malformed_listing(script: Script, entries: tuple[tuple[str, int, str], ...]) -> None:
    script.put("a", version=1)
    script.put("b", version=2, path="d/other")
    if entries[0][0] != "d/other" and len(entries) == 2:
        entries = (*entries, ("d/other", 2, "b"))
    script.put("c", version=3, path="e")
    script.caught("malformed_listing", script.list(*entries))


def test_bytes_that_the_store_calls_lost(script: Script) -> None:
    script.put("a")
    script.caught("alarm", script.end(script.begin(Kind.GET), Outcome.FAILED, error="data_lost"))


def test_a_search_beyond_its_bound_is_no_pass(script: Script) -> None:
    """Ten writes at once, and a read that none of their orders explains: all have to be tried."""
    writes = [script.begin(Kind.PUT, f"w{number}") for number in range(10)]
    for number in writes:
        script.end(number)
    script.get("w3")
    script.get("w4")
    script.caught("undecided", states_max=50)


# -- the end -------------------------------------------------------------------------------------------------------
def test_everything_read_at_the_end(script: Script) -> None:
    script.put("a", version=1)
    script.list((F, 1, "a"), final=True)
    script.get("a", final=True)
    verdict = script.verdict(final=True)
    assert verdict.ok, str(verdict)


def test_a_file_that_cannot_be_read_at_the_end(script: Script) -> None:
    put = script.put("a", version=1)
    script.list((F, 1, "a"), final=True)
    read = script.end(script.begin(Kind.GET, final=True), Outcome.FAILED, error="unavailable")
    script.caught("final_unread", put, read, final=True)


def test_a_final_reading_before_the_last_write_does_not_count(script: Script) -> None:
    script.put("a", version=1)
    script.list((F, 1, "a"), final=True)
    script.get("a", final=True)
    script.put("b", version=2)
    verdict = script.verdict(final=True)
    assert [violation.kind for violation in verdict.violations] == ["final_unread", "final_unlisted"]


# -- what a person sees --------------------------------------------------------------------------------------------
def test_a_story_leaves_out_what_does_not_matter(script: Script) -> None:
    for number in range(300):
        script.put(f"before{number}")
        script.get(f"before{number}")
    kept = script.put("kept")
    script.put("unknown", Outcome.UNKNOWN)
    lost = script.get("")
    for number in range(300):
        script.put(f"after{number}")
        script.get(f"after{number}")
    script.caught("lost_write", kept, lost)
    text = str(script.verdict())
    assert "lost_write: d/file: an acknowledged write cannot be read" in text
    assert len(text.splitlines()) == 4


def test_violations_are_bounded_and_counted(script: Script) -> None:
    for number in range(150):
        script.put("a", path=f"d/{number:03d}")
        script.get("", path=f"d/{number:03d}")
    verdict = script.verdict()
    assert (verdict.count, len(verdict.violations)) == (150, 100)


# -- the history ---------------------------------------------------------------------------------------------------
def test_a_history_comes_back_from_its_file(script: Script, tmp_path: Path) -> None:
    script.put("a", version=1 << 60)
    script.list((F, 1 << 60, "a"))
    script.delete(Outcome.FAILED, error="not_found")
    script.begin(Kind.PUT, "b")
    script.history.dump(tmp_path / "history.jsonl")
    loaded = History.load(tmp_path / "history.jsonl")
    assert loaded.operations() == script.history.operations()
    assert len(loaded) == 4
    assert loaded.operations()[-1].completed == NEVER
    loaded.complete(3, Outcome.OK)


def test_a_damaged_history_is_refused(script: Script, tmp_path: Path) -> None:
    script.put("a")
    file = tmp_path / "history.jsonl"
    script.history.dump(file)
    whole = file.read_bytes()
    for damaged in (whole[:-10], whole.splitlines(keepends=True)[1], whole + whole):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"operation|truncated|JSON|Input"):
            History.load(file)


def test_an_operation_ends_once(script: Script) -> None:
    number = script.put("a")
    with pytest.raises(ValueError, match="not running"):
        script.end(number)


def test_what_clients_felt(script: Script) -> None:
    script.put("a")  # 1..2 s: the clock goes on by a second at each event
    stalled = script.begin(Kind.GET)
    script.end(stalled, Outcome.FAILED, error="unavailable")
    script.get("a")
    script.put("b", Outcome.UNKNOWN)
    script.put("c", Outcome.FAILED, error="no_space")
    script.delete(Outcome.FAILED, error="not_found")
    felt = availability(script.history.operations())
    assert felt == Availability(
        reads=2,
        reads_failed=1,
        writes=4,
        writes_failed=1,
        writes_unknown=1,
        read_stall_max_s=3.0,
        write_stall_max_s=5.0,
    )
    assert availability(script.history.operations(), until_s=2.5).reads == 0
