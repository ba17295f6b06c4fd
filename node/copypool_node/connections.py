"""The HTTP server with a bound on its connections: who comes when all are taken is cut off at once.

Without it the bound is the process's limit of open files, which the volumes need as well. A connection that sends no
whole request is closed by aiohttp's keep-alive timer.
"""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web


class BoundedServer(web.Server):
    """`aiohttp.web.Server` that holds at most `connections_max` connections."""

    def __init__(self, *args: Any, connections_max: int, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._connections_max = connections_max
        self.open_connections = 0

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
