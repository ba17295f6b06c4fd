"""What every part of the catalog works with: the door to etcd, the view that follows it, cluster time, guards.

The mirror runs here, so that the view stays pure and the parts of the catalog stay free of tasks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

from copypool.protocol.errors import BrokenInvariant, CatalogDown, CopypoolError, Fenced, NotLeader, Unavailable
from copypool_coordinator import keys
from copypool_coordinator.clock import ClusterClock
from copypool_coordinator.etcd import Compare, Etcd, KeyValue, Listed, MirrorEvent, create_equals, mod_equals
from copypool_coordinator.etcd.requests import Target
from copypool_coordinator.view import ClusterView

log = logging.getLogger(__name__)

#: Optimistic transactions are planned again at most this often after a lost compare.
ROUNDS_MAX = 6
#: etcd takes this many operations in a branch, and compares, of one transaction.
TXN_OPS_MAX = 128


@dataclass(frozen=True, slots=True)
class LeaderGuard:
    """Proof of leadership that every controller transaction compares: a deposed leader changes nothing."""

    create_revision: int
    key: bytes = keys.LEADER

    @property
    def term(self) -> int:
        """The term, as nodes are told it."""
        return self.create_revision

    def compare(self) -> Compare:
        """The compare that holds while this leader leads."""
        return create_equals(self.key, self.create_revision)


class Core:
    """Shared by the parts of the catalog of one coordinator."""

    def __init__(self, etcd: Etcd, name: str, clock: ClusterClock, silence_s: float) -> None:
        self.etcd = etcd
        self.name = name
        self.clock = clock
        self.view = ClusterView()
        self._silence_s = silence_s
        self._waiting: set[asyncio.Future[None]] = set()
        self._mirror: asyncio.Task[None] | None = None
        self._blind: BrokenInvariant | None = None
        self.heard_s = 0.0  #: monotonic time of the last event

    def now_ms(self) -> int:
        """Cluster time."""
        return self.clock.now_ms()

    def start(self) -> None:
        """Begin to follow cluster state."""
        self._mirror = asyncio.create_task(self._follow(), name="catalog mirror")
        self._mirror.add_done_callback(self._mirror_ended)

    async def blinded(self) -> NoReturn:
        """Wait until the mirror ends by a failure, which is a row that this program cannot read, and raise it.

        A coordinator whose memory does not follow the catalog any more must not go on: it would route to what is gone.
        """
        if self._mirror is None:
            raise BrokenInvariant("the mirror was not started")
        await asyncio.wait([self._mirror])
        raise self._blind or BrokenInvariant("the mirror of the catalog ended")

    def _mirror_ended(self, mirror: asyncio.Task[None]) -> None:
        cause = None if mirror.cancelled() else mirror.exception()
        if cause is None:
            return
        self._blind = BrokenInvariant(
            f"the mirror of the catalog ended: {cause}; this coordinator is blind and must end"
        )
        self._blind.__cause__ = cause
        for future in self._waiting:
            if not future.done():
                future.set_exception(self._blind)

    async def close(self) -> None:
        """Stop following; everybody who waits for a fact gets `Unavailable`."""
        if self._mirror is not None:
            self._mirror.cancel()
            await asyncio.wait([self._mirror])
        for future in self._waiting:
            if not future.done():
                future.set_exception(Unavailable("the coordinator is shutting down"))

    async def wait_for(self, predicate: Callable[[ClusterView], bool], timeout_s: float) -> None:
        """Return once the predicate holds of the view; it is asked after every event.

        Raises:
            Unavailable: it did not hold in time.
            BrokenInvariant: the mirror has ended, see `blinded`.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not predicate(self.view):
                    if self._blind is not None:
                        raise self._blind
                    await self._next_event()
        except TimeoutError as exc:
            raise Unavailable(f"the catalog's memory did not learn a fact within {timeout_s} s: repeat") from exc

    async def _next_event(self) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await future
        finally:
            self._waiting.discard(future)

    async def caught_up(self, revision: int, timeout_s: float = 5.0) -> None:
        """Return once the view shows a write to cluster state that was made at `revision`."""
        await self.wait_for(lambda view: view.revision >= revision, timeout_s)

    async def _follow(self) -> None:
        bounds = [(keys.CLUSTER, keys.CLUSTER_END)]
        mirror = self.etcd.mirror(bounds, silence_s=self._silence_s, on_trouble=_warn)
        async with contextlib.aclosing(mirror) as events:
            with contextlib.suppress(CatalogDown):  # the client was closed under us
                async for event in events:
                    clock_ms = self.view.clock_ms
                    self.view.apply(event)
                    self._tell_clock(event, clock_ms)
                    self.heard_s = time.monotonic()
                    for future in self._waiting:
                        if not future.done():
                            future.set_result(None)

    def _tell_clock(self, event: MirrorEvent, before_ms: int) -> None:
        now_ms, leader = self.view.clock_ms, self.view.leader
        if isinstance(event, Listed):
            if now_ms:
                self.clock.found(now_ms)
        elif now_ms != before_ms and leader is not None:
            self.clock.heard(now_ms, leader.create_revision)


def _warn(trouble: str) -> None:
    log.warning("catalog mirror: %s", trouble)


class Guard(NamedTuple):
    """A compare that must hold for the caller to be who he says, and what he is told if it does not."""

    compare: Compare
    error: CopypoolError


def session_guard(node_id: int, epoch: int) -> Guard:
    """The node's session is the one of this epoch."""
    error = Fenced(f"the session {epoch} of node {node_id} is over: register again")
    return Guard(mod_equals(keys.session(node_id), epoch), error)


def leader_guard(leader: LeaderGuard) -> Guard:
    """This leader leads."""
    return Guard(leader.compare(), NotLeader(f"the term {leader.term} is over"))


def check_guards(guards: Sequence[Guard], found: Sequence[tuple[KeyValue, ...]]) -> None:
    """Raise the error of the first guard that does not hold of the rows found at its key."""
    for guard, kvs in zip(guards, found, strict=True):
        target, revision = guard.compare.target, 0
        if kvs:
            revision = kvs[0].mod_revision if target is Target.MOD else kvs[0].create_revision
        if revision != guard.compare.revision:
            raise guard.error
