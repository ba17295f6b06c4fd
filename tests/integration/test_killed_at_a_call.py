"""A node process kills itself with SIGKILL at a chosen system call, in the middle of it if that is a write.

The same as `contract/test_crash_points`, without a simulation in between: what the kernel keeps of a process that is
gone is what the next one finds.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import aiohttp
import pytest

from copypool.protocol.digests import digest_of
from copypool.protocol.errors import CopypoolError
from copypool_node.config import Limits
from kit.fake_coordinator import running
from kit.judging import check_written
from kit.node_daemon import NodeDaemon

MIB = 1024 * 1024
LIMITS = Limits(heartbeat_s=20.0, verify_bytes_s=0, extent_soft_bytes=65_536)

#: From the first acknowledged put on, the process counts the calls of this name and dies of one of them. Before it they
#: do not count: how many calls a first put takes depends on how far extents opened ahead of it have got.
MORTAL = """
import os, signal, threading
from copypool_node.disk import Disk

lock, left, whole = threading.Lock(), [{nth}], Disk.invoke

def invoke(self, name, function, *args, **kwargs):
    if name == {name!r} and args and str(args[0]).find("label") < 0 and os.path.exists({armed!r}):
        with lock:
            left[0] -= 1
            if left[0] == 0:
                if name == "write":
                    data = b"".join(args[1])
                    os.pwrite(args[0], data[: len(data) // 2], args[2])
                os.kill(os.getpid(), signal.SIGKILL)
    return whole(self, name, function, *args, **kwargs)

Disk.invoke = invoke
from copypool_node.__main__ import main
main()
"""


@pytest.mark.parametrize(
    ("name", "nth"),
    [("create", 2), ("write", 2), ("write", 7), ("write", 12), ("sync_data", 3), ("sync_file", 4), ("truncate", 1)],
)
async def test_what_was_acknowledged_outlives_a_kill_at_any_call(tmp_path: Path, name: str, nth: int) -> None:
    acked: dict[str, int] = {}  # path -> version
    armed = tmp_path / "armed"
    home = tmp_path / "home"
    home.mkdir()
    async with running() as coordinator, aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as http:
        program = ("-c", MORTAL.format(name=name, nth=nth, armed=str(armed)))
        daemon = NodeDaemon(tmp_path, home, coordinator, http, limits=LIMITS, program=program)
        daemon.launch()
        try:
            node = await daemon.ready()
            acked["first"] = (await node.put("first", os.urandom(30_000))).version
            armed.touch()
            for number in range(16):
                path, body = f"f{number % 5}", os.urandom(2 * MIB if number == 7 else 30_000)
                with contextlib.suppress(CopypoolError, aiohttp.ClientError, ConnectionError):
                    acked[path] = (await node.put(path, body)).version
            assert await asyncio.to_thread(daemon.died), "it has killed itself"
            await daemon.kill()
            coordinator.end_session(1)
            daemon.restart_as("-m", "copypool_node")
            node = await daemon.ready()
            await asyncio.to_thread(check_written, daemon.volume, coordinator)
            for path, version in acked.items():
                row = coordinator.files[1, path]
                assert row.version >= version, f"{path} went back"
                _, content, _ = await node.get(row.segment, row.version)
                assert digest_of(content) == row.digest, path
        finally:
            await daemon.kill()
