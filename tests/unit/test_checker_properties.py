"""The checker against an honest store seen through lost replies and absences, and against trying every order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import permutations

from hypothesis import given, settings
from hypothesis import strategies as st

from kit.checker import action_of, check
from kit.excuses import Excused
from kit.history import History, Kind, Listed, Operation, Outcome
from kit.orders import Action, search

PATHS = ("d/a", "d/b", "e")
CLIENTS = 4


class SimulatedStore:
    """A linearizable store: every effect is one step. What clients are told may be less than what happened."""

    def __init__(self, choices: Iterator[int], *, empties: bool = True) -> None:
        self.history = History(clock=lambda: 0.0)
        self.excused: list[Excused] = []
        self._choices = choices
        self._empties = empties  #: whether some puts store the same bytes
        self._away: list[Excused] = []  #: what cannot be read now
        self._files: dict[str, tuple[int, str]] = {}
        self._version = 0
        self._writes = 0
        self._running: dict[int, tuple[int, Kind, str, str]] = {}  #: client -> (operation, kind, path, digest)
        self._answers: dict[int, dict[str, object]] = {}  #: client -> what its reply holds, once it took effect
        self._limbo: list[tuple[Kind, str, str]] = []  #: writes whose client gave up before they took effect

    def step(self) -> None:
        """Something happens somewhere."""
        client = next(self._choices) % (CLIENTS + 2)
        if client == CLIENTS + 1:
            self._leave_or_return()
        elif client == CLIENTS:
            if self._limbo:
                kind, path, digest = self._limbo.pop(next(self._choices) % len(self._limbo))
                self._apply(kind, path, digest)
        elif client not in self._running:
            self._invoke(client)
        elif client not in self._answers and next(self._choices) % 6:
            _, kind, path, digest = self._running[client]
            self._answers[client] = self._apply(kind, path, digest)
        else:
            self._reply(client)

    def _leave_or_return(self) -> None:
        """A node leaves that alone holds some of the files, or it comes back."""
        if self._away:
            self.return_all()
            return
        held = next(self._choices)
        since = self.history.position
        self._away = [
            Excused(path, version, digest, since)
            for number, (path, (version, digest)) in enumerate(sorted(self._files.items()))
            if held >> number & 1
        ]

    def return_all(self) -> None:
        """The node is back."""
        self.excused += [replace(one, until=self.history.position) for one in self._away]
        self._away = []

    def stay_away(self) -> None:
        """The history ends."""
        self.excused += self._away

    def _invoke(self, client: int) -> None:
        kind = (Kind.PUT, Kind.PUT, Kind.GET, Kind.GET, Kind.DELETE, Kind.STAT, Kind.LIST)[next(self._choices) % 7]
        path = "d/" if kind is Kind.LIST else PATHS[next(self._choices) % len(PATHS)]
        digest = ""
        if kind is Kind.PUT:
            self._writes += 1
            empty = next(self._choices) % 5 == 0 and self._empties
            digest = "empty" if empty else f"w{self._writes}"
        self._running[client] = (self.history.invoke(client, kind, path, digest=digest), kind, path, digest)

    def _apply(self, kind: Kind, path: str, digest: str) -> dict[str, object]:
        version, current = self._files.get(path, (0, ""))
        if kind is Kind.GET:
            away = any((one.path, one.version) == (path, version) for one in self._away)
            return {"error": "unavailable"} if away else {"digest": current}
        if kind is Kind.STAT:
            return {"digest": current, "version": version}
        if kind is Kind.LIST:
            entries = [Listed(name, *self._files[name]) for name in sorted(self._files) if name.startswith(path)]
            return {"entries": entries}
        if kind is Kind.DELETE and not current:
            return {"error": "not_found"}
        self._version += 1
        if kind is Kind.DELETE:
            del self._files[path]
        else:
            self._files[path] = (self._version, digest)
        return {"version": self._version}

    def _reply(self, client: int) -> None:
        """The client is told, or its reply is lost; what had no effect yet failed for certain, or may still come."""
        number, kind, path, digest = self._running.pop(client)
        answer = self._answers.pop(client, None)
        fate = next(self._choices) % 8
        if fate == 0:  # the client dies: nothing is recorded
            lost = True
        elif answer is None:
            lost = fate % 2 == 0
            self.history.complete(number, Outcome.UNKNOWN if lost else Outcome.FAILED, error="catalog_down")
        elif fate == 1:
            lost = False
            self.history.complete(number, Outcome.UNKNOWN, error="outcome_unknown")
        else:
            lost = False
            told = {key: value for key, value in answer.items() if key != "version" or fate != 2}
            failed = "error" in answer
            self.history.complete(number, Outcome.FAILED if failed else Outcome.OK, **told)  # type: ignore[arg-type]
        if lost and answer is None and kind in (Kind.PUT, Kind.DELETE):
            self._limbo.append((kind, path, digest))


def simulated(tape: Sequence[int], *, empties: bool = True) -> tuple[list[Operation], list[Excused]]:
    def endless() -> Iterator[int]:
        while True:
            yield from tape

    store = SimulatedStore(endless(), empties=empties)
    for _ in tape:
        store.step()
    store.stay_away()
    return store.history.operations(), store.excused


tapes = st.lists(st.integers(0, 839), min_size=20, max_size=400)


@settings(max_examples=300, deadline=None)
@given(tapes)
def test_what_an_honest_store_does_is_explained(tape: list[int]) -> None:
    operations, excused = simulated(tape)
    verdict = check(operations, excused=excused)
    assert verdict.ok, str(verdict)


# -- every order, tried one by one ---------------------------------------------------------------------------------
def explained_by_trying(actions: Sequence[Action]) -> bool:
    """The definition itself: some subset of the optional actions, in some order, is what a plain register does."""
    required = [action for action in actions if not action.optional]
    optional = [action for action in actions if action.optional]
    for chosen in range(1 << len(optional)):
        taken = required + [action for number, action in enumerate(optional) if chosen >> number & 1]
        if any(_is_register(order) for order in permutations(taken)):
            return True
    return False


def _is_register(order: Sequence[Action]) -> bool:
    digest, version, highest = "", 0, 0
    latest = -1
    for action in order:
        if action.completed < latest:
            return False
        latest = max(latest, action.invoked)
        if action.writes:
            if (action.needs_file and not digest) or (action.version and action.version <= highest):
                return False
            digest, version, highest = action.digest, action.version, action.version or highest
        elif action.digest != digest or (digest and action.version and version and action.version != version):
            return False
    return True


@st.composite
def any_histories(draw: st.DrawFn) -> list[Action]:
    """Up to six operations on one file, overlapping anyhow, with answers that need not make sense."""
    count = draw(st.integers(2, 6))
    history = History(clock=lambda: 0.0)
    order = draw(st.permutations([number for number in range(count) for _ in range(2)]))
    versions = draw(st.permutations(range(1, count + 1)))
    numbers: dict[int, tuple[int, Kind]] = {}
    for slot in order:
        if slot not in numbers:
            kind = draw(st.sampled_from([Kind.PUT, Kind.PUT, Kind.DELETE, Kind.GET, Kind.GET, Kind.STAT]))
            digest = draw(st.sampled_from("abc")) if kind is Kind.PUT else ""
            numbers[slot] = (history.invoke(slot, kind, "f", digest=digest), kind)
            continue
        number, kind = numbers[slot]
        if kind in (Kind.GET, Kind.STAT):
            seen = draw(st.sampled_from(["", "a", "b", "c"]))
            told = draw(st.integers(0, count)) if kind is Kind.STAT and seen else 0
            history.complete(number, Outcome.OK, digest=seen, version=told)
            continue
        outcome = draw(st.sampled_from([Outcome.OK, Outcome.OK, Outcome.UNKNOWN, Outcome.FAILED]))
        version = versions[slot] if outcome is Outcome.OK and draw(st.booleans()) else 0
        error = "not_found" if outcome is Outcome.FAILED and kind is Kind.DELETE and draw(st.booleans()) else ""
        history.complete(number, outcome, version=version, error=error)
    return [action for operation in history.operations() if (action := action_of(operation)) is not None]


@settings(max_examples=600, deadline=None)
@given(any_histories())
def test_the_search_agrees_with_trying_every_order(actions: list[Action]) -> None:
    found, _ = search(actions, 100_000)
    assert found is explained_by_trying(actions)


@settings(max_examples=200, deadline=None)
@given(tapes, st.integers(0, 10_000))
def test_a_read_of_an_older_state_is_caught(tape: list[int], pick: int) -> None:
    """Plant one lie into an honest history: after everything, a file shows what was replaced for certain."""
    operations, excused = simulated(tape)
    candidates = [
        (old, new)
        for new in operations
        if new.kind is Kind.PUT and new.outcome is Outcome.OK and new.digest != "empty"
        for old in operations
        if old.path == new.path
        and old.kind is Kind.PUT
        and old.outcome is Outcome.OK
        and old.digest not in ("empty", new.digest)
        and old.completed < new.invoked
    ]
    if not candidates:
        return
    old, _ = candidates[pick % len(candidates)]
    end = max(max(one.invoked, one.completed if one.completed < 1 << 62 else 0) for one in operations) + 1
    lie = Operation(
        number=len(operations),
        client=99,
        kind=Kind.GET,
        path=old.path,
        invoked=end,
        completed=end + 1,
        invoked_s=0.0,
        completed_s=0.0,
        outcome=Outcome.OK,
        digest=old.digest,
    )
    verdict = check([*operations, lie], excused=excused)
    assert [violation.path for violation in verdict.violations] == [old.path]
    assert lie in verdict.violations[0].story
