"""Reading the directory: lookups in groups, pages of names, old versions, a file with the facts about its extents.

No range here counts more keys than about a page: listings go from fence to fence (one path in 1,024 has a fence row,
which the view knows), and cursors are names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from copypool.protocol.api import LIST_MAX, ListEntry
from copypool.protocol.digests import format_digest
from copypool.protocol.errors import Invalid, Unavailable
from copypool.protocol.versions import AHEAD_MAX_MS, VERSION_MAX, version_at
from copypool_coordinator import keys, rows
from copypool_coordinator.changing import Opened
from copypool_coordinator.core import TXN_OPS_MAX, Core
from copypool_coordinator.etcd import KeyValue, Op, get, mod_equals
from copypool_coordinator.judging import is_tombstone
from copypool_coordinator.rows import ExtentRow, FileRow, OpenRow

#: Ranges read for one page of a listing; a page over nothing but tombstones ends early, with a cursor.
RANGES_MAX = 64
#: Below this many keys in a range, the next one spans twice as many fences.
SPARSE = 256
FACTS_TRIES = 3
#: Extents looked up in one transaction, two rows each.
EXTENTS_PER_TXN = 62
VERSIONS_WINDOW_MS = 60_000


class FileKey(NamedTuple):
    """One file to look up."""

    namespace: int
    path: str
    version: int = 0  #: 0: the current one


class FileFacts(NamedTuple):
    """A file's row and the rows of its extents: no extent that the row names had left the catalog when it was read."""

    row: FileRow | None  #: None: there is no such file, or version
    extents: dict[int, ExtentRow]
    open: dict[int, Opened]


