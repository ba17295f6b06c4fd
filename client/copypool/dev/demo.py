"""`copypool dev demo`: the main job on a real cluster of this machine, told step by step, ending in figures.

Store a real tree and a large file; let the servers copy them; copy again (nothing); kill -9 a primary node while
everything is being read; read on; watch the lost primaries being rebuilt; see that all is proven to be well.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from copypool import Client
from copypool.cancellation import TaskGroup
from copypool.dev.demo_reading import Readers
from copypool.dev.demo_source import LARGE_FILE, SourceFile, make_source
from copypool.dev.layout import NAMESPACE, Sizes, Tuning
from copypool.dev.supervisor import Supervisor
from copypool.protocol.api import SegmentInfo, StatReply, StatusReply
from copypool.protocol.errors import CopypoolError, Unavailable

PREFIX = "demo"
VICTIM = "node1"
SURVIVOR = "node2"
#: Short, so that the story fits into three minutes; a real cluster waits ten minutes before it rebuilds a node.
TUNING = Tuning(grace_s=5, session_ttl_s=6, idle_seal_s=3.0)
MIB = 1024 * 1024
COPIED_TIMEOUT_S = 60.0
GREEN_TIMEOUT_S = 90.0
_POLL_S = 0.2

Say = Callable[[str], None]


class Figures:
    """What the demo measured, in the order in which it is shown."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str]] = []

    def add(self, what: str, value: str) -> None:
        """One line of the table."""
        self.rows.append((what, value))

    def table(self) -> str:
        """All lines, aligned."""
        width = max(len(what) for what, _ in self.rows)
        return "\n".join(f"  {what:<{width}}  {value}" for what, value in self.rows)


