"""Cases of small files: 4 KiB bodies by `wrk`, and `put_many` of the SDK."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from http.client import HTTPConnection
from itertools import count, islice

from bench import nginx, seaweed
from bench.copypool_side import ACK_COPY, NAMESPACE, CopypoolSide, one_copy, two_copies
from bench.frame import CaseFailed, Contest, Ground, awaited
from bench.load import run
from bench.processes import CpuMeter
from bench.results import OWN, Round, at_least
from bench.seaweed import FILER, FILER_FSYNC, FILER_NO_FSYNC, FSYNC, VOLUME_SERVER, Seaweed
from copypool.protocol import routes
from copypool.protocol.api import LOOKUP_MAX, LookupReply, LookupRequest

SMALL_BYTES = 4096
GET_FILES = 2000
COLD_FILES = 40_000  #: with as many different bodies: 2.5 times as much as a coordinator keeps
MIB = 1024 * 1024


def _side(namespace: str, ground: Ground) -> CopypoolSide:
    """The cluster for writes into this namespace."""
    return ground.use(two_copies if namespace == ACK_COPY else one_copy)


def _peer(namespace: str, ground: Ground) -> Seaweed:
    """A peer that keeps as many copies."""
    return ground.use(seaweed.seaweed_two_copies if namespace == ACK_COPY else seaweed.seaweed)


# -- writing ----------------------------------------------------------------------------------
def _put(namespace: str, connections: int, ground: Ground) -> Round:
    """Durable PUTs straight to the node, under one write lease, as the SDK sends them."""
    side = _side(namespace, ground)
    lease = asyncio.run(side.lease(namespace))
    arguments = [secrets.token_hex(4), str(SMALL_BYTES), "", "1", f"{routes.CAPABILITY}: {lease.capability}"]
    url = f"{lease.url}/v1/files/{lease.namespace_id}/small"
    return run("put.lua", url, arguments, connections=connections, seconds=ground.plan.seconds, pids=side.pids)


def _filer_put(namespace: str, connections: int, query: str, ground: Ground) -> Round:
    peer = _peer(namespace, ground)
    arguments = [secrets.token_hex(4), str(SMALL_BYTES), query, "0"]
    url = f"{peer.filer}/small"
    return run("put.lua", url, arguments, connections=connections, seconds=ground.plan.seconds, pids=peer.pids)


def _put_many(namespace: str, ground: Ground) -> Round:
    return awaited(_many(_side(namespace, ground), namespace, ground.plan.many_files))


async def _many(side: CopypoolSide, namespace: str, files: int) -> Round:
    run_name = secrets.token_hex(4)
    bodies = islice(_bodies(), files)
    async with await side.client() as client:
        await client.put(namespace, f"many/{run_name}/first", b"x")
        meter, begun = CpuMeter({**side.pids, "sdk": os.getpid()}), time.monotonic()
        done = await client.put_many(namespace, ((f"many/{run_name}/{n}", body) for n, body in enumerate(bodies)))
        seconds = time.monotonic() - begun
        return Round(OWN, done.files, seconds, meter.per_operation_us(done.files))


def _bodies() -> Iterator[bytes]:
    """Random ones, no two alike."""
    pool = os.urandom(MIB + SMALL_BYTES)
    for number in count():
        start = number * 499 % MIB
        yield number.to_bytes(8) + pool[start : start + SMALL_BYTES - 8]


# -- reading ----------------------------------------------------------------------------------
def _get(ground: Ground) -> Round:
    """GETs by name through the coordinator, by a plain HTTP client."""
    side = ground.use(one_copy)
    return _wrk_get(ground, side.coordinator, "names", side.pids, f"Authorization: Bearer {side.token}")


def _get_cold(ground: Ground) -> Round:
    """The same of so many files that most are not in the coordinator's memory."""
    side = ground.use(one_copy)
    return _wrk_get(ground, side.coordinator, "cold", side.pids, f"Authorization: Bearer {side.token}")


