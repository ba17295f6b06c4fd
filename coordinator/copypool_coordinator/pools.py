"""Pools and classes: made under their key once. Making one that is there finds it."""

from __future__ import annotations

from msgspec.structs import replace

from copypool.protocol.api import PoolType
from copypool.protocol.errors import Conflict, Invalid
from copypool_coordinator import keys, rows
from copypool_coordinator.etcd import Etcd
from copypool_coordinator.ids import take_ids
from copypool_coordinator.namedrows import ensure_row
from copypool_coordinator.rows import FORMAT, ClassRow, PoolRow


async def ensure_pool(
    etcd: Etcd, name: str, pool_type: PoolType, settings: PoolRow | None = None
) -> tuple[PoolRow, int]:
    """The pool of this name and its revision; made with these settings if it is not there.

    Raises:
        Conflict: it has the other type.
    """
    key = keys.named(keys.POOL, name)
    kv = await etcd.get(key)
    if kv is not None:
        row = rows.decode(kv.value, PoolRow)
    else:
        wanted = settings or PoolRow(FORMAT, 0, pool_type)
        row, kv = await ensure_row(etcd, key, replace(wanted, id=(await take_ids(etcd, "pool"))[0]))
    if row.type != pool_type:
        raise Conflict(f"the pool {name!r} is a {row.type} pool")
    return row, kv.mod_revision


async def ensure_class(etcd: Etcd, wanted: ClassRow) -> tuple[ClassRow, int]:
    """The class like this one, whatever its id, and its revision. The order of copy pools is no difference.

    What happens when no copy can be written says something only beside the ack rule `copy`.

    Raises:
        Invalid: a pool is named twice.
    """
    copies = sorted(wanted.copy_pools)
    if len({wanted.primary_pool, *copies}) != 1 + len(copies):
        raise Invalid("a class names each pool once")
    on_copy_failure = wanted.on_copy_failure if wanted.ack == "copy" else "continue"
    text = f"{wanted.primary_pool}/{','.join(map(str, copies))}/{wanted.ack}"
    key = keys.named(keys.CLASS, text if on_copy_failure == "continue" else f"{text}/{on_copy_failure}")
    kv = await etcd.get(key)
    if kv is not None:
        return rows.decode(kv.value, ClassRow), kv.mod_revision
    class_id = (await take_ids(etcd, "class"))[0]
    row, kv = await ensure_row(
        etcd, key, replace(wanted, id=class_id, copy_pools=copies, on_copy_failure=on_copy_failure)
    )
    return row, kv.mod_revision
