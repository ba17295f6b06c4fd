"""The HTTP server with a bound on its connections: who comes when all are taken is cut off at once.

Without it the bound is the process's limit of open files, which volumes and the ways to others need as well. A
connection that sends no whole request is closed by aiohttp's keep-alive timer. A request that cannot be parsed is
answered like every other one: with a code, as JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from copypool.protocol.errors import Forbidden, Invalid, TooLarge, to_body
from copypool.protocol.routes import HEADERS_MAX_BYTES
from copypool.serving.shortcut import Shortcut, ShortcutConnection, Shortcuts

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
    """`aiohttp.web.Server` that holds at most `connections_max` connections, with a short way for simple requests."""

    def __init__(
        self,
        *args: Any,
        connections_max: int,
        keepalive_timeout: float,
        shortcut: Shortcut | None = None,
        **settings: Any,
    ) -> None:
        """The arguments of `web.Server`; `shortcut`: see there."""
        settings["keepalive_timeout"] = keepalive_timeout
        super().__init__(*args, handler_cancellation=False, **settings)
        self._connections_max = connections_max
        self._ordinary = 0  #: connections that aiohttp has
        self._connection_settings = settings
        self._shortcuts: Shortcuts | None = None
        if shortcut is not None:
            self._shortcuts = Shortcuts(shortcut, self._new_ordinary, self._overfull, idle_s=keepalive_timeout)

    @property
    def open_connections(self) -> int:
        """Open ones, of both ways."""
        return self._ordinary + (len(self._shortcuts.connections) if self._shortcuts is not None else 0)

    # What aiohttp's server returns is narrower: asyncio, who calls this, needs no more than a protocol.
    def __call__(self) -> asyncio.Protocol:  # type: ignore[override]
        """asyncio: one more connection."""
        if self._shortcuts is None:
            return self._new_ordinary()
        return ShortcutConnection(self._shortcuts, asyncio.get_running_loop())

    def _new_ordinary(self) -> _Connection:
        return _Connection(self, loop=asyncio.get_running_loop(), **self._connection_settings)

    def _overfull(self) -> bool:
        return self.open_connections > self._connections_max

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """aiohttp: a client has connected."""
        super().connection_made(handler, transport)
        self._ordinary += 1
        if self._overfull():
            transport.abort()

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """aiohttp: the connection is gone."""
        super().connection_lost(handler, exc)
        self._ordinary -= 1

    def pre_shutdown(self) -> None:
        """Close what is idle; what has a request in work is closed after its answer."""
        if self._shortcuts is not None:
            self._shortcuts.end_idle()
        super().pre_shutdown()

    async def shutdown(self, timeout: float | None = None) -> None:
        """Give requests in work `timeout` seconds more and cut off every connection."""
        loop = asyncio.get_running_loop()
        stop_s = loop.time() + (timeout or 0.0)
        if self._shortcuts is not None:  # first: until it is over, connections may still come to aiohttp from there
            await self._shortcuts.shutdown(timeout or 0.0)
            super().pre_shutdown()
        await super().shutdown(max(0.0, stop_s - loop.time()))


async def open_port(
    server: BoundedServer, host: str, port: int, tls: ssl.SSLContext | None, *, shared: bool = False
) -> asyncio.Server:
    """Listen and serve `server` there, over TLS if there is a context; 0 is any free port.

    Connections count for the bound once they have shaken hands; until then they have `HANDSHAKE_S`.

    A `shared` port (SO_REUSEPORT) is bound and does not listen yet: the kernel gives each listener its part of the new
    connections, so nobody listens before its `start_listening`.

    Raises:
        OSError: the address is not of this machine, or the port is taken; a shared one by a process that does not
            share it, or of another user.
    """
    site = await asyncio.get_running_loop().create_server(
        server,
        host,
        port,
        ssl=tls,
        ssl_handshake_timeout=HANDSHAKE_S if tls is not None else None,
        backlog=_BACKLOG,
        reuse_address=True,
        reuse_port=shared or None,
        start_serving=not shared,
    )
    for opened in site.sockets:
        if opened.family in (socket.AF_INET, socket.AF_INET6):
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return site


async def start_listening(site: asyncio.Server) -> None:
    """Listen at a shared port, if it was not closed meanwhile.

    Raises:
        OSError: a process that does not share it listens there by now.
    """
    opened = site.sockets
    for one in opened:
        with socket.socket(fileno=os.dup(one.fileno())) as same:
            same.listen(_BACKLOG)  # uvloop's `start_serving` would only log that it failed
    if opened:
        await site.start_serving()


async def port_closed(site: asyncio.Server) -> None:
    """Return once a port that was told to close has; who is shaking hands just then is not waited for."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_CLOSING_S):
            await site.wait_closed()


def port_of(request: web.BaseRequest) -> int:
    """The port of this process that the request came by; 0 when its connection is gone."""
    address = request.transport.get_extra_info("sockname") if request.transport is not None else None
    return int(address[1]) if address else 0


def check_peer(request: web.BaseRequest) -> None:
    """`Forbidden` unless the caller showed a certificate, which the listener has checked then.

    For routes between servers: a second lock beside the credential in the request.
    """
    if request.transport is None or not request.transport.get_extra_info("peercert"):
        raise Forbidden("this is for servers of the cluster: the caller showed no certificate")
