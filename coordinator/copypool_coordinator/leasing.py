"""Write leases: a place and the right to write there. The thin shell around `placement`."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection

from copypool.protocol.api import PART_MAX_BYTES, WriteLease
from copypool.protocol.errors import CatalogDown, QuotaExceeded, Unavailable
from copypool_coordinator.capabilities import Mint
from copypool_coordinator.heartbeats import Heartbeats
from copypool_coordinator.placement import choose_leases, choose_twin
from copypool_coordinator.rows import NamespaceRow
from copypool_coordinator.view import ClusterView


class Leasing:
    """Hands out leases. Nothing is stored: a lease is a hint, and its capability proves itself."""

    def __init__(
        self,
        view: ClusterView,
        heartbeats: Heartbeats,
        mint: Mint,
        now_ms: Callable[[], int],
        rng: random.Random,
        stored_bytes: Callable[[int], int],
        catalog_away: Callable[[], str],
    ) -> None:
        """`stored_bytes` tells the sizes of a namespace's files together, as far as they were counted.

        `catalog_away` tells why etcd is taken to be away; "" while it answers.
        """
        self._view = view
        self._heartbeats = heartbeats
        self._mint = mint
        self._now_ms = now_ms
        self._rng = rng
        self._stored_bytes = stored_bytes
        self._catalog_away = catalog_away

    def leases(
        self,
        namespace: NamespaceRow,
        prefix: str,
        principal: str,
        *,
        count: int,
        size_bytes: int,
        avoid_nodes: Collection[int] = (),
        for_delete: bool = False,
        exact: bool = False,
    ) -> list[WriteLease]:
        """Up to `count` places for bodies of `size_bytes` under `prefix`, best first, at least one.

        Raises:
            CatalogDown: etcd is away: nothing that is written there now could be committed.
            QuotaExceeded: the namespace holds as much as it may. Leases given out before are good for a minute.
            NoSpace, Unavailable: see `choose_leases`.
        """
        away = self._catalog_away()
        if away:
            raise CatalogDown(f"no write can be committed, etcd is away: {away}")
        if namespace.quota_bytes and not for_delete:
            self._check_quota(namespace)
        extent_class = self._view.classes.get(namespace.class_id)
        if extent_class is None:
            raise Unavailable("the namespace's class is not known here yet: repeat")
        loads, row = self._heartbeats.loads(time.monotonic()), extent_class.row
        must_have_twin = row.ack == "copy" and row.on_copy_failure == "fail"
        chosen = choose_leases(
            self._view,
            loads,
            row,
            may_have_twin=lambda node: (
                not must_have_twin or choose_twin(self._view, loads, row, node, seed=0) is not None
            ),
            count=count,
            size_bytes=size_bytes,
            avoid_nodes=avoid_nodes,
            for_delete=for_delete,
            seed=self._rng.getrandbits(32),
        )
        now_ms = self._now_ms()
        leases = []
        for volume_id in chosen:
            node = self._view.nodes_by_id[self._view.volumes_by_id[volume_id].row.node]
            capability, expires_ms = self._mint.write(
                node.row.id, volume_id, namespace.class_id, namespace.id, prefix, principal, now_ms, exact=exact
            )
            leases.append(
                WriteLease(
                    node_id=node.row.id,
                    node=node.name,
                    url=self._view.sessions[node.row.id].row.url,
                    volume=volume_id,
                    class_id=namespace.class_id,
                    namespace_id=namespace.id,
                    capability=capability,
                    max_bytes=PART_MAX_BYTES,
                    expires_ms=expires_ms,
                )
            )
        return leases

    def _check_quota(self, namespace: NamespaceRow) -> None:
        stored_bytes = self._stored_bytes(namespace.id)
        if stored_bytes >= namespace.quota_bytes:
            known = self._view.namespaces_by_id.get(namespace.id)
            raise QuotaExceeded(
                f"the namespace {known.name if known is not None else namespace.id!r} holds {stored_bytes} bytes of a "
                f"quota of {namespace.quota_bytes}: delete files, or have the quota raised",
                stored_bytes=stored_bytes,
                quota_bytes=namespace.quota_bytes,
            )
