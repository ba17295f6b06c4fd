"""One lie in an honest history: the checker calls it wrong exactly when a judge that tries everything does."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from hypothesis import event, given, settings
from hypothesis import strategies as st

from kit.checker import check
from kit.excuses import Excused
from kit.history import NEVER, WRITES, Kind, Listed, Operation, Outcome
from unit.test_checker_properties import simulated

TRIED_MAX = 7  #: operations of one path that are tried in every order


# -- the judge: the definition, with nothing clever ----------------------------------------------------------------
@dataclass(frozen=True)
class Seen:
    """One operation as one path feels it."""

    invoked: int
    completed: int
    write: bool
    maybe: bool  #: may have had no effect
    digest: str
    version: int  #: 0: not told


@dataclass(frozen=True)
class Register:
    """What the path holds after some of the operations."""

    digest: str = ""
    version: int = 0  #: 0: of a write whose version nobody was told yet
    below: int = 0  #: versions up to this one are used up


def judged_right(operations: Sequence[Operation], excused: Sequence[Excused]) -> bool:
    """Whether each path has an order of its own, and every answer `unavailable` its excuse."""
    written = {one.path for one in operations if one.kind in WRITES}
    for one in operations:
        names = [entry.path for entry in one.entries]
        malformed = any(a >= b for a, b in pairwise(names)) or not all(name.startswith(one.path) for name in names)
        if one.outcome is Outcome.OK and (malformed or not written.issuperset(names)):
            return False
        if _says_unavailable(one) and not _reasons(one, excused):
            return False
    paths = {one.path for one in operations if one.kind is not Kind.LIST}
    if any(one.digest not in _stored(operations, one.path) for one in excused):
        return False
    return all(_has_order(_felt(operations, excused, path), Register(), -1) for path in paths)


def _stored(operations: Sequence[Operation], path: str) -> set[str]:
    puts = [one for one in operations if one.kind is Kind.PUT and one.path == path]
    return {one.digest for one in puts if one.outcome is not Outcome.FAILED}


def _says_unavailable(one: Operation) -> bool:
    return one.kind is Kind.GET and one.outcome is not Outcome.OK and one.error == "unavailable"


def _reasons(read: Operation, excused: Sequence[Excused]) -> list[Excused]:
    fitting = [one for one in excused if one.path == read.path]
    return [one for one in fitting if read.invoked < one.until and read.completed >= one.since]


def _felt(operations: Sequence[Operation], excused: Sequence[Excused], path: str) -> list[Seen]:
    felt: list[Seen] = []
    for one in operations:
        if one.kind is Kind.LIST:
            if one.outcome is Outcome.OK and path.startswith(one.path):
                entry = next((each for each in one.entries if each.path == path), Listed(path, 0, ""))
                felt.append(Seen(one.invoked, one.completed, False, False, entry.digest, entry.version))
        elif one.path != path:
            continue
        elif _says_unavailable(one):
            reasons = _reasons(one, excused)
            versions = {(each.digest, each.version) for each in reasons}
            if len(versions) == 1:  # of several, any may be the one that it felt
                begin = max(one.invoked, min(each.since for each in reasons))
                end = min(one.completed, max(each.until for each in reasons))
                felt.append(Seen(begin, end, False, False, *versions.pop()))
        elif one.kind is Kind.DELETE and one.outcome is Outcome.FAILED and one.error == "not_found":
            felt.append(Seen(one.invoked, one.completed, False, False, "", 0))
        elif one.kind in WRITES and one.outcome is not Outcome.FAILED:
            unknown = one.outcome is Outcome.UNKNOWN
            end = NEVER if unknown else one.completed
            felt.append(Seen(one.invoked, end, True, unknown, one.digest, one.version))
        elif one.kind not in WRITES and one.outcome is Outcome.OK:
            felt.append(Seen(one.invoked, one.completed, False, False, one.digest, one.version))
    return felt


def _has_order(left: list[Seen], now: Register, latest: int) -> bool:
    """Whether the operations that are left have an order from here; `latest` is the highest invocation before."""
    if all(one.maybe for one in left):
        return True
    for at, one in enumerate(left):
        if one.completed < latest:
            return False if not one.maybe else _has_order(left[:at] + left[at + 1 :], now, latest)
        after = _after(now, one)
        if after is not None and _has_order(left[:at] + left[at + 1 :], after, max(latest, one.invoked)):
            return True
    return False


def _after(now: Register, one: Seen) -> Register | None:
    if not one.write:
        if one.digest != now.digest or (one.digest and one.version and now.version not in (0, one.version)):
            return None
        if one.digest and one.version and not now.version:
            return Register(now.digest, one.version, one.version) if one.version > now.below else None
        return now
    if not one.digest and not one.maybe and not now.digest:
        return None  # an acknowledged delete of nothing
    if one.version and one.version <= now.below:
        return None
    return Register(one.digest, one.version, one.version or now.below)


# -- the lies ------------------------------------------------------------------------------------------------------
def with_a_lie(
    operations: list[Operation], excused: list[Excused], source: random.Random
) -> tuple[list[Operation], list[Excused]]:
    """The history with one operation, or one excuse, changed in some way."""
    if excused and source.random() < 0.2:
        at = source.randrange(len(excused))
        other = source.choice([[], [replace(excused[at], version=excused[at].version + source.choice((-1, 1)))]])
        return operations, [*excused[:at], *other, *excused[at + 1 :]]
    at = source.randrange(len(operations))
    return [*operations[:at], *_changed(operations[at], operations, source), *operations[at + 1 :]], excused


def _changed(one: Operation, operations: Sequence[Operation], source: random.Random) -> list[Operation]:
    digests = ["", *sorted({each.digest for each in operations if each.kind is Kind.PUT and each.path == one.path})]
    if one.kind is Kind.LIST:
        if one.entries and source.random() < 0.5:
            at = source.randrange(len(one.entries))
            return [replace(one, entries=one.entries[:at] + one.entries[at + 1 :])]
        return [replace(one, entries=(*one.entries, Listed("d/z", 1, "w1")))]
    if one.kind in WRITES:
        ways = [
            replace(one, outcome=Outcome.OK, error="", completed=min(one.completed, 10_000)),
            replace(one, outcome=Outcome.FAILED, error="no_space", version=0),
            replace(one, version=one.version + source.choice((-2, -1, 1, 2)) if one.version > 2 else 0),
        ]
        return [] if source.random() < 0.25 else [source.choice(ways)]
    ways = [
        replace(one, outcome=Outcome.OK, error="", digest=source.choice(digests), version=0),
        replace(one, outcome=Outcome.OK, error="", digest="bytes of nobody", version=0),
    ]
    if one.kind is Kind.GET:
        ways.append(replace(one, outcome=Outcome.FAILED, error="unavailable", digest="", version=0))
    return [source.choice(ways)]


@settings(max_examples=800, deadline=None)
@given(st.lists(st.integers(0, 839), min_size=8, max_size=60), st.randoms(use_true_random=False))
def test_a_lie_is_caught_exactly_when_no_order_explains_it(tape: list[int], source: random.Random) -> None:
    operations, excused = simulated(tape, empties=False)
    counts = [sum(one.path in (path, "d/") for one in operations) for path in ("d/a", "d/b", "e")]
    if not operations or max(counts) > TRIED_MAX:
        return
    assert judged_right(operations, excused), "the judge refuses an honest history"
    operations, excused = with_a_lie(operations, excused, source)
    right = judged_right(operations, excused)
    event("told and true" if right else "a lie")
    event("with excuses" if excused else "without excuses")
    verdict = check(operations, excused=excused)
    assert verdict.ok is right, f"the judge says {right}; {verdict}"
