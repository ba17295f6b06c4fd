"""`POST /rpc/prove`, `explain`, `log`, `occupancy`, `content`: what operators ask. Thin, like `client_api`."""

from __future__ import annotations

from copypool.protocol import api, insight
from copypool.protocol.errors import Invalid
from copypool.protocol.names import PATH_MAX_BYTES, check_name, check_path
from copypool.protocol.tokens import Principal, Role
from copypool.protocol.versions import VERSION_MAX
from copypool_coordinator import verbs
from copypool_coordinator.auth import Auth
from copypool_coordinator.catalog import Catalog
from copypool_coordinator.eventlog import LogReader
from copypool_coordinator.inspecting import CONTENT_MAX, Inspector
from copypool_coordinator.proving import Prover
from copypool_coordinator.verbs import Handler, Verb

EVENTS_MAX = 1_000
KINDS_MAX = 50
ID_MAX = 64


class InsightApi:
    """Handlers of these verbs."""

    def __init__(
        self, catalog: Catalog, auth: Auth, prover: Prover, inspector: Inspector, log: LogReader, *, body_bytes: int
    ) -> None:
        self._catalog = catalog
        self._auth = auth
        self._prover = prover
        self._inspector = inspector
        self._log_reader = log
        self._body_bytes = body_bytes

    def routes(self) -> dict[str, Handler]:
        """Path -> handler."""
        table = {
            "prove": Verb(insight.ProveRequest, Role.reader, self._prove),
            "explain": Verb(insight.ExplainRequest, Role.reader, self._explain),
            "log": Verb(insight.LogRequest, Role.operator, self._log),
            "log_chain": Verb(insight.ChainRequest, Role.operator, self._chain),
            "occupancy": Verb(api.Empty, Role.operator, self._occupancy),
            "content": Verb(insight.ContentRequest, Role.operator, self._content),
            "damaged_files": Verb(insight.DamagedFilesRequest, Role.operator, self._damaged_files),
            "content_files": Verb(insight.ContentFilesRequest, Role.operator, self._content_files),
        }
        return verbs.routes(table, self._auth, self._catalog.now_ms, self._body_bytes)

    async def _prove(self, principal: Principal, body: insight.ProveRequest) -> insight.ProveReply:
        if not body.namespace:
            # Pools and the whole cluster hold everybody's files: for tokens that are not limited to a namespace.
            principal.require(Role.reader if not principal.namespace else Role.operator)
            if body.prefix:
                raise Invalid("a prefix goes with a namespace")
            if body.pool:
                check_name(body.pool, "pool name")
            if body.after and not (body.after.isascii() and body.after.isdigit() and len(body.after) < 19):
                raise Invalid("this cursor is not one of a proof by extents")
            return await self._prover.page(body)
        if body.pool:
            raise Invalid("a proof is of a pool or of a namespace, not of both")
        principal.require(Role.reader, check_name(body.namespace, "namespace"))
        check_cursor(body.prefix)
        check_cursor(body.after)
        return await self._prover.page(body, principal.prefix)

    async def _explain(self, principal: Principal, body: insight.ExplainRequest) -> insight.ExplainReply:
        principal.require(Role.reader, body.namespace, check_path(body.path))
        if not 0 <= body.version <= VERSION_MAX:
            raise Invalid(f"a version is between 1 and {VERSION_MAX}; 0 asks for the current one")
        return await self._inspector.explain(body)

    async def _log(self, _: Principal, body: insight.LogRequest) -> insight.LogReply:
        if not 1 <= body.limit <= EVENTS_MAX or len(body.after) > ID_MAX or not body.after.isascii():
            raise Invalid(f"limit is 1 to {EVENTS_MAX}, after the id of an event")
        if len(body.kinds) > KINDS_MAX or not 0 <= body.since_unix_s < 1e11:
            raise Invalid(f"at most {KINDS_MAX} kinds, since a time in seconds")
        return await self._log_reader.find(body)

    async def _chain(self, _: Principal, body: insight.ChainRequest) -> insight.ChainReply:
        if not body.id or len(body.id) > ID_MAX or not (body.id.isascii() and body.id.isalnum()):
            raise Invalid("an event is named by its id, as `copypool events` shows it")
        return await self._log_reader.chain(body.id)

    async def _occupancy(self, _: Principal, __: api.Empty) -> insight.OccupancyReply:
        return await self._inspector.occupancy()

    async def _content(self, _: Principal, body: insight.ContentRequest) -> insight.ContentReply:
        if not 1 <= body.limit <= CONTENT_MAX:
            raise Invalid(f"limit is 1 to {CONTENT_MAX}")
        check_name(body.volume, "volume")
        return await self._inspector.content(body)

    async def _damaged_files(self, _: Principal, body: insight.DamagedFilesRequest) -> insight.DamagedFilesReply:
        check_name(body.namespace, "namespace")
        check_cursor(body.after)
        return await self._inspector.damaged_files(body)

    async def _content_files(self, _: Principal, body: insight.ContentFilesRequest) -> insight.ContentFilesReply:
        check_name(body.volume, "volume")
        check_name(body.namespace, "namespace")
        check_cursor(body.after)
        return await self._inspector.content_files(body)


def check_cursor(text: str) -> str:
    """A prefix or cursor: any text that could begin a path; raises `Invalid`."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError as exc:
        raise Invalid("the prefix or cursor is not valid UTF-8") from exc
    if size > PATH_MAX_BYTES + 1 or "\0" in text:
        raise Invalid(f"a prefix or cursor has at most {PATH_MAX_BYTES} bytes and no NUL")
    return text
