"""Group commit as a state machine without I/O: which records share a group, what a reply means for each of them.

`GroupQueue` holds records that wait. `ExtentLog` is one open extent of this node: where the next group goes, which
refusals are not noted on disk yet, which group is being committed. The shells (`writer`, `streams`) do what it says:
write and fsync a group, send its commit, hand the outcome back. Rules it keeps:

- An offset is written once: a group begins where the last written one ends. After an error the log is `dead`; nothing
  is appended any more and the extent is sealed at its committed length.
- At most one commit is in flight; the next group may be written meanwhile. Groups commit in order.
- A record whose outcome is not `committed` is refused. The refusal is noted in the header of the next group to be
  begun, and its client is answered only once that group is committed (or the extent is sealed, because the catalog
  keeps refusals that no group noted). So a rebuild from volumes alone never shows a record that a client was told is
  not there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import msgspec

from copypool.protocol.api import SegmentRef
from copypool.protocol.errors import BrokenInvariant, Overloaded
from copypool.protocol.internal import (
    GROUP_OPS_MAX,
    Claim,
    CommitEntry,
    CommitReply,
    CommitRequest,
    EntryResult,
    RecordKind,
    Refusal,
)
from copypool.telemetry.tracing import Trace

GROUP_BYTES_MAX = 8 * 1024 * 1024  #: payload of one group
RETRIES_MAX = 3  #: times that a record is appended again with a higher version
CALM_GROUPS = 4  #: so many groups in a row that replaced nothing, and puts are taken to create


class PendingRecord(msgspec.Struct, eq=False):
    """One record on its way into an extent."""

    kind: RecordKind
    namespace: int
    path: str
    payload: bytes | memoryview
    digest: bytes
    write_id: bytes
    first_sent_ms: int
    capability: str  #: wire form; the coordinator checks it again per row
    waiter: object  #: opaque to this module: whom the shell answers
    deadline_s: float  #: monotonic; after it nobody waits any more
    metadata: dict[str, str] = {}
    if_absent: bool = False
    upload: bytes = b""
    part: int = 0
    segments: list[SegmentRef] = []
    part_versions: list[int] = []
    tries: int = 0
    version: int = 0  #: of the last append
    segment: SegmentRef | None = None  #: of the last append
    header_bytes: int = 0
    if_version: int = 0  #: see `CommitEntry`
    size: int = 0  #: of the file: `payload`'s, but for a manifest the sum of its parts
    trace: Trace | None = None  #: of the request that brought it
    crowded: bool = False  #: a group had no room for it

    def cost(self, *, replaces: bool) -> int:
        """Operations of etcd for this record, if plain puts do or do not replace a file; else an upper bound."""
        if self.kind == "manifest":
            return GROUP_OPS_MAX
        if self.kind == "tombstone":
            return 3
        if self.kind == "part":
            return 2
        return 2 if self.crowded or (replaces and not self.if_absent) else 1


class GroupQueue:
    """Records that wait for a group, in order of arrival. Bounded by count and payload bytes.

    A put that replaces a file costs the catalog twice as much as one that creates it, and nobody here can tell which it
    is. Puts are taken to replace until `CALM_GROUPS` groups in a row replaced none, and again once a record found no
    room: then half of its group went in at least, and what was left out goes with the next one.
    """

    def __init__(self, records_max: int, bytes_max: int) -> None:
        self._records_max = records_max
        self._bytes_max = bytes_max
        self._waiting: deque[PendingRecord] = deque()
        self.queued_bytes = 0
        self._calm_groups = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def head(self) -> PendingRecord | None:
        """The record that waits longest."""
        return self._waiting[0] if self._waiting else None

    def offer(self, record: PendingRecord) -> None:
        """Take a record in; `Overloaded` when the queue is full, and then nothing was taken."""
        size = len(record.payload)
        if len(self._waiting) >= self._records_max or (self._waiting and self.queued_bytes + size > self._bytes_max):
            raise Overloaded(
                f"{len(self._waiting)} records of {self.queued_bytes} bytes wait for this volume: repeat later, "
                "or take another write lease"
            )
        self._waiting.append(record)
        self.queued_bytes += size

    def put_back(self, records: Sequence[PendingRecord]) -> None:
        """Return records to the front, in order. They were let in once, so the bound does not apply."""
        self._waiting.extendleft(reversed(records))
        self.queued_bytes += sum(len(record.payload) for record in records)

    @property
    def puts_replace(self) -> bool:
        """Whether plain puts are taken to replace files."""
        return self._calm_groups < CALM_GROUPS

    def learn(self, landed: Landed) -> None:
        """Take in what a group's commit told of its puts."""
        if landed.crowded or landed.replaced < 0:
            self._calm_groups = 0
        elif self.puts_replace:
            self._calm_groups = 0 if landed.replaced else self._calm_groups + 1

    def take(self) -> list[PendingRecord]:
        """The records of the next group: distinct paths, bounded operations and bytes; oldest first.

        A record that lost a race before (`tries` > 0) makes a group of its own: its row is hot, and the others would
        lose with it.
        """
        taken: list[PendingRecord] = []
        skipped: list[PendingRecord] = []
        keys: set[tuple[int, str]] = set()
        namespaces: set[int] = set()
        replaces = self.puts_replace
        operations = size = 0
        waiting = self._waiting
        while waiting:
            record = waiting[0]
            key = (record.namespace, record.path)
            cost = record.cost(replaces=replaces) + (record.namespace not in namespaces)
            if taken and (operations + cost > GROUP_OPS_MAX or size + len(record.payload) > GROUP_BYTES_MAX):
                break
            if key in keys or (taken and record.tries):
                # Whatever comes later for a path that was passed over must be passed over as well.
                keys.add(key)
                skipped.append(waiting.popleft())
                if len(skipped) >= GROUP_OPS_MAX:
                    break
                continue
            waiting.popleft()
            keys.add(key)
            namespaces.add(record.namespace)
            taken.append(record)
            operations += cost
            size += len(record.payload)
            if record.tries:
                break
        waiting.extendleft(reversed(skipped))
        self.queued_bytes -= size
        return taken

    def expire(self, now_s: float) -> list[PendingRecord]:
        """Remove and return the records whose deadline has passed: they were never written."""
        if not any(record.deadline_s <= now_s for record in self._waiting):
            return []
        late = [record for record in self._waiting if record.deadline_s <= now_s]
        self._waiting = deque(record for record in self._waiting if record.deadline_s > now_s)
        self.queued_bytes -= sum(len(record.payload) for record in late)
        return late

    def drain(self) -> list[PendingRecord]:
        """Remove and return everything."""
        records = list(self._waiting)
        self._waiting.clear()
        self.queued_bytes = 0
        return records


