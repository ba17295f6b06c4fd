"""Heartbeats: every few seconds to every coordinator; exactly one a round is asked to renew the lease.

The lease is renewed only while at least one volume's disk is known to be well: a node whose disks all hang is a sick
node, and must lose its session although its network is fine.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from copypool.protocol.errors import CopypoolError
from copypool.protocol.internal import UNMOUNTED_REASON_MAX, HeartbeatReply, HeartbeatRequest, Unmounted

if TYPE_CHECKING:
    from copypool_node.session import Session
    from copypool_node.volumes import MountedVolume

log = logging.getLogger(__name__)

JITTER = 0.1


class Heart:
    """Runs while there is a session; a coordinator's word that it is over ends it."""

    def __init__(
        self, session: Session, volumes: Sequence[MountedVolume], interval_s: float, rng: random.Random
    ) -> None:
        self._session = session
        self._volumes = volumes
        self._interval_s = interval_s
        self._rng = rng
        self._renewed_s = time.monotonic()

    async def run(self) -> None:
        """Beat until the session ends."""
        self._renewed_s = time.monotonic()
        while self._session.alive:
            await self.beat()
            pause_s = self._interval_s * self._rng.uniform(1 - JITTER, 1 + JITTER)
            try:
                async with asyncio.timeout(pause_s):
                    await self._session.ended.wait()
            except TimeoutError:
                continue

    async def beat(self) -> None:
        """One round: probe, tell everybody, have the lease renewed by one."""
        for volume in self._volumes:
            volume.probe()
        urls = self._session.link.urls
        healthy = not self._volumes or any(volume.healthy for volume in self._volumes)
        told = [asyncio.create_task(self._tell(url, renew=False)) for url in urls[1:]]
        renewed = await self._tell(urls[0], renew=healthy)
        await asyncio.gather(*told)
        for url in urls[1:]:
            if renewed or not healthy or not self._session.alive:
                break
            renewed = await self._tell(url, renew=True)
        if renewed and healthy:
            self._renewed_s = time.monotonic()
        elif not healthy:
            log.error("no volume's disk is well: the lease is not renewed")
        elif time.monotonic() - self._renewed_s > self._session.ttl_s:
            log.warning("no coordinator has renewed the lease for %.0f s", time.monotonic() - self._renewed_s)

    async def _tell(self, url: str, *, renew: bool) -> bool:
        session = self._session
        epoch = session.epoch
        request = HeartbeatRequest(
            session.node_id,
            epoch,
            renew,
            [volume.report() for volume in self._volumes if volume.id >= 0],
            session.clock.versions.last,
            [Unmounted(name, reason[:UNMOUNTED_REASON_MAX]) for name, reason in session.unmounted.items()],
        )
        asked_s = time.monotonic()
        try:
            reply = await session.link.ask(url, "heartbeat", request, HeartbeatReply, deadline_s=self._interval_s)
        except CopypoolError as exc:
            log.debug("heartbeat to %s: %s", url, exc)
            return False
        session.heard(reply, epoch)
        if renew and reply.session_alive and epoch == session.epoch:
            session.renewed_s = asked_s
        directives = {directive.volume: directive for directive in reply.volumes}
        for volume in self._volumes:
            directive = directives.get(volume.id)
            if directive is not None:
                volume.obey(directive)
        return True
