"""A tree of many small files."""

from __future__ import annotations

import os
import secrets
import time
from functools import partial
from pathlib import Path

from bench.copypool_side import one_copy
from bench.frame import Contest, Ground, awaited
from bench.processes import CpuMeter
from bench.results import OWN, Round
from bench.small import MIB, NAMESPACE


def _tree(ground: Ground) -> Path:
    return ground.made("tree", partial(_make_tree, files=ground.plan.tree_files))


def _make_tree(folder: Path, files: int) -> None:
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


async def _put(ground: Ground) -> Round:
    side, folder = ground.use(one_copy), _tree(ground)
    async with await side.client() as client:
        meter, begun = CpuMeter({**side.pids, "sdk": os.getpid()}), time.monotonic()
        done = await client.put_tree(folder, NAMESPACE, f"tree/{secrets.token_hex(4)}")
        seconds = time.monotonic() - begun
        return Round(OWN, done.files, seconds, meter.per_operation_us(done.files))


CASES = (
    Contest(
        "tree",
        "tree of small files, `put_tree`",
        ((OWN, lambda ground: awaited(_put(ground))),),
        note="read from disk, durable; `sdk` is the CPU of the client",
        ground="one copy",
        prepare=_tree,
        rounds_max=1,
    ),
)
