"""Which extents this node holds, on which of its volumes, and how much of each it may serve.

A holding's `length` is what the catalog may claim of it: checked and fsync'd bytes from the front. Readers and pulls
never get a byte behind it, so what a crash or a refused group left there is never seen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from copypool.telemetry.tracing import Trace

if TYPE_CHECKING:
    from copypool_node.extent_file import ExtentFile
    from copypool_node.volumes import MountedVolume


class Holding(msgspec.Struct, eq=False):
    """One extent file on one volume."""

    volume: MountedVolume
    file: ExtentFile
    extent: int
    generation: int
    length: int
    sealed: bool = False
    damaged: bool = False  #: own verify found a bad byte: asked last, served block by block
    writing: bool = False  #: this process appends to it
    trace: Trace | None = None  #: of the last group that this process committed to it
    landing: asyncio.Event | None = None  #: a group waits for the catalog's answer; set once it came


class Holdings:
    """Index of all holdings of the node by extent id."""

    def __init__(self) -> None:
        self._by_extent: dict[int, list[Holding]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._by_extent.values()))

    def __iter__(self) -> Iterator[Holding]:
        for holdings in list(self._by_extent.values()):
            yield from holdings

    def add(self, holding: Holding) -> Holding:
        """Index a holding in the place of one of the same volume and generation.

        An older generation beside it stays until it is dropped by command: while its replacement grows, a damaged file
        may be the only one with some block (A15).
        """
        others = [
            one
            for one in self._by_extent.get(holding.extent, [])
            if (one.volume, one.generation) != (holding.volume, holding.generation)
        ]
        self._by_extent[holding.extent] = [*others, holding]
        return holding

    def remove(self, holding: Holding) -> None:
        """Forget a holding whose file is gone."""
        left = [one for one in self._by_extent.get(holding.extent, []) if one is not holding]
        if left:
            self._by_extent[holding.extent] = left
        else:
            self._by_extent.pop(holding.extent, None)

    def find(self, extent: int, volume: MountedVolume, generation: int | None = None) -> Holding | None:
        """The holding on this volume, of this generation when one is named."""
        for holding in self._by_extent.get(extent, ()):
            if holding.volume is volume and generation in (None, holding.generation):
                return holding
        return None

    def covering(self, extent: int, stop: int) -> list[Holding]:
        """Holdings that reach file offset `stop`, sound ones first."""
        found = [one for one in self._by_extent.get(extent, ()) if one.length >= stop]
        if len(found) > 1:
            found.sort(key=lambda one: one.damaged)
        return found

    def best_covering(self, extent: int, stop: int) -> Holding | None:
        """The first of `covering`, if there is one."""
        held = self._by_extent.get(extent)
        if held is None:
            return None
        if len(held) == 1:  # the usual case: no list for it
            return held[0] if held[0].length >= stop else None
        return next(iter(self.covering(extent, stop)), None)

    async def landed(self, extent: int, within_s: float) -> None:
        """Wait until the groups that are being committed to an extent have their answer, for so long at most."""
        waits = [one.landing.wait() for one in self._by_extent.get(extent, ()) if one.landing is not None]
        if waits:
            with suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await asyncio.gather(*waits)

    def source(self, extent: int, start: int, stop: int) -> Holding | None:
        """The best holding to pull [start, stop) from: one that reaches `stop`, a sound one, the longest.

        None when nothing reaches behind `start`. A damaged one that has the bytes goes before a sound one that has not:
        whoever pulls checks every block.
        """
        return max(
            (one for one in self._by_extent.get(extent, ()) if one.length > start),
            key=lambda one: (one.length >= stop, not one.damaged, one.length),
            default=None,
        )

    def longest(self, extent: int) -> int:
        """How far the holdings of this node reach."""
        return max((one.length for one in self._by_extent.get(extent, ())), default=0)
