"""What clients asked and what they were answered: the record that `kit.checker` judges.

A history is a list of events, each operation's invocation and its completion. The position in the list is the order
in which the recording process saw them, so "ended before the other began" needs no clock; seconds are for people.
The idea is that of Jepsen's and etcd's robustness histories. Knows nothing of the cluster and does no I/O but
`dump` and `load`.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import msgspec

NEVER = 1 << 62  #: the completion index of an operation whose effect may still come


class Kind(StrEnum):
    """What was asked."""

    PUT = "put"
    DELETE = "delete"
    GET = "get"
    STAT = "stat"
    LIST = "list"


WRITES = frozenset({Kind.PUT, Kind.DELETE})


class Outcome(StrEnum):
    """What the client knows when the call ends."""

    OK = "ok"
    FAILED = "failed"  #: a write had no effect and never will have
    UNKNOWN = "unknown"  #: a write may take effect at any time from its invocation on, or never


class Listed(msgspec.Struct, frozen=True, array_like=True):
    """One entry of a listing."""

    path: str
    version: int
    digest: str


class Invoked(msgspec.Struct, frozen=True, omit_defaults=True, tag="invoked", tag_field="event"):
    """A client is about to send something."""

    number: int  #: the operation's name in this history, rising
    client: int
    kind: Kind
    path: str  #: of a listing: the prefix
    at_s: float  #: since the history began
    write_id: str = ""  #: names the write in its payload; writes only
    digest: str = ""  #: `blake3:<hex>` of what a put stores
    size_bytes: int = 0
    final: bool = False  #: belongs to the reading of everything after faults have healed


class Completed(msgspec.Struct, frozen=True, omit_defaults=True, tag="completed", tag_field="event"):
    """A client knows the outcome, or knows that it will not know."""

    number: int
    outcome: Outcome
    at_s: float
    digest: str = ""  #: of what was read or stated; empty when there was no file
    version: int = 0  #: as stored, stated or read; 0: not told
    error: str = ""  #: code of the error; a read that found no file is `ok` and has none
    note: str = ""  #: what a person should know, such as the first wrong byte
    entries: tuple[Listed, ...] = ()


Event = Invoked | Completed


@dataclass(frozen=True, slots=True)
class Operation:
    """An invocation with its completion, if it came."""

    number: int
    client: int
    kind: Kind
    path: str
    invoked: int  #: position of the event; smaller is earlier
    completed: int  #: likewise; `NEVER` when it did not end
    invoked_s: float
    completed_s: float  #: infinite when it did not end
    outcome: Outcome
    write_id: str = ""
    digest: str = ""  #: put: what it stores; get, stat: what it found, empty for no file
    size_bytes: int = 0
    version: int = 0
    error: str = ""
    note: str = ""
    final: bool = False
    entries: tuple[Listed, ...] = ()

    @property
    def found_nothing(self) -> bool:
        """A definite answer that there is no such file."""
        if self.kind is Kind.DELETE:
            return self.outcome is Outcome.FAILED and self.error == "not_found"
        return self.kind in (Kind.GET, Kind.STAT) and self.outcome is Outcome.OK and not self.digest

    def __str__(self) -> str:
        end = "   never  " if math.isinf(self.completed_s) else f"{self.completed_s:9.4f}s"
        if self.kind is Kind.LIST:
            what = f"{len(self.entries)} entries"
        elif self.kind is Kind.DELETE:
            what = self.write_id
        else:
            what = f"{self.write_id} {self.digest.removeprefix('blake3:')[:12] or 'no file'}".strip()
        version = f" version {self.version}" if self.version else ""
        told = " ".join(text for text in (self.error, self.note) if text)
        return (
            f"{self.invoked_s:9.4f}s ..{end}  client {self.client:<3} {self.kind:<6} {self.path}  {what}{version}"
            f" -> {self.outcome}{': ' + told if told else ''}"
        )


class History:
    """Append-only; its methods may be called from many tasks and threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began_s = clock()
        self._lock = threading.Lock()
        self._events: list[Event] = []
        self._next = 0
        self._running: set[int] = set()

    def __len__(self) -> int:
        """Operations invoked so far."""
        return self._next

    @property
    def position(self) -> int:
        """Of the next event: what begins from now on is `invoked` there or later."""
        with self._lock:
            return len(self._events)

    def now_s(self) -> float:
        """Seconds since the history began."""
        return self._clock() - self._began_s

    def invoke(
        self,
        client: int,
        kind: Kind,
        path: str,
        *,
        write_id: str = "",
        digest: str = "",
        size_bytes: int = 0,
        final: bool = False,
    ) -> int:
        """Note that an operation is about to be sent; call it before the first byte leaves. Returns its number."""
        with self._lock:
            number = self._next
            self._next += 1
            self._running.add(number)
            at_s = self._clock() - self._began_s
            self._events.append(Invoked(number, client, kind, path, at_s, write_id, digest, size_bytes, final))
        return number

    def complete(
        self,
        number: int,
        outcome: Outcome,
        *,
        digest: str = "",
        version: int = 0,
        error: str = "",
        note: str = "",
        entries: Iterable[Listed] = (),
    ) -> None:
        """Note an outcome; call it after the answer came. `ValueError` for an operation that is not running."""
        with self._lock:
            if number not in self._running:
                raise ValueError(f"operation {number} is not running: never invoked, or completed before")
            self._running.remove(number)
            at_s = self._clock() - self._began_s
            self._events.append(Completed(number, outcome, at_s, digest, version, error, note, tuple(entries)))

    def operations(self) -> list[Operation]:
        """All operations in the order of invocation; those still running count as unknown and never ended."""
        with self._lock:
            events = list(self._events)
        ends = {event.number: (at, event) for at, event in enumerate(events) if isinstance(event, Completed)}
        return [
            _join(at, event, ends.get(event.number)) for at, event in enumerate(events) if isinstance(event, Invoked)
        ]

    def dump(self, file: Path) -> None:
        """Write one JSON line per event, so that a run can be kept and judged again. Blocks; not fsync'd."""
        with self._lock:
            events = list(self._events)
        encoder = msgspec.json.Encoder()
        with file.open("wb") as out:
            for start in range(0, len(events), 1000):
                out.write(encoder.encode_lines(events[start : start + 1000]))

    @classmethod
    def load(cls, file: Path) -> History:
        """The history that `dump` wrote. Blocks.

        Raises:
            ValueError: a line is no event (`msgspec.ValidationError`), or a completion has no invocation before it.
        """
        decoder = msgspec.json.Decoder(Event)
        history = cls()
        with file.open("rb") as lines:
            history._events = [decoder.decode(line) for line in lines]
        for event in history._events:
            if isinstance(event, Invoked):
                if event.number != history._next:
                    raise ValueError(f"{file}: operation {event.number} where {history._next} should be")
                history._next += 1
                history._running.add(event.number)
            elif event.number in history._running:
                history._running.remove(event.number)
            else:
                raise ValueError(f"{file}: operation {event.number} ends, but is not running")
        return history


