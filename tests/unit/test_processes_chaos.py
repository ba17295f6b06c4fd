"""Operators' verbs in any order, cancelled at any time, among failures: no action of theirs lowers protection.

Invariants 5 and 6 under attack: whatever moves, restores, audits, backups and deletes run together, every single
action leaves every extent as protected as it was, and in the calm after it all processes end and all is as policy says.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from copypool.protocol.errors import Conflict, NotFound
from copypool.protocol.processes import ProcessRequest
from copypool_coordinator.controllers.actions import Action
from copypool_coordinator.policy import Memory, Policy, places
from copypool_coordinator.protection import assess, reach
from kit.toy_cluster import CLASS, MIB, ToyCluster
from kit.toy_jobs import ToyJobs

PRIMARY_NODES, COPY_NODES = 3, 2
NODES = PRIMARY_NODES + COPY_NODES
EXTENTS = 3
JOBS_MAX = 6


class Verbs(RuleBasedStateMachine):
    """A cluster of whole extents and operators who cannot make up their minds."""

    @initialize()
    def begin(self) -> None:
        self.cluster = ToyCluster(PRIMARY_NODES, COPY_NODES, Policy(grace_ms=20_000, drop_delay_ms=30_000))
        self.jobs = ToyJobs(self.cluster)
        self.started: list[str] = []
        self.discarding = False
        for extent in range(EXTENTS):
            self.cluster.open_extent(extent, writer=1 + extent % PRIMARY_NODES, length=MIB)
            self.cluster.settle()
            if extent:
                self.cluster.seal(extent)
        self.cluster.wait(10_000)
        self.cluster.settle()

    def satisfied(self, extent: int) -> bool:
        cluster = self.cluster
        extent_class = cluster.view.classes[CLASS].row
        return assess(cluster.row(extent), cluster.committed(extent), extent_class, places(cluster.view)).satisfied

    def best(self, extent: int) -> int:
        """The longest prefix that some location claims and nothing speaks against, on whatever volume."""
        row = self.cluster.row(extent)
        whole = [each for each in row.locations if each.state in ("good", "copying")]
        return max((reach(row, each, self.cluster.committed(extent)) for each in whole), default=0)

    def perform(self, action: Action) -> None:
        before = [(self.satisfied(e), self.best(e), self.cluster.held(e)) for e in range(EXTENTS)]
        self.cluster.perform(action)
        for extent, (satisfied, best, held) in enumerate(before):
            if not self.discarding:
                assert self.satisfied(extent) or not satisfied, f"{action} lowered the protection of extent {extent}"
            assert self.best(extent) >= best, f"{action} lost good bytes of extent {extent}"
            assert self.cluster.held(extent) >= held, f"{action} lost bytes on disk of extent {extent}"

    def start(self, request: ProcessRequest) -> None:
        if len(self.started) < JOBS_MAX:
            try:
                self.started.append(self.jobs.start(request))
            except (Conflict, NotFound):
                return
            self.discarding = self.discarding or request.verb == "delete"

    # -- operators -------------------------------------------------------------------------------
    @rule(volume=st.integers(1, NODES))
    def move(self, volume: int) -> None:
        self.start(ProcessRequest("move", volume=f"volume{volume}"))

    @rule(node=st.integers(1, NODES))
    def drain(self, node: int) -> None:
        self.start(ProcessRequest("drain", node=f"node{node}"))

    @rule(volume=st.integers(1, NODES))
    def audit(self, volume: int) -> None:
        self.start(ProcessRequest("audit", volume=f"volume{volume}", fix=True))

    @rule()
    def backup(self) -> None:
        self.start(ProcessRequest("backup", pool="primary"))

    @rule(pool=st.sampled_from(["primary", "copy"]))
    def restore_pool(self, pool: str) -> None:
        self.start(ProcessRequest("restore", pool=pool))

    @rule(volume=st.integers(1, NODES))
    def restore_volume(self, volume: int) -> None:
        """One that nothing depends on alone: giving up the last copy is the operator's doing, not the job's."""
        alone = any(
            self.satisfied(extent) is False and each.volume == volume
            for extent in range(EXTENTS)
            for each in self.cluster.row(extent).locations
        )
        if not alone and not any(each.row.access == "destroyed" for each in self.cluster.view.volumes.values()):
            self.start(ProcessRequest("restore", volume=f"volume{volume}"))

    @rule(volume=st.integers(1, NODES))
    def rebalance(self, volume: int) -> None:
        self.jobs.sizes = {each: (8 * MIB if each == volume else 0, 10 * MIB) for each in range(1, NODES + 1)}
        self.start(ProcessRequest("rebalance"))

    @rule(volume=st.integers(1, NODES))
    def discard_volume(self, volume: int) -> None:
        """Once: fewer than policy wants may be left for a while, but never none."""
        request = ProcessRequest("delete", volume=f"volume{volume}", discard_data=True)
        there = not self.discarding and request.volume in self.cluster.view.volumes
        if there and self.jobs.preview(request).dies_extents == 0:
            self.start(request)

    @rule(pick=st.integers(0, JOBS_MAX - 1))
    def cancel(self, pick: int) -> None:
        if pick < len(self.started) and self.jobs.row(self.started[pick]).state == "running":
            self.jobs.cancel(self.started[pick])

    # -- the world -------------------------------------------------------------------------------
    @rule(node=st.integers(1, NODES))
    def session_ends_or_begins(self, node: int) -> None:
        if self.cluster.view.node_up(node):
            self.cluster.down(node)
        else:
            self.cluster.up(node)

    @rule(ms=st.sampled_from([500, 5_000, 30_000]))
    def time_goes_by(self, ms: int) -> None:
        self.cluster.wait(ms)

    @rule()
    def another_leader(self) -> None:
        self.cluster.memory = Memory()

    # -- controllers -----------------------------------------------------------------------------
    @rule(count=st.integers(1, 4))
    def some_actions(self, count: int) -> None:
        for action in self.cluster.plan()[:count]:
            self.perform(action)

    @rule()
    def a_whole_pass(self) -> None:
        for action in self.cluster.plan():
            self.perform(action)
        self.cluster.wait(1_000)
        self.jobs.look("")

    def teardown(self) -> None:
        """Calm: every process ends, what nobody gave up is released, and all is as policy says."""
        if not hasattr(self, "cluster"):
            return
        cluster = self.cluster
        for node in range(1, NODES + 1):
            if not cluster.view.node_up(node):
                cluster.up(node)
        for number in range(200):
            for action in cluster.plan():
                self.perform(action)
            cluster.wait(5_000)
            self.jobs.look("")
            if number == 100:
                self.jobs.release_all()
        for process in self.started:
            assert self.jobs.row(process).state != "running", self.jobs.row(process)
        for extent in range(EXTENTS):
            story = [each for each in cluster.history if extent in each.key[1:2]]
            assert self.satisfied(extent), f"extent {extent}: {cluster.row(extent)}\n{story}"


TestVerbs = Verbs.TestCase
TestVerbs.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
