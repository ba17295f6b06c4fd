"""Faults of the network, made from outside: rules of iptables in a container's own name space, and a slow way in.

Packets are dropped where they arrive, so a cut in one direction is one rule in one place. All rules are in chains of
their own (`DRILL`), and go with them. The kernel that these drills are made for has no `netem`: delay is made by
`drills.delay`, which takes connections in front of the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from drills.cluster import DrillCluster
from drills.containers import is_ready

_DELAY = Path(__file__).with_name("delay.py")
_DELAY_PORT = 17000
_READY_S = 10.0
_ANSWER_MAX_S = 10.0  #: of one read; longer than the longest delay there and back
CHAIN = "DRILL"
_BEGIN = (f"iptables -w -N {CHAIN}", f"iptables -w -I INPUT -j {CHAIN}")
_END = (f"iptables -w -D INPUT -j {CHAIN}", f"iptables -w -F {CHAIN}", f"iptables -w -X {CHAIN}")


async def filtered(cluster: DrillCluster, name: str, rules: Sequence[str]) -> None:
    """Put rules in front of all that arrives at a container; those of an earlier fault there stay."""
    with contextlib.suppress(RuntimeError):  # the chain is there
        await cluster.in_network_of(name, _BEGIN)
    await cluster.in_network_of(name, [f"iptables -w -A {CHAIN} {rule}" for rule in rules])


async def unfiltered(cluster: DrillCluster, name: str) -> int:
    """Take all of them away; how many packets they stopped. A container that was restarted has none left."""
    stopped = 0
    with contextlib.suppress(RuntimeError):
        shown = await cluster.do(cluster.containers.in_network_of, name, *f"iptables -w -L {CHAIN} -nvx".split())
        stopped = sum(int(line.split()[0]) for line in shown.splitlines()[2:])
    for command in _END:
        with contextlib.suppress(RuntimeError):
            await cluster.in_network_of(name, [command])
    return stopped


async def in_force(cluster: DrillCluster, name: str) -> list[str]:
    """The rules that packets are dropped by at a container, as its kernel has them; none without a fault."""
    try:
        shown = await cluster.do(cluster.containers.in_network_of, name, *f"iptables -w -S {CHAIN}".split())
    except RuntimeError:  # there is no such chain
        return []
    return [line for line in shown.splitlines() if line.endswith("-j DROP")]


def _answer_s(cluster: DrillCluster, name: str) -> float | None:
    """How long a member takes to answer a new connection; None when it does not answer: that is not slow."""
    began_s = time.monotonic()
    if not is_ready(cluster.layout.member(name).ready_url, cluster.containers.trust, _ANSWER_MAX_S):
        return None
    return time.monotonic() - began_s


@dataclass(slots=True)
class Cut:
    """Nothing from `sources` arrives at `targets`; with `both_ways`, nothing in the other direction either."""

    sources: Sequence[str]
    targets: Sequence[str]
    both_ways: bool = True
    stopped: int = 0  #: packets, known after the healing

    async def inject(self, cluster: DrillCluster) -> None:
        await self._drop(cluster, self.sources, self.targets)
        if self.both_ways:
            await self._drop(cluster, self.targets, self.sources)

    async def _drop(self, cluster: DrillCluster, sources: Sequence[str], targets: Sequence[str]) -> None:
        rules = [f"-s {cluster.layout.member(source).address} -j DROP" for source in sources]
        for target in targets:
            await filtered(cluster, target, rules)

    async def felt(self, cluster: DrillCluster) -> bool:
        sides = [(self.sources, self.targets), *([(self.targets, self.sources)] if self.both_ways else [])]
        rules = {name: await in_force(cluster, name) for _, targets in sides for name in targets}
        return bool(rules) and all(
            any(cluster.layout.member(source).address in rule.replace("/", " ").split() for rule in rules[target])
            for sources, targets in sides
            for source in sources
            for target in targets
        )

    async def heal(self, cluster: DrillCluster) -> None:
        self.stopped = sum([await unfiltered(cluster, name) for name in {*self.sources, *self.targets}])
        await cluster.ready(*self.sources, *self.targets)


@dataclass(slots=True)
class Lossy:
    """A share of the packets that arrive at these is lost."""

    names: Sequence[str]
    share: float
    stopped: int = 0  #: packets, known after the healing

    async def inject(self, cluster: DrillCluster) -> None:
        for name in self.names:
            await filtered(cluster, name, [f"-m statistic --mode random --probability {self.share} -j DROP"])

    async def felt(self, cluster: DrillCluster) -> bool:
        rules = [await in_force(cluster, name) for name in self.names]
        return bool(rules) and all(any("--probability" in rule for rule in there) for there in rules)

    async def heal(self, cluster: DrillCluster) -> None:
        self.stopped = sum([await unfiltered(cluster, name) for name in self.names])
        await cluster.ready(*self.names)


@dataclass(slots=True)
class Slow:
    """What these send and receive as servers is late by `delay_ms` each way, more or less by `jitter_ms`."""

    names: Sequence[str]
    delay_ms: int
    jitter_ms: int = 0
    seed: int = 1
    _processes: list[asyncio.subprocess.Process] = field(default_factory=list, repr=False)

    async def inject(self, cluster: DrillCluster) -> None:
        for name in self.names:
            port = cluster.layout.member(name).port
            pid = await cluster.do(cluster.containers.pid, name)
            arguments = [str(each) for each in (_DELAY_PORT, port, self.delay_ms, self.jitter_ms, self.seed)]
            process = await asyncio.create_subprocess_exec(
                *("nsenter", "--target", str(pid), "--net", "--", sys.executable, str(_DELAY), *arguments),
                stdout=asyncio.subprocess.PIPE,
            )
            self._processes.append(process)
            assert process.stdout is not None
            assert await asyncio.wait_for(process.stdout.readline(), _READY_S) == b"ready\n"
            # New connections are led to the slow way in; those that are there are reset.
            redirect = f"-p tcp --dport {port} -j REDIRECT --to-ports {_DELAY_PORT}"
            await cluster.in_network_of(name, [f"iptables -w -t nat -A PREROUTING ! -i lo {redirect}"])
            await filtered(cluster, name, [f"! -i lo -p tcp --dport {port} -j REJECT --reject-with tcp-reset"])

    async def felt(self, cluster: DrillCluster) -> bool:
        waits_s = [await cluster.do(_answer_s, cluster, name) for name in self.names]
        least_s = 2 * (self.delay_ms - self.jitter_ms) / 1000
        return bool(waits_s) and all(wait_s is not None and wait_s >= least_s for wait_s in waits_s)

    async def heal(self, cluster: DrillCluster) -> None:
        for name in self.names:
            with contextlib.suppress(RuntimeError):
                await cluster.in_network_of(name, ["iptables -w -t nat -F PREROUTING"])
            await unfiltered(cluster, name)
        while self._processes:
            process = self._processes.pop()
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.communicate()
        await cluster.ready(*self.names)
