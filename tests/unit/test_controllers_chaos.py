"""Random failures, returns, damage and interrupted plans: no action ever loses a byte, and calm heals everything."""

from __future__ import annotations

from collections.abc import Collection

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from copypool.protocol.api import LocationState
from copypool_coordinator.controllers.actions import Action
from copypool_coordinator.locations import before_drop
from copypool_coordinator.policy import Memory, Policy, places
from copypool_coordinator.protection import assess, reach
from copypool_coordinator.rows import Location
from kit.toy_cluster import CLASS, MIB, ToyCluster

PRIMARY_NODES, COPY_NODES = 2, 2
NODES = PRIMARY_NODES + COPY_NODES
EXTENTS_MAX = 3


class Chaos(RuleBasedStateMachine):
    """Between any two actions anything may happen; what the controllers do themselves must never make it worse."""

    @initialize(rebuilt=st.booleans())
    def begin(self, rebuilt: bool) -> None:
        self.cluster = ToyCluster(PRIMARY_NODES, COPY_NODES, Policy(grace_ms=20_000, drop_delay_ms=30_000))
        self.extents = 0
        self.held: list[Action] = []
        if rebuilt:
            self.one_extent_has_a_location_too_many()

    def one_extent_has_a_location_too_many(self) -> None:
        """Lost, rebuilt, and the lost node is back."""
        self.open_extent(1)
        self.cluster.settle()
        self.cluster.down(1)
        self.cluster.settle()
        self.cluster.wait(self.cluster.policy.grace_ms)
        self.cluster.settle()
        self.cluster.up(1)

    def best(self, extent: int) -> int:
        """The longest prefix that some location holds and nothing speaks against, on whatever node.

        One that is to go is as good as any until it may be erased.
        """
        row = self.cluster.row(extent)
        committed = self.cluster.committed(extent)
        whole = [each for each in row.locations if self.sound(each, ("good", "copying"))]
        return max((reach(row, each, committed) for each in whole), default=0)

    def sound(self, location: Location, states: Collection[LocationState]) -> bool:
        if location.state == "dropping":
            return not location.erasing and before_drop(location) in states
        return location.state in states

    def satisfied(self, extent: int) -> bool:
        cluster = self.cluster
        extent_class = cluster.view.classes[CLASS].row
        return assess(cluster.row(extent), cluster.committed(extent), extent_class, places(cluster.view)).satisfied

    def perform(self, action: Action) -> None:
        before = {
            extent: (self.best(extent), self.cluster.held(extent), self.satisfied(extent))
            for extent in range(self.extents)
        }
        self.cluster.perform(action)
        for extent, (best, held, satisfied) in before.items():
            assert self.satisfied(extent) or not satisfied, f"{action} lowered the protection of extent {extent}"
            assert self.best(extent) >= best, f"{action} lost good bytes of extent {extent}"
            assert self.cluster.held(extent) >= held, f"{action} lost bytes on disk of extent {extent}"

    # -- what clients and the world do -----------------------------------------------------------
    @rule(writer=st.integers(1, PRIMARY_NODES))
    def open_extent(self, writer: int) -> None:
        if self.extents < EXTENTS_MAX and self.cluster.view.node_up(writer):
            self.cluster.open_extent(self.extents, writer=writer, length=MIB)
            self.extents += 1

    @rule(extent=st.integers(0, EXTENTS_MAX - 1))
    def write(self, extent: int) -> None:
        row = self.cluster.row(extent) if extent < self.extents else None
        session = self.cluster.view.sessions.get(row.writer_node) if row is not None else None
        if row is not None and row.open and session is not None and session.mod_revision == row.epoch:
            self.cluster.write(extent, self.cluster.committed(extent) + MIB)

    @rule(node=st.integers(1, NODES))
    def session_ends(self, node: int) -> None:
        if self.cluster.view.node_up(node):
            self.cluster.down(node)

    @rule(node=st.integers(1, NODES))
    def session_begins(self, node: int) -> None:
        self.cluster.up(node)

    @rule(pick=st.integers(0, 11))
    def a_location_goes_bad(self, pick: int) -> None:
        """One of those that some other good location could stand in for, be it on its way out."""
        candidates = [
            (extent, each.volume)
            for extent in range(self.extents)
            if not self.cluster.row(extent).open
            for each in self.cluster.row(extent).locations
            if each.state == "good" and self.stand_ins(extent, each.generation)
        ]
        if candidates:
            extent, volume = candidates[pick % len(candidates)]
            self.cluster.mark(extent, volume, "damaged")

    def stand_ins(self, extent: int, generation: int) -> int:
        """How many other good locations reach as far as this one, on whatever node."""
        locations = self.cluster.row(extent).locations
        (own,) = [each for each in locations if each.generation == generation]
        others = [each for each in locations if each is not own and each.length >= own.length]
        return sum(self.sound(each, ("good",)) for each in others)

    @rule(ms=st.sampled_from([500, 5_000, 30_000]))
    def time_goes_by(self, ms: int) -> None:
        self.cluster.wait(ms)

    @rule()
    def another_leader(self) -> None:
        self.cluster.memory = Memory()

    # -- what controllers do -----------------------------------------------------------------------
    @rule(count=st.integers(1, 4))
    def some_actions_of_a_plan(self, count: int) -> None:
        for action in self.cluster.plan()[:count]:
            self.perform(action)

    @rule()
    def a_plan_is_made_and_its_leader_sleeps(self) -> None:
        self.held = self.cluster.plan()

    @rule()
    def the_sleeper_wakes_up(self) -> None:
        """Its guard still holds, its plan is old: the rows decide what of it happens."""
        for action in self.held:
            self.perform(action)
        self.held = []

    @rule()
    def a_whole_pass(self) -> None:
        for action in self.cluster.plan():
            self.perform(action)
        self.cluster.wait(100)

    @invariant()
    def a_location_never_claims_more_than_is_there(self) -> None:
        if not hasattr(self, "cluster"):
            return
        for extent in range(self.extents):
            for location in self.cluster.row(extent).locations:
                assert location.length <= self.cluster.committed(extent)

    def teardown(self) -> None:
        """Calm: all are back, extents end, time goes by: everything is as its class wants, with nothing too much."""
        if not hasattr(self, "cluster"):
            return
        cluster = self.cluster
        for node in range(1, NODES + 1):
            if not cluster.view.node_up(node):
                cluster.up(node)
        for extent in range(self.extents):
            if cluster.row(extent).open:
                cluster.seal(extent)
        for _ in range(60):
            cluster.wait(10_000)
            for action in cluster.plan():
                self.perform(action)
        for extent in range(self.extents):
            story = [each for each in cluster.history if extent in each.key[1:2]]
            assert self.satisfied(extent), f"extent {extent}: {cluster.row(extent)}\n{story}"
            assert len(cluster.row(extent).locations) == 2, f"extent {extent}: {cluster.row(extent)}\n{story}"


TestChaos = Chaos.TestCase
TestChaos.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
