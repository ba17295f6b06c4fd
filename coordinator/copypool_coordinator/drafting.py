"""One commit transaction being put together: what is known, what each record needs, kept within etcd's limits. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from copypool.protocol.internal import CommitEntry, CommitRequest, EntryResult
from copypool_coordinator import keys, rows
from copypool_coordinator.core import TXN_OPS_MAX
from copypool_coordinator.etcd import KeyValue, Op, TxnResult, create_equals, delete, get, mod_equals, put
from copypool_coordinator.judging import is_live, judge, judge_part, malformed, new_part, new_row
from copypool_coordinator.rows import FORMAT, ExtentRow, FileRow, OpenRow, PartRow, UploadRow

#: Raises `Forbidden` unless the entry's write capability covers it, for an extent of this class.
CheckCapability = Callable[[CommitEntry, int], None]

#: Exact tries that a path may lose before it has to leave for a group of its own.
LOSSES_MAX = 2

CONTENDED = EntryResult("contended", 0, "other writers of this path came first")
CROWDED = EntryResult("contended", 0, "the group is too large for one transaction of etcd", crowded=True)
GONE = EntryResult("forbidden", 0, "the namespace is gone")


@dataclass(frozen=True, slots=True)
class NamespaceFacts:
    """A live namespace: where its row is, and since when."""

    key: bytes
    create_revision: int


@dataclass(frozen=True, slots=True)
class Facts:
    """What the coordinator brings along."""

    now_ms: int
    extent: ExtentRow | None  #: None: not known yet, read it
    extent_revision: int
    open: OpenRow | None  #: `o/` at the request's revision; None: not remembered, read it
    namespaces: Mapping[int, NamespaceFacts]  #: the live ones
    forbidden: Mapping[int, str]  #: entries whose capability does not cover them, and why
    copied_length: Callable[[ExtentRow], int]
    parts: Mapping[tuple[int, int], str]  #: (entry, revision of its upload row) -> what is wrong with its parts, or ""


@dataclass(slots=True)
class Effects:
    """What a landed group changes in the counters, and leaves to be swept."""

    files: int = 0
    payload_bytes: int = 0
    dead: list[tuple[int, int]] = field(default_factory=list)  #: (extent, payload bytes) per dead record
    finished_uploads: list[tuple[int, bytes, int]] = field(default_factory=list)  #: (namespace, upload, parts)
    namespaces: dict[int, tuple[int, int]] = field(default_factory=dict)  #: namespace -> (files, bytes)

    def replace(self, namespace: int, row: FileRow | None, size: int | None) -> None:
        """Count that `row` gives way to a file of this size, or to none."""
        files, payload_bytes = self.files, self.payload_bytes
        self._replace(row, size)
        before = self.namespaces.get(namespace, (0, 0))
        self.namespaces[namespace] = (before[0] + self.files - files, before[1] + self.payload_bytes - payload_bytes)

    def _replace(self, row: FileRow | None, size: int | None) -> None:
        if row is not None and is_live(row):
            self.files -= 1
            self.payload_bytes -= row.size
            self.dead.append((row.record.extent, row.record.length))
            self.dead.extend((part.extent, part.length) for part in row.segments or ())
        if size is not None:
            self.files += 1
            self.payload_bytes += size


class Known:
    """Rows as one transaction read them, by key."""

    def __init__(self, gets: tuple[Op, ...], answer: TxnResult) -> None:
        self._rows: dict[bytes, KeyValue | None] = {
            op.key: (found[0] if found else None) for op, found in zip(gets, answer.responses, strict=True)
        }

    def covers(self, key: bytes) -> bool:
        return key in self._rows

    def revision(self, key: bytes) -> int:
        row = self._rows.get(key)
        return row.mod_revision if row is not None else 0

    def created(self, key: bytes) -> int:
        row = self._rows.get(key)
        return row.create_revision if row is not None else 0

    def row(self, key: bytes, kind: type[rows.R]) -> rows.R | None:
        row = self._rows.get(key)
        return rows.decode(row.value, kind) if row is not None else None


def fixed_gets(request: CommitRequest) -> list[Op]:
    gets = [get(keys.session(request.node_id))]
    gets += [get(keys.session(claim.node_id)) for claim in request.claims]
    return [*gets, get(keys.open_extent(request.extent)), get(keys.extent(request.extent))]


def row_keys(entry: CommitEntry) -> tuple[bytes, ...]:
    """Rows that decide about an entry, its own first."""
    if entry.kind == "config":
        return ()
    if entry.kind == "part":
        guard = keys.upload(entry.namespace, entry.upload)
        return keys.part(entry.namespace, entry.upload, entry.part), guard
    if entry.kind == "manifest":
        return keys.file(entry.namespace, entry.path), keys.upload(entry.namespace, entry.upload)
    return (keys.file(entry.namespace, entry.path),)


class Draft:
    """A transaction being put together, kept within etcd's limits."""

    def __init__(self, request: CommitRequest, facts: Facts, known: Known | None, losses: Mapping[bytes, int]) -> None:
        self._request = request
        self._facts = facts
        self._known = known
        self._losses = losses
        self.compares = [mod_equals(keys.session(request.node_id), request.epoch)]
        self.compares += [mod_equals(keys.session(claim.node_id), claim.epoch) for claim in request.claims]
        self.compares.append(mod_equals(keys.open_extent(request.extent), request.revision))
        self.gets = fixed_gets(request)
        self.ops: list[Op] = []
        self.seen: dict[bytes, int] = {}
        self.effects = Effects()
        self.replaced = 0  #: committed records that replace a file
        self._taken: set[bytes] = set()
        self._namespaces: set[bytes] = set()

    def add(self, index: int, entry: CommitEntry) -> EntryResult:
        """Judge an entry and add what it needs; its outcome if this transaction succeeds."""
        facts, known = self._facts, self._known
        if index in facts.forbidden:
            return EntryResult("forbidden", 0, facts.forbidden[index])
        request = self._request
        wrong = malformed(entry, request.extent, request.old_length, request.new_length)
        if wrong is not None:
            return wrong
        namespace = facts.namespaces.get(entry.namespace)
        if namespace is None or (
            known is not None
            and known.covers(namespace.key)
            and known.created(namespace.key) != namespace.create_revision
        ):
            return GONE
        own = row_keys(entry)
        if not self._taken.isdisjoint(own):
            return CONTENDED
        if not self._fits(own, namespace) or (known is not None and not all(known.covers(key) for key in own)):
            return CROWDED
        self.gets += [get(key) for key in own]
        if namespace.key not in self._namespaces:
            self._namespaces.add(namespace.key)
            self.compares.append(create_equals(namespace.key, namespace.create_revision))
            self.gets.append(get(namespace.key))
        self._taken.update(own)
        if self._losses and any(self._losses.get(key, 0) >= LOSSES_MAX for key in own):
            return CONTENDED
        refused, ops = self._judged(index, entry, own)
        if refused is not None:
            return refused
        for key in own:
            if entry.kind == "part" and key != own[0]:
                # Parts of one upload run side by side: only its beginning and its end may disturb them.
                self.compares.append(create_equals(key, 0 if known is None else known.created(key)))
                continue
            self.seen[key] = self._revision(key)
            self.compares.append(mod_equals(key, self.seen[key]))
        self.ops += ops
        return EntryResult("committed", entry.version)

    def _fits(self, own: tuple[bytes, ...], namespace: NamespaceFacts) -> bool:
        """Whether etcd's limits leave room for the costliest outcome, and for the extent's own operations."""
        fresh = 0 if namespace.key in self._namespaces else 1
        return (
            len(self.compares) + len(own) + fresh + 1 <= TXN_OPS_MAX
            and len(self.gets) + len(own) + fresh <= TXN_OPS_MAX
            and len(self.ops) + 3 + 2 <= TXN_OPS_MAX
        )

    def _revision(self, key: bytes) -> int:
        return 0 if self._known is None else self._known.revision(key)

    def _judged(self, index: int, entry: CommitEntry, own: tuple[bytes, ...]) -> tuple[EntryResult | None, list[Op]]:
        if entry.kind == "config":
            return None, []
        if entry.kind == "part":
            return self._part(entry, own[0], own[1])
        return self._file(index, entry, own)

    def _file(self, index: int, entry: CommitEntry, own: tuple[bytes, ...]) -> tuple[EntryResult | None, list[Op]]:
        now_ms = self._facts.now_ms
        row = None if self._known is None else self._known.row(own[0], FileRow)
        refused = judge(entry, row, now_ms)
        if refused is not None:
            return refused, []
        ops = [put(own[0], rows.encode(new_row(entry, row, now_ms)))]
        replaced = 0
        if row is None and keys.is_fence(entry.path):
            ops.append(put(keys.fence(entry.namespace, entry.path), b""))
        if row is not None and is_live(row):
            row.recent = None
            ops.append(put(keys.old_version(entry.namespace, entry.path, row.version), rows.encode(row)))
            replaced = 1
        if entry.kind == "tombstone":
            ops.append(put(keys.tombstone(now_ms, entry.namespace, entry.path), b""))
        elif entry.kind == "manifest":
            wrong = self._parts_wrong(index, entry, own[1])
            if wrong:
                return EntryResult("invalid", 0, wrong), []
            ops.append(delete(own[1]))
            self.effects.finished_uploads.append((entry.namespace, entry.upload, len(entry.segments)))
        self.replaced += replaced
        self.effects.replace(entry.namespace, row, None if entry.kind == "tombstone" else entry.size)
        return None, ops

    def _parts_wrong(self, index: int, entry: CommitEntry, guard: bytes) -> str:
        upload = None if self._known is None else self._known.row(guard, UploadRow)
        if upload is None:
            return "there is no such upload, or it was completed before"
        if upload.path != entry.path:
            return "the upload belongs to another path"
        return self._facts.parts[index, self._revision(guard)]

    def _part(self, entry: CommitEntry, own: bytes, guard: bytes) -> tuple[EntryResult | None, list[Op]]:
        known = self._known
        row = None if known is None else known.row(own, PartRow)
        upload = None if known is None else known.row(guard, UploadRow)
        if upload is not None and upload.path != entry.path:
            return EntryResult("invalid", 0, "the upload belongs to another path"), []
        refused = judge_part(entry, row, self._facts.now_ms)
        if refused is not None:
            return refused, []
        ops = [put(own, rows.encode(new_part(entry)))]
        # A part sent twice touches the guard row, so that a `complete` which has read the first one loses its compare.
        if upload is None or row is not None:
            begun_ms = self._facts.now_ms if upload is None else upload.begun_ms
            ops.append(put(guard, rows.encode(UploadRow(FORMAT, entry.path, begun_ms))))
        if row is not None:
            self.effects.dead.append((row.segment.extent, row.segment.length))
        return None, ops
