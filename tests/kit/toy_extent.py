"""One extent of a toy cluster: made, copied, its writer lost; and what was done about it."""

from __future__ import annotations

from copypool_coordinator.policy import places
from copypool_coordinator.protection import assess
from kit.toy_cluster import CLASS, MIB, ToyCluster

E = 7


def kinds(cluster: ToyCluster) -> list[str]:
    """The kinds of all actions so far, repeats in a row once."""
    names = [type(action).__name__ for action in cluster.history]
    return [name for index, name in enumerate(names) if index == 0 or names[index - 1] != name]


def satisfied(cluster: ToyCluster, extent: int = E) -> bool:
    extent_class = cluster.view.classes[CLASS].row
    return assess(cluster.row(extent), cluster.committed(extent), extent_class, places(cluster.view)).satisfied


def whole_copied(cluster: ToyCluster, length: int = 40 * MIB) -> None:
    """A sealed extent, written on node 1, copied and read back."""
    cluster.open_extent(E, writer=1, length=length)
    cluster.settle()
    cluster.seal(E)
    cluster.wait(cluster.policy.first_verify_delay_ms)
    cluster.settle()
    assert satisfied(cluster)
    assert all(each.verified_ms for each in cluster.row(E).locations)
    cluster.history.clear()


def lost_for_good(cluster: ToyCluster, node: int = 1) -> None:
    """The node's session ends, and the grace time goes by."""
    cluster.down(node)
    cluster.settle()
    cluster.wait(cluster.policy.grace_ms)
