"""Commits as a whole against a model of linearizable files: random histories with races, lost replies, dead
coordinators that still write, repeats through other nodes, new epochs and seals (invariants 4 and 7).

Every transaction that changes a path's row is recorded with its revision. Then: versions of a path only rise; a
write id is applied at most once; what was answered `committed` was applied, as that version, between its call and its
answer; what was answered otherwise had a moment in between at which that was true.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import hypothesis.strategies as st
from hypothesis import Phase, given, settings

from copypool.protocol.api import SegmentRef
from copypool.protocol.errors import CopypoolError, Fenced
from copypool.protocol.internal import CommitEntry, CommitRequest, EntryResult, Refusal
from copypool.protocol.versions import VersionClock, version_at
from copypool_coordinator import keys, locations, rows
from copypool_coordinator.commit import CheckParts, Landed, Round, plan_first, plan_next, plan_probe
from copypool_coordinator.drafting import Facts, NamespaceFacts
from copypool_coordinator.etcd import delete, put
from copypool_coordinator.judging import is_live
from copypool_coordinator.rows import ExtentRow, FileRow, OpenRow
from kit.memory_store import MemoryStore

NOW_MS = 1_700_000_000_000
PATHS = ["a", "b", "c"]
NAMESPACE_KEY = keys.named(keys.NAMESPACE, "ns")


@dataclass
class Write:
    """What a client wants, however often it is sent."""

    path: str
    write_id: bytes
    delete: bool
    if_absent: bool
    begun: int  #: revision at the first call
    first_ms: int
    answer: EntryResult | None = None
    answered: int = 0
    sends: int = 0


@dataclass
class Node:
    """One storage node with one open extent and at most one group under way."""

    node_id: int
    epoch: int = 0
    extent: int = 0
    revision: int = 0
    length: int = 4096
    group: int = 0
    refused: list[Refusal] = field(default_factory=list)
    waiting: list[Write] = field(default_factory=list)
    request: CommitRequest | None = None
    carried: list[Write] = field(default_factory=list)
    clock: VersionClock = field(default_factory=VersionClock)


@dataclass
class Run:
    """One coordinator at work on a request; it may be slow, and it may be forgotten by the node."""

    request: CommitRequest
    facts: Facts
    round: Round
    node: Node | None


class Cluster:
    """The world of the model."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.now_ms = NOW_MS
        self.nodes = [Node(1), Node(2)]
        self.runs: list[Run] = []
        self.writes: list[Write] = []
        self.history: dict[str, list[tuple[int, FileRow]]] = {path: [] for path in PATHS}
        self.extents = 0
        self.unsealed: list[int] = []  #: left by processes that died
        self.lengths: dict[int, int] = {}  #: committed lengths, to see that they only grow
        self.store.txn([], [put(NAMESPACE_KEY, b"")])
        for node in self.nodes:
            self.restart(node)

    # -- moves ---------------------------------------------------------------------------------
    def restart(self, node: Node) -> None:
        """A new process: a new epoch; the old extent is sealed by what is committed; waiters hear nothing."""
        session = put(keys.session(node.node_id), b"")
        node.epoch = self.store.txn([], [session]).revision
        self.forget(node)
        node.request, node.carried, node.waiting = None, [], []
        if node.extent:
            self.unsealed.append(node.extent)
        self.open(node)

    def open(self, node: Node) -> None:
        self.extents += 1
        node.extent = self.extents
        row, opened = locations.opened(1, node.node_id, node.node_id, node.epoch, self.now_ms)
        ops = [
            put(keys.extent(node.extent), rows.encode(row)),
            put(keys.open_extent(node.extent), rows.encode(opened)),
        ]
        node.revision = self.store.txn([], ops).revision
        node.length, node.group, node.refused = opened.length, 0, []

    def seal(self, extent: int) -> None:
        """End an extent, as its node or the leader does; here that takes its time after a restart."""
        open_key = keys.open_extent(extent)
        if open_key not in self.store.rows:
            return
        row = rows.decode(self.store.rows[keys.extent(extent)].value, ExtentRow)
        opened = rows.decode(self.store.rows[open_key].value, OpenRow)
        ended = locations.sealed(row, opened, self.now_ms)
        self.store.txn([], [put(keys.extent(extent), rows.encode(ended)), delete(open_key)])

    def send(self, node: Node, write: Write) -> None:
        if write.answer is None and write not in node.waiting + node.carried:
            node.waiting.append(write)
            write.sends += 1

    def form_group(self, node: Node, *, seal: bool) -> None:
        """Take what waits into one group, each path once, and give it to a coordinator."""
        if node.request is not None:
            return
        taken: dict[str, Write] = {}
        for write in node.waiting:
            taken.setdefault(write.path, write)
        node.carried = list(taken.values())
        node.waiting = [write for write in node.waiting if write not in node.carried]
        cursor, entries = node.length, []
        for write in node.carried:
            size = 0 if write.delete else 10
            place = SegmentRef(node.extent, cursor + 64, size)
            cursor += 64 + size
            kind = "tombstone" if write.delete else "file"
            entries.append(
                CommitEntry(
                    kind,  # type: ignore[arg-type]
                    1,
                    write.path,
                    node.clock.mint(self.now_ms),
                    size,
                    b"",
                    write.write_id,
                    write.first_ms if write.sends > 1 else 0,
                    place,
                    64,
                    write.if_absent,
                    0,
                )
            )
        node.request = CommitRequest(
            node.node_id,
            node.epoch,
            node.extent,
            node.revision,
            node.group,
            node.length,
            cursor + 64,
            list(node.refused),
            entries,
            [],
            [],
            seal,
        )
        self.ask(node, knows=True)

    def ask(self, node: Node, *, knows: bool) -> None:
        """Give the node's request to a coordinator, which may or may not remember the extent's rows."""
        request = node.request
        if request is None:
            return
        self.forget(node)
        extent = self.store.rows.get(keys.extent(request.extent))
        opened = self.store.rows.get(keys.open_extent(request.extent))
        remembered = knows and opened is not None and opened.mod_revision == request.revision
        row = rows.decode(extent.value, ExtentRow) if extent is not None and knows else None
        facts = Facts(
            self.now_ms,
            row if row is not None and row.open else None,
            extent.mod_revision if extent is not None else 0,
            rows.decode(opened.value, OpenRow) if opened is not None and remembered else None,
            {1: NamespaceFacts(NAMESPACE_KEY, self.store.rows[NAMESPACE_KEY].create_revision)},
            {},
            lambda row: 0,
            {},
        )
        try:
            self.runs.append(Run(request, facts, plan_first(request, facts), node))
        except Fenced:
            self.fenced(node)

    def forget(self, node: Node) -> None:
        """The node listens no longer; what its coordinators have begun goes on."""
        for run in self.runs:
            if run.node is node:
                run.node = None

    def step(self, run: Run, *, lost: bool, applied: bool) -> None:
        """One transaction of a run; its reply may be lost, whether it was applied or not."""
        if lost and not applied:
            run.round = plan_probe(run.request, run.facts, run.round)
            return
        answer = self.store.txn(run.round.compares, run.round.success, run.round.failure)
        if answer.succeeded and run.round.writes:
            session = self.store.rows[keys.session(run.request.node_id)]
            assert session.mod_revision == run.request.epoch, "a fenced process changes nothing"
            before = self.lengths.get(run.request.extent, 4096)
            assert (run.request.old_length, before) == (before, run.request.old_length), "an offset is written once"
            self.lengths[run.request.extent] = run.request.new_length
        self.record()
        if lost and run.round.writes:
            run.round = plan_probe(run.request, run.facts, run.round)
            return
        try:
            after = plan_next(run.request, run.facts, run.round, answer)
        except CopypoolError as error:
            self.runs.remove(run)
            if run.node is not None and isinstance(error, Fenced):
                self.fenced(run.node)
            elif run.node is not None:
                self.ask(run.node, knows=False)
            return
        assert not isinstance(after, CheckParts)
        if isinstance(after, Landed):
            self.runs.remove(run)
            if run.node is not None:
                self.landed(run.node, after)
        else:
            run.round = after

    def fenced(self, node: Node) -> None:
        """The group never will be visible: the extent is sealed, its writers try a new one."""
        node.waiting[:0] = node.carried
        node.request, node.carried = None, []
        self.seal(node.extent)
        self.open(node)

    def landed(self, node: Node, landed: Landed) -> None:
        assert node.request is not None
        request, reply = node.request, landed.reply
        assert reply.length == request.new_length
        node.refused = []
        for index, (write, result) in enumerate(zip(node.carried, reply.results, strict=True)):
            node.clock.observe(result.version)
            if result.outcome != "committed":
                node.refused.append(Refusal(request.group, index))
            if result.outcome in ("stale", "contended"):
                node.waiting.append(write)
            elif write.answer is None:
                write.answer, write.answered = result, self.store.revision
        node.revision, node.length, node.group = reply.revision, request.new_length, request.group + 1
        node.request, node.carried = None, []
        if request.seal:
            self.open(node)

    def record(self) -> None:
        for path in PATHS:
            kv = self.store.rows.get(keys.file(1, path))
            if kv is not None and (not self.history[path] or self.history[path][-1][0] != kv.mod_revision):
                self.history[path].append((kv.mod_revision, rows.decode(kv.value, FileRow)))

    # -- what must hold ------------------------------------------------------------------------
    def check(self) -> None:
        for path, changes in self.history.items():
            versions = [row.version for _, row in changes]
            assert versions == sorted(set(versions)), "versions of a path only rise"
            applied = [row.write_id for _, row in changes]
            assert len(applied) == len(set(applied)), "a write is applied once"
            kept = {row.version for _, row in changes[:-1] if is_live(row)}
            start, stop = keys.old_versions(1, path)
            old = {int.from_bytes(key[-8:], "big") for key in self.store.rows if start <= key < stop}
            assert old == kept, "every replaced version is kept, and no other"
        for extent in range(1, self.extents + 1):
            row = rows.decode(self.store.rows[keys.extent(extent)].value, ExtentRow)
            opened = self.store.rows.get(keys.open_extent(extent))
            assert row.open == (opened is not None), "what is sealed stays sealed"
            length = row.length if opened is None else rows.decode(opened.value, OpenRow).length
            assert length == self.lengths.get(extent, 4096)
        for write in self.writes:
            if write.answer is not None:
                self.check_answer(write, write.answer)

    def check_answer(self, write: Write, answer: EntryResult) -> None:
        changes = self.history[write.path]
        applied = {row.write_id: (revision, row) for revision, row in changes}
        if answer.outcome in ("committed", "replayed"):
            revision, row = applied[write.write_id]
            assert row.version == answer.version
            assert write.begun < revision <= write.answered
            return
        # Of a write that was sent twice, the other copy may have been applied before, or be applied later.
        assert write.write_id not in applied or write.sends > 1
        during = [row for revision, row in changes if write.begun < revision <= write.answered]
        before = [row for revision, row in changes if revision <= write.begun]
        moments: list[FileRow | None] = [before[-1] if before else None, *during]
        if answer.outcome == "conflict":
            assert write.if_absent
            assert any(is_live(row) for row in moments)
        elif answer.outcome == "not_found":
            assert write.delete
            assert not all(is_live(row) for row in moments)
        else:
            assert answer.outcome == "unknown_write"
            assert len(changes) > 4


