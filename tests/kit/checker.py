"""Judges a history: is there an order of the operations, true to what each client saw, that one honest store explains?

Pure. Every file is a register of its own (linearizability is local: Herlihy and Wing, 1990), so each path is searched
alone, by `kit.orders`. Per path:

- an acknowledged write takes effect once, between its invocation and its completion; versions rise in that order;
- an acknowledged delete finds a file; one answered `not_found`, and a read that finds nothing, see none;
- an unknown write takes effect once, at any time from its invocation on, or never; a failed one never;
- a listing reads every path below its prefix at some time while it runs, the ones that it leaves out included.

- an answer `unavailable`, where it is excused, sees the excused version while its nodes are away (`kit.excuses`).

The search is bounded; `undecided` is a violation.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from kit.excuses import Excused, Excuses, Finding, is_unavailable
from kit.history import NEVER, WRITES, Kind, Operation, Outcome
from kit.orders import Action, search

STATES_MAX = 200_000  #: of one path, visited before the search gives up
_STORY_STATES_MAX = 20_000  #: of one search while a story is looked for
_STORY_FIRM_MAX = 12  #: operations of a story; one that needs more is told in part
_VIOLATIONS_MAX = 100  #: told in full; the number goes on
_LAST_CHARACTER = "\U0010ffff"
#: Reads that end so say that bytes are gone or wrong, which no history may hold.
_ALARMS = frozenset({"alarm", "digest_mismatch", "data_lost", "broken_invariant"})


@dataclass(frozen=True, slots=True)
class Violation:
    """Operations that contradict each other, in the order of their invocation."""

    kind: str
    path: str
    message: str
    story: tuple[Operation, ...] = ()

    def __str__(self) -> str:
        return "\n".join(
            [f"{self.kind}: {self.path}: {self.message}", *(f"    {operation}" for operation in self.story)]
        )


@dataclass(slots=True)
class Verdict:
    """What the checker found."""

    operations: int
    paths: int = 0
    states: int = 0  #: visited by all searches
    violations: list[Violation] = field(default_factory=list)  #: at most 100
    count: int = 0  #: all of them

    @property
    def ok(self) -> bool:
        """Whether the whole history was explained."""
        return not self.count

    def add(self, violation: Violation) -> None:
        """Note one; the list stays bounded, the count goes on."""
        self.count += 1
        if len(self.violations) < _VIOLATIONS_MAX:
            self.violations.append(violation)

    def __str__(self) -> str:
        head = f"{self.operations} operations on {self.paths} paths, {self.states} states: {self.count} violations"
        return "\n".join([head, *(str(violation) for violation in self.violations)])


def check(
    operations: Sequence[Operation],
    *,
    final: bool = False,
    excused: Iterable[Excused] | None = None,
    states_max: int = STATES_MAX,
) -> Verdict:
    """Judge a history. With `final` every path ever written must have been read, and its prefix listed, at the end.

    `excused`: the versions that only lost nodes held. No other read may be answered `unavailable` (none at all when
    it is empty); with `final` each must have been reported so, and read whole once its nodes were back. None: reads
    without an answer are not judged. `states_max` bounds the search of each path.
    """
    verdict = Verdict(operations=len(operations))
    excuses = Excuses(excused or ())
    by_path: dict[str, list[Operation]] = defaultdict(list)
    listings: list[Operation] = []
    for operation in operations:
        if operation.kind is Kind.LIST:
            if operation.outcome is Outcome.OK:
                listings.append(operation)
        else:
            by_path[operation.path].append(operation)
        if operation.error in _ALARMS:
            message = f"the store says that bytes are wrong or gone ({operation.error})"
            verdict.add(Violation("alarm", operation.path, message, (operation,)))
    paths = sorted(path for path, asked in by_path.items() if any(one.kind in WRITES for one in asked))
    verdict.paths = len(paths)
    seen_in_listings = _observed_by_listings(listings, paths, verdict)
    wrong = _excuses_in_vain(excuses, by_path, verdict) if excused is not None else set()
    for path, asked in by_path.items():
        actions = [action for one in asked if (action := action_of(one, excuses)) is not None]
        _check_path(path, asked, actions + seen_in_listings.get(path, []), states_max, verdict)
    if final:
        for finding in excuses.unproven(by_path):
            if finding.path not in wrong:
                wrong.add(finding.path)
                verdict.add(Violation(*finding))
        for violation in _check_final(paths, by_path, listings):
            if violation.kind != "final_unread" or violation.path not in wrong:
                verdict.add(violation)
    return verdict


def _excuses_in_vain(excuses: Excuses, by_path: dict[str, list[Operation]], verdict: Verdict) -> set[str]:
    """Tell excuses of nothing, and each path's first answer `unavailable` without an excuse; returns these paths."""
    findings: dict[str, Finding] = {}
    for finding in (*excuses.never_written(by_path), *excuses.unfounded(by_path)):
        findings.setdefault(finding.path, finding)
    for finding in findings.values():
        verdict.add(Violation(*finding))
    return set(findings)