def _get_cold_from_filer(ground: Ground) -> Round:
    peer = ground.use(seaweed.seaweed)
    names = [f"cold/{number}" for number in range(COLD_FILES)]
    ground.once("cold files on the filer", partial(_upload, ground, peer.filer, names, "cold-filer"))
    return _wrk_get(ground, peer.filer, "cold-filer", peer.pids)


def _get_from_node(ground: Ground) -> Round:
    """GETs from the node, location and capability known."""
    side = ground.use(one_copy)
    return _wrk_get(ground, side.node, "segments", side.pids)


def _get_from_filer(ground: Ground) -> Round:
    peer = ground.use(seaweed.seaweed)
    ground.once("files on the filer", partial(_store_on_filer, peer, ground))
    return _wrk_get(ground, peer.filer, "filer", peer.pids)


def _get_from_volume_server(ground: Ground) -> Round:
    peer = ground.use(seaweed.seaweed)
    url, names = peer.assign(GET_FILES)
    ground.once("files on the volume server", partial(_upload, ground, url, names, "volume"))
    return _wrk_get(ground, url, "volume", peer.pids)


def _get_from_nginx(ground: Ground) -> Round:
    peer = ground.use(nginx.nginx)
    ground.once("files of nginx", partial(_store_for_nginx, peer, ground))
    return _wrk_get(ground, peer.url, "nginx", peer.pids)


def _wrk_get(ground: Ground, url: str, requests: str, pids: dict[str, int], *headers: str) -> Round:
    arguments = [str(ground.folder / requests), *headers]
    return run("get.lua", url, arguments, connections=64, seconds=ground.plan.seconds, pids=pids)


def _store_for_get(ground: Ground) -> None:
    ground.once("files for GET", lambda: awaited(_store(ground)))


def _store_cold(ground: Ground) -> None:
    ground.once("cold files", lambda: awaited(_store_many(ground)))


async def _store_many(ground: Ground) -> None:
    side = ground.use(one_copy)
    paths = [f"cold/{number}" for number in range(COLD_FILES)]
    async with await side.client() as client:
        await client.put_many(NAMESPACE, zip(paths, _bodies(), strict=False))
    (ground.folder / "cold").write_text("".join(f"/v1/files/{NAMESPACE}/{path}\n" for path in paths))


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
    _upload(ground, peer.filer, [f"get/{number}" for number in range(GET_FILES)], "filer")


def _upload(ground: Ground, url: str, names: list[str], requests: str) -> None:
    """The same files on the peer, and the list of requests of that name."""
    with closing(HTTPConnection(url.removeprefix("http://"), timeout=10)) as connection:
        for name, body in zip(names, _bodies(), strict=False):
            connection.request("PUT", f"/{name}", body)
            response = connection.getresponse()
            response.read()
            if response.status >= 300:
                raise CaseFailed(f"the peer answered {response.status} to a PUT")
    (ground.folder / requests).write_text("".join(f"/{name}\n" for name in names))


def _store_for_nginx(peer: nginx.Nginx, ground: Ground) -> None:
    for number, body in zip(range(GET_FILES), _bodies(), strict=False):
        (peer.files / str(number)).write_bytes(body)
    (ground.folder / "nginx").write_text("".join(f"/{number}\n" for number in range(GET_FILES)))


# -- the cases --------------------------------------------------------------------------------
def _puts(namespace: str, connections: int) -> tuple[tuple[str, Callable[[Ground], Round]], ...]:
    return (
        (OWN, partial(_put, namespace, connections)),
        (FILER_FSYNC, partial(_filer_put, namespace, connections, FSYNC)),
        (FILER_NO_FSYNC, partial(_filer_put, namespace, connections, "")),
    )


def _manys(namespace: str) -> tuple[tuple[str, Callable[[Ground], Round]], ...]:
    return ((OWN, partial(_put_many, namespace)), (FILER_FSYNC, partial(_filer_put, namespace, 64, FSYNC)))


