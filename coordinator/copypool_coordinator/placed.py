"""Locations of extents: reserved, filled, verified, marked, dropped. Each change is decided in `locations.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from copypool.protocol.api import LocationState
from copypool.protocol.errors import Conflict, Fenced, Forbidden, Invalid, NotFound
from copypool.protocol.internal import EXTENT_HEADER_BYTES, InventoryReport, ProgressReport, PullGivenUp, VerifyReport
from copypool_coordinator import locations, protection
from copypool_coordinator.changing import Change, Seen
from copypool_coordinator.core import Core, Guard, LeaderGuard, leader_guard, session_guard
from copypool_coordinator.extents import Extents
from copypool_coordinator.rows import Location

FACT_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class VerifyOutcome:
    """What a verify, an inventory or a mark changed: enough for an event."""

    extent: int
    volume: int
    generation: int
    kind: Literal["verified", "healed", "damaged", "missing", "unchanged"]
    evidence: str = ""
    sealed: bool = False  #: the extent was open and is sealed by this


class Placed:
    """Location changes of one catalog."""

    def __init__(self, core: Core, extents: Extents) -> None:
        self._core = core
        self._rows = extents.rows

    async def reserve(self, extent: int, volume: int, leader: LeaderGuard) -> int:
        """Add a `copying` location of length 0; its generation. One that is there already is answered.

        Raises:
            Conflict: the volume holds another location of the extent.
            NotLeader: the term is over.
        """
        now_ms = self._core.now_ms()

        def decide(seen: Seen) -> Change[int]:
            for location in seen.row.locations:
                if location.volume == volume and location.state == "copying":
                    return Change(location.generation)
            reserved = locations.reserved(seen.row, volume, now_ms)
            if reserved is None:
                raise Conflict(f"volume {volume} holds extent {extent} already")
            return Change(reserved[1], reserved[0])

        return await self._rows.change(extent, decide, [leader_guard(leader)])

    async def report_progress(self, report: ProgressReport) -> None:
        """Take in what a pulling node holds. Late and repeated reports change nothing.

        Raises:
            Fenced: the session is over, or the location is not there (any more) to be filled.
            Invalid: it claims bytes that are not committed.
        """
        await self._check_volume(report.node_id, report.volume)
        now_ms = self._core.now_ms()

        def decide(seen: Seen) -> Change[None]:
            location = locations.find(seen.row, report.volume, report.generation)
            if location is None or location.state not in ("copying", "good"):
                raise Fenced(f"extent {report.extent} has no such location on volume {report.volume} to fill: stop")
            if protection.is_appended(seen.row, location):
                raise Fenced(f"extent {report.extent} is appended to on volume {report.volume}: nobody pulls it there")
            if report.length > _committed(seen):
                raise Invalid(f"extent {report.extent} has {_committed(seen)} committed bytes, not {report.length}")
            row = locations.progressed(
                seen.row,
                location,
                report.length,
                report.records,
                finished=report.finished,
                verified=report.verified,
                now_ms=now_ms,
            )
            return Change(None, None if row is seen.row else row)

        await self._rows.change(report.extent, decide, [session_guard(report.node_id, report.epoch)])

    async def report_given_up(self, report: PullGivenUp) -> None:
        """Note why a pull ended before its target. Late and repeated reports change nothing.

        Raises:
            Fenced: the session is over.
        """
        await self._check_volume(report.node_id, report.volume)

        def decide(seen: Seen) -> Change[None]:
            location = locations.find(seen.row, report.volume, report.generation)
            if location is None or location.state not in ("copying", "good"):
                return Change(None)
            row = locations.given_up(seen.row, location, report.length, report.why, report.here)
            return Change(None, None if row is seen.row else row)

        await self._rows.change(report.extent, decide, [session_guard(report.node_id, report.epoch)])

    async def report_verified(self, report: VerifyReport) -> VerifyOutcome:
        """Take in a node's own verify of one of its locations: the one thing that marks, or heals, by itself.

        Raises:
            Fenced: the session is over.
        """
        await self._check_volume(report.node_id, report.volume)
        guards = [session_guard(report.node_id, report.epoch)]
        if not report.good:
            state: LocationState = "missing" if report.missing else "damaged"
            return await self._mark(
                report.extent,
                report.volume,
                report.generation,
                state,
                report.evidence,
                guards,
                bad_offset=-1 if report.missing else report.bad_offset,
            )
        now_ms = self._core.now_ms()

        def decide(seen: Seen) -> Change[VerifyOutcome]:
            location = locations.find(seen.row, report.volume, report.generation)
            if location is None:
                return Change(_outcome(report.extent, report.volume, report.generation, "unchanged"))
            row = locations.verified(seen.row, location, report.length, report.digest, now_ms)
            if row is seen.row:
                return Change(_outcome(report.extent, report.volume, report.generation, "unchanged"))
            after = locations.find(row, report.volume, report.generation)
            assert after is not None
            kind: Literal["verified", "healed", "damaged"] = "verified"
            if after.state != location.state:
                kind = "damaged" if after.state == "damaged" else "healed"
            outcome = VerifyOutcome(report.extent, report.volume, report.generation, kind, after.evidence)
            return Change(outcome, row)

        return await self._rows.change(report.extent, decide, guards)

    async def apply_inventory(self, report: InventoryReport) -> list[VerifyOutcome]:
        """Mark what an inventory did not find, and what it found too short.

        Rows that changed after the inventory began are not judged: what it missed may not have been there yet.

        Raises:
            Fenced: the session is over.
        """
        await self._check_volume(report.node_id, report.volume)
        guards = [session_guard(report.node_id, report.epoch)]
        wanted = [(extent, 0, "missing", "an inventory did not find its file", -1) for extent in report.missing]
        wanted += [
            (short.extent, short.offset, "damaged", f"its file ends at {short.length}", short.length)
            for short in report.short
        ]
        outcomes = []
        for extent, generation, state, evidence, bad_offset in wanted:
            known = self._core.view.extents.get(extent)
            for location in list(known.row.locations) if known is not None else ():
                if location.volume != report.volume or (generation and location.generation != generation):
                    continue
                outcome = await self._mark(
                    extent,
                    report.volume,
                    location.generation,
                    "missing" if state == "missing" else "damaged",
                    evidence,
                    guards,
                    not_after=report.revision,
                    bad_offset=bad_offset,
                )
                if outcome.kind != "unchanged":
                    outcomes.append(outcome)
        return outcomes

    async def set_state(
        self,
        extent: int,
        volume: int,
        generation: int,
        state: LocationState,
        evidence: str,
        leader: LeaderGuard | None,
    ) -> VerifyOutcome:
        """Mark a location missing or damaged.

        Raises:
            NotLeader: the term is over.
        """
        if state not in ("missing", "damaged"):
            raise Invalid(f"a location is not set to {state!r} by hand")
        guards = [leader_guard(leader)] if leader is not None else []
        return await self._mark(extent, volume, generation, state, evidence, guards)

    async def _mark(
        self,
        extent: int,
        volume: int,
        generation: int,
        state: LocationState,
        evidence: str,
        guards: list[Guard],
        not_after: int = 0,
        bad_offset: int = -1,
    ) -> VerifyOutcome:
        """Mark a location. An extent that is appended to there is sealed first: nothing is appended to damage."""
        now_ms = self._core.now_ms()
        unchanged = _outcome(extent, volume, generation, "unchanged")

        def decide(seen: Seen) -> Change[VerifyOutcome]:
            row = seen.row
            location = locations.find(row, volume, generation)
            if location is None or (not_after and seen.mod_revision > not_after) or _holds_nothing(seen, location):
                return Change(unchanged)
            seals = seen.open is not None and protection.is_appended(row, location)
            if seals and seen.open is not None:
                row = locations.sealed(row, seen.open, now_ms)
                location = locations.find(row, volume, generation)
                assert location is not None
            marked = locations.marked(row, location, state, evidence, now_ms, bad_offset)
            if marked is row:
                return Change(unchanged)
            kind: Literal["damaged", "missing"] = "damaged" if state == "damaged" else "missing"
            return Change(VerifyOutcome(extent, volume, generation, kind, evidence, seals), marked, seals)

        try:
            return await self._rows.change(extent, decide, guards)
        except NotFound:
            return unchanged

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
        """Set a location to `dropping` if invariant 5 allows it, under a compare of all that was looked at.

        `forced` is an operator's word, given after he was shown what dies: then it goes whatever is left. A
        location that is appended to never does.

        Raises:
            NotLeader: the term is over.
        """
        now_ms = self._core.now_ms()

        def counted(location: Location) -> bool:
            return self._core.view.volume_counts(location.volume)

        def decide(seen: Seen) -> Change[bool]:
            location = locations.find(seen.row, volume, generation)
            if location is None or location.state == "dropping":
                return Change(True)
            allowed = forced and not protection.is_appended(seen.row, location)
            if not allowed and not protection.may_leave(
                seen.row, location, _committed(seen), counted, wanted, verified_since_ms
            ):
                return Change(False)
            return Change(True, locations.dropping(seen.row, location, now_ms, verified_since_ms))

        return await self._rows.change(extent, decide, [leader_guard(leader)])

    async def confirm_drop(
        self, extent: int, volume: int, generation: int, leader: LeaderGuard, *, wanted: int = 1, forced: bool = False
    ) -> bool:
        """Let a `dropping` location be deleted if invariant 5 still allows it; False: it may be needed, or is back.

        Asked again here because what was relied on may have gone bad in the meantime: every survivor counts only if it
        was read back since the decision. When it returns True the row says `erasing`, for good, and only then may the
        node be told. Safe to repeat.

        Raises:
            NotLeader: the term is over.
        """

        def counted(location: Location) -> bool:
            return self._core.view.volume_counts(location.volume)

        def decide(seen: Seen) -> Change[bool]:
            location = locations.find(seen.row, volume, generation)
            if location is None or location.erasing:
                return Change(True)
            since_ms = max(1, location.decided_ms)
            if location.state != "dropping" or not (
                forced or protection.may_leave(seen.row, location, _committed(seen), counted, wanted, since_ms)
            ):
                return Change(False)
            return Change(True, locations.erasing(seen.row, location))

        return await self._rows.change(extent, decide, [leader_guard(leader)])

    async def call_off_drop(self, extent: int, volume: int, generation: int, leader: LeaderGuard) -> bool:
        """Let a `dropping` location stay: it is what it was before. False when it is gone or being erased.

        Safe at any time: keeping takes nothing away. A location that was called off before is answered with True.

        Raises:
            NotLeader: the term is over.
        """
        now_ms = self._core.now_ms()

        def decide(seen: Seen) -> Change[bool]:
            location = locations.find(seen.row, volume, generation)
            if location is None:
                return Change(False)
            if location.state != "dropping":
                return Change(True)
            row = locations.called_off(seen.row, location, now_ms)
            return Change(row is not None, row)

        return await self._rows.change(extent, decide, [leader_guard(leader)])

    async def finish_drop(self, extent: int, volume: int, generation: int, leader: LeaderGuard) -> None:
        """Take a location that is erased, or given up with its volume, out of the row. Safe to repeat.

        Raises:
            Conflict: it is not confirmed to go.
            NotLeader: the term is over.
        """

        def decide(seen: Seen) -> Change[None]:
            location = locations.find(seen.row, volume, generation)
            if location is None:
                return Change(None)
            if not location.erasing:
                raise Conflict(f"the location of extent {extent} on volume {volume} is {location.state}: not erased")
            return Change(None, locations.without_location(seen.row, location))

        await self._rows.change(extent, decide, [leader_guard(leader)])

    async def _check_volume(self, node_id: int, volume: int) -> None:
        """Raise `Forbidden` unless the volume is the caller's."""
        await self._core.wait_for(lambda view: volume in view.volumes_by_id, FACT_TIMEOUT_S)
        if self._core.view.volumes_by_id[volume].row.node != node_id:
            raise Forbidden(f"volume {volume} is not on node {node_id}")


def _committed(seen: Seen) -> int:
    return seen.open.length if seen.open is not None else seen.row.length


def _holds_nothing(seen: Seen, location: Location) -> bool:
    """Whether nothing would be lost with the location: it was only reserved, or no group was ever committed."""
    length = _committed(seen) if protection.is_appended(seen.row, location) else location.length
    return length <= EXTENT_HEADER_BYTES


def _outcome(extent: int, volume: int, generation: int, kind: Literal["unchanged"]) -> VerifyOutcome:
    return VerifyOutcome(extent, volume, generation, kind)
