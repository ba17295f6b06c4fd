"""What a case is: sides that take turns (`Contest`), or values held against bounds (`Gauge`); and what it runs on.

A module of cases has a tuple `CASES`; `suite` puts them into one, in the order of the table.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, TypeVar

import msgspec
import uvloop

from bench.processes import yardstick_us
from bench.results import Figure, Round, Target

T = TypeVar("T")


class CaseFailed(Exception):
    """A case cannot go on, and why."""


class PeerMissing(CaseFailed):
    """A side is not on this machine; the others go on without it. The message says how to get it."""


@dataclass(frozen=True)
class Plan:
    """How much is done."""

    quick: bool = False  #: a look at whether all of it works; the figures are worth little
    rounds: int = 5  #: of each side, taking turns; fewer where one round takes long
    seconds: int = 3  #: of load per round
    many_files: int = 12_000
    tree_files: int = 30_000
    stream_mib: int = 1024
    peers: bool = True  #: False: Copypool alone


QUICK = Plan(quick=True, rounds=1, seconds=1, many_files=2000, tree_files=2000, stream_mib=64)


class Ground:
    """What cases run on: sides that are started when first asked for, and end with the ground."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._stack = ExitStack()
        #: For files of the cases; empty at first, and the last to go.
        self.folder = Path(self._stack.enter_context(TemporaryDirectory(prefix="copypool-bench-files-")))
        self._used: dict[object, object] = {}

    def use(self, start: Callable[[], AbstractContextManager[T]]) -> T:
        """What this context manager gives: entered at the first call, left when the ground ends."""
        if start not in self._used:
            self._used[start] = self._stack.enter_context(start())
        found: T = self._used[start]  # type: ignore[assignment]
        return found

    def made(self, name: str, make: Callable[[Path], object]) -> Path:
        """The file or folder of that name in `folder`, made at the first call."""
        place = self.folder / name
        if not place.exists():
            make(place)
        return place

    def once(self, what: str, do: Callable[[], object]) -> None:
        """Do something for the first case on this ground that needs it done."""
        if what not in self._used:
            do()
            self._used[what] = None

    def close(self) -> None:
        """End what was started, last first."""
        self._used.clear()
        self._stack.close()


@dataclass
class Found:
    """What a case has found until now; kept when it breaks off later."""

    say: Callable[[str], None]
    rounds: list[Round] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def figure(self, name: str, values: float | Sequence[float], unit: str = "", *, value: float | None = None) -> None:
        """Note a figure. `value` is what is judged, by default the only one of `values`, or their median."""
        listed = [float(values)] if isinstance(values, (int, float)) else [float(each) for each in values]
        judged = sorted(listed)[len(listed) // 2] if value is None else value
        self.figures.append(Figure(name, judged, unit, listed if len(listed) > 1 else []))
        self.say(self.figures[-1].line())


class Case(Protocol):
    """One case: a row of the report, and a line of the table for each of its comparisons."""

    @property
    def key(self) -> str: ...  #: what `--only` names

    @property
    def title(self) -> str: ...

    @property
    def unit(self) -> str: ...  #: of one operation

    @property
    def targets(self) -> tuple[Target, ...]: ...

    @property
    def note(self) -> str: ...  #: what is durable or checked, and how it is measured

    @property
    def tried(self) -> str: ...  #: what was done about it, told where it falls short

    @property
    def ground(self) -> str: ...  #: neighbours of the same name share a ground; empty: it has its own

    @property
    def deadline_s(self) -> float: ...  #: for all of it, ends of what it started not counted

    def measure(self, ground: Ground, found: Found) -> None:
        """Blocking. Raises what it likes when it cannot go on; notes what it has in `found` meanwhile."""


Turn = Callable[[Ground], Round]


@dataclass(frozen=True)
class Contest:
    """Sides that take turns, A B C A B C; targets are of the median ratio over neighbouring rounds."""

    key: str
    title: str
    turns: tuple[tuple[str, Turn], ...]  #: by side; Copypool's own is `results.OWN`
    targets: tuple[Target, ...] = ()
    note: str = ""
    tried: str = ""
    unit: str = "op"
    ground: str = ""
    prepare: Callable[[Ground], object] | None = None
    rounds_max: int = 100
    deadline_s: float = 240.0

    def measure(self, ground: Ground, found: Found) -> None:
        if self.prepare is not None:
            self.prepare(ground)
        turns = dict(self.turns) if ground.plan.peers else dict(self.turns[:1])
        for _ in range(min(ground.plan.rounds, self.rounds_max)):
            for side, turn in list(turns.items()):
                try:
                    found.rounds.append(_metered(side, turn, ground))
                except PeerMissing as exc:
                    del turns[side]
                    found.missing.append(f"{side}: {exc}")
                    continue
                found.say(found.rounds[-1].line(self.unit))


def _metered(side: str, turn: Turn, ground: Ground) -> Round:
    os.sync()  # what one side left to the page cache is not written in the other's time
    before_us = yardstick_us()
    done = turn(ground)
    return msgspec.structs.replace(done, side=side, yardstick_us=(before_us + yardstick_us()) / 2)


@dataclass(frozen=True)
class Gauge:
    """Values that are held against bounds; the function notes them by `Found.figure`."""

    key: str
    title: str
    take: Callable[[Ground, Found], None]
    targets: tuple[Target, ...] = ()
    note: str = ""
    tried: str = ""
    unit: str = "op"
    ground: str = ""
    deadline_s: float = 240.0

    def measure(self, ground: Ground, found: Found) -> None:
        self.take(ground, found)


def awaited(work: Coroutine[Any, Any, T], deadline_s: float = 200.0) -> T:
    """Run asynchronous work of a turn on a loop as the SDK's users have it; `CaseFailed` at its deadline."""

    async def bounded() -> T:
        try:
            async with asyncio.timeout(deadline_s):
                return await work
        except TimeoutError as exc:
            raise CaseFailed(f"not done within {deadline_s:g} s") from exc

    return uvloop.run(bounded())


def keys_of(cases: Iterable[Case]) -> list[str]:
    return [case.key for case in cases]
