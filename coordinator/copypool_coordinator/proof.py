"""How well files or extents are protected, counted. Pure: rows and facts in, numbers out; invariant 8 stands on it.

Every location is a prefix of the truth, so an extent falls into a few pieces that are each held by the same
locations: `pieces_of_extent` cuts it where a location ends. A file is the pieces of its segments. A piece's copies are
the locations that are good, reach its end, and lie on a volume that counts (up, or offsite).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from copypool.protocol.insight import CopyCount, Coverage, PoolCoverage, Problem
from copypool.protocol.internal import EXTENT_HEADER_BYTES
from copypool_coordinator.protection import VolumeFacts, on_different_nodes, reach
from copypool_coordinator.rows import ClassRow, ExtentRow, Location, OpenRow


class Domain(NamedTuple):
    """Where a node stands."""

    host: str
    zone: str


class Held(NamedTuple):
    """One counted good location of a piece."""

    volume: int
    pool: int
    node: int
    domain: Domain
    verified_ms: int
    young: bool  #: of an open extent: its bytes were checked as they came; they are read back once it is sealed


class Piece(NamedTuple):
    """Bytes that the same locations hold."""

    bytes: int
    held: tuple[Held, ...]
    wanted: tuple[int, ...]  #: pools of the class


class Item(NamedTuple):
    """What counts as one thing (or as several that share their pieces): a file, or the records of a piece."""

    name: str
    files: int
    pieces: Sequence[Piece]


def held_up_to(
    row: ExtentRow,
    end: int,
    committed: int,
    places: Mapping[int, VolumeFacts],
    domains: Mapping[int, Domain],
) -> tuple[Held, ...]:
    """The counted good locations that reach `end`, one per volume."""
    found: dict[int, Held] = {}
    for location in row.locations:
        if _counts(location, places) and reach(row, location, committed) >= end:
            held = _held(row, location, places, domains)
            known = found.get(held.volume)
            if known is None or known.verified_ms < held.verified_ms:
                found[held.volume] = held
    return tuple(found.values())


def pieces_of_extent(
    name: str,
    row: ExtentRow,
    opened: OpenRow | None,
    extent_class: ClassRow,
    places: Mapping[int, VolumeFacts],
    domains: Mapping[int, Domain],
) -> list[Item]:
    """The extent's committed bytes behind its header, cut where counted locations end; records count as files."""
    committed, total = (opened.length, opened.records) if row.open and opened is not None else (row.length, row.records)
    wanted = (extent_class.primary_pool, *extent_class.copy_pools)
    ends = {committed: total}
    for location in row.locations:
        if _counts(location, places):
            end = reach(row, location, committed)
            if end < committed:
                ends[end] = max(ends.get(end, 0), min(location.records, total))
    items, start, records = [], EXTENT_HEADER_BYTES, 0
    for end in sorted(ends):
        if end <= EXTENT_HEADER_BYTES:
            continue
        held = held_up_to(row, end, committed, places, domains)
        items.append(Item(name, max(0, ends[end] - records), (Piece(end - start, held, wanted),)))
        start, records = end, max(records, ends[end])
    return items


def _counts(location: Location, places: Mapping[int, VolumeFacts]) -> bool:
    place = places.get(location.volume)
    return location.state == "good" and place is not None and place.counted


def _held(row: ExtentRow, location: Location, places: Mapping[int, VolumeFacts], domains: Mapping[int, Domain]) -> Held:
    place = places[location.volume]
    domain = domains.get(place.node, Domain("", ""))
    return Held(location.volume, place.pool, place.node, domain, location.verified_ms, row.open)


# -- judging ------------------------------------------------------------------------------------
def at_policy(piece: Piece) -> bool:
    """Whether every pool of the class holds the piece, on different nodes."""
    return on_different_nodes([{held.node for held in piece.held if held.pool == pool} for pool in piece.wanted])


def is_proven(piece: Piece, now_ms: int, proof_life_ms: int) -> bool:
    """At policy, and every location in the wanted pools was read back within the life of a proof."""
    return at_policy(piece) and all(
        not held.young and held.verified_ms > 0 and now_ms - held.verified_ms <= proof_life_ms
        for held in piece.held
        if held.pool in piece.wanted
    )


def is_young(piece: Piece) -> bool:
    """At policy, and still being written: nobody has read it back, nor is it time to."""
    return at_policy(piece) and all(held.young for held in piece.held)


@dataclass(slots=True)
class _PoolSums:
    files: int = 0
    bytes: int = 0
    missing_files: int = 0
    missing_bytes: int = 0
    never_bytes: int = 0
    oldest_ms: int = 0


