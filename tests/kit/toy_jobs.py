"""Processes on a `ToyCluster`: started, looked at and cancelled as the coordinator does, without I/O."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from msgspec.structs import replace

from copypool.protocol.processes import Preview, ProcessInfo, ProcessRequest
from copypool_coordinator import keys, starting
from copypool_coordinator.controllers import processes
from copypool_coordinator.controllers.actions import Action, SealExtent, WriteProcess
from copypool_coordinator.departing import departing
from copypool_coordinator.jobs import EMPTYING
from copypool_coordinator.offpolicy import Mark, look
from copypool_coordinator.policy import Facts, Policy, places
from copypool_coordinator.process_api import process_info
from copypool_coordinator.protection import assess
from copypool_coordinator.remaining import left
from copypool_coordinator.rows import ExtentRow, ProcessRow, VolumeRow
from copypool_coordinator.starting import Plan
from kit.toy_cluster import CLASS, MIB, ToyCluster

_ROUNDS_MAX = 400
LENGTH = 40 * MIB  #: of the extents of `cluster_with`


class ToyJobs:
    """The processes of one toy cluster."""

    def __init__(self, cluster: ToyCluster) -> None:
        self.cluster = cluster
        self.sizes: Mapping[int, tuple[int, int]] = {}  #: volume -> (used, total) bytes, for a rebalance
        self._number = 0

    def marks(self) -> dict[int, Mark]:
        """What the index of extents off policy would hold."""
        cluster = self.cluster
        known = places(cluster.view)
        found = {
            extent: look(cluster.view, entry.row, cluster.opened.get(extent), known, cluster.policy, cluster.now_ms)
            for extent, entry in cluster.view.extents.items()
        }
        return {extent: mark for extent, mark in found.items() if mark is not None}

    def _facts(self, leaving: Collection[int] = ()) -> Facts:
        facts = self.cluster.facts()
        choose = facts.choose

        def staying(row: ExtentRow, pool: int) -> int | None:
            self.cluster.avoided = frozenset(leaving)
            try:
                return choose(replace(row, locations=[e for e in row.locations if e.volume not in leaving]), pool)
            finally:
                self.cluster.avoided = frozenset()

        facts.choose = staying
        return facts

    def _planned(self, request: ProcessRequest) -> tuple[Plan, Facts]:
        cluster = self.cluster
        plan = starting.draft(cluster.view, request, "tester", cluster.now_ms)
        facts = self._facts(plan.row.volumes if plan.intent or plan.access else ())
        if request.verb == "backup":
            starting.take_marks(cluster.view, plan.row, cluster.opened)
        elif request.verb == "rebalance":
            starting.take_surplus(cluster.view, facts, plan.row, self.sizes)
        return plan, starting.granted(facts, plan)

    def preview(self, request: ProcessRequest) -> Preview:
        """What the process would do."""
        plan, facts = self._planned(request)
        return starting.preview(self.cluster.view, facts, self.marks(), plan)

    def start(self, request: ProcessRequest) -> str:
        """Grant a request; the id."""
        plan, facts = self._planned(request)
        found = starting.preview(self.cluster.view, facts, self.marks(), plan)
        row = plan.row
        starting.refuse_twins(self.cluster.view, row)
        starting.refuse_futile(self.cluster.view, facts, self.marks(), plan)
        row.total_extents, row.total_bytes = found.extents, found.bytes
        row.updated_ms = self.cluster.now_ms
        for volume in row.volumes if plan.access or plan.intent else ():
            known = self.cluster.view.volumes_by_id[volume]
            if plan.access:
                row.access_before.append(known.row.access)
            access = plan.access or known.row.access
            self._put_volume(replace(known.row, access=access, intent=plan.intent or known.row.intent))
        self._number += 1
        process = f"{self._number:06d}"
        self.cluster.put(keys.named(keys.PROCESS, process), row)
        return process

    def _put_volume(self, row: VolumeRow) -> None:
        self.cluster.put(keys.named(keys.VOLUME, f"volume{row.id}"), row)

    def row(self, process: str) -> ProcessRow:
        """The process's row."""
        return self.cluster.view.processes[process].row

    def shown(self, process: str) -> ProcessInfo:
        """What is shown to who asks."""
        cluster, row = self.cluster, self.row(process)
        facts, marks = self._facts(), self.marks()
        now = processes.look(cluster.view, facts, marks, row, cluster.now_ms, explain=True)
        leaves = departing(cluster.view, facts, left(cluster.view, facts, marks, row))
        return process_info(process, row, now, cluster.now_ms, leaves if row.state == "running" else None)

    def cancel(self, process: str) -> None:
        """An operator's word."""
        self.cluster.put(keys.named(keys.PROCESS, process), replace(self.row(process), cancelled_by="tester"))

    def release_all(self) -> None:
        """Every volume takes bytes again, also those that were given up."""
        for entry in list(self.cluster.view.volumes.values()):
            self._put_volume(replace(entry.row, intent="", access="readwrite"))

    def process_actions(self) -> list[Action]:
        """What the ProcessController asks for now."""
        return processes.plan(self.cluster.view, self._facts(), self.marks(), self.cluster.now_ms)

    def look(self, process: str) -> None:
        """One turn of the ProcessController."""
        for action in self.process_actions():
            if isinstance(action, SealExtent):
                self.cluster.perform(action)
            elif isinstance(action, WriteProcess):
                self.write(action)

    def write(self, action: WriteProcess) -> None:
        """As the catalog would, if nothing changed since."""
        entry = self.cluster.view.processes.get(action.process)
        if entry is None or entry.mod_revision != action.mod_revision:
            return
        before = dict(zip(action.row.volumes, action.row.access_before, strict=False))
        for volume in action.give_back:
            there = self.cluster.view.volumes_by_id.get(volume)
            if there is None:
                continue  # another process has taken it out
            known = there.row
            access = before.get(volume, known.access) if known.access == "destroyed" else known.access
            intent = "" if action.row.verb in EMPTYING else known.intent
            self._put_volume(replace(known, access=access, intent=intent))
        if action.remove_volume:
            assert not self.cluster.view.extents_by_volume[action.remove_volume]
            self.cluster.delete(keys.named(keys.VOLUME, f"volume{action.remove_volume}"))
        self.cluster.put(keys.named(keys.PROCESS, action.process), action.row)

    def steps(self, count: int) -> None:
        """Some rounds of all controllers."""
        for _ in range(count):
            self.cluster.perform_all(self.cluster.plan())
            self.cluster.wait(1_000)
            self.look("")

    def run(self, process: str) -> None:
        """Rounds of all controllers until the process has ended."""
        for _ in range(_ROUNDS_MAX):
            if self.row(process).state != "running":
                return
            self.steps(1)
        raise AssertionError(f"still running: {self.row(process)}\n{self.cluster.history[-20:]}")

    def copy_of(self, extent: int) -> int:
        """The volume of the extent's copy."""
        return next(each.volume for each in self.cluster.row(extent).locations if each.volume > 2)

    def watch_protection(self) -> None:
        """From now on no extent that is protected may be less so after any action (invariant 6)."""
        cluster = self.cluster
        protected: set[int] = set()

        def check() -> None:
            extent_class = cluster.view.classes[CLASS].row
            for extent in cluster.view.extents:
                now = assess(
                    cluster.row(extent), cluster.committed(extent), extent_class, places(cluster.view)
                ).satisfied
                assert now or extent not in protected, f"extent {extent} is less protected: {cluster.row(extent)}"
                if now:
                    protected.add(extent)

        check()
        cluster.checks.append(check)


def cluster_with(
    extents: int = 3, *, primary_nodes: int = 2, copy_nodes: int = 2, policy: Policy | None = None
) -> ToyJobs:
    """Sealed extents, written on node 1, copied and read back."""
    cluster = ToyCluster(primary_nodes, copy_nodes, policy or Policy(grace_ms=60_000, drop_delay_ms=30_000))
    jobs = ToyJobs(cluster)
    for extent in range(extents):
        cluster.open_extent(extent, writer=1, length=LENGTH)
        cluster.settle()
        cluster.seal(extent)
    cluster.wait(cluster.policy.first_verify_delay_ms)
    cluster.settle()
    cluster.wait(60_000)
    cluster.history.clear()
    cluster.pulled_bytes = 0
    return jobs


def on(jobs: ToyJobs, volume: int) -> list[int]:
    """Extents with a location on this volume that is not on its way out."""
    cluster = jobs.cluster
    return sorted(
        extent
        for extent in cluster.view.extents
        for each in cluster.row(extent).locations
        if each.volume == volume and each.state != "dropping"
    )
