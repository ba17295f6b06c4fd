"""`POST /rpc/process_*`: long jobs, asked for by operators. Any coordinator answers; only the leader does the work."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime

from aiohttp import web

from copypool.protocol import processes
from copypool.protocol.api import SEGMENTS_INLINE_MAX
from copypool.protocol.errors import Conflict, Invalid, NotFound, TooLarge
from copypool.protocol.names import check_name, check_prefix
from copypool.protocol.processes import Preview, ProcessInfo, ProcessRequest, SkippedEntry
from copypool.protocol.tokens import Principal, Role
from copypool_coordinator import starting
from copypool_coordinator.auth import Auth
from copypool_coordinator.catalog import Catalog
from copypool_coordinator.choosing import chooser, within_limits
from copypool_coordinator.controllers.processes import look
from copypool_coordinator.departing import Departing, departing
from copypool_coordinator.heartbeats import Heartbeats
from copypool_coordinator.offpolicy import Mark
from copypool_coordinator.overview import Overview
from copypool_coordinator.policy import Facts
from copypool_coordinator.remaining import left
from copypool_coordinator.rows import FORMAT, EventRow, FileFlag, ProcessRow
from copypool_coordinator.starting import EXTENTS_MAX, Plan
from copypool_coordinator.verbs import Verb, routes

_PAGE = 1000
LIST_MAX = 1000
#: A pace at which nothing was done for this long is none to foretell an end by.
_PACE_LIFE_MS = 60_000


class ProcessApi:
    """Handlers of the verbs that are processes."""

    def __init__(
        self,
        catalog: Catalog,
        auth: Auth,
        overview: Overview,
        heartbeats: Heartbeats,
        *,
        body_bytes: int,
    ) -> None:
        self._catalog = catalog
        self._view = catalog.view
        self._auth = auth
        self._overview = overview
        self._heartbeats = heartbeats
        self._body_bytes = body_bytes

    def routes(self) -> dict[str, Callable[[web.BaseRequest], Awaitable[web.Response]]]:
        """Path -> handler."""
        verbs = {
            "process_start": Verb(ProcessRequest, Role.operator, self._start),
            "process_preview": Verb(ProcessRequest, Role.operator, self._preview),
            "processes": Verb(processes.ProcessListRequest, Role.operator, self._list),
            "process": Verb(processes.ProcessAsk, Role.operator, self._show),
            "process_cancel": Verb(processes.ProcessAsk, Role.operator, self._cancel),
            "volume_release": Verb(processes.ReleaseRequest, Role.operator, self._release),
        }
        return routes(verbs, self._auth, self._catalog.now_ms, self._body_bytes)

    # -- starting ----------------------------------------------------------------------------------
    async def _preview(self, principal: Principal, body: ProcessRequest) -> Preview:
        plan, facts, marks = await self._prepared(principal, body)
        return starting.preview(self._view, facts, marks, plan)

    async def _start(self, principal: Principal, body: ProcessRequest) -> ProcessInfo:
        running = sum(entry.row.state == "running" for entry in self._view.processes.values())
        if running >= processes.RUNNING_MAX:
            raise Conflict(f"{running} processes run: wait, or cancel one")
        plan, facts, marks = await self._prepared(principal, body)
        found = starting.preview(self._view, facts, marks, plan)
        row = plan.row
        starting.refuse_twins(self._view, row)
        starting.refuse_futile(self._view, facts, marks, plan)
        if found.dies_extents and not body.force:
            lost = ", ".join(str(entry.extent) for entry in found.blocked[:10])
            raise Conflict(
                f"{found.dies_extents} extents may have bytes that are only on volume {body.volume!r} "
                f"({lost}{' and more' if found.dies_extents > 10 else ''}; --preview says why): `restore` or "
                "`move data` first, or --force with the volume's name",
                dies_extents=found.dies_extents,
            )
        row.total_extents, row.total_bytes = found.extents, found.bytes
        row.updated_ms = row.created_ms
        process = self._catalog.jobs.new_id(row.created_ms)
        row = await self._catalog.jobs.start(process, row, access=plan.access, intent=plan.intent)
        await self._tell(principal, "ProcessStarted", f"{process}: {row.verb} of {row.what}")
        return process_info(process, row, row, self._catalog.now_ms())

    async def _prepared(self, principal: Principal, body: ProcessRequest) -> tuple[Plan, Facts, Mapping[int, Mark]]:
        plan = starting.draft(self._view, body, principal.name, self._catalog.now_ms())
        if body.verb == "restore" and body.namespace:
            await self._take_extents(principal, body, plan.row)
        facts, marks = await self._overview.planning(catch_up=body.verb in ("backup", "restore"))
        if body.verb == "backup":
            starting.take_marks(self._view, plan.row, facts.opened)
        elif body.verb == "rebalance":
            loads = self._heartbeats.loads(time.monotonic())
            starting.take_surplus(self._view, facts, plan.row, starting.fullness(self._view, loads))
        leaving = plan.row.volumes if plan.intent or plan.access else ()
        loads = within_limits(self._view, self._heartbeats.loads(time.monotonic()))
        facts.choose = chooser(self._view, loads, facts.orders, leaving)
        return plan, starting.granted(facts, plan), marks

    async def _take_extents(self, principal: Principal, body: ProcessRequest, row: ProcessRow) -> None:
        """The extents that the namespace's files are in, read page by page; exact per page."""
        entry = self._view.namespaces.get(check_name(body.namespace, "namespace"))
        if entry is None:
            raise NotFound(f"there is no namespace {body.namespace!r}")
        check_prefix(body.prefix)
        found: set[int] = set()
        after = ""
        while True:
            page, after = await self._catalog.scan(entry.row.id, body.prefix, after, _PAGE, principal.prefix)
            for path, file in page:
                found.add(file.record.extent)
                found.update(segment.extent for segment in file.segments or ())
                if file.flags & FileFlag.in_manifest:
                    raise Invalid(f"{path!r} has more than {SEGMENTS_INLINE_MAX} segments: restore its pool instead")
            if len(found) > EXTENTS_MAX:
                raise TooLarge(f"these files are in more than {EXTENTS_MAX} extents: restore the pool instead")
            if not after:
                break
        row.extents = sorted(found)

    # -- looking -----------------------------------------------------------------------------------
    async def _list(self, _: Principal, body: processes.ProcessListRequest) -> processes.ProcessList:
        if not 1 <= body.limit <= LIST_MAX:
            raise Invalid(f"limit is 1 to {LIST_MAX}")
        names = sorted(self._view.processes, reverse=True)
        wanted = [name for name in names if not body.running or self._view.processes[name].row.state == "running"]
        return processes.ProcessList([await self._described(name) for name in wanted[: body.limit]])

    async def _show(self, _: Principal, body: processes.ProcessAsk) -> ProcessInfo:
        return await self._described(body.id)

    async def _described(self, process: str) -> ProcessInfo:
        entry = self._view.processes.get(process)
        if entry is None:
            raise NotFound(f"there is no process {process!r}: see `copypool process list`")
        row = now = entry.row
        now_ms = self._catalog.now_ms()
        if row.state == "running":
            # Counted now: the row itself is written seldom.
            facts, marks = await self._overview.planning()
            loads = self._heartbeats.loads(time.monotonic())
            facts.choose = chooser(self._view, loads, facts.orders)
            now = look(self._view, facts, marks, row, now_ms, explain=True)
            leaves = departing(self._view, facts, left(self._view, facts, marks, row))
            return process_info(process, row, now, now_ms, leaves)
        return process_info(process, row, now, now_ms)

    async def _cancel(self, principal: Principal, body: processes.ProcessAsk) -> ProcessInfo:
        row = await self._catalog.jobs.cancel(body.id, principal.name)
        if row.state == "running":
            await self._tell(principal, "ProcessCancelAsked", f"{body.id}: {row.verb} of {row.what}")
        return process_info(body.id, row, row, self._catalog.now_ms())

    async def _release(self, principal: Principal, body: processes.ReleaseRequest) -> processes.ReleaseReply:
        request = ProcessRequest("drain" if body.node else "move", volume=body.volume, node=body.node)
        row = starting.draft(self._view, request, principal.name, self._catalog.now_ms()).row
        released = await self._catalog.jobs.release(row.volumes)
        if released:
            await self._tell(principal, "VolumesReleased", f"{', '.join(released)} take bytes again")
        return processes.ReleaseReply(released)

    async def _tell(self, principal: Principal, kind: str, message: str) -> None:
        event = EventRow(FORMAT, self._catalog.now_ms(), kind, principal.name, message)
        await self._catalog.append_events([event])


