"""What all tables of `POST /rpc/<verb>` share: an entry, and the handler that serves it.

Whoever adds verbs makes a table `{name: Verb(struct, role, work)}` and gives `routes(...)` to the front. Roles below
operator are checked by the work itself, because namespaces and paths come with the body.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from copypool.protocol.tokens import Principal, Role
from copypool_coordinator.auth import Auth
from copypool_coordinator.exchange import answer, read_struct

Work = Callable[[Principal, Any], Awaitable[object]]
Handler = Callable[[web.BaseRequest], Awaitable[web.Response]]


@dataclass(frozen=True, slots=True)
class Verb:
    """One entry of a table."""

    request: type[Any]
    role: Role
    work: Work


def routes(verbs: Mapping[str, Verb], auth: Auth, now_ms: Callable[[], int], body_bytes: int) -> dict[str, Handler]:
    """Path -> handler, for the front."""
    return {f"/rpc/{name}": _handler(verb, auth, now_ms, body_bytes) for name, verb in verbs.items()}


def _handler(verb: Verb, auth: Auth, now_ms: Callable[[], int], body_bytes: int) -> Handler:
    async def handle(request: web.BaseRequest) -> web.Response:
        principal = auth.principal(request.headers.get("Authorization"), now_ms())
        if verb.role >= Role.operator:
            principal.require(verb.role)
        body = await read_struct(request, verb.request, body_bytes)
        return answer(request, await verb.work(principal, body))

    return handle
