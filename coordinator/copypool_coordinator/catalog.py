"""`Catalog`: every read and write of etcd that the rest of the coordinator asks for, in one place.

The work is done in the modules beside it; here is what they offer together. It must not know HTTP, nodes'
addresses or policy. Unless a method says otherwise: when it returns, the change is committed by an etcd quorum;
it may be repeated, and being cancelled it may or may not have been applied; it raises `CatalogDown` when etcd does
not answer and nothing was changed, `OutcomeUnknown` when it may have been, and `Overloaded` when it lost too many
races in a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from copypool.protocol.api import AccessMode, ListEntry, LocationState, NamespaceInfo, NamespaceSpec, PoolType
from copypool.protocol.internal import (
    CommitReply,
    CommitRequest,
    InventoryReport,
    JoinRequest,
    MountRequest,
    OpenExtentReply,
    OpenExtentRequest,
    OwnExtentsReply,
    OwnExtentsRequest,
    ProgressReport,
    PullGivenUp,
    RegisterRequest,
    SealReply,
    VerifyReport,
)
from copypool.protocol.policies import PoolSpec
from copypool_coordinator.absences import Absences
from copypool_coordinator.admin import Admin
from copypool_coordinator.clock import ClusterClock
from copypool_coordinator.committing import Commits
from copypool_coordinator.core import Core, LeaderGuard
from copypool_coordinator.counters import Counters
from copypool_coordinator.directory import Directory, FileFacts, FileKey
from copypool_coordinator.drafting import CheckCapability
from copypool_coordinator.etcd import Etcd
from copypool_coordinator.events import EventLog
from copypool_coordinator.extents import ChooseTwin, Extents, Opened
from copypool_coordinator.jobs import Jobs
from copypool_coordinator.placed import Placed, VerifyOutcome
from copypool_coordinator.policies import Policies
from copypool_coordinator.policy import Policy
from copypool_coordinator.rows import EventRow, FileRow, LeaderRow, Location, NodeRow, PoolRow, TokenRow, VolumeRow
from copypool_coordinator.sessions import Registered, Sessions
from copypool_coordinator.stopping import Turns
from copypool_coordinator.sweeping import Sweeping
from copypool_coordinator.view import ClusterView

__all__ = ["Catalog", "CatalogSettings", "FileFacts", "FileKey", "LeaderGuard", "Opened", "Registered", "VerifyOutcome"]


@dataclass(frozen=True, slots=True)
class CatalogSettings:
    """Limits and times of one coordinator's catalog."""

    session_ttl_s: int = 15  #: lease of node and coordinator sessions
    silence_s: float = 3.0  #: the mirror lists again after this long without the leader's clock
    flush_s: float = 10.0  #: between two flushes of the counters


