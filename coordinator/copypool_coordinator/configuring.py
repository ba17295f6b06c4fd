"""Brings the cluster's configuration to every volume, so that volumes alone are enough to rebuild the catalog (A5).

Level-triggered: every round compares what each reachable volume is known to hold with what the view says now. A new
term knows of no volume and tells them all once; telling one what it has costs a read there.
"""

from __future__ import annotations

import asyncio
import logging

import msgspec

from copypool.protocol.api import Empty
from copypool.protocol.errors import CopypoolError, Fenced, NotLeader
from copypool.protocol.internal import Configuration, ConfigurationCommand, ExtentClass
from copypool_coordinator.catalog import Catalog, LeaderGuard
from copypool_coordinator.node_link import NodeLink
from copypool_coordinator.view import ClusterView

log = logging.getLogger(__name__)

PAUSE_S = 10.0
_AT_ONCE = 8
_ANSWER_S = 10.0


def describe(view: ClusterView) -> Configuration:
    """The configuration as the view has it, in a fixed order: equal configurations are equal bytes. Pure."""
    pool_names = {entry.row.id: entry.name for entry in view.pools.values()}
    classes = sorted(view.classes.values(), key=lambda entry: entry.row.id)
    return Configuration(
        cluster_id=view.cluster.row.id if view.cluster is not None else b"",
        pools=sorted((entry.name, entry.row.id, entry.row.type) for entry in view.pools.values()),
        classes=[
            ExtentClass(
                entry.row.id,
                pool_names.get(entry.row.primary_pool, ""),
                [pool_names.get(pool, "") for pool in entry.row.copy_pools],
                entry.row.ack,
                entry.row.on_copy_failure,
            )
            for entry in classes
        ],
        namespaces=sorted(
            (entry.name, entry.row.id, entry.row.class_id, entry.row.quota_bytes, entry.row.state)
            for entry in view.namespaces.values()
        ),
        nodes=sorted((entry.name, entry.row.id) for entry in view.nodes.values()),
        volumes=sorted((entry.name, entry.row.id, entry.row.pool, entry.row.node) for entry in view.volumes.values()),
    )


class ConfigurationKeeper:
    """The duty of one term."""

    def __init__(self, catalog: Catalog, link: NodeLink, guard: LeaderGuard) -> None:
        self._catalog = catalog
        self._link = link
        self._guard = guard
        self._held: dict[int, bytes] = {}  #: volume -> content that it has confirmed

    async def run(self) -> None:
        """Until cancelled or the term is over."""
        while True:
            await self.round()
            await asyncio.sleep(PAUSE_S)

    async def round(self) -> int:
        """Tell every reachable volume that does not hold the present configuration; how many were told."""
        view = self._catalog.view
        revision, content = view.revision, msgspec.msgpack.encode(describe(view))
        behind = [
            (entry.row.node, entry.row.id)
            for entry in view.volumes.values()
            if view.volume_reachable(entry.row.id) and self._held.get(entry.row.id) != content
        ]
        told = 0
        for at in range(0, len(behind), _AT_ONCE):
            done = await asyncio.gather(*(self._tell(*each, revision, content) for each in behind[at : at + _AT_ONCE]))
            told += sum(done)
        return told

    async def _tell(self, node: int, volume: int, revision: int, content: bytes) -> bool:
        command = ConfigurationCommand(self._guard.term, volume, revision, content)
        try:
            await self._link.send(node, "configuration", command, Empty, answer_s=_ANSWER_S)
        except (Fenced, NotLeader) as error:
            raise NotLeader(f"term {self._guard.term} is over: {error.message}") from error
        except CopypoolError as error:
            log.info("volume %d does not have the configuration yet: %s", volume, error.message)
            return False
        self._held[volume] = content
        return True
