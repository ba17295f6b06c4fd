"""Which class an older extent may be given when a namespace's policy has changed. Pure.

An extent holds records of one class, perhaps of several namespaces. It may get another class when that differs in
nothing but copy pools and ack rule, so that no byte has to leave its primary volumes, and when every namespace with a
record in it has that class now. The bytes themselves are then copied and dropped by the controllers, which see an
extent off policy and nothing else. Extents that are shared with a namespace of another policy stay as they are: their
records have to be rewritten one by one, which is the work of reclaiming.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import replace

from copypool.protocol.capability import WRITE_LIFE_MS
from copypool_coordinator.locations import OTHERS, sealed
from copypool_coordinator.rows import ExtentRow, NamespaceRow, OpenRow

if TYPE_CHECKING:
    from copypool_coordinator.view import ClusterView


class Verdict(NamedTuple):
    """Whether an extent may get a class."""

    moves_primary: bool  #: it would have to move to another primary pool
    others: frozenset[int]  #: namespaces of another class with records in it; `OTHERS`: not known which

    @property
    def possible(self) -> bool:
        """Whether the class can simply be changed, once the extent is sealed."""
        return not self.moves_primary and not self.others


def held_bytes(row: ExtentRow, namespace: int) -> int | None:
    """Payload bytes that this namespace put into a sealed extent; None when it has nothing there for certain.

    Of an extent that an older version of the program has written nothing is known: 0.
    """
    if row.records and not row.shares:
        return 0
    for share in row.shares:
        if share.namespace == namespace:
            return share.payload_bytes
    return 0 if any(share.namespace == OTHERS for share in row.shares) else None


def may_be_written_by_old_leases(namespace: NamespaceRow, row: ExtentRow) -> bool:
    """Whether this open extent of a past class may hold records of the namespace: it is as old as its last leases."""
    return row.opened_ms <= namespace.class_since_ms + WRITE_LIFE_MS


def may_hold(namespace: NamespaceRow, row: ExtentRow) -> bool:
    """Whether this extent of a past class may hold records of the namespace, open or sealed."""
    if row.open:
        return may_be_written_by_old_leases(namespace, row)
    return held_bytes(row, namespace.id) is not None


def lease_left_ms(namespace: NamespaceRow, now_ms: int) -> int:
    """For how long somebody may still write under the policy before; 0: nobody may."""
    return max(0, namespace.class_since_ms + WRITE_LIFE_MS - now_ms) if namespace.past_classes else 0


def judge(view: ClusterView, row: ExtentRow, class_id: int) -> Verdict:
    """Whether this sealed extent may get the class."""
    before, after = view.classes.get(row.class_id), view.classes.get(class_id)
    if before is None or after is None or before.row.primary_pool != after.row.primary_pool:
        return Verdict(True, frozenset())
    return Verdict(False, frozenset(_holders(view, row) - _of_class(view, class_id)))


def as_rewritten(view: ClusterView, row: ExtentRow, sample: OpenRow | None, namespace: NamespaceRow) -> ExtentRow:
    """The extent as a rewriting of the namespace will have it, its bytes apart: sealed, and of the present class.

    The row itself when nothing is to change: it has that class, cannot get it, holds nothing of the namespace, or is
    open and was not sampled yet.
    """
    if row.class_id == namespace.class_id:
        return row
    after = as_sealed(row, sample)
    if after.open or held_bytes(after, namespace.id) is None or not judge(view, after, namespace.class_id).possible:
        return row
    return replace(after, class_id=namespace.class_id)


def as_sealed(row: ExtentRow, sample: OpenRow | None) -> ExtentRow:
    """The extent as it is once it was sealed at what is committed now; an open one without a sample as it is."""
    return sealed(row, sample, sample.uncopied_since_ms) if row.open and sample is not None else row


def _holders(view: ClusterView, row: ExtentRow) -> set[int]:
    """Live namespaces that may have records in the extent."""
    named = {share.namespace for share in row.shares}
    if row.shares and OTHERS not in named:
        return {each for each in named if each in view.namespaces_by_id}
    # Not known by name: every namespace that has ever written extents of this class.
    return {
        entry.row.id
        for entry in view.namespaces.values()
        if row.class_id == entry.row.class_id or row.class_id in entry.row.past_classes
    }


def _of_class(view: ClusterView, class_id: int) -> set[int]:
    return {entry.row.id for entry in view.namespaces.values() if entry.row.class_id == class_id}
