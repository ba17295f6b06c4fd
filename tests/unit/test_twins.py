"""Twins without I/O: where they go, when they are tried again, what the controllers leave alone, and a model of all."""

from __future__ import annotations

from dataclasses import dataclass, field

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from msgspec.structs import replace

from copypool.protocol.api import SegmentRef
from copypool.protocol.errors import Fenced, Invalid, Unavailable
from copypool.protocol.internal import Claim, CommitEntry, CommitRequest
from copypool.protocol.policies import Spread
from copypool.protocol.versions import version_at
from copypool_coordinator import keys, locations, routing, rows, twins
from copypool_coordinator.commit import Landed, Round, plan_first, plan_next
from copypool_coordinator.controllers.actions import FinishDrop, Pull, Reserve, SealExtent
from copypool_coordinator.drafting import Facts, NamespaceFacts
from copypool_coordinator.etcd import delete, put
from copypool_coordinator.offpolicy import look
from copypool_coordinator.placement import choose_twin
from copypool_coordinator.policy import Policy, places
from copypool_coordinator.protection import may_leave, reach
from copypool_coordinator.rows import ClassRow, ExtentRow, OpenRow, PoolRow
from copypool_node.twin_gate import (
    AVOID_S,
    CONTINUE_FIRST_S,
    CONTINUE_MAX_S,
    FAIL_FIRST_S,
    FAIL_MAX_S,
    TwinGate,
)
from kit.little_view import LittleView, report
from kit.memory_store import MemoryStore
from kit.toy_cluster import MIB, ToyCluster

PRIMARY, COPY = 1, 2
CLASS = ClassRow(1, 1, PRIMARY, [COPY], "copy", "fail")
E = 7


# -- where a twin goes (A21) --------------------------------------------------------------------
def cluster(copies: dict[int, tuple[str, str]], spread: tuple[Spread, Spread] = ("host", "host")) -> LittleView:
    """A writer on node 1 (zone a, host h1), and copy volumes 10 * node on nodes in (zone, host)."""
    little = LittleView()
    little.put(keys.named(keys.POOL, "primary"), PoolRow(1, PRIMARY, "primary", spread=spread[0]))
    little.put(keys.named(keys.POOL, "copy"), PoolRow(1, COPY, "copy", spread=spread[1]))
    little.node(1, zone="a", host="h1")
    for node, (zone, host) in copies.items():
        if node != 1:
            little.node(node, zone=zone, host=host)
        little.volume(10 * node, node, COPY)
        little.beat(node, {10 * node: report(10 * node)})
    return little


def chosen(little: LittleView, avoid: tuple[int, ...] = ()) -> set[int | None]:
    loads = little.heartbeats.loads(0.0)
    found = (choose_twin(little.view, loads, CLASS, 1, avoid_nodes=avoid, seed=seed) for seed in range(20))
    return {None if each is None else each.row.id for each in found}


def test_a_twin_is_never_on_the_writers_node_or_host() -> None:
    assert chosen(cluster({1: ("a", "h1")})) == {None}
    assert chosen(cluster({2: ("b", "h1")})) == {None}
    assert chosen(cluster({2: ("a", "h2")})) == {20}


def test_another_zone_is_preferred_and_demanded_where_a_pool_is_spread_over_zones() -> None:
    both = {2: ("a", "h2"), 3: ("b", "h3")}
    assert chosen(cluster(both)) == {30}
    spreads: list[tuple[Spread, Spread]] = [("zone", "host"), ("host", "zone")]
    for spread in spreads:
        assert chosen(cluster({2: ("a", "h2")}, spread)) == {None}
        assert chosen(cluster(both, spread)) == {30}


def test_a_node_that_just_failed_comes_last_but_comes() -> None:
    alike = {2: ("b", "h2"), 3: ("b", "h3")}
    assert chosen(cluster(alike)) == {20, 30}
    assert chosen(cluster(alike), avoid=(2,)) == {30}
    assert chosen(cluster({2: ("b", "h2")}), avoid=(2,)) == {20}


