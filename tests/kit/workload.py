"""Clients at work: plain writers and readers that run beside a story, and a seeded mix of everything.

`Writers` and `Readers` remember what they were promised. `Workload` records every operation in a `kit.history.History`
for `kit.checker` to judge, over whatever has the SDK's calls. What a client does depends on the seed alone; how the
clients interleave does not. Its payloads describe themselves, so any byte can be checked and none has to be kept.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from blake3 import blake3

from copypool import BulkResult, Client, FileVersion
from copypool.protocol.api import ListEntry
from copypool.protocol.digests import digest_of, format_digest
from copypool.protocol.errors import CallerError, CopypoolError, Forbidden, NotFound, RetryLater, Unauthorized
from kit.history import WRITES, History, Kind, Listed, Outcome

T = TypeVar("T")

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


# -- a seeded mix of everything ------------------------------------------------------------------------------------
_HEAD = re.compile(rb"copypool seed (\d+) write (\d+) size (\d+) path ([^\n]*)\n")
_HEAD_ROOM_BYTES = 120  #: what a payload's first line holds besides the path, at most
_FINAL_READERS = 8
_NOTE_CHARACTERS = 200


def payload(seed: int, path: str, number: int, size_bytes: int) -> bytes:
    """The bytes of one write: a line that says which, when there is room for it, then a stream made from that line."""
    head = f"copypool seed {seed} write {number} size {size_bytes} path {path}\n".encode()
    stream = blake3(head).digest(length=size_bytes) if size_bytes else b""
    return stream if size_bytes < len(head) else head + stream[len(head) :]


def flaw(content: bytes, path: str) -> str:
    """What is wrong with bytes read at `path`, from themselves alone; empty when nothing is.

    Contents too short for their line are not judged here: their digest is in the history.
    """
    head = _HEAD.match(content)
    if head is None:
        return "no payload begins like this" if len(content) > len(path.encode()) + _HEAD_ROOM_BYTES else ""
    seed, number, size_bytes = (int(head[group]) for group in (1, 2, 3))
    origin = head[4].decode("utf-8", "replace")
    if origin != path:
        return f"these are bytes of {origin}, write {number}"
    if size_bytes != len(content):
        return f"write {number} is {size_bytes} bytes long, read were {len(content)}"
    wanted = payload(seed, path, number, size_bytes)
    if wanted == content:
        return ""
    at = next(at for at, (one, other) in enumerate(zip(wanted, content, strict=True)) if one != other)
    return f"byte {at} of write {number} differs"


def write_outcome(error: CopypoolError) -> Outcome:
    """Whether a write that raised `error` had no effect for certain.

    What the caller must change, and what is to be repeated later, was not applied. A capability refused may have been
    accepted at an earlier attempt of a batch; alarms and errors without a class promise nothing.
    """
    definite = isinstance(error, CallerError | RetryLater) and not isinstance(error, Forbidden | Unauthorized)
    return Outcome.FAILED if definite else Outcome.UNKNOWN


class Stated(Protocol):
    """What is looked at of the answer to `stat`."""

    @property
    def version(self) -> int:
        """The current version."""

    @property
    def digest(self) -> str:
        """`blake3:<hex>` of its bytes."""


class Store(Protocol):
    """The calls of the SDK that a workload makes; `copypool.Client` has them."""

    async def put(self, namespace: str, path: str, content: bytes) -> FileVersion:
        """Store one file."""

    async def put_many(
        self, namespace: str, files: Sequence[tuple[str, bytes | Path]], *, keep_going: bool
    ) -> BulkResult:
        """Store many."""

    async def delete(self, namespace: str, path: str) -> FileVersion:
        """Delete one."""

    async def get(self, namespace: str, path: str) -> bytes:
        """Read one."""

    async def stat(self, namespace: str, path: str) -> Stated:
        """Ask about one."""

    def list(self, namespace: str, prefix: str) -> AsyncIterator[ListEntry]:
        """All below a prefix."""


@dataclass(frozen=True, slots=True)
class Load:
    """What to do, and when to stop."""

    seed: int
    clients: int = 16
    operations_max: int = 10_000
    duration_max_s: float = 60.0  #: no operation begins later
    operation_max_s: float = 45.0  #: then it is given up; above the SDK's own deadline of 30 s
    prefix: str = "load"
    folders: int = 16
    folder_files: int = 32  #: a listing of a folder is one page
    medium_max_bytes: int = 1 << 20
    large_max_bytes: int = 9 << 20
    large_share: float = 0.005  #: of puts: above `medium_max_bytes`
    impatient_share: float = 0.01  #: of operations: given up after at most `impatient_max_s`
    impatient_max_s: float = 0.02
    pause_s: float = 0.05  #: of a client after an operation that was not answered
    think_s: float = 0.0  #: of a client after every operation


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that a client does."""

    kind: Kind
    files: tuple[tuple[str, int, int], ...]  #: (path, write number, size in bytes); a listing's path is its prefix
    patience_s: float


