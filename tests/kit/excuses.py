"""What may be unavailable while a node is away, and what the history must show of it. Pure; `kit.checker` asks.

A store that acknowledges writes before they are copied loses nothing with a node, but what only that node held cannot
be read until it is back. Which files those are is known beforehand, as copy debt: a drill writes them down as
`Excused` before it takes the node away, with the exact versions. An answer `unavailable` is then an observation like
any other: it says that the current version is the excused one, so it must fit the order of writes and deletes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from copypool.protocol.drills import LossFile
from kit.history import NEVER, WRITES, Kind, Operation, Outcome

UNAVAILABLE = "unavailable"  #: code of the error that says so


@dataclass(frozen=True, slots=True)
class Excused:
    """One version of one file that only nodes which are then away hold; written down before they leave."""

    path: str
    version: int
    digest: str  #: `blake3:<hex>` of the whole file
    since: int  #: `History.position` before the first of them was taken away
    until: int = NEVER  #: `History.position` once the last of them serves again; never: the history ends before


def of_loss(files: Iterable[LossFile], since: int, until: int = NEVER) -> list[Excused]:
    """What a simulated loss named beforehand, excused while the node is really away."""
    return [Excused(file.path, file.version, file.digest, since, until) for file in files]


class Finding(NamedTuple):
    """What is wrong, before it is told."""

    kind: str
    path: str
    message: str
    story: tuple[Operation, ...]


class Excuses:
    """The excused versions of a history. `ValueError` for two of one path that overlap in time, or no time at all."""

    def __init__(self, excused: Iterable[Excused]) -> None:
        by_path: dict[str, list[Excused]] = defaultdict(list)
        for one in sorted(excused, key=lambda one: one.since):
            by_path[one.path].append(one)
            if one.until < one.since or not one.digest:
                raise ValueError(f"{one} excuses nothing: it needs a digest, and must not end before it begins")
        for path, several in by_path.items():
            if any(later.since < earlier.until for earlier, later in pairwise(several)):
                raise ValueError(f"{path} is excused twice at the same time")
        self._by_path: Mapping[str, Sequence[Excused]] = by_path

    def of_read(self, read: Operation) -> list[Excused]:
        """The excuses for this answer `unavailable`: of several, any may be the reason."""
        return [one for one in self._by_path.get(read.path, ()) if _overlaps(read, one.since, one.until)]

    def never_written(self, by_path: Mapping[str, Sequence[Operation]]) -> Iterator[Finding]:
        """Excuses for bytes that nobody wrote there: the debt names what does not exist."""
        for path, several in self._by_path.items():
            puts = {one.digest for one in by_path.get(path, ()) if one.kind is Kind.PUT and _may_apply(one)}
            for one in several:
                if one.digest not in puts:
                    yield Finding("phantom_excuse", path, f"nobody wrote {one.digest}, version {one.version}", ())

    def unfounded(self, by_path: Mapping[str, Sequence[Operation]]) -> Iterator[Finding]:
        """Reads answered `unavailable` without an excuse. Whether the excused ones fit is for the search to say."""
        for path, asked in by_path.items():
            for one in asked:
                if not is_unavailable(one) or self.of_read(one):
                    continue
                back = [each for each in self._by_path.get(path, ()) if each.until <= one.invoked]
                if back:
                    yield Finding("not_back", path, "unavailable though the node that held it is back", (one,))
                else:
                    yield Finding("unexcused", path, "unavailable though not only the lost node held it", (one,))

    def unproven(self, by_path: Mapping[str, Sequence[Operation]]) -> Iterator[Finding]:
        """Excused versions nobody asked for while their nodes were away, or that were not read once they were back.

        A client that gave up, or was told something else than `unavailable`, was not told what is the matter. What is
        overwritten or deleted while its nodes are away, or might be, need not be asked for.
        """
        for path, several in self._by_path.items():
            asked = by_path.get(path, ())
            for one in several:
                answers = [each for each in asked if _told(each, one)]
                if not any(_overlaps(each, one.since, one.until) for each in answers) and not any(
                    _replaces(each, one) for each in asked
                ):
                    message = "nobody was told `unavailable` while only a lost node held it"
                    yield Finding("not_reported", path, message, _gets(asked, one.since, one.until))
            last = several[-1]
            if not any(each.kind is Kind.GET and each.outcome is Outcome.OK for each in _after(asked, last.until)):
                message = "not read since the node that held it is back"
                yield Finding("not_back", path, message, _gets(asked, last.until, NEVER))


def is_unavailable(operation: Operation) -> bool:
    """Whether this is a read that was answered `unavailable`."""
    return operation.kind is Kind.GET and operation.outcome is not Outcome.OK and operation.error == UNAVAILABLE


def _overlaps(operation: Operation, since: int, until: int) -> bool:
    """Whether it ran at some time between these positions, which lie before the events of these numbers."""
    return operation.invoked < until and operation.completed >= since


def _may_apply(write: Operation) -> bool:
    return write.outcome is not Outcome.FAILED


def _told(read: Operation, one: Excused) -> bool:
    whole = read.kind is Kind.GET and read.outcome is Outcome.OK and read.digest == one.digest
    return whole or is_unavailable(read)


def _replaces(write: Operation, one: Excused) -> bool:
    """Whether another version may have taken its place before its nodes were back."""
    if write.kind not in WRITES or not _may_apply(write) or not _overlaps(write, one.since, one.until):
        return False
    return write.kind is Kind.DELETE or write.digest != one.digest


def _after(asked: Sequence[Operation], position: int) -> list[Operation]:
    return [each for each in asked if each.invoked >= position]


def _gets(asked: Sequence[Operation], since: int, until: int) -> tuple[Operation, ...]:
    """The reads of a time that ended without bytes; a few are enough to tell it."""
    failed = [each for each in asked if each.kind is Kind.GET and each.outcome is not Outcome.OK]
    return tuple(each for each in failed if _overlaps(each, since, until))[:3]