# -- one path ------------------------------------------------------------------------------------------------------
def _check_path(path: str, asked: list[Operation], actions: list[Action], states_max: int, verdict: Verdict) -> None:
    actions = _with_told_versions(actions)
    plain = next(_plain_contradictions(path, asked, actions), None)
    if plain is not None:
        verdict.add(plain)
        return
    explained, states = search(actions, states_max)
    verdict.states += states
    if explained is None:
        message = f"undecided: {len(actions)} operations are not explained after {states} states; raise the bound"
        verdict.add(Violation("undecided", path, message))
    elif not explained:
        verdict.add(_tell(path, asked, _smallest(actions)))


def action_of(operation: Operation, excuses: Excuses | None = None) -> Action | None:
    """What an operation means for its path; None when it tells nothing."""
    invoked, completed = operation.invoked, operation.completed
    if excuses is not None and is_unavailable(operation) and (reasons := excuses.of_read(operation)):
        one = reasons[0]
        if any((each.digest, each.version) != (one.digest, one.version) for each in reasons):
            return None  # it ran through absences of several versions: which one it could not have is not told
        invoked, completed = max(invoked, one.since), min(completed, reasons[-1].until)
        return Action(operation, invoked, completed, False, False, one.digest, one.version)
    if operation.found_nothing:
        return Action(operation, invoked, completed, False, False, "", 0)
    if operation.kind in WRITES:
        if operation.outcome is Outcome.FAILED:
            return None
        unknown = operation.outcome is Outcome.UNKNOWN
        digest = operation.digest if operation.kind is Kind.PUT else ""
        return Action(operation, invoked, NEVER if unknown else completed, True, unknown, digest, operation.version)
    if operation.outcome is not Outcome.OK:
        return None
    return Action(operation, invoked, completed, False, False, operation.digest, operation.version)


def _observed_by_listings(
    listings: Iterable[Operation], paths: Sequence[str], verdict: Verdict
) -> dict[str, list[Action]]:
    """What each listing saw of each path below its prefix: an entry, or none."""
    observed: dict[str, list[Action]] = defaultdict(list)
    known = set(paths)
    for listing in listings:
        entries = {entry.path: entry for entry in listing.entries}
        names = [entry.path for entry in listing.entries]
        if any(not name.startswith(listing.path) for name in names) or any(a >= b for a, b in pairwise(names)):
            message = "a listing must hold each name once, below its prefix, in rising order"
            verdict.add(Violation("malformed_listing", listing.path, message, (listing,)))
        for name in names:
            if name not in known:
                verdict.add(Violation("phantom_file", name, "a listing shows a file that nobody wrote", (listing,)))
        first, end = bisect_left(paths, listing.path), bisect_left(paths, listing.path + _LAST_CHARACTER)
        for path in paths[first:end]:
            entry = entries.get(path)
            digest, version = (entry.digest, entry.version) if entry is not None else ("", 0)
            observed[path].append(Action(listing, listing.invoked, listing.completed, False, False, digest, version))
    return observed