def steps(load: Load, client: int) -> Iterator[Step]:
    """What a client does, without end. Write numbers are unique over all clients of a load."""
    source = random.Random(f"{load.seed} {client}")
    written = 0
    while True:
        verb = source.choices(("put", "put_many", "get", "stat", "list", "delete"), (34, 2, 46, 6, 4, 8))[0]
        folder = f"{load.prefix}/d{source.randrange(load.folders):03d}"
        # Squared, so that some files are popular and clients meet there.
        names = {int(load.folder_files * source.random() ** 2): None for _ in range(8 if verb == "put_many" else 1)}
        patience_s = load.operation_max_s
        if source.random() < load.impatient_share:
            patience_s = source.random() * load.impatient_max_s
        if verb == "list":
            yield Step(Kind.LIST, ((f"{folder}/", 0, 0),), patience_s)
            continue
        files: list[tuple[str, int, int]] = []
        for name in names:
            written += 1
            size_bytes = _size_bytes(source, load) if verb in ("put", "put_many") else 0
            files.append((f"{folder}/f{name:03d}", written * load.clients + client, size_bytes))
        yield Step(Kind.PUT if verb == "put_many" else Kind(verb), tuple(files), patience_s)


def _size_bytes(source: random.Random, load: Load) -> int:
    if source.random() < load.large_share:
        return source.randint(load.medium_max_bytes + 1, load.large_max_bytes)
    most_bytes = source.choices((0, 200, 4096, 65_536, load.medium_max_bytes), (3, 10, 60, 22, 5))[0]
    return source.randint(0, min(most_bytes, load.medium_max_bytes))


