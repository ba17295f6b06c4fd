"""Pools, volumes, policies of namespaces and maintenance, as an operator's program asks for them: `client.policies`.

What each setting means is said at the structs of `copypool.protocol.policies`. In updates None leaves a setting as it
is. When a call returns, the change is committed; every call may be repeated.
"""

from __future__ import annotations

from collections.abc import Sequence

from copypool.coordinators import Coordinators
from copypool.protocol.api import AccessMode, AckRule, Empty, OnCopyFailure, PoolType
from copypool.protocol.names import check_name
from copypool.protocol.policies import (
    BrakeReply,
    MaintenanceReply,
    MaintenanceRequest,
    NamespaceDetails,
    NamespaceName,
    NamespaceUpdate,
    PoolDetails,
    PoolName,
    PoolSpec,
    PoolUpdate,
    Spread,
    VolumeDetails,
    VolumeName,
    VolumeSpec,
    VolumeUpdate,
)


class Policies:
    """One cluster's settings."""

    def __init__(self, coordinators: Coordinators) -> None:
        self._coordinators = coordinators

    # -- pools --------------------------------------------------------------------------------
    async def pool_create(
        self,
        name: str,
        pool_type: PoolType,
        *,
        copy_pools: Sequence[str] = (),
        spread: Spread = "host",
        window: str = "",
        window_s: int = 0,
        budget_bytes_s: int = 0,
        description: str = "",
    ) -> PoolDetails:
        """Make a pool. `Conflict` when there is one of this name with other settings."""
        spec = PoolSpec(
            check_name(name, "pool name"),
            pool_type,
            [*copy_pools],
            spread,
            window,
            window_s,
            budget_bytes_s,
            description,
        )
        return await self._coordinators.call("pool_create", spec, PoolDetails)

    async def pool_update(
        self,
        name: str,
        *,
        copy_pools: Sequence[str] | None = None,
        spread: Spread | None = None,
        window: str | None = None,
        window_s: int | None = None,
        budget_bytes_s: int | None = None,
        description: str | None = None,
    ) -> PoolDetails:
        """Change a pool's settings; `window=""` opens it for good."""
        pools = None if copy_pools is None else [*copy_pools]
        update = PoolUpdate(name, pools, spread, window, window_s, budget_bytes_s, description)
        return await self._coordinators.call("pool_update", update, PoolDetails)

    async def pool(self, name: str) -> PoolDetails:
        """One pool."""
        return await self._coordinators.call("pool_show", PoolName(name), PoolDetails)

    # -- volumes ------------------------------------------------------------------------------
    async def volume_define(
        self,
        name: str,
        pool: str,
        *,
        node: str = "",
        access: AccessMode = "readwrite",
        location_text: str = "",
        limit_bytes: int = 0,
    ) -> VolumeDetails:
        """Announce a volume that a node will mount. `Conflict` when there is one of this name."""
        spec = VolumeSpec(check_name(name, "volume name"), pool, node, access, location_text, limit_bytes)
        return await self._coordinators.call("volume_define", spec, VolumeDetails)

    async def volume_update(
        self,
        name: str,
        *,
        access: AccessMode | None = None,
        location_text: str | None = None,
        limit_bytes: int | None = None,
    ) -> VolumeDetails:
        """Change a volume's settings. Nothing more is committed there on return unless it is `readwrite`."""
        update = VolumeUpdate(name, access, location_text, limit_bytes)
        return await self._coordinators.call("volume_update", update, VolumeDetails)

    async def volume(self, name: str) -> VolumeDetails:
        """One volume."""
        return await self._coordinators.call("volume_show", VolumeName(name), VolumeDetails)

    # -- namespaces ---------------------------------------------------------------------------
    async def namespace(self, name: str) -> NamespaceDetails:
        """One namespace."""
        return await self._coordinators.call("namespace_show", NamespaceName(name), NamespaceDetails)

    async def namespace_update(
        self,
        name: str,
        *,
        primary_pool: str | None = None,
        copy_pools: Sequence[str] | None = None,
        ack: AckRule | None = None,
        on_copy_failure: OnCopyFailure | None = None,
        quota_bytes: int | None = None,
    ) -> NamespaceDetails:
        """Change where new extents of a namespace go, and its quota. What is stored stays: process `rewrite`."""
        pools = None if copy_pools is None else [*copy_pools]
        update = NamespaceUpdate(name, primary_pool, pools, ack, on_copy_failure, quota_bytes)
        return await self._coordinators.call("namespace_update", update, NamespaceDetails)

    async def maintenance(self, node: str, for_s: int) -> MaintenanceReply:
        """Announce that a node will be away for so long from now on; 0 ends the maintenance."""
        return await self._coordinators.call("maintenance", MaintenanceRequest(node, for_s), MaintenanceReply)

    async def release_brake(self) -> str:
        """Have what is away now rebuilt after its grace time; why that was held up. `Conflict`: it is not."""
        return (await self._coordinators.call("brake_release", Empty(), BrakeReply)).brake
