"""Pools and classes: rows that are made once and never change. Making one that is there finds it."""

from __future__ import annotations

from collections.abc import Sequence

from copypool.protocol.api import AckRule, PoolType
from copypool.protocol.errors import Conflict, Invalid, OutcomeUnknown, Overloaded
from copypool_coordinator import keys, rows
from copypool_coordinator.core import ROUNDS_MAX
from copypool_coordinator.etcd import Etcd, KeyValue, create_equals, get, put
from copypool_coordinator.ids import take_ids
from copypool_coordinator.rows import FORMAT, ClassRow, PoolRow, R


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


async def ensure_pool(etcd: Etcd, name: str, pool_type: PoolType) -> PoolRow:
    """The pool of this name.

    Raises:
        Conflict: it has the other type.
    """
    key = keys.named(keys.POOL, name)
    kv = await etcd.get(key)
    if kv is not None:
        row = rows.decode(kv.value, PoolRow)
    else:
        row, _ = await ensure_row(etcd, key, PoolRow(FORMAT, (await take_ids(etcd, "pool"))[0], pool_type))
    if row.type != pool_type:
        raise Conflict(f"the pool {name!r} is a {row.type} pool")
    return row


async def ensure_class(etcd: Etcd, primary_pool: int, copy_pools: Sequence[int], ack: AckRule) -> ClassRow:
    """The class of these three; the order of copy pools is no difference.

    Raises:
        Invalid: a pool is named twice.
    """
    copies = sorted(copy_pools)
    if len({primary_pool, *copies}) != 1 + len(copies):
        raise Invalid("a class names each pool once")
    key = keys.named(keys.CLASS, f"{primary_pool}/{','.join(map(str, copies))}/{ack}")
    kv = await etcd.get(key)
    if kv is not None:
        return rows.decode(kv.value, ClassRow)
    class_id = (await take_ids(etcd, "class"))[0]
    row, _ = await ensure_row(etcd, key, ClassRow(FORMAT, class_id, primary_pool, copies, ack))
    return row
