"""`POST /rpc/<verb>` for pools, volumes, namespaces and maintenance. Thin: checks names, asks the part that knows.

What an operator changes is written to the event log with his token's name, after it is committed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web

from copypool.protocol import api, policies
from copypool.protocol.errors import Conflict, Invalid, NotFound
from copypool.protocol.names import check_name
from copypool.protocol.tokens import Principal, Role
from copypool_coordinator import describing
from copypool_coordinator.auth import Auth
from copypool_coordinator.catalog import Catalog
from copypool_coordinator.overview import Overview
from copypool_coordinator.rows import FORMAT, EventRow, NamespaceRow, PoolRow, VolumeRow
from copypool_coordinator.verbs import Verb, routes
from copypool_coordinator.view import Versioned

_SHOWN_S = 5.0


class PolicyApi:
    """Handlers of the verbs that set what the controllers work towards."""

    def __init__(self, catalog: Catalog, auth: Auth, overview: Overview, name: str, *, body_bytes: int) -> None:
        self._catalog = catalog
        self._policies = catalog.policies
        self._view = catalog.view
        self._auth = auth
        self._overview = overview
        self._name = name
        self._body_bytes = body_bytes

    def routes(self) -> dict[str, Callable[[web.BaseRequest], Awaitable[web.Response]]]:
        """Path -> handler."""
        verbs = {
            "pool_create": Verb(policies.PoolSpec, Role.operator, self._pool_create),
            "pool_update": Verb(policies.PoolUpdate, Role.operator, self._pool_update),
            "pool_show": Verb(policies.PoolName, Role.operator, self._pool_show),
            "volume_define": Verb(policies.VolumeSpec, Role.operator, self._volume_define),
            "volume_update": Verb(policies.VolumeUpdate, Role.operator, self._volume_update),
            "volume_show": Verb(policies.VolumeName, Role.operator, self._volume_show),
            "namespaces": Verb(api.Empty, Role.reader, self._namespaces),
            "namespace_create": Verb(api.NamespaceSpec, Role.admin, self._namespace_create),
            "namespace_update": Verb(policies.NamespaceUpdate, Role.admin, self._namespace_update),
            "namespace_show": Verb(policies.NamespaceName, Role.reader, self._namespace_show),
            "brake_release": Verb(api.Empty, Role.admin, self._brake_release),
            "maintenance": Verb(policies.MaintenanceRequest, Role.operator, self._maintenance),
        }
        return routes(verbs, self._auth, self._catalog.now_ms, self._body_bytes)

    async def _tell(self, principal: Principal, kind: str, message: str, *, node: str = "", volume: str = "") -> None:
        who = f"{principal.name} at {self._name}"
        event = EventRow(FORMAT, self._catalog.now_ms(), kind, who, message, node=node, volume=volume)
        await self._catalog.append_events([event])

    # -- pools -------------------------------------------------------------------------------------
    async def _pool_create(self, principal: Principal, body: policies.PoolSpec) -> policies.PoolDetails:
        before = self._view.pools.get(body.name)
        await self._policies.create_pool(body)
        if before is None:
            await self._tell(principal, "PoolCreated", f"{body.type} pool {body.name}")
        return await self._pool_details(body.name)

    async def _pool_update(self, principal: Principal, body: policies.PoolUpdate) -> policies.PoolDetails:
        before = self._pool(body.name).row
        row = await self._policies.update_pool(body)
        if row != before:
            await self._tell(principal, "PoolUpdated", f"pool {body.name}: {_changes(before, row)}")
        return await self._pool_details(body.name)

    async def _pool_show(self, _: Principal, body: policies.PoolName) -> policies.PoolDetails:
        return await self._pool_details(body.name)

    def _pool(self, name: str) -> Versioned[PoolRow]:
        entry = self._view.pools.get(check_name(name, "pool name"))
        if entry is None:
            raise NotFound(f"there is no pool {name!r}")
        return entry

    async def _pool_details(self, name: str) -> policies.PoolDetails:
        entry = self._pool(name)
        info = next((each for each in await self._overview.pools() if each.name == name), None)
        if info is None:
            raise NotFound(f"there is no pool {name!r}")
        return describing.pool(self._view, entry, info, self._catalog.now_ms())

    # -- volumes -----------------------------------------------------------------------------------
    async def _volume_define(self, principal: Principal, body: policies.VolumeSpec) -> policies.VolumeDetails:
        before = self._view.volumes.get(body.name)
        await self._policies.define_volume(body)
        if before is None:
            await self._tell(principal, "VolumeDefined", f"in pool {body.pool}", volume=body.name)
        return await self._volume_details(body.name)

    async def _volume_update(self, principal: Principal, body: policies.VolumeUpdate) -> policies.VolumeDetails:
        before = self._volume(body.name).row
        row = await self._policies.update_volume(body)
        if row != before:
            await self._tell(principal, "VolumeUpdated", _changes(before, row), volume=body.name)
        return await self._volume_details(body.name)

    async def _volume_show(self, _: Principal, body: policies.VolumeName) -> policies.VolumeDetails:
        return await self._volume_details(body.name)

    def _volume(self, name: str) -> Versioned[VolumeRow]:
        entry = self._view.volumes.get(check_name(name, "volume name"))
        if entry is None:
            raise NotFound(f"there is no volume {name!r}")
        return entry

    async def _volume_details(self, name: str) -> policies.VolumeDetails:
        entry = self._volume(name)
        info = next((each for each in await self._overview.volumes() if each.name == name), None)
        if info is None:
            raise NotFound(f"there is no volume {name!r}")
        return await describing.volume(self._view, entry, info)

    # -- namespaces --------------------------------------------------------------------------------
    async def _namespaces(self, principal: Principal, _: api.Empty) -> api.NamespaceList:
        principal.require(Role.reader)
        items = [
            self._policies.namespace_info(name, entry.row)
            for name, entry in sorted(self._view.namespaces.items())
            if entry.row.state == "live" and entry.row.class_id in self._view.classes
            if principal.namespace in ("", name)
        ]
        return api.NamespaceList(items)

    async def _namespace_create(self, principal: Principal, body: api.NamespaceSpec) -> api.NamespaceInfo:
        check_name(body.name, "namespace")
        check_name(body.primary_pool, "pool name")
        before = self._view.namespaces.get(body.name)
        made = await self._policies.create_namespace(body)
        if before is None:
            copies = ", ".join(made.copy_pools) or "no copies"
            await self._tell(principal, "NamespaceCreated", f"{body.name}: {made.primary_pool} -> {copies}")
        return made

    async def _namespace_update(
        self, principal: Principal, body: policies.NamespaceUpdate
    ) -> policies.NamespaceDetails:
        before = self._namespace(body.name).row
        row = await self._policies.update_namespace(body)
        if row != before:
            info = self._policies.namespace_info(body.name, row)
            copies = ", ".join(info.copy_pools) or "no copies"
            await self._tell(
                principal,
                "NamespaceUpdated",
                f"{body.name}: new extents {info.primary_pool} -> {copies}, ack {info.ack}, "
                f"quota {info.quota_bytes or 'none'}",
            )
        return await self._namespace_details(body.name)

    async def _namespace_show(self, principal: Principal, body: policies.NamespaceName) -> policies.NamespaceDetails:
        principal.require(Role.reader, body.name)
        return await self._namespace_details(body.name)

    def _namespace(self, name: str) -> Versioned[NamespaceRow]:
        entry = self._view.namespaces.get(check_name(name, "namespace"))
        if entry is None or entry.row.state != "live":
            raise NotFound(f"no namespace {name!r}")
        return entry

    async def _namespace_details(self, name: str) -> policies.NamespaceDetails:
        entry = self._namespace(name)
        files, size_bytes, as_of_ms = self._catalog.counters.of_namespace(entry.row.id)
        older = await describing.older_extents(self._view, entry.row)
        _, marks = await self._overview.planning()
        lacking, lacking_bytes = await describing.lacking_extents(self._view, marks, entry.row)
        return policies.NamespaceDetails(
            info=self._policies.namespace_info(name, entry.row),
            files=files,
            bytes=size_bytes,
            as_of_unix_s=as_of_ms / 1000,
            rewriting=any(
                each.row.verb == "rewrite" and each.row.state == "running" and each.row.namespace == entry.row.id
                for each in self._view.processes.values()
            ),
            older_extents=older.extents,
            older_bytes=older.payload_bytes,
            shared_with=older.shared_with,
            rewritable=not older.obstacle,
            obstacle=older.obstacle,
            lacking_extents=lacking,
            lacking_bytes=lacking_bytes,
        )

    # -- maintenance -------------------------------------------------------------------------------
    async def _maintenance(self, principal: Principal, body: policies.MaintenanceRequest) -> policies.MaintenanceReply:
        if body.for_s < 0:
            raise Invalid("for_s is the seconds that the node may be away, or 0 to end the maintenance")
        row, changed = await self._catalog.absences.set_maintenance(check_name(body.node, "node name"), body.for_s)
        until_ms = row.maintenance_until_ms if body.for_s else 0
        if not changed:
            return policies.MaintenanceReply(body.node, None)
        if until_ms:
            message = f"{body.node} may be away for {body.for_s} s: it is not replaced meanwhile"
            await self._tell(principal, "MaintenanceBegun", message, node=body.node)
        else:
            await self._tell(principal, "MaintenanceEnded", f"{body.node} is expected to be there", node=body.node)
        return policies.MaintenanceReply(body.node, until_ms / 1000 if until_ms else None)

    async def _brake_release(self, principal: Principal, _: api.Empty) -> policies.BrakeReply:
        brake = await self._overview.brake()
        if not brake:
            raise Conflict("no brake is on: what is away is rebuilt once its grace time is over")
        await self._catalog.absences.release_brake()
        await self._tell(principal, "BrakeReleaseAsked", f"an operator believes that what is away is lost: {brake}")
        return policies.BrakeReply(brake)


def _changes(before: PoolRow | VolumeRow, after: PoolRow | VolumeRow) -> str:
    """The fields that an update changed, for the event log."""
    names = [name for name in after.__struct_fields__ if getattr(before, name) != getattr(after, name)]
    shown = [
        f"{name} {getattr(before, name)!r} -> {getattr(after, name)!r}" for name in names if name[-9:] != "_since_ms"
    ]
    return ", ".join(shown)
