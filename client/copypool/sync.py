"""The client for programs without an event loop: the same calls, blocking, safe to use from any thread.

One background thread runs the loop of all calls of a client.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeVar

from copypool.batches import PathContent
from copypool.client import Client as AsyncClient
from copypool.client import Role
from copypool.profile import Profile
from copypool.protocol.api import (
    AckRule,
    CopiedReply,
    DamagedEntry,
    Event,
    ListEntry,
    NamespaceInfo,
    NodeInfo,
    PoolInfo,
    StatReply,
    StatusReply,
    TokenReply,
    VolumeInfo,
)
from copypool.protocol.errors import Unavailable
from copypool.reading import FileReader as AsyncFileReader
from copypool.results import BulkResult, FileVersion

T = TypeVar("T")

_ITERATE_CHUNK = 64
SyncContent = bytes | bytearray | memoryview | Path | BinaryIO


class _LoopThread:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="copypool client", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
        finally:
            self._loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run to completion; an exception in the waiting thread (Ctrl-C) cancels the work and waits for its end."""
        if not self._thread.is_alive():
            work.close()
            raise Unavailable("the client is closed")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            if future.cancel():
                done = threading.Event()
                self._loop.call_soon_threadsafe(self._loop.call_soon, done.set)
                done.wait(1.0)
            raise

    def stop(self) -> None:
        """End the loop and join the thread. Safe to repeat."""
        if self._thread.is_alive():
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()


