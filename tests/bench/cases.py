"""The cases of the bench: each puts load on one side for one round. `suite` names them."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from itertools import islice
from pathlib import Path

from bench.copypool_side import NAME, CopypoolSide
from bench.load import run
from bench.processes import CpuMeter
from bench.results import Round
from bench.seaweed import NAME as PEER
from bench.seaweed import Seaweed
from copypool.protocol import routes
from copypool.protocol.api import LOOKUP_MAX, LookupReply, LookupRequest

NAMESPACE = "default"
SMALL_BYTES = 4096
GET_FILES = 2000
MIB = 1024 * 1024


# -- small files ------------------------------------------------------------------------------
def put_small(side: CopypoolSide, connections: int, seconds: int) -> Round:
    """Durable PUTs straight to the node, under one write lease, as the SDK sends them."""
    lease = asyncio.run(side.lease(NAMESPACE))
    arguments = [secrets.token_hex(4), str(SMALL_BYTES), "", "1", f"{routes.CAPABILITY}: {lease.capability}"]
    url = f"{lease.url}/v1/files/{lease.namespace_id}/small"
    return run(NAME, "put.lua", url, arguments, connections=connections, seconds=seconds, pids=side.pids)


def peer_put_small(peer: Seaweed, connections: int, seconds: int) -> Round:
    """PUTs to the filer with `fsync=true`."""
    arguments = [secrets.token_hex(4), str(SMALL_BYTES), "?fsync=true", "0"]
    url = f"{peer.filer}/small"
    return run(PEER, "put.lua", url, arguments, connections=connections, seconds=seconds, pids=peer.pids)


async def put_many(side: CopypoolSide, files: int) -> Round:
    """`Client.put_many` of files in memory."""
    run_name = secrets.token_hex(4)
    bodies = islice(_small_bodies(), files)
    async with await side.client() as client:
        await client.put(NAMESPACE, f"many/{run_name}/first", b"x")
        meter, begun = CpuMeter({**side.pids, "sdk": os.getpid()}), time.monotonic()
        done = await client.put_many(NAMESPACE, ((f"many/{run_name}/{n}", body) for n, body in enumerate(bodies)))
        return _round(meter, time.monotonic() - begun, done.files)


async def store_for_get(side: CopypoolSide, folder: Path) -> None:
    """Files that GETs may ask for, and lists of requests for the load generator: `names` and `segments`."""
    paths = [f"get/{number}" for number in range(GET_FILES)]
    async with await side.client() as client:
        await client.put_many(NAMESPACE, list(zip(paths, _small_bodies(), strict=False)))
    (folder / "names").write_text("".join(f"/v1/files/{NAMESPACE}/{path}\n" for path in paths))
    lines: list[str] = []
    for start in range(0, GET_FILES, LOOKUP_MAX):
        request = LookupRequest(NAMESPACE, paths[start : start + LOOKUP_MAX], raw=False)
        for found in (await side.ask("lookup", request, LookupReply)).results:
            assert found.file is not None, found.message
            plan = found.file.segments[0]
            path = f"/v1/segments/{plan.extent}/{plan.offset}/{plan.length}?v={found.file.version}"
            lines.append(f"{path}\t{routes.CAPABILITY}: {plan.sources[0].capability}\n")
    (folder / "segments").write_text("".join(lines))


def peer_store_for_get(peer: Seaweed, folder: Path) -> None:
    """The same files on the filer, and the list `filer`."""
    with closing(HTTPConnection(peer.filer.removeprefix("http://"), timeout=10)) as connection:
        for number, body in zip(range(GET_FILES), _small_bodies(), strict=False):
            connection.request("PUT", f"/get/{number}", body)
            response = connection.getresponse()
            response.read()
            assert response.status < 300, response.status
    (folder / "filer").write_text("".join(f"/get/{number}\n" for number in range(GET_FILES)))


def _small_bodies() -> Iterator[bytes]:
    pool = os.urandom(MIB + SMALL_BYTES)
    while True:
        for start in range(0, MIB, 499):
            yield pool[start : start + SMALL_BYTES]


def get_small(side: CopypoolSide, folder: Path, connections: int, seconds: int) -> Round:
    """GETs by name through the coordinator, by a plain HTTP client."""
    arguments = [str(folder / "names"), f"Authorization: Bearer {side.token}"]
    url = side.coordinator
    return run(NAME, "get.lua", url, arguments, connections=connections, seconds=seconds, pids=side.pids)


def peer_get_small(peer: Seaweed, folder: Path, connections: int, seconds: int) -> Round:
    """GETs by name from the filer."""
    arguments = [str(folder / "filer")]
    return run(PEER, "get.lua", peer.filer, arguments, connections=connections, seconds=seconds, pids=peer.pids)


def get_segment(side: CopypoolSide, folder: Path, connections: int, seconds: int) -> Round:
    """GETs from the node, location and capability known."""
    arguments = [str(folder / "segments")]
    return run(NAME, "get.lua", side.node, arguments, connections=connections, seconds=seconds, pids=side.pids)


# -- large files and trees --------------------------------------------------------------------
async def put_stream(side: CopypoolSide, content: Path, size_mib: int) -> Round:
    """One large file, put by the SDK; operations are MiB."""
    async with await side.client() as client:
        meter, begun = CpuMeter({**side.pids, "sdk": os.getpid()}), time.monotonic()
        await client.put(NAMESPACE, "stream/file", content)
        return _round(meter, time.monotonic() - begun, size_mib)


async def get_stream(side: CopypoolSide) -> Round:
    """The same file, read and checked by the SDK."""
    async with await side.client() as client:
        meter, begun = CpuMeter({**side.pids, "sdk": os.getpid()}), time.monotonic()
        size = 0
        async with await client.open(NAMESPACE, "stream/file") as stream:
            async for piece in stream:
                size += len(piece)
        return _round(meter, time.monotonic() - begun, size // MIB)


async def put_tree(side: CopypoolSide, folder: Path) -> Round:
    """`Client.put_tree` of a folder of small files."""
    async with await side.client() as client:
        meter, begun = CpuMeter({**side.pids, "sdk": os.getpid()}), time.monotonic()
        done = await client.put_tree(folder, NAMESPACE, f"tree/{secrets.token_hex(4)}")
        return _round(meter, time.monotonic() - begun, done.files)


def make_tree(folder: Path, files: int) -> None:
    """A tree of small files of 1 to 8 KiB, 100 in a folder."""
    folder.mkdir()
    pool = os.urandom(MIB)
    for number in range(files):
        place = folder / f"{number // 100:04d}"
        if number % 100 == 0:
            place.mkdir()
        size = 1024 + number * 7919 % 7168
        start = number * 104_729 % (MIB - size)
        (place / f"{number}.bin").write_bytes(pool[start : start + size])


def make_large(place: Path, size_mib: int) -> None:
    """A file of random bytes."""
    with place.open("wb") as file:
        for _ in range(size_mib // 16):
            file.write(os.urandom(16 * MIB))


def _round(meter: CpuMeter, seconds: float, operations: int) -> Round:
    used = meter.read()
    return Round(NAME, operations, seconds, {name: each * 1e6 / max(1, operations) for name, each in used.items()})