class Demo:
    """One run. `run` gives True when not one byte differed and not one read failed."""

    def __init__(self, folder: Path, say: Say) -> None:
        self._source_folder = folder / "source"
        self._supervisor = Supervisor(folder / "cluster", lambda line: say(f"   ({line})"))
        self._say = say
        self._figures = Figures()
        self._failures: list[str] = []

    def run(self) -> bool:
        """Play the whole story; nothing is left running or lying about afterwards, however it ends."""
        self._clean()
        try:
            self._say("1. A cluster: etcd, two coordinators, two nodes with primary and two with copy volumes")
            self._supervisor.up(Sizes(), TUNING)
            self._say("   Something to store: Python's standard library and a file of 512 MiB")
            files = make_source(self._source_folder)
            asyncio.run(self._story(files))
        finally:
            self._clean()
        self._say("\nFigures")
        self._say(self._figures.table())
        for failure in self._failures[:20]:
            self._say(f"FAILED {failure}")
        return not self._failures

    def _clean(self) -> None:
        self._supervisor.down(wipe=True)
        shutil.rmtree(self._source_folder, ignore_errors=True)
        with suppress(FileNotFoundError, OSError):
            self._source_folder.parent.rmdir()

    async def _story(self, files: dict[str, SourceFile]) -> None:
        async with await Client.connect(profile=self._supervisor.layout.profile_file) as client:
            await self._store(client, files)
            await self._second_pass(client)
            await self._lose_a_node(client, files)

    # -- the steps ----------------------------------------------------------------------------
    async def _store(self, client: Client, files: dict[str, SourceFile]) -> None:
        size_bytes = sum(file.size for file in files.values())
        self._say(f"2. Store {len(files)} files, {size_bytes / MIB:.0f} MiB, in the primary pool")
        started = time.monotonic()
        await client.put_tree(self._source_folder / "stdlib", NAMESPACE, f"{PREFIX}/stdlib")
        tree_s = time.monotonic() - started
        await client.put(NAMESPACE, f"{PREFIX}/{LARGE_FILE}", self._source_folder / LARGE_FILE)
        stored_s = time.monotonic() - started
        self._say("   Wait for the servers to copy all of it to the copy pool")
        await client.wait_copied(timeout_s=COPIED_TIMEOUT_S)
        copied_s = time.monotonic() - started
        pulled = await asyncio.to_thread(self._supervisor.pulled_bytes)
        self._figures.add("files", f"{len(files)}")
        self._figures.add("bytes", f"{size_bytes} ({size_bytes / MIB:.0f} MiB)")
        self._figures.add("stored", f"{stored_s:.1f} s ({(len(files) - 1) / tree_s:.0f} files/s of the tree)")
        self._figures.add("copied", f"{pulled / MIB:.0f} MiB, {copied_s - stored_s:.1f} s after the last was stored")
        self._figures.add("copy rate", f"{pulled / MIB / copied_s:.0f} MiB/s beside the storing")
        for name in ("stdlib/os.py", LARGE_FILE):
            self._show(await client.stat(NAMESPACE, f"{PREFIX}/{name}"))

    async def _second_pass(self, client: Client) -> None:
        self._say("3. A second incremental pass")
        before = await asyncio.to_thread(self._supervisor.pulled_bytes)
        await client.wait_copied(timeout_s=COPIED_TIMEOUT_S)
        await self._green(client)
        again = await asyncio.to_thread(self._supervisor.pulled_bytes) - before
        self._say(f"   copied {again} bytes; status is green: every live byte is proven to be where policy wants it")
        self._figures.add("second pass", f"{again} bytes")
        if again:
            self._failures.append(f"the second pass copied {again} bytes")

    async def _lose_a_node(self, client: Client, files: dict[str, SourceFile]) -> None:
        self._say(f"4. Read everything, again and again; in the middle of it: kill -9 {VICTIM}")
        readers, enough = Readers(client, NAMESPACE, PREFIX, files), asyncio.Event()
        async with TaskGroup() as group:
            reading = group.create_task(readers.until(enough))
            await readers.halfway.wait()
            if readers.rounds:
                self._failures.append("the readers had read everything before the node was killed")
            await asyncio.to_thread(self._supervisor.kill, VICTIM)
            killed_at, reads_at_kill = time.monotonic(), readers.reads
            self._say(f"   killed after {readers.reads} files and {readers.bytes / MIB:.0f} MiB; the readers go on")
            await self._status(client, _lost, f"{VICTIM} was not missed")
            await self._green(client)
            protected_s = time.monotonic() - killed_at
            reads_amid = readers.reads - reads_at_kill
            enough.set()
            await reading
        self._say(f"   {readers.reads} reads in {readers.rounds} rounds, {len(readers.failures)} failed or differed")
        self._failures += readers.failures
        await self._show_rebuilt(client)
        self._figures.add("reads", f"{readers.reads} in {readers.rounds} rounds, {readers.bytes / MIB:.0f} MiB")
        self._figures.add("reads during the failure", f"{reads_amid}, from the kill to full protection")
        self._figures.add("failed reads", f"{len(readers.failures)}")
        self._figures.add("longest stall", f"{readers.longest_stall_s:.2f} s")
        self._figures.add(
            "time to full protection", f"{protected_s:.1f} s after the kill; {TUNING.grace_s} s of it are grace"
        )

    async def _show_rebuilt(self, client: Client) -> None:
        self._say(f"5. The lost primaries were rebuilt on {SURVIVOR}, by themselves, while the readers read")
        large = await client.stat(NAMESPACE, f"{PREFIX}/{LARGE_FILE}")
        self._show(large)
        self._failures += [
            f"segment {number} of {LARGE_FILE} has no primary on {SURVIVOR}"
            for number, segment in enumerate(large.segments)
            if not _has_primary_on(segment, SURVIVOR)
        ]
        status = await client.status()
        away = ", ".join(node.name for node in status.nodes if node.state == "away")
        self._say(
            f"6. Status is {'green' if status.healthy else 'NOT green'}: {status.files} files, "
            f"{status.bytes / MIB:.0f} MiB; {status.debt_bytes} bytes of copy debt, {status.damaged_locations} damaged "
            f"locations, {status.under_protected_extents} extents below policy, {status.unverified_bytes} bytes not "
            f"read back, {status.unavailable_files} files unavailable, {status.lost_files} lost. Away: {away}"
        )
        if not status.healthy:
            self._failures += status.reasons

    async def _green(self, client: Client) -> None:
        """Green and proven: nothing is young any more, every byte was read back at each of its locations."""
        await self._status(client, lambda status: status.healthy and not status.unverified_bytes, "not proven")

    async def _status(self, client: Client, wanted: Callable[[StatusReply], bool], otherwise: str) -> None:
        """Wait until status is as wanted; `Unavailable` says what it was instead."""
        deadline = time.monotonic() + GREEN_TIMEOUT_S
        while True:
            try:
                status = await client.status()
                if wanted(status):
                    return
                reasons = "; ".join(status.reasons)
            except CopypoolError as exc:
                reasons = exc.message
            if time.monotonic() > deadline:
                raise Unavailable(f"{otherwise} after {GREEN_TIMEOUT_S:.0f} s: {reasons or 'not all is read back'}")
            await asyncio.sleep(_POLL_S)

    def _show(self, stat: StatReply) -> None:
        """One segment with all its locations: the first of those that the victim holds, if there are any."""
        held = (segment for segment in stat.segments if any(place.node == VICTIM for place in segment.locations))
        segment = next(held, stat.segments[0])
        number = stat.segments.index(segment) + 1
        self._say(f"   {stat.namespace}/{stat.path}: {stat.size} bytes; segment {number} of {len(stat.segments)}:")
        for place in segment.locations:
            self._say(
                f"     {place.pool:<8} {place.volume:<9} {place.node:<6} offset {place.offset:<9} "
                f"length {place.length:<9} {place.state}{'' if place.reachable else ', away'}"
            )


def _lost(status: StatusReply) -> bool:
    """Whether the cluster has missed the victim, whose session lives on for some seconds."""
    return any(node.name == VICTIM and node.state == "away" for node in status.nodes)


def _has_primary_on(segment: SegmentInfo, node: str) -> bool:
    return any(
        location.node == node and location.pool_type == "primary" and location.state == "good"
        for location in segment.locations
    )