MOVES = [*["write"] * 4, *["repeat"] * 3, *["group"] * 5, "seal group", *["step"] * 9, "lose", "unsent", "ask", "ask"]
MOVES += ["restart", "seal", "later", "later"]


@settings(max_examples=100, phases=[Phase.explicit, Phase.reuse, Phase.generate], deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(MOVES), st.integers(0, 7), st.integers(0, 7)),
        min_size=50,
        max_size=100,
    )
)
def test_random_histories_are_linearizable_and_apply_each_write_once(moves: list[tuple[str, int, int]]) -> None:
    cluster = Cluster()
    for move, one, two in moves:
        node = cluster.nodes[one % 2]
        if move == "write":
            write = Write(
                PATHS[max(0, two - 5)],
                len(cluster.writes).to_bytes(8, "big"),
                delete=one in (2, 3),
                if_absent=one == 4,
                begun=cluster.store.revision,
                first_ms=cluster.now_ms,
            )
            cluster.writes.append(write)
            cluster.send(node, write)
        elif move == "repeat" and cluster.writes:
            cluster.send(node, cluster.writes[(one * 8 + two) % len(cluster.writes)])
        elif move in ("group", "seal group"):
            cluster.form_group(node, seal=move == "seal group")
        elif move in ("step", "lose", "unsent") and cluster.runs:
            run = cluster.runs[(one * 8 + two) % len(cluster.runs)]
            cluster.step(run, lost=move != "step", applied=move == "lose")
        elif move == "ask":
            cluster.ask(node, knows=two % 2 == 0)
        elif move == "restart" and two < 2:
            cluster.restart(node)
        elif move == "seal" and cluster.unsealed:
            cluster.seal(cluster.unsealed.pop())
        elif move == "later":
            cluster.now_ms += 3000
    cluster.check()
    rounds = 0
    while cluster.runs or any(node.request is not None or node.waiting for node in cluster.nodes):
        rounds += 1
        assert rounds < 1000, "in calm, everything that is still wanted gets an answer"
        for run in list(cluster.runs):
            if run in cluster.runs:
                cluster.step(run, lost=False, applied=True)
        for node in cluster.nodes:
            if node.request is not None and not any(run.node is node for run in cluster.runs):
                cluster.ask(node, knows=False)
            elif node.waiting:
                cluster.form_group(node, seal=False)
    cluster.check()


def test_the_model_would_notice_a_write_applied_twice() -> None:
    cluster = Cluster()
    write = Write("a", b"W" * 8, delete=False, if_absent=False, begun=0, first_ms=NOW_MS)
    cluster.writes.append(write)
    for number in range(2):
        row = FileRow(1, 0, version_at(NOW_MS, number), 0, b"", write.write_id, SegmentRef(1, 0, 0), 0)
        cluster.store.txn([], [put(keys.file(1, "a"), rows.encode(row))])
        cluster.record()
    try:
        cluster.check()
    except AssertionError as error:
        assert "applied once" in str(error)  # noqa: PT017
    else:
        raise AssertionError("it did not")
