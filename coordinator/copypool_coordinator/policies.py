"""What operators set: pools, volumes, namespaces. Each change is one compare-and-swap of one row.

A namespace's policy is a class; changing it gives new extents another class and leaves the old ones as they are,
until `set_class` moves them one by one. A change of access that forbids writing has sealed the volume's open extents
when it returns (A10), so that the commit path needs to compare nothing but epoch and extent.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from copypool.cancellation import TaskGroup, raise_first
from copypool.protocol.api import AccessMode, NamespaceInfo, NamespaceSpec, PoolType
from copypool.protocol.errors import Conflict, Invalid, NotFound
from copypool.protocol.names import check_name
from copypool.protocol.policies import (
    BUDGET_MIN_BYTES_S,
    COPY_POOLS_MAX,
    TEXT_MAX,
    NamespaceUpdate,
    PoolSpec,
    PoolUpdate,
    VolumeSpec,
    VolumeUpdate,
)
from copypool_coordinator import keys, locations, rows
from copypool_coordinator.changing import Change, Seen
from copypool_coordinator.core import Core, LeaderGuard, leader_guard
from copypool_coordinator.extents import Extents
from copypool_coordinator.ids import take_ids
from copypool_coordinator.namedrows import change_row, ensure_row
from copypool_coordinator.pools import ensure_class, ensure_pool
from copypool_coordinator.rows import FORMAT, ClassRow, NamespaceRow, PoolRow, VolumeRow
from copypool_coordinator.windows import check_window

FACT_TIMEOUT_S = 5.0
_NOT_WRITTEN: tuple[AccessMode, ...] = ("readonly", "unavailable", "destroyed", "offsite")


class Policies:
    """Pools, volumes and namespaces of one catalog. Safe to repeat, all of it."""

    def __init__(self, core: Core, extents: Extents) -> None:
        self._core = core
        self._extents = extents

    # -- pools -------------------------------------------------------------------------------------
    async def create_pool(self, spec: PoolSpec) -> PoolRow:
        """Make a pool; the same one again is recognised.

        Raises:
            Conflict: there is one of this name with other settings.
            NotFound, Invalid: a setting is not possible.
        """
        copies = await self._default_copies(spec.type, spec.copy_pools)
        wanted = await self._checked(
            PoolRow(
                FORMAT,
                0,
                spec.type,
                copies,
                spec.spread,
                spec.window.strip(),
                spec.window_s,
                spec.budget_bytes_s,
                spec.description,
            )
        )
        row, revision = await ensure_pool(self._core.etcd, check_name(spec.name, "pool name"), spec.type, wanted)
        if replace(row, id=0) != wanted:
            raise Conflict(f"there is a pool {spec.name!r} with other settings: change it with `pool update`")
        await self._core.caught_up(revision, FACT_TIMEOUT_S)
        return row

    async def update_pool(self, update: PoolUpdate) -> PoolRow:
        """Change what is named. Windows and budgets hold from the leader's next pass and the nodes' next heartbeat.

        Raises:
            NotFound, Invalid: there is no such pool, or a setting is not possible.
        """
        before = await self._pool(update.name)
        copies = None
        if update.copy_pools is not None:
            copies = await self._default_copies(before.type, update.copy_pools)
        window = None if update.window is None else update.window.strip()
        await self._checked(_pool_with(before, update, copies, window))
        row, revision = await change_row(
            self._core,
            keys.named(keys.POOL, update.name),
            PoolRow,
            lambda row: _pool_with(row, update, copies, window),
            f"pool {update.name!r}",
        )
        await self._core.caught_up(revision, FACT_TIMEOUT_S)
        return row

    async def _checked(self, row: PoolRow) -> PoolRow:
        if row.type == "primary" and row.window:
            raise Invalid("only copy pools have a window: primary pools are written and rebuilt at any time")
        check_window(row.window, row.window_s)
        if row.budget_bytes_s and row.budget_bytes_s < BUDGET_MIN_BYTES_S:
            raise Invalid(f"a bandwidth budget is at least {BUDGET_MIN_BYTES_S} bytes a second, or 0 for none")
        _check_text(row.description, "description")
        return row

    async def _default_copies(self, pool_type: PoolType, names: Sequence[str]) -> list[int]:
        if names and pool_type == "copy":
            raise Invalid("a copy pool has no copy pools of its own")
        return await self._copy_pools(names)

    async def _copy_pools(self, names: Sequence[str]) -> list[int]:
        if len(names) > COPY_POOLS_MAX or len(set(names)) != len(names):
            raise Invalid(f"at most {COPY_POOLS_MAX} different copy pools can be named")
        return [(await self._pool(check_name(name, "pool name"), "copy")).id for name in names]

    async def _pool(self, name: str, pool_type: PoolType | None = None) -> PoolRow:
        kv = await self._core.etcd.get(keys.named(keys.POOL, name))
        if kv is None:
            raise NotFound(f"there is no pool {name!r}")
        row = rows.decode(kv.value, PoolRow)
        if pool_type is not None and row.type != pool_type:
            raise Invalid(f"the pool {name!r} is a {row.type} pool, not a {pool_type} pool")
        return row

    # -- namespaces --------------------------------------------------------------------------------
    async def create_namespace(self, spec: NamespaceSpec) -> NamespaceInfo:
        """Make a namespace, whose class is made with it; the same one again is recognised.

        Raises:
            Conflict: there is one of this name with another policy.
            NotFound, Invalid: a pool is not there, or not of the type that it is used as.
        """
        etcd = self._core.etcd
        key = keys.named(keys.NAMESPACE, check_name(spec.name, "namespace name"))
        primary = await self._pool(spec.primary_pool, "primary")
        if spec.copy_pools is None:
            copies = primary.copy_pools
        else:
            copies = await self._copy_pools(spec.copy_pools)
        wanted = await self._class(ClassRow(FORMAT, 0, primary.id, copies, spec.ack, spec.on_copy_failure))
        _check_quota(spec.quota_bytes)
        kv = await etcd.get(key)
        if kv is not None:
            row = rows.decode(kv.value, NamespaceRow)
        else:
            namespace_id = (await take_ids(etcd, "namespace"))[0]
            made = NamespaceRow(FORMAT, namespace_id, wanted.id, quota_bytes=spec.quota_bytes)
            row, kv = await ensure_row(etcd, key, made)
        if row.class_id != wanted.id or row.quota_bytes != spec.quota_bytes or row.state != "live":
            raise Conflict(f"there is a namespace {spec.name!r} with another policy: `namespace update` changes it")
        await self._core.caught_up(kv.mod_revision, FACT_TIMEOUT_S)
        return self.namespace_info(spec.name, row)

    async def update_namespace(self, update: NamespaceUpdate) -> NamespaceRow:
        """Change the policy of new extents, and the quota. What is stored stays where it is: see `rewriting`.

        Raises:
            NotFound, Invalid: there is no such namespace, or the policy is not possible.
        """
        if update.quota_bytes is not None:
            _check_quota(update.quota_bytes)
        key = keys.named(keys.NAMESPACE, update.name)
        kv = await self._core.etcd.get(key)
        if kv is None:
            raise NotFound(f"there is no namespace {update.name!r}")
        class_id = rows.decode(kv.value, NamespaceRow).class_id
        wanted = (await self._changed_class(class_id, update)).id

        def changed(row: NamespaceRow) -> NamespaceRow | None:
            if row.class_id != class_id:
                raise Conflict(f"the policy of namespace {update.name!r} was changed by somebody else: look again")
            quota = row.quota_bytes if update.quota_bytes is None else update.quota_bytes
            after = replace(row, quota_bytes=quota)
            if wanted != class_id:
                past = dict.fromkeys((*row.past_classes, class_id))
                past.pop(wanted, None)
                after = replace(after, class_id=wanted, past_classes=list(past), class_since_ms=self._core.now_ms())
            return None if after == row else after

        row, revision = await change_row(self._core, key, NamespaceRow, changed, f"namespace {update.name!r}")
        await self._core.caught_up(revision, FACT_TIMEOUT_S)
        return row

    async def _changed_class(self, class_id: int, update: NamespaceUpdate) -> ClassRow:
        await self._core.wait_for(lambda view: class_id in view.classes, FACT_TIMEOUT_S)
        before = self._core.view.classes[class_id].row
        primary, copies = before.primary_pool, before.copy_pools
        if update.primary_pool is not None:
            primary = (await self._pool(update.primary_pool, "primary")).id
        if update.copy_pools is not None:
            copies = await self._copy_pools(update.copy_pools)
        ack = update.ack or before.ack
        kept = before.on_copy_failure if ack == "copy" else "continue"
        after = replace(
            before,
            id=0,
            primary_pool=primary,
            copy_pools=copies,
            ack=ack,
            on_copy_failure=update.on_copy_failure or kept,
        )
        return await self._class(after)

    async def _class(self, wanted: ClassRow) -> ClassRow:
        if wanted.ack == "copy" and not wanted.copy_pools:
            raise Invalid("the ack rule `copy` needs a copy pool")
        if wanted.ack != "copy" and wanted.on_copy_failure != "continue":
            raise Invalid("`on_copy_failure` goes with the ack rule `copy`: no write waits for a copy without it")
        row, revision = await ensure_class(self._core.etcd, wanted)
        await self._core.caught_up(revision, FACT_TIMEOUT_S)
        return row

    async def set_class(self, extent: int, before: int, after: int, leader: LeaderGuard) -> bool:
        """Give a sealed extent another class; False when it is open, or of another class than `before`.

        Raises:
            NotLeader: the term is over.
        """

        def decide(seen: Seen) -> Change[bool]:
            if seen.row.open or seen.row.class_id != before:
                return Change(False)
            return Change(True, replace(seen.row, class_id=after))

        return await self._extents.rows.change(extent, decide, [leader_guard(leader)])

    def namespace_info(self, name: str, row: NamespaceRow) -> NamespaceInfo:
        """The namespace as people see it; its class and pools are in the view."""
        view = self._core.view
        known = view.classes[row.class_id].row

        def pool_name(pool: int) -> str:
            entry = view.pools_by_id.get(pool)
            return str(pool) if entry is None else entry.name

        return NamespaceInfo(
            name=name,
            id=row.id,
            primary_pool=pool_name(known.primary_pool),
            copy_pools=[pool_name(pool) for pool in known.copy_pools],
            ack=known.ack,
            on_copy_failure=known.on_copy_failure,
            quota_bytes=row.quota_bytes,
        )

    # -- volumes -----------------------------------------------------------------------------------
    async def define_volume(self, spec: VolumeSpec) -> VolumeRow:
        """Announce a volume: the node that mounts this name finds pool, access and limit as they are set here.

        Raises:
            Conflict: there is a volume of this name.
            NotFound, Invalid: the pool or node is not there, or a setting is not possible.
        """
        pool = await self._pool(check_name(spec.pool, "pool name"))
        node = 0
        if spec.node:
            entry = self._core.view.nodes.get(spec.node)
            if entry is None:
                raise NotFound(f"there is no node {spec.node!r}")
            node = entry.row.id
        _check_access(spec.access, pool.type)
        _check_limit(spec.limit_bytes)
        key = keys.named(keys.VOLUME, check_name(spec.name, "volume name"))
        volume_id = (await take_ids(self._core.etcd, "volume"))[0]
        wanted = VolumeRow(
            FORMAT,
            volume_id,
            b"",
            pool.id,
            node,
            0,
            spec.access,
            _check_text(spec.location_text, "location text"),
            limit_bytes=spec.limit_bytes,
        )
        row, kv = await ensure_row(self._core.etcd, key, wanted)
        if replace(row, id=volume_id) != wanted:
            raise Conflict(f"there is a volume {spec.name!r}: change it with `volume update`")
        await self._core.caught_up(kv.mod_revision, FACT_TIMEOUT_S)
        return row

    async def update_volume(self, update: VolumeUpdate) -> VolumeRow:
        """Change what is named. Without writing allowed, nothing more is committed there when this returns.

        Raises:
            NotFound, Invalid: there is no such volume, or a setting is not possible.
        """
        if update.limit_bytes is not None:
            _check_limit(update.limit_bytes)
        if update.location_text is not None:
            _check_text(update.location_text, "location text")

        def changed(row: VolumeRow) -> VolumeRow | None:
            after = row if update.access is None else self._with_access(row, update.access, "")
            text = row.location_text if update.location_text is None else update.location_text
            limit = row.limit_bytes if update.limit_bytes is None else update.limit_bytes
            after = replace(after, location_text=text, limit_bytes=limit)
            return None if after == row else after

        key = keys.named(keys.VOLUME, update.name)
        row, revision = await change_row(self._core, key, VolumeRow, changed, f"volume {update.name!r}")
        await self._core.caught_up(revision, FACT_TIMEOUT_S)
        if update.access in _NOT_WRITTEN:
            await self._seal_all(row.id)
        return row

    async def set_volume_access(
        self, name: str, access: AccessMode, reason: str = "", leader: LeaderGuard | None = None
    ) -> VolumeRow:
        """Set an access mode. When it returns, nothing more is committed on a volume that may not be written.

        With a `reason` a program sets it: only a volume that is `readwrite` is changed then.
        New extents compare the volume's row; the open ones are sealed here.
        """

        def changed(row: VolumeRow) -> VolumeRow | None:
            if reason and row.access != "readwrite":
                return None
            after = self._with_access(row, access, reason)
            return None if after == row else after

        guards = [leader_guard(leader)] if leader is not None else []
        key = keys.named(keys.VOLUME, name)
        row, revision = await change_row(self._core, key, VolumeRow, changed, f"volume {name!r}", guards)
        if row.access in _NOT_WRITTEN:
            await self._core.caught_up(revision, FACT_TIMEOUT_S)
            await self._seal_all(row.id)
        return row

    def _with_access(self, row: VolumeRow, access: AccessMode, reason: str) -> VolumeRow:
        pool = self._core.view.pools_by_id.get(row.pool)
        if pool is not None:
            _check_access(access, pool.row.type)
        if row.access == access:
            return replace(row, access_reason=reason)
        return replace(row, access=access, access_reason=reason, access_since_ms=self._core.now_ms())

    async def _seal_all(self, volume: int) -> None:
        """Seal every extent that is written to this volume, as the view knows them."""
        try:
            async with TaskGroup() as group:
                for extent in list(self._core.view.open_by_volume[volume]):
                    group.create_task(self._seal(extent))
        except ExceptionGroup as failures:
            raise_first(failures)

    async def _seal(self, extent: int) -> None:
        now_ms = self._core.now_ms()

        def decide(seen: Seen) -> Change[None]:
            if seen.open is None:
                return Change(None)
            return Change(None, locations.sealed(seen.row, seen.open, now_ms), seals=True)

        await self._extents.rows.change(extent, decide, [])


def _pool_with(row: PoolRow, update: PoolUpdate, copies: list[int] | None, window: str | None) -> PoolRow:
    """The pool's row with what the update names."""
    window_s = row.window_s if update.window_s is None else update.window_s
    return replace(
        row,
        copy_pools=row.copy_pools if copies is None else copies,
        spread=update.spread or row.spread,
        window=row.window if window is None else window,
        window_s=0 if window == "" else window_s,
        budget_bytes_s=row.budget_bytes_s if update.budget_bytes_s is None else update.budget_bytes_s,
        description=row.description if update.description is None else update.description,
    )


def _check_access(access: AccessMode, pool_type: PoolType) -> None:
    if access == "offsite" and pool_type == "primary":
        raise Invalid("only a volume of a copy pool can be offsite: primary volumes are read")


def _check_limit(limit_bytes: int) -> None:
    if limit_bytes < 0:
        raise Invalid("a size limit is a number of bytes, or 0 for none")


def _check_quota(quota_bytes: int) -> None:
    if quota_bytes < 0:
        raise Invalid("a quota is a number of bytes, or 0 for none")


def _check_text(text: str, what: str) -> str:
    if len(text) > TEXT_MAX or not text.isprintable():
        raise Invalid(f"a {what} has at most {TEXT_MAX} printable characters")
    return text
