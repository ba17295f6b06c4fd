"""What an extent file shows of a catalog that was restored from an older state. Reads, decides nothing.

A writer begins a group only after the commit of the one before the last one was answered. So behind the committed
length there are at most the group whose commit is under way and the next; more of them were committed once.
"""

from __future__ import annotations

import contextlib

from copypool.protocol.errors import DigestMismatch
from copypool_node.extent_file import ExtentFile
from copypool_node.format import Corrupt
from copypool_node.scanner import Event, GroupSeen

UNANSWERED_GROUPS_MAX = 2


async def forgotten_groups(file: ExtentFile, length: int) -> int:
    """How many groups begin at or behind the length that the catalog tells, when these are more than can be; else 0.

    Counts up to the first torn structure. Reads the whole file, but only when it is longer than `length`.
    """
    groups = 0

    def count(events: list[Event]) -> None:
        nonlocal groups
        groups += sum(isinstance(event, GroupSeen) and event.offset >= length for event in events)

    if file.size > length:
        with contextlib.suppress(Corrupt, DigestMismatch):
            await file.scan(file.size, on_events=count)
    return groups if groups > UNANSWERED_GROUPS_MAX else 0
