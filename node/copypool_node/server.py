"""The node's HTTP listener: one flat dispatch by path, no router, no middleware, no access log.

Handlers raise errors of the one tree; they become answers here. Anything else is a bug: 500, and its story in the log.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from aiohttp import web

from copypool.protocol.errors import BrokenInvariant, CopypoolError, NotFound, Unavailable
from copypool.protocol.routes import TRACE
from copypool.serving.connections import BoundedServer, check_peer, open_port, port_closed
from copypool.serving.heads import Asked, Asks, Told
from copypool.serving.shortcut import Answering
from copypool.telemetry import certificates, process, tracing
from copypool.telemetry.metrics import TEXT_FORMAT, render
from copypool_node import gauges
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

READ_BUFFER_BYTES = 512 * 1024  #: of one connection; a client that sends faster is held back
KEEPALIVE_S = 75.0
_FILES = "/v1/files/"
_SEGMENTS = "/v1/segments/"
SHUTDOWN_S = 2.0  #: requests under way get this long when the listener is closed
LINGER_S = 2.0  #: a refused body is read and thrown away this long, so that the client sees the answer


class NodeServer:
    """Listens and dispatches."""

    def __init__(self, node: Node, log_records: Mapping[str, int] | None = None) -> None:
        """`log_records` are counted by level; see `telemetry.logs`."""
        self._node = node
        self._metrics = node.metrics
        door = CapabilityDoor(node.session)
        reader = Reader(node.holdings, node.suspect)
        self._write = WriteHandlers(
            door, node.volume_by_id, node.lane_of, node.lane_of_batch, node.streams_of, node.config.limits, node.metrics
        )
        self._read = ReadHandlers(door, reader, node.metrics)
        self._internal = InternalHandlers(node, door, reader)
        self._twins = TwinHandlers(node, door)
        self._lag = process.LoopLag()
        self._log_records = log_records or {}
        self._peers_certified = node.config.tls is not None and node.config.tls.require_client_cert
        self._site: asyncio.Server | None = None
        self._listening: BoundedServer | None = None
        self.port = 0

    async def start(self) -> None:
        """Listen. `port` tells the port when the configuration says 0."""
        config = self._node.config
        self._lag.start()
        self._listening = server = BoundedServer(
            self.handle,
            connections_max=config.limits.connections,
            shortcut=self.shortcut,
            access_log=None,
            read_bufsize=READ_BUFFER_BYTES,
            auto_decompress=False,
            keepalive_timeout=KEEPALIVE_S,
            lingering_time=LINGER_S,
            max_field_size=16 * 1024,
        )
        tls = self._node.tls.server if self._node.tls is not None else None
        self._site = await open_port(server, config.listen_host, config.listen_port, tls)
        self.port = int(self._site.sockets[0].getsockname()[1])
        log.info("listening on %s port %d", config.listen_host, self.port)

    async def stop(self) -> None:
        """Close the listener and every connection."""
        self._lag.stop()
        if self._site is None or self._listening is None:
            return
        self._site.close()
        self._listening.pre_shutdown()
        await self._listening.shutdown(SHUTDOWN_S)
        await port_closed(self._site)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """One request, to its answer."""
        metrics = self._metrics
        trace = tracing.accept(request.headers.get(TRACE))
        path, _, query = request.raw_path.partition("?")
        route = _route(request.method, path)
        code = "ok"
        began_s = time.monotonic()
        metrics.in_work += 1
        try:
            return await self._dispatch(request, path, query)
        except (ConnectionError, asyncio.CancelledError):
            code = "gone"
            raise
        except Exception as exc:  # noqa: BLE001 - told to the client, and to the log if it is a bug
            code, response = self._failed(request, exc)
            return response
        finally:
            self._ended(trace, route, code, began_s)

    def shortcut(self, asked: Asked) -> Told | Answering | None:
        """The short way of whole small files in and out, without aiohttp; None: there is none for this request.

        Bytes that need not be waited for are answered at once, without a task of their own.
        """
        if asked.method == "PUT":
            return self._short if asked.target.startswith(_FILES) else None
        if not asked.target.startswith(_SEGMENTS) or asked.conditional:
            return None
        began_s = time.monotonic()
        told = self._read.get_cached(asked, _SEGMENTS)
        if told is None:
            return self._short
        self._count(asked.headers.get(TRACE, ""), "GET segments", "ok", began_s)
        return told

    async def _short(self, asked: Asked) -> Told | None:
        """As `handle`; what is not answered is not counted: it is asked again, the ordinary way."""
        path, _, query = asked.target.partition("?")
        trace = tracing.accept(asked.headers.get(TRACE))
        code = ""
        began_s = time.monotonic()
        self._metrics.in_work += 1
        try:
            told = await self._answered(asked, path, query)
            code = "" if told is None else "ok"
        except asyncio.CancelledError:
            code = "gone"
            raise
        except Exception as exc:  # noqa: BLE001 - told to the client, and to the log if it is a bug
            code, response = self._failed(asked, exc)
            told = Told.of(response)
        finally:
            if code:
                self._ended(trace, _route(asked.method, path), code, began_s)
            else:
                self._metrics.in_work -= 1
        return told

    async def _answered(self, asked: Asked, path: str, query: str) -> Told | None:
        if asked.method == "PUT":
            return await self._write.put_whole(asked, path[len(_FILES) :], query)
        return await self._read.get_short(asked, path[len(_SEGMENTS) :], query)

    def _failed(self, request: Asks, error: Exception) -> tuple[str, web.Response]:
        """Code and answer of a request that failed."""
        if isinstance(error, CopypoolError):
            code = error.code
            if isinstance(error, BrokenInvariant):
                log.error("broken invariant: %s", error)
        else:
            log.error("a handler failed by a bug", exc_info=error)
            code, error = "bug", BrokenInvariant("the node failed; its log says how")
        self._metrics.count_error(code)
        return code, error_reply(request, error)

    def _ended(self, trace: tracing.Trace, route: str, code: str, began_s: float) -> None:
        self._metrics.in_work -= 1
        self._count(trace, route, code, began_s)

    def _count(self, trace: tracing.Trace | str, route: str, code: str, began_s: float) -> None:
        took_s = time.monotonic() - began_s
        self._metrics.requests.count(route, code, took_s)
        if tracing.recording():
            tracing.ended(tracing.Trace(trace) if isinstance(trace, str) else trace, route, "server", took_s, code)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%s: %s in %.1f ms", route, code, took_s * 1000)

    async def _dispatch(self, request: web.BaseRequest, path: str, query: str) -> web.StreamResponse:
        method = request.method
        if path.startswith("/v1/"):
            kind, _, rest = path[4:].partition("/")
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
        elif path.startswith("/i/"):
            return await self._dispatch_internal(request, method, path[3:], query)
        elif method == "GET":
            return await self._about(path)
        raise NotFound(f"no such resource: {method} {path[:80]}")

    async def _dispatch_internal(
        self, request: web.BaseRequest, method: str, path: str, query: str
    ) -> web.StreamResponse:
        """What only coordinators and other nodes ask for."""
        if self._peers_certified:
            check_peer(request)
        if method == "GET" and path.startswith("raw/"):
            return await self._internal.get_raw(request, path[4:], query)
        if method == "POST" and path.startswith("append/"):
            return await self._twins.append(request, path[7:], query)
        if method == "POST":
            return await self._internal.command(request, path)
        raise NotFound(f"no such resource: {method} /i/{path[:80]}")

    async def _page(self) -> str:
        connections = 0 if self._listening is None else self._listening.open_connections
        of_process = await process.page(self._lag, self._log_records)
        tls = self._node.tls
        of_tls = certificates.page({"server": None if tls is None else tls.state})
        return render((*self._metrics.page(), *gauges.page(self._node, connections), *of_tls, *of_process))

    async def _about(self, path: str) -> web.Response:
        if path == "/livez":
            return web.Response(text="ok\n")
        if path == "/readyz/reads":
            if not self._node.serves:
                raise Unavailable("no volume is mounted yet: capabilities cannot be honoured")
            return web.Response(text="ok\n")
        if path == "/readyz":
            if not self._node.ready:
                raise Unavailable("no volume takes writes yet: the node is not registered, or its volumes are not up")
            return web.Response(text="ok\n")
        if path == "/metrics":
            return web.Response(text=await self._page(), headers={"Content-Type": TEXT_FORMAT})
        raise NotFound(f"no such resource: GET {path[:80]}")


def _route(method: str, path: str) -> str:
    """The label of a request: one of a fixed set, never the caller's own text."""
    prefix, _, rest = path[1:].partition("/")
    kind = rest.partition("/")[0]
    if prefix == "v1" and kind in _KINDS:
        return f"{method} {kind}" if method in _METHODS else "other"
    if prefix == "i" and kind in _VERBS:
        return f"i/{kind}"
    return path if path in _PAGES else "other"


_KINDS = frozenset({"files", "segments", "batch", "parts", "complete", "record"})
_METHODS = frozenset({"GET", "HEAD", "PUT", "POST", "DELETE"})
_VERBS = frozenset({"pull", "verify", "drop", "seal", "read-many", "configuration", "raw", "append"})
_PAGES = frozenset({"/livez", "/readyz", "/readyz/reads", "/metrics"})