class Directory:
    """Reads of one catalog's directory."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def lookup(self, files: Sequence[tuple[int, str, int]]) -> list[FileRow | None]:
        """Rows of files as of one moment; None for tombstones and for what is not there. At most 128 reads.

        Linearizable: it sees everything that was acked before the call.
        """
        reads = [op for file in files for op in _reads(FileKey(*file))]
        if len(reads) > TXN_OPS_MAX:
            raise Invalid(f"a lookup reads at most {TXN_OPS_MAX} rows")
        if not reads:
            return []
        responses = iter((await self._core.etcd.txn([], reads)).responses)
        return [_chosen(FileKey(*file), responses) for file in files]

    async def file_with_facts(self, namespace: int, path: str, version: int = 0) -> FileFacts:
        """A file and the rows of its extents (A14): the extents are read under a compare that the file still stands.

        Raises:
            Unavailable: it changed too often meanwhile.
        """
        file = FileKey(namespace, path, version)
        for _ in range(FACTS_TRIES):
            answer = await self._core.etcd.txn([], _reads(file))
            row = _chosen(file, iter(answer.responses))
            if row is None:
                return FileFacts(None, {}, {})
            current = answer.responses[0]
            wanted = sorted({row.record.extent, *(part.extent for part in row.segments or ())})
            facts = FileFacts(row, {}, {})
            compare = mod_equals(keys.file(namespace, path), current[0].mod_revision if current else 0)
            complete = True
            for start in range(0, len(wanted), EXTENTS_PER_TXN):
                group = wanted[start : start + EXTENTS_PER_TXN]
                reads = [op for each in group for op in (get(keys.extent(each)), get(keys.open_extent(each)))]
                found = await self._core.etcd.txn([compare], reads, reads[:1])
                if not found.succeeded:
                    complete = False
                    break
                _take_extents(facts, group, found.responses)
            if complete:
                return facts
        raise Unavailable(f"{path!r} changes too fast to be read: repeat")

    async def old_versions(self, namespace: int, path: str, limit: int) -> list[int]:
        """At most `limit` older versions, newest first; read backwards through growing windows of time."""
        begin, _ = keys.old_versions(namespace, path)
        found: list[int] = []
        high, window_ms = self._core.now_ms() + AHEAD_MAX_MS, VERSIONS_WINDOW_MS
        while high > 0 and len(found) < limit:
            low = max(0, high - window_ms)
            start = keys.old_version(namespace, path, version_at(low))
            stop = keys.old_version(namespace, path, min(VERSION_MAX, version_at(high)))
            page = await self._core.etcd.range(start, stop, keys_only=True)
            found += [int.from_bytes(kv.key[len(begin) :], "big") for kv in reversed(page.rows)]
            high, window_ms = low, window_ms * 8
        return found[:limit]

    async def list(
        self, namespace: int, prefix: str, delimiter: str, after: str, limit: int, scope_prefix: str = ""
    ) -> tuple[list[ListEntry], str]:
        """One page: names under `prefix` and in scope, after the cursor; with "/" those below one fold into a prefix.

        Exact for the moments at which its ranges are read. A page may be short although more follows; only an empty
        cursor means the end.
        """
        if delimiter not in ("", "/"):
            raise Invalid("the delimiter is '/' or none")
        page = _Page(prefix, delimiter, max(1, min(limit, LIST_MAX)))
        return page.entries, await self._fill(page, namespace, after, scope_prefix)

    async def scan(
        self, namespace: int, prefix: str, after: str, limit: int, scope_prefix: str = ""
    ) -> tuple[Sequence[tuple[str, FileRow]], str]:
        """One page of current files with their rows, and the cursor of the next. Read as `list` reads."""
        page = _RowPage(prefix, "", max(1, min(limit, LIST_MAX)))
        cursor = await self._fill(page, namespace, after, scope_prefix)
        return page.rows, cursor

    async def _fill(self, page: _Page, namespace: int, after: str, scope_prefix: str) -> str:
        """Fill the page; its cursor, "" at the end."""
        prefix, delimiter = page.prefix, page.delimiter
        base = keys.file_prefix(namespace)
        ranges, span = 0, 1
        for low, high in windows(prefix, scope_prefix):
            start = max(low, _past(after, delimiter), page.jump)
            while start < high:
                if ranges >= RANGES_MAX and page.last:
                    return page.last
                fence = self._core.view.next_fence(namespace, start, span)
                stop = high if fence is None else min(high, fence)
                ranges += 1
                wanted = page.limit + 1 - page.taken
                found = await self._core.etcd.range(base + start.encode(), _end(namespace, stop), limit=wanted)
                page.take((kv.key[len(base) :].decode(), kv) for kv in found.rows)
                if page.full:
                    return page.last
                start = max(page.jump, page.seen + "\0" if found.more else stop)
                # Where everything was deleted, fences stand close together.
                span = span * 2 if found.count < SPARSE else 1
        return ""


#: Above every path: no path is this long.
_TOP = "\U0010ffff" * 300


class _Page:
    """One page of a listing being filled."""

    def __init__(self, prefix: str, delimiter: str, limit: int) -> None:
        self.prefix = prefix
        self.delimiter = delimiter
        self.limit = limit
        self.entries: list[ListEntry] = []
        self.taken = 0
        self.seen = ""  #: last name that was looked at
        self.last = ""  #: cursor after what was looked at
        self.jump = ""  #: nothing below this name is wanted any more
        self.full = False

    def take(self, found: Iterator[tuple[str, KeyValue]]) -> None:
        """Look at rows in order until the page is full."""
        for path, kv in found:
            if path < self.jump:
                self.seen = path
                continue
            row = rows.decode(kv.value, FileRow)
            if is_tombstone(row):
                self.seen = self.last = path
                continue
            if self.taken >= self.limit:
                self.full = True
                return
            self.seen = path
            self.taken += 1
            cut = path.find(self.delimiter, len(self.prefix)) if self.delimiter else -1
            if cut >= 0:
                self.last = path[: cut + 1]
                self.entries.append(ListEntry(self.last, is_prefix=True))
                self.jump = _past(self.last, self.delimiter)
            else:
                self.last = path
                self._put(path, row)

    def _put(self, path: str, row: FileRow) -> None:
        self.entries.append(ListEntry(path, row.version, row.size, format_digest(row.digest)))


class _RowPage(_Page):
    """One page of rows."""

    def __init__(self, prefix: str, delimiter: str, limit: int) -> None:
        super().__init__(prefix, delimiter, limit)
        self.rows: list[tuple[str, FileRow]] = []

    def _put(self, path: str, row: FileRow) -> None:
        self.rows.append((path, row))


def windows(prefix: str, scope: str) -> list[tuple[str, str]]:
    """The ranges of names [low, high) that start with `prefix` and lie under `scope` at a path boundary, in order."""
    low, high = prefix, _above(prefix)
    bare = scope.removesuffix("/")
    if not bare:
        return [(low, high)]
    allowed = [(bare, bare + "\0"), (bare + "/", bare + "0")]
    cut = [(max(low, first), min(high, last)) for first, last in allowed]
    return [(first, last) for first, last in cut if first < last]


def _above(prefix: str) -> str:
    """The first name above every name that starts with `prefix`."""
    for index in range(len(prefix) - 1, -1, -1):
        code = ord(prefix[index])
        if code < 0x10FFFF:
            following = 0xE000 if code == 0xD7FF else code + 1
            return prefix[:index] + chr(following)
    return _TOP


def _past(cursor: str, delimiter: str) -> str:
    """The first name that may follow a cursor; after a folded prefix that is past everything below it."""
    if not cursor:
        return ""
    if delimiter and cursor.endswith(delimiter):
        return cursor[:-1] + chr(ord(delimiter) + 1)
    return cursor + "\0"


def _end(namespace: int, stop: str) -> bytes:
    return keys.file_end(namespace) if stop == _TOP else keys.file_prefix(namespace) + stop.encode()


def _reads(file: FileKey) -> list[Op]:
    current = get(keys.file(file.namespace, file.path))
    if not file.version:
        return [current]
    return [current, get(keys.old_version(file.namespace, file.path, file.version))]


def _chosen(file: FileKey, responses: Iterator[tuple[KeyValue, ...]]) -> FileRow | None:
    current = next(responses)
    row = rows.decode(current[0].value, FileRow) if current else None
    if not file.version:
        return None if row is None or is_tombstone(row) else row
    old = next(responses)
    if row is not None and row.version == file.version:
        return None if is_tombstone(row) else row
    return rows.decode(old[0].value, FileRow) if old else None


def _take_extents(facts: FileFacts, group: Sequence[int], responses: Sequence[tuple[KeyValue, ...]]) -> None:
    for index, extent in enumerate(group):
        closed, opened = responses[2 * index], responses[2 * index + 1]
        if closed:
            facts.extents[extent] = rows.decode(closed[0].value, ExtentRow)
        if opened:
            facts.open[extent] = Opened(rows.decode(opened[0].value, OpenRow), opened[0].mod_revision)
