"""The parts that a manifest names, compared with their rows, in bounded reads. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from copypool.protocol.internal import CommitEntry
from copypool_coordinator import keys, rows
from copypool_coordinator.etcd import KeyValue, Op, get
from copypool_coordinator.rows import PartRow

#: Part rows in one range, and ranges in one transaction: about 1 MiB an answer.
PARTS_PER_RANGE = 512
PART_RANGES = 16
PARTS_PER_READ = PARTS_PER_RANGE * PART_RANGES


def part_reads(entry: CommitEntry, first: int) -> list[Op]:
    """Reads of the rows of a manifest's parts from number `first` on, at most `PARTS_PER_READ` of them."""
    last = min(len(entry.segments), first + PARTS_PER_READ)
    return [
        get(
            keys.part(entry.namespace, entry.upload, start),
            keys.part(entry.namespace, entry.upload, min(start + PARTS_PER_RANGE, last)),
        )
        for start in range(first, last, PARTS_PER_RANGE)
    ]


def check_parts(entry: CommitEntry, first: int, found: Sequence[KeyValue]) -> str:
    """What is wrong with the parts that `part_reads` from `first` on asked for; "" when all are as named."""
    by_key = {kv.key: kv.value for kv in found}
    for number in range(first, min(len(entry.segments), first + PARTS_PER_READ)):
        value = by_key.get(keys.part(entry.namespace, entry.upload, number))
        if value is None:
            return f"part {number} is not there"
        row = rows.decode(value, PartRow)
        if (row.version, row.segment) != (entry.part_versions[number], entry.segments[number]):
            return f"part {number} was sent again since: name it by its last receipt"
    return ""
