"""Write leases: asked for once, used for many files, given up when a node fails."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from posixpath import commonpath
from typing import NamedTuple

from copypool.coordinators import Coordinators
from copypool.protocol.api import PART_MAX_BYTES, SMALL_MAX_BYTES, LeaseReply, LeaseRequest, WriteLease
from copypool.protocol.errors import Invalid, NotFound

LEASES = 4  #: alternatives asked for at once; writes take turns over them
SPARE_MS = 15_000  #: a lease with less life left is not used for a new body
KEYS_MAX = 1024


class _Key(NamedTuple):
    namespace: str
    prefix: str
    large: bool
    deletes: bool


class LeasePool:
    """Cached leases per (namespace, prefix, body size class). One request at a time fills each of them."""

    def __init__(self, coordinators: Coordinators) -> None:
        self._coordinators = coordinators
        self._leases: dict[_Key, list[WriteLease]] = {}
        self._locks: dict[_Key, asyncio.Lock] = {}
        self._too_wide: set[tuple[str, str]] = set()  #: (namespace, prefix) that this token may not write to
        self._turn = 0

    async def take(
        self,
        namespace: str,
        prefixes: Sequence[str],
        size_bytes: int,
        avoid_nodes: list[int],
        *,
        deletes: bool = False,
    ) -> WriteLease:
        """A lease for one of `prefixes` and a body of this size, on none of `avoid_nodes` if that can be.

        `prefixes` run from wide to narrow: a token limited to a prefix may not write to a wider one.
        One for `deletes` is found on full volumes too.
        Asks a coordinator when no cached lease fits. Raises the coordinator's refusal (`NoSpace`, `NotFound`, ...).
        """
        large = size_bytes > SMALL_MAX_BYTES
        refusal: NotFound | None = None
        refused: list[tuple[str, str]] = []
        for prefix in prefixes:
            if (namespace, prefix) in self._too_wide and prefix != prefixes[-1]:
                continue
            try:
                lease = await self._take(_Key(namespace, prefix, large, deletes), avoid_nodes)
            except NotFound as exc:
                refusal = exc  # the narrowest one names the path
                refused.append((namespace, prefix))
                continue
            self._too_wide.update(refused)
            return lease
        if refusal is None:
            raise Invalid("no prefix to write under was given")
        raise refusal

    def drop(self, lease: WriteLease) -> None:
        """Use this lease's volume no more; other leases stay."""
        for leases in self._leases.values():
            leases[:] = [other for other in leases if other is not lease and other.volume != lease.volume]

    def drop_all(self) -> None:
        """Use none of the cached leases any more."""
        self._leases.clear()

    async def _take(self, key: _Key, avoid_nodes: list[int]) -> WriteLease:
        lease = self._pick(key, avoid_nodes)
        if lease is not None:
            return lease
        if len(self._locks) >= KEYS_MAX:
            self._forget()
        async with self._locks.setdefault(key, asyncio.Lock()):
            lease = self._pick(key, avoid_nodes)
            if lease is not None:
                return lease
            request = LeaseRequest(
                namespace=key.namespace,
                prefix=key.prefix,
                count=LEASES,
                size_bytes=0 if key.deletes else PART_MAX_BYTES if key.large else SMALL_MAX_BYTES,
                avoid_nodes=avoid_nodes,
                for_delete=key.deletes,
            )
            reply = await self._coordinators.call("lease", request, LeaseReply)
            self._coordinators.clock.heard(reply.cluster_time_ms)
            self._leases[key] = list(reply.leases)
            # The coordinator may name an avoided node when there is no other one: then it is worth another try.
            return self._pick(key, avoid_nodes) or reply.leases[0]

    def _pick(self, key: _Key, avoid_nodes: list[int]) -> WriteLease | None:
        leases = self._leases.get(key)
        if not leases:
            return None
        fresh_ms = self._coordinators.clock.now_ms() + SPARE_MS
        leases[:] = [lease for lease in leases if lease.expires_ms > fresh_ms]
        usable = [lease for lease in leases if lease.node_id not in avoid_nodes]
        if not usable:
            return None
        self._turn += 1
        return usable[self._turn % len(usable)]

    def _forget(self) -> None:
        idle = [key for key, lock in self._locks.items() if not lock.locked()]
        for key in idle:
            del self._locks[key]
            self._leases.pop(key, None)
        self._too_wide.clear()


def prefixes_of(path: str) -> list[str]:
    """Lease prefixes that cover `path`, from the whole namespace down to the path itself."""
    return list(dict.fromkeys(("", path.rpartition("/")[0], path)))


def prefixes_of_all(paths: Sequence[str]) -> list[str]:
    """Lease prefixes that cover every one of `paths`, wide to narrow."""
    return list(dict.fromkeys(("", commonpath([path.rpartition("/")[0] for path in paths]))))
