"""A mounted volume at run time: what the catalog says of it, how well its disk is, who appends to it.

The disk's own side (label, files, threads) is `volume.Volume`; this adds the node's side.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from copypool.protocol.api import AccessMode
from copypool.protocol.errors import CatalogDown, Conflict, CopypoolError, OutcomeUnknown, Overloaded, Unavailable
from copypool.protocol.internal import (
    EXTENT_HEADER_BYTES,
    OPEN_EXTENTS_MAX,
    OpenExtentReply,
    OpenExtentRequest,
    VolumeDirective,
    VolumeReport,
)
from copypool_node.config import Limits, VolumeConfig
from copypool_node.format import ExtentHeader, encode_extent_header
from copypool_node.group import ExtentLog
from copypool_node.holdings import Holding, Holdings
from copypool_node.link import CATALOG_PATIENCE_S
from copypool_node.open_extent import OpenExtent
from copypool_node.pacing import Pace
from copypool_node.space import Purpose
from copypool_node.twin_gate import TwinGate
from copypool_node.twin_link import TwinLink
from copypool_node.volume import Volume

if TYPE_CHECKING:
    from copypool_node.metrics import Metrics
    from copypool_node.sealing import Sealer
    from copypool_node.session import Session
    from copypool_node.streams import StreamPool
    from copypool_node.writer import Lane

log = logging.getLogger(__name__)

OPEN_S = 10.0  #: a new extent is made within this time, or its writers are told to go elsewhere


class MountedVolume:
    """One volume of this node while it is mounted."""

    def __init__(
        self,
        config: VolumeConfig,
        disk: Volume,
        limits: Limits,
        session: Session,
        holdings: Holdings,
        metrics: Metrics,
    ) -> None:
        self.config = config
        self.disk = disk
        self.name = config.name
        self.id = -1  #: the catalog's number, once mounted
        self.access: AccessMode = "readwrite"
        self.access_since_ms = 0  #: the newest change of it that was heard of
        self.ready_epoch = 0  #: session epoch under which the volume's own extents are sealed and cut: it takes writes
        self.unknown_extents = 0
        self.unknown: set[tuple[int, int]] = set()  #: (extent, generation) of files that had no row at the mount
        #: Why nothing may be written, cut or deleted here; reads go on. "": no reason.
        self.safe_mode = ""
        self._revision_noted_s = float("-inf")
        self.open_extents = 0
        self.lanes: dict[int, Lane] = {}  #: by class
        self.side_lanes: dict[int, Lane] = {}  #: by class; of those whose batches fill a lane
        self.streams: dict[int, StreamPool] = {}
        self._gates: dict[int, TwinGate] = {}  #: by class; of those that want twins
        self.limits = limits
        self._session = session
        self._holdings = holdings
        self.metrics = metrics
        self._probing: asyncio.Task[None] | None = None
        self.pull_pace = Pace(0)  #: this volume's share of its pool's bandwidth budget

    # -- health -------------------------------------------------------------------------------
    @property
    def probe_age_s(self) -> float:
        """Age of the last good write + fsync."""
        return self.disk.probe_age_s()

    @property
    def healthy(self) -> bool:
        """Its disk answered lately. One that refused a write has answered: it is read on, as a `readonly` volume."""
        return bool(self.disk.readonly_reason) or self.probe_age_s <= self.limits.probe_max_age_s

    def probe(self) -> None:
        """Start a write + fsync unless one is under way. A hung disk holds one thread and one task, not more."""
        if self._probing is None or self._probing.done():
            self._probing = asyncio.create_task(self._probe())

    async def _probe(self) -> None:
        try:
            await self.disk.probe()
            await self._note_revision()
        except CopypoolError as exc:
            log.error("volume %s: the probe failed: %s", self.name, exc, extra={"volume": self.name})

    async def _note_revision(self) -> None:
        """Keep the label's catalog revision young, so that a catalog that went back is recognised."""
        if self.safe_mode or self.id < 0 or time.monotonic() - self._revision_noted_s < self.limits.label_revision_s:
            return
        await self.disk.raise_revision(self._session.catalog_revision)
        self._revision_noted_s = time.monotonic()

    def refusal(self) -> str:
        """Why the volume takes no writes now; empty: it does."""
        if self._session.stopping:
            return "the node is stopping"
        if self.safe_mode:
            return f"safe mode: {self.safe_mode}"
        if not self._session.alive or self.ready_epoch != self._session.epoch:
            return "the node has no session with the coordinators yet"
        if self.access != "readwrite":
            return f"volume {self.name} is {self.access}"
        if self.disk.readonly_reason:
            return f"volume {self.name} failed a write: {self.disk.readonly_reason}"
        if self.probe_age_s > self.limits.probe_max_age_s:
            return f"the disk of volume {self.name} has not answered for {self.probe_age_s:.0f} s"
        return ""

    def distrust_catalog(self, evidence: str) -> None:
        """The catalog is older than what this volume has seen: from now on nothing is written, cut or deleted here.

        Until the process starts anew: then the volume is compared with the catalog once more.
        """
        if not self.safe_mode:
            self.safe_mode = (
                f"volume {self.name}: {evidence}: the catalog was restored from an older state; "
                "bring the newer one back, or rebuild it from the volumes"
            )
            log.error("safe mode, nothing is written, cut or deleted: %s", self.safe_mode)

    def check_catalog(self) -> None:
        """Raise `CatalogDown` while etcd is away: nothing could be committed, so nothing is taken in."""
        away = self._session.link.catalog_away
        if away:
            raise CatalogDown(f"nothing was changed, etcd is away: {away}")

    async def admit(self, size_bytes: int, purpose: Purpose) -> None:
        """Raise `CatalogDown`, `Unavailable` or `NoSpace` unless this many bytes may be written now."""
        self.check_catalog()
        reason = self.refusal()
        if reason:
            raise Unavailable(f"{reason}: take another write lease")
        await self.disk.admit(size_bytes, purpose)

    def report(self) -> VolumeReport:
        """Its line in a heartbeat."""
        return VolumeReport(
            volume=self.id,
            free_bytes=self.disk.free_bytes(),
            total_bytes=self.disk.total_bytes(),
            open_extents=self.open_extents,
            queued_bytes=sum(lane.queued_bytes for lane in self.all_lanes()),
            probe_age_ms=int(self.probe_age_s * 1000),
            read_only=bool(self.disk.readonly_reason or self.safe_mode),
            safe_mode=bool(self.safe_mode),
            unknown_extents=self.unknown_extents,
            extents=self.disk.extents,
            stored_bytes=self.disk.stored_bytes,
            access_since_ms=self.access_since_ms,
            read_only_reason=self.disk.readonly_reason,
        )

    def obey(self, directive: VolumeDirective) -> None:
        """Take in what the catalog says of this volume.

        A change to `readwrite` is an operator's word that the disk is well: a write error from before is forgotten. The
        next one sets the volume `readonly` again. Coordinators may lag: only the newest word is heard.
        """
        self.pull_pace.set_rate(directive.pull_bytes_s)
        self.disk.set_limit(directive.limit_bytes)
        if directive.access_since_ms < self.access_since_ms:
            return
        news = directive.access_since_ms > self.access_since_ms
        self.access_since_ms = directive.access_since_ms
        if news and directive.access == "readwrite" and self.disk.readonly_reason:
            log.warning(
                "volume %s takes writes again after: %s",
                self.name,
                self.disk.readonly_reason,
                extra={"volume": self.name},
            )
            self.disk.forgive()
        if directive.access != self.access:
            log.warning(
                "volume %s is %s now (was %s)", self.name, directive.access, self.access, extra={"volume": self.name}
            )
            self.access = directive.access

    # -- open extents -------------------------------------------------------------------------
    async def open_extent(self, class_id: int) -> OpenExtent:
        """A new extent of this class: in the catalog first, then its file, header and name fsync'd.

        Raises `Overloaded` at the volume's limit of open extents, else what the coordinator or the disk says.
        """
        if self.open_extents >= OPEN_EXTENTS_MAX:
            raise Overloaded(f"volume {self.name} has {OPEN_EXTENTS_MAX} open extents: repeat later")
        self.open_extents += 1
        try:
            return await self._open_extent(class_id)
        except BaseException:
            self.open_extents -= 1
            raise

    async def _open_extent(self, class_id: int) -> OpenExtent:
        self.check_catalog()
        reason = self.refusal()
        if reason:
            raise Unavailable(f"{reason}: take another write lease")
        self.check_class(class_id, opening=True)
        session = self._session
        epoch = session.epoch
        seen_revision = max(session.catalog_revision, self.disk.label.revision)
        reply = await self._ask_for_extent(class_id, epoch)
        if reply.revision < seen_revision:
            self.distrust_catalog(f"it has seen revision {seen_revision}, an extent was opened at {reply.revision}")
            raise Unavailable(self.refusal())
        # Before the extent's file is there: a catalog that does not know this extent is older than its volume.
        session.saw_revision(reply.revision)
        await self.disk.raise_revision(reply.revision)
        header = ExtentHeader(session.cluster_id, reply.extent, reply.extent_class, epoch, session.clock.now_ms())
        try:
            file = await self.disk.create_extent(reply.extent, reply.generation, header)
        except Conflict as exc:
            self.distrust_catalog(f"extent {reply.extent} was given out once more; it is here already")
            raise Unavailable(self.refusal()) from exc
        holding = self._holdings.add(
            Holding(self, file, reply.extent, reply.generation, EXTENT_HEADER_BYTES, writing=True)
        )
        extent_log = ExtentLog(reply.extent, reply.generation, reply.revision, EXTENT_HEADER_BYTES)
        twin, gate = None, self._gate(class_id) if reply.extent_class.ack == "copy" else None
        if reply.twin is not None:
            head = encode_extent_header(header)
            twin = TwinLink(reply.twin, reply.extent, head, session, self.limits.twin_timeout_s)
        elif gate is not None:
            gate.failed(time.monotonic(), "no volume can hold a copy now", required=False)
        opened = OpenExtent(extent_log, holding, reply.extent_class, session, self.metrics, twin, gate)
        opened.epoch = epoch
        return opened

    async def _ask_for_extent(self, class_id: int, epoch: int) -> OpenExtentReply:
        session, gate = self._session, self._gates.get(class_id)
        avoid = [] if gate is None else gate.avoid(time.monotonic())
        try:
            return await session.link.call(
                "open",
                OpenExtentRequest(session.node_id, epoch, self.id, class_id, avoid),
                OpenExtentReply,
                deadline_s=OPEN_S,
                give_up=lambda: session.hopeless(epoch),
                catalog_patience_s=CATALOG_PATIENCE_S,
            )
        except OutcomeUnknown as exc:
            # An extent that nobody appends to holds nothing: for the writers that wait, nothing was stored.
            self.check_catalog()
            raise Unavailable(f"no extent could be opened: {exc.message}; take another write lease") from exc
        except Unavailable as exc:
            if "twin" in exc.details:
                self._gate(class_id).failed(time.monotonic(), exc.message, required=True)
            raise

    def _gate(self, class_id: int) -> TwinGate:
        return self._gates.setdefault(class_id, TwinGate())

    def check_class(self, class_id: int, *, opening: bool = False) -> None:
        """Raise `Unavailable` while a class that demands a copy of everything cannot have one from this volume.

        An open extent whose twin works takes groups all the same; with `opening` it is about another one.
        """
        gate = self._gates.get(class_id)
        refusal = "" if gate is None else gate.refusal(time.monotonic())
        lanes = [lane for lane in (self.lanes.get(class_id), self.side_lanes.get(class_id)) if lane is not None]
        if refusal and not opening and any(one.has_twin for lane in lanes for one in lane.extents()):
            return
        if refusal:
            raise Unavailable(f"{refusal}: nothing was stored; take another write lease")

    def all_lanes(self) -> list[Lane]:
        """The lanes of every class."""
        return [*self.lanes.values(), *self.side_lanes.values()]

    def may_open(self, class_id: int) -> bool:
        """Whether nothing is known that would refuse this class one more open extent."""
        gate = self._gates.get(class_id)
        refusal = self.refusal() or ("" if gate is None else gate.refusal(time.monotonic()))
        return not refusal and self.open_extents < OPEN_EXTENTS_MAX

    def extent_ended(self) -> None:
        """One of this volume's open extents was sealed or abandoned."""
        self.open_extents -= 1

    def end_extent(self, extent: int, reason: str, sealer: Sealer) -> bool:
        """Let go of an extent that somebody else has sealed; False when nothing here appends to it."""
        opened = [one for lane in self.all_lanes() for one in lane.extents()]
        opened += [one for pool in self.streams.values() for one in pool.extents()]
        for one in opened:
            if one.log.extent == extent:
                if not one.abandoned:
                    self.extent_ended()
                sealer.abandon(one, reason)
                return True
        return False

    async def close(self) -> None:
        """Release the lock. Nothing is under way any more."""
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)
        await self.disk.close()
