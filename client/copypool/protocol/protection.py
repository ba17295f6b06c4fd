"""Live numbers of protection, pool by pool and namespace by namespace: sections of `StatusReply`. Structs only."""

from __future__ import annotations

from typing import Literal

import msgspec


class PoolProtection(msgspec.Struct):
    """One pool: what it does not have yet (copy pools), and what is wrong with what it has."""

    pool: str
    type: Literal["primary", "copy"]
    debt_bytes: int  #: committed and not yet good here
    debt_records: int  #: the same in records: files, parts of files, deletes
    debt_oldest_s: float  #: the recovery point: what was committed longer ago than this is here
    damaged_locations: int
    missing_locations: int


class NamespaceProtection(msgspec.Struct):
    """One namespace: what of it is not in every copy pool of its extents' classes yet.

    Extents are shared, so the numbers are upper bounds where several namespaces write to one extent, and exact where
    not; they are 0 only when nothing of the namespace is uncopied. `(others)` sums up what extents do not tell apart.
    """

    namespace: str
    copy_pools: list[str]  #: by its policy now
    debt_bytes: int
    debt_records: int
    debt_oldest_s: float


class ScrubProgress(msgspec.Struct):
    """The continuous reading back of everything sealed."""

    period_s: float  #: everything is to be read back within this time
    oldest_s: float  #: the longest time since which some location was not read back; 0: nothing was yet
    unread_extents: int  #: with a location that was never read back
    bytes_per_s: float  #: read back lately, over all volumes, as seen by the coordinator that answers
