"""The demo's readers: everything, again and again, every byte compared, every wait for bytes timed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from copypool import Client
from copypool.cancellation import TaskGroup
from copypool.dev.demo_source import SourceFile
from copypool.protocol.digests import Hasher
from copypool.protocol.errors import CopypoolError

_WORKERS = 4


class Readers:
    """Reads all files in rounds. Its figures may be looked at while it works."""

    def __init__(self, client: Client, namespace: str, prefix: str, files: Mapping[str, SourceFile]) -> None:
        self.reads = 0  #: files read to their end, or failed
        self.bytes = 0
        self.failures: list[str] = []  #: errors, and files that came back with other bytes
        self.longest_stall_s = 0.0  #: longest wait for the first or the next bytes of a file
        self.rounds = 0
        self.halfway = asyncio.Event()  #: half of all bytes were read once (or a round ended early)
        self._half_bytes = sum(file.size for file in files.values()) // 2
        self._client = client
        self._namespace = namespace
        self._prefix = prefix
        self._files = files

    async def until(self, enough: asyncio.Event) -> None:
        """Read everything in rounds; the round in which `enough` is set is the last."""
        while not enough.is_set():
            await self.round()

    async def round(self) -> None:
        """Read every file once; `reads`, `bytes` and `failures` say how it went."""
        # Largest first: the large file is being read during the whole round.
        waiting = iter(sorted(self._files, key=lambda name: -self._files[name].size))

        async def work() -> None:
            for name in waiting:
                await self._read(name)

        try:
            async with TaskGroup() as group:
                for _ in range(_WORKERS):
                    group.create_task(work())
        finally:
            self.halfway.set()
        self.rounds += 1

    async def _read(self, name: str) -> None:
        hasher, last = Hasher(), time.monotonic()
        try:
            async with await self._client.open(self._namespace, f"{self._prefix}/{name}") as stream:
                async for chunk in stream:
                    now = time.monotonic()
                    self.longest_stall_s = max(self.longest_stall_s, now - last)
                    hasher.update(chunk)
                    self.bytes += len(chunk)
                    if self.bytes >= self._half_bytes:
                        self.halfway.set()
                    last = time.monotonic()
        except CopypoolError as exc:
            self.failures.append(f"{name}: {exc.code}: {exc.message}")
        else:
            if SourceFile(hasher.length, hasher.digest()) != self._files[name]:
                self.failures.append(f"{name}: other bytes")
        self.longest_stall_s = max(self.longest_stall_s, time.monotonic() - last)
        self.reads += 1
