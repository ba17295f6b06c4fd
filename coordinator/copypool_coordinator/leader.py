"""Who leads: a leased key, its create revision is the term. Everything a leader does ends with its term.

A leader believes in its lease only as long as its own clock proves it: from the moment before the last renewal was
sent. So an old leader has stopped before etcd gives the key to the next, and what it still had under way is refused by
the guard in every transaction and by the term in every command (invariant 4). The next one takes over as soon as its
mirror shows that the key is gone: within the lease's life + 2 s, at once after a resignation.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from copypool.cancellation import TaskGroup, first_error
from copypool.protocol.errors import CatalogDown, CopypoolError, NotLeader, Unavailable
from copypool_coordinator.catalog import Catalog, LeaderGuard
from copypool_coordinator.policy import Cut
from copypool_coordinator.rows import FORMAT, LeaderRow
from copypool_coordinator.view import ClusterView

log = logging.getLogger(__name__)

LEASE_S = 5
#: A silence of the mirror that is longer than any change of leaders takes means that etcd cannot be reached.
CUT_S = LEASE_S + 4.0
_CLOCK_S = 1.0
_RETRY_S = 0.5
_RESIGN_S = 2.0


@dataclass(slots=True)
class Pulse:
    """How the leader's controllers are getting on; everybody sees it beside the clock."""

    worked_ms: int = 0  #: cluster time at which their last pass ended
    trouble: str = ""


class Leader:
    """One coordinator's candidacy. `run` campaigns for ever; while it leads, it runs `lead(guard)`."""

    def __init__(self, catalog: Catalog, name: str, url: str, lead: Callable[[LeaderGuard], Awaitable[None]]) -> None:
        self._catalog = catalog
        self._row = LeaderRow(FORMAT, name, url)
        self._lead = lead
        self.guard: LeaderGuard | None = None  #: of the term that runs here
        self.pulse = Pulse()
        self.believed_until_s = float("-inf")  #: monotonic; how long the term lasts unless its lease is renewed
        self.cut: Cut | None = None  #: the last time in which etcd could not be reached from here

    async def run(self) -> None:
        """Campaign and lead until cancelled; then resign, so that another takes over at once."""
        async with TaskGroup() as group:
            group.create_task(self._watch_for_cuts(), name="cut watch")
            while True:
                with contextlib.suppress(Unavailable):
                    await self._catalog.wait_for(_nobody_leads, timeout_s=60.0)
                    await self._campaign()
                await asyncio.sleep(_RETRY_S)

    async def _campaign(self) -> None:
        etcd = self._catalog.etcd
        lease = 0
        try:
            asked_s = time.monotonic()
            lease = await etcd.lease_grant(LEASE_S)
            guard = await self._catalog.campaign(self._row, lease)
            if guard is not None:
                await self._term(guard, lease, asked_s + LEASE_S)
        except CopypoolError as error:
            log.info("no leader here: %s", error.message)
        finally:
            self.guard = None
            if lease:
                await self._give_up(lease)

    async def _give_up(self, lease: int) -> None:
        """Free the key, bounded: an unreachable etcd frees it by itself when the lease ends."""
        with contextlib.suppress(CopypoolError, TimeoutError):
            async with asyncio.timeout(_RESIGN_S):
                await self._catalog.etcd.lease_revoke(lease)

    async def _term(self, guard: LeaderGuard, lease: int, believed_until_s: float) -> None:
        """Lead until the term is over in any way; `NotLeader` says how."""
        log.info("leading, term %d", guard.term)
        self.guard = guard
        self.believed_until_s = believed_until_s
        self.pulse = Pulse(self._catalog.now_ms())
        loop = asyncio.get_running_loop()
        # The loop's clock is monotonic but need not be `time.monotonic`: only differences are taken over.
        ahead_s = loop.time() - time.monotonic()
        try:
            async with asyncio.timeout_at(believed_until_s + ahead_s) as believed:
                await self._duties(guard, lease, believed, ahead_s)
        except TimeoutError as exc:
            raise NotLeader("the leader's lease could not be renewed in time") from exc
        finally:
            self.guard = None
            log.info("not leading any more, term %d", guard.term)

    async def _duties(self, guard: LeaderGuard, lease: int, believed: asyncio.Timeout, ahead_s: float) -> None:
        try:
            async with TaskGroup() as group:
                group.create_task(self._renew(lease, believed, ahead_s), name="leader lease")
                group.create_task(self._write_clock(guard), name="leader clock")
                group.create_task(self._until_deposed(guard), name="leader key")
                group.create_task(self._run(guard), name="leader duties")
        except ExceptionGroup as failures:
            _, bugs = failures.split(CopypoolError)
            if bugs is not None:
                # A bug in a duty must not end the candidacy of every coordinator in turn, nor go unseen.
                log.error("a leader's duty failed", exc_info=bugs)
                raise NotLeader("the term ended by a failure inside, see the log") from failures
            raise NotLeader(f"the term ended: {first_error(failures)}") from failures

    async def _run(self, guard: LeaderGuard) -> None:
        await self._lead(guard)
        raise NotLeader("the leader's duties ended")

    async def _renew(self, lease: int, believed: asyncio.Timeout, ahead_s: float) -> None:
        while True:
            await asyncio.sleep(LEASE_S / 5)
            asked_s = time.monotonic()
            try:
                left_s = await self._catalog.etcd.lease_keep_alive(lease)
            except CatalogDown as error:
                log.warning("the leader's lease was not renewed: %s", error.message)
                continue
            if left_s == 0:
                raise NotLeader("the leader's lease has ended")
            self.believed_until_s = asked_s + min(left_s, LEASE_S)
            believed.reschedule(self.believed_until_s + ahead_s)

    async def _write_clock(self, guard: LeaderGuard) -> None:
        """The mirror's sign of life, for every coordinator."""
        while True:
            try:
                await self._catalog.write_clock(guard, self.pulse.worked_ms, self.pulse.trouble)
            except NotLeader:
                raise
            except CopypoolError as error:
                log.warning("the clock row was not written: %s", error.message)
            await asyncio.sleep(_CLOCK_S)

    async def _until_deposed(self, guard: LeaderGuard) -> None:
        """End the term as soon as the mirror shows that the key is not ours any more."""
        revision = guard.create_revision
        while True:
            with contextlib.suppress(Unavailable):
                await self._catalog.wait_for(lambda view: view.revision >= revision, timeout_s=60.0)
                break
        while True:
            with contextlib.suppress(Unavailable):
                await self._catalog.wait_for(
                    lambda view: view.leader is None or view.leader.create_revision != revision, timeout_s=60.0
                )
                raise NotLeader("the leader key is not ours any more")

    async def _watch_for_cuts(self) -> None:
        """Note when this process could not hear etcd: sessions that ended then tell nothing about their nodes."""
        while True:
            await asyncio.sleep(_CLOCK_S)
            heard_s = self._catalog.heard_s
            silent_s = time.monotonic() - heard_s
            if heard_s and silent_s > CUT_S:
                now_ms = self._catalog.now_ms()
                self.cut = Cut(now_ms - round(silent_s * 1000), now_ms)


def _nobody_leads(view: ClusterView) -> bool:
    return view.ready and view.leader is None
