"""Files with known content, writers and readers that run beside a story and remember what they were promised."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from copypool import Client
from copypool.protocol.errors import CopypoolError

NAMESPACE = "default"


def some_files(prefix: str, count: int, seed: int, size_max_bytes: int = 20_000) -> dict[str, bytes]:
    """`count` files of random sizes (an empty one among them) and random content; the same for the same seed."""
    source = random.Random(seed)
    sizes = [0] + [source.randrange(1, size_max_bytes) for _ in range(count - 1)]
    return {f"{prefix}/{n:05d}.bin": source.randbytes(size) for n, size in enumerate(sizes)}


class Writers:
    """Workers that put new small files all the time. `acked` is what must never be lost."""

    def __init__(self, client: Client, prefix: str) -> None:
        self.acked: dict[str, bytes] = {}
        self.errors: list[CopypoolError] = []  #: refused or unknown: promised nothing
        self._client = client
        self._prefix = prefix
        self._next = 0

    async def acked_beyond(self, count: int) -> bool:
        """Whether more than `count` files were acknowledged."""
        return len(self.acked) > count

    async def work(self) -> None:
        """Put files until cancelled."""
        while True:
            self._next += 1
            path = f"{self._prefix}/{self._next:06d}"
            content = f"{path} {'x' * (self._next % 5000)}".encode()
            try:
                await self._client.put(NAMESPACE, path, content)
            except CopypoolError as exc:
                self.errors.append(exc)
            else:
                self.acked[path] = content


class Readers:
    """Workers that read the same files in rounds and compare every byte."""

    def __init__(self, client: Client, files: Mapping[str, bytes]) -> None:
        self.reads = 0
        self.failures: list[str] = []  #: an error, or other bytes
        self.longest_s = 0.0
        self._client = client
        self._files = files

    async def read_beyond(self, count: int) -> bool:
        """Whether more than `count` reads have ended."""
        return self.reads > count

    async def work(self) -> None:
        """Read until cancelled, each worker in an order of its own."""
        names = list(self._files)
        while True:
            random.shuffle(names)
            for path in names:
                started = time.monotonic()
                try:
                    if await self._client.get(NAMESPACE, path) != self._files[path]:
                        self.failures.append(f"{path}: other bytes")
                except CopypoolError as exc:
                    self.failures.append(f"{path}: {exc!r}")
                self.reads += 1
                self.longest_s = max(self.longest_s, time.monotonic() - started)


@asynccontextmanager
async def working(workers: Writers | Readers, count: int) -> AsyncIterator[None]:
    """`count` workers at work while the block runs; none is left afterwards."""
    tasks = [asyncio.create_task(workers.work()) for _ in range(count)]
    try:
        yield
        for task in tasks:
            assert not task.done(), f"a worker ended: {task}"
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def all_read_back(client: Client, files: Mapping[str, bytes]) -> list[str]:
    """The paths whose bytes are not what they should be; empty when all is well."""
    wrong: list[str] = []
    for path, content in files.items():
        try:
            if await client.get(NAMESPACE, path) != content:
                wrong.append(f"{path}: other bytes")
        except CopypoolError as exc:
            wrong.append(f"{path}: {exc!r}")
    return wrong