def _with_told_versions(actions: list[Action]) -> list[Action]:
    """Give puts whose version was not acknowledged the one that readers were told, when nothing else fits."""
    puts: dict[str, int] = defaultdict(int)
    for action in actions:
        if action.writes:
            puts[action.digest] += 1
    told = {action.digest: action.version for action in actions if not action.writes and action.version}
    return [
        action._replace(version=told[action.digest])
        if action.writes and not action.version and action.digest in told and puts[action.digest] == 1
        else action
        for action in actions
    ]


def _plain_contradictions(path: str, asked: list[Operation], actions: list[Action]) -> Iterator[Violation]:
    """What needs no search: bytes that nobody wrote, refused writes that show, versions out of order."""
    writers: dict[str, list[Action]] = defaultdict(list)
    for action in actions:
        if action.writes:
            writers[action.digest].append(action)
    for seen in actions:
        if seen.writes or not seen.digest:
            continue
        known = writers.get(seen.digest, [])
        if not known:
            refused = [put for put in asked if put.kind is Kind.PUT and put.digest == seen.digest]
            if refused:
                story = _in_order([*refused, seen.operation])
                yield Violation("failed_write_visible", path, "a write that failed for certain can be read", story)
            else:
                yield Violation("corrupt_bytes", path, "bytes that nobody ever wrote there", (seen.operation,))
        elif len(known) == 1 and seen.version and known[0].version not in (0, seen.version):
            story = _in_order([known[0].operation, seen.operation])
            message = f"one write has two versions, {known[0].version} and {seen.version}"
            yield Violation("applied_twice", path, message, story)
    yield from _version_contradictions(path, [action for action in actions if action.writes and not action.optional])


def _version_contradictions(path: str, writes: list[Action]) -> Iterator[Violation]:
    acknowledged = [write for write in writes if write.operation.version]
    owner: dict[int, Action] = {}
    for write in acknowledged:
        other = owner.setdefault(write.version, write)
        if other is not write:
            story = _in_order([other.operation, write.operation])
            yield Violation("version_order", path, f"two writes have version {write.version}", story)
    ended = sorted(acknowledged, key=lambda write: write.completed)
    highest: Action | None = None
    at = 0
    for write in sorted(acknowledged, key=lambda write: write.invoked):
        while ended[at].completed < write.invoked:
            highest = ended[at] if highest is None or ended[at].version > highest.version else highest
            at += 1
        if highest is not None and highest.version >= write.version:
            story = _in_order([highest.operation, write.operation])
            yield Violation(
                "version_order", path, "a write that began after another ended has no higher version", story
            )


# -- the story -----------------------------------------------------------------------------------------------------
def _smallest(actions: Sequence[Action]) -> list[Action]:
    """A few of the actions that have no explanation, whatever the others were.

    Takes the shortest prefix in time without one. All but its last operation are relaxed, an observation left out, a
    write made optional within its time, which only weakens; then those without which the rest can be explained are
    made firm again, one at a time, found by halving.
    """
    ends = sorted({action.completed for action in actions if not action.optional})
    low, high = 0, len(ends) - 1
    while low < high:
        middle = (low + high) // 2
        if search(_until(actions, ends[middle]), _STORY_STATES_MAX)[0] is False:
            high = middle
        else:
            low = middle + 1
    prefix = _until(actions, ends[high])
    newest_first = sorted((action for action in prefix if not action.optional), key=lambda one: -one.completed)
    firm, pool = newest_first[:1], sorted(newest_first[1:], key=lambda one: not one.writes)
    while pool and len(firm) < _STORY_FIRM_MAX and not _contradicts(firm, prefix):
        low, high = 1, len(pool)
        while low < high:
            middle = (low + high) // 2
            if _contradicts(firm + pool[:middle], prefix):
                high = middle
            else:
                low = middle + 1
        firm.append(pool[high - 1])
        del pool[high - 1 :]
    observed = {action.digest for action in firm if not action.writes and action.digest}
    return [action for action in prefix if action in firm or (action.writes and action.digest in observed)]