def test_a_twin_needs_room_and_a_volume_that_takes_bytes() -> None:
    little = cluster({2: ("b", "h2")})
    little.beat(2, {20: report(20, free=MIB)})
    assert chosen(little) == {None}
    little.beat(2, {20: report(20, read_only=True)})
    assert chosen(little) == {None}
    little.beat(2, {20: report(20)})
    little.volume(20, 2, COPY, access="readonly")
    assert chosen(little) == {None}


# -- when it is tried again ---------------------------------------------------------------------
def test_the_gate_closes_for_longer_each_time_within_bounds_and_opens_for_good_after_a_success() -> None:
    for required, first_s, max_s in ((True, FAIL_FIRST_S, FAIL_MAX_S), (False, CONTINUE_FIRST_S, CONTINUE_MAX_S)):
        gate, now_s = TwinGate(), 100.0
        for failures in range(12):
            gate.failed(now_s, "it is gone", required=required)
            wait_s = min(first_s * 2.0**failures, max_s)
            gate.failed(now_s + wait_s / 2, "the same trouble", required=required)  # closes it no longer
            assert not gate.due(now_s + wait_s - 0.01)
            now_s += wait_s + 0.01
            assert gate.due(now_s)
        gate.failed(now_s, "it is gone", required=required)
        gate.met()
        assert gate.due(now_s)
        gate.failed(now_s, "again", required=required)
        assert gate.due(now_s + first_s)


def test_only_a_class_that_says_fail_is_refused() -> None:
    gate = TwinGate()
    gate.failed(0.0, "no place", required=False, node_id=3)
    assert gate.refusal(0.0) == ""
    assert gate.avoid(1.0) == [3]
    assert gate.avoid(AVOID_S + 1.0) == []
    gate = TwinGate()
    gate.failed(0.0, "no place", required=True)
    assert gate.refusal(0.0) == "no place"
    assert gate.refusal(FAIL_FIRST_S) == ""


# -- what the controllers leave alone -----------------------------------------------------------
def with_twin(length: int = 20 * MIB) -> ToyCluster:
    """An open extent that node 1 writes, with its twin on node 3."""
    toy = ToyCluster()
    toy.open_extent(E, writer=1, length=length)
    toy.put_extent(E, twins.added(toy.row(E), 3, 3, toy.now_ms))
    toy.opened[E] = replace(toy.opened[E], twin=2)
    return toy


def test_nobody_pulls_into_a_live_twin_and_nothing_is_owed() -> None:
    toy = with_twin()
    assert toy.plan() == []
    row, sample = toy.row(E), toy.opened[E]
    assert reach(row, toy.location(E, 3), sample.length) == sample.length
    assert look(toy.view, row, sample, places(toy.view), Policy(), toy.now_ms) is None
    assert routing.reach_of(toy.location(E, 3), row) == routing.UNBOUNDED
    assert not may_leave(row, toy.location(E, 3), sample.length, lambda _: True, 1)


def test_the_end_of_a_twin_is_debt_at_once_also_before_memory_knows_the_row() -> None:
    toy = with_twin()
    sample = replace(toy.opened[E], length=30 * MIB, twin=0)
    mark = look(toy.view, toy.row(E), sample, places(toy.view), Policy(), toy.now_ms)
    assert mark is not None
    assert mark.debt_bytes > 0
    toy.put_extent(E, twins.ended(toy.row(E), toy.opened[E], toy.now_ms))
    toy.opened[E] = sample
    (pull,) = toy.plan()
    assert isinstance(pull, Pull)
    assert (pull.location.volume, pull.up_to) == (3, 30 * MIB)


