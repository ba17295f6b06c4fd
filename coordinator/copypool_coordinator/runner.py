"""The leader's loop: look at what changed, plan, perform, look again. Level-triggered, as Kubernetes' controllers are.

A pass takes the extents that changed and those that are off policy, asks every controller for the next steps and
starts those that are not under way. How many run at once is bounded per lane (kind and node); a step that failed
rests for a jittered, growing, bounded time. Nothing is remembered that a new leader would miss. A pass with nothing
to do reads the lengths of the open extents and looks at the nodes, no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import islice

from copypool.cancellation import TaskGroup
from copypool.protocol.errors import CopypoolError, Unavailable
from copypool.telemetry import tracing
from copypool_coordinator import orders
from copypool_coordinator.catalog import Catalog
from copypool_coordinator.choosing import chooser
from copypool_coordinator.chronicle import Chronicle, Entry
from copypool_coordinator.controllers import audit, copy, health, processes, repair
from copypool_coordinator.controllers.actions import (
    Action,
    ActionKey,
    MarkAway,
    MarkReturned,
    Reserve,
    SealExtent,
    SetReadonly,
    TrimProcesses,
    WriteProcess,
)
from copypool_coordinator.heartbeats import Heartbeats, Loads
from copypool_coordinator.leader import Leader
from copypool_coordinator.metrics import Metrics
from copypool_coordinator.offpolicy import OffPolicy
from copypool_coordinator.orders import Orders
from copypool_coordinator.performing import Performer
from copypool_coordinator.policy import (
    Facts,
    LocationKey,
    Memory,
    Policy,
    brake,
    brake_released_ms,
    closed_pools,
    places,
)
from copypool_coordinator.repairs import Repairs
from copypool_coordinator.sampling import OpenSample
from copypool_coordinator.view import ClusterView

log = logging.getLogger(__name__)

_TICK_S = 1.0
_BUSY_S = 0.1  #: pause between passes while there is something to do
#: Extents looked at in a pass, changed ones first; the rest waits for the next.
_PASS_MAX = 2_000
_SLICE = 64
_LANE_MAX = {"catalog": 32, "pull": 8, "verify": 4, "drop": 4, "memory": 1024}
_REST_MAX_S = 30.0
_RESTS_MAX = 10_000
#: A step that failed this often in a row is told to people.
_STUBBORN = 6
#: A step whose rest has been over for this long is not asked for any more.
_TRIED_S = 60.0
#: Between two looks at what processes have left: each looks at every extent that is left.
_PROCESSES_MS = 1_000
#: A debt that was paid within this time is no news.
_DEBT_NEWS_MS = 10_000


class Runner:
    """The controllers of one term."""

    def __init__(
        self,
        catalog: Catalog,
        leader: Leader,
        heartbeats: Heartbeats,
        sample: OpenSample,
        index: OffPolicy,
        chronicle: Chronicle,
        repairs: Repairs,
        performer: Performer,
        memory: Memory,
        policy: Policy,
        metrics: Metrics,
    ) -> None:
        self._catalog = catalog
        self._view = catalog.view
        self._leader = leader
        self._heartbeats = heartbeats
        self._sample = sample
        self._index = index
        self._chronicle = chronicle
        self._repairs = repairs
        self._performer = performer
        self._memory = memory
        self._policy = policy
        self._metrics = metrics
        self._running: dict[ActionKey, asyncio.Task[None]] = {}
        self._lanes: Counter[str] = Counter()
        self._rests: dict[ActionKey, tuple[float, int]] = {}  #: step -> (not before, failures in a row)
        self._turn: list[int] = []  #: extents off policy that have not had their turn in this round
        self._brake_entry: Entry | None = None
        self._failure = ""  #: what the last step that failed said
        self._debt_since_ms = 0
        self._processes_ms = 0

    async def run(self) -> None:
        """Pass after pass, until cancelled; then every step under way is cancelled, which is safe at any point."""
        self._index.looked = {}
        self._index.again(self._view.extents)
        try:
            async with TaskGroup() as group:
                while True:
                    began_s = time.monotonic()
                    busy = await self._pass(group)
                    self._metrics.pass_seconds.observe(time.monotonic() - began_s)
                    pause_s = _BUSY_S if busy else _TICK_S
                    await self._until_dirty(max(_BUSY_S, pause_s - (time.monotonic() - began_s)))
        finally:
            self._index.looked = None

    async def _until_dirty(self, timeout_s: float) -> None:
        """Return when extents changed, or after the pause; never sooner than `_BUSY_S`, so that changes batch."""
        await asyncio.sleep(_BUSY_S)
        with contextlib.suppress(Unavailable):
            await self._catalog.wait_for(lambda view: bool(view.dirty), timeout_s)

    async def _pass(self, group: TaskGroup) -> bool:
        """One round of looking and planning; whether there is more to do right now."""
        try:
            opened = await self._sample.refresh()
        except CopypoolError as error:
            log.warning("the open extents could not be read: %s", error.message)
            opened = {}
        now_ms = self._catalog.now_ms()
        loads = self._heartbeats.loads(time.monotonic())
        ordered = orders.gather(self._view)
        facts = Facts(
            policy=self._policy,
            places=places(self._view, {volume for volume, load in loads.items() if load.report.read_only}),
            opened=opened,
            memory=self._memory,
            choose=chooser(self._view, loads, ordered),
            brake=self.brake(now_ms),
            stored_bytes={volume: load.report.stored_bytes for volume, load in loads.items()},
            orders=ordered,
            closed=closed_pools(self._view, ordered.backups, now_ms),
            failing=_failing(self._view, loads),
        )
        started = self._start(group, health.plan(self._view, facts))
        await self._index.refresh(self._view, facts.places, opened, self._policy, now_ms, _PASS_MAX)
        changed = self._index.take_looked()
        due = list(dict.fromkeys([*changed, *self._next_turn(), *self._ordered(ordered)]))
        for extent in due:
            self._settle(extent, now_ms)
        for first in range(0, len(due), _SLICE):
            started += await self._plan(group, facts, now_ms, due[first : first + _SLICE])
        if now_ms - self._processes_ms >= _PROCESSES_MS:
            self._processes_ms = now_ms
            started += self._start(group, processes.plan(self._view, facts, self._index.marks, now_ms))
        self._tell_news(facts, now_ms)
        self._leader.pulse.worked_ms = self._catalog.now_ms()
        self._leader.pulse.trouble = trouble(self._rests, self._failure, time.monotonic())
        return bool(started or self._index.pending)

    async def _plan(self, group: TaskGroup, facts: Facts, now_ms: int, extents: list[int]) -> int:
        view = self._view
        await self._notice_damage(facts, extents)
        actions: list[Action] = [
            *copy.plan(view, facts, now_ms, extents),
            *repair.plan(view, facts, now_ms, extents),
            *audit.plan(view, facts, now_ms, extents),
        ]
        await asyncio.sleep(0)  # requests get their turn between slices
        return self._start(group, actions)

    def _next_turn(self) -> list[int]:
        """The next extents off policy, oldest first, so that each gets its turn however many there are."""
        if not self._turn:
            self._turn = list(reversed(self._index.marks))
        turn = self._turn[-_PASS_MAX:]
        del self._turn[-_PASS_MAX:]
        return turn[::-1]

    def _ordered(self, ordered: Orders) -> list[int]:
        """Extents that processes are about and that may well be on policy, so that no mark gives them a turn."""
        found = list(ordered.moves)[:_PASS_MAX]
        for volume, since_ms in ordered.audits.items():
            for extent in self._view.extents_by_volume.get(volume, ()):
                locations = self._view.extents[extent].row.locations
                if any(each.volume == volume and each.verified_ms < since_ms for each in locations):
                    found.append(extent)
                    if len(found) >= _PASS_MAX:
                        return found
        return found

    def _settle(self, extent: int, now_ms: int) -> None:
        entry = self._view.extents.get(extent)
        row = None if entry is None else entry.row
        self._memory.settle(extent, row, self._policy, now_ms)
        for location in () if row is None else row.locations:
            key = LocationKey(extent, location.volume, location.generation)
            length = location.length if row is None or row.open else row.length
            self._repairs.look(key, location, length, self._volume_name(location.volume))

    async def _notice_damage(self, facts: Facts, extents: Iterable[int]) -> None:
        for extent in extents:
            mark = self._index.marks.get(extent)
            entry = self._view.extents.get(extent)
            if mark is None or entry is None or not (mark.damaged or mark.missing):
                continue
            for location in entry.row.locations:
                place = facts.places.get(location.volume)
                if location.state in ("damaged", "missing") and place is not None and not place.destroyed:
                    key = LocationKey(extent, location.volume, location.generation)
                    await self._repairs.noticed(key, location, place.name, self._node_name(place.node))

    # -- performing --------------------------------------------------------------------------------
    def _start(self, group: TaskGroup, actions: Iterable[Action]) -> int:
        """Start the steps that are not under way, not resting and whose lane has room; how many."""
        started = 0
        now_s = time.monotonic()
        for action in actions:
            key, lane = action.key, action.lane
            if key in self._running or self._rests.get(key, (0.0, 0))[0] > now_s:
                continue
            if self._lanes[lane] >= _LANE_MAX[lane.partition(" ")[0]]:
                continue
            self._lanes[lane] += 1
            self._running[key] = group.create_task(self._perform(action), name=f"step {key}")
            started += 1
        return started

    async def _perform(self, action: Action) -> None:
        outcome, extents = "done", _extent_of(action)
        about = {"extent": extents[0]} if extents else {}
        try:
            with tracing.operation(type(action).__name__, **about) as trace:
                await self._performer.perform(action)
        except CopypoolError as error:
            outcome = error.code
            self._rest(action.key)
            self._failure = error.message[:200]
            with tracing.within(trace):
                log.info("%s did not work: %s", action, error.message, extra=about)
        else:
            self._rests.pop(action.key, None)
        finally:
            self._metrics.count_step(type(action).__name__, outcome)
            self._running.pop(action.key, None)
            self._lanes[action.lane] -= 1
            if not self._lanes[action.lane]:
                del self._lanes[action.lane]
            self._index.again(extents)

    def _rest(self, key: ActionKey) -> None:
        failures = self._rests.get(key, (0.0, 0))[1] + 1
        rest_s = min(_REST_MAX_S, 0.25 * 2.0 ** min(failures, 10)) * random.uniform(0.5, 1.0)
        if len(self._rests) >= _RESTS_MAX:
            del self._rests[next(iter(self._rests))]
        self._rests[key] = (time.monotonic() + rest_s, failures)

    # -- what people are told ------------------------------------------------------------------------
    def brake(self, now_ms: int) -> str:
        """Why re-replication is held now, or ""."""
        return brake(self._view, self._policy, self._leader.cut, brake_released_ms(self._view), now_ms)

    def _tell_news(self, facts: Facts, now_ms: int) -> None:
        if facts.brake and self._brake_entry is None:
            self._brake_entry = self._chronicle.record("BrakeEngaged", facts.brake)
        elif not facts.brake and self._brake_entry is not None:
            self._chronicle.record("BrakeReleased", "lost nodes are rebuilt again", cause=self._brake_entry)
            self._brake_entry = None
        in_debt = any(mark.debt for mark in islice(self._index.marks.values(), _PASS_MAX))
        if in_debt and not self._debt_since_ms:
            self._debt_since_ms = now_ms
        elif not in_debt and self._debt_since_ms and not self._index.pending:
            took_ms = now_ms - self._debt_since_ms
            self._debt_since_ms = 0
            if took_ms >= _DEBT_NEWS_MS:
                self._chronicle.record("CopyCaughtUp", f"no copy debt any more, after {took_ms // 1000} s")

    def _volume_name(self, volume: int) -> str:
        entry = self._view.volumes_by_id.get(volume)
        return str(volume) if entry is None else entry.name

    def _node_name(self, node: int) -> str:
        entry = self._view.nodes_by_id.get(node)
        return str(node) if entry is None else entry.name


def _failing(view: ClusterView, loads: Loads) -> dict[int, str]:
    """Volumes whose node met a write error since it heard of the last change of access, and the error."""
    return {
        volume: load.report.read_only_reason
        for volume, load in loads.items()
        if load.report.read_only_reason
        and (entry := view.volumes_by_id.get(volume)) is not None
        and entry.row.access_since_ms == load.report.access_since_ms
    }


def trouble(rests: Mapping[ActionKey, tuple[float, int]], failure: str, now_s: float) -> str:
    """What fails over and over, for `status`: steps that are still tried; those that nobody asks for any more rest."""
    stubborn = [
        key for key, (until_s, failures) in rests.items() if failures >= _STUBBORN and now_s - until_s < _TRIED_S
    ]
    if not stubborn:
        return ""
    such = " ".join(str(part) for part in stubborn[-1])
    steps = "1 step" if len(stubborn) == 1 else f"{len(stubborn)} steps"
    return f"{steps} failed {_STUBBORN} times or more in a row, such as {such!r}: {failure or 'see its log'}"


def _extent_of(action: Action) -> list[int]:
    """The extent to look at once more after this action, none for actions about nodes."""
    if isinstance(action, MarkAway | MarkReturned | SetReadonly | WriteProcess | TrimProcesses):
        return []
    if isinstance(action, Reserve | SealExtent):
        return [action.extent]
    return [action.location.extent]
