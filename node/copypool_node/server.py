"""The node's HTTP listener: one flat dispatch by path, no router, no middleware, no access log.

Handlers raise errors of the one tree; they become answers here. Anything else is a bug: 500, and its story in the log.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from aiohttp import web

from copypool.protocol.errors import BrokenInvariant, CopypoolError, NotFound, Unavailable
from copypool_node.config import server_context
from copypool_node.connections import BoundedServer
from copypool_node.handlers_internal import InternalHandlers
from copypool_node.handlers_read import ReadHandlers
from copypool_node.handlers_twin import TwinHandlers
from copypool_node.handlers_write import WriteHandlers
from copypool_node.reader import Reader
from copypool_node.requests import CapabilityDoor, error_reply

if TYPE_CHECKING:
    from copypool_node.node import Node

log = logging.getLogger(__name__)
#: aiohttp tells every client that hangs up or sends no HTTP with a stack trace; what goes wrong here, `handle` tells.
logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)

BACKLOG = 1024
READ_BUFFER_BYTES = 512 * 1024  #: of one connection; a client that sends faster is held back
KEEPALIVE_S = 75.0
LINGER_S = 2.0  #: a refused body is read and thrown away this long, so that the client sees the answer


class NodeServer:
    """Listens and dispatches."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._metrics = node.metrics
        door = CapabilityDoor(node.session)
        reader = Reader(node.holdings, node.suspect)
        self._write = WriteHandlers(
            door, node.volume_by_id, node.lane_of, node.streams_of, node.config.limits, node.metrics
        )
        self._read = ReadHandlers(door, reader, node.metrics)
        self._internal = InternalHandlers(node, door, reader)
        self._twins = TwinHandlers(node, door)
        self._runner: web.ServerRunner | None = None
        self._listening: BoundedServer | None = None
        self.port = 0

    async def start(self) -> None:
        """Listen. `port` tells the port when the configuration says 0."""
        config = self._node.config
        self._listening = server = BoundedServer(
            self.handle,
            connections_max=config.limits.connections,
            access_log=None,
            read_bufsize=READ_BUFFER_BYTES,
            auto_decompress=False,
            keepalive_timeout=KEEPALIVE_S,
            lingering_time=LINGER_S,
            max_field_size=16 * 1024,
        )
        self._runner = web.ServerRunner(server, shutdown_timeout=2.0)
        await self._runner.setup()
        site = web.TCPSite(
            self._runner,
            config.listen_host,
            config.listen_port,
            ssl_context=server_context(config.tls),
            backlog=BACKLOG,
        )
        await site.start()
        self.port = self._runner.addresses[0][1]
        log.info("listening on %s port %d", config.listen_host, self.port)

    async def stop(self) -> None:
        """Close the listener and every connection."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """One request, to its answer."""
        try:
            return await self._dispatch(request)
        except CopypoolError as exc:
            self._metrics.count_error(exc.code)
            if isinstance(exc, BrokenInvariant):
                log.error("broken invariant: %s", exc)
            return error_reply(request, exc)
        except ConnectionError:
            raise
        except Exception:
            log.exception("a handler failed by a bug")
            self._metrics.count_error("bug")
            return error_reply(request, BrokenInvariant("the node failed; its log says how"))

    async def _dispatch(self, request: web.BaseRequest) -> web.StreamResponse:
        path, _, query = request.raw_path.partition("?")
        method = request.method
        if path.startswith("/v1/"):
            kind, _, rest = path[4:].partition("/")
            self._metrics.count_request(kind if kind in _KINDS else "other")
            if kind == "files" and method == "PUT":
                return await self._write.put_file(request, rest, query)
            if kind == "segments" and method in ("GET", "HEAD"):
                return await self._read.get_segment(request, rest, query)
            if kind == "batch" and method == "POST":
                return await self._write.batch(request, rest, query)
            if kind == "files" and method == "DELETE":
                return await self._write.delete_file(request, rest, query)
            if kind == "parts" and method == "PUT":
                return await self._write.put_part(request, rest, query)
            if kind == "complete" and method == "POST":
                return await self._write.complete(request, rest, query)
            if kind == "record" and method == "GET":
                return await self._read.get_record(request, rest, query)
        elif path.startswith("/i/raw/") and method == "GET":
            return await self._internal.get_raw(request, path[7:], query)
        elif path.startswith("/i/append/") and method == "POST":
            return await self._twins.append(request, path[10:], query)
        elif path.startswith("/i/") and method == "POST":
            return await self._internal.command(request, path[3:])
        elif method == "GET":
            return self._about(path)
        raise NotFound(f"no such resource: {method} {path[:80]}")

    def _gauges(self) -> dict[str, float]:
        connections = 0 if self._listening is None else self._listening.open_connections
        return {**self._node.gauges(), "connections": float(connections)}

    def _about(self, path: str) -> web.Response:
        if path == "/livez":
            return web.Response(text="ok\n")
        if path == "/readyz":
            if not self._node.ready:
                raise Unavailable("no volume takes writes yet: the node is not registered, or its volumes are not up")
            return web.Response(text="ok\n")
        if path == "/metrics":
            return web.Response(text=self._metrics.render(self._gauges), content_type="text/plain")
        raise NotFound(f"no such resource: GET {path[:80]}")


_KINDS = frozenset({"files", "segments", "batch", "parts", "complete", "record"})
