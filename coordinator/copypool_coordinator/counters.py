"""Sums of files, bytes and dead records, kept beside the commit path and flushed every few seconds.

Memory holds only what is not flushed yet; a flush adds it to this coordinator's row by compare-and-swap, so the leader
may take the dead sums out of the row at any time (`fold`) without losing or doubling any. What a coordinator
had not flushed when it died is missing until the slow scan corrects it: `as_of` says how old the sums are.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from msgspec.structs import replace

from copypool.protocol.errors import CatalogDown, CopypoolError, OutcomeUnknown
from copypool_coordinator import keys, rows
from copypool_coordinator.core import ROUNDS_MAX, Core, LeaderGuard, check_guards, leader_guard
from copypool_coordinator.drafting import Effects
from copypool_coordinator.etcd import get, mod_equals, put
from copypool_coordinator.rows import FORMAT, CountersRow, ExtentRow

log = logging.getLogger(__name__)

#: Extents with dead sums in one row; the smallest beyond it are left to the slow scan.
DEAD_MAX = 10_000
FOLD_PER_TXN = 60


class Counters:
    """What this coordinator's commits changed since its last flush."""

    def __init__(self, core: Core, flush_s: float) -> None:
        self._core = core
        self._flush_s = flush_s
        self._task: asyncio.Task[None] | None = None
        self._flushing = asyncio.Lock()
        self._clear()

    def _clear(self) -> None:
        self._files = 0
        self._bytes = 0
        self._dead: dict[int, tuple[int, int]] = {}
        self._namespaces: dict[int, tuple[int, int]] = {}

    def add(self, effects: Effects) -> None:
        """Count a landed group."""
        self._files += effects.files
        self._bytes += effects.payload_bytes
        for extent, size in effects.dead:
            records, dead_bytes = self._dead.get(extent, (0, 0))
            self._dead[extent] = (records + 1, dead_bytes + size)
        self._namespaces = _merged(self._namespaces, effects.namespaces)

    def totals(self) -> tuple[int, int, int]:
        """Files, bytes, and the cluster time of the newest flush (0: nothing was ever flushed)."""
        known = [each.row for each in self._core.view.counters.values()]
        files = sum(row.files for row in known)
        payload_bytes = sum(row.payload_bytes for row in known)
        return files, payload_bytes, max((row.as_of_ms for row in known), default=0)

    def of_namespace(self, namespace: int) -> tuple[int, int, int]:
        """Files and bytes of a namespace, this coordinator's newest included, and the time of the newest flush.

        What other coordinators have not flushed is missing: up to one flush interval.
        """
        known = [each.row for each in self._core.view.counters.values()]
        sums = [row.namespaces.get(namespace, (0, 0)) for row in known]
        sums.append(self._namespaces.get(namespace, (0, 0)))
        as_of_ms = max((row.as_of_ms for row in known), default=0)
        return max(0, sum(files for files, _ in sums)), max(0, sum(size for _, size in sums)), as_of_ms

    def start(self) -> None:
        """Flush every few seconds until `close`."""
        self._task = asyncio.create_task(self._run(), name="flush counters")

    async def close(self) -> None:
        """Stop, after a last flush if etcd answers."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait([self._task])
        with contextlib.suppress(CopypoolError, TimeoutError):
            async with asyncio.timeout(2.0):
                await self.flush()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._flush_s)
            try:
                await self.flush()
            except CopypoolError as error:
                log.warning("counters not flushed: %s", error.message)

    async def flush(self) -> None:
        """Add what is not flushed to this coordinator's row.

        An unknown outcome is counted as applied: sums may then miss a few seconds, but never count twice.
        """
        async with self._flushing:
            if not (self._files or self._bytes or self._dead or self._namespaces):
                return
            files, payload_bytes, dead, namespaces = self._files, self._bytes, self._dead, self._namespaces
            self._clear()
            try:
                await self._add_to_row(files, payload_bytes, dead, namespaces)
            except OutcomeUnknown:
                raise
            except (CopypoolError, asyncio.CancelledError):
                self._files += files
                self._bytes += payload_bytes
                self._dead = _merged(self._dead, dead)
                self._namespaces = _merged(self._namespaces, namespaces)
                raise

    async def _add_to_row(
        self,
        files: int,
        payload_bytes: int,
        dead: dict[int, tuple[int, int]],
        namespaces: dict[int, tuple[int, int]],
    ) -> None:
        key = keys.named(keys.COUNTERS, self._core.name)
        kv = await self._core.etcd.get(key)
        for _ in range(ROUNDS_MAX):
            before = rows.decode(kv.value, CountersRow) if kv is not None else CountersRow(FORMAT, 0, 0, 0, {})
            after = CountersRow(
                FORMAT,
                before.files + files,
                before.payload_bytes + payload_bytes,
                self._core.now_ms(),
                _bounded(_merged(before.dead, dead)),
                _merged(before.namespaces, namespaces),
            )
            revision = kv.mod_revision if kv is not None else 0
            answer = await self._core.etcd.txn([mod_equals(key, revision)], [put(key, rows.encode(after))], [get(key)])
            if answer.succeeded:
                return
            kv = answer.responses[0][0] if answer.responses[0] else None
        raise CatalogDown("this coordinator's counters change too fast")

    async def fold(self, leader: LeaderGuard) -> int:
        """Move dead sums from every counters row into extent rows, one bounded transaction each; how many extents.

        Raises:
            NotLeader: the term is over.
        """
        folded = 0
        for name in list(self._core.view.counters):
            folded += await self._fold_row(keys.named(keys.COUNTERS, name), leader)
        return folded

    async def _fold_row(self, key: bytes, leader: LeaderGuard) -> int:
        etcd, guard = self._core.etcd, leader_guard(leader)
        kv = await etcd.get(key)
        if kv is None:
            return 0
        row = rows.decode(kv.value, CountersRow)
        chosen = dict(list(row.dead.items())[:FOLD_PER_TXN])
        if not chosen:
            return 0
        found = await etcd.txn([], [get(keys.extent(extent)) for extent in chosen])
        rest = {extent: sums for extent, sums in row.dead.items() if extent not in chosen}
        compares = [guard.compare, mod_equals(key, kv.mod_revision)]
        ops = [put(key, rows.encode(replace(row, dead=rest)))]
        for (records, dead_bytes), kvs in zip(chosen.values(), found.responses, strict=True):
            if not kvs:
                continue  # the extent is gone, and its dead bytes with it
            extent = rows.decode(kvs[0].value, ExtentRow)
            extent.dead_records += records
            extent.dead_bytes += dead_bytes
            compares.append(mod_equals(kvs[0].key, kvs[0].mod_revision))
            ops.append(put(kvs[0].key, rows.encode(extent)))
        answer = await etcd.txn(compares, ops, [get(guard.compare.key)])
        if not answer.succeeded:
            check_guards([guard], answer.responses)  # else a row has changed: the next fold takes it
            return 0
        return len(chosen)


def _merged(one: dict[int, tuple[int, int]], other: dict[int, tuple[int, int]]) -> dict[int, tuple[int, int]]:
    merged = dict(one)
    for extent, (records, dead_bytes) in other.items():
        before = merged.get(extent, (0, 0))
        merged[extent] = (before[0] + records, before[1] + dead_bytes)
    return merged


def _bounded(dead: dict[int, tuple[int, int]]) -> dict[int, tuple[int, int]]:
    if len(dead) <= DEAD_MAX:
        return dead
    return dict(sorted(dead.items(), key=lambda item: -item[1][1])[:DEAD_MAX])