class FileReader:
    """Checked bytes of one version, as an iterator of pieces. Use it with `with`."""

    def __init__(self, loop: _LoopThread, reader: AsyncFileReader) -> None:
        self._loop = loop
        self._reader = reader
        self.path = reader.path
        self.size = reader.size  #: bytes of the whole file
        self.version = reader.version
        self.digest = reader.digest

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the transfer. Safe to repeat."""
        self._loop.run(self._reader.aclose())

    def __iter__(self) -> Iterator[bytes]:
        pieces = aiter(self._reader)
        while (piece := self._loop.run(_next(pieces))) is not None:
            yield piece

    def read(self) -> bytes:
        """All bytes of the range at once."""
        return self._loop.run(self._reader.read())


class Client:
    """Blocking twin of `copypool.Client`; see there for what each call promises."""

    def __init__(
        self,
        profile: str | os.PathLike[str] | Profile | None = None,
        *,
        coordinators: Sequence[str] | None = None,
        token: str = "",
        ca_file: str | None = None,
    ) -> None:
        """From a profile or explicit addresses. `Invalid` when they are unusable; nothing is sent yet."""
        self._loop = _LoopThread()
        try:
            self._client = self._loop.run(
                AsyncClient.connect(profile, coordinators=coordinators, token=token, ca_file=ca_file)
            )
        except BaseException:
            self._loop.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection and end the thread. Safe to repeat."""
        with suppress(Unavailable):
            self._loop.run(self._client.close())
        self._loop.stop()

    def put(
        self,
        namespace: str,
        path: str,
        content: SyncContent,
        *,
        if_absent: bool = False,
        metadata: Mapping[str, str] | None = None,
        digest: str | None = None,
        if_version: int = 0,
    ) -> FileVersion:
        """Store one file of any size."""
        return self._loop.run(
            self._client.put(
                namespace,
                path,
                content,
                if_absent=if_absent,
                metadata=metadata,
                digest=digest,
                if_version=if_version,
            )
        )

    def put_many(
        self, namespace: str, files: Iterable[PathContent], *, if_absent: bool = False, keep_going: bool = False
    ) -> BulkResult:
        """Store many files. The iterable is read in the client's thread."""
        return self._loop.run(self._client.put_many(namespace, files, if_absent=if_absent, keep_going=keep_going))

    def put_tree(
        self, folder: str | os.PathLike[str], namespace: str, prefix: str = "", *, keep_going: bool = False
    ) -> BulkResult:
        """Store every file below a local folder."""
        return self._loop.run(self._client.put_tree(folder, namespace, prefix, keep_going=keep_going))

    def delete(self, namespace: str, path: str, *, if_version: int = 0) -> FileVersion:
        """Delete one file."""
        return self._loop.run(self._client.delete(namespace, path, if_version=if_version))

    def delete_tree(self, namespace: str, prefix: str, *, keep_going: bool = False) -> BulkResult:
        """Delete every file below `prefix/`."""
        return self._loop.run(self._client.delete_tree(namespace, prefix, keep_going=keep_going))

    def get(self, namespace: str, path: str, *, start: int = 0, stop: int | None = None, version: int = 0) -> bytes:
        """The bytes [start, stop) of a file."""
        return self._loop.run(self._client.get(namespace, path, start=start, stop=stop, version=version))

    def open(
        self, namespace: str, path: str, *, start: int = 0, stop: int | None = None, version: int = 0
    ) -> FileReader:
        """A streaming reader: `with client.open(...) as reader: for piece in reader: ...`."""
        reader = self._loop.run(self._client.open(namespace, path, start=start, stop=stop, version=version))
        return FileReader(self._loop, reader)

    def download(self, namespace: str, path: str, local: str | os.PathLike[str], *, version: int = 0) -> int:
        """Fetch a file to a local name; returns its size in bytes."""
        return self._loop.run(self._client.download(namespace, path, local, version=version))

    def get_tree(
        self, namespace: str, prefix: str, folder: str | os.PathLike[str], *, keep_going: bool = False
    ) -> BulkResult:
        """Fetch every file below `prefix/` into a local folder."""
        return self._loop.run(self._client.get_tree(namespace, prefix, folder, keep_going=keep_going))

    def list(self, namespace: str, prefix: str = "", *, delimiter: str = "") -> Iterator[ListEntry]:
        """Every file whose name starts with `prefix`, in byte order."""
        return self._iterate(lambda: self._client.list(namespace, prefix, delimiter=delimiter))

    def stat(self, namespace: str, path: str, *, version: int = 0) -> StatReply:
        """Everything about one file, with each location of each segment."""
        return self._loop.run(self._client.stat(namespace, path, version=version))

    def status(self) -> StatusReply:
        """Whether every live byte is proven to be where policy says."""
        return self._loop.run(self._client.status())

    def wait_copied(self, timeout_s: float) -> CopiedReply:
        """Wait until everything committed before this call is copied."""
        return self._loop.run(self._client.wait_copied(timeout_s))

    def events(self, after: str = "") -> Iterator[Event]:
        """The cluster's events after the one with id `after`."""
        return self._iterate(lambda: self._client.events(after))

    def damaged(self) -> Sequence[DamagedEntry]:
        """Locations whose bytes failed their own node's check."""
        return self._loop.run(self._client.damaged())

    def nodes(self) -> Sequence[NodeInfo]:
        """Every storage node."""
        return self._loop.run(self._client.nodes())

    def volumes(self) -> Sequence[VolumeInfo]:
        """Every volume."""
        return self._loop.run(self._client.volumes())

    def pools(self) -> Sequence[PoolInfo]:
        """Every storage pool."""
        return self._loop.run(self._client.pools())

    def namespaces(self) -> Sequence[NamespaceInfo]:
        """The namespaces in the token's scope."""
        return self._loop.run(self._client.namespaces())

    def namespace_create(
        self,
        name: str,
        *,
        primary_pool: str = "primary",
        copy_pools: Sequence[str] = ("copy",),
        ack: AckRule = "primary",
    ) -> NamespaceInfo:
        """Make a namespace."""
        return self._loop.run(
            self._client.namespace_create(name, primary_pool=primary_pool, copy_pools=copy_pools, ack=ack)
        )

    def token_create(
        self, name: str, role: Role, *, namespace: str = "", prefix: str = "", life_s: int = 0
    ) -> TokenReply:
        """Make a token, shown this once."""
        return self._loop.run(self._client.token_create(name, role, namespace=namespace, prefix=prefix, life_s=life_s))

    def token_revoke(self, name: str) -> None:
        """End a token."""
        self._loop.run(self._client.token_revoke(name))

    def _iterate(self, begin: Callable[[], AsyncIterator[T]]) -> Iterator[T]:
        """Items of an async iterator, fetched some at a time."""
        items = begin()
        while chunk := self._loop.run(_take(items, _ITERATE_CHUNK)):
            yield from chunk


async def _next(pieces: AsyncIterator[bytes]) -> bytes | None:
    return await anext(pieces, None)


async def _take(items: AsyncIterator[T], count: int) -> Sequence[T]:
    taken: list[T] = []
    async for item in items:
        taken.append(item)
        if len(taken) == count:
            break
    return taken
