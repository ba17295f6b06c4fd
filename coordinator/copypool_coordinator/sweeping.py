"""Rows that outlive their use: tombstones, parts of completed or abandoned uploads. Every sweep may be repeated.

Scans are paced by their callers (the leader), cut into bounded pages, and delete only what a compare still finds as it
was read.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from copypool.protocol.versions import AHEAD_MAX_MS, time_ms_of
from copypool_coordinator import keys, rows
from copypool_coordinator.core import Core, Guard, LeaderGuard, check_guards, leader_guard
from copypool_coordinator.etcd import Compare, Etcd, KeyValue, Op, create_equals, delete, get, mod_equals
from copypool_coordinator.etcd.listing import Pager
from copypool_coordinator.judging import MEMORY_MS, is_tombstone
from copypool_coordinator.rows import FileRow, UploadRow

#: Part rows deleted by one range, and ranges in one transaction.
PARTS_PER_DELETE = 512
DELETES_PER_TXN = 8
#: Tombstones dealt with in one transaction: two compares' worth of rows each.
TOMBSTONES_PER_TXN = 60
#: Tombstones are read by windows of this much time, so that no range counts the whole backlog.
WINDOW_MS = 60_000


async def sweep_parts(etcd: Etcd, namespace: int, upload: bytes, parts: int, guards: Sequence[Guard] = ()) -> bool:
    """Delete the part rows of an upload that has no guard row; False, and nothing more deleted, if it has one again."""
    guard_key = keys.upload(namespace, upload)
    edges = [keys.part(namespace, upload, number) for number in range(0, max(parts, 1), PARTS_PER_DELETE)]
    edges.append(guard_key + b"0")
    ranges = [delete(start, end) for start, end in pairwise(edges)]
    compares = [create_equals(guard_key, 0), *(guard.compare for guard in guards)]
    for first in range(0, len(ranges), DELETES_PER_TXN):
        answer = await etcd.txn(compares, ranges[first : first + DELETES_PER_TXN], [get(guard_key)])
        if not answer.succeeded:
            return False
    return True


class Sweeping:
    """What the leader deletes."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._tombstones_from_ms = 0  #: nothing older is left, as far as this process knows

    async def tombstones(self, before_ms: int, leader: LeaderGuard, limit: int) -> int:
        """Deal with at most `limit` tombstones written before this time; how many index rows went.

        A tombstone row stays at least for the retry window, and a path that was written again keeps its row.
        """
        before_ms = min(before_ms, self._core.now_ms() - MEMORY_MS)
        swept, window_ms = 0, WINDOW_MS
        while swept < limit and self._tombstones_from_ms < before_ms:
            until_ms = before_ms
            if self._tombstones_from_ms:
                until_ms = min(before_ms, self._tombstones_from_ms + window_ms)
            begin, end = keys.tombstones_until(until_ms)
            page = await self._core.etcd.range(begin, end, limit=limit - swept)
            for first in range(0, len(page.rows), TOMBSTONES_PER_TXN):
                await self._sweep_group(page.rows[first : first + TOMBSTONES_PER_TXN], before_ms, leader)
            swept += len(page.rows)
            window_ms *= 2
            if not page.more:
                self._tombstones_from_ms = until_ms
            elif not self._tombstones_from_ms:
                self._tombstones_from_ms = keys.tombstone_ms(page.rows[0].key)
        return swept

    async def _sweep_group(self, indexes: Sequence[KeyValue], before_ms: int, leader: LeaderGuard) -> None:
        etcd = self._core.etcd
        guard = leader_guard(leader)
        file_keys = list(dict.fromkeys(_file_key(index.key) for index in indexes))
        found = await etcd.txn([], [get(key) for key in file_keys])
        compares: list[Compare] = [guard.compare]
        ops: list[Op] = [delete(index.key) for index in indexes]
        for key, kvs in zip(file_keys, found.responses, strict=True):
            if kvs and _expired(kvs[0], before_ms):
                compares.append(mod_equals(key, kvs[0].mod_revision))
                ops.append(delete(key))
        answer = await etcd.txn(compares, ops, [get(guard.compare.key)])
        if not answer.succeeded:
            check_guards([guard], answer.responses)  # else a path was written again: the next sweep looks anew

    async def uploads(self, begun_before_ms: int, leader: LeaderGuard, limit: int) -> int:
        """Delete at most `limit` abandoned uploads, and parts whose guard row is gone; how many of both."""
        swept = 0
        for namespace in list(self._core.view.namespaces_by_id):
            prefix = keys.uploads_prefix(namespace)
            pager = Pager(prefix, prefix[:-1] + b"0", 1000)
            guard_key = b""
            while not pager.done and swept < limit:
                page_end = pager.page_end
                page = await self._core.etcd.range(pager.cursor, page_end, limit=1000)
                last = page.rows[-1].key if page.rows else None
                pager.advance(page_end, last, page.count, more=page.more)
                for kv in page.rows:
                    name, _, number = kv.key[len(prefix) :].partition(b"/")
                    own = prefix + name
                    if own == guard_key:
                        continue
                    guard_key = own
                    if number or rows.decode(kv.value, UploadRow).begun_ms < begun_before_ms:
                        swept += await self._sweep_upload(namespace, bytes.fromhex(name.decode()), kv, number, leader)
        return swept

    async def _sweep_upload(
        self, namespace: int, upload: bytes, kv: KeyValue, number: bytes, leader: LeaderGuard
    ) -> int:
        guard = leader_guard(leader)
        if not number:
            compares = [guard.compare, mod_equals(kv.key, kv.mod_revision)]
            answer = await self._core.etcd.txn(compares, [delete(kv.key)], [get(guard.compare.key)])
            if not answer.succeeded:
                check_guards([guard], answer.responses)
                return 0
        return int(await sweep_parts(self._core.etcd, namespace, upload, 0, [guard]))


def _file_key(index_key: bytes) -> bytes:
    namespace, path = keys.tombstone_of(index_key)
    return keys.file(namespace, path)


def _expired(kv: KeyValue, before_ms: int) -> bool:
    """Whether the row is a tombstone that old. Its version may be ahead of the time at which it was committed."""
    row = rows.decode(kv.value, FileRow)
    return is_tombstone(row) and time_ms_of(row.version) < before_ms + AHEAD_MAX_MS
