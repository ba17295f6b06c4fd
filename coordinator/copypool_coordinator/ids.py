"""Integer ids from counter rows: dense, never reused. A block that is lost with its taker is skipped."""

from __future__ import annotations

from copypool.protocol.errors import OutcomeUnknown, Overloaded
from copypool_coordinator import keys
from copypool_coordinator.core import ROUNDS_MAX
from copypool_coordinator.etcd import Etcd, get, mod_equals, put


async def take_ids(etcd: Etcd, kind: str, count: int = 1) -> range:
    """`count` ids of this kind that nobody else has or will have, from 1 on.

    Raises:
        Overloaded: others were faster too often.
    """
    key = keys.named(keys.NEXT_ID, kind)
    row = await etcd.get(key)
    for _ in range(ROUNDS_MAX):
        first = int(row.value) if row is not None else 1
        revision = row.mod_revision if row is not None else 0
        try:
            answer = await etcd.txn([mod_equals(key, revision)], [put(key, b"%d" % (first + count))], [get(key)])
        except OutcomeUnknown:
            row = await etcd.get(key)  # if it was applied, its ids are skipped
            continue
        if answer.succeeded:
            return range(first, first + count)
        row = answer.responses[0][0] if answer.responses[0] else None
    raise Overloaded(f"too many ask for {kind} ids at once: repeat")