@dataclass(slots=True)
class Tally:
    """Adds items up."""

    now_ms: int
    proof_life_ms: int
    problems_max: int
    coverage: Coverage = field(default_factory=Coverage)
    _counts: dict[str, dict[int, list[int]]] = field(default_factory=dict)
    _pools: dict[int, _PoolSums] = field(default_factory=dict)
    _whys: list[tuple[str, int | None]] = field(default_factory=list)  #: of the problems: sentence and pool

    def add(self, item: Item) -> None:
        """Count one item. One without pieces (no byte anywhere) has nothing that could be lost."""
        met = [at_policy(piece) for piece in item.pieces]
        proven = [is_proven(piece, self.now_ms, self.proof_life_ms) for piece in item.pieces]
        young = [is_young(piece) for piece in item.pieces]
        sound = all(is_safe or is_new for is_safe, is_new in zip(proven, young, strict=True))
        total = self.coverage
        total.files += item.files
        total.at_policy_files += item.files * all(met)
        total.proven_files += item.files * all(proven)
        total.young_files += item.files * (sound and not all(proven))
        for piece, is_met, is_safe, is_new in zip(item.pieces, met, proven, young, strict=True):
            total.bytes += piece.bytes
            total.at_policy_bytes += piece.bytes * is_met
            total.proven_bytes += piece.bytes * is_safe
            total.young_bytes += piece.bytes * is_new
        for level, count in _LEVELS.items():
            numbers = [count(piece.held) for piece in item.pieces]
            table = self._counts.setdefault(level, {})
            if numbers:
                table.setdefault(min(numbers), [0, 0])[0] += item.files
            for number, piece in zip(numbers, item.pieces, strict=True):
                table.setdefault(number, [0, 0])[1] += piece.bytes
        self._add_to_pools(item)
        if not sound and len(total.problems) < self.problems_max:
            total.problems.append(Problem(item.name, ""))
            self._whys.append(_why(item))

    def _add_to_pools(self, item: Item) -> None:
        pools = {pool for piece in item.pieces for pool in piece.wanted}
        pools.update(held.pool for piece in item.pieces for held in piece.held)
        for pool in pools:
            sums = self._pools.setdefault(pool, _PoolSums())
            whole = True
            for piece in item.pieces:
                here = [held for held in piece.held if held.pool == pool]
                if here:
                    sums.bytes += piece.bytes
                    old = [held.verified_ms for held in here if not held.young]
                    if any(verified_ms == 0 for verified_ms in old):
                        sums.never_bytes += piece.bytes
                    known = [verified_ms for verified_ms in (*old, sums.oldest_ms) if verified_ms]
                    sums.oldest_ms = min(known, default=0)
                else:
                    whole = False
                    sums.missing_bytes += piece.bytes * (pool in piece.wanted)
            if whole:
                sums.files += item.files
            elif any(pool in piece.wanted and all(held.pool != pool for held in piece.held) for piece in item.pieces):
                sums.missing_files += item.files

    def result(self, pool: Callable[[int], tuple[str, str]]) -> Coverage:
        """The sums; `pool` gives a pool's name and type."""
        total = self.coverage
        for level, table in self._counts.items():
            setattr(total, level, [CopyCount(number, *table[number]) for number in sorted(table)])
        for problem, (why, pool_id) in zip(total.problems, self._whys, strict=True):
            problem.why = why if pool_id is None else f"{why} {pool(pool_id)[0]!r}"
        total.pools = []
        for pool_id, sums in self._pools.items():
            name, kind = pool(pool_id)
            oldest = sums.oldest_ms / 1000 if sums.oldest_ms else None
            total.pools.append(
                PoolCoverage(
                    name,
                    "copy" if kind == "copy" else "primary",
                    sums.files,
                    sums.bytes,
                    sums.missing_files,
                    sums.missing_bytes,
                    sums.never_bytes,
                    oldest,
                )
            )
        total.pools.sort(key=lambda each: (each.type != "primary", each.pool))
        return total


def _why(item: Item) -> tuple[str, int | None]:
    """Why an item is not proven, and the pool that the sentence ends with."""
    for piece in item.pieces:
        if not piece.held:
            return "bytes without any good location that counts", None
    for piece in item.pieces:
        lacking = [pool for pool in piece.wanted if all(held.pool != pool for held in piece.held)]
        if lacking:
            return "no good location in pool", lacking[0]
        if not at_policy(piece):
            return "its locations share a node", None
    return "not read back within two scrub periods at every location", None


def _distinct(values: Iterable[object]) -> int:
    return len(set(values))


_LEVELS: dict[str, Callable[[tuple[Held, ...]], int]] = {
    "copies": len,
    "nodes": lambda held: _distinct(each.node for each in held),
    "hosts": lambda held: _distinct(each.domain.host or each.node for each in held),
    "zones": lambda held: _distinct(each.domain.zone or each.node for each in held),
}
