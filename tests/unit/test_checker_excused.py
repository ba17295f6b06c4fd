"""What only a lost node held: such reads may be `unavailable`, and every way to abuse that excuse is caught."""

from __future__ import annotations

import pytest

from kit.checker import Verdict, check
from kit.excuses import Excused
from kit.history import NEVER, History, Kind, Listed, Outcome

F, G = "d/file", "d/other"


class Loss:
    """A history with a node that goes away and comes back; each call is a whole operation."""

    def __init__(self) -> None:
        self.history = History(clock=lambda: 0.0)
        self.excused: list[Excused] = []
        self._held: dict[str, tuple[str, int]] = {}
        self._since: int | None = None

    def put(self, path: str, digest: str, version: int, *, outcome: Outcome = Outcome.OK) -> int:
        number = self.history.invoke(0, Kind.PUT, path, digest=digest)
        self.history.complete(number, outcome, version=version if outcome is Outcome.OK else 0)
        return number

    def delete(self, path: str) -> int:
        number = self.history.invoke(0, Kind.DELETE, path)
        self.history.complete(number, Outcome.OK)
        return number

    def get(self, path: str, digest: str, *, final: bool = False) -> int:
        number = self.history.invoke(1, Kind.GET, path, final=final)
        self.history.complete(number, Outcome.OK, digest=digest)
        return number

    def fails(self, path: str, error: str = "unavailable", *, final: bool = False) -> int:
        number = self.history.invoke(1, Kind.GET, path, final=final)
        self.history.complete(number, Outcome.FAILED, error=error)
        return number

    def away(self, **only_there: tuple[str, str, int]) -> None:
        """The node leaves; `name=(path, digest, version)` for each file that only it has."""
        self._since = self.history.position
        self.history.complete(self.history.invoke(9, Kind.STAT, "clock"), Outcome.OK)
        self._held = {path: (digest, version) for path, digest, version in only_there.values()}

    def back(self, *, ever: bool = True) -> None:
        """It serves again; with `ever=False` it never does."""
        assert self._since is not None
        until = self.history.position if ever else NEVER
        self.excused += [
            Excused(path, version, digest, self._since, until) for path, (digest, version) in self._held.items()
        ]
        self.history.complete(self.history.invoke(9, Kind.STAT, "clock"), Outcome.OK)

    def end(self, **files: tuple[str, str, int]) -> None:
        """List and read everything, as a workload does at its end."""
        number = self.history.invoke(2, Kind.LIST, "d/", final=True)
        listed = [Listed(path, version, digest) for path, digest, version in sorted(files.values())]
        self.history.complete(number, Outcome.OK, entries=listed)
        for path, digest, _ in files.values():
            self.get(path, digest, final=True)

    def verdict(self, *, final: bool = True) -> Verdict:
        return check(self.history.operations(), final=final, excused=self.excused)

    def caught(self, *kinds: str, final: bool = True) -> Verdict:
        verdict = self.verdict(final=final)
        assert [violation.kind for violation in verdict.violations] == [*kinds], str(verdict)
        return verdict


@pytest.fixture
def loss() -> Loss:
    """Two files; a node that holds one of them alone is about to leave."""
    loss = Loss()
    loss.put(F, "old", 1)
    loss.put(G, "copied", 2)
    loss.put(F, "only", 3)
    return loss


# -- what may happen -----------------------------------------------------------------------------------------------
def test_what_only_the_lost_node_held_is_unavailable_and_comes_back(loss: Loss) -> None:
    loss.away(f=(F, "only", 3))
    loss.fails(F)
    loss.get(G, "copied")
    loss.back()
    loss.end(f=(F, "only", 3), g=(G, "copied", 2))
    loss.caught()


def test_an_excused_file_may_be_replaced_meanwhile(loss: Loss) -> None:
    loss.away(f=(F, "only", 3))
    loss.put(F, "new", 4)
    loss.get(F, "new")
    loss.back()
    loss.end(f=(F, "new", 4), g=(G, "copied", 2))
    loss.caught()


def test_an_excused_file_may_be_deleted_meanwhile(loss: Loss) -> None:
    loss.away(f=(F, "only", 3))
    loss.fails(F)
    loss.delete(F)
    loss.get(F, "")
    loss.back()
    loss.end(g=(G, "copied", 2))
    loss.get(F, "", final=True)
    loss.caught()


def test_a_read_beside_an_overwrite_may_still_be_unavailable(loss: Loss) -> None:
    loss.away(f=(F, "only", 3))
    writing = loss.history.invoke(0, Kind.PUT, F, digest="new")
    loss.fails(F)
    loss.history.complete(writing, Outcome.OK, version=4)
    loss.get(F, "new")
    loss.back()
    loss.end(f=(F, "new", 4), g=(G, "copied", 2))
    loss.caught()


def test_a_read_under_way_when_the_node_leaves_is_excused(loss: Loss) -> None:
    reading = loss.history.invoke(1, Kind.GET, F)
    loss.away(f=(F, "only", 3))
    loss.history.complete(reading, Outcome.FAILED, error="unavailable")
    loss.back()
    loss.end(f=(F, "only", 3), g=(G, "copied", 2))
    loss.caught()


