"""A toy cluster as `status` sees it."""

from __future__ import annotations

from copypool.protocol.api import StatusReply
from copypool_coordinator import keys, status
from copypool_coordinator.heartbeats import Heartbeats
from copypool_coordinator.offpolicy import OffPolicy
from copypool_coordinator.policy import places
from copypool_coordinator.rows import FORMAT, LeaderRow
from copypool_coordinator.status import StatusFacts
from kit.toy_cluster import ToyCluster


class Seen:
    """A cluster and one coordinator's index of it."""

    def __init__(self, cluster: ToyCluster) -> None:
        self.cluster = cluster
        self.index = OffPolicy()
        cluster.put(keys.LEADER, LeaderRow(FORMAT, "coordinator1", "http://coordinator1"))

    async def facts(self, **changes: object) -> StatusFacts:
        cluster = self.cluster
        known = places(cluster.view)
        await self.index.refresh(cluster.view, known, dict(cluster.opened), cluster.policy, cluster.now_ms, 1_000)
        facts = StatusFacts(
            marks=self.index.marks,
            pending=self.index.pending,
            places=known,
            heartbeats=Heartbeats(),
            policy=cluster.policy,
            now_ms=cluster.now_ms,
            now_s=cluster.now_ms / 1000,
            heard_age_s=0.1,
            sampled=True,
            brake=cluster.facts().brake,
            coordinator="coordinator2",
            catalog_bytes=1,
            opened=dict(cluster.opened),
        )
        for name, value in changes.items():
            object.__setattr__(facts, name, value)
        return facts

    async def status(self, **changes: object) -> StatusReply:
        reply = status.build(self.cluster.view, await self.facts(**changes))
        assert reply.healthy == (not reply.reasons)
        return reply


def only(reply: StatusReply) -> str:
    """The one reason."""
    assert len(reply.reasons) == 1, reply.reasons
    return reply.reasons[0]