def _waiting(now: ProcessRow, leaves: Departing | None) -> str:
    """What a running process waits for, in a sentence; "" when all of it goes on."""
    if now.cancelled_by:
        return f"it is being cancelled, as {now.cancelled_by} asked"
    if now.state == "running" and now.outcome:
        return now.outcome
    rest = now.total_extents - now.done_extents
    if leaves is not None:
        until = datetime.fromtimestamp(leaves.until_ms / 1000, UTC)
        going = (
            f"{leaves.extents} of the {rest} extents that are left are on their way out, kept for readers that were "
            f"told of them: the last is deleted from {until:%H:%M:%S}Z on"
        )
        return going if not now.skipped else f"{going}; {now.skipped_total} wait: {now.skipped[0].why}"
    if not now.skipped:
        return ""
    if now.stuck_since_ms:
        return f"nothing of the {rest} extents that are left can go on now: {now.skipped[0].why}"
    return f"{now.skipped_total} of the {rest} extents that are left wait: {now.skipped[0].why}"


def process_info(
    process: str, row: ProcessRow, now: ProcessRow, now_ms: int, leaves: Departing | None = None
) -> ProcessInfo:
    """`row` is what is written, `now` what was counted; that a process has ended is true once it is written.

    `leaves`: what of it is on its way out already.
    """
    took_ms = max(1, (row.ended_ms or now_ms) - row.created_ms)
    pace = now.done_bytes * 1000 / took_ms
    remaining = now.total_bytes - now.done_bytes
    running = row.state == "running"
    held = now if running else row
    eta_s: float | None = None
    stands_still = now_ms - max(now.progressed_ms, row.created_ms) > _PACE_LIFE_MS
    if running and leaves is not None and leaves.all and not (now.skipped or now.cancelled_by):
        eta_s = max(0, leaves.until_ms - now_ms) / 1000
    elif running and pace > 0 and not now.stuck_since_ms and not stands_still:
        eta_s = remaining / pace
    return ProcessInfo(
        id=process,
        verb=row.verb,
        what=row.what,
        who=row.who,
        state=row.state,
        created_unix_s=row.created_ms / 1000,
        ended_unix_s=row.ended_ms / 1000 if row.ended_ms else None,
        total_extents=now.total_extents,
        total_bytes=now.total_bytes,
        done_extents=now.done_extents,
        done_bytes=now.done_bytes,
        bytes_per_s=pace,
        eta_s=eta_s,
        outcome=row.outcome or (_waiting(now, leaves) if running else ""),
        skipped=[SkippedEntry(each.extent, each.bytes, each.records, each.why) for each in held.skipped],
        skipped_total=held.skipped_total,
        found_damaged=now.found_total,
    )
