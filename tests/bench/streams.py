"""Cases of long streams; operations are MiB."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

from bench.copypool_side import one_copy
from bench.frame import Contest, Ground, awaited
from bench.processes import CpuMeter
from bench.results import OWN, Round
from bench.small import MIB, NAMESPACE


def large(ground: Ground) -> Path:
    """A file of random bytes, as long as the plan says."""
    return ground.made("large", partial(_make_large, size_mib=ground.plan.stream_mib))


def _make_large(place: Path, size_mib: int) -> None:
    with place.open("wb") as file:
        for _ in range(size_mib // 16):
            file.write(os.urandom(16 * MIB))


async def _put(ground: Ground) -> Round:
    """One large file, put by the SDK."""
    side, content = ground.use(one_copy), large(ground)
    async with await side.client() as client:
        meter, begun = CpuMeter({**side.pids, "sdk": os.getpid()}), time.monotonic()
        await client.put(NAMESPACE, "stream/file", content)
        seconds, size_mib = time.monotonic() - begun, ground.plan.stream_mib
        return Round(OWN, size_mib, seconds, meter.per_operation_us(size_mib))


async def _get(ground: Ground) -> Round:
    """The same file, read and checked by the SDK."""
    side = ground.use(one_copy)
    async with await side.client() as client:
        meter, begun = CpuMeter({**side.pids, "sdk": os.getpid()}), time.monotonic()
        size = 0
        async with await client.open(NAMESPACE, "stream/file") as stream:
            async for piece in stream:
                size += len(piece)
        return Round(OWN, size // MIB, time.monotonic() - begun, meter.per_operation_us(size // MIB))


CASES = (
    Contest(
        "stream-put",
        "1 GiB durable PUT, one stream",
        ((OWN, lambda ground: awaited(_put(ground))),),
        unit="MiB",
        ground="one copy",
        prepare=large,
    ),
    Contest(
        "stream-get",
        "1 GiB GET, verified by the SDK",
        ((OWN, lambda ground: awaited(_get(ground))),),
        note="of the case before; checked block by block and as a whole",
        unit="MiB",
        ground="one copy",
    ),
)