class Catalog:
    """The catalog as one coordinator sees it. One event loop, any number of tasks."""

    def __init__(
        self,
        etcd: Etcd,
        name: str,
        settings: CatalogSettings | None = None,
        clock: ClusterClock | None = None,
    ) -> None:
        settings = settings or CatalogSettings()
        self.etcd = etcd
        self._core = Core(etcd, name, clock or ClusterClock(), settings.silence_s)
        self.counters = Counters(self._core, settings.flush_s)
        self._sessions = Sessions(self._core, settings.session_ttl_s)
        self._extents = Extents(self._core)
        self._placed = Placed(self._core, self._extents)
        self._commits = Commits(self._core, self._extents, self.counters)
        self._directory = Directory(self._core)
        self.policies = Policies(self._core, self._extents)
        self.absences = Absences(self._core)
        self._admin = Admin(self._core, self.policies)
        self._sweeping = Sweeping(self._core)
        self.jobs = Jobs(self._core, self._extents)  #: processes and the intents that go with them
        self._events = EventLog(self._core)

    @property
    def view(self) -> ClusterView:
        """Cluster state in memory. Read it, never change it."""
        return self._core.view

    @property
    def heard_s(self) -> float:
        """Monotonic time of the last event of the mirror, 0.0 before the first."""
        return self._core.heard_s

    @property
    def away(self) -> str:
        """Why etcd is taken to be away; "" while it answers. Nothing is asked for this."""
        return self.etcd.away

    def now_ms(self) -> int:
        """Cluster time of this coordinator; a guess as long as it is not `time_known`."""
        return self._core.now_ms()

    @property
    def time_known(self) -> bool:
        """Whether others may be told the cluster time of this coordinator."""
        return self._core.clock.known

    async def start(self) -> None:
        """Begin to follow cluster state and to flush counters; `ready` says when the view is usable."""
        self._core.start()
        self.counters.start()

    async def ready(self, timeout_s: float) -> None:
        """Return once the view is usable; `Unavailable` if it is not in time."""
        await self._core.wait_for(lambda view: view.ready, timeout_s)

    async def close(self) -> None:
        """Flush the counters, give up this coordinator's session, stop every task. The client of etcd stays open."""
        await self.counters.close()
        await self._commits.close()
        await self._sessions.close()
        await self._core.close()

    async def wait_for(self, predicate: Callable[[ClusterView], bool], timeout_s: float) -> None:
        """Return once the predicate holds of the view; `Unavailable` if it does not in time."""
        await self._core.wait_for(predicate, timeout_s)

    async def blinded(self) -> NoReturn:
        """Wait until the view stops to follow etcd, and raise why: the process must end then."""
        await self._core.blinded()

    def turns(self, policy: Policy, leading: Callable[[], LeaderGuard | None]) -> Turns:
        """Whose turn it is to stop; `leading` has this coordinator's term while it leads."""
        return Turns(self._core, policy, leading)

    # -- sessions and volumes (sessions.py) --------------------------------------------------------
    async def announce(self, url: str) -> None:
        """Put this coordinator's leased row, and keep it there until `close`."""
        await self._sessions.announce(url)

    async def join(self, request: JoinRequest) -> NodeRow:
        """The node's row, made at its first call. `Conflict` when the name belongs to another node."""
        return await self._sessions.join(request)

    async def register(self, request: RegisterRequest) -> Registered:
        """Start (or recognise) a node's session; its epoch fences all earlier ones."""
        return await self._sessions.register(request)

    async def renew(self, node_id: int, epoch: int) -> bool:
        """Renew the session's lease; False when that session is over."""
        return await self._sessions.renew(node_id, epoch)

    async def mount(self, request: MountRequest) -> tuple[VolumeRow, int]:
        """Claim a volume; its row and the catalog's revision. `Conflict` for a clone or a rolled-back disk."""
        return await self._sessions.mount(request)

    # -- extents (extents.py) ----------------------------------------------------------------------
    async def open_extent(
        self, request: OpenExtentRequest, choose_twin: ChooseTwin = lambda extent_class, volume: None
    ) -> OpenExtentReply:
        """Make a new extent on a volume, with its rows. `Fenced` when the session is over.

        `choose_twin` finds a place for the twin of an extent whose ack rule is `copy`.
        """
        return await self._extents.open_extent(request, choose_twin)

    async def seal(
        self,
        extent: int,
        *,
        by_epoch: tuple[int, int] | None = None,
        leader: LeaderGuard | None = None,
        fencing: bool = True,
    ) -> SealReply:
        """End an extent at its committed length; a sealed one is answered as it is.

        By its writer's node (`by_epoch` = node id and epoch), or by the leader. With `fencing` the leader's
        transaction compares that the writer's session is over (`Conflict` while it lives).
        """
        return await self._extents.seal(extent, by_epoch=by_epoch, leader=leader, fencing=fencing)

    async def own_extents(self, request: OwnExtentsRequest) -> OwnExtentsReply:
        """One page of what the catalog says a node's volume holds."""
        return await self._extents.own_extents(request)

    async def read_open(self, extents: Sequence[int]) -> dict[int, Opened]:
        """The commit rows of open extents, by bounded groups; sealed or unknown ones are left out."""
        return await self._extents.read_open(extents)

    # -- locations (placed.py) ---------------------------------------------------------------------
    async def reserve_location(self, extent: int, volume: int, leader: LeaderGuard) -> int:
        """Add a location in state `copying`, or find it there already; its generation."""
        return await self._placed.reserve(extent, volume, leader)

    async def report_progress(self, report: ProgressReport) -> None:
        """Take in what a pulling node holds verified and fsync'd."""
        await self._placed.report_progress(report)

    async def report_given_up(self, report: PullGivenUp) -> None:
        """Note why a pull ended before its target."""
        await self._placed.report_given_up(report)

    async def report_verified(self, report: VerifyReport) -> VerifyOutcome:
        """Take in a node's own verify; what it changed."""
        return await self._placed.report_verified(report)

    async def apply_inventory(self, report: InventoryReport) -> list[VerifyOutcome]:
        """Mark what an inventory did not find. Extents that changed since it was taken are not judged."""
        return await self._placed.apply_inventory(report)

    async def begin_drop(
        self,
        extent: int,
        volume: int,
        generation: int,
        leader: LeaderGuard,
        *,
        wanted: int = 1,
        verified_since_ms: int = 0,
        forced: bool = False,
    ) -> bool:
        """Set a location to `dropping` if the last-copy rule lets it go; False, and nothing changed, if not.

        `forced` is an operator's word, given after he was shown what dies.
        """
        return await self._placed.begin_drop(
            extent, volume, generation, leader, wanted=wanted, verified_since_ms=verified_since_ms, forced=forced
        )

    async def confirm_drop(
        self, extent: int, volume: int, generation: int, leader: LeaderGuard, *, wanted: int = 1, forced: bool = False
    ) -> bool:
        """Ask the last-copy rule once more; True: the row says `erasing`, and its node may be told to delete it."""
        return await self._placed.confirm_drop(extent, volume, generation, leader, wanted=wanted, forced=forced)

    async def call_off_drop(self, extent: int, volume: int, generation: int, leader: LeaderGuard) -> bool:
        """Let a `dropping` location stay, as what it was before; False when it is gone or being erased."""
        return await self._placed.call_off_drop(extent, volume, generation, leader)

    async def finish_drop(self, extent: int, volume: int, generation: int, leader: LeaderGuard) -> None:
        """Take a location that is `erasing` out of the row, after its node deleted the file or was given up."""
        await self._placed.finish_drop(extent, volume, generation, leader)

    async def set_location_state(
        self,
        extent: int,
        volume: int,
        generation: int,
        state: LocationState,
        evidence: str,
        leader: LeaderGuard | None = None,
    ) -> VerifyOutcome:
        """Mark a location `missing` or `damaged`, with evidence; an open extent is sealed if its writer is meant."""
        return await self._placed.set_state(extent, volume, generation, state, evidence, leader)

    def on_twin_ended(self, told: Callable[[int, Location, str], None]) -> None:
        """Have `told` called with every extent, what is left of its twin, and why, once a group was committed
        without the twin."""
        self._commits.on_twin_ended = told

    # -- files (committing.py, directory.py) -------------------------------------------------------
    async def commit(self, request: CommitRequest, check_capability: CheckCapability) -> CommitReply:
        """Make one group visible. Repeated as it is, it is recognised; see `commit.py` for every case.

        `check_capability(entry, class_id)` is called once per entry before anything is sent; it raises `Forbidden` when
        the write capability does not cover the entry, or was given for another class than the extent's.
        """
        return await self._commits.commit(request, check_capability)

    async def lookup(self, files: Sequence[tuple[int, str, int]]) -> list[FileRow | None]:
        """Rows of files (namespace, path, version or 0) as of one moment, tombstones as None; at most 128 reads."""
        return await self._directory.lookup(files)

    async def list(
        self, namespace: int, prefix: str, delimiter: str, after: str, limit: int, scope_prefix: str = ""
    ) -> tuple[list[ListEntry], str]:
        """One page of names in byte order, and the cursor of the next ("" at the end). A page may be short."""
        return await self._directory.list(namespace, prefix, delimiter, after, limit, scope_prefix)

    async def scan(
        self, namespace: int, prefix: str, after: str, limit: int, scope_prefix: str = ""
    ) -> tuple[Sequence[tuple[str, FileRow]], str]:
        """One page of current files with their rows, and the cursor of the next ("" at the end)."""
        return await self._directory.scan(namespace, prefix, after, limit, scope_prefix)

    async def old_versions(self, namespace: int, path: str, limit: int = 100) -> Sequence[int]:
        """Older versions of a path, newest first."""
        return await self._directory.old_versions(namespace, path, limit)

    async def file_with_facts(self, namespace: int, path: str, version: int = 0) -> FileFacts:
        """A file's row and the rows of its extents, consistent with each other (A14)."""
        return await self._directory.file_with_facts(namespace, path, version)

    # -- administration (admin.py) -----------------------------------------------------------------
    async def bootstrap(self, cluster_id: bytes, *, primary_pool: str, copy_pool: str, namespace: str) -> bytes:
        """Make the first rows of an empty catalog; the cluster's id, which may be an older one than given."""
        return await self._admin.bootstrap(
            cluster_id, primary_pool=primary_pool, copy_pool=copy_pool, namespace=namespace
        )

    async def create_pool(self, name: str, pool_type: PoolType) -> PoolRow:
        """The pool, made with the default settings if it is not there. `Conflict` when it has others."""
        return await self.policies.create_pool(PoolSpec(name, pool_type))

    async def create_namespace(self, spec: NamespaceSpec) -> NamespaceInfo:
        """A new namespace. `Conflict` when the name is taken with another policy; the same policy is recognised."""
        return await self.policies.create_namespace(spec)

    async def create_token(self, token_sha256: bytes, row: TokenRow) -> None:
        """A new client token. `Conflict` when its name is taken."""
        await self._admin.create_token(token_sha256, row)

    async def revoke_token(self, name: str) -> None:
        """Delete a token. `NotFound` when there is none of this name."""
        await self._admin.revoke_token(name)

    async def set_volume_access(self, volume: str, access: AccessMode) -> VolumeRow:
        """Set the access mode; open extents are sealed before it returns unless writing stays allowed (A10)."""
        return await self.policies.set_volume_access(volume, access)

    async def set_node_away(self, node_id: int, away_since_ms: int, leader: LeaderGuard) -> None:
        """Note since when a node is away; 0: it is back."""
        await self._admin.set_node_away(node_id, away_since_ms, leader)

    # -- leadership (admin.py) ---------------------------------------------------------------------
    async def campaign(self, row: LeaderRow, lease: int) -> LeaderGuard | None:
        """Take the leader key under a lease if nobody holds it; None if somebody does."""
        return await self._admin.campaign(row, lease)

    async def write_clock(self, leader: LeaderGuard, worked_ms: int = 0, trouble: str = "") -> int:
        """Write the clock row and how the controllers get on; etcd's revision. `NotLeader` when the term is over."""
        return await self._admin.write_clock(leader, worked_ms, trouble)

    async def resign(self, leader: LeaderGuard) -> None:
        """Delete the leader key if it is still this term's."""
        await self._admin.resign(leader)

    # -- sweeping, events (sweeping.py, counters.py, events.py) ------------------------------------
    async def sweep_tombstones(self, before_ms: int, leader: LeaderGuard, limit: int = 500) -> int:
        """Delete tombstone rows older than this that are still current; how many index rows were dealt with."""
        return await self._sweeping.tombstones(before_ms, leader, limit)

    async def sweep_uploads(self, begun_before_ms: int, leader: LeaderGuard, limit: int = 100) -> int:
        """Delete uploads begun before this, and parts without a guard row; how many uploads."""
        return await self._sweeping.uploads(begun_before_ms, leader, limit)

    async def fold_counters(self, leader: LeaderGuard) -> int:
        """Move dead records and bytes from the counters into extent rows; how many extents."""
        return await self.counters.fold(leader)

    async def append_events(self, events: Sequence[EventRow]) -> Sequence[str]:
        """Append to the event log, in order; their ids."""
        return await self._events.append(events)

    async def events(self, after: str, limit: int) -> Sequence[tuple[str, EventRow]]:
        """Events above an id, oldest first."""
        return await self._events.read(after, limit)

    async def trim_events(self, keep: int, leader: LeaderGuard) -> int:
        """Delete the oldest events beyond `keep`; how many."""
        return await self._events.trim(keep, leader)
