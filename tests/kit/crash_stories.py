"""Every way in which a node writes to its disk, as a story that can be broken off at any system call.

A story prepares a node, arms the fault, acts, and may be broken off by it. Whatever a client or the catalog was told
before is noted on the stage; the judge (`crash_points`) starts the node anew on a sound disk and looks whether all of
it is true and nothing else is claimed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import aiohttp
import msgspec

from copypool.protocol.api import CompleteRequest, PartRef, Receipt
from copypool.protocol.digests import digest_of, parse_digest
from copypool.protocol.errors import CopypoolError, from_response
from copypool.protocol.internal import ConfigurationCommand, DropCommand, ExtentClass, PullCommand, PullSource
from copypool.protocol.routes import CAPABILITY, MSGPACK
from copypool_node.config import Limits
from copypool_node.disk import Disk
from kit.eventually import eventually
from kit.fake_coordinator import FakeCoordinator
from kit.faulty_disk import FaultyDisk
from kit.node_process import NodeUnderTest, quick_limits, running_node

MIB = 1024 * 1024
#: Heartbeats, and with them probes, stay out of the way: the story's own calls are counted.
LIMITS = quick_limits(heartbeat_s=20.0, extent_soft_bytes=20_000, twin_timeout_s=2.0, commit_wait_s=3.0)


class Acked(NamedTuple):
    """What a client was told last of a path. A later write that it heard nothing of may have landed."""

    version: int
    body: bytes | None  #: None: deleted


class Stage:
    """One run of one story: the node under attack, what it stands on, and what was promised."""

    def __init__(self, folder: Path, coordinator: FakeCoordinator, stack: AsyncExitStack) -> None:
        self.folder = folder
        self.coordinator = coordinator
        self.stack = stack
        self.disk = FaultyDisk()  #: of the node under attack
        self.arm: Callable[[], None] = lambda: None
        self.acked: dict[str, Acked] = {}  #: by path
        self.both: dict[str, Receipt] = {}  #: receipts that name the twin as well
        self.source: NodeUnderTest | None = None  #: that the node under attack copies from, or that writes to it
        self.dropped: set[int] = set()  #: extents whose drop was acknowledged
        self.configuration = -1  #: newest that was acknowledged
        self.node: NodeUnderTest | None = None
        self._nodes: AsyncExitStack | None = None

    async def start(self, *, name: str = "n1", limits: Limits = LIMITS, disk: Disk | None = None) -> NodeUnderTest:
        """Start the node under attack, on its faulty disk unless another is given; its end is a crash."""
        self._nodes = AsyncExitStack()
        context = running_node(
            self.folder,
            self.coordinator,
            name=name,
            pool_type="primary" if name == "n1" else "copy",
            limits=limits,
            disk=disk or self.disk,
            crash=True,
        )
        self.node = await self._nodes.enter_async_context(context)
        return self.node

    async def beside(self, limits: Limits) -> NodeUnderTest:
        """Start the sound node n1 beside the one under attack."""
        self.source = await self.stack.enter_async_context(running_node(self.folder, self.coordinator, limits=limits))
        return self.source

    async def crash(self) -> None:
        """End the node under attack without order."""
        if self._nodes is not None:
            nodes, self._nodes, self.node = self._nodes, None, None
            await nodes.aclose()

    async def put(self, path: str, size: int, node: NodeUnderTest | None = None) -> None:
        """A PUT; noted when it is acknowledged, forgotten with its error when not."""
        body = os.urandom(size)
        with may_fail():
            receipt = await (node or self._own()).put(path, body)
            self.acked[path] = Acked(receipt.version, body)
            self.both.pop(path, None)
            if receipt.ack == "copy":
                self.both[path] = receipt

    async def delete(self, path: str) -> None:
        """A DELETE, noted likewise."""
        with may_fail():
            receipt = await self._own().delete(path)
            self.acked[path] = Acked(receipt.version, None)

    def _own(self) -> NodeUnderTest:
        assert self.node is not None
        return self.node


@contextmanager
def may_fail() -> Iterator[None]:
    """What is refused, cut off or never answered promises nothing."""
    with contextlib.suppress(CopypoolError, aiohttp.ClientError, TimeoutError, ConnectionError):
        yield


# -- the stories --------------------------------------------------------------------------------
async def joining(stage: Stage) -> None:
    """The first start of all: identity, directories, label, and the first file."""
    stage.arm()
    with contextlib.suppress(AssertionError, TimeoutError):  # it may never be ready on such a disk
        async with asyncio.timeout(1.0):
            await stage.start()
            await stage.put("first", 3000)


async def small_groups(stage: Stage) -> None:
    """A new extent, groups, the next extent."""
    await stage.start()
    stage.arm()
    for number in range(5):
        await stage.put(f"f{number}", 6000)


async def long_bodies(stage: Stage) -> None:
    """Bodies stripe by stripe; one follows the other in its extent."""
    await stage.start(limits=quick_limits(heartbeat_s=20.0))
    stage.arm()
    await stage.put("long", 5 * MIB)
    await stage.put("longer", 2 * MIB)


async def seals(stage: Stage) -> None:
    """Full extents get their footer, are read back, and get their second footer with the digest."""
    node = await stage.start(limits=quick_limits(heartbeat_s=20.0, extent_soft_bytes=5000))
    await stage.put("before", 100)
    stage.arm()
    await stage.put("one", 6000)
    await stage.put("two", 6000)

    def settled() -> bool:
        return len(stage.coordinator.requests["verified"]) >= 2 or stage.disk.struck

    await eventually(settled, "both are read back")
    await eventually(lambda: not node.node.volumes[0].disk.queued_calls, "the disk is quiet")


async def refusals(stage: Stage) -> None:
    """A record is refused, and noted so in a later group before its client hears of it."""
    node = await stage.start()
    await stage.put("taken", 3000)
    stage.arm()
    for _ in range(2):
        with may_fail():
            await node.put("taken", b"refused" * 500, headers={"If-None-Match": "*"})
    await stage.put("after", 3000)


async def manifests(stage: Stage) -> None:
    """Parts, then the record that makes one file of them."""
    node = await stage.start(limits=quick_limits(heartbeat_s=20.0))
    stage.arm()
    upload = os.urandom(16).hex()
    bodies = [os.urandom(MIB + 1), b"end"]
    parts = []
    with may_fail():
        for number, body in enumerate(bodies):
            receipt = await node.put("big", body, kind=f"parts/1/{upload}/{number}")
            assert receipt.segment is not None
            parts.append(PartRef(number, receipt.version, parse_digest(receipt.digest), receipt.segment))
        whole = b"".join(bodies)
        asked = CompleteRequest(upload, parts, len(whole), digest_of(whole), os.urandom(8))
        headers = {CAPABILITY: node.write_capability(), "Content-Type": MSGPACK, "Accept": MSGPACK}
        url = f"{node.url}/v1/complete/1/big"
        async with node.http.post(url, data=msgspec.msgpack.encode(asked), headers=headers) as response:
            answer = await response.read()
            if response.status >= 400:
                raise from_response(response.status, answer, response.content_type)
        stage.acked["big"] = Acked(msgspec.msgpack.decode(answer, type=Receipt).version, whole)


async def deletes(stage: Stage) -> None:
    """Tombstones."""
    await stage.start()
    for path in ("a", "b", "c"):
        await stage.put(path, 2000)
    stage.arm()
    await stage.delete("a")
    await stage.delete("b")
    await stage.put("b", 2000)


async def mounting(stage: Stage) -> None:
    """The next start after a crash: claim, seal what was open, cut its torn tail, put the footer."""
    node = await stage.start(disk=Disk())
    await stage.put("kept", 3000)
    paused = stage.coordinator.hold("commit")
    late = asyncio.create_task(stage.put("late", 5000))
    await eventually(lambda: stage.coordinator.waiting["commit"] == 1, "a group is written and not committed")
    file = node.extent_file(1)
    await stage.crash()
    await late
    stage.coordinator.holds.clear()
    paused.set()
    with file.open("ab") as opened:
        opened.write(b"torn" * 1000)
    stage.arm()
    with contextlib.suppress(AssertionError, TimeoutError):  # it may never be ready on such a disk
        async with asyncio.timeout(1.0):
            await stage.start()
            await stage.put("more", 3000)


async def new_session(stage: Stage) -> None:
    """The session ends under a living process: claim again, seal, cut."""
    node = await stage.start()
    await stage.put("kept", 3000)
    epoch = node.node.session.epoch
    stage.arm()
    stage.coordinator.end_session(1)
    node.node.session.end("its lease ran out")
    await eventually(
        lambda: (node.node.session.epoch > epoch and node.node.ready) or stage.disk.struck, "a new session"
    )
    await stage.put("more", 3000)


async def configurations(stage: Stage) -> None:
    """The leader brings the configuration, then a newer one."""
    node = await stage.start()
    stage.arm()
    for revision in (5, 9):
        with may_fail():
            command = ConfigurationCommand(1, node.volume, revision, b"configuration %d" % revision)
            await node.command("configuration", command)
            stage.configuration = revision


async def drops(stage: Stage) -> None:
    """A copy is deleted on command, told again when nobody answered."""
    source = await stage.beside(LIMITS)
    await stage.put("kept", 5000, source)
    to = await stage.start(name="n2")
    await pull(stage, source, to)
    _, _, length = stage.coordinator.copies[1, to.volume]
    stage.coordinator.copies[1, to.volume] = (1, "dropping", length)  # counted for nothing, before anybody is told
    stage.arm()
    for _ in range(2):
        with may_fail():
            await to.command("drop", DropCommand(1, 1, to.volume, 1))
            stage.dropped.add(1)
            stage.coordinator.copies.pop((1, to.volume), None)


async def pulls(stage: Stage) -> None:
    """A copy follows an open extent, and is finished when that is sealed."""
    source = await stage.beside(LIMITS)
    await stage.put("first", 5000, source)
    to = await stage.start(name="n2")
    stage.arm()
    await pull(stage, source, to)
    await stage.put("second", 5000, source)
    await pull(stage, source, to)
    await source.node.volumes[0].lanes[1].stop("the story goes on")
    stage.coordinator.seal(1)
    await pull(stage, source, to)


async def pull(stage: Stage, source: NodeUnderTest, to: NodeUnderTest) -> None:
    """Bring n2 to the committed length of extent 1, or until it gives up."""
    row, told = stage.coordinator.extents[1], len(stage.coordinator.requests["progress"])
    ids = source.node.session.node_id, to.node.session.node_id
    named = PullSource(ids[0], source.url, row.length, stage.coordinator.pull_capability(*ids, 1))
    command = PullCommand(1, 1, to.volume, 1, row.length, row.sealed, list(row.refusals), b"", [named])
    stage.coordinator.copies.setdefault((1, to.volume), (1, "copying", 0))  # it is reserved before anybody pulls
    with may_fail():
        await to.command("pull", command)
    await eventually(
        lambda: len(stage.coordinator.requests["progress"]) > told or not to.node.puller.queued(to.node.volumes[0]),
        "the pull ends",
    )


async def twins(stage: Stage) -> None:
    """The twin of an extent that another node writes: created, appended to, stripe by stripe as well."""
    writer = await stage.beside(quick_limits(heartbeat_s=20.0, twin_timeout_s=2.0))
    twin = await stage.start(name="n2", limits=quick_limits(heartbeat_s=20.0))
    stage.coordinator.extent_class = ExtentClass(1, "primary", ["copy"], "copy", "continue")
    stage.coordinator.twins = [(twin.node.session.node_id, twin.volume, "n2-a")]
    stage.arm()
    for number, size in enumerate((10, 5000, 5 * MIB, 7000)):
        await stage.put(f"f{number}", size, writer)


STORIES: dict[str, Callable[[Stage], Awaitable[None]]] = {
    story.__name__: story
    for story in (
        joining,
        small_groups,
        long_bodies,
        seals,
        refusals,
        manifests,
        deletes,
        mounting,
        new_session,
        configurations,
        drops,
        pulls,
        twins,
    )
}
