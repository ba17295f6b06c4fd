"""Which cases there are, in the order they run, with their targets; and how one is run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import uvloop

from bench import cases
from bench.copypool_side import CopypoolSide
from bench.processes import yardstick_us
from bench.results import CaseResult, Round
from bench.seaweed import Seaweed


@dataclass(frozen=True)
class Plan:
    """How much is done."""

    rounds: int = 3  #: of each side, taking turns
    seconds: int = 5  #: of load per round
    many_files: int = 12_000
    tree_files: int = 30_000
    stream_mib: int = 1024


QUICK = Plan(rounds=1, seconds=2, many_files=4000, tree_files=3000, stream_mib=128)


@dataclass(frozen=True)
class Ground:
    """What the cases run on. `peer` is None when only Copypool is measured."""

    side: CopypoolSide
    peer: Seaweed | None
    plan: Plan
    folder: Path  #: for files of the cases


Turn = Callable[[Ground], Round]
PeerTurn = Callable[[Seaweed, Ground], Round]


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    key: str  #: what `--only` names
    title: str
    own: Turn
    peer: PeerTurn | None = None
    target: float = 0.0  #: of the ratio of rates; 0: none
    note: str = ""  #: what is durable or checked at the answer
    unit: str = "op"
    prepare: Callable[[Ground], None] = lambda _: None
    once: bool = False  #: one round is enough, or all that fits


def run(case: Case, ground: Ground, say: Callable[[str], None]) -> CaseResult:
    """All rounds of a case, the sides taking turns."""
    case.prepare(ground)
    turns = [case.own]
    if case.peer is not None and ground.peer is not None:
        turns.append(partial(case.peer, ground.peer))
    rounds: list[Round] = []
    for turn in turns * (1 if case.once else ground.plan.rounds):
        before_us = yardstick_us()
        done = turn(ground)
        rounds.append(msgspec.structs.replace(done, yardstick_us=(before_us + yardstick_us()) / 2))
        say(f"{case.title}: {rounds[-1].line(case.unit)}")
    return CaseResult(case.title, case.unit, rounds, case.target, case.note)


def _awaited(case: Callable[[Ground], Coroutine[None, None, Round]]) -> Turn:
    return lambda ground: uvloop.run(case(ground))


def _store_for_get(ground: Ground) -> None:
    asyncio.run(cases.store_for_get(ground.side, ground.folder))
    if ground.peer is not None:
        cases.peer_store_for_get(ground.peer, ground.folder)


def _put(key: str, connections: int, target: float) -> Case:
    return Case(
        key,
        f"4 KiB durable PUT by name, {connections} connections",
        lambda ground: cases.put_small(ground.side, connections, ground.plan.seconds),
        lambda peer, ground: cases.peer_put_small(peer, connections, ground.plan.seconds),
        target,
        "durable on both sides at the answer: one copy fsync'd; Copypool's name besides in etcd, fsync'd too",
    )


#: The copy node is down until the last case: one durable copy on both sides.
SUITE = (
    _put("put64", 64, 2.0),
    _put("put128", 128, 2.4),
    Case(
        "many",
        "4 KiB durable files, `put_many`",
        _awaited(lambda ground: cases.put_many(ground.side, ground.plan.many_files)),
        lambda peer, ground: cases.peer_put_small(peer, 64, ground.plan.seconds),
        5.0,
        "`sdk` is the CPU of the client; the peer is its filer with fsync, 64 connections, one request per file",
    ),
    Case(
        "get",
        "4 KiB GET by name, 64 connections",
        lambda ground: cases.get_small(ground.side, ground.folder, 64, ground.plan.seconds),
        lambda peer, ground: cases.peer_get_small(peer, ground.folder, 64, ground.plan.seconds),
        2.0,
        "one request of a plain HTTP client to coordinator or filer; Copypool checks blocks before they leave the node",
        prepare=_store_for_get,
    ),
    Case(
        "segment",
        "4 KiB GET from the node, 64 connections",
        lambda ground: cases.get_segment(ground.side, ground.folder, 64, ground.plan.seconds),
        note="location and capability known; checked at the node",
        prepare=_store_for_get,
    ),
    Case(
        "stream-put",
        "large file, put by the SDK",
        _awaited(lambda ground: cases.put_stream(ground.side, ground.folder / "large", ground.plan.stream_mib)),
        note="durable; `sdk` is the CPU of the client",
        unit="MiB",
        prepare=lambda ground: cases.make_large(ground.folder / "large", ground.plan.stream_mib),
        once=True,
    ),
    Case(
        "stream-get",
        "large file, read by the SDK",
        _awaited(lambda ground: cases.get_stream(ground.side)),
        note="of the case before; checked block by block and as a whole; `sdk` is the CPU of the client",
        unit="MiB",
        once=True,
    ),
    Case(
        "tree",
        "tree of small files, `put_tree`",
        _awaited(lambda ground: cases.put_tree(ground.side, ground.folder / "tree")),
        note="read from disk, durable; `sdk` is the CPU of the client",
        prepare=lambda ground: cases.make_tree(ground.folder / "tree", ground.plan.tree_files),
        once=True,
    ),
    Case(
        "copies",
        "4 KiB durable PUT by name, 64 connections, with copies",
        lambda ground: cases.put_small(ground.side, 64, ground.plan.seconds),
        note="the copy node runs and pulls everything meanwhile, what it was owed before included",
        prepare=lambda ground: ground.side.begin_copies(),
        once=True,
    ),
)
