"""Disks are full: writes are refused early and clearly, none is half-visible, deletes work, room brings writes back."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from copypool import Client
from copypool.protocol.errors import NoSpace, NotFound
from copypool.writing import WRITE_DEADLINE_S
from kit.cluster import RealCluster, until
from kit.workload import NAMESPACE

MIB = 1024 * 1024
DISK_MIB = 128
FILE_BYTES = MIB
NODES = ("node1", "node2")  #: those with primary volumes

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems")


async def run(*arguments: str) -> None:
    await asyncio.to_thread(subprocess.run, arguments, check=True, capture_output=True, timeout=60)


async def mount(volume: Path, size_mib: int) -> None:
    """Put a volume onto a file system of its own."""
    kept = f"{volume}.kept"
    await run("cp", "-a", str(volume), kept)
    await run("mount", "-t", "tmpfs", "-o", f"size={size_mib}m,mode=0700", "tmpfs", str(volume))
    await run("cp", "-a", f"{kept}/.", str(volume))
    await run("rm", "-rf", kept)


async def unmount(volume: Path) -> None:
    """Put it back where it was, with what it holds."""
    kept = f"{volume}.kept"
    await run("cp", "-a", str(volume), kept)
    await run("umount", str(volume))
    await run("rm", "-rf", str(volume))
    await run("mv", kept, str(volume))


@pytest.fixture
async def small(cluster: RealCluster) -> AsyncIterator[RealCluster]:
    """The cluster, its primary volumes on disks of `DISK_MIB`."""
    volumes = {node: cluster.layout.volume(node) for node in NODES}
    for node, volume in volumes.items():
        await cluster.terminate(node)
        await mount(volume, DISK_MIB)
        await cluster.start(node)
    yield cluster
    for node, volume in volumes.items():
        await cluster.terminate(node)
        await unmount(volume)


async def test_full_disks_refuse_early_and_deletes_go_on(small: RealCluster, client: Client) -> None:
    stored: dict[str, bytes] = {}
    refused = ""
    for number in range(4 * DISK_MIB * MIB // FILE_BYTES):
        path, content = f"full/{number}", os.urandom(FILE_BYTES)
        started = time.monotonic()
        try:
            await client.put(NAMESPACE, path, content)
        except NoSpace:
            assert time.monotonic() - started < WRITE_DEADLINE_S / 2, "it is not tried again until the deadline"
            refused = path
            break
        stored[path] = content
    assert refused, "more went in than there is room for"
    assert len(stored) * FILE_BYTES > DISK_MIB * MIB, "the writes moved on to the second disk"
    with pytest.raises(NotFound):
        await client.get(NAMESPACE, refused)

    admin = {"Authorization": f"Bearer {small.layout.admin_token.read_text().strip()}"}
    folder = f"{small.plan.process('coordinator1').url}/v1/files/{NAMESPACE}/full"
    async with aiohttp.ClientSession(headers=admin) as session:

        async def refused_plainly() -> bool:
            """Whoever seals an extent gives back what was reserved ahead for it: there may be room for one more."""
            path, content = f"full/plain-{len(stored)}", bytes(FILE_BYTES)
            async with session.put(f"{folder}/plain-{len(stored)}", data=content) as response:
                if response.status == 201:
                    stored[path] = content
                    return False
                return (response.status, (await response.json())["code"]) == (507, "no_space")

        await until(refused_plainly, "plain HTTP is refused", within_s=60)

    gone = next(iter(stored))
    await client.delete(NAMESPACE, gone)
    del stored[gone]
    assert {entry.path async for entry in client.list(NAMESPACE, "full/")} == set(stored)
    for path, content in stored.items():
        assert await client.get(NAMESPACE, path) == content

    for node in NODES:
        await run("mount", "-o", f"remount,size={4 * DISK_MIB}m", str(small.layout.volume(node)))

    async def room() -> bool:
        await client.put(NAMESPACE, refused, bytes(FILE_BYTES))
        return True

    await until(room, "room brings writes back", within_s=60)