def test_two_absences_of_the_same_file(loss: Loss) -> None:
    for _ in range(2):
        loss.away(f=(F, "only", 3))
        loss.fails(F)
        loss.back()
        loss.get(F, "only")
    loss.end(f=(F, "only", 3), g=(G, "copied", 2))
    loss.caught()


def test_without_the_question_reads_without_an_answer_are_not_judged(loss: Loss) -> None:
    loss.fails(G)
    assert check(loss.history.operations()).ok


# -- what must not -------------------------------------------------------------------------------------------------
def test_no_read_is_unavailable_where_nothing_is_excused(loss: Loss) -> None:
    read = loss.fails(G)
    verdict = loss.caught("unexcused", final=False)
    assert [one.number for one in verdict.violations[0].story] == [read]


def test_a_file_that_was_copied_is_not_excused(loss: Loss) -> None:
    loss.away(f=(F, "only", 3))
    loss.fails(F)
    loss.fails(G)
    loss.back()
    loss.end(f=(F, "only", 3), g=(G, "copied", 2))
    assert loss.caught("unexcused").violations[0].path == G


def test_a_file_is_not_excused_before_its_node_leaves(loss: Loss) -> None:
    loss.fails(F)
    loss.away(f=(F, "only", 3))
    loss.fails(F)
    loss.back()
    loss.end(f=(F, "only", 3), g=(G, "copied", 2))
    loss.caught("unexcused")


def test_wrong_bytes_of_an_excused_file(loss: Loss) -> None:
    loss.away(f=(F, "only", 3))
    loss.get(F, "garbage")
    loss.fails(F)
    loss.back()
    loss.end(f=(F, "only", 3), g=(G, "copied", 2))
    loss.caught("corrupt_bytes")


def test_older_bytes_of_an_excused_file(loss: Loss) -> None:
    """The copy has the version before: that it is all there is makes it no answer."""
    loss.away(f=(F, "only", 3))
    loss.get(F, "old")
    loss.fails(F)
    loss.back()
    loss.end(f=(F, "only", 3), g=(G, "copied", 2))
    loss.caught("stale_read")


def test_an_older_version_that_comes_back_with_the_node(loss: Loss) -> None:
    loss.away(f=(F, "only", 3))
    loss.fails(F)
    loss.put(F, "new", 4)
    loss.back()
    loss.end(f=(F, "only", 3), g=(G, "copied", 2))
    verdict = loss.verdict()
    assert {violation.path for violation in verdict.violations} == {F}, str(verdict)
    assert "stale_read" in {violation.kind for violation in verdict.violations}, str(verdict)


def test_a_delete_that_is_undone_when_the_node_returns(loss: Loss) -> None:
    loss.away(f=(F, "only", 3))
    loss.fails(F)
    loss.delete(F)
    loss.back()
    loss.end(f=(F, "only", 3), g=(G, "copied", 2))
    verdict = loss.caught("resurrection")
    assert verdict.violations[0].path == F


def test_an_excused_file_that_is_said_not_to_exist(loss: Loss) -> None:
    loss.away(f=(F, "only", 3))
    loss.get(F, "")
    loss.fails(F)
    loss.back()
    loss.end(f=(F, "only", 3), g=(G, "copied", 2))
    loss.caught("lost_write")


def test_an_excused_file_that_is_called_lost(loss: Loss) -> None:
    loss.away(f=(F, "only", 3))
    loss.fails(F, "data_lost")
    loss.fails(F)
    loss.back()
    loss.end(f=(F, "only", 3), g=(G, "copied", 2))
    loss.caught("alarm")


def test_unavailable_after_it_was_replaced(loss: Loss) -> None:
    """What is excused is the version, not the name."""
    loss.away(f=(F, "only", 3))
    new = loss.put(F, "new", 4)
    read = loss.fails(F)
    loss.back()
    loss.end(f=(F, "new", 4), g=(G, "copied", 2))
    verdict = loss.caught("unexcused")
    assert [one.number for one in verdict.violations[0].story] == [2, new, read], str(verdict)


def test_unavailable_though_it_was_replaced_before_the_node_left(loss: Loss) -> None:
    """A debt that is out of date; that the read began earlier does not save it."""
    reading = loss.history.invoke(1, Kind.GET, F)
    loss.put(F, "new", 4)
    loss.away(f=(F, "only", 3))
    loss.history.complete(reading, Outcome.FAILED, error="unavailable")
    loss.back()
    loss.end(f=(F, "new", 4), g=(G, "copied", 2))
    loss.caught("unexcused")


