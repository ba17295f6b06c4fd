"""Cases of small files: 4 KiB bodies by `wrk`, and `put_many` of the SDK."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from http.client import HTTPConnection
from itertools import islice

from bench.copypool_side import CopypoolSide, one_copy
from bench.frame import CaseFailed, Contest, Ground, awaited
from bench.load import run
from bench.processes import CpuMeter
from bench.results import OWN, Round, at_least
from bench.seaweed import Seaweed, seaweed
from copypool.protocol import routes
from copypool.protocol.api import LOOKUP_MAX, LookupReply, LookupRequest

NAMESPACE = "default"
SMALL_BYTES = 4096
GET_FILES = 2000
MIB = 1024 * 1024

FSYNC = "filer, fsync"
NO_FSYNC = "filer, no fsync"
FILER = "filer"


# -- writing ----------------------------------------------------------------------------------
def _put(connections: int, ground: Ground) -> Round:
    """Durable PUTs straight to the node, under one write lease, as the SDK sends them."""
    side = ground.use(one_copy)
    lease = asyncio.run(side.lease(NAMESPACE))
    arguments = [secrets.token_hex(4), str(SMALL_BYTES), "", "1", f"{routes.CAPABILITY}: {lease.capability}"]
    url = f"{lease.url}/v1/files/{lease.namespace_id}/small"
    return run("put.lua", url, arguments, connections=connections, seconds=ground.plan.seconds, pids=side.pids)


def _filer_put(connections: int, query: str, ground: Ground) -> Round:
    peer = ground.use(seaweed)
    arguments = [secrets.token_hex(4), str(SMALL_BYTES), query, "0"]
    url = f"{peer.filer}/small"
    return run("put.lua", url, arguments, connections=connections, seconds=ground.plan.seconds, pids=peer.pids)


def _put_many(ground: Ground) -> Round:
    return awaited(_many(ground.use(one_copy), ground.plan.many_files))


async def _many(side: CopypoolSide, files: int) -> Round:
    run_name = secrets.token_hex(4)
    bodies = islice(_bodies(), files)
    async with await side.client() as client:
        await client.put(NAMESPACE, f"many/{run_name}/first", b"x")
        meter, begun = CpuMeter({**side.pids, "sdk": os.getpid()}), time.monotonic()
        done = await client.put_many(NAMESPACE, ((f"many/{run_name}/{n}", body) for n, body in enumerate(bodies)))
        seconds = time.monotonic() - begun
        return Round(OWN, done.files, seconds, meter.per_operation_us(done.files))


def _bodies() -> Iterator[bytes]:
    pool = os.urandom(MIB + SMALL_BYTES)
    while True:
        for start in range(0, MIB, 499):
            yield pool[start : start + SMALL_BYTES]


# -- reading ----------------------------------------------------------------------------------
def _get(ground: Ground) -> Round:
    """GETs by name through the coordinator, by a plain HTTP client."""
    side = ground.use(one_copy)
    arguments = [str(ground.folder / "names"), f"Authorization: Bearer {side.token}"]
    return run("get.lua", side.coordinator, arguments, connections=64, seconds=ground.plan.seconds, pids=side.pids)


def _filer_get(ground: Ground) -> Round:
    peer = ground.use(seaweed)
    ground.once("files on the filer", partial(_store_on_filer, peer, ground))
    arguments = [str(ground.folder / "filer")]
    return run("get.lua", peer.filer, arguments, connections=64, seconds=ground.plan.seconds, pids=peer.pids)


def _get_segment(ground: Ground) -> Round:
    """GETs from the node, location and capability known."""
    side = ground.use(one_copy)
    arguments = [str(ground.folder / "segments")]
    return run("get.lua", side.node, arguments, connections=64, seconds=ground.plan.seconds, pids=side.pids)


def _store_for_get(ground: Ground) -> None:
    ground.once("files for GET", lambda: awaited(_store(ground)))


async def _store(ground: Ground) -> None:
    """Files that GETs may ask for, and lists of requests for the load generator: `names` and `segments`."""
    side, folder = ground.use(one_copy), ground.folder
    paths = [f"get/{number}" for number in range(GET_FILES)]
    async with await side.client() as client:
        await client.put_many(NAMESPACE, list(zip(paths, _bodies(), strict=False)))
    (folder / "names").write_text("".join(f"/v1/files/{NAMESPACE}/{path}\n" for path in paths))
    lines: list[str] = []
    for start in range(0, GET_FILES, LOOKUP_MAX):
        request = LookupRequest(NAMESPACE, paths[start : start + LOOKUP_MAX], raw=False)
        for found in (await side.ask("lookup", request, LookupReply)).results:
            if found.file is None:
                raise CaseFailed(f"a file that was stored is not found: {found.message}")
            plan = found.file.segments[0]
            path = f"/v1/segments/{plan.extent}/{plan.offset}/{plan.length}?v={found.file.version}"
            lines.append(f"{path}\t{routes.CAPABILITY}: {plan.sources[0].capability}\n")
    (folder / "segments").write_text("".join(lines))


def _store_on_filer(peer: Seaweed, ground: Ground) -> None:
    """The same files on the filer, and the list `filer`."""
    with closing(HTTPConnection(peer.filer.removeprefix("http://"), timeout=10)) as connection:
        for number, body in zip(range(GET_FILES), _bodies(), strict=False):
            connection.request("PUT", f"/get/{number}", body)
            response = connection.getresponse()
            response.read()
            if response.status >= 300:
                raise CaseFailed(f"the filer answered {response.status} to a PUT")
    (ground.folder / "filer").write_text("".join(f"/get/{number}\n" for number in range(GET_FILES)))


CASES = (
    Contest(
        "put64",
        "4 KiB durable PUT by name, 64 connections",
        (
            (OWN, partial(_put, 64)),
            (FSYNC, partial(_filer_put, 64, "?fsync=true")),
            (NO_FSYNC, partial(_filer_put, 64, "")),
        ),
        (at_least(2.0, than=FSYNC),),
        "one copy fsync'd at the answer; Copypool's name besides in etcd, fsync'd too, while the filer's is not synced",
        ground="one copy",
    ),
    Contest(
        "put128",
        "4 KiB durable PUT by name, 128 connections",
        (
            (OWN, partial(_put, 128)),
            (FSYNC, partial(_filer_put, 128, "?fsync=true")),
            (NO_FSYNC, partial(_filer_put, 128, "")),
        ),
        (at_least(2.4, than=FSYNC), at_least(1.2, than=NO_FSYNC)),
        ground="one copy",
    ),
    Contest(
        "many",
        "4 KiB durable files, `put_many`",
        ((OWN, _put_many), (FSYNC, partial(_filer_put, 64, "?fsync=true"))),
        (at_least(5.0, than=FSYNC),),
        "`sdk` is the CPU of the client; the filer has no such request: 64 connections, one request per file",
        ground="one copy",
    ),
    Contest(
        "get",
        "4 KiB GET by name, 64 connections",
        ((OWN, _get), (FILER, _filer_get)),
        (at_least(2.0, than=FILER),),
        "one request of a plain HTTP client to coordinator or filer; Copypool checks blocks before they leave the node",
        ground="one copy",
        prepare=_store_for_get,
    ),
    Contest(
        "segment",
        "4 KiB GET from the node, location known, 64 connections",
        ((OWN, _get_segment),),
        (),
        "with the capability; checked at the node",
        ground="one copy",
        prepare=_store_for_get,
    ),
)