class Workload:
    """Runs a load and records it. One run per object."""

    def __init__(self, store: Store, load: Load, history: History | None = None) -> None:
        self.history = history if history is not None else History()
        self._store = store
        self._load = load
        self._stopped = False

    def stop(self) -> None:
        """Let no further operation begin; `run` ends when those under way have."""
        self._stopped = True

    async def run(self) -> None:
        """Run until stopped, or the operations or the time are used up; ends within `operation_max_s` after that.

        What an operation raises is recorded, an error outside the SDK's tree ends the run. Cancelled: the operations
        that run are recorded as unknown.
        """
        until_s = time.monotonic() + self._load.duration_max_s
        async with asyncio.TaskGroup() as group:
            for client in range(self._load.clients):
                group.create_task(self._work(client, until_s))

    async def _work(self, client: int, until_s: float) -> None:
        for step in steps(self._load, client):
            if self._stopped or len(self.history) >= self._load.operations_max or time.monotonic() >= until_s:
                return
            await self._perform(client, step)
            if self._load.think_s:
                await asyncio.sleep(self._load.think_s)

    async def read_everything(self) -> None:
        """List the load's prefix and read every path that was written to, for `check(..., final=True)`.

        Call it once faults have healed and every write has ended. Failures are recorded, not raised.
        """
        load = self._load
        await self._list(load.clients, Step(Kind.LIST, ((f"{load.prefix}/", 0, 0),), load.operation_max_s), final=True)
        written = iter(sorted({one.path for one in self.history.operations() if one.kind in WRITES}))

        async def read(client: int) -> None:
            for path in written:
                await self._get(client, Step(Kind.GET, ((path, 0, 0),), load.operation_max_s), final=True)

        async with asyncio.TaskGroup() as group:
            for reader in range(_FINAL_READERS):
                group.create_task(read(load.clients + reader))

    async def _perform(self, client: int, step: Step) -> None:
        path, write, size_bytes = step.files[0]
        match step.kind:
            case Kind.PUT if len(step.files) > 1:
                await self._put_many(client, step)
            case Kind.PUT:
                content = payload(self._load.seed, path, write, size_bytes)
                number = self._invoke_put(client, path, write, content)
                stored = await self._ask([number], self._store.put(NAMESPACE, path, content), step)
                if stored is not None:
                    self.history.complete(number, Outcome.OK, version=stored.version)
            case Kind.DELETE:
                number = self.history.invoke(client, Kind.DELETE, path, write_id=f"#{write}")
                gone = await self._ask([number], self._store.delete(NAMESPACE, path), step)
                if gone is not None:
                    self.history.complete(number, Outcome.OK, version=gone.version)
            case Kind.GET:
                await self._get(client, step)
            case Kind.STAT:
                number = self.history.invoke(client, Kind.STAT, path)
                stated = await self._ask([number], self._store.stat(NAMESPACE, path), step)
                if stated is not None:
                    self.history.complete(number, Outcome.OK, version=stated.version, digest=stated.digest)
            case Kind.LIST:
                await self._list(client, step)

    def _invoke_put(self, client: int, path: str, write: int, content: bytes) -> int:
        digest = format_digest(digest_of(content))
        return self.history.invoke(client, Kind.PUT, path, write_id=f"#{write}", digest=digest, size_bytes=len(content))

    async def _put_many(self, client: int, step: Step) -> None:
        files: list[tuple[str, bytes | Path]] = []
        numbers: dict[str, int] = {}
        for path, write, size_bytes in step.files:
            content = payload(self._load.seed, path, write, size_bytes)
            files.append((path, content))
            numbers[path] = self._invoke_put(client, path, write, content)
        call = self._store.put_many(NAMESPACE, files, keep_going=True)
        result = await self._ask([*numbers.values()], call, step)
        if result is None:
            return
        for failure in result.failed:
            error = failure.error
            number = numbers.pop(failure.path)
            self.history.complete(number, write_outcome(error), error=error.code, note=error.message[:_NOTE_CHARACTERS])
        for number in numbers.values():
            self.history.complete(number, Outcome.OK)

    async def _get(self, client: int, step: Step, *, final: bool = False) -> None:
        path = step.files[0][0]
        number = self.history.invoke(client, Kind.GET, path, final=final)
        content = await self._ask([number], self._store.get(NAMESPACE, path), step)
        if content is not None:
            digest = format_digest(digest_of(content))
            self.history.complete(number, Outcome.OK, digest=digest, note=flaw(content, path))

    async def _list(self, client: int, step: Step, *, final: bool = False) -> None:
        prefix = step.files[0][0]
        number = self.history.invoke(client, Kind.LIST, prefix, final=final)

        async def collect() -> list[Listed]:
            found = self._store.list(NAMESPACE, prefix)
            return [Listed(entry.path, entry.version, entry.digest) async for entry in found]

        entries = await self._ask([number], collect(), step)
        if entries is not None:
            self.history.complete(number, Outcome.OK, entries=entries)

    async def _ask(self, numbers: Sequence[int], call: Awaitable[T], step: Step) -> T | None:
        """The answer; or None, with the outcome of these operations recorded, and after a pause if it was a failure."""
        write = step.kind in WRITES
        open_end = Outcome.UNKNOWN if write else Outcome.FAILED
        try:
            async with asyncio.timeout(step.patience_s):
                return await call
        except TimeoutError:
            self._complete(numbers, open_end, "timeout", f"given up after {step.patience_s:.3f} s")
        except CopypoolError as exc:
            if isinstance(exc, NotFound) and step.kind in (Kind.GET, Kind.STAT, Kind.DELETE):  # an answer
                self._complete(numbers, Outcome.FAILED if write else Outcome.OK, exc.code if write else "", "")
                return None
            # A batch that ends with an error as a whole may have stored some of its files.
            outcome = write_outcome(exc) if write and len(numbers) == 1 else open_end
            self._complete(numbers, outcome, exc.code, exc.message[:_NOTE_CHARACTERS])
        except BaseException as exc:
            self._complete(numbers, open_end, type(exc).__name__, "")
            raise
        await asyncio.sleep(self._load.pause_s)
        return None

    def _complete(self, numbers: Sequence[int], outcome: Outcome, error: str, note: str) -> None:
        for number in numbers:
            self.history.complete(number, outcome, error=error, note=note)
