"""Brings one volume up under a session: mount, compare with the catalog, seal what an earlier epoch had open.

The order is what makes a restart safe (A1): the session is registered before (so the old epoch can commit nothing any
more), then every own open extent is sealed in the catalog, cut to the sealed length and given its footer, and only
then does the volume take writes. Reads are served as soon as the lengths that the catalog claims are known. Files
without a row are counted and kept. A volume that has seen a newer catalog than this one is in safe mode: what the
rows claim is served, and nothing is written, cut, dropped or reported. Every step is safe to repeat, and a volume that
cannot be brought up now (a hung disk) is tried again without holding up the others.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from copypool.protocol.api import SegmentRef
from copypool.protocol.errors import CopypoolError, Forbidden, Unavailable
from copypool.protocol.internal import (
    Done,
    InventoryReport,
    MountReply,
    MountRequest,
    OwnExtent,
    OwnExtentsReply,
    OwnExtentsRequest,
    SealReply,
    SealRequest,
)
from copypool_node.evidence import forgotten_groups
from copypool_node.holdings import Holding, Holdings
from copypool_node.label import SafeMode

if TYPE_CHECKING:
    from copypool_node.sealing import Sealer
    from copypool_node.session import Session
    from copypool_node.volumes import MountedVolume

log = logging.getLogger(__name__)

CALL_S = 30.0
RETRY_S = 2.0
INVENTORY_MAX = 1000  #: missing or short extents in one report


class VolumeKeeper:
    """Bring-up of volumes; one per node."""

    def __init__(self, session: Session, holdings: Holdings, sealer: Sealer) -> None:
        self._session = session
        self._holdings = holdings
        self._sealer = sealer

    async def bring_up(self, volume: MountedVolume) -> None:
        """Until the volume takes writes under the current session, or the session ends. Errors are tried again."""
        epoch = self._session.epoch
        while self._session.is_current(epoch):
            try:
                await self._bring_up(volume, epoch)
            except CopypoolError as exc:
                self._session.refuse_volume(volume.name, "mounted", exc.message)
            else:
                self._session.unmounted.pop(volume.name, None)
                return
            try:
                async with asyncio.timeout(RETRY_S):
                    await self._session.ended.wait()
            except TimeoutError:
                continue

    async def _bring_up(self, volume: MountedVolume, epoch: int) -> None:
        await self._mount(volume, epoch)
        rows, revision = await self._rows(volume, epoch)
        self._adopt(volume, rows)
        evidence = await _newer_than_catalog(volume, rows)
        if evidence:
            volume.distrust_catalog(evidence)
        if volume.safe_mode:
            return
        for row in rows:
            file = volume.disk.get(row.extent, row.generation)
            if (row.writer and not row.sealed) or (row.sealed and file is not None and not file.sealed):
                await self._seal_old(volume, row, epoch)
        await self._compare(volume, rows, revision, epoch)
        if self._session.is_current(epoch):
            volume.ready_epoch = epoch
            log.info(
                "volume %s takes writes: %d extents, %d unknown",
                volume.name,
                len(rows),
                volume.unknown_extents,
                extra={"volume": volume.name},
            )

    async def _mount(self, volume: MountedVolume, epoch: int) -> None:
        await volume.disk.claim()
        label = volume.disk.label
        reply = await self._session.link.call(
            "mount",
            MountRequest(
                self._session.node_id,
                epoch,
                volume.name,
                label.uuid,
                label.pool,
                label.pool_type,
                label.epoch,
                label.nonce,
            ),
            MountReply,
            deadline_s=CALL_S,
        )
        if 0 <= reply.epoch < label.epoch:
            volume.distrust_catalog(f"it was mounted {label.epoch - 1} times, the catalog knows of {reply.epoch}")
        else:
            try:
                await volume.disk.mounted(reply.volume, reply.catalog_revision)
            except SafeMode as exc:
                volume.distrust_catalog(exc.message)
        volume.id = reply.volume
        volume.access = reply.access

    async def _rows(self, volume: MountedVolume, epoch: int) -> tuple[list[OwnExtent], int]:
        """What the catalog says this volume holds, and the oldest revision of the pages."""
        rows: list[OwnExtent] = []
        after, revision = -1, 0
        while True:
            page = await self._session.link.call(
                "extents",
                OwnExtentsRequest(self._session.node_id, epoch, volume.id, after),
                OwnExtentsReply,
                deadline_s=CALL_S,
            )
            rows += page.extents
            revision = revision or page.revision
            if page.next_after < 0:
                return rows, revision
            if page.next_after <= after:
                raise Unavailable("the pages of /n/extents do not advance")
            after = page.next_after

    def _adopt(self, volume: MountedVolume, rows: list[OwnExtent]) -> None:
        """Serve what the catalog claims, as far as the files reach."""
        for row in rows:
            file = volume.disk.get(row.extent, row.generation)
            if file is None:
                continue  # one that is to go is served as long as it is there: a repair may need it
            known = self._holdings.find(row.extent, volume, row.generation)
            if known is None:
                known = self._holdings.add(Holding(volume, file, row.extent, row.generation, 0))
            known.damaged = row.state == "damaged"
            known.length = max(known.length, min(row.length, file.size))
            known.sealed = row.sealed

    async def _seal_old(self, volume: MountedVolume, row: OwnExtent, epoch: int) -> None:
        """End an extent that an earlier epoch of this node had open, or finish one that was sealed but never cut."""
        try:
            reply = await self._session.link.call(
                "seal", SealRequest(self._session.node_id, epoch, row.extent), SealReply, deadline_s=CALL_S
            )
        except Forbidden:
            return  # a copy of another node's extent, still to be finished by a pull
        holding = self._holdings.find(row.extent, volume, row.generation)
        if holding is not None and not await self._sealer.write_footer(
            holding, reply.length, reply.group, reply.refusals
        ):
            log.error(
                "extent %d could not be cut; it is served up to its committed length",
                row.extent,
                extra={"extent": row.extent},
            )

    async def _compare(self, volume: MountedVolume, rows: list[OwnExtent], revision: int, epoch: int) -> None:
        """Report what is missing or short; count what no row knows. Nothing is deleted."""
        claimed = {(row.extent, row.generation): row for row in rows}
        found = {(one.extent, one.generation): one.size for one in await volume.disk.inventory()}
        volume.unknown = found.keys() - claimed.keys()
        volume.unknown_extents = len(volume.unknown) + volume.disk.strangers_count
        missing: list[int] = []
        short: list[SegmentRef] = []
        for key, row in claimed.items():
            if row.state not in ("good", "damaged"):
                continue
            size = found.get(key)
            if size is None:
                missing.append(row.extent)
            elif size < row.length:
                short.append(SegmentRef(row.extent, row.generation, size))
        for at in range(0, max(len(missing), len(short)), INVENTORY_MAX):
            report = InventoryReport(
                self._session.node_id,
                epoch,
                volume.id,
                revision,
                missing[at : at + INVENTORY_MAX],
                short[at : at + INVENTORY_MAX],
            )
            log.error(
                "volume %s: %d extents missing, %d short",
                volume.name,
                len(report.missing),
                len(report.short),
                extra={"volume": volume.name},
            )
            await self._session.link.call("inventory", report, Done, deadline_s=CALL_S)


async def _newer_than_catalog(volume: MountedVolume, rows: list[OwnExtent]) -> str:
    """What in the files shows that the catalog is older than the volume, whatever its revision says; "" for nothing.

    A footer is written only after the catalog has sealed the extent; of groups see `evidence`.
    """
    for row in rows:
        file = volume.disk.get(row.extent, row.generation)
        if not row.writer or row.sealed or file is None:
            continue
        if file.sealed:
            return f"extent {row.extent} is sealed here and open in the catalog"
        groups = await forgotten_groups(file, row.length)
        if groups:
            return f"extent {row.extent} has {groups} groups that the catalog does not know"
    return ""
