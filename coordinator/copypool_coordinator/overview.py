"""Status, lists and `wait --copied` for any coordinator: gathers the facts, lets `status` and `waiting` judge them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from dataclasses import replace

from copypool.protocol.api import (
    CopiedReply,
    DamagedReply,
    NodeInfo,
    PoolInfo,
    StatusReply,
    VolumeInfo,
    WaitCopied,
)
from copypool.protocol.errors import CatalogDown, CopypoolError, NotFound, NotLeader, Unavailable
from copypool_coordinator import keys, lists, orders, status, waiting
from copypool_coordinator.catalog import Catalog
from copypool_coordinator.etcd_size import EtcdSize, Growth
from copypool_coordinator.heartbeats import Heartbeats
from copypool_coordinator.leader import Leader
from copypool_coordinator.offpolicy import Mark, OffPolicy
from copypool_coordinator.policy import Facts, Memory, Policy, brake, brake_released_ms, places
from copypool_coordinator.rows import OpenRow
from copypool_coordinator.sampling import OpenSample
from copypool_coordinator.status import StatusFacts

log = logging.getLogger(__name__)

#: An answer this young is given again.
_FRESH_S = 1.0
#: Changed extents that one answer waits for.
_LOOK_MAX = 50_000
#: How long the size of etcd's database is believed.
_SIZE_S = 10.0
_SIZE_TIMEOUT_S = 1.0
#: How long a status waits for memory; the leader's clock comes every second.
_CURRENT_S = 2.5
#: How long the view may lag behind etcd before `copied` says that it cannot tell.
_CAUGHT_UP_S = 5.0


class Overview:
    """What this coordinator can say of the whole cluster."""

    def __init__(
        self,
        catalog: Catalog,
        name: str,
        heartbeats: Heartbeats,
        leader: Leader,
        sample: OpenSample,
        index: OffPolicy,
        policy: Policy,
    ) -> None:
        self._catalog = catalog
        self._view = catalog.view
        self._sample = sample
        self._index = index
        self._heartbeats = heartbeats
        self._leader = leader
        self._policy = policy
        self._name = name
        self._lock = asyncio.Lock()
        self._facts: StatusFacts | None = None
        self.etcd = EtcdSize()  #: as of when a member last told it
        self.growth = Growth()
        self._size_until_s = 0.0

    async def status(self, namespace: str = "") -> StatusReply:
        """Is everything where policy says? Never older than the call; says so itself when it cannot know.

        Everything acked before the call is in the answer: memory catches up with etcd first, and the open extents
        are read after that.
        """
        answers, current = await self._etcd_and_memory()
        facts = await self.gather(0.0)
        facts = replace(facts, current=current, catalog_down=not (answers and facts.sampled))
        return status.build(self._view, facts, namespace)

    async def status_lately(self, max_age_s: float) -> StatusReply:
        """The same from memory alone, at most this old: for whoever asks all the time."""
        return status.build(self._view, await self.gather(max_age_s))

    async def brake(self) -> str:
        """Why nothing that is away is rebuilt now, or "": as the leader judges, who alone knows of its own cuts.

        Raises:
            NotLeader: another coordinator leads.
        """
        if self._leader.guard is None:
            raise NotLeader(f"{self._name} does not lead")
        return (await self.gather(0.0)).brake

    async def nodes(self) -> list[NodeInfo]:
        """Every node."""
        return lists.nodes(self._view, await self.gather(_FRESH_S))

    async def volumes(self) -> list[VolumeInfo]:
        """Every volume."""
        return lists.volumes(self._view, await self.gather(_FRESH_S))

    async def pools(self) -> list[PoolInfo]:
        """Every pool."""
        return lists.pools(self._view, await self.gather(_FRESH_S))

    async def damaged(self) -> DamagedReply:
        """Locations marked damaged or missing."""
        return lists.damaged(self._view, await self.gather(_FRESH_S))

    async def copied(self, request: WaitCopied) -> CopiedReply:
        """Whether the marks are reached; without marks, take them of everything committed before this call.

        Raises:
            CatalogDown: the committed lengths of open extents cannot be read.
            Unavailable: memory lags, so that it is not known what was committed before the call.
            Invalid: marks that no call gave out.
        """
        waiting.check_marks(request.marks)
        if not request.marks:
            await self.caught_up(_CAUGHT_UP_S)
        facts = await self.gather(_FRESH_S if request.marks else 0.0)
        if not facts.sampled:
            raise CatalogDown("etcd does not tell how long the open extents are")
        if not request.marks and facts.pending:
            raise Unavailable(f"{facts.pending} changed extents were not looked at yet: repeat")
        namespace = None
        if request.namespace:
            entry = self._view.namespaces.get(request.namespace)
            if entry is None:
                raise NotFound(f"no namespace {request.namespace!r}")
            namespace = entry.row.id
        marks = request.marks or waiting.take_marks(self._view, facts.marks, facts.opened, namespace)
        return waiting.reply(waiting.unreached(self._view, marks, facts.places, self._sample.rows), facts.marks)

    async def planning(self, *, catch_up: bool = False) -> tuple[Facts, Mapping[int, Mark]]:
        """What the controllers would go by now, with a chooser that knows no place, and all marks.

        With `catch_up` everything committed before the call is in it.

        Raises:
            CatalogDown: the committed lengths of open extents cannot be read.
            Unavailable: memory lags.
        """
        if catch_up:
            await self.caught_up(_CAUGHT_UP_S)
        facts = await self.gather(0.0 if catch_up else _FRESH_S)
        if not facts.sampled:
            raise CatalogDown("etcd does not tell how long the open extents are")
        if catch_up and facts.pending:
            raise Unavailable(f"{facts.pending} changed extents were not looked at yet: repeat")
        found = Facts(
            policy=self._policy,
            places=facts.places,
            opened=self._sample.rows,
            memory=Memory(),
            choose=lambda row, pool: None,
            brake=facts.brake,
            orders=orders.gather(self._view),
        )
        return found, facts.marks

    async def caught_up(self, timeout_s: float) -> None:
        """Return once memory knows every extent in which something was committed before the call.

        The leader's clock moves the view's revision every second, so this takes a second at most.

        Raises:
            Unavailable: not in time. CatalogDown: etcd does not answer.
        """
        revision = await self._revision()
        await self._catalog.wait_for(lambda view: view.revision >= revision, timeout_s)

    async def _etcd_and_memory(self) -> tuple[bool, bool]:
        """Whether etcd answers, and whether memory has caught up with what was committed before the call. Bounded."""
        answers = False
        try:
            async with asyncio.timeout(_CURRENT_S):
                revision = await self._revision()
                answers = True
                if self._view.leader is None:
                    return True, False  # nobody moves the clock, and without a leader nothing is green anyway
                await self._catalog.wait_for(lambda view: view.revision >= revision, _CURRENT_S)
        except (CopypoolError, TimeoutError) as error:
            log.info("status from memory that may lag: %s", error)
            return answers, False
        return True, True

    async def _revision(self) -> int:
        """Etcd's revision now. Raises `CatalogDown`."""
        return (await self._catalog.etcd.range(keys.CLOCK, keys.CLOCK + b"\0")).revision

    async def gather(self, max_age_s: float) -> StatusFacts:
        """The facts as of at most `max_age_s` before the call; calls that wait for one another share them."""
        asked_s = time.monotonic()
        async with self._lock:
            known = self._facts
            # A node that is lost is shown at once, so what its loss means must be in the same answer.
            if known is not None and known.now_s >= asked_s - max_age_s and known.places == places(self._view):
                return known
            began_s = time.monotonic()
            await self.look_at_etcd()
            opened, sampled = await self._sampled()
            now_ms = self._catalog.now_ms()
            volumes = places(self._view)
            await self._index.refresh(self._view, volumes, opened, self._policy, now_ms, _LOOK_MAX)
            self._facts = StatusFacts(
                marks=self._index.marks,
                pending=self._index.pending,
                places=volumes,
                heartbeats=self._heartbeats,
                policy=self._policy,
                now_ms=now_ms,
                now_s=began_s,
                heard_age_s=max(0.0, began_s - self._catalog.heard_s),
                sampled=sampled,
                brake=brake(self._view, self._policy, self._leader.cut, brake_released_ms(self._view), now_ms),
                coordinator=self._name,
                catalog_bytes=self.etcd.db_bytes,
                opened=opened,
                scrub=self._index.scrub.progress(self._policy, now_ms),
            )
            return self._facts

    async def _sampled(self) -> tuple[dict[int, OpenRow], bool]:
        """Lengths as of now: what was acked before the question is in the answer."""
        try:
            return await self._sample.refresh(max_age_s=0.0), True
        except CatalogDown as error:
            log.info("status without open extents: %s", error.message)
            return self._sample.rows, False

    async def look_at_etcd(self) -> None:
        """Ask etcd's members for their sizes, unless they were asked a moment ago. Bounded; never raises for etcd."""
        if time.monotonic() >= self._size_until_s:
            self._size_until_s = time.monotonic() + _SIZE_S
            with contextlib.suppress(TimeoutError):  # a member that hangs must not hold up the answer
                async with asyncio.timeout(_SIZE_TIMEOUT_S):
                    self.etcd = EtcdSize.of(await self._catalog.etcd.status(), self.etcd)
                    if self.etcd.members_up:
                        self.growth.note(time.monotonic(), self.etcd.used_bytes)
