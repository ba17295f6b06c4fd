"""Runs the plan of a commit against etcd; the rules are in `commit.py`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace

from copypool.protocol.errors import CatalogDown, Fenced, Forbidden, OutcomeUnknown, Overloaded, Unavailable
from copypool.protocol.internal import CommitReply, CommitRequest
from copypool_coordinator import keys, rows
from copypool_coordinator.changing import Opened
from copypool_coordinator.commit import CheckParts, Landed, Round, plan_first, plan_next, plan_probe
from copypool_coordinator.core import ROUNDS_MAX, Core
from copypool_coordinator.counters import Counters
from copypool_coordinator.drafting import CheckCapability, Facts, NamespaceFacts
from copypool_coordinator.etcd import TxnResult
from copypool_coordinator.extents import Extents
from copypool_coordinator.manifests import PARTS_PER_READ, check_parts, part_reads
from copypool_coordinator.rows import ExtentRow, Location
from copypool_coordinator.sweeping import sweep_parts

#: A node that hears nothing for longer repeats the same commit.
COMMIT_TIMEOUT_S = 8.0
NAMESPACE_WAIT_S = 1.5
SWEEPS_MAX = 64


class Commits:
    """Commits of one coordinator."""

    def __init__(self, core: Core, extents: Extents, counters: Counters) -> None:
        self._core = core
        self._rows = extents.rows
        self._counters = counters
        self._sweeps: set[asyncio.Task[None]] = set()
        #: told of the first group that an extent's twin does not hold: extent, what is left of the twin, why
        self.on_twin_ended: Callable[[int, Location, str], None] | None = None

    async def close(self) -> None:
        """Stop sweeping; the keeper finishes what is left."""
        for task in self._sweeps:
            task.cancel()
        await asyncio.gather(*self._sweeps, return_exceptions=True)

    async def commit(self, request: CommitRequest, check_capability: CheckCapability) -> CommitReply:
        """Make one group visible.

        When it returns, every record that is `committed` is in the directory, by an etcd quorum. Safe to repeat as it
        is; cancelled, it may or may not land.

        Raises:
            Fenced: the session or the extent has ended; the group is not visible and never will be.
            OutcomeUnknown: repeat it as it is.
            CatalogDown, Overloaded, Unavailable: it is not visible; it may be repeated.
        """
        try:
            async with asyncio.timeout(COMMIT_TIMEOUT_S):
                landed = await self._land(request, check_capability)
        except TimeoutError as exc:
            raise OutcomeUnknown(f"group {request.group} of extent {request.extent}: no answer in time") from exc
        opened = None if landed.open is None else Opened(landed.open, landed.reply.revision)
        self._rows.remember(request.extent, opened)
        if landed.twin_ended is not None and self.on_twin_ended is not None:
            self.on_twin_ended(request.extent, landed.twin_ended, request.twin_failure)
        if landed.effects is not None:
            self._counters.add(landed.effects)
            for namespace, upload, parts in landed.effects.finished_uploads:
                self._sweep(namespace, upload, parts)
        return landed.reply

    async def _land(self, request: CommitRequest, check_capability: CheckCapability) -> Landed:
        facts = await self._facts(request, check_capability)
        round_ = plan_first(request, facts)
        unknown: OutcomeUnknown | None = None
        while True:
            try:
                answer = await self._core.etcd.txn(round_.compares, round_.success, round_.failure)
            except OutcomeUnknown as error:
                unknown = error
                if round_.number + 1 >= ROUNDS_MAX:
                    raise
                round_ = plan_probe(request, facts, round_)
                continue
            except CatalogDown as error:
                raise unknown or error from error
            try:
                facts, step = await self._next(request, facts, round_, answer)
            except Overloaded as error:
                raise unknown or error from error
            if isinstance(step, Landed):
                return step
            round_ = step

    async def _next(
        self, request: CommitRequest, facts: Facts, round_: Round, answer: TxnResult
    ) -> tuple[Facts, Round | Landed]:
        """The next step, once the parts of every manifest that it depends on are compared."""
        step = plan_next(request, facts, round_, answer)
        while isinstance(step, CheckParts):
            verdict = await self._parts_verdict(request, step.entry)
            facts = replace(facts, parts={**facts.parts, (step.entry, step.upload_revision): verdict})
            step = plan_next(request, facts, round_, answer)
        return facts, step

    async def _parts_verdict(self, request: CommitRequest, index: int) -> str:
        entry = request.entries[index]
        for first in range(0, len(entry.segments), PARTS_PER_READ):
            answer = await self._core.etcd.txn([], part_reads(entry, first))
            wrong = check_parts(entry, first, [kv for kvs in answer.responses for kv in kvs])
            if wrong:
                return wrong
        return ""

    async def _facts(self, request: CommitRequest, check_capability: CheckCapability) -> Facts:
        view = self._core.view
        known = view.extents.get(request.extent)
        if known is not None:
            row, revision = known.row, known.mod_revision
        else:
            kv = await self._core.etcd.get(keys.extent(request.extent))
            if kv is None:
                raise Fenced(f"there is no extent {request.extent}")
            row, revision = rows.decode(kv.value, ExtentRow), kv.mod_revision
        forbidden = {}
        for index, entry in enumerate(request.entries):
            if entry.kind == "config":
                continue
            try:
                check_capability(entry, row.class_id)
            except Forbidden as error:
                forbidden[index] = error.message
        return Facts(
            now_ms=self._core.now_ms(),
            extent=row if row.open else None,
            extent_revision=revision,
            open=self._rows.remembered(request.extent, request.revision),
            namespaces=await self._namespaces(request),
            forbidden=forbidden,
            copied_length=view.copied_length,
            parts={},
        )

    async def _namespaces(self, request: CommitRequest) -> Mapping[int, NamespaceFacts]:
        wanted = {entry.namespace for entry in request.entries}
        view = self._core.view
        if not all(namespace in view.namespaces_by_id for namespace in wanted):
            # Another coordinator may have seen a new one earlier than this one; or it is gone for good.
            with contextlib.suppress(Unavailable):
                await self._core.wait_for(
                    lambda view: all(namespace in view.namespaces_by_id for namespace in wanted), NAMESPACE_WAIT_S
                )
        found = {}
        for namespace in wanted:
            known = view.namespaces_by_id.get(namespace)
            if known is not None and known.row.state == "live":
                found[namespace] = NamespaceFacts(keys.named(keys.NAMESPACE, known.name), known.create_revision)
        return found

    def _sweep(self, namespace: int, upload: bytes, parts: int) -> None:
        if len(self._sweeps) >= SWEEPS_MAX:
            return  # the keeper finds them
        task = asyncio.create_task(self._swept(namespace, upload, parts), name="sweep parts")
        self._sweeps.add(task)
        task.add_done_callback(self._sweeps.discard)

    async def _swept(self, namespace: int, upload: bytes, parts: int) -> None:
        with contextlib.suppress(CatalogDown, OutcomeUnknown):  # the keeper finds them
            await sweep_parts(self._core.etcd, namespace, upload, parts)
