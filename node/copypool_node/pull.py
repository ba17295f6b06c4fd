"""Brings locations of this node up to what the leader asks for, from other nodes, byte for byte (invariants 2 and 7).

The destination owns a pull: it is started by a command and goes on when the leader dies; asking again is harmless and
a larger target just moves the end. Everything received runs through a `Scanner` before it is written, so a bad byte of
a source is never copied: the next source goes on at the same place. What is reported is checked, written and fsync'd;
a sealed extent is read back from the medium before it is called verified.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

import aiohttp

from copypool.answer_timers import until_end
from copypool.protocol.errors import (
    CopypoolError,
    DigestMismatch,
    Fenced,
    NoSpace,
    NotFound,
    Overloaded,
    Unavailable,
    from_response,
)
from copypool.protocol.internal import (
    PULL_COMMIT_BYTES,
    Done,
    ProgressReport,
    PullCommand,
    PullFault,
    PullGivenUp,
    PullSource,
    VerifyReport,
)
from copypool.protocol.routes import CAPABILITY, TRACE, TRACE_RESPONSE
from copypool.protocol.stripes import FULL_STRIDE_BYTES
from copypool.telemetry import tracing
from copypool_node.config import Limits
from copypool_node.evidence import forgotten_groups
from copypool_node.format import Corrupt
from copypool_node.holdings import Holding, Holdings
from copypool_node.intake import Intake
from copypool_node.merging import merge_stripe
from copypool_node.pacing import Pace
from copypool_node.scanner import Scanner

if TYPE_CHECKING:
    from copypool_node.extent_file import ExtentFile
    from copypool_node.metrics import Metrics
    from copypool_node.session import Session
    from copypool_node.volumes import MountedVolume

log = logging.getLogger(__name__)

CONNECT_S = 1.0
STALL_S = 5.0
PAST_CACHE_MIN_BYTES = 64 * 1024  #: fewer are written through the page cache: they will be followed by more of a block
MERGED_SOURCES_MAX = 4  #: copies of one stripe held in memory at a time
FAULT_WAIT_S = 2.0  #: a hint is not worth more
ROUNDS_MAX = 6  #: tries over all sources before the pull is given up; the leader asks again
BACKOFF_MIN_S = 0.2
BACKOFF_MAX_S = 10.0
REPORT_S = 60.0

Key = tuple[int, int, int]  #: volume, extent, generation


class _Job:
    """One location being brought up."""

    __slots__ = ("command", "task", "volume")

    def __init__(self, command: PullCommand, volume: MountedVolume) -> None:
        self.command = command
        self.volume = volume
        self.task: asyncio.Task[None] | None = None


class Puller:
    """All pulls of this node."""

    def __init__(
        self, session: Session, holdings: Holdings, metrics: Metrics, limits: Limits, digest_threads: Executor
    ) -> None:
        self._session = session
        self._holdings = holdings
        self._metrics = metrics
        self._limits = limits
        self._threads = digest_threads
        self._jobs: dict[Key, _Job] = {}
        self._turns: dict[int, asyncio.Semaphore] = {}
        self._scanners: OrderedDict[Key, Scanner] = OrderedDict()
        self._pace = Pace(limits.pull_bytes_s)
        self._rebuild_pace = Pace(limits.rebuild_bytes_s)

    def keep(self, key: Key, scanner: Scanner) -> None:
        """Go on from this scanner, if it stands at the file's end, instead of reading the file."""
        self._keep(key, scanner)

    def queued(self, volume: MountedVolume) -> int:
        """Pulls of this volume that run or wait."""
        return sum(job.volume is volume for job in self._jobs.values())

    def submit(self, command: PullCommand, volume: MountedVolume) -> None:
        """Take a command in: start its pull, or give the running one its new target."""
        key = (volume.id, command.extent, command.generation)
        job = self._jobs.get(key)
        if job is not None:
            if command.sealed or not job.command.sealed:
                job.command = command
            return
        if len(self._jobs) >= self._limits.commands_queued:
            raise Overloaded(f"{len(self._jobs)} pulls run or wait at this node")
        job = self._jobs[key] = _Job(command, volume)
        job.task = asyncio.create_task(self._run(key, job))

    async def cancel(self, volume: MountedVolume, extent: int, generation: int) -> None:
        """End the pull of a location that is dropped; nothing of it runs any more on return."""
        key = (volume.id, extent, generation)
        self._scanners.pop(key, None)
        job = self._jobs.get(key)
        if job is not None and job.task is not None:
            job.task.cancel()
            await asyncio.gather(job.task, return_exceptions=True)

    async def close(self) -> None:
        """End all pulls; what was not reported is found again by a local scan."""
        tasks = [job.task for job in self._jobs.values() if job.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- one pull -----------------------------------------------------------------------------
    async def _run(self, key: Key, job: _Job) -> None:
        turn = self._turns.setdefault(job.volume.id, asyncio.Semaphore(self._limits.pulls_per_volume))
        extent, outcome = job.command.extent, "ended"
        try:
            async with turn:
                while True:
                    command = job.command
                    await self._pull(key, job.volume, command)
                    if job.command is command:
                        outcome = "done"
                        return
        except (Fenced, NotFound) as exc:
            log.info("pull of extent %d ends: %s", extent, exc, extra={"extent": extent})
        except CopypoolError as exc:
            outcome = "failed"
            log.warning(
                "pull of extent %d is given up until the leader asks again: %s", extent, exc, extra={"extent": extent}
            )
            local = isinstance(exc, NoSpace | DigestMismatch) or bool(job.volume.disk.readonly_reason)
            if local or "sources" in exc.details:
                await self._report_given_up(key, job, exc)
        finally:
            self._metrics.count_pull(job.volume.config.pool, outcome)
            del self._jobs[key]

    async def _pull(self, key: Key, volume: MountedVolume, command: PullCommand) -> None:
        file = await self._file(volume, command)
        holding = self._holdings.find(command.extent, volume, command.generation) or self._holdings.add(
            Holding(volume, file, command.extent, command.generation, 0)
        )
        if not file.sealed:
            if command.sealed and file.size > command.up_to:
                # A twin that ended with bytes that nobody committed; they were never claimed.
                await self._refuse_if_forgotten(holding, command.up_to)
                await file.cut(command.up_to)
                holding.length = min(holding.length, command.up_to)
            scanner = await self._scanner(key, file)
            holding.length = max(holding.length, scanner.verified_length)
            had = holding.length
            await self._receive(holding, scanner, command)
            if command.sealed:
                await self._finish_sealed(key, holding, scanner, command, had)
            else:
                await self._report(holding, scanner.verified_length, scanner.records, finished=True, verified=False)
            return
        await self._check_sealed(holding, command)

    async def _refuse_if_forgotten(self, holding: Holding, up_to: int) -> None:
        """Raise when the bytes behind `up_to` were committed once: the catalog that wants them cut is an older one."""
        groups = await forgotten_groups(holding.file, up_to)
        if groups:
            evidence = f"extent {holding.extent}, sealed at {up_to}, has {groups} groups that the catalog does not know"
            holding.volume.distrust_catalog(evidence)
            raise Unavailable(evidence)

    async def _file(self, volume: MountedVolume, command: PullCommand) -> ExtentFile:
        file = volume.disk.get(command.extent, command.generation)
        if file is not None:
            if (command.extent, command.generation) in volume.unknown:
                # A location is in the catalog before its file is made: this file is of another extent of that number.
                evidence = f"extent {command.extent} is here from before the catalog gave it out"
                volume.distrust_catalog(evidence)
                raise Unavailable(evidence)
            return file
        await volume.admit(command.up_to, "repair")
        return await volume.disk.create_extent(command.extent, command.generation, None, expected_bytes=command.up_to)

    async def _scanner(self, key: Key, file: ExtentFile) -> Scanner:
        """A scanner that stands at the file's end: the one kept from the last pull, or after reading the file."""
        kept = self._scanners.pop(key, None)
        if kept is not None and kept.verified_length == file.size and not file.torn:
            self._keep(key, kept)
            return kept
        scanner = Scanner(file.extent)
        try:
            await file.scan(file.size, scanner=scanner)
        except (Corrupt, DigestMismatch) as exc:
            log.warning(
                "extent %d: pulled again from %d: %s",
                file.extent,
                scanner.verified_length,
                exc,
                extra={"extent": file.extent},
            )
        scanner.forget_pending()
        if scanner.verified_length < file.size or file.torn:
            await file.cut(scanner.verified_length)
        self._keep(key, scanner)
        return scanner

    def _keep(self, key: Key, scanner: Scanner) -> None:
        self._scanners[key] = scanner
        self._scanners.move_to_end(key)
        while len(self._scanners) > self._limits.scanners_kept:
            self._scanners.popitem(last=False)

    async def _receive(self, holding: Holding, scanner: Scanner, command: PullCommand) -> None:
        """Until the file is checked and fsync'd up to the target; each source in turn, at the byte where it stands."""
        backoff_s = BACKOFF_MIN_S
        failure = "no source was named"
        for round_number in range(ROUNDS_MAX):
            before = scanner.verified_length
            for source in command.sources:
                if scanner.verified_length >= command.up_to:
                    break
                if source.length <= scanner.verified_length:
                    continue
                try:
                    await self._from_source(holding, scanner, command, source)
                except (Unavailable, Corrupt) as exc:
                    if holding.volume.disk.readonly_reason:
                        raise
                    failure = f"node {source.node_id}: {exc.message}"
                    log.warning("pull of extent %d from %s", command.extent, failure, extra={"extent": command.extent})
                    if isinstance(exc, Corrupt):
                        await self._tell_fault(command.extent, source.node_id)
            if scanner.verified_length >= command.up_to:
                await self._commit(holding, scanner)
                return
            if scanner.verified_length > before or await self._merge(holding, scanner, command):
                backoff_s = BACKOFF_MIN_S
            elif round_number + 1 < ROUNDS_MAX:
                await asyncio.sleep(backoff_s)
                backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)
        if scanner.verified_length > holding.length:
            await self._commit(holding, scanner)
            await self._report(holding, scanner.verified_length, scanner.records, finished=False, verified=False)
        raise Unavailable(f"no source brings it past byte {scanner.verified_length}: {failure}", sources=True)

    async def _from_source(self, holding: Holding, scanner: Scanner, command: PullCommand, source: PullSource) -> None:
        start, stop = scanner.verified_length, min(command.up_to, source.length)
        config = holding.volume.config
        reported = start
        intake = Intake(scanner)
        try:
            async with self._ask(command.extent, source, start, stop) as response:
                if response.status >= 400:
                    error = from_response(response.status, await response.content.read(65536), response.content_type)
                    raise Unavailable(error.message)
                # From here on it is part of what the writer of these bytes began, not of the leader's step.
                with tracing.operation("copy", response.headers.get(TRACE_RESPONSE, ""), extent=command.extent):
                    log.debug(
                        "extent %d: bytes %d to %d from node %d",
                        *(command.extent, start, stop, source.node_id),
                        extra={"extent": command.extent, "volume": holding.volume.name},
                    )
                    async for chunk, _ in response.content.iter_chunks():
                        await self._pace.take(len(chunk))
                        await holding.volume.pull_pace.take(len(chunk))
                        if config.pool_type == "primary":
                            await self._rebuild_pace.take(len(chunk))
                        await self._take(holding, scanner, intake, chunk)
                        self._metrics.count_pulled(config.pool, config.pool_type, len(chunk))
                        if scanner.verified_length - reported >= PULL_COMMIT_BYTES:
                            await self._commit(holding, scanner)
                            reported = scanner.verified_length
                            await self._report(holding, reported, scanner.records, finished=False, verified=False)
                    await self._keep_good(holding, scanner, intake)
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            await self._keep_good(holding, scanner, intake)  # else a source that breaks off early would bring nothing
            raise Unavailable(f"broke off at {scanner.verified_length}: {str(exc) or type(exc).__name__}") from exc
        finally:
            scanner.forget_pending()

    async def _merge(self, holding: Holding, scanner: Scanner, command: PullCommand) -> bool:
        """No source brings the stripe at hand as a whole: put it together from blocks that pass in any of them."""
        at = scanner.verified_length
        copies = []
        for source in command.sources[:MERGED_SOURCES_MAX]:
            stop = min(at + FULL_STRIDE_BYTES, command.up_to, source.length)
            if stop > at:
                copies.append(await self._read_some(command.extent, source, at, stop))
        stripe = merge_stripe(command.extent, at, copies) if len(copies) > 1 else None
        if stripe is None:
            return False
        log.warning(
            "extent %d: the stripe at %d was put together from %d sources",
            command.extent,
            at,
            len(copies),
            extra={"extent": command.extent},
        )
        try:
            intake = Intake(scanner)
            await self._take(holding, scanner, intake, stripe)
            await self._keep_good(holding, scanner, intake)
        finally:
            scanner.forget_pending()
        return True

    async def _read_some(self, extent: int, source: PullSource, start: int, stop: int) -> bytes:
        """As many bytes of a source's file from `start` on as it gives; unchecked."""
        found = bytearray()
        try:
            async with self._ask(extent, source, start, stop) as response:
                if response.status < 400:
                    async for chunk in response.content.iter_any():
                        found += chunk
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            log.debug(
                "extent %d: node %d gave %d bytes: %s",
                extent,
                source.node_id,
                len(found),
                exc,
                extra={"extent": extent},
            )
        return bytes(found)

    def _ask(
        self, extent: int, source: PullSource, start: int, stop: int
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        peer = self._session.peers.get(source.node_id)
        base = peer.url if peer is not None else source.url
        url = f"{base}/i/raw/{extent}?from={start}&to={stop}"
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=STALL_S)
        headers = {CAPABILITY: source.capability, TRACE: tracing.outgoing()}
        return self._session.link.http.get(url, headers=headers, timeout=timeout, middlewares=(until_end,))

    async def _take(self, holding: Holding, scanner: Scanner, intake: Intake, chunk: bytes) -> None:
        """Take in a chunk; whenever so much is here that it is worth it, check and append what is whole."""
        with memoryview(chunk) as view:
            taken = 0
            while taken < len(view):
                taken += intake.add(view[taken:])
                if not intake.wanted_bytes:
                    await self._keep_good(holding, scanner, intake)

    async def _keep_good(self, holding: Holding, scanner: Scanner, intake: Intake) -> None:
        """Check what is here and append what is good; also when `Corrupt` is raised then."""
        before = scanner.verified_length
        corrupt: Corrupt | None = None
        try:
            await asyncio.get_running_loop().run_in_executor(self._threads, intake.check)
        except Corrupt as exc:
            corrupt = exc
        good = intake.good
        if len(good) >= PAST_CACHE_MIN_BYTES:
            await holding.file.write_past_cache(before, good)
        elif good:
            await holding.file.write(before, [good])
        if corrupt is not None:
            raise corrupt
        intake.shift()

    async def _commit(self, holding: Holding, scanner: Scanner) -> None:
        """What is checked is durable, and may be served, on return."""
        await holding.file.sync()
        holding.length = scanner.verified_length

    # -- sealed extents -----------------------------------------------------------------------
    async def _finish_sealed(
        self, key: Key, holding: Holding, scanner: Scanner, command: PullCommand, had: int
    ) -> None:
        """Read back, compare, write the footer, report: good and verified, or not claimed at all.

        What earlier pulls had brought here (`had` bytes) was claimed: if that went bad, it is damage, and is said.
        """
        if scanner.verified_length != command.up_to:
            raise DigestMismatch(
                f"extent {command.extent} goes on to {scanner.verified_length}, it was sealed at {command.up_to}"
            )
        digest = scanner.digest()
        if command.digest and digest != command.digest:
            raise DigestMismatch(
                f"extent {command.extent}: every block passes, but the digest is another one", sources=True
            )
        back = Scanner(command.extent)
        try:
            await holding.file.scan(command.up_to, direct=True, scanner=back)
        except Corrupt as exc:
            if back.verified_length < had:
                await self._report_damage(key, holding, command, exc)
            else:
                await self._cut_back(key, holding, back)
            raise
        if back.verified_length != command.up_to or back.digest() != digest:
            await self._cut_back(key, holding, back)
            raise DigestMismatch(f"extent {command.extent} reads back otherwise than it was written")
        await holding.file.seal(command.up_to, scanner.group, command.refusals, digest)
        self._scanners.pop(key, None)
        holding.length = command.up_to
        holding.sealed = True
        await self._report(holding, command.up_to, scanner.records, finished=True, verified=True)

    async def _report_given_up(self, key: Key, job: _Job, why: CopypoolError) -> None:
        """Say why, so that who waits for it learns it; a report that is lost is made again at the next try."""
        session, command = self._session, job.command
        holding = self._holdings.find(command.extent, job.volume, command.generation)
        length = 0 if holding is None else holding.length
        here = "sources" not in why.details
        report = PullGivenUp(
            session.node_id, session.epoch, command.extent, key[0], command.generation, length, why.message, here
        )
        try:
            await session.link.call("given-up", report, Done, deadline_s=FAULT_WAIT_S)
        except CopypoolError as exc:
            log.info(
                "extent %d: nobody was told that its pull ended: %s",
                command.extent,
                exc.message,
                extra={"extent": command.extent},
            )

    async def _tell_fault(self, extent: int, source_node: int) -> None:
        """Have the source verify itself: only its own finding marks it, and a repair must not wait for a reader."""
        fault = PullFault(self._session.node_id, extent, source_node)
        try:
            await self._session.link.call("fault", fault, Done, deadline_s=FAULT_WAIT_S)
        except CopypoolError as exc:
            log.info(
                "extent %d: nobody was told of node %d: %s", extent, source_node, exc.message, extra={"extent": extent}
            )

    async def _report_damage(self, key: Key, holding: Holding, command: PullCommand, found: Corrupt) -> None:
        """The medium lost what it had kept. The file stays as it is: its other blocks may be needed."""
        self._scanners.pop(key, None)
        holding.damaged = True
        self._metrics.damaged_extents += 1
        session = self._session
        report = VerifyReport(
            session.node_id,
            session.epoch,
            command.extent,
            holding.volume.id,
            command.generation,
            found.offset,
            False,
            b"",
            found.what,
            found.offset,
        )
        await session.link.call("verified", report, Done, deadline_s=REPORT_S)

    async def _cut_back(self, key: Key, holding: Holding, back: Scanner) -> None:
        """The medium did not keep what was written: go on from what it did keep, at the next command."""
        self._scanners.pop(key, None)
        holding.length = min(holding.length, back.verified_length)
        await holding.file.cut(back.verified_length)

    async def _check_sealed(self, holding: Holding, command: PullCommand) -> None:
        """The file was finished by an earlier pull whose report was lost."""
        back = Scanner(command.extent)
        await holding.file.scan(command.up_to, direct=True, scanner=back)
        if back.verified_length != command.up_to or (command.digest and back.digest() != command.digest):
            raise DigestMismatch(f"extent {command.extent} is sealed here, but not as the catalog knows it")
        holding.length = command.up_to
        holding.sealed = True
        await self._report(holding, command.up_to, back.records, finished=True, verified=True)

    async def _report(self, holding: Holding, length: int, records: int, *, finished: bool, verified: bool) -> None:
        session = self._session
        report = ProgressReport(
            session.node_id,
            session.epoch,
            holding.extent,
            holding.volume.id,
            holding.generation,
            length,
            records,
            finished,
            verified,
        )
        await session.link.call("progress", report, Done, deadline_s=REPORT_S)
