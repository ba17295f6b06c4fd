"""How one group becomes visible: the transactions of a commit, planned. Pure; `committing.py` runs the plan.

    plan_first(request, facts)                    -> Round
    plan_next(request, facts, round, its answer)  -> Round | CheckParts | Landed, or raises

A round is one etcd transaction. Its compares:

    MOD(s/<node>) == epoch      of the writer and of every node whose bytes it claims: fenced nodes change nothing
    MOD(o/<extent>) == revision as the node carries it: one commit after the other, each once
    CREATE(ns/<name>)           of every namespace in it: none comes up under a dead id
    MOD(<row>) == as seen       of every file, part and upload row that it writes; 0 where none is expected
    MOD(e/<extent>) == as seen  when it seals as well, or ends the twin

A first round of plain puts guesses that no path exists. Its failure branch reads everything above, session and extent
first, so the next round knows which compare failed: a lost session or a foreign `o/` ends the commit (`Fenced`), a
path is judged anew against its row. A path that loses twice leaves as `contended`, the rest goes on.

A group lands at most once, whoever repeats it however often, because it moves `o/` (invariant 7). That it has landed is
seen from `o/` (or the sealed `e/`): its group number with its length. Its refused records are the refusals of that
group there; why they are refused is judged again from the rows as they are now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from copypool.protocol.errors import Fenced, Invalid, Overloaded, Unavailable
from copypool.protocol.internal import CommitEntry, CommitReply, CommitRequest, EntryResult
from copypool_coordinator import keys, locations, rows, twins
from copypool_coordinator.core import ROUNDS_MAX, TXN_OPS_MAX
from copypool_coordinator.drafting import CONTENDED, Draft, Effects, Facts, Known, fixed_gets, row_keys
from copypool_coordinator.etcd import Compare, Op, TxnResult, delete, get, mod_equals, put
from copypool_coordinator.judging import judge, judge_part, needs_row
from copypool_coordinator.rows import ExtentRow, FileRow, Location, OpenRow, PartRow


@dataclass(frozen=True, slots=True)
class Round:
    """One transaction, and what it means if its success branch runs."""

    number: int
    compares: tuple[Compare, ...]
    success: tuple[Op, ...]
    failure: tuple[Op, ...]
    seen: Mapping[bytes, int]  #: compared rows of paths, parts and uploads: their revisions
    losses: Mapping[bytes, int]  #: exact tries lost so far
    results: tuple[EntryResult, ...] = ()
    open: OpenRow | None = None  #: as put
    sealed: ExtentRow | None = None  #: as put
    effects: Effects = field(default_factory=Effects)
    guesses: bool = False  #: rows were guessed to be absent, losing proves no race
    twin_ended: Location | None = None  #: what becomes of the twin
    replaced: int = 0  #: records that replace a file

    @property
    def writes(self) -> bool:
        """False for a round that only reads."""
        return self.open is not None


@dataclass(frozen=True, slots=True)
class CheckParts:
    """The parts that a manifest names must be compared with their rows before the next round."""

    entry: int
    upload_revision: int


@dataclass(frozen=True, slots=True)
class Landed:
    """The group is visible."""

    reply: CommitReply
    open: OpenRow | None  #: `o/` as of reply.revision; None: the extent is sealed
    effects: Effects | None  #: None: it had landed before
    twin_ended: Location | None = None  #: this group was the first without it


def plan_first(request: CommitRequest, facts: Facts) -> Round:
    """The first transaction: the group itself where guessing is cheap, else only its reads.

    Raises:
        Invalid: the request contradicts itself.
    """
    if not 0 < request.old_length < request.new_length or request.group < 0:
        raise Invalid("a commit needs 0 < old length < new length and a group number")
    if facts.extent is None or facts.open is None or any(needs_row(entry, facts.now_ms) for entry in request.entries):
        return _reads(request, facts, 0, {})
    _check_extent(request, facts.extent)
    return _writes(request, facts, facts.extent, facts.extent_revision, facts.open, None, 0, {})


def plan_probe(request: CommitRequest, facts: Facts, before: Round) -> Round:
    """After a transaction with an unknown outcome: the same reads without the writes."""
    return _reads(request, facts, before.number + 1, before.losses)


def plan_next(request: CommitRequest, facts: Facts, before: Round, answer: TxnResult) -> Round | CheckParts | Landed:
    """What follows from a round's answer.

    Raises:
        Fenced: the writer's session or the extent has ended for it; the group is not visible and never will be.
        Unavailable: the session of a claimed twin has ended; without the claim it may be repeated.
        Overloaded: too many rounds lost; it is not visible, and may be repeated as it is.
    """
    if answer.succeeded and before.writes:
        reply = CommitReply(answer.revision, request.new_length, list(before.results), before.replaced)
        return Landed(reply, _kept(before), before.effects, before.twin_ended)
    known = Known(before.success if answer.succeeded else before.failure, answer)
    extent = known.row(keys.extent(request.extent), ExtentRow)
    open_key = keys.open_extent(request.extent)
    opened = known.row(open_key, OpenRow)
    if extent is None:
        raise Fenced(f"there is no extent {request.extent}")
    _check_extent(request, extent)
    landed = _landed(request, facts, known, extent, opened)
    if landed is not None:
        return landed
    _check_sessions(request, known)
    if opened is None:
        raise Fenced(f"extent {request.extent} is sealed at {extent.length} bytes, without this group")
    if known.revision(open_key) != request.revision:
        raise Fenced(f"extent {request.extent} stands at group {opened.group}: this commit does not follow it")
    if before.number + 1 >= ROUNDS_MAX:
        raise Overloaded(f"the commit lost {before.number + 1} races in a row: repeat it")
    for index, entry in enumerate(request.entries):
        if entry.kind == "manifest" and index not in facts.forbidden:
            revision = known.revision(keys.upload(entry.namespace, entry.upload))
            if revision and (index, revision) not in facts.parts:
                return CheckParts(index, revision)
    losses = dict(before.losses)
    if before.writes and not before.guesses:
        for key, revision in before.seen.items():
            if known.revision(key) != revision:
                losses[key] = losses.get(key, 0) + 1
    revision = known.revision(keys.extent(request.extent))
    return _writes(request, facts, extent, revision, opened, known, before.number + 1, losses)


def _kept(round_: Round) -> OpenRow | None:
    return None if round_.sealed is not None else round_.open


def _check_extent(request: CommitRequest, extent: ExtentRow) -> None:
    if extent.writer_node != request.node_id or extent.epoch != request.epoch:
        raise Fenced(f"extent {request.extent} was opened by another session: seal it")


def _check_sessions(request: CommitRequest, known: Known) -> None:
    if known.revision(keys.session(request.node_id)) != request.epoch:
        raise Fenced(f"the session {request.epoch} of node {request.node_id} is over: register again")
    for claim in request.claims:
        if known.revision(keys.session(claim.node_id)) != claim.epoch:
            raise Unavailable(f"the session of the twin on node {claim.node_id} is over", claim=claim.node_id)


def _reads(request: CommitRequest, facts: Facts, number: int, losses: Mapping[bytes, int]) -> Round:
    wanted: dict[bytes, Op] = {op.key: op for op in fixed_gets(request)}
    for index, entry in enumerate(request.entries):
        namespace = facts.namespaces.get(entry.namespace)
        if index in facts.forbidden or namespace is None:
            continue
        more = {key: get(key) for key in (*row_keys(entry), namespace.key)}
        if len(wanted | more) <= TXN_OPS_MAX:
            wanted |= more
    gets = tuple(wanted.values())
    return Round(number, (), gets, (), {}, losses)


def _landed(
    request: CommitRequest, facts: Facts, known: Known, extent: ExtentRow, opened: OpenRow | None
) -> Landed | None:
    """The answer to a group that is visible already; None when it is not."""
    if opened is not None:
        state = (opened.group, opened.length)
        refusals, revision = opened.refusals, known.revision(keys.open_extent(request.extent))
    else:
        state = (extent.group, extent.length)
        refusals, revision = extent.refusals, known.revision(keys.extent(request.extent))
    if state != (request.group, request.new_length):
        return None
    refused = {each.index for each in refusals if each.group == request.group}
    results = [
        _refused_before(index, entry, facts, known) if index in refused else EntryResult("committed", entry.version)
        for index, entry in enumerate(request.entries)
    ]
    return Landed(CommitReply(revision, request.new_length, results), opened, None)


def _refused_before(index: int, entry: CommitEntry, facts: Facts, known: Known) -> EntryResult:
    if index in facts.forbidden:
        return EntryResult("forbidden", 0, facts.forbidden[index])
    own = row_keys(entry)
    if not own or not known.covers(own[0]):
        return CONTENDED
    if entry.kind == "part":
        return judge_part(entry, known.row(own[0], PartRow), facts.now_ms) or CONTENDED
    return judge(entry, known.row(own[0], FileRow), facts.now_ms) or CONTENDED


def _with_claims(
    request: CommitRequest, extent: ExtentRow, before: OpenRow, now_ms: int
) -> tuple[ExtentRow, Location | None]:
    """The extent's row as this group leaves it, and what becomes of a twin that the group does not claim.

    Whether there is a live twin is what `o/` says, which is as of the request's revision; a row from memory that does
    not know it yet loses the compare.
    """
    if not before.twin:
        if request.claims:
            raise Invalid(f"extent {request.extent} has no live twin that could be claimed")
        return (replace(extent, twin=0, twin_node=0) if extent.twin else extent), None
    twin = twins.live(extent)
    if request.claims:
        known = (0, 0) if twin is None else (extent.twin_node, twin.volume)
        if [(claim.node_id, claim.volume) for claim in request.claims] != [known]:
            raise Invalid(f"extent {request.extent} has its twin on another volume than the claimed one")
        return extent, None
    after = twins.ended(extent, before, now_ms)
    return after, locations.find(after, twin.volume, twin.generation) if twin is not None else None


def _put_by_namespace(committed: Sequence[CommitEntry]) -> dict[int, tuple[int, int]]:
    sums: dict[int, tuple[int, int]] = {}
    for entry in committed:
        records, payload_bytes = sums.get(entry.namespace, (0, 0))
        sums[entry.namespace] = (records + 1, payload_bytes + entry.segment.length)
    return sums


def _writes(
    request: CommitRequest,
    facts: Facts,
    extent: ExtentRow,
    extent_revision: int,
    before: OpenRow,
    known: Known | None,
    number: int,
    losses: Mapping[bytes, int],
) -> Round:
    """The transaction that makes the group visible, for rows as known (None: all guessed absent)."""
    if before.length != request.old_length or before.group + 1 != request.group:
        raise Invalid(
            f"extent {request.extent} ends with group {before.group} at {before.length}: "
            f"group {request.group} from {request.old_length} does not follow"
        )
    extent, twin_ended = _with_claims(request, extent, before, facts.now_ms)
    draft = Draft(request, facts, known, losses)
    results = tuple(draft.add(index, entry) for index, entry in enumerate(request.entries))
    committed = [entry for entry, result in zip(request.entries, results, strict=True) if result.outcome == "committed"]
    after = locations.next_open(
        before,
        length=request.new_length,
        group=request.group,
        records=len(committed),
        payload_bytes=sum(entry.segment.length for entry in committed),
        noted=request.noted,
        refused=[index for index, result in enumerate(results) if result.outcome != "committed"],
        copied_length=facts.copied_length(extent),
        now_ms=facts.now_ms,
        put=_put_by_namespace(committed),
    )
    after = replace(after, twin=extent.twin)
    open_key, extent_key = keys.open_extent(request.extent), keys.extent(request.extent)
    sealed = None
    if request.seal or twin_ended is not None:
        draft.compares.append(mod_equals(extent_key, extent_revision))
    if request.seal:
        sealed = locations.sealed(extent, after, facts.now_ms)
        draft.ops += [delete(open_key), put(extent_key, rows.encode(sealed))]
    else:
        draft.ops.append(put(open_key, rows.encode(after)))
        if twin_ended is not None:
            draft.ops.append(put(extent_key, rows.encode(extent)))
    return Round(
        number,
        tuple(draft.compares),
        tuple(draft.ops),
        tuple(draft.gets),
        draft.seen,
        losses,
        results,
        after,
        sealed,
        draft.effects,
        guesses=known is None,
        twin_ended=twin_ended,
        replaced=draft.replaced,
    )
