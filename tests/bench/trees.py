"""A real tree of many small files: the command line tool beside `weed filer.copy` and `cp -r`."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from bench import seaweed
from bench.copypool_side import NAMESPACE, one_copy
from bench.frame import CaseFailed, Contest, Ground
from bench.processes import ChildrenMeter, CpuMeter
from bench.results import OWN, Round, at_least
from copypool.profile import VARIABLE

COPY = "weed filer.copy, no fsync"
CP = "cp -r, sync"
_FILE_MAX_BYTES = 64 * 1024
_DEADLINE_S = 100.0


def _tree(ground: Ground) -> Path:
    return ground.made("tree", partial(_make_tree, files=ground.plan.tree_files))


def _make_tree(folder: Path, files: int) -> None:
    """Folders, names and sizes of this interpreter's libraries, random bytes in them; once more where they are few."""
    pool = os.urandom(_FILE_MAX_BYTES * 16)
    made = 0
    while made < files:
        top = folder / f"tree{made}"
        for name, size in _library_files():
            place = top / name
            place.parent.mkdir(parents=True, exist_ok=True)
            start = made * 104_729 % (len(pool) - size)
            place.write_bytes(pool[start : start + size])
            made += 1
            if made == files:
                return


def _library_files() -> Iterator[tuple[str, int]]:
    """Names and sizes of the files of at most 64 KiB of the standard library and of the packages beside it."""
    for kind in ("stdlib", "purelib"):
        root = Path(sysconfig.get_paths()[kind])
        for place in sorted(root.rglob("*")):
            if place.is_file() and not place.is_symlink() and 0 < place.stat().st_size <= _FILE_MAX_BYTES:
                yield f"{kind}/{place.relative_to(root)}", place.stat().st_size


def _put(ground: Ground) -> Round:
    """`copypool put` of the tree, from the start of the process to its end."""
    side, tree = ground.use(one_copy), _tree(ground)
    program = Path(sys.executable).parent / "copypool"
    command = [str(program), "put", str(tree), f"{NAMESPACE}/tree/{secrets.token_hex(4)}"]
    return _timed([command], "cli", ground, side.pids, {VARIABLE: str(side.profile)})


def _filer_copy(ground: Ground) -> Round:
    peer = ground.use(seaweed.seaweed)
    target = f"{peer.filer}/{secrets.token_hex(4)}/"
    return _timed([[seaweed.find_weed(), "filer.copy", str(_tree(ground)), target]], "filer.copy", ground, peer.pids)


def _cp(ground: Ground) -> Round:
    target = ground.folder / "copy"
    try:
        return _timed([["cp", "-r", str(_tree(ground)), str(target)], ["sync"]], "cp", ground, {})
    finally:
        shutil.rmtree(target, ignore_errors=True)


def _timed(
    commands: Sequence[list[str]],
    name: str,
    ground: Ground,
    pids: Mapping[str, int],
    environment: Mapping[str, str] | None = None,
) -> Round:
    """Run commands one after the other; operations are files of the tree, their CPU counts under `name`."""
    files = ground.plan.tree_files
    meter, children, begun = CpuMeter(pids), ChildrenMeter(), time.monotonic()
    for command in commands:
        done = subprocess.run(
            command,
            env={**os.environ, **(environment or {})},
            cwd=ground.folder,
            capture_output=True,
            text=True,
            timeout=_DEADLINE_S,
            check=False,
        )
        if done.returncode:
            raise CaseFailed(f"{name} ended with {done.returncode}: {(done.stderr or done.stdout)[-300:]}")
    seconds, used = time.monotonic() - begun, children.read()
    return Round("", files, seconds, {**meter.per_operation_us(files), name: used * 1e6 / files})


CASES = (
    Contest(
        "tree",
        "a tree of 30,000 small files, `copypool put`",
        ((OWN, _put), (COPY, _filer_copy), (CP, _cp)),
        (at_least(2.0, than=COPY), at_least(0.5, than=CP)),
        "names and sizes of a Python installation's files up to 64 KiB, random bytes; from the start of the tool to "
        "its end, when Copypool's files are durable; `filer.copy` syncs nothing, `cp` is followed by `sync`",
        ground="one copy",
        prepare=_tree,
        rounds_max=3,
        deadline_s=400.0,
    ),
)