class Verdict(msgspec.Struct, frozen=True, eq=False):
    """A record's final outcome, to be answered now."""

    record: PendingRecord
    result: EntryResult
    twin: str = ""  #: the volume that holds the record's group as well, by the commit's claim


class Refused(msgspec.Struct, eq=False):
    """A refusal that is not noted on disk by a committed group yet."""

    refusal: Refusal
    verdict: Verdict | None  #: who waits for it; None: the record was appended again, nobody does
    noted_by: int = -1  #: number of the written group that notes it; -1: none


class Group(msgspec.Struct, eq=False):
    """One group on its way: written, then committed."""

    number: int
    offset: int
    noted: list[Refusal]
    records: list[PendingRecord]
    new_length: int = 0
    entries: list[CommitEntry] = []
    capabilities: list[str] = []
    claims: list[Claim] = []  #: the twin's, once it has the group
    twin: str = ""  #: name of that twin's volume

    def without_twin(self) -> None:
        """Claim nothing for the twin any more: the group is acknowledged as the writer's alone."""
        self.claims, self.twin = [], ""


class Landed(msgspec.Struct, frozen=True, eq=False):
    """What a commit's reply means."""

    verdicts: list[Verdict]  #: answer these now
    again: list[PendingRecord]  #: append these again with a higher version
    replaced: int = -1  #: records that replaced a file; -1: not known
    crowded: bool = False  #: some of `again` found no room
    ended: bool = False  #: the extent was ended meanwhile, and whoever did that seals it


