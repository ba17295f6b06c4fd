"""`POST /rpc/prove`, `explain`, `log`, `occupancy`, `content`: what operators ask. Thin, like `client_api`."""

from __future__ import annotations

from copypool.protocol import insight
from copypool.protocol.errors import Invalid
from copypool.protocol.names import PATH_MAX_BYTES, check_name
from copypool.protocol.tokens import Principal, Role
from copypool_coordinator import verbs
from copypool_coordinator.auth import Auth
from copypool_coordinator.catalog import Catalog
from copypool_coordinator.proving import Prover
from copypool_coordinator.verbs import Handler, Verb


class InsightApi:
    """Handlers of these verbs."""

    def __init__(self, catalog: Catalog, auth: Auth, prover: Prover, *, body_bytes: int) -> None:
        self._catalog = catalog
        self._auth = auth
        self._prover = prover
        self._body_bytes = body_bytes

    def routes(self) -> dict[str, Handler]:
        """Path -> handler."""
        table = {
            "prove": Verb(insight.ProveRequest, Role.reader, self._prove),
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


def check_cursor(text: str) -> str:
    """A prefix or cursor: any text that could begin a path; raises `Invalid`."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError as exc:
        raise Invalid("the prefix or cursor is not valid UTF-8") from exc
    if size > PATH_MAX_BYTES + 1 or "\0" in text:
        raise Invalid(f"a prefix or cursor has at most {PATH_MAX_BYTES} bytes and no NUL")
    return text
