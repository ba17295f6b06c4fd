"""Which faults a soak injects, one after the other: drawn from a seed, so that a run can be repeated. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from drills.catalogs import MEMBERS, LeaderMoved, QuorumLost
from drills.clocks import LeaderStepped, Stepped
from drills.faults import Both, EtcdLeaderKilled, Fault, Killed, LeaderKilled, Paused, RollingRestart
from drills.networks import Cut, Lossy, Slow
from drills.volumes import Deleted, Failing, Flipped, Full, ReadOnly, Stale, Wiped

NODES = ("node1", "node2", "node3", "node4")
COORDINATORS = ("coordinator1", "coordinator2")
#: How long a fault lasts: most end before a session does, some beyond session and grace.
SHORT_S = (0.3, 3.0)
LONG_S = (9.5, 12.0)
LONG_SHARE = 0.12


@dataclass(frozen=True, slots=True)
class Planned:
    """One fault, or two at once."""

    number: int
    kind: str
    fault: Fault
    hold_s: float
    #: It takes bytes away: all must be at policy before, for a policy of two copies promises nothing else.
    destroys: bool

    @property
    def faults(self) -> int:
        """How many."""
        return 2 if isinstance(self.fault, Both) else 1


_Make = Callable[[random.Random], Fault]


def _any(source: random.Random, *groups: Sequence[str]) -> str:
    return source.choice([name for group in groups for name in group])


def _cut(source: random.Random) -> Fault:
    both_ways = source.random() < 0.5
    node, coordinator, member = (source.choice(group) for group in (NODES, COORDINATORS, MEMBERS))
    primary, copy = source.choice(NODES[:2]), source.choice(NODES[2:])
    others = [name for name in MEMBERS if name != member]
    sides: list[tuple[Sequence[str], Sequence[str]]] = [
        ([node], COORDINATORS),
        (COORDINATORS, [node]),
        ([primary], [copy]),
        ([copy], [primary]),
        ([coordinator], MEMBERS),
        ([coordinator], [member]),
        ([member], others),
    ]
    sources, targets = source.choice(sides)
    return Cut(list(sources), list(targets), both_ways)


def _two(source: random.Random) -> Fault:
    """Two at once that policy promises to survive: of different kinds, and no two nodes."""
    one, other = source.sample([NODES, COORDINATORS, MEMBERS], 2)
    faults: list[Fault] = [
        Killed(source.choice(group)) if source.random() < 0.6 else Paused([source.choice(group)])
        for group in (one, other)
    ]
    return Both(*faults)


def _step_s(source: random.Random) -> int:
    """Minutes to an hour, ahead or back."""
    return source.choice([-1, 1]) * source.choice([120, 600, 3600])


#: kind, share, how to make one, whether it destroys
_KINDS: list[tuple[str, int, _Make, bool]] = [
    ("node killed", 16, lambda source: Killed(_any(source, NODES)), False),
    ("coordinator killed", 6, lambda source: Killed(_any(source, COORDINATORS)), False),
    ("etcd member killed", 6, lambda source: Killed(_any(source, MEMBERS)), False),
    ("leader killed", 6, lambda source: LeaderKilled(), False),
    ("etcd leader killed", 4, lambda source: EtcdLeaderKilled(), False),
    ("etcd leader moved", 3, lambda source: LeaderMoved(), False),
    ("process paused", 12, lambda source: Paused([_any(source, NODES, COORDINATORS, MEMBERS)]), False),
    ("etcd stalled", 3, lambda source: Paused(list(MEMBERS)), False),
    ("etcd quorum lost", 3, lambda source: QuorumLost(source.sample(MEMBERS, 2)), False),
    ("two at once", 14, _two, False),
    ("cut", 12, _cut, False),
    ("packets lost", 5, lambda source: Lossy([_any(source, NODES, COORDINATORS, MEMBERS)], 0.15), False),
    (
        "slow process",
        5,
        lambda source: Slow([_any(source, NODES, COORDINATORS)], 200, 100, source.randrange(99)),
        False,
    ),
    ("clock stepped", 5, lambda source: Stepped(_any(source, NODES, COORDINATORS), _step_s(source)), False),
    ("leader's clock stepped", 3, lambda source: LeaderStepped(_step_s(source)), False),
    ("rolling restart", 1, lambda source: RollingRestart(), False),
    ("disk full", 3, lambda source: Full(_any(source, NODES)), False),
    ("disk read-only", 2, lambda source: ReadOnly(_any(source, NODES)), True),
    ("disk fails", 2, lambda source: Failing(_any(source, NODES)), True),
    ("bits flipped", 4, lambda source: Flipped(_any(source, NODES), source.randrange(1 << 30)), True),
    ("files deleted", 3, lambda source: Deleted(_any(source, NODES), source.randrange(1 << 30)), True),
    ("disk wiped", 1, lambda source: Wiped(_any(source, NODES)), True),
    ("older disk back", 1, lambda source: Stale(_any(source, NODES)), True),
]


def schedule(seed: int) -> Iterator[Planned]:
    """Faults without end; the same for the same seed."""
    source = random.Random(seed)
    shares = [share for _, share, _, _ in _KINDS]
    number = 0
    while True:
        number += 1
        kind, _, make, destroys = source.choices(_KINDS, shares)[0]
        hold_s = source.uniform(*(LONG_S if source.random() < LONG_SHARE else SHORT_S))
        yield Planned(number, kind, make(source), hold_s, destroys)
