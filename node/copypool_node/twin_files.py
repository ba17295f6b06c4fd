"""The twin's side: takes every group of extents that other nodes write, while they are written (ack rule `copy`).

One writer per (extent, volume): a twin appends at exactly its end, and whatever else wants to write to the file (a
pull, a drop, a new session) ends the twin first and for good. What is appended runs through a `Scanner` before it is
written, so it holds whole, checked structures. Nothing of a twin outlives the process: after a restart its file is an
ordinary copy, cut and continued by a pull.

A twin serves all that it has fsync'd, also what its writer has not committed yet: it does not hear of commits, and a
reader whose primary just died must find the newest bytes here. Places that readers and pullers are given never lie
behind the committed length, and an offset is written once, so no other bytes than the committed ones can be read.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TYPE_CHECKING

from copypool.protocol.errors import DigestMismatch, Fenced, Overloaded
from copypool.protocol.twins import AppendReply
from copypool_node.holdings import Holding, Holdings
from copypool_node.scanner import Scanner

if TYPE_CHECKING:
    from copypool_node.extent_file import ExtentFile
    from copypool_node.metrics import Metrics
    from copypool_node.session import Session
    from copypool_node.volumes import MountedVolume

log = logging.getLogger(__name__)

ENDED_KEPT = 4096  #: twins that are remembered to have ended, so that a late first append begins none
INLINE_BYTES = 64 * 1024  #: shorter appends are checked on the event loop

Key = tuple[int, int, int]  #: volume, extent, generation


class _Twin:
    """One live twin."""

    __slots__ = ("end", "epoch", "holding", "lock", "over", "scanner")

    def __init__(self, extent: int, epoch: int) -> None:
        self.scanner = Scanner(extent)
        self.holding: Holding | None = None
        self.epoch = epoch
        self.end = 0  #: offset of the next append
        self.over = ""  #: why it takes no more appends
        self.lock = asyncio.Lock()


class TwinFiles:
    """All twins on this node."""

    def __init__(
        self, session: Session, holdings: Holdings, metrics: Metrics, twins_max: int, digest_threads: Executor
    ) -> None:
        self._session = session
        self._holdings = holdings
        self._metrics = metrics
        self._twins_max = twins_max
        self._threads = digest_threads
        self._live: dict[Key, _Twin] = {}
        self._ended: OrderedDict[Key, None] = OrderedDict()
        self.on_ended: Callable[[Key, Scanner], None] | None = None  #: what is known of the file, for the next pull

    def __len__(self) -> int:
        return len(self._live)

    async def append(
        self, volume: MountedVolume, extent: int, generation: int, offset: int, data: bytes, *, sync: bool
    ) -> AppendReply:
        """Take the next bytes, or recognise bytes that are there. With `sync` all up to the reply's length is durable.

        Raises `Fenced` (no twin here, or a hole), `DigestMismatch` (not whole, or not the same bytes), `Overloaded`,
        `NoSpace`, `Unavailable`, `WriteFailed`; then, and when cancelled, the twin has ended.
        """
        await volume.admit(len(data), "data")
        key = (volume.id, extent, generation)
        twin = self._live.get(key) or self._begin(key, volume, offset)
        async with twin.lock:
            if twin.over:
                raise Fenced(f"extent {extent} has no twin here any more: {twin.over}")
            try:
                await self._append(twin, volume, extent, generation, offset, data, sync=sync)
                if not self._session.is_current(twin.epoch):
                    raise Fenced("the session of the twin's node has ended")
            except BaseException as exc:
                self._over(key, twin, f"an append failed: {exc}")
                raise
            return AppendReply(twin.epoch, twin.end)

    def _begin(self, key: Key, volume: MountedVolume, offset: int) -> _Twin:
        _, extent, generation = key
        if offset != 0 or key in self._ended or volume.disk.get(extent, generation) is not None:
            raise Fenced(f"extent {extent} has no twin in this process: nothing is appended to its file")
        if len(self._live) >= self._twins_max:
            raise Overloaded(f"{self._twins_max} twins are open at this node")
        twin = self._live[key] = _Twin(extent, self._session.epoch)
        return twin

    async def _append(
        self,
        twin: _Twin,
        volume: MountedVolume,
        extent: int,
        generation: int,
        offset: int,
        data: bytes,
        *,
        sync: bool,
    ) -> None:
        if twin.holding is None:
            file = await volume.disk.create_extent(extent, generation, None)
            twin.holding = self._holdings.add(Holding(volume, file, extent, generation, 0, writing=True))
        holding = twin.holding
        if offset > twin.end:
            raise Fenced(f"extent {extent} ends at {twin.end} here: an append at {offset} would leave a hole")
        if offset < twin.end:
            await _check_same(holding.file, offset, data, twin.end)
            if sync:
                await holding.file.sync()
        else:
            await self._check(twin.scanner, data)
            if sync:
                await holding.file.write_and_sync(offset, [data])
            else:
                await holding.file.write(offset, [data])
            twin.end += len(data)
            self._metrics.twin_bytes += len(data)
        if sync:
            holding.length = twin.end

    async def _check(self, scanner: Scanner, data: bytes) -> None:
        before = scanner.verified_length
        if len(data) <= INLINE_BYTES:
            scanner.feed(data)
        else:
            await asyncio.get_running_loop().run_in_executor(self._threads, scanner.feed, data)
        if scanner.verified_length != before + len(data):
            raise DigestMismatch(f"an append of {len(data)} bytes ends inside of a structure")

    # -- ends ---------------------------------------------------------------------------------
    def _over(self, key: Key, twin: _Twin, why: str) -> None:
        if twin.over:
            return
        twin.over = why
        self._live.pop(key, None)
        self._note_ended(key)
        if twin.holding is not None:
            twin.holding.writing = False
        log.info("the twin of extent %d on volume %d has ended: %s", key[1], key[0], why, extra={"extent": key[1]})

    def _note_ended(self, key: Key) -> None:
        self._ended[key] = None
        while len(self._ended) > ENDED_KEPT:
            self._ended.popitem(last=False)

    async def end(self, volume: MountedVolume, extent: int, generation: int, why: str) -> None:
        """No append touches the file any more on return; one under way is waited for. Safe to repeat, and for a
        location that never was a twin."""
        key = (volume.id, extent, generation)
        twin = self._live.get(key)
        if twin is None:
            self._note_ended(key)
            return
        async with twin.lock:
            self._over(key, twin, why)
        if self.on_ended is not None:
            self.on_ended(key, twin.scanner)

    async def end_all(self, why: str) -> None:
        """End every twin: the session is over, or the process ends."""
        for key, twin in list(self._live.items()):
            self._over(key, twin, why)
            async with twin.lock:  # an append under way touches its file to its end
                continue


async def _check_same(file: ExtentFile, offset: int, data: bytes, end: int) -> None:
    """Whether a repeat says what was said before."""
    if offset + len(data) > end:
        raise Fenced(f"extent {file.extent} ends at {end} here: an append at {offset} overlaps that")
    if await file.read(offset, len(data)) != data:
        raise DigestMismatch(f"extent {file.extent} has other bytes at {offset} than the repeated ones")
