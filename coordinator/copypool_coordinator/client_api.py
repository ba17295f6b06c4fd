"""`POST /rpc/<verb>`: what clients ask of coordinators. Thin: who is it, may it, then the part that knows.

Every verb names its role in the table below; namespace and path scopes are checked by its handler, because they come
with the body. Out of scope looks like not there: 404.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

from copypool.protocol import api
from copypool.protocol.digests import format_digest
from copypool.protocol.errors import CopypoolError, Invalid, NotFound
from copypool.protocol.names import PATH_MAX_BYTES, check_name, check_path, check_prefix
from copypool.protocol.tokens import Principal, Role, new_token, token_key
from copypool.protocol.versions import VERSION_MAX, time_ms_of
from copypool_coordinator import routing, verbs
from copypool_coordinator.auth import Auth
from copypool_coordinator.catalog import Catalog
from copypool_coordinator.leasing import Leasing
from copypool_coordinator.locating import Located, Locator
from copypool_coordinator.overview import Overview
from copypool_coordinator.reports import Reports
from copypool_coordinator.rows import FORMAT, FileFlag, TokenRow
from copypool_coordinator.streaming import Reading
from copypool_coordinator.verbs import Handler, Verb

REPORTS_MAX = 256
EVENTS_MAX = 1000
OLD_VERSIONS_MAX = 100
_AVOID_MAX = 64


class ClientApi:
    """Handlers of `/rpc/*`."""

    def __init__(
        self,
        catalog: Catalog,
        auth: Auth,
        locator: Locator,
        leasing: Leasing,
        reading: Reading,
        overview: Overview,
        reports: Reports,
        *,
        body_bytes: int,
    ) -> None:
        self._catalog = catalog
        self._view = catalog.view
        self._auth = auth
        self._locator = locator
        self._leasing = leasing
        self._reading = reading
        self._overview = overview
        self._reports = reports
        self._body_bytes = body_bytes

    def routes(self) -> dict[str, Handler]:
        """Path -> handler."""
        table = {
            "lease": Verb(api.LeaseRequest, Role.writer, self._lease),
            "lookup": Verb(api.LookupRequest, Role.reader, self._lookup),
            "resolve": Verb(api.ResolveRequest, Role.reader, self._resolve),
            "list": Verb(api.ListRequest, Role.reader, self._list),
            "stat": Verb(api.StatRequest, Role.reader, self._stat),
            "report": Verb(api.ReportRequest, Role.reader, self._report),
            "status": Verb(api.Empty, Role.reader, self._status),
            "copied": Verb(api.WaitCopied, Role.reader, self._copied),
            "nodes": Verb(api.Empty, Role.operator, self._nodes),
            "volumes": Verb(api.Empty, Role.operator, self._volumes),
            "pools": Verb(api.Empty, Role.operator, self._pools),
            "damaged": Verb(api.Empty, Role.operator, self._damaged),
            "events": Verb(api.EventsRequest, Role.operator, self._events),
            "token_create": Verb(api.TokenSpec, Role.admin, self._token_create),
            "token_revoke": Verb(api.TokenRevoke, Role.admin, self._token_revoke),
        }
        return verbs.routes(table, self._auth, self._catalog.now_ms, self._body_bytes)

    # -- writing -----------------------------------------------------------------------------------
    async def _lease(self, principal: Principal, body: api.LeaseRequest) -> api.LeaseReply:
        check_prefix(body.prefix)
        principal.require(Role.writer, body.namespace, body.prefix)
        if not 1 <= body.count <= 8 or not 0 <= body.size_bytes <= api.PART_MAX_BYTES:
            raise Invalid(f"count is 1 to 8, size_bytes 0 to {api.PART_MAX_BYTES}")
        namespace = self._locator.namespace(body.namespace)
        leases = self._leasing.leases(
            namespace,
            body.prefix,
            principal.name,
            count=body.count,
            size_bytes=body.size_bytes,
            avoid_nodes=_avoid(body.avoid_nodes),
            for_delete=body.for_delete,
        )
        return api.LeaseReply(leases, self._catalog.now_ms())

    # -- reading -----------------------------------------------------------------------------------
    async def _lookup(self, principal: Principal, body: api.LookupRequest) -> api.LookupReply:
        principal.require(Role.reader, body.namespace)
        if not 1 <= len(body.paths) <= api.LOOKUP_MAX:
            raise Invalid(f"a lookup names 1 to {api.LOOKUP_MAX} paths")
        if body.version and len(body.paths) > 1:
            raise Invalid("a version goes with exactly one path")
        _check_version(body.version)
        avoid_nodes = _avoid(body.avoid_nodes)
        namespace = self._locator.namespace(body.namespace)
        waiting: list[tuple[str, asyncio.Future[Any] | CopypoolError]] = []
        for path in body.paths:
            try:
                check_path(path)
                principal.require(Role.reader, body.namespace, path)
                waiting.append((path, self._locator.lookups.submit(namespace.id, path, body.version)))
            except CopypoolError as error:
                waiting.append((path, error))
        results = []
        for path, item in waiting:
            try:
                if isinstance(item, CopypoolError):
                    raise item
                row = await item
                if row is None:
                    raise NotFound(f"no file {path!r}")
                located = await self._locator.locate(namespace.id, path, row, body.version)
                file = self._locator.entry(located, raw=body.raw, avoid_nodes=avoid_nodes, zone=body.zone)
                results.append(api.LookupResult(file=file))
            except CopypoolError as error:
                if error.retryable:
                    # Nothing was read: the whole request is to be repeated, elsewhere too.
                    _forget(waiting)
                    raise
                results.append(api.LookupResult(code=error.code, message=error.message))
        return api.LookupReply(results, self._catalog.now_ms())

    async def _resolve(self, principal: Principal, body: api.ResolveRequest) -> api.ResolveReply:
        principal.require(Role.reader, body.namespace, check_path(body.path))
        if not 1 <= body.count <= api.LOOKUP_MAX or not 0 <= body.first < api.PARTS_MAX:
            raise Invalid(f"count is 1 to {api.LOOKUP_MAX}, first 0 to {api.PARTS_MAX - 1}")
        _check_version(body.version)
        namespace = self._locator.namespace(body.namespace)
        located = await self._locator.find(namespace.id, body.path, body.version)
        segments = await self._reading.segments(located)
        page = await self._locator.locate_segments(located, segments[body.first : body.first + body.count])
        plans = [
            self._locator.plan(
                page,
                segment,
                located.row.version,
                raw=body.raw,
                avoid_nodes=_avoid(body.avoid_nodes),
                zone=body.zone,
            )
            for segment in page.segments
        ]
        return api.ResolveReply(plans, len(segments))

    async def _list(self, principal: Principal, body: api.ListRequest) -> api.ListReply:
        principal.require(Role.reader, body.namespace)
        _check_cursor(body.prefix)
        _check_cursor(body.after)
        if body.delimiter not in ("", "/"):
            raise Invalid("the delimiter is '' or '/'")
        if not 1 <= body.limit <= api.LIST_MAX:
            raise Invalid(f"limit is 1 to {api.LIST_MAX}")
        namespace = self._locator.namespace(body.namespace)
        entries, after = await self._catalog.list(
            namespace.id, body.prefix, body.delimiter, body.after, body.limit, principal.prefix
        )
        return api.ListReply(entries, after)

    async def _stat(self, principal: Principal, body: api.StatRequest) -> api.StatReply:
        principal.require(Role.reader, body.namespace, check_path(body.path))
        _check_version(body.version)
        namespace = self._locator.namespace(body.namespace)
        located = await self._locator.find(namespace.id, body.path, body.version)
        row = located.row
        metadata, older = await asyncio.gather(
            self._reading.metadata(located), self._catalog.old_versions(namespace.id, body.path, OLD_VERSIONS_MAX)
        )
        data = located
        if row.flags & FileFlag.in_manifest:
            segments = await self._reading.segments(located)
            data = await self._locator.locate_segments(located, segments[: api.LOOKUP_MAX])
        return api.StatReply(
            namespace=body.namespace,
            path=body.path,
            version=row.version,
            stored_unix_s=time_ms_of(row.version) / 1000,
            size=row.size,
            digest=format_digest(row.digest),
            segments=[self._segment_info(data, segment) for segment in data.segments],
            metadata=metadata or {},
            older_versions=[version for version in older if version != row.version],
            metadata_read=metadata is not None,
        )

    def _segment_info(self, located: Located, segment: api.SegmentRef) -> api.SegmentInfo:
        extent = located.extents[segment.extent]
        infos = []
        for location in extent.locations:
            volume = self._view.volumes_by_id.get(location.volume)
            if volume is None:
                continue
            pool = self._view.pools_by_id[volume.row.pool]
            node = self._view.nodes_by_id[volume.row.node]
            infos.append(
                api.LocationInfo(
                    pool=pool.name,
                    pool_type=pool.row.type,
                    volume=volume.name,
                    node=node.name,
                    offset=segment.offset,
                    length=routing.held_bytes(segment, routing.reach_of(location, extent)),
                    state=location.state,
                    reachable=self._view.volume_reachable(location.volume),
                    verified_unix_s=location.verified_ms / 1000 if location.verified_ms else None,
                )
            )
        infos.sort(key=lambda info: (info.pool_type != "primary", info.pool, info.volume))
        return api.SegmentInfo(segment.extent, segment.offset, segment.length, not extent.open, infos)

    async def _report(self, principal: Principal, body: api.ReportRequest) -> api.Empty:
        principal.require(Role.reader)
        if len(body.reports) > REPORTS_MAX:
            raise Invalid(f"at most {REPORTS_MAX} reports at a time")
        self._reports.add(body.reports)
        return api.Empty()

    # -- overview ----------------------------------------------------------------------------------
    async def _status(self, principal: Principal, _: api.Empty) -> api.StatusReply:
        principal.require(Role.reader)
        return await self._overview.status(principal.namespace)

    async def _copied(self, principal: Principal, body: api.WaitCopied) -> api.CopiedReply:
        principal.require(Role.reader, body.namespace or None)
        return await self._overview.copied(body)

    async def _nodes(self, _: Principal, __: api.Empty) -> api.NodeList:
        return api.NodeList(await self._overview.nodes())

    async def _volumes(self, _: Principal, __: api.Empty) -> api.VolumeList:
        return api.VolumeList(await self._overview.volumes())

    async def _pools(self, _: Principal, __: api.Empty) -> api.PoolList:
        return api.PoolList(await self._overview.pools())

    async def _damaged(self, _: Principal, __: api.Empty) -> api.DamagedReply:
        return await self._overview.damaged()

    async def _events(self, _: Principal, body: api.EventsRequest) -> api.EventsReply:
        if not 1 <= body.limit <= EVENTS_MAX or len(body.after) > 64 or not body.after.isascii():
            raise Invalid(f"limit is 1 to {EVENTS_MAX}, after the id of an event")
        found = await self._catalog.events(body.after, body.limit)
        events = [
            api.Event(
                id=event_id,
                unix_s=row.unix_ms / 1000,
                kind=row.kind,
                who=row.who,
                message=row.message,
                extent=row.extent,
                volume=row.volume,
                node=row.node,
                cause=row.cause,
            )
            for event_id, row in found
        ]
        return api.EventsReply(events, events[-1].id if len(events) == body.limit else "")

    # -- administration ----------------------------------------------------------------------------
    async def _token_create(self, _: Principal, body: api.TokenSpec) -> api.TokenReply:
        check_name(body.name, "token name")
        check_prefix(body.prefix)
        if body.namespace:
            self._locator.namespace(check_name(body.namespace, "namespace"))
        if body.prefix and not body.namespace:
            raise Invalid("a prefix goes with a namespace")
        if body.life_s < 0:
            raise Invalid("life_s is 0 (for ever) or the seconds that the token lives")
        token = new_token(secrets.token_bytes(32))
        expires_ms = self._catalog.now_ms() + body.life_s * 1000 if body.life_s else 0
        row = TokenRow(FORMAT, body.name, int(Role[body.role]), body.namespace, body.prefix, expires_ms)
        await self._catalog.create_token(token_key(token), row)
        return api.TokenReply(body.name, token)

    async def _token_revoke(self, _: Principal, body: api.TokenRevoke) -> api.Empty:
        await self._catalog.revoke_token(check_name(body.name, "token name"))
        return api.Empty()


def _avoid(nodes: list[int]) -> frozenset[int]:
    return frozenset(nodes[:_AVOID_MAX])


def _check_version(version: int) -> None:
    if not 0 <= version <= VERSION_MAX:
        raise Invalid(f"a version is between 1 and {VERSION_MAX}; 0 asks for the current one")


def _forget(waiting: list[tuple[str, asyncio.Future[Any] | CopypoolError]]) -> None:
    """The outcomes of the other lookups of a failed request do not matter."""
    for _, item in waiting:
        if isinstance(item, asyncio.Future):
            item.cancel()
            if item.done() and not item.cancelled():
                item.exception()


def _check_cursor(text: str) -> str:
    """A listing's prefix or cursor: any text that could begin a path."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError as exc:
        raise Invalid("the prefix or cursor is not valid UTF-8") from exc
    if size > PATH_MAX_BYTES + 1 or "\0" in text:
        raise Invalid(f"a prefix or cursor has at most {PATH_MAX_BYTES} bytes and no NUL")
    return text
