"""Copy debt by pool and namespace, and what `wait --copied --namespace` waits for."""

from __future__ import annotations

from copypool.protocol.api import StatusReply
from copypool.telemetry.metrics import render
from copypool_coordinator import keys, protection_metrics, rpo, status, waiting
from copypool_coordinator.heartbeats import Heartbeats
from copypool_coordinator.offpolicy import OffPolicy
from copypool_coordinator.policy import places
from copypool_coordinator.rows import FORMAT, NamespaceRow, Share
from copypool_coordinator.status import StatusFacts
from kit.toy_cluster import CLASS, MIB, ToyCluster

E = 7
HEADER = 4096


class World:
    """Two namespaces, one extent of 2 MiB of which `copied` bytes are in the copy pool."""

    def __init__(self) -> None:
        self.cluster = ToyCluster()
        self.index = OffPolicy()
        for number, name in enumerate(("early", "late"), start=1):
            self.cluster.put(keys.named(keys.NAMESPACE, name), NamespaceRow(FORMAT, number, CLASS))
        self.cluster.open_extent(E, writer=1, length=MIB)
        self.cluster.opened[E].shares = [Share(1, MIB, 10, 900_000)]
        self.cluster.settle()
        self.cluster.wait(5_000)
        self.cluster.write(E, 2 * MIB)
        self.cluster.opened[E].uncopied_since_ms = self.cluster.now_ms
        self.cluster.opened[E].shares = [Share(1, MIB, 10, 900_000), Share(2, 2 * MIB, 5, 900_000)]
        self.cluster.wait(30_000)

    async def facts(self) -> StatusFacts:
        cluster = self.cluster
        known = places(cluster.view)
        await self.index.refresh(cluster.view, known, dict(cluster.opened), cluster.policy, cluster.now_ms, 1_000)
        return StatusFacts(
            self.index.marks, 0, known, Heartbeats(), cluster.policy, cluster.now_ms, 0.0, 0.1, True, "", "c1", 1,
            opened=dict(cluster.opened), scrub=self.index.scrub.progress(cluster.policy, cluster.now_ms),
        )  # fmt: skip

    async def status(self) -> StatusReply:
        return status.build(self.cluster.view, await self.facts())


async def test_only_the_namespace_behind_the_copy_owes() -> None:
    world = World()
    reply = await world.status()
    owed = {each.namespace: (each.debt_bytes, each.debt_oldest_s) for each in reply.namespaces}
    assert owed == {"early": (0, 0.0), "late": (MIB, 30.0)}
    pools = {each.pool: (each.debt_bytes, each.debt_oldest_s) for each in reply.pools}
    assert pools == {"primary": (0, 0.0), "copy": (MIB, 30.0)}
    assert [each.debt_records for each in reply.pools if each.pool == "copy"] == [2 * MIB // 1000 - MIB // 1000]


async def test_waiting_for_one_namespace_waits_for_its_bytes_alone() -> None:
    world = World()
    facts = await world.facts()
    view = world.cluster.view
    assert waiting.take_marks(view, facts.marks, facts.opened) == [[E, 2 * MIB]]
    late = waiting.take_marks(view, facts.marks, facts.opened, 2)
    early = waiting.take_marks(view, facts.marks, facts.opened, 1)
    assert (late, early) == ([[E, 2 * MIB]], [[E, MIB]])
    assert waiting.unreached(view, early, facts.places, facts.opened) == []
    assert waiting.unreached(view, late, facts.places, facts.opened) == late
    assert waiting.take_marks(view, facts.marks, facts.opened, 3) == []


async def test_what_an_older_version_wrote_may_be_anybodys() -> None:
    world = World()
    world.cluster.opened[E].shares = []
    facts = await world.facts()
    assert waiting.take_marks(world.cluster.view, facts.marks, facts.opened, 3) == [[E, 2 * MIB]]
    found = rpo.by_namespace(world.cluster.view, facts.marks, facts.opened, facts.now_ms)
    assert [(each.namespace, each.debt_bytes) for each in found] == [("early", 0), ("late", 0), ("(others)", MIB)]


async def test_the_metrics_tell_the_same_and_no_names_of_namespaces() -> None:
    world = World()
    text = render(protection_metrics.page(await world.status(), {"early": 1, "late": 2}))
    assert 'copypool_pool_debt_oldest_seconds{pool="copy"} 30' in text
    assert 'copypool_namespace_debt_oldest_seconds{namespace_id="2"} 30' in text
    assert "early" not in text