class ExtentLog:
    """One open extent that this node writes. See the module for the rules."""

    def __init__(self, extent: int, generation: int, revision: int, length: int) -> None:
        self.extent = extent
        self.generation = generation
        self.revision = revision  #: of `o/<extent>`, from the last reply
        self.committed_length = length
        self.written_length = length  #: end of the last group that was begun and written
        self.last_group = -1  #: last committed group
        self.dead = ""  #: why nothing is appended any more; empty: alive
        self.sealed = False
        self._next_group = 0
        self._writing: Group | None = None
        self._written: deque[Group] = deque()
        self._refused: list[Refused] = []
        self._story: deque[str] = deque(maxlen=32)

    def begin(self, records: list[PendingRecord]) -> Group:
        """Start the next group at the end of the last one. It notes every refusal that no group noted yet."""
        if self.dead or self.sealed or self._writing is not None:
            raise self._broken("a group was begun while another one is being written, or after the end")
        number = self._next_group
        self._next_group += 1
        noted = []
        for refused in self._refused:
            if refused.noted_by < 0:
                refused.noted_by = number
                noted.append(refused.refusal)
        self._writing = Group(number, self.written_length, noted, records)
        return self._writing

    def wrote(self, group: Group, new_length: int) -> None:
        """The group's bytes are on the medium (fsync returned)."""
        if group is not self._writing or new_length <= group.offset:
            raise self._broken(f"group {group.number} was not the one being written")
        group.new_length = new_length
        self.written_length = new_length
        self._writing = None
        self._written.append(group)
        self._story.append(f"wrote {group.number} to {new_length}")

    def request(self, group: Group, node_id: int, epoch: int, *, seal: bool, twin_failure: str = "") -> CommitRequest:
        """The commit of the oldest written group."""
        if not self._written or group is not self._written[0] or group.offset != self.committed_length:
            raise self._broken(f"group {group.number} is not the next one to commit")
        return CommitRequest(
            node_id,
            epoch,
            self.extent,
            self.revision,
            group.number,
            group.offset,
            group.new_length,
            group.noted,
            group.entries,
            group.capabilities,
            group.claims,
            seal,
            twin_failure,
        )

    def landed(self, group: Group, reply: CommitReply, *, seal: bool) -> Landed:
        """The commit is in the catalog. Returns whom to answer and what to append again.

        With `seal` every refusal is answered as well: the catalog keeps the ones that no group noted, and the caller
        writes them to the seal footer. After `kill` it is only about the answers: refusals are kept by the catalog too.
        """
        if len(reply.results) != len(group.records) or reply.length != group.new_length:
            raise self._broken(f"the reply to group {group.number} is for another group: length {reply.length}")
        if self.dead:
            verdicts = [Verdict(*pair, group.twin) for pair in zip(group.records, reply.results, strict=True)]
            return Landed(verdicts, [], reply.replaced, ended=True)
        self._written.popleft()
        self.committed_length = reply.length
        self.revision = reply.revision
        self.last_group = group.number
        self._story.append(f"landed {group.number}, revision {reply.revision}")
        verdicts = []
        again: list[PendingRecord] = []
        crowded = False
        for index, (record, result) in enumerate(zip(group.records, reply.results, strict=True)):
            if result.outcome == "committed":
                verdicts.append(Verdict(record, result, group.twin))
                continue
            verdict: Verdict | None = Verdict(record, result)
            if result.crowded and not record.crowded:
                record.crowded = crowded = True  # it lost to nobody: it goes with others again
                again.append(record)
                verdict = None
            elif result.outcome in ("stale", "contended") and record.tries < RETRIES_MAX:
                record.tries += 1
                again.append(record)
                verdict = None
            self._refused.append(Refused(Refusal(group.number, index), verdict))
        verdicts += self._noted(group.number)
        if seal:
            self.sealed = True
            verdicts += [refused.verdict for refused in self._refused if refused.verdict is not None]
            for refused in self._refused:
                refused.verdict = None
        return Landed(verdicts, again, reply.replaced, crowded)

    def _noted(self, number: int) -> list[Verdict]:
        if not self._refused:
            return []
        done = [refused.verdict for refused in self._refused if refused.noted_by == number]
        self._refused = [refused for refused in self._refused if refused.noted_by != number]
        return [verdict for verdict in done if verdict is not None]

    def ended(self) -> bool:
        """Whether nothing may be appended any more: ask again after every wait."""
        return bool(self.dead) or self.sealed

    @property
    def note_wanted(self) -> bool:
        """A client waits for a refusal that no written group notes."""
        return any(refused.noted_by < 0 and refused.verdict is not None for refused in self._refused)

    @property
    def idle(self) -> bool:
        """Nothing is being written or waits for its commit, and no refusal has to be noted."""
        return self._writing is None and not self._written and not self.note_wanted

    def unnoted(self) -> list[Refusal]:
        """Refusals for the seal footer: those that no committed group notes."""
        return [refused.refusal for refused in self._refused]

    def kill(self, reason: str) -> list[Verdict]:
        """End of appending: fenced, refused, aborted, or a write error. Safe to repeat.

        Groups under way are forgotten: whoever wrote or committed one knows its records. Returns the refusals whose
        clients wait, to be answered once the seal is known.
        """
        self._story.append(f"dead: {reason}")
        self.dead = self.dead or reason
        self._written.clear()
        self._writing = None
        waiting = [refused.verdict for refused in self._refused if refused.verdict is not None]
        for refused in self._refused:
            refused.verdict = None
        return waiting

    def waiters(self) -> Iterable[PendingRecord]:
        """Every record of this extent whose client waits for an answer."""
        for group in self._written:
            yield from group.records
        if self._writing is not None:
            yield from self._writing.records
        for refused in self._refused:
            if refused.verdict is not None:
                yield refused.verdict.record

    def story(self) -> str:
        """What happened to this extent lately, for messages and logs."""
        return (
            f"extent {self.extent}: committed {self.committed_length}, written {self.written_length}, "
            f"next group {self._next_group}; " + "; ".join(self._story)
        )

    def _broken(self, what: str) -> BrokenInvariant:
        return BrokenInvariant(f"{what}: {self.story()}")


def index_capabilities(records: Iterable[PendingRecord]) -> tuple[list[str], dict[str, int]]:
    """The distinct capabilities of a group and each one's index."""
    index: dict[str, int] = {}
    for record in records:
        index.setdefault(record.capability, len(index))
    return list(index), index
