"""Compare-and-swap on extent rows: the one way in which anything but a commit changes them.

A change is a pure decision over the rows as read; it is made again on what a lost race finds, so it must come out as
"nothing to do" once it has been applied. That is also how an unknown outcome is resolved: by reading and deciding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from copypool.protocol.errors import CatalogDown, NotFound, OutcomeUnknown, Overloaded
from copypool_coordinator import keys, rows
from copypool_coordinator.core import ROUNDS_MAX, TXN_OPS_MAX, Core, Guard, check_guards
from copypool_coordinator.etcd import KeyValue, Op, TxnResult, delete, get, mod_equals, put
from copypool_coordinator.rows import ExtentRow, OpenRow

T = TypeVar("T")

#: Commit rows remembered: more than the open extents of any cluster that one coordinator serves.
REMEMBERED_MAX = 65_536


class Opened(NamedTuple):
    """The commit row of an open extent."""

    row: OpenRow
    mod_revision: int


class Seen(NamedTuple):
    """An extent as one transaction read it."""

    row: ExtentRow
    mod_revision: int
    open: OpenRow | None  #: None: sealed


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """What a decision wants."""

    result: T
    row: ExtentRow | None = None  #: to put; None: nothing to do
    seals: bool = False  #: the commit row goes in the same transaction


class ExtentRows:
    """The extent rows of one catalog, and the commit rows that this coordinator wrote last."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._remembered: dict[int, Opened] = {}

    def remember(self, extent: int, opened: Opened | None) -> None:
        """Keep the commit row that was just written; None: there is none any more."""
        self._remembered.pop(extent, None)
        if opened is None:
            return
        if len(self._remembered) >= REMEMBERED_MAX:
            del self._remembered[next(iter(self._remembered))]
        self._remembered[extent] = opened

    def remembered(self, extent: int, revision: int) -> OpenRow | None:
        """The commit row of this revision, if this coordinator wrote or read it."""
        opened = self._remembered.get(extent)
        return opened.row if opened is not None and opened.mod_revision == revision else None

    async def change(self, extent: int, decide: Callable[[Seen], Change[T]], guards: Sequence[Guard]) -> T:
        """Apply a decision to an extent's row, under the guards, and return its result.

        Raises:
            NotFound: there is no such extent.
            Overloaded: too many rounds lost; nothing was changed.
            whatever a guard that does not hold, or the decision, raises.
        """
        extent_key, open_key = keys.extent(extent), keys.open_extent(extent)
        reads = [get(guard.compare.key) for guard in guards] + [get(extent_key), get(open_key)]
        answer = await self._core.etcd.txn([], reads)
        unknown: OutcomeUnknown | None = None
        for _ in range(ROUNDS_MAX):
            check_guards(guards, answer.responses[:-2])
            seen = _seen(extent, answer.responses[-2], answer.responses[-1])
            change = decide(seen)
            if change.row is None:
                return change.result
            compares = [guard.compare for guard in guards] + [mod_equals(extent_key, seen.mod_revision)]
            ops = [put(extent_key, rows.encode(change.row))]
            if change.seals:
                open_rows = answer.responses[-1]
                compares.append(mod_equals(open_key, open_rows[0].mod_revision if open_rows else 0))
                ops.append(delete(open_key))
            try:
                answer = await self._core.etcd.txn(compares, ops, reads)
            except OutcomeUnknown as error:
                unknown = error
                answer = await self._read_again(reads, error)
                continue
            if answer.succeeded:
                if change.seals:
                    self.remember(extent, None)
                return change.result
        if unknown is not None:
            raise unknown
        raise Overloaded(f"extent {extent} changes too fast: repeat")

    async def _read_again(self, reads: Sequence[Op], unknown: OutcomeUnknown) -> TxnResult:
        try:
            return await self._core.etcd.txn([], reads)
        except CatalogDown as error:
            raise unknown from error

    async def read_open(self, extents: Iterable[int]) -> dict[int, Opened]:
        """Commit rows by extent, read in groups of 128; extents that are not open are left out."""
        wanted = list(extents)
        found: dict[int, Opened] = {}
        for start in range(0, len(wanted), TXN_OPS_MAX):
            group = wanted[start : start + TXN_OPS_MAX]
            answer = await self._core.etcd.txn([], [get(keys.open_extent(extent)) for extent in group])
            for extent, kvs in zip(group, answer.responses, strict=True):
                if kvs:
                    found[extent] = Opened(rows.decode(kvs[0].value, OpenRow), kvs[0].mod_revision)
        return found


def _seen(extent: int, extent_rows: tuple[KeyValue, ...], open_rows: tuple[KeyValue, ...]) -> Seen:
    if not extent_rows:
        raise NotFound(f"there is no extent {extent}")
    return Seen(
        rows.decode(extent_rows[0].value, ExtentRow),
        extent_rows[0].mod_revision,
        rows.decode(open_rows[0].value, OpenRow) if open_rows else None,
    )