CASES = (
    Contest(
        "put64",
        "4 KiB durable PUT by name, 64 connections",
        _puts(NAMESPACE, 64),
        (at_least(2.0, than=FILER_FSYNC),),
        "one copy fsync'd at the answer; Copypool's name besides in etcd, fsync'd too; the filer's name is not fsync'd",
        ground="one copy",
    ),
    Contest(
        "put128",
        "4 KiB durable PUT by name, 128 connections",
        _puts(NAMESPACE, 128),
        (at_least(2.4, than=FILER_FSYNC), at_least(1.2, than=FILER_NO_FSYNC)),
        tried="without fsync the filer waits for no disk: 1.54 in one run and 1.06 in another on the same machine, the "
        "code of both level side by side; what is left is the CPU of the node",
        ground="one copy",
    ),
    Contest(
        "many",
        "4 KiB durable files, `put_many`",
        _manys(NAMESPACE),
        (at_least(5.0, than=FILER_FSYNC),),
        "`sdk` is the CPU of the client; the filer has no such request: 64 connections, one request per file",
        "groups of new files are twice as large as before, and two commits are in flight (`node/README.md`, "
        "decisions): a quarter of the two cores still waits for the fsyncs of node and etcd; more batches in flight "
        "from one client change nothing",
        ground="one copy",
    ),
    Contest(
        "get",
        "4 KiB GET by name, 64 connections",
        ((OWN, _get), (FILER, _get_from_filer)),
        (at_least(2.0, than=FILER),),
        f"one request of a plain client to coordinator or filer, of {GET_FILES:,} files: both hold them in memory, "
        "each name is looked up in etcd",
        "aiohttp is passed by, content is kept by its digest, lookups wait for one another (92 us to 48 in all "
        "processes, less than half of the filer's); one coordinator process is one core; two behind one port "
        "(`shared_port`) are slower on these two cores: half the names per etcd transaction, 82 us; runs of the "
        "same code gave 1.4 to 2.2, with 44 to 67 us, as the machine's hours are",
        ground="one copy",
        prepare=_store_for_get,
    ),
    Contest(
        "get-cold",
        f"4 KiB GET by name of {COLD_FILES:,} files, 64 connections",
        ((OWN, _get_cold), (FILER, _get_cold_from_filer)),
        (at_least(2.0, than=FILER),),
        "2.5 times what a coordinator keeps of content (`limits.kept_bytes`): most go on to the node",
        "lookups and node calls are joined, the node answers without a task; one coordinator process is one core,"
        " and full; two behind one port are slower on these two cores; keeping more content would help such a test,"
        " not a cluster with more files than memory",
        ground="one copy",
        prepare=_store_cold,
    ),
    Contest(
        "get-node",
        "4 KiB GET from the node, location known, 64 connections",
        ((OWN, _get_from_node), (VOLUME_SERVER, _get_from_volume_server), (nginx.NAME, _get_from_nginx)),
        (at_least(1.0, than=VOLUME_SERVER), at_least(0.5, than=nginx.NAME)),
        f"with its capability, as the SDK asks; blocks are checked at the node; of {GET_FILES:,} files, each asked for "
        "again and again: the node remembers what such a request says, not its outcome (without: 29 us instead of 18); "
        "the volume server is asked by file id",
        "answered without aiohttp and without a task where the page cache has it, its head read once; what is left is "
        "the kernel's share and 9 us of Python, and more processes would share the same two cores",
        ground="one copy",
        prepare=_store_for_get,
    ),
)

#: With ack rule `copy`: a write is answered when two nodes have fsync'd it.
COPY_CASES = (
    Contest(
        "put64-copy",
        "4 KiB PUT by name, 64 connections, ack rule `copy`",
        _puts(ACK_COPY, 64),
        note="two copies fsync'd at the answer (`fail`: never fewer), on both sides (`replication=001`)",
        ground="two copies",
        rounds_max=3,
    ),
    Contest(
        "put128-copy",
        "4 KiB PUT by name, 128 connections, ack rule `copy`",
        _puts(ACK_COPY, 128),
        ground="two copies",
        rounds_max=3,
    ),
    Contest(
        "many-copy",
        "4 KiB files, `put_many`, ack rule `copy`",
        _manys(ACK_COPY),
        ground="two copies",
        rounds_max=3,
    ),
)