def test_a_read_through_two_absences_may_have_missed_either_version() -> None:
    """It was answered in the second one, when the file had been replaced; the first is no reason to doubt it."""
    loss = Loss()
    loss.put(F, "one", 1)
    loss.away(f=(F, "one", 1))
    loss.fails(F)
    loss.put(F, "two", 2)
    number = loss.history.invoke(3, Kind.GET, F)
    loss.back()
    loss.put(F, "three", 3)
    loss.away(f=(F, "three", 3))
    loss.history.complete(number, Outcome.FAILED, error="unavailable")
    loss.back()
    loss.end(f=(F, "three", 3))
    assert loss.verdict().ok, str(loss.verdict())


def test_a_read_through_two_absences_of_one_version_missed_that_one() -> None:
    """Of a write that nobody acknowledged two versions are told: by a read of one absence, and by one of two more."""
    history = History(clock=lambda: 0.0)
    history.complete(history.invoke(0, Kind.PUT, F, digest="w1"), Outcome.UNKNOWN)
    first = history.invoke(1, Kind.GET, F)
    history.complete(first, Outcome.FAILED, error="unavailable")
    second = history.invoke(1, Kind.GET, F)
    history.complete(second, Outcome.FAILED, error="unavailable")
    excused = [Excused(F, 2, "w1", 2, 4), Excused(F, 2, "w1", 4, 5), Excused(F, 2, "w1", 5, 6)]
    assert check(history.operations(), excused=excused).ok
    excused[0] = Excused(F, 1, "w1", 2, 4)
    assert not check(history.operations(), excused=excused).ok


def test_an_absence_without_length_ends_before_the_event_of_its_number() -> None:
    history = History()
    put = history.invoke(0, Kind.PUT, F, digest="only")
    history.complete(put, Outcome.UNKNOWN)
    read = history.invoke(1, Kind.GET, F)
    delete = history.invoke(0, Kind.DELETE, F)
    away = history.position
    history.complete(delete, Outcome.OK, version=2)
    history.complete(read, Outcome.FAILED, error="unavailable")
    assert check(history.operations(), excused=[Excused(F, 1, "only", away, away)]).ok


def test_unavailable_after_it_was_deleted(loss: Loss) -> None:
    loss.away(f=(F, "only", 3))
    loss.delete(F)
    loss.fails(F)
    loss.back()
    loss.end(g=(G, "copied", 2))
    loss.get(F, "", final=True)
    loss.caught("unexcused")


def test_an_excused_file_that_nobody_was_told_of(loss: Loss) -> None:
    loss.away(f=(F, "only", 3))
    late = loss.fails(F, "timeout")
    loss.back()
    loss.end(f=(F, "only", 3), g=(G, "copied", 2))
    verdict = loss.caught("not_reported")
    assert [one.number for one in verdict.violations[0].story] == [late]


def test_an_excused_file_that_is_still_unavailable_when_its_node_is_back(loss: Loss) -> None:
    loss.away(f=(F, "only", 3))
    loss.fails(F)
    loss.back()
    loss.fails(F)
    loss.end(f=(F, "only", 3), g=(G, "copied", 2))
    loss.caught("not_back")


def test_an_excused_file_that_never_comes_back(loss: Loss) -> None:
    """Its node is back, but nobody gets an answer for it; that reads merely time out does not hide it."""
    loss.away(f=(F, "only", 3))
    loss.fails(F)
    loss.back()
    loss.end(g=(G, "copied", 2))
    loss.fails(F, "timeout", final=True)
    verdict = loss.verdict()
    kinds = {(violation.kind, violation.path) for violation in verdict.violations}
    assert kinds == {("list_missed", F), ("not_back", F)}, str(verdict)


def test_a_node_that_never_comes_back_excuses_nothing_at_the_end(loss: Loss) -> None:
    loss.away(f=(F, "only", 3))
    loss.fails(F)
    loss.back(ever=False)
    loss.history.complete(
        loss.history.invoke(2, Kind.LIST, "d/", final=True),
        Outcome.OK,
        entries=[Listed(F, 3, "only"), Listed(G, 2, "copied")],
    )
    loss.fails(F, final=True)
    loss.get(G, "copied", final=True)
    loss.caught("not_back")


def test_a_debt_that_names_what_nobody_wrote(loss: Loss) -> None:
    loss.away(g=(G, "only", 3))
    loss.back()
    loss.end(f=(F, "only", 3), g=(G, "copied", 2))
    loss.caught("phantom_excuse")


def test_a_debt_that_names_another_version_of_the_same_bytes(loss: Loss) -> None:
    loss.away(f=(F, "only", 7))
    loss.fails(F)
    loss.back()
    loss.end(f=(F, "only", 3), g=(G, "copied", 2))
    loss.caught("applied_twice")


@pytest.mark.parametrize(
    "excused",
    [
        [Excused(F, 3, "only", 5, 4)],
        [Excused(F, 3, "", 5, 9)],
        [Excused(F, 3, "only", 5, 9), Excused(F, 4, "new", 8, 12)],
    ],
    ids=["ends first", "no digest", "twice"],
)
def test_excuses_that_mean_nothing_are_refused(excused: list[Excused]) -> None:
    with pytest.raises(ValueError, match="excuse"):
        check([], excused=excused)
