"""Rows that people name: made once under a name, changed by compare-and-swap. The name is the key, so it is unique."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from copypool.protocol.errors import NotFound, OutcomeUnknown, Overloaded
from copypool_coordinator import rows
from copypool_coordinator.core import ROUNDS_MAX, Core, Guard, check_guards
from copypool_coordinator.etcd import Etcd, KeyValue, create_equals, get, mod_equals, put
from copypool_coordinator.rows import R


async def ensure_row(etcd: Etcd, key: bytes, row: R) -> tuple[R, KeyValue]:
    """The row at `key`: this one if there was none, else the one that is there."""
    for _ in range(ROUNDS_MAX):
        try:
            answer = await etcd.txn([create_equals(key, 0)], [put(key, rows.encode(row)), get(key)], [get(key)])
        except OutcomeUnknown:
            continue
        kv = answer.responses[-1][0]
        return rows.decode(kv.value, type(row)), kv
    raise Overloaded("etcd does not tell whether it wrote a row: repeat")


async def change_row(
    core: Core,
    key: bytes,
    kind: type[R],
    changed: Callable[[R], R | None],
    what: str,
    guards: Sequence[Guard] = (),
) -> tuple[R, int]:
    """The row and the revision at which it was written, after `changed` was applied to it as it then was.

    `changed` is called once per try and answers None when there is nothing to change; what it raises ends this.

    Raises:
        NotFound: there is no such row; `what` names it.
        Overloaded: it changes too fast.
    """
    reads = [*(get(guard.compare.key) for guard in guards), get(key)]
    for _ in range(ROUNDS_MAX):
        found = await core.etcd.txn([], reads)
        check_guards(list(guards), found.responses[:-1])
        if not found.responses[-1]:
            raise NotFound(f"there is no {what}")
        kv = found.responses[-1][0]
        row = changed(rows.decode(kv.value, kind))
        if row is None:
            return rows.decode(kv.value, kind), kv.mod_revision
        compares = [*(guard.compare for guard in guards), mod_equals(key, kv.mod_revision)]
        try:
            answer = await core.etcd.txn(compares, [put(key, rows.encode(row))], reads)
        except OutcomeUnknown:
            continue
        if answer.succeeded:
            return row, answer.revision
    raise Overloaded(f"{what} changes too fast: repeat")
