"""Volumes that cannot be used although their nodes run: not mounted, or unavailable by an operator's word. Pure.

In sentences: with the node's own words, and with what ends it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from copypool_coordinator.lists import names_of

if TYPE_CHECKING:
    from copypool_coordinator.offpolicy import Mark
    from copypool_coordinator.view import ClusterView


def not_mounted(view: ClusterView, told: Mapping[tuple[int, str], str]) -> list[str]:
    """Volumes of the catalog that were mounted once and are not now, although their nodes run (never green).

    `told`: what nodes say of it, by node and name of the volume.
    """
    lacking = [
        (name, volume.row)
        for name, volume in sorted(view.volumes.items())
        if volume.row.session and view.node_up(volume.row.node) and not view.volume_mounted(volume.row.id)
        if volume.row.access not in ("destroyed", "offsite")
    ]
    silent = [name for name, row in lacking if (row.node, name) not in told]
    found = [
        f"volume {name!r} is not mounted, although its node runs: {told[row.node, name]}"
        for name, row in lacking
        if (row.node, name) in told
    ]
    if silent:
        found.append(f"{names_of(silent)} not mounted, although their nodes run: see the nodes' logs")
    return found


def not_let_in(view: ClusterView, told: Mapping[tuple[int, str], str]) -> list[str]:
    """Volumes of nodes that run which the catalog has nothing on: nothing is missing with them, and nothing uses them.

    One that is in the catalog, but of another node or never mounted yet, is among them.
    """
    found = []
    for (node_id, name), reason in sorted(told.items()):
        node, volume = view.nodes_by_id.get(node_id), view.volumes.get(name)
        if node is None or not view.node_up(node_id):
            continue
        if volume is None or volume.row.node != node_id or not volume.row.session:
            found.append(f"{node.name} cannot mount {name!r}, so the cluster does not use it: {reason}")
    return found


def kept_waiting(view: ClusterView, marks: Mapping[int, Mark]) -> Counter[str]:
    """Extents without a primary or a copy for which an `unavailable` volume is waited for, by its name.

    Nothing is made again elsewhere for them, as long as the volume's node runs.
    """
    found: Counter[str] = Counter()
    for extent, mark in marks.items():
        entry = view.extents.get(extent)
        if entry is None or not (mark.no_primary or mark.debt):
            continue
        for location in entry.row.locations:
            if location.state == "good" and is_unavailable(view, location.volume):
                found[view.volumes_by_id[location.volume].name] += 1
    return found


def is_unavailable(view: ClusterView, volume: int) -> bool:
    """Whether an operator's word alone keeps this volume from being read."""
    entry = view.volumes_by_id.get(volume)
    return entry is not None and entry.row.access == "unavailable" and view.volume_mounted(volume)


def unavailable(waiting: Mapping[str, int]) -> list[str]:
    """What is waited for by an operator's word (see `kept_waiting`), and how it ends."""
    return [
        f"volume {name!r} is `unavailable` by an operator's word: {number} extents wait for it and are not made again "
        f"elsewhere; `copypool volume update {name} --access readwrite` gives it back, `copypool restore volume "
        f"{name}` gives it up"
        for name, number in sorted(waiting.items())
    ]
