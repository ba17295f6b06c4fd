"""The async client: every call of the SDK in one place, each a few lines over the part that does it.

async with await Client.connect() as client:
    await client.put("default", "a/b.txt", b"hello")
    print(await client.get("default", "a/b.txt"))
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import msgspec

from copypool.batches import BatchWriter, PathContent, in_chunks
from copypool.bodies import Content
from copypool.coordinators import Coordinators
from copypool.deleting import delete_listed
from copypool.drills import Drills
from copypool.insight import Insight
from copypool.operating import Operator
from copypool.policies import Policies
from copypool.profile import Profile, find_profile, load_profile, token_again
from copypool.protocol.api import (
    LIST_MAX,
    AckRule,
    CopiedReply,
    DamagedEntry,
    DamagedReply,
    Empty,
    Event,
    EventsReply,
    EventsRequest,
    ListEntry,
    ListReply,
    ListRequest,
    NamespaceInfo,
    NamespaceList,
    NamespaceSpec,
    NodeInfo,
    NodeList,
    OnCopyFailure,
    PoolInfo,
    PoolList,
    StatReply,
    StatRequest,
    StatusReply,
    TokenReply,
    TokenRevoke,
    TokenSpec,
    VolumeInfo,
    VolumeList,
    WaitCopied,
)
from copypool.protocol.errors import Invalid, Unavailable
from copypool.protocol.names import check_metadata, check_name, check_path, check_prefix
from copypool.protocol.versions import VERSION_MAX
from copypool.reading import FileReader, Reader
from copypool.reports import ReadReports
from copypool.results import BulkResult, FileVersion
from copypool.sources import SegmentReader
from copypool.telemetry.tracing import traced
from copypool.threads import in_thread
from copypool.tls import Chain, TlsError
from copypool.transport import Timeouts, Transport
from copypool.trees import TreeReader, check_folder, download, folder_prefix, local_chunks, plan_targets
from copypool.uploading import Progress, upload
from copypool.writing import WRITE_DEADLINE_S, Writer

Role = Literal["reader", "writer", "operator", "admin"]

_COPIED_POLL_FIRST_S = 0.05
_COPIED_POLL_MAX_S = 1.0
_EVENTS_POLL_S = 1.0


class Client:
    """A connection to one cluster. One per program is enough: it is made for many calls at once.

    Every method may be cancelled; a cancelled write may or may not have been applied, everything else leaves nothing
    behind. All raise the errors of `copypool.protocol.errors`.
    """

    def __init__(
        self,
        coordinators: Sequence[str],
        token: str = "",
        *,
        token_file: str = "",
        tls: Chain | None = None,
        namespace: str = "",
        timeouts: Timeouts | None = None,
        write_deadline_s: float = WRITE_DEADLINE_S,
    ) -> None:
        """For use inside a running loop; `connect` is the usual way. `write_deadline_s` bounds retries per body.

        `token_file` is read when the token is refused: tokens are exchanged without a restart.
        """
        self.namespace = namespace  #: the profile's default namespace, or ""
        self._write_deadline_s = write_deadline_s
        self._transport = Transport(tls=tls, timeouts=timeouts)
        self._coordinators = Coordinators(
            self._transport, coordinators, token, partial(token_again, token_file) if token_file else None
        )
        self._writer = Writer(self._transport, self._coordinators)
        self.insight = Insight(self._coordinators)
        self.reports = ReadReports(self._coordinators)
        self.segments = SegmentReader(self._transport, self.reports)
        self._reader = Reader(self._coordinators, self.segments)
        self.drills = Drills(self._coordinators, self._transport, self.reports)  #: proofs by doing, and what-if
        self.operator = Operator(self._coordinators)  #: long jobs, and the volumes that they empty
        self.policies = Policies(self._coordinators)  #: pools, volumes, namespaces' policies, maintenance

    @classmethod
    async def connect(
        cls,
        profile: str | os.PathLike[str] | Profile | None = None,
        *,
        coordinators: Sequence[str] | None = None,
        token: str = "",
        ca_file: str | None = None,
        timeouts: Timeouts | None = None,
        write_deadline_s: float = WRITE_DEADLINE_S,
    ) -> Client:
        """A client from a profile (see `copypool.profile` for where it is looked for) or from explicit addresses.

        Sends nothing yet: the first call tells whether the cluster is there. `Invalid` for an unusable profile.
        """
        token_file = ""
        if coordinators is None:
            if not isinstance(profile, Profile):
                place = profile
                profile = await in_thread(lambda: load_profile(find_profile(place, os.environ)))
            coordinators, token_file = profile.coordinators, "" if token else profile.token_file
            token = token or profile.token
        known = profile if isinstance(profile, Profile) else Profile(list(coordinators))
        files = msgspec.structs.replace(known, ca_file=ca_file or known.ca_file).tls
        try:
            tls = await in_thread(lambda: Chain(files)) if files is not None else None
        except TlsError as exc:
            raise Invalid(f"the profile's TLS files cannot be used: {exc}") from exc
        return cls(
            coordinators,
            token,
            token_file=token_file,
            tls=tls,
            namespace=known.namespace,
            timeouts=timeouts,
            write_deadline_s=write_deadline_s,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Send outstanding read reports, for at most a second, and close every connection. Safe to repeat."""
        try:
            await self.reports.close()
        finally:
            await self._transport.close()

    # -- writing ------------------------------------------------------------------------------
    @traced("put")
    async def put(
        self,
        namespace: str,
        path: str,
        content: Content,
        *,
        if_absent: bool = False,
        metadata: Mapping[str, str] | None = None,
        digest: str | None = None,
        progress: Progress | None = None,
        if_version: int = 0,
    ) -> FileVersion:
        """Store one file of any size, replacing an older version. Durable and visible as a whole when it returns.

        `content`: bytes, a `Path`, an open binary file or an async iterable of bytes; memory stays bounded. `digest`
        (`blake3:<hex>`) is checked before anything becomes visible. With `if_version` only that version
        is replaced. Raises `PreconditionFailed` (a `Conflict`) when it exists (`if_absent`) or has another version,
        and `OutcomeUnknown` when nobody could tell in time whether it was stored.
        """
        receipt = await upload(
            self._writer,
            check_name(namespace, "namespace"),
            check_path(path),
            content,
            if_absent=if_absent,
            metadata=check_metadata(metadata or {}),
            digest=digest,
            deadline_s=self._write_deadline_s,
            progress=progress,
            if_version=_checked_version(if_version),
        )
        return FileVersion.of(namespace, receipt)

    @traced("put_many")
    async def put_many(
        self,
        namespace: str,
        files: Iterable[PathContent] | AsyncIterable[PathContent],
        *,
        if_absent: bool = False,
        keep_going: bool = False,
        progress: Progress | None = None,
    ) -> BulkResult:
        """Store many files, batched, several batches in flight. All that is counted is durable and visible.

        Names should differ: of two contents for one name either may win. Without `keep_going` the first failure is
        raised (`path` in its details); with it failures are in the result. The iterable is read in the loop.
        """
        writer = self._batch_writer(namespace, if_absent, keep_going, progress)
        return await writer.store(in_chunks(files))

    @traced("put_tree")
    async def put_tree(
        self,
        folder: str | os.PathLike[str],
        namespace: str,
        prefix: str = "",
        *,
        if_absent: bool = False,
        keep_going: bool = False,
        progress: Progress | None = None,
    ) -> BulkResult:
        """Store every file below a local folder as `prefix/<name in the folder>`.

        Links to files are stored as files. Links to folders, sockets and the like are named in `skipped`.
        """
        writer = self._batch_writer(namespace, if_absent, keep_going, progress)
        skipped: list[str] = []
        chunks = local_chunks(Path(folder), folder_prefix(check_prefix(prefix)), skipped)
        result = await writer.store(chunks)
        result.skipped = skipped
        return result

    @traced("delete")
    async def delete(self, namespace: str, path: str, *, if_version: int = 0) -> FileVersion:
        """Delete one file; durable and visible when it returns. `NotFound` when there is none.

        With `if_version` only that version is deleted: `PreconditionFailed` when the file is another one.
        """
        receipt = await self._writer.delete(
            check_name(namespace, "namespace"),
            check_path(path),
            deadline_s=self._write_deadline_s,
            if_version=_checked_version(if_version),
        )
        return FileVersion.of(namespace, receipt)

    @traced("delete_tree")
    async def delete_tree(self, namespace: str, prefix: str, *, keep_going: bool = False) -> BulkResult:
        """Delete every file below `prefix/` (the whole namespace for ""); each is durably gone once counted."""
        entries = self.list(namespace, folder_prefix(check_prefix(prefix)))
        return await delete_listed(
            self._writer, namespace, entries, keep_going=keep_going, deadline_s=self._write_deadline_s
        )

    def _batch_writer(
        self, namespace: str, if_absent: bool, keep_going: bool, progress: Progress | None
    ) -> BatchWriter:
        return BatchWriter(
            self._writer,
            check_name(namespace, "namespace"),
            if_absent=if_absent,
            keep_going=keep_going,
            deadline_s=self._write_deadline_s,
            progress=progress,
        )

    # -- reading ------------------------------------------------------------------------------
    @traced("get")
    async def get(
        self, namespace: str, path: str, *, start: int = 0, stop: int | None = None, version: int = 0
    ) -> bytes:
        """The bytes [start, stop) of a file, in memory; negative numbers count from its end, as in a slice.

        Every byte was checked, and a whole file's digest too. Raises `Unavailable` only after every source failed.
        """
        check_name(namespace, "namespace")
        entry = await self._reader.lookup_one(namespace, check_path(path), version)
        return await self._reader.read_entry(namespace, entry, start, stop)

    @traced("open")
    async def open(
        self, namespace: str, path: str, *, start: int = 0, stop: int | None = None, version: int = 0
    ) -> FileReader:
        """A streaming reader: `async with await client.open(...) as reader: async for piece in reader: ...`."""
        check_name(namespace, "namespace")
        return await self._reader.open(namespace, check_path(path), start, stop, version)

    @traced("download")
    async def download(
        self,
        namespace: str,
        path: str,
        local: str | os.PathLike[str],
        *,
        version: int = 0,
        progress: Progress | None = None,
    ) -> int:
        """Fetch a file to a local name: complete, checked and fsync'd there when this returns, else untouched.

        Returns the size in bytes. `Invalid` when there is no folder for it.
        """
        reader = await self.open(namespace, path, version=version)
        await download(reader, Path(local), durable=True, make_folders=False, progress=progress)
        return reader.size

    @traced("get_tree")
    async def get_tree(
        self,
        namespace: str,
        prefix: str,
        folder: str | os.PathLike[str],
        *,
        keep_going: bool = False,
        progress: Progress | None = None,
    ) -> BulkResult:
        """Fetch every file below `prefix/` into a local folder; each is complete and checked, none is fsync'd.

        `Conflict` when one name would be a file and a folder, or a folder on the way is a link; `Invalid` when a name
        cannot be a local one. Nothing was written then.
        """
        below = folder_prefix(check_prefix(prefix))
        targets = plan_targets([entry.path async for entry in self.list(namespace, below)], below)
        await in_thread(check_folder, Path(folder), targets)
        tree = TreeReader(self._reader, namespace, Path(folder), keep_going=keep_going, progress=progress)
        return await tree.fetch(targets)

    async def list(
        self, namespace: str, prefix: str = "", *, delimiter: str = "", page: int = LIST_MAX
    ) -> AsyncIterator[ListEntry]:
        """Every file whose name starts with `prefix`, in byte order; exact per page, not across pages.

        With `delimiter="/"` names below the next slash are summed up as one entry with `is_prefix`.
        """
        check_name(namespace, "namespace")
        request = ListRequest(namespace, check_prefix(prefix), delimiter, "", page)
        while True:
            reply = await self._coordinators.call("list", request, ListReply)
            for entry in reply.entries:
                yield entry
            if not reply.next_after:
                return
            request.after = reply.next_after

    @traced("stat")
    async def stat(self, namespace: str, path: str, *, version: int = 0) -> StatReply:
        """Everything about one file: size, digest, metadata, and each location of each segment with its state."""
        check_name(namespace, "namespace")
        return await self._coordinators.call("stat", StatRequest(namespace, check_path(path), version), StatReply)

    # -- the cluster --------------------------------------------------------------------------
    @traced("status")
    async def status(self) -> StatusReply:
        """Whether every live byte is proven to be where policy says, and why not."""
        return await self._coordinators.call("status", Empty(), StatusReply)

    @traced("wait_copied")
    async def wait_copied(self, timeout_s: float, *, namespace: str = "") -> CopiedReply:
        """Wait until everything committed before this call, or in a namespace, is good in every copy pool of its class.

        `Unavailable` after `timeout_s`, naming what is left. Safe to repeat.
        """
        until_s = time.monotonic() + timeout_s
        request = WaitCopied([], check_name(namespace, "namespace") if namespace else "")
        delay_s = _COPIED_POLL_FIRST_S
        while True:
            reply = await self._coordinators.call("copied", request, CopiedReply)
            if reply.done:
                return reply
            if time.monotonic() + delay_s > until_s:
                raise Unavailable(
                    f"not copied within {timeout_s:g} s: {reply.debt_bytes} bytes in {reply.debt_extents} extents left",
                    debt_bytes=reply.debt_bytes,
                    debt_extents=reply.debt_extents,
                )
            request = WaitCopied(reply.marks, namespace)
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 1.5, _COPIED_POLL_MAX_S)

    async def events(self, after: str = "", *, follow: bool = False) -> AsyncIterator[Event]:
        """The cluster's events after the one with id `after`, oldest first; with `follow` it goes on waiting."""
        while True:
            reply = await self._coordinators.call("events", EventsRequest(after=after), EventsReply)
            for event in reply.events:
                yield event
            after = reply.next_after or (reply.events[-1].id if reply.events else after)
            if not reply.events:
                if not follow:
                    return
                await asyncio.sleep(_EVENTS_POLL_S)

    async def damaged(self) -> Sequence[DamagedEntry]:
        """Locations whose bytes failed their own node's check and are not rebuilt yet."""
        return (await self._coordinators.call("damaged", Empty(), DamagedReply)).locations

    async def nodes(self) -> Sequence[NodeInfo]:
        """Every storage node."""
        return (await self._coordinators.call("nodes", Empty(), NodeList)).items

    async def volumes(self) -> Sequence[VolumeInfo]:
        """Every volume."""
        return (await self._coordinators.call("volumes", Empty(), VolumeList)).items

    async def pools(self) -> Sequence[PoolInfo]:
        """Every storage pool."""
        return (await self._coordinators.call("pools", Empty(), PoolList)).items

    async def namespaces(self) -> Sequence[NamespaceInfo]:
        """The namespaces in the token's scope."""
        return (await self._coordinators.call("namespaces", Empty(), NamespaceList)).items

    # -- administration -----------------------------------------------------------------------
    async def namespace_create(
        self,
        name: str,
        *,
        primary_pool: str = "primary",
        copy_pools: Sequence[str] | None = None,
        ack: AckRule = "primary",
        on_copy_failure: OnCopyFailure = "continue",
        quota_bytes: int = 0,
    ) -> NamespaceInfo:
        """Make a namespace and set where its bytes go; without `copy_pools`, where its primary pool says.

        `quota_bytes` 0 is none. `Conflict` when the name is taken.
        """
        for pool in (primary_pool, *(copy_pools or ())):
            check_name(pool, "pool")
        pools = None if copy_pools is None else [*copy_pools]
        spec = NamespaceSpec(check_name(name, "namespace"), primary_pool, pools, ack, on_copy_failure, quota_bytes)
        return await self._coordinators.call("namespace_create", spec, NamespaceInfo, repeatable=False)

    async def token_create(
        self, name: str, role: Role, *, namespace: str = "", prefix: str = "", life_s: int = 0
    ) -> TokenReply:
        """Make a token, shown this once. `prefix` limits it to names below it, `life_s` 0 is for ever."""
        if prefix and not namespace:
            raise Invalid("a token limited to a prefix needs the namespace that the prefix is in")
        spec = TokenSpec(check_name(name, "token name"), role, namespace, check_prefix(prefix), life_s)
        return await self._coordinators.call("token_create", spec, TokenReply, repeatable=False)

    async def token_revoke(self, name: str) -> None:
        """End a token. Capabilities that it obtained end with their own life (reads 300 s, writes 60 s)."""
        await self._coordinators.call("token_revoke", TokenRevoke(check_name(name, "token name")), Empty)


def _checked_version(version: int) -> int:
    if not 0 <= version <= VERSION_MAX:
        raise Invalid(f"{version} is no version of a file")
    return version
