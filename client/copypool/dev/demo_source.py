"""What the demo stores: the running Python's standard library and one large file. Blocking; same content every time."""

from __future__ import annotations

import random
import shutil
import sysconfig
from pathlib import Path
from typing import NamedTuple

from copypool.protocol.digests import Hasher, digest_of

LARGE_FILE = "large.bin"
LARGE_BYTES = 512 * 1024 * 1024
_CHUNK_BYTES = 8 * 1024 * 1024
_SEED = 6148412  # the number of the patent whose idea this is


class SourceFile(NamedTuple):
    """What a file must read back as."""

    size: int  #: bytes
    digest: bytes


def make_source(folder: Path) -> dict[str, SourceFile]:
    """Fill `folder` with the tree and the large file; every file's relative path, size and digest."""
    library = Path(sysconfig.get_path("stdlib"))
    shutil.copytree(
        library,
        folder / "stdlib",
        ignore=shutil.ignore_patterns("__pycache__", "site-packages", "dist-packages"),
        ignore_dangling_symlinks=True,
    )
    found = {LARGE_FILE: _make_large(folder / LARGE_FILE)}
    for path in sorted(folder.glob("stdlib/**/*")):
        if path.is_file():
            content = path.read_bytes()
            found[path.relative_to(folder).as_posix()] = SourceFile(len(content), digest_of(content))
    return found


def _make_large(path: Path) -> SourceFile:
    source, hasher = random.Random(_SEED), Hasher()
    with path.open("wb") as file:
        for _ in range(LARGE_BYTES // _CHUNK_BYTES):
            chunk = source.randbytes(_CHUNK_BYTES)
            hasher.update(chunk)
            file.write(chunk)
    return SourceFile(LARGE_BYTES, hasher.digest())
