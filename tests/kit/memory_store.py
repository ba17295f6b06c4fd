"""What a transaction does to an etcd, in memory: enough to run the plans of transactions against.

`tests/contract/test_catalog_store.py` holds it to the real etcd.
"""

from __future__ import annotations

from collections.abc import Sequence

from copypool_coordinator.etcd import Compare, KeyValue, Op, TxnResult
from copypool_coordinator.etcd.requests import TXN_MAX_OPS, Delete, Get, Put, Target


class MemoryStore:
    """Rows and a revision."""

    def __init__(self) -> None:
        self.revision = 1
        self.rows: dict[bytes, KeyValue] = {}

    def txn(self, compares: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op] = ()) -> TxnResult:
        """Run `success` if every compare holds, else `failure`."""
        for part in (compares, success, failure):
            assert len(part) <= TXN_MAX_OPS, "etcd refuses this"
        written = [op.key for op in success if isinstance(op, (Put, Delete))]
        assert len(written) == len(set(written)), "etcd refuses a key twice"
        succeeded = all(self._holds(compare) for compare in compares)
        operations = success if succeeded else failure
        revision = self.revision + 1
        changed = False
        responses: list[tuple[KeyValue, ...]] = []
        for op in operations:
            if isinstance(op, Put):
                before = self.rows.get(op.key)
                created = before.create_revision if before is not None else revision
                number = before.version + 1 if before is not None else 1
                self.rows[op.key] = KeyValue(op.key, op.value, created, revision, number, op.lease)
                changed = True
                responses.append(())
            elif isinstance(op, Delete):
                doomed = self._found(op.key, op.end)
                for kv in doomed:
                    del self.rows[kv.key]
                changed = changed or bool(doomed)
                responses.append(())
            else:
                assert isinstance(op, Get)
                found = self._found(op.key, op.end)
                responses.append(tuple(found[: op.limit] if op.limit else found))
        if changed:
            self.revision = revision
        return TxnResult(succeeded, self.revision, responses)

    def _found(self, key: bytes, end: bytes | None) -> list[KeyValue]:
        if end is None:
            return [self.rows[key]] if key in self.rows else []
        return [self.rows[each] for each in sorted(self.rows) if key <= each < end]

    def _holds(self, compare: Compare) -> bool:
        row = self.rows.get(compare.key)
        if compare.target is Target.VALUE:
            return row is not None and row.value == compare.value
        if row is None:
            return compare.revision == 0
        actual = row.mod_revision if compare.target is Target.MOD else row.create_revision
        return actual == compare.revision
