"""Breaks a story of `crash_stories` off at one of its system calls, and judges what a new start makes of the rest."""

from __future__ import annotations

import asyncio
import errno
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from copypool.protocol.digests import digest_of
from copypool.protocol.internal import JoinRequest, PullCommand, PullSource
from copypool_node.disk import Disk
from copypool_node.label import decode_configuration
from kit.crash_stories import STORIES, Stage
from kit.eventually import eventually
from kit.fake_coordinator import running
from kit.judging import check_prefix, check_written, scanned
from kit.node_process import NodeUnderTest

STORY_S = 10.0  #: a story that was broken off and still waits has said all that it will say
#: What may become of the disk at a call.
FAULTS = ("once", "once full", "for ever", "killed", "power cut", "power cut, zeros")
#: Opening a volume looks into 256 directories: of a start only the calls that change something are counted.
COUNTED = {"joining": "change", "mounting": "change"}


async def break_off(folder: Path, name: str, fault: str, nth: int) -> bool:
    """Play a story with this fault at its nth call, then judge what is left; False: the story has fewer calls."""
    async with staged(folder) as stage:
        death = asyncio.Event()
        stage.arm = lambda: _arm(stage, COUNTED.get(name, "call"), fault, nth, death)
        await _play(stage, STORIES[name], death)
        await stage.crash()
        stage.disk.mend()
        if fault != "killed":
            stage.disk.power_cut(zeros=fault.endswith("zeros"))
        stage.coordinator.deaf_to.clear()
        await judge(stage, "n1" if stage.source is None else "n2")
        return stage.disk.struck


def _arm(stage: Stage, counted: str, fault: str, nth: int, death: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    disk, coordinator = stage.disk, stage.coordinator
    attacked = 1 if stage.source is None else 2

    def on_death() -> None:
        coordinator.deaf_to.add(attacked)  # who is dead calls nobody
        loop.call_soon_threadsafe(death.set)

    if fault.startswith("once"):
        disk.fail(counted, nth, errno.ENOSPC if fault == "once full" else errno.EIO)
    elif fault == "for ever":
        disk.fail_for_ever(counted, nth)
    else:
        disk.die(counted, nth, on_death)


async def _play(stage: Stage, story: Callable[[Stage], Awaitable[None]], death: asyncio.Event) -> None:
    playing = asyncio.ensure_future(story(stage))
    dying = asyncio.create_task(death.wait())
    await asyncio.wait([playing, dying], timeout=STORY_S, return_when=asyncio.FIRST_COMPLETED)
    if playing.done():
        playing.result()
    elif not stage.disk.struck:
        raise AssertionError("the story does not end by itself")
    for task in (playing, dying):
        task.cancel()
    await asyncio.gather(playing, dying, return_exceptions=True)


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


@asynccontextmanager
async def staged(folder: Path) -> AsyncIterator[Stage]:
    """An empty stage in an empty folder."""
    _empty(folder)
    async with running() as coordinator, AsyncExitStack() as stack:
        stage = Stage(folder, coordinator, stack)
        try:
            yield stage
        finally:
            await stage.crash()


# -- the judge ----------------------------------------------------------------------------------
async def judge(stage: Stage, name: str) -> None:
    """Start the node anew on a sound disk: whatever was promised is true, and nothing else is claimed."""
    for path, (version, body) in stage.acked.items():
        row = stage.coordinator.files[1, path]
        assert row.version >= version, f"{path} went back"
        if row.version == version:
            assert row.tombstone == (body is None), path
            assert body is None or (row.size, row.digest) == (len(body), digest_of(body)), path
    node = await stage.start(name=name, disk=Disk())
    joins = [one for one in stage.coordinator.requests["join"] if isinstance(one, JoinRequest)]
    assert len({(one.name, one.nonce) for one in joins}) == len({one.name for one in joins}), "no node joins as another"
    assert not node.node.volumes[0].safe_mode
    _judge_configuration(stage.folder / name / "volume" / "configuration", stage.configuration)
    if stage.source is None:
        await _judge_writer(stage, node)
    else:
        await _judge_copy(stage, node, stage.source)
    await stage.crash()


def _judge_configuration(file: Path, acknowledged: int) -> None:
    if acknowledged >= 0 or file.exists():
        assert decode_configuration(file.read_bytes())[0] >= acknowledged


async def _judge_writer(stage: Stage, node: NodeUnderTest) -> None:
    check_written(stage.folder / "n1" / "volume", stage.coordinator)
    for (_, path), row in stage.coordinator.files.items():
        if not row.tombstone:
            _, content, _ = await node.get(row.segment, row.version)
            assert len(content) != row.size or digest_of(content) == row.digest, path  # else it is a list of parts
    assert (await node.put("afterwards", b"it takes writes")).segment is not None


async def _judge_copy(stage: Stage, node: NodeUnderTest, source: NodeUnderTest) -> None:
    coordinator, volume = stage.coordinator, node.node.volumes[0]
    for (extent, _), (generation, state, length) in list(coordinator.copies.items()):
        if length and state != "dropping":
            file = volume.disk.get(extent, generation)
            assert file is not None, f"a {state} location of extent {extent} has no file"
            check_prefix(Path(file.path), source.extent_file(extent), extent, length)
    for extent in stage.dropped:
        assert volume.disk.get(extent) is None, "a drop that was acknowledged is final"
    for path, receipt in stage.both.items():
        assert receipt.segment is not None
        _, content, _ = await node.get(receipt.segment, receipt.version)
        assert content == stage.acked[path].body
    for (_, path), row in coordinator.files.items():
        _, content, _ = await source.get(row.segment, row.version)
        assert digest_of(content) == row.digest, path
    if all(state != "dropping" for _, state, _ in coordinator.copies.values()) and 1 not in stage.dropped:
        await _finish_copy(stage, node, source)


async def _finish_copy(stage: Stage, node: NodeUnderTest, source: NodeUnderTest) -> None:
    """The copy can be finished, whatever was left of it."""
    coordinator, volume = stage.coordinator, node.node.volumes[0]
    lane = source.node.volumes[0].lanes.get(1)
    if lane is not None:
        await lane.stop("its extents end")
    row = coordinator.extents[1]
    coordinator.seal(1)
    generation = coordinator.copies[1, node.volume][0]
    ids = source.node.session.node_id, node.node.session.node_id
    named = PullSource(ids[0], source.url, row.length, coordinator.pull_capability(*ids, 1))
    command = PullCommand(1, 1, node.volume, generation, row.length, True, list(row.refusals), b"", [named])
    await node.command("pull", command)

    def finished() -> bool:
        file = volume.disk.get(1, generation)
        return file is not None and file.sealed

    await eventually(finished, "the copy is finished")
    scanner = scanned(node.extent_file(1), 1)
    assert (scanner.verified_length, scanner.pending_bytes) == (row.length, 0)
    check_prefix(node.extent_file(1), source.extent_file(1), 1, row.length)
