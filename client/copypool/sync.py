"""The client for programs without an event loop: the same calls, blocking, safe to use from any thread.

One background thread runs the loop of all calls of a client.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from copypool.batches import PathContent
from copypool.client import Client as AsyncClient
from copypool.client import Role
from copypool.drills import Drills as AsyncDrills
from copypool.insight import Insight as AsyncInsight
from copypool.loop_thread import LoopThread
from copypool.operating import Operator as AsyncOperator
from copypool.policies import Policies as AsyncPolicies
from copypool.profile import Profile
from copypool.protocol.api import (
    AckRule,
    CopiedReply,
    DamagedEntry,
    Event,
    ListEntry,
    NamespaceInfo,
    NodeInfo,
    OnCopyFailure,
    PoolInfo,
    StatReply,
    StatusReply,
    TokenReply,
    VolumeInfo,
)
from copypool.protocol.errors import Unavailable
from copypool.reading import FileReader as AsyncFileReader
from copypool.results import BulkResult, FileVersion

SyncContent = bytes | bytearray | memoryview | Path | BinaryIO


class Operator:
    """Blocking twin of `client.operator`: long jobs, and the volumes that they empty."""

    def __init__(self, loop: LoopThread, twin: AsyncOperator) -> None:
        self.preview = loop.blocking(twin.preview)
        self.start = loop.blocking(twin.start)
        self.process = loop.blocking(twin.process)
        self.processes = loop.blocking(twin.processes)
        self.cancel = loop.blocking(twin.cancel)
        self.release = loop.blocking(twin.release)
        self.follow = loop.iterating(twin.follow, chunk=1)


class Insight:
    """Blocking twin of `client.insight`: proof, explanations, the event log, occupancy, content."""

    def __init__(self, loop: LoopThread, twin: AsyncInsight) -> None:
        self.prove = loop.blocking(twin.prove)
        self.explain = loop.blocking(twin.explain)
        self.log = loop.iterating(twin.log, chunk=1)
        self.chain = loop.blocking(twin.chain)
        self.occupancy = loop.blocking(twin.occupancy)
        self.content = loop.iterating(twin.content)
        self.content_files = loop.iterating(twin.content_files)
        self.damaged_files = loop.iterating(twin.damaged_files)


class Policies:
    """Blocking twin of `client.policies`: pools, volumes, policies of namespaces, maintenance, the brake."""

    def __init__(self, loop: LoopThread, twin: AsyncPolicies) -> None:
        self.pool_create = loop.blocking(twin.pool_create)
        self.pool_update = loop.blocking(twin.pool_update)
        self.pool = loop.blocking(twin.pool)
        self.volume_define = loop.blocking(twin.volume_define)
        self.volume_update = loop.blocking(twin.volume_update)
        self.volume = loop.blocking(twin.volume)
        self.namespace = loop.blocking(twin.namespace)
        self.namespace_update = loop.blocking(twin.namespace_update)
        self.maintenance = loop.blocking(twin.maintenance)
        self.release_brake = loop.blocking(twin.release_brake)


class Drills:
    """Blocking twin of `client.drills`: reading from copies alone, and what the loss of a node would mean."""

    def __init__(self, loop: LoopThread, twin: AsyncDrills) -> None:
        self.read_from_copies = loop.blocking(twin.read_from_copies)
        self.lose_node = loop.blocking(twin.lose_node)


class FileReader:
    """Checked bytes of one version, as an iterator of pieces. Use it with `with`."""

    def __init__(self, loop: LoopThread, reader: AsyncFileReader) -> None:
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
        self._loop = LoopThread()
        try:
            self._client = self._loop.run(
                AsyncClient.connect(profile, coordinators=coordinators, token=token, ca_file=ca_file)
            )
        except BaseException:
            self._loop.stop()
            raise
        self.operator = Operator(self._loop, self._client.operator)
        self.insight = Insight(self._loop, self._client.insight)
        self.policies = Policies(self._loop, self._client.policies)
        self.drills = Drills(self._loop, self._client.drills)

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
        self,
        folder: str | os.PathLike[str],
        namespace: str,
        prefix: str = "",
        *,
        if_absent: bool = False,
        keep_going: bool = False,
    ) -> BulkResult:
        """Store every file below a local folder."""
        return self._loop.run(
            self._client.put_tree(folder, namespace, prefix, if_absent=if_absent, keep_going=keep_going)
        )

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
        return self._loop.iterating(self._client.list)(namespace, prefix, delimiter=delimiter)

    def stat(self, namespace: str, path: str, *, version: int = 0) -> StatReply:
        """Everything about one file, with each location of each segment."""
        return self._loop.run(self._client.stat(namespace, path, version=version))

    def status(self) -> StatusReply:
        """Whether every live byte is proven to be where policy says."""
        return self._loop.run(self._client.status())

    def wait_copied(self, timeout_s: float, *, namespace: str = "") -> CopiedReply:
        """Wait until everything committed before this call, or in a namespace, is copied."""
        return self._loop.run(self._client.wait_copied(timeout_s, namespace=namespace))

    def events(self, after: str = "", *, follow: bool = False) -> Iterator[Event]:
        """The cluster's events after the one with id `after`; with `follow` it goes on waiting."""
        return self._loop.iterating(self._client.events, chunk=1)(after, follow=follow)

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
        copy_pools: Sequence[str] | None = None,
        ack: AckRule = "primary",
        on_copy_failure: OnCopyFailure = "continue",
        quota_bytes: int = 0,
    ) -> NamespaceInfo:
        """Make a namespace; without `copy_pools`, its bytes are copied where its primary pool says."""
        return self._loop.run(
            self._client.namespace_create(
                name,
                primary_pool=primary_pool,
                copy_pools=copy_pools,
                ack=ack,
                on_copy_failure=on_copy_failure,
                quota_bytes=quota_bytes,
            )
        )

    def token_create(
        self, name: str, role: Role, *, namespace: str = "", prefix: str = "", life_s: int = 0
    ) -> TokenReply:
        """Make a token, shown this once."""
        return self._loop.run(self._client.token_create(name, role, namespace=namespace, prefix=prefix, life_s=life_s))

    def token_revoke(self, name: str) -> None:
        """End a token."""
        self._loop.run(self._client.token_revoke(name))


async def _next(pieces: AsyncIterator[bytes]) -> bytes | None:
    return await anext(pieces, None)
