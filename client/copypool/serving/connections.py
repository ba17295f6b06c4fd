"""The HTTP server with a bound on its connections: who comes when all are taken is cut off at once.

Without it the bound is the process's limit of open files, which volumes and the ways to others need as well. A
connection that sends no whole request is closed by aiohttp's keep-alive timer. A request that cannot be parsed is
answered like every other one: with a code, as JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from copypool.protocol.errors import Forbidden, Invalid, TooLarge, to_body
from copypool.protocol.routes import HEADERS_MAX_BYTES

HANDSHAKE_S = 5.0
_BACKLOG = 1024
_CLOSING_S = 1.0


class _Connection(web.RequestHandler):
    """One connection, whose unreadable requests get an answer that a program can read."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """aiohttp: the request line or a header is none (400), or something else went wrong."""
        if status != 400 or request.writer.output_size > 0:
            return super().handle_error(request, status, exc, message)
        if isinstance(exc, LineTooLong):
            status = 431
            error = to_body(TooLarge(f"the request line or a header field is longer than {HEADERS_MAX_BYTES} bytes"))
        else:
            error = to_body(Invalid("this is no well-formed HTTP request"))
        response = web.Response(status=status, body=msgspec.json.encode(error), content_type="application/json")
        response.force_close()
        return response


class BoundedServer(web.Server):
    """`aiohttp.web.Server` that holds at most `connections_max` connections."""

    def __init__(self, *args: Any, connections_max: int, **settings: Any) -> None:
        super().__init__(*args, handler_cancellation=False, **settings)
        self._connections_max = connections_max
        self.open_connections = 0
        self._connection_settings = settings

    def __call__(self) -> web.RequestHandler:
        """aiohttp: one more connection."""
        return _Connection(self, loop=asyncio.get_running_loop(), **self._connection_settings)

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """aiohttp: a client has connected."""
        super().connection_made(handler, transport)
        self.open_connections += 1
        if self.open_connections > self._connections_max:
            transport.abort()

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """aiohttp: the connection is gone."""
        super().connection_lost(handler, exc)
        self.open_connections -= 1


async def open_port(server: BoundedServer, host: str, port: int, tls: ssl.SSLContext | None) -> asyncio.Server:
    """Listen and serve `server` there, over TLS if there is a context; 0 is any free port.

    Connections count for the bound once they have shaken hands; until then they have `HANDSHAKE_S`.
    """
    site = await asyncio.get_running_loop().create_server(
        server,
        host,
        port,
        ssl=tls,
        ssl_handshake_timeout=HANDSHAKE_S if tls is not None else None,
        backlog=_BACKLOG,
        reuse_address=True,
    )
    for opened in site.sockets:
        if opened.family in (socket.AF_INET, socket.AF_INET6):
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return site


async def port_closed(site: asyncio.Server) -> None:
    """Return once a port that was told to close has; who is shaking hands just then is not waited for."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_CLOSING_S):
            await site.wait_closed()


def check_peer(request: web.BaseRequest) -> None:
    """`Forbidden` unless the caller showed a certificate, which the listener has checked then.

    For routes between servers: a second lock beside the credential in the request.
    """
    if request.transport is None or not request.transport.get_extra_info("peercert"):
        raise Forbidden("this is for servers of the cluster: the caller showed no certificate")