def test_a_sealed_twin_gets_its_footer_by_the_same_pull_as_any_copy() -> None:
    toy = with_twin()
    toy.seal(E)
    location = toy.location(E, 3)
    assert (location.state, location.length) == ("good", toy.row(E).length)
    (pull,) = toy.plan()
    assert isinstance(pull, Pull)
    assert (pull.location.volume, pull.sealed) == (3, True)


def test_a_twin_whose_volume_takes_no_writes_ends_the_extent() -> None:
    toy = with_twin()
    toy.set_access(3, "readonly")
    assert [action for action in toy.plan() if isinstance(action, SealExtent)]
    assert not [action for action in toy.plan() if isinstance(action, Reserve | FinishDrop)]


# -- a model of writer, twin and catalog --------------------------------------------------------
WRITER, TWIN, NAMESPACE = 1, 2, keys.named(keys.NAMESPACE, "ns")
NOW_MS = 1_700_000_000_000


@dataclass
class Model:
    """One extent with its twin: a truthful writer, a network that loses, processes that die, a leader that seals."""

    strict: bool
    store: MemoryStore = field(default_factory=MemoryStore)
    epochs: dict[int, int] = field(default_factory=dict)
    revision: int = 0
    group: int = 0
    length: int = 4096
    alive: bool = True  #: the writer appends
    linked: bool = True  #: it still sends to the twin
    twin_serves: bool = True  #: the twin's process still knows that it is one
    twin_bytes: list[int] = field(default_factory=list)  #: groups that are on the twin's disk, whatever the rows say
    acked: dict[int, bool] = field(default_factory=dict)  #: group -> acknowledged as being at both

    def __post_init__(self) -> None:
        self.store.txn([], [put(NAMESPACE, b"")])
        for node in (WRITER, TWIN):
            self.register(node)
        row, opened = locations.opened(1, WRITER, 10, self.epochs[WRITER], NOW_MS)
        row = twins.added(row, 20, TWIN, NOW_MS)
        opened.twin = row.twin
        ops = [put(keys.extent(E), rows.encode(row)), put(keys.open_extent(E), rows.encode(opened))]
        self.revision = self.store.txn([], ops).revision

    def register(self, node: int) -> None:
        self.epochs[node] = self.store.txn([], [put(keys.session(node), b"")]).revision

    def row(self) -> ExtentRow:
        return rows.decode(self.store.rows[keys.extent(E)].value, ExtentRow)

    def opened(self) -> OpenRow | None:
        kv = self.store.rows.get(keys.open_extent(E))
        return None if kv is None else rows.decode(kv.value, OpenRow)

    # -- moves ---------------------------------------------------------------------------------
    def write(self, fate: str, restarts: bool, seal: bool) -> None:
        """The next group: written, sent to the twin, committed, perhaps with the twin restarting in between."""
        if not self.alive:
            return
        claim: Claim | None = None
        if self.linked:
            arrives = fate in ("told", "late") and self.twin_serves and self.twin_bytes == list(range(self.group))
            if arrives:
                self.twin_bytes.append(self.group)
            if arrives and fate == "told":
                claim = Claim(TWIN, self.epochs[TWIN], 20)
            else:
                self.linked = False
        if restarts:
            self.restart_twin()
        if claim is None and self.strict:
            self.alive = False  # the group is refused as a whole, the extent ends
            return
        try:
            try:
                landed = self.commit([claim] if claim is not None else [], seal=seal)
            except Unavailable:
                self.linked, claim = False, None
                if self.strict:
                    raise
                landed = self.commit([], seal=seal)
        except (Fenced, Unavailable):
            self.alive = False
            return
        self.revision, self.length = landed.reply.revision, landed.reply.length
        self.acked[self.group] = claim is not None
        self.group += 1
        self.alive = not seal

    def commit(self, claims: list[Claim], *, seal: bool) -> Landed:
        place = SegmentRef(E, self.length + 64, 10)
        path = f"f{self.group}"
        entry = CommitEntry(
            "file", 1, path, version_at(NOW_MS) + self.group, 10, b"", path.encode(), 0, place, 64, False, 0
        )
        request = CommitRequest(
            WRITER,
            self.epochs[WRITER],
            E,
            self.revision,
            self.group,
            self.length,
            self.length + 74,
            [],
            [entry],
            [],
            claims,
            seal,
        )
        namespaces = {1: NamespaceFacts(NAMESPACE, self.store.rows[NAMESPACE].create_revision)}
        row, kv = self.row(), self.store.rows[keys.extent(E)]
        facts = Facts(NOW_MS, row if row.open else None, kv.mod_revision, None, namespaces, {}, lambda _: 0, parts={})
        step = plan_first(request, facts)
        while isinstance(step, Round):
            answer = self.store.txn(list(step.compares), list(step.success), list(step.failure))
            following = plan_next(request, facts, step, answer)
            assert isinstance(following, Round | Landed)
            if isinstance(following, Landed):
                return following
            step = following
        raise AssertionError("no commit without a round")

    def restart_twin(self) -> None:
        self.register(TWIN)
        self.twin_serves = False

    def seal(self) -> None:
        opened = self.opened()
        if opened is not None:
            ended = locations.sealed(self.row(), opened, NOW_MS)
            self.store.txn([], [put(keys.extent(E), rows.encode(ended)), delete(keys.open_extent(E))])

    # -- what must hold ------------------------------------------------------------------------
    def check(self) -> None:
        row, opened = self.row(), self.opened()
        committed = opened.length if opened is not None else row.length
        location = next(each for each in row.locations if each.volume == 20)
        assert (opened.twin if opened is not None else 0) == row.twin
        claimed = committed if twins.is_live(row, location) and self.group else min(location.length, committed)
        groups = max(0, (claimed - 4096) // 74)
        assert self.twin_bytes[:groups] == list(range(groups)), "it claims what it does not hold"
        both = [group for group, at_both in self.acked.items() if at_both]
        assert all(group < groups for group in both), "acknowledged as being at both, and the twin does not claim it"
        if not twins.is_live(row, location):
            assert location.records == groups
        if self.strict:
            assert all(self.acked.values())


MOVES = st.one_of(
    st.tuples(
        st.just("write"), st.sampled_from(["told", "told", "told", "late", "lost"]), st.booleans(), st.booleans()
    ),
    st.tuples(st.sampled_from(["write"]), st.just("told"), st.just(False), st.just(False)),
    st.tuples(st.sampled_from(["restart twin", "seal"]), st.just(""), st.just(False), st.just(False)),
)


@settings(max_examples=150, deadline=None)
@given(st.booleans(), st.lists(MOVES, max_size=12))
def test_the_twin_claims_what_it_holds_and_every_receipt_is_true(
    strict: bool, moves: list[tuple[str, str, bool, bool]]
) -> None:
    model = Model(strict)
    for kind, fate, restarts, seal in moves:
        if kind == "write":
            model.write(fate, restarts, seal)
        elif kind == "seal":
            model.seal()
        else:
            model.restart_twin()
        model.check()
    model.seal()
    model.check()


def test_the_model_can_fail() -> None:
    """A catalog that forgets to end the twin would be found out: the check is not empty."""
    model = Model(strict=False)
    model.write("told", False, False)
    model.write("lost", False, False)
    row = model.row()
    location = next(each for each in row.locations if each.volume == 20)
    wrong = locations.with_location(row, location, replace(location, length=model.length))
    model.store.txn([], [put(keys.extent(E), rows.encode(wrong))])
    with pytest.raises(AssertionError, match="claims what it does not hold"):
        model.check()


def test_a_claim_after_the_end_is_refused() -> None:
    model = Model(strict=False)
    model.write("lost", False, False)
    with pytest.raises(Invalid):
        model.commit([Claim(TWIN, model.epochs[TWIN], 20)], seal=False)
