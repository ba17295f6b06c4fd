"""Operators' calls: long jobs are started, followed and cancelled; the servers do them, whether anybody follows or not.

process = await client.operator.start(ProcessRequest("restore", volume="v1"))
async for shown in client.operator.follow(process.id): ...
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

from copypool.coordinators import Coordinators
from copypool.protocol.errors import RetryLater, Unavailable
from copypool.protocol.processes import (
    Preview,
    ProcessAsk,
    ProcessInfo,
    ProcessList,
    ProcessListRequest,
    ProcessRequest,
    ReleaseReply,
    ReleaseRequest,
)

_POLL_FIRST_S = 0.2
_POLL_MAX_S = 1.0
#: Coordinators may be away this long before following ends; the process goes on.
_AWAY_MAX_S = 60.0


class Operator:
    """What needs the role operator. Every call may be cancelled; none of that ends a process."""

    def __init__(self, coordinators: Coordinators) -> None:
        self._coordinators = coordinators

    async def preview(self, request: ProcessRequest) -> Preview:
        """What `start` would do now; changes nothing."""
        return await self._coordinators.call("process_preview", request, Preview)

    async def start(self, request: ProcessRequest) -> ProcessInfo:
        """Start a process. It goes on without the caller once this returns; `Conflict` says why it must not begin."""
        return await self._coordinators.call("process_start", request, ProcessInfo, repeatable=False)

    async def process(self, process: str) -> ProcessInfo:
        """How far a process is, counted now."""
        return await self._coordinators.call("process", ProcessAsk(process), ProcessInfo)

    async def processes(self, *, running: bool = False, limit: int = 100) -> Sequence[ProcessInfo]:
        """Processes, newest first."""
        request = ProcessListRequest(running, limit)
        return (await self._coordinators.call("processes", request, ProcessList)).items

    async def cancel(self, process: str) -> ProcessInfo:
        """Ask for a process's end: what it has done stays, what it has set is given back. Safe to repeat."""
        return await self._coordinators.call("process_cancel", ProcessAsk(process), ProcessInfo)

    async def release(self, *, volume: str = "", node: str = "") -> Sequence[str]:
        """Let a volume, or a node's volumes, that were emptied take bytes again; the names of those that now do."""
        request = ReleaseRequest(volume, node)
        return (await self._coordinators.call("volume_release", request, ReleaseReply)).volumes

    async def follow(self, process: str) -> AsyncIterator[ProcessInfo]:
        """How far it is, again and again until it has ended. `Unavailable` when no coordinator answers for a minute."""
        delay_s = _POLL_FIRST_S
        heard_s = time.monotonic()
        while True:
            try:
                shown = await self.process(process)
                heard_s = time.monotonic()
            except RetryLater as exc:
                if time.monotonic() - heard_s > _AWAY_MAX_S:
                    raise Unavailable(f"no coordinator tells how process {process} goes on: {exc.message}") from exc
            else:
                yield shown
                if shown.state != "running":
                    return
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 1.5, _POLL_MAX_S)
