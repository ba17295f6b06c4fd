"""Cases of long streams; operations are MiB. Sources are in the page cache; what is read goes nowhere."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bench import nginx, seaweed
from bench.copypool_side import ACK_COPY, NAMESPACE, CopypoolSide, one_copy, two_copies
from bench.disk import DD, dd_sources
from bench.frame import CaseFailed, Contest, Ground, PeerMissing, awaited
from bench.processes import ChildrenMeter, CpuMeter
from bench.results import OWN, Round, at_least
from bench.seaweed import FILER, FILER_FSYNC, FILER_NO_FSYNC, FSYNC
from bench.small import MIB
from copypool.protocol import routes
from copypool.protocol.api import LookupReply, LookupRequest

_DEADLINE_S = 150.0
#: Of every transfer.
_CURL = ["--silent", "--show-error", "--fail", "--output", "/dev/null", "--max-time", str(int(_DEADLINE_S))]


def sources(ground: Ground, streams: int) -> list[Path]:
    """Files of random bytes: so many, together as long as the plan says."""
    each_mib = ground.plan.stream_mib // streams
    return [ground.made(f"large{each_mib}-{n}", partial(_make_large, size_mib=each_mib)) for n in range(streams)]


def _make_large(place: Path, size_mib: int) -> None:
    with place.open("wb") as file:
        for _ in range(size_mib):
            file.write(os.urandom(MIB))


# -- in -----------------------------------------------------------------------------------------
def _put(streams: int, ground: Ground) -> Round:
    """Files put by the SDK, all at once."""
    return awaited(_put_files(ground.use(one_copy), NAMESPACE, sources(ground, streams)))


def _put_with_copy(ground: Ground) -> Round:
    return awaited(_put_files(ground.use(two_copies), ACK_COPY, sources(ground, 1)))


async def _put_files(side: CopypoolSide, namespace: str, contents: Sequence[Path]) -> Round:
    size_mib = sum(each.stat().st_size for each in contents) // MIB
    async with await side.client() as client:
        meter, begun = CpuMeter({**side.pids, "sdk": os.getpid()}), time.monotonic()
        await asyncio.gather(*(client.put(namespace, f"stream/{each.name}", each) for each in contents))
        seconds = time.monotonic() - begun
        return Round(OWN, size_mib, seconds, meter.per_operation_us(size_mib))


def _filer_put(streams: int, query: str, ground: Ground) -> Round:
    peer = ground.use(seaweed.seaweed)
    uploads = [["-T", str(each), f"{peer.filer}/stream/{each.name}{query}"] for each in sources(ground, streams)]
    return _curl(uploads, peer.pids, ground.plan.stream_mib)


def _filer_put_with_copy(query: str, ground: Ground) -> Round:
    peer = ground.use(seaweed.seaweed_two_copies)
    (source,) = sources(ground, 1)
    return _curl([["-T", str(source), f"{peer.filer}/stream/{source.name}{query}"]], peer.pids, ground.plan.stream_mib)


def _dd(streams: int, ground: Ground) -> Round:
    return dd_sources(sources(ground, streams), ground.folder)


# -- out ----------------------------------------------------------------------------------------
def _store(ground: Ground) -> None:
    """Put past the page cache, so it is read once: what the peers were given is in theirs."""
    ground.once("a large file", lambda: _store_now(ground))


def _store_now(ground: Ground) -> Round:
    awaited(_put_files(ground.use(one_copy), NAMESPACE, sources(ground, 1)))
    return _get(ground)


def _get(ground: Ground) -> Round:
    """Read by the SDK, which checks blocks and digest."""
    return awaited(_get_file(ground.use(one_copy), f"stream/{sources(ground, 1)[0].name}"))


async def _get_file(side: CopypoolSide, path: str) -> Round:
    async with await side.client() as client:
        meter, begun = CpuMeter({**side.pids, "sdk": os.getpid()}), time.monotonic()
        size = 0
        async with await client.open(NAMESPACE, path) as stream:
            async for piece in stream:
                size += len(piece)
        seconds = time.monotonic() - begun
        return Round(OWN, size // MIB, seconds, meter.per_operation_us(size // MIB))


def _get_from_node(ground: Ground) -> Round:
    """Segments read from the node by one `curl`, one after the other over one connection, locations known."""
    side, name = ground.use(one_copy), sources(ground, 1)[0].name
    request = LookupRequest(NAMESPACE, [f"stream/{name}"], raw=False)
    (found,) = asyncio.run(side.ask("lookup", request, LookupReply)).results
    if found.file is None:
        raise CaseFailed(f"a file that was stored is not found: {found.message}")
    transfers: list[str] = []
    for plan in found.file.segments:
        url = f"{side.node}/v1/segments/{plan.extent}/{plan.offset}/{plan.length}?v={found.file.version}"
        capability = f"{routes.CAPABILITY}: {plan.sources[0].capability}"
        transfers += [*(["--next", *_CURL] if transfers else []), "-H", capability, url]
    return _curl([transfers], side.pids, ground.plan.stream_mib)


def _get_by_name(ground: Ground) -> Round:
    """Read by a plain HTTP client; the coordinator relays a file of several segments."""
    side = ground.use(one_copy)
    url = f"{side.coordinator}/v1/files/{NAMESPACE}/stream/{sources(ground, 1)[0].name}"
    return _curl([["-L", "-H", f"Authorization: Bearer {side.token}", url]], side.pids, ground.plan.stream_mib)


def _get_from_filer(ground: Ground) -> Round:
    peer = ground.use(seaweed.seaweed)
    (source,) = sources(ground, 1)
    url = f"{peer.filer}/read/{source.name}"
    ground.once("a large file on the filer", lambda: _curl([["-T", str(source), url]], {}, 1))
    return _curl([[url]], peer.pids, ground.plan.stream_mib)


def _get_from_nginx(ground: Ground) -> Round:
    peer = ground.use(nginx.nginx)
    (source,) = sources(ground, 1)
    ground.once("a large file of nginx", lambda: shutil.copyfile(source, peer.files / "large"))
    return _curl([[f"{peer.url}/large"]], peer.pids, ground.plan.stream_mib)


def _curl(transfers: Sequence[list[str]], pids: dict[str, int], size_mib: int) -> Round:
    """One `curl` for each transfer, all at once; each must have been answered with success."""
    program = shutil.which("curl")
    if program is None:
        raise PeerMissing("apt-get install curl")
    meter, children, begun = CpuMeter(pids), ChildrenMeter(), time.monotonic()
    running = [subprocess.Popen([program, *_CURL, *each], stderr=subprocess.PIPE, text=True) for each in transfers]
    try:
        said = [process.communicate(timeout=_DEADLINE_S)[1] for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    seconds = time.monotonic() - begun
    if any(process.returncode for process in running):
        raise CaseFailed(f"curl: {' '.join(said).strip()[:200]}")
    load_us = children.read() * 1e6 / size_mib
    return Round("", size_mib, seconds, meter.per_operation_us(size_mib), load_us=load_us)


def _puts(streams: int) -> tuple[tuple[str, partial[Round]], ...]:
    return (
        (OWN, partial(_put, streams)),
        (DD, partial(_dd, streams)),
        (FILER_FSYNC, partial(_filer_put, streams, FSYNC)),
    )


CASES = (
    Contest(
        "stream-put",
        "1 GiB durable PUT, one stream",
        _puts(1),
        (at_least(0.8, than=DD), at_least(2.5, than=FILER_FSYNC)),
        "by the SDK, whose CPU is `sdk`; digested, checksummed and fsync'd; `dd` copies the same file",
        "written past the page cache (node 2.9 -> 1.1 ms of CPU per MiB), parts read into memory that is used again "
        "(SDK 1.15 -> 0.79 ms); two digests and a checksum of every byte on each side are what is left",
        unit="MiB",
        ground="one copy",
        rounds_max=3,
    ),
    Contest(
        "stream-put4",
        "1 GiB durable PUT, four streams of a quarter each",
        _puts(4),
        (at_least(0.8, than=DD), at_least(2.5, than=FILER_FSYNC)),
        tried="as with one stream; one, two or four parts in flight per stream make no difference, while four `dd` at "
        "once are faster than one",
        unit="MiB",
        ground="one copy",
        rounds_max=3,
    ),
    Contest(
        "stream-get",
        "1 GiB GET, one stream, verified by the SDK",
        ((OWN, _get), (FILER, _get_from_filer), (nginx.NAME, _get_from_nginx)),
        (at_least(1.5, than=FILER), at_least(0.5, than=nginx.NAME)),
        "block by block and as a whole; peers are read by `curl`, which checks nothing",
        "a thread receives pieces of 2 MiB straight from the socket and checks them, another one digests, memory is "
        "used again: 750 -> 430 us of the SDK's CPU per MiB, 130 of it the digest, 45 checksums, 80 the kernel's copy; "
        "smaller pieces cost more in hops between threads",
        unit="MiB",
        ground="one copy",
        prepare=_store,
        rounds_max=3,
    ),
    Contest(
        "stream-get-node",
        "1 GiB GET, one stream, verified by the node",
        ((OWN, _get_from_node), (FILER, _get_from_filer), (nginx.NAME, _get_from_nginx)),
        (at_least(1.5, than=FILER), at_least(0.5, than=nginx.NAME)),
        "by `curl` on all sides, one segment after the other, locations known; each block is checked before it leaves",
        "a thread reads, checks and sends past the event loop, 530 -> 400 us of the node's CPU per MiB, most of it the "
        "kernel's copies in and out; `sendfile` sends what nobody checked; `curl` takes its part of the same cores",
        unit="MiB",
        ground="one copy",
        prepare=_store,
        rounds_max=3,
    ),
    Contest(
        "stream-get-name",
        "1 GiB GET by name, one stream, one plain HTTP request",
        ((OWN, _get_by_name), (FILER, _get_from_filer)),
        note="the coordinator relays a file of several segments, which a redirect cannot name",
        unit="MiB",
        ground="one copy",
        prepare=_store,
        rounds_max=3,
    ),
)

#: With ack rule `copy`: two nodes have fsync'd it.
COPY_CASES = (
    Contest(
        "stream-put-copy",
        "1 GiB PUT, one stream, ack rule `copy`",
        (
            (OWN, _put_with_copy),
            (FILER_FSYNC, partial(_filer_put_with_copy, FSYNC)),
            (FILER_NO_FSYNC, partial(_filer_put_with_copy, "")),
        ),
        note="two copies on one disk",
        unit="MiB",
        ground="two copies",
        rounds_max=2,
    ),
)
