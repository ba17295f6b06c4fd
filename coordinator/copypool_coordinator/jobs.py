"""Process rows: made with the intents they need, kept up by the leader, cancelled by anybody who may.

A process and what it wants of volumes change in one transaction: there is no intent without a process that wants it,
and none is left behind by one that has ended.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from copypool.protocol.api import AccessMode
from copypool.protocol.errors import Conflict, Invalid, NotFound, OutcomeUnknown, Overloaded
from copypool.protocol.processes import VolumeIntent
from copypool_coordinator import keys, locations, rows
from copypool_coordinator.changing import Change, Seen
from copypool_coordinator.core import ROUNDS_MAX, Core, LeaderGuard, check_guards, leader_guard
from copypool_coordinator.etcd import Compare, Op, create_equals, delete, get, mod_equals, put
from copypool_coordinator.extents import Extents
from copypool_coordinator.rows import ProcessRow, VolumeRow
from copypool_coordinator.view import Versioned

FACT_TIMEOUT_S = 5.0
VOLUMES_MAX = 100  #: of one process: they change in one transaction
#: Verbs whose end gives volumes back.
EMPTYING = ("move", "drain", "delete")


class Jobs:
    """Processes of one catalog."""

    def __init__(self, core: Core, extents: Extents) -> None:
        self._core = core
        self._extents = extents

    def new_id(self, now_ms: int) -> str:
        """An id that sorts by time."""
        return f"{now_ms:011x}{os.urandom(2).hex()}"

    async def start(
        self, process: str, row: ProcessRow, *, access: AccessMode | None = None, intent: VolumeIntent | None = None
    ) -> ProcessRow:
        """Make the process, and with it set access mode or intent of its volumes. Safe to repeat with the same id.

        When it returns, this coordinator's view shows it, and volumes that may not be written any more have no open
        extent of before.

        Raises:
            Conflict: a volume has another intent, or changed meanwhile too often.
            NotFound: a volume is gone.
            Invalid: too many volumes for one transaction.
        """
        if len(row.volumes) > VOLUMES_MAX:
            raise Invalid(f"a process is about at most {VOLUMES_MAX} volumes: take them one by one")
        key = keys.named(keys.PROCESS, process)
        changes = access is not None or intent is not None
        volumes = [self._volume(volume) for volume in row.volumes] if changes else []
        for _ in range(ROUNDS_MAX):
            for volume in volumes:
                if intent and volume.row.intent not in ("", intent) and self._is_emptied(volume.row.id):
                    raise Conflict(f"volume {volume.name!r} is already being emptied otherwise ({volume.row.intent})")
            made = replace(row, access_before=[volume.row.access for volume in volumes] if access is not None else [])
            compares = [create_equals(key, 0)]
            ops: list[Op] = [put(key, rows.encode(made))]
            for volume in volumes:
                after = self._with(
                    volume.row,
                    volume.row.access if access is None else access,
                    volume.row.intent if intent is None else intent,
                )
                compares.append(mod_equals(keys.named(keys.VOLUME, volume.name), volume.mod_revision))
                if after != volume.row:
                    ops.append(put(keys.named(keys.VOLUME, volume.name), rows.encode(after)))
            reads = [get(key), *(get(keys.named(keys.VOLUME, volume.name)) for volume in volumes)]
            try:
                answer = await self._core.etcd.txn(compares, ops, reads)
                if answer.succeeded:
                    await self._shown(answer.revision, row, access, intent)
                    return made
            except OutcomeUnknown:
                answer = await self._core.etcd.txn([], reads)
            if answer.responses[0]:
                await self._shown(answer.responses[0][0].mod_revision, row, access, intent)
                return rows.decode(answer.responses[0][0].value, ProcessRow)
            for index, found in enumerate(answer.responses[1:]):
                if not found:
                    raise NotFound(f"there is no volume {volumes[index].name!r} any more")
                volumes[index] = Versioned(
                    rows.decode(found[0].value, VolumeRow),
                    found[0].mod_revision,
                    found[0].create_revision,
                    volumes[index].name,
                )
        raise Overloaded("the volumes change too fast: repeat")

    def _with(self, row: VolumeRow, access: AccessMode, intent: VolumeIntent) -> VolumeRow:
        since_ms = row.access_since_ms if access == row.access else self._core.now_ms()
        return replace(row, access=access, access_since_ms=since_ms, intent=intent)

    def _is_emptied(self, volume: int) -> bool:
        """Whether a process empties it now; one that has ended may have left its intent."""
        return any(
            entry.row.state == "running" and entry.row.verb in EMPTYING and volume in entry.row.volumes
            for entry in self._core.view.processes.values()
        )

    async def _shown(
        self, revision: int, row: ProcessRow, access: AccessMode | None, intent: VolumeIntent | None
    ) -> None:
        await self._core.caught_up(revision, FACT_TIMEOUT_S)
        if intent or (access is not None and access != "readwrite"):
            for volume in row.volumes:
                for extent in list(self._core.view.open_by_volume.get(volume, ())):
                    await self._end(extent)

    async def _end(self, extent: int) -> None:
        now_ms = self._core.now_ms()

        def decide(seen: Seen) -> Change[None]:
            if seen.open is None:
                return Change(None)
            return Change(None, locations.sealed(seen.row, seen.open, now_ms), seals=True)

        await self._extents.rows.change(extent, decide, [])

    def _volume(self, volume: int) -> Versioned[VolumeRow]:
        entry = self._core.view.volumes_by_id.get(volume)
        if entry is None:
            raise NotFound(f"there is no volume {volume}")
        return entry

    async def cancel(self, process: str, who: str) -> ProcessRow:
        """Ask the leader to end a process. One that has ended stays as it is. Safe to repeat.

        Raises:
            NotFound: there is none.
        """

        def cancelled(row: ProcessRow) -> ProcessRow | None:
            return None if row.state != "running" or row.cancelled_by else replace(row, cancelled_by=who)

        return await self._change(keys.named(keys.PROCESS, process), cancelled, f"process {process!r}")

    async def _change(self, key: bytes, changed: Callable[[ProcessRow], ProcessRow | None], what: str) -> ProcessRow:
        for _ in range(ROUNDS_MAX):
            kv = await self._core.etcd.get(key)
            if kv is None:
                raise NotFound(f"there is no {what}")
            before = rows.decode(kv.value, ProcessRow)
            row = changed(before)
            if row is None:
                return before
            try:
                answer = await self._core.etcd.txn([mod_equals(key, kv.mod_revision)], [put(key, rows.encode(row))])
            except OutcomeUnknown:
                continue
            if answer.succeeded:
                await self._core.caught_up(answer.revision, FACT_TIMEOUT_S)
                return row
        raise Overloaded(f"{what} changes too fast: repeat")

    async def write(
        self,
        process: str,
        mod_revision: int,
        row: ProcessRow,
        leader: LeaderGuard,
        give_back: Sequence[int] = (),
        remove_volume: int = 0,
    ) -> bool:
        """Write a process on from the row that it was planned from; False when that has changed: nothing is done then.

        Volumes to give back lose their intent if the process had set it (a restore sets none: one that is there is of a
        process that still empties the volume), and get the access mode that they had if the process had changed that.
        A volume is removed only if nothing is on it.

        Raises:
            NotLeader: the term is over.
            Conflict: an extent is still on the volume that is to be removed.
        """
        guard = leader_guard(leader)
        key = keys.named(keys.PROCESS, process)
        compares: list[Compare] = [guard.compare, mod_equals(key, mod_revision)]
        ops: list[Op] = [put(key, rows.encode(row))]
        before = dict(zip(row.volumes, row.access_before, strict=False))
        for volume in give_back:
            entry = self._core.view.volumes_by_id.get(volume)
            if entry is None:
                continue
            volume_key = keys.named(keys.VOLUME, entry.name)
            access = before.get(volume, entry.row.access) if entry.row.access == "destroyed" else entry.row.access
            compares.append(mod_equals(volume_key, entry.mod_revision))
            intent: VolumeIntent = "" if row.verb in EMPTYING else entry.row.intent
            ops.append(put(volume_key, rows.encode(self._with(entry.row, access, intent))))
        gone = self._core.view.volumes_by_id.get(remove_volume)
        if gone is not None:
            if self._core.view.extents_by_volume.get(remove_volume):
                raise Conflict(f"volume {gone.name!r} still holds extents")
            volume_key = keys.named(keys.VOLUME, gone.name)
            compares.append(mod_equals(volume_key, gone.mod_revision))
            ops.append(delete(volume_key))
        answer = await self._core.etcd.txn(compares, ops, [get(guard.compare.key)])
        if not answer.succeeded:
            check_guards([guard], answer.responses)
        return answer.succeeded

    async def release(self, volumes: Sequence[int]) -> list[str]:
        """End the `drain` intent of volumes: they take bytes again. The names of those that had one.

        Raises:
            Conflict: a process still empties one of them: cancel that.
        """
        wanted = set(volumes)
        for name, process in self._core.view.processes.items():
            row = process.row
            if row.state == "running" and row.verb in EMPTYING and wanted & set(row.volumes):
                raise Conflict(f"process {name} empties it: cancel that first")
        released = []
        for volume in volumes:
            entry = self._volume(volume)
            if entry.row.intent != "drain":
                continue
            key = keys.named(keys.VOLUME, entry.name)
            answer = await self._core.etcd.txn(
                [mod_equals(key, entry.mod_revision)], [put(key, rows.encode(replace(entry.row, intent="")))]
            )
            if not answer.succeeded:
                raise Overloaded(f"volume {entry.name!r} changes just now: repeat")
            await self._core.caught_up(answer.revision, FACT_TIMEOUT_S)
            released.append(entry.name)
        return released

    async def trim(self, processes: Sequence[str], leader: LeaderGuard) -> None:
        """Delete rows of ended processes. Raises `NotLeader` when the term is over."""
        guard = leader_guard(leader)
        ops = [delete(keys.named(keys.PROCESS, process)) for process in processes]
        answer = await self._core.etcd.txn([guard.compare], ops, [get(guard.compare.key)])
        if not answer.succeeded:
            check_guards([guard], answer.responses)