def _join(at: int, begin: Invoked, end: tuple[int, Completed] | None) -> Operation:
    completed, answer = end if end is not None else (NEVER, Completed(begin.number, Outcome.UNKNOWN, math.inf))
    return Operation(
        number=begin.number,
        client=begin.client,
        kind=begin.kind,
        path=begin.path,
        invoked=at,
        completed=completed,
        invoked_s=begin.at_s,
        completed_s=answer.at_s,
        outcome=answer.outcome,
        write_id=begin.write_id,
        digest=begin.digest if begin.kind in WRITES else answer.digest,
        size_bytes=begin.size_bytes,
        version=answer.version,
        error=answer.error,
        note=answer.note,
        final=begin.final,
        entries=answer.entries,
    )


@dataclass(frozen=True, slots=True)
class Availability:
    """What clients felt, as a row of the drills' table."""

    reads: int
    reads_failed: int
    writes: int
    writes_failed: int  #: definitely not applied, a delete of nothing aside
    writes_unknown: int
    read_stall_max_s: float  #: longest time that one client waited for an answer, over as many calls as that took
    write_stall_max_s: float


def availability(operations: Sequence[Operation], since_s: float = 0.0, until_s: float = math.inf) -> Availability:
    """Figures over the operations that ran at some time in [since_s, until_s], seconds of the history.

    A stall goes on through failed calls until one is answered; the last one of a client ends with its last call.
    """
    counts = {"reads": 0, "reads_failed": 0, "writes": 0, "writes_failed": 0, "writes_unknown": 0}
    waiting: dict[tuple[int, bool], float] = {}
    stalls_s = {True: 0.0, False: 0.0}
    for operation in operations:
        if operation.completed_s < since_s or operation.invoked_s > until_s:
            continue
        is_write = operation.kind in WRITES
        answered = operation.outcome is Outcome.OK or operation.found_nothing
        counts["writes" if is_write else "reads"] += 1
        if not answered:
            unknown = is_write and operation.outcome is Outcome.UNKNOWN
            counts["writes_unknown" if unknown else "writes_failed" if is_write else "reads_failed"] += 1
        key = (operation.client, is_write)
        begin_s = waiting.setdefault(key, operation.invoked_s)
        if not math.isinf(operation.completed_s):
            stalls_s[is_write] = max(stalls_s[is_write], operation.completed_s - begin_s)
        if answered:
            del waiting[key]
    return Availability(**counts, read_stall_max_s=stalls_s[False], write_stall_max_s=stalls_s[True])
