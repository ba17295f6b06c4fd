"""The client side of a coordinator, over the state of the fake cluster."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from aiohttp import web

from copypool.protocol import api, insight
from copypool.protocol.capability import WriteCapability, seal_capability
from copypool.protocol.errors import Conflict, CopypoolError, NoSpace, NotFound, Unauthorized
from copypool.protocol.tokens import Principal, Role, new_token
from copypool.protocol.versions import time_ms_of
from kit.fake_server import FakeFile, FakeServer, answering, body_of, cut, reply

if TYPE_CHECKING:
    from kit.fake_cluster import FakeCluster


class FakeCoordinator(FakeServer):
    """Answers every rpc of a client."""

    def __init__(self, cluster: FakeCluster, name: str) -> None:
        super().__init__(name)
        self.error: CopypoolError | None = None  #: answer this to everything
        self.refuse = False  #: drop every connection
        self.silent = False  #: never answer
        self.calls: list[str] = []
        self.lease_life_ms = 60_000
        self.no_space = False
        self._cluster = cluster
        self._stopping = asyncio.Event()

    def routes(self) -> list[web.RouteDef]:
        """One handler for every verb."""
        return [web.post("/rpc/{verb}", answering(self._rpc))]

    async def start(self) -> None:
        """Listen."""
        self._stopping.clear()
        await super().start()

    async def stop(self) -> None:
        """End the stalled requests, then the server."""
        self._stopping.set()
        await super().stop()

    async def _rpc(self, request: web.Request) -> web.StreamResponse:
        verb = request.match_info["verb"]
        self.calls.append(verb)
        if self.refuse:
            cut(request)
        if self.silent:
            await self._stopping.wait()
        if self.error is not None:
            raise self.error
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        principal = self._cluster.tokens.get(token)
        if principal is None:
            raise Unauthorized("no such token")
        handler: Any = getattr(self, f"_rpc_{verb}")
        return reply(request, await handler(request, principal))

    def _namespace(self, name: str) -> int:
        if name not in self._cluster.namespaces:
            raise NotFound(f"no namespace {name!r}")
        return self._cluster.namespaces[name].id

    async def _rpc_lease(self, request: web.Request, principal: Principal) -> api.LeaseReply:
        wanted = await body_of(request, api.LeaseRequest)
        principal.require(Role.writer, wanted.namespace, wanted.prefix)
        if self.no_space:
            raise NoSpace("no volume has room")
        namespace = self._namespace(wanted.namespace)
        nodes = [node for node in self._cluster.nodes if node.primary]
        nodes = [node for node in nodes if node.id not in wanted.avoid_nodes] or nodes
        leases: list[api.WriteLease] = []
        for node in nodes[: wanted.count]:
            expires_ms = self._cluster.now_ms() + self.lease_life_ms
            right = WriteCapability(1, node.id, node.id, 1, namespace, wanted.prefix, wanted.size_bytes, expires_ms)
            capability = seal_capability(right, self._cluster.keys(node.id))
            leases.append(
                api.WriteLease(
                    node.id, node.name, node.url, node.id, 1, namespace, capability, wanted.size_bytes, expires_ms
                )
            )
        return api.LeaseReply(leases, self._cluster.now_ms())

    async def _rpc_lookup(self, request: web.Request, principal: Principal) -> api.LookupReply:
        wanted = await body_of(request, api.LookupRequest)
        principal.require(Role.reader, wanted.namespace)
        self._cluster.lookups.append(tuple(wanted.paths))
        results: list[api.LookupResult] = []
        for path in wanted.paths:
            try:
                principal.require(Role.reader, wanted.namespace, path)
                file = self._cluster.current(self._namespace(wanted.namespace), path, wanted.version)
                results.append(api.LookupResult(self._entry(path, file)))
            except NotFound as exc:
                results.append(api.LookupResult(None, exc.code, exc.message))
        return api.LookupReply(results, self._cluster.now_ms())

    def _entry(self, path: str, file: FakeFile) -> api.FileEntry:
        entry = api.FileEntry(path, file.version, file.size, file.digest, [])
        if file.manifest is not None:
            entry.manifest = self._cluster.plan(file.manifest, file.version)
        else:
            entry.segments = [self._cluster.plan(ref, file.version) for ref in file.segments]
        return entry

    async def _rpc_resolve(self, request: web.Request, principal: Principal) -> api.ResolveReply:
        wanted = await body_of(request, api.ResolveRequest)
        principal.require(Role.reader, wanted.namespace, wanted.path)
        file = self._cluster.current(self._namespace(wanted.namespace), wanted.path, wanted.version)
        refs = file.segments[wanted.first : wanted.first + wanted.count]
        return api.ResolveReply([self._cluster.plan(ref, file.version) for ref in refs], len(file.segments))

    async def _rpc_list(self, request: web.Request, principal: Principal) -> api.ListReply:
        wanted = await body_of(request, api.ListRequest)
        principal.require(Role.reader, wanted.namespace)
        namespace = self._namespace(wanted.namespace)
        entries: dict[str, api.ListEntry] = {}
        for (owner, path), history in self._cluster.files.items():
            if owner != namespace or not path.startswith(wanted.prefix) or history[-1].deleted:
                continue
            rest = path[len(wanted.prefix) :]
            head, delimiter, _ = rest.partition(wanted.delimiter) if wanted.delimiter else (rest, "", "")
            if delimiter:
                entries[wanted.prefix + head + delimiter] = api.ListEntry(
                    wanted.prefix + head + delimiter, is_prefix=True
                )
            else:
                file = history[-1]
                entries[path] = api.ListEntry(path, file.version, file.size, file.digest)
        names = sorted((name for name in entries if name > wanted.after), key=str.encode)
        page = names[: wanted.limit]
        return api.ListReply([entries[name] for name in page], page[-1] if len(names) > len(page) else "")

    async def _rpc_stat(self, request: web.Request, principal: Principal) -> api.StatReply:
        wanted = await body_of(request, api.StatRequest)
        principal.require(Role.reader, wanted.namespace, wanted.path)
        namespace = self._namespace(wanted.namespace)
        file = self._cluster.current(namespace, wanted.path, wanted.version)
        segments = [
            api.SegmentInfo(
                ref.extent,
                ref.offset,
                ref.length,
                False,
                [
                    api.LocationInfo(
                        "primary" if node.primary else "copy",
                        "primary" if node.primary else "copy",
                        f"{node.name}-v1",
                        node.name,
                        ref.offset,
                        ref.length,
                        "good",
                        True,
                        None,
                    )
                    for node in self._cluster.holders(ref.extent)
                ],
            )
            for ref in file.segments
        ]
        older = [old.version for old in self._cluster.files[(namespace, wanted.path)] if old.version < file.version]
        stored_unix_s = time_ms_of(file.version) / 1000
        return api.StatReply(
            wanted.namespace,
            wanted.path,
            file.version,
            stored_unix_s,
            file.size,
            file.digest,
            segments,
            file.metadata,
            older[::-1],
        )

    async def _rpc_status(self, _request: web.Request, principal: Principal) -> api.StatusReply:
        principal.require(Role.reader)
        debt = sum(
            len(content)
            for node in self._cluster.nodes
            if node.primary
            for extent, content in node.extents.items()
            if len(self._cluster.holders(extent)) < 2
        )
        nodes = [
            api.NodeInfo(node.name, node.id, "up", "", "", node.url, 1, None, 1, 10**9, 10**10, 0.1)
            for node in self._cluster.nodes
        ]
        return api.StatusReply(
            healthy=not debt,
            reasons=[f"{debt} bytes are not copied yet"] if debt else [],
            files=len(self._cluster.files),
            bytes=sum(history[-1].size for history in self._cluster.files.values()),
            as_of_unix_s=self._cluster.now_ms() / 1000,
            debt_bytes=debt,
            debt_extents=int(debt > 0),
            debt_oldest_s=1.0 if debt else 0.0,
            damaged_locations=0,
            under_protected_extents=int(debt > 0),
            unverified_bytes=0,
            unavailable_files=0,
            lost_files=0,
            nodes=nodes,
            leader="coordinator1",
            coordinator=self.name,
            brake="",
            catalog_bytes=123_456,
        )

    async def _rpc_copied(self, request: web.Request, principal: Principal) -> api.CopiedReply:
        wanted = await body_of(request, api.WaitCopied)
        principal.require(Role.reader)
        marks = wanted.marks or [
            [extent, len(content)]
            for node in self._cluster.nodes
            if node.primary
            for extent, content in node.extents.items()
        ]
        left = [mark for mark in marks if len(self._cluster.holders(mark[0])) < 2]
        return api.CopiedReply(not left, marks, sum(length for _, length in left), len(left))

    async def _rpc_report(self, request: web.Request, principal: Principal) -> api.Empty:
        wanted = await body_of(request, api.ReportRequest)
        principal.require(Role.reader)
        self._cluster.reports.extend(
            (report.extent, report.volume, report.reason, report.count) for report in wanted.reports
        )
        return api.Empty()

    async def _rpc_log(self, request: web.Request, principal: Principal) -> insight.LogReply:
        principal.require(Role.operator)
        wanted = await body_of(request, insight.LogRequest)
        events = [api.Event("1", 1.0, "ExtentSealed", "coordinator1", "sealed", extent=1)]
        return insight.LogReply([event for event in events if event.id > wanted.after], "1", False)

    async def _rpc_events(self, request: web.Request, principal: Principal) -> api.EventsReply:
        wanted = await body_of(request, api.EventsRequest)
        principal.require(Role.operator)
        events = [api.Event("1", 1.0, "ExtentSealed", "coordinator1", "sealed", extent=1)]
        return api.EventsReply([event for event in events if event.id > wanted.after], "")

    async def _rpc_damaged(self, _request: web.Request, principal: Principal) -> api.DamagedReply:
        principal.require(Role.operator)
        return api.DamagedReply([api.DamagedEntry(7, "node1-v1", "node1", 1, 1.0, "block 3 fails its checksum")])

    async def _rpc_nodes(self, request: web.Request, principal: Principal) -> api.NodeList:
        return api.NodeList((await self._rpc_status(request, principal)).nodes)

    async def _rpc_volumes(self, _request: web.Request, principal: Principal) -> api.VolumeList:
        principal.require(Role.operator)
        return api.VolumeList(
            [
                api.VolumeInfo(
                    f"{node.name}-v1",
                    node.id,
                    "primary" if node.primary else "copy",
                    "primary" if node.primary else "copy",
                    node.name,
                    "readwrite",
                    True,
                    10**9,
                    10**10,
                    len(node.extents),
                    sum(len(content) for content in node.extents.values()),
                    0,
                    0,
                )
                for node in self._cluster.nodes
            ]
        )

    async def _rpc_pools(self, _request: web.Request, principal: Principal) -> api.PoolList:
        principal.require(Role.operator)
        return api.PoolList([api.PoolInfo("primary", 1, "primary", 2, 2, 0, 0, 0)])

    async def _rpc_namespaces(self, _request: web.Request, _principal: Principal) -> api.NamespaceList:
        return api.NamespaceList(list(self._cluster.namespaces.values()))

    async def _rpc_namespace_create(self, request: web.Request, principal: Principal) -> api.NamespaceInfo:
        principal.require(Role.admin)
        wanted = await body_of(request, api.NamespaceSpec)
        if wanted.name in self._cluster.namespaces:
            raise Conflict(f"the namespace {wanted.name!r} exists")
        made = api.NamespaceInfo(
            wanted.name,
            len(self._cluster.namespaces) + 1,
            wanted.primary_pool,
            ["copy"] if wanted.copy_pools is None else wanted.copy_pools,
            wanted.ack,
        )
        self._cluster.namespaces[wanted.name] = made
        return made

    async def _rpc_token_create(self, request: web.Request, principal: Principal) -> api.TokenReply:
        principal.require(Role.admin)
        wanted = await body_of(request, api.TokenSpec)
        token = new_token(wanted.name.encode().ljust(24, b"-"))
        self._cluster.tokens[token] = Principal(wanted.name, Role[wanted.role], wanted.namespace, wanted.prefix)
        return api.TokenReply(wanted.name, token)

    async def _rpc_token_revoke(self, request: web.Request, principal: Principal) -> api.Empty:
        principal.require(Role.admin)
        wanted = await body_of(request, api.TokenRevoke)
        for token, owner in list(self._cluster.tokens.items()):
            if owner.name == wanted.name:
                del self._cluster.tokens[token]
        return api.Empty()