def _contradicts(firm: list[Action], prefix: list[Action]) -> bool:
    relaxed = [one._replace(optional=True) for one in prefix if one.writes and not one.optional and one not in firm]
    optional = [one for one in prefix if one.optional]
    return search([*firm, *relaxed, *optional], _STORY_STATES_MAX)[0] is False


def _until(actions: Sequence[Action], end: int) -> list[Action]:
    """The history as it stood at event `end`: what runs then is unknown."""
    part: list[Action] = []
    for action in actions:
        if action.invoked > end:
            continue
        if action.completed <= end or action.optional:
            part.append(action)
        elif action.writes:
            part.append(action._replace(optional=True, completed=NEVER))
    return part


def _in_order(operations: Iterable[Operation]) -> tuple[Operation, ...]:
    numbered = {operation.number: operation for operation in operations}
    return tuple(numbered[number] for number in sorted(numbered))


def _tell(path: str, asked: list[Operation], story: list[Action]) -> Violation:
    """Name what a story shows, as well as can be told from its last observation."""
    told = [action.operation for action in story]
    last = max((action for action in story if not action.optional), key=lambda action: action.completed)
    before = [one for one in story if one is not last and not one.optional and one.invoked < last.completed]
    rival = max(before, key=lambda one: one.invoked, default=None)
    if last.writes:
        kind, message = "no_order", "no order of these operations gives every client what it saw"
        if last.needs_file:
            kind, message = "deleted_nothing", "a delete was acknowledged where there was no file"
    elif not last.digest:
        refused = [one for one in asked if one.kind is Kind.DELETE and one.outcome is Outcome.FAILED]
        refused = [one for one in refused if not one.found_nothing and one.invoked < last.completed]
        if refused:
            told += refused
            kind, message = "failed_write_visible", "a delete that failed for certain took effect"
        elif last.operation.kind is Kind.LIST:
            kind, message = "list_missed", "a listing leaves out a file that was there all the while"
        else:
            kind, message = "lost_write", "an acknowledged write cannot be read"
    elif is_unavailable(last.operation):
        kind, message = "unexcused", "unavailable, but what only the lost node held is not the current version"
    else:
        writers = [one for one in asked if one.kind is Kind.PUT and one.digest == last.digest]
        told += [one for one in writers if one.outcome is not Outcome.FAILED][:1]
        ended = min((one.completed for one in writers if one.outcome is Outcome.OK), default=NEVER)
        seen = [one for one in before if not one.writes and one is not rival]
        if all(one.invoked > last.completed for one in writers):
            kind, message = "read_before_write", "bytes were read before anybody wrote them"
        elif rival is not None and not rival.digest:
            kind, message = "resurrection", "a deleted file came back"
        elif rival is not None and ended > rival.invoked and any(one.digest == last.digest for one in seen):
            kind, message = "applied_twice", "bytes came back after others had replaced them: one write, two effects"
        else:
            kind, message = "stale_read", "older bytes were read after newer ones were acknowledged or seen"
    return Violation(kind, path, message, _in_order(told))


# -- the end -------------------------------------------------------------------------------------------------------
def _check_final(
    paths: Sequence[str], by_path: dict[str, list[Operation]], listings: Sequence[Operation]
) -> Iterator[Violation]:
    """That everything was read and listed after the last write; what was seen there, the search has judged."""
    ends = [one.completed for path in paths for one in by_path[path] if one.kind in WRITES and one.completed != NEVER]
    quiet_from = max(ends, default=-1)
    prefixes = [listing.path for listing in listings if listing.final and listing.invoked > quiet_from]
    for path in paths:
        asked = by_path[path]
        last = max((one for one in asked if one.kind in WRITES), key=lambda one: one.invoked)
        reads = [one for one in asked if one.final and one.kind is Kind.GET and one.invoked > quiet_from]
        if not any(one.outcome is Outcome.OK for one in reads):
            yield Violation("final_unread", path, "not readable at the end", _in_order([last, *reads]))
        if not any(path.startswith(prefix) for prefix in prefixes):
            yield Violation("final_unlisted", path, "below no listing at the end", (last,))
