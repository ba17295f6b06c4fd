"""Questions about the whole cluster: proof of protection, explanations, the event log, occupancy, content.

`Client.insight` is one of these. Long answers are fetched page by page and added up here; every call may be repeated
and cancelled at any point, and reads only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from copypool.coordinators import Coordinators
from copypool.protocol.api import Empty, Event
from copypool.protocol.insight import (
    ChainReply,
    ChainRequest,
    ContentEntry,
    ContentFile,
    ContentFilesReply,
    ContentFilesRequest,
    ContentReply,
    ContentRequest,
    Coverage,
    DamagedFile,
    DamagedFilesReply,
    DamagedFilesRequest,
    ExplainReply,
    ExplainRequest,
    LogReply,
    LogRequest,
    OccupancyReply,
    ProveReply,
    ProveRequest,
)
from copypool.protocol.names import check_name, check_path, check_prefix

_FOLLOW_S = 1.0
#: Between two pages of a long scan, so that it leaves etcd to others.
_PAGE_PAUSE_S = 0.01


class Insight:
    """The questions. Roles: reader for a namespace of one's own, operator for what concerns all."""

    def __init__(self, coordinators: Coordinators) -> None:
        self._coordinators = coordinators

    async def prove(
        self,
        *,
        pool: str = "",
        namespace: str = "",
        prefix: str = "",
        problems_max: int = 20,
        on_page: Callable[[Coverage], None] | None = None,
    ) -> Coverage:
        """How well a scope is protected: the whole cluster, one pool, or the current files of a namespace or prefix.

        `on_page` is told the sum so far after every page. What is committed before the call is in the answer; each
        page is exact for the moment at which it is read.
        """
        request = ProveRequest(pool, check_name(namespace, "namespace") if namespace else "", check_prefix(prefix))
        total = Coverage()
        while True:
            reply = await self._coordinators.call("prove", request, ProveReply)
            total.add(reply.coverage, problems_max)
            if on_page is not None:
                on_page(total)
            if not reply.next_after:
                return total
            request.after = reply.next_after
            await asyncio.sleep(_PAGE_PAUSE_S)

    async def explain(self, namespace: str, path: str, *, version: int = 0, zone: str = "") -> ExplainReply:
        """Where each copy of a file is, why a read would go where, and what is being done about what is missing."""
        request = ExplainRequest(check_name(namespace, "namespace"), check_path(path), version, zone)
        return await self._coordinators.call("explain", request, ExplainReply)

    async def log(self, request: LogRequest, *, follow: bool = False) -> AsyncIterator[Event]:
        """Events that match, the newest last; with `follow` it goes on waiting for new ones."""
        while True:
            reply = await self._coordinators.call("log", request, LogReply)
            for event in reply.events:
                yield event
            request.after = reply.next_after or request.after
            request.newest = False
            if not reply.more:
                if not follow:
                    return
                await asyncio.sleep(_FOLLOW_S)

    async def chain(self, event_id: str) -> ChainReply:
        """What led to an event, and what followed from it: read, mark, repair."""
        return await self._coordinators.call("log_chain", ChainRequest(event_id), ChainReply)

    async def occupancy(self) -> OccupancyReply:
        """What each namespace has in each pool."""
        return await self._coordinators.call("occupancy", Empty(), OccupancyReply)

    async def content(self, volume: str) -> AsyncIterator[ContentEntry]:
        """The locations on a volume, by extent."""
        request = ContentRequest(check_name(volume, "volume"))
        while True:
            reply = await self._coordinators.call("content", request, ContentReply)
            for entry in reply.items:
                yield entry
            if reply.next_after < 0:
                return
            request.after = reply.next_after

    async def content_files(self, volume: str, namespaces: Sequence[str]) -> AsyncIterator[tuple[str, ContentFile]]:
        """Current files with bytes on a volume, namespace by namespace, by a paced scan of the directory."""
        for namespace in namespaces:
            request = ContentFilesRequest(check_name(volume, "volume"), check_name(namespace, "namespace"))
            while True:
                reply = await self._coordinators.call("content_files", request, ContentFilesReply)
                for file in reply.items:
                    yield namespace, file
                if not reply.next_after:
                    break
                request.after = reply.next_after
                await asyncio.sleep(_PAGE_PAUSE_S)

    async def damaged_files(self, namespaces: Sequence[str]) -> AsyncIterator[tuple[str, DamagedFile]]:
        """Current files that are lost, perhaps lost, or not to be had now, by a paced scan of the directory."""
        for namespace in namespaces:
            request = DamagedFilesRequest(check_name(namespace, "namespace"))
            while True:
                reply = await self._coordinators.call("damaged_files", request, DamagedFilesReply)
                for file in reply.items:
                    yield namespace, file
                if not reply.next_after:
                    break
                request.after = reply.next_after
                await asyncio.sleep(_PAGE_PAUSE_S)
