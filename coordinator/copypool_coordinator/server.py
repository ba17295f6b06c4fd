"""The HTTP front: one handler that dispatches by path, maps errors, counts. No middleware, no URL patterns.

Requests in work are bounded, and so are their bodies (invariant 9).

Bodies, queries and Authorization headers are never logged. A handler that fails unexpectedly answers 500
`broken_invariant` and logs; its traceback never leaves the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

from aiohttp import web

from copypool.protocol.errors import BrokenInvariant, CopypoolError, Invalid, NotFound, Overloaded, Unavailable
from copypool.protocol.routes import HEADERS_MAX_BYTES, TRACE
from copypool.serving.connections import BoundedServer, check_peer, open_port, port_closed, port_of, start_listening
from copypool.serving.heads import Asked, Asks, Told
from copypool.serving.shortcut import Answering
from copypool.telemetry import tracing
from copypool_coordinator.exchange import refuse
from copypool_coordinator.files_http import PREFIX, FilesHttp
from copypool_coordinator.metrics import Metrics

log = logging.getLogger(__name__)
#: aiohttp tells every client that hangs up or sends no HTTP with a stack trace; what goes wrong here, `Front` tells.
logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

NODE_PREFIX = "/n/"  #: what nodes call
_METHODS = frozenset({"GET", "HEAD", "PUT", "DELETE"})
_KEEPALIVE_S = 75.0
#: How long the rest of a refused body is read, so that the client sees the answer.
_LINGER_S = 2.0


class Front:
    """Dispatches requests. Whole paths have their handlers, files their prefix.

    `gets` (health, metrics, pages) are answered from the start; everything else is `Unavailable` until `open`.
    """

    def __init__(
        self,
        gets: dict[str, Handler],
        metrics: Metrics,
        *,
        requests_max: int,
        peers_certified: bool = False,
        shared_port: int = 0,
    ) -> None:
        """With `peers_certified`, whoever calls what is for nodes shows a certificate.

        Nodes are refused at `shared_port` (0: there is none).
        """
        self._posts: dict[str, Handler] = {}
        self._gets = {**gets}
        self._files: FilesHttp | None = None
        self._metrics = metrics
        self._requests_max = requests_max
        self._peers_certified = peers_certified
        self._shared_port = shared_port
        self.in_work = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def open(self, posts: dict[str, Handler], files: FilesHttp) -> None:
        """Answer these as well, from now on."""
        self._posts = posts
        self._files = files

    def add(self, gets: Mapping[str, Handler]) -> None:
        """Answer these as well, open or not."""
        self._gets.update(gets)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; raises only for a connection that is gone."""
        path = request.raw_path.partition("?")[0]
        route = path
        code = "ok"
        trace = tracing.accept(request.headers.get(TRACE))
        began_s = time.monotonic()
        self.in_work += 1
        self._idle.clear()
        try:
            if path.startswith(PREFIX):
                route = f"{request.method} {PREFIX}" if request.method in _METHODS else PREFIX
                response = await self._admitted().handle(request, path[len(PREFIX) :])
            elif request.method == "POST" and (handler := self._posts.get(path)) is not None:
                self._admitted()
                if path.startswith(NODE_PREFIX):
                    self._check_node(request)
                response = await handler(request)
            elif request.method in ("GET", "HEAD") and (handler := self._gets.get(path)) is not None:
                response = await handler(request)
            else:
                route = self._wrong(path)
                if self._files is None:
                    raise Unavailable("this coordinator is starting: it has not read the catalog yet")
                response = self._refuse_unknown(request, path)
                code = Invalid.code if response.status == 405 else NotFound.code
        except (ConnectionError, asyncio.CancelledError):
            code = "gone"
            raise
        except Exception as error:  # noqa: BLE001 - told to the client, and to the log if it is a bug
            code, response = _failed(request, route, error)
        finally:
            self._ended(trace, route, code, began_s)
        return response

    def shortcut(self, asked: Asked) -> Answering | None:
        """The short way of a GET of a file, without aiohttp; None: there is none for this request now."""
        if self._files is None or self.in_work >= self._requests_max or asked.method != "GET" or asked.conditional:
            return None
        return self._small if asked.target.startswith(PREFIX) and "?" not in asked.target else None

    async def _small(self, asked: Asked) -> Told | None:
        """As `handle`; what is no small file is not answered and not counted: it is asked again, the ordinary way."""
        trace = tracing.accept(asked.headers.get(TRACE))
        route = f"GET {PREFIX}"
        code = ""
        began_s = time.monotonic()
        self.in_work += 1
        self._idle.clear()
        try:
            told = await self._admitted().small(asked, asked.target[len(PREFIX) :])
            code = "" if told is None else "ok"
        except asyncio.CancelledError:
            code = "gone"
            raise
        except Exception as error:  # noqa: BLE001 - told to the client, and to the log if it is a bug
            code, response = _failed(asked, route, error)
            told = Told.of(response)
        finally:
            if code:
                self._ended(trace, route, code, began_s)
            else:
                self._left()
        return told

    def _left(self) -> None:
        self.in_work -= 1
        if not self.in_work:
            self._idle.set()

    def _ended(self, trace: tracing.Trace, route: str, code: str, began_s: float) -> None:
        self._left()
        took_s = time.monotonic() - began_s
        self._metrics.requests.count(route, code, took_s)
        tracing.ended(trace, route, "server", took_s, code)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%s: %s in %.1f ms", route, code, took_s * 1000)

    @property
    def streams_ratio(self) -> float:
        """Share of the files that may be streamed at once that are."""
        return 0.0 if self._files is None else self._files.streams_ratio

    async def drained(self) -> None:
        """Return once no request is in work."""
        await self._idle.wait()

    def _admitted(self) -> FilesHttp:
        """The handler of files, if one more request may be worked on."""
        if self._files is None:
            raise Unavailable("this coordinator is starting: it has not read the catalog yet")
        if self.in_work > self._requests_max:
            raise Overloaded(f"{self._requests_max} requests are in work here: try again, or another coordinator")
        return self._files

    def _check_node(self, request: web.BaseRequest) -> None:
        if self._shared_port and port_of(request) == self._shared_port:
            raise Invalid(
                f"port {self._shared_port} is shared by several coordinators, and a node is to be heard by each of "
                "them: name their own addresses in the node's `coordinators`"
            )
        if self._peers_certified:
            check_peer(request)

    def _wrong(self, path: str) -> str:
        """The metrics label of a request that nothing answers; never the caller's own text."""
        return path if path in self._posts or path in self._gets else "unknown"

    def _refuse_unknown(self, request: web.BaseRequest, path: str) -> web.Response:
        allowed = "POST" if path in self._posts else "GET, HEAD" if path in self._gets else ""
        if not allowed:
            return refuse(request, NotFound("there is nothing at this path"))
        response = refuse(request, Invalid(f"this path takes {allowed}"))
        response.set_status(405)
        response.headers["Allow"] = allowed
        return response


def _failed(request: Asks, route: str, error: Exception) -> tuple[str, web.Response]:
    """Code and answer of a request that failed."""
    if isinstance(error, CopypoolError):
        if isinstance(error, BrokenInvariant):
            log.error("%s %s: %s", request.method, route, error.message)
        return error.code, refuse(request, error)
    if isinstance(error, TimeoutError):
        log.error("%s %s: a wait without an owner ran out", request.method, route, exc_info=error)
        return "bug", refuse(request, Unavailable("this took too long here: repeat"))
    log.error("%s %s: a handler failed", request.method, route, exc_info=error)
    return "bug", refuse(request, BrokenInvariant("the coordinator failed on this request; its log says how"))


class Listener:
    """The open ports, whose connections count together. `port` is the real one also when 0 was asked for."""

    def __init__(self, server: BoundedServer, site: asyncio.Server, shared: asyncio.Server | None) -> None:
        """`shared` is bound and does not listen yet."""
        self._server = server
        self._site = site
        self._shared = shared
        self._shared_at = shared.sockets[0].getsockname() if shared is not None else ()
        self.port = int(site.sockets[0].getsockname()[1])

    @property
    def connections(self) -> int:
        """Open ones."""
        return self._server.open_connections

    async def share(self) -> None:
        """Take part in the shared port from now on, if there is one and it was not left. `OSError` as of `listen`."""
        if self._shared is not None:
            with _telling_who_takes(self._shared_at):
                await start_listening(self._shared)

    def leave_shared(self) -> None:
        """Take no new connections from the shared port, for good: they go to who else listens there.

        Those that are open stay. Safe to repeat. What the kernel has accepted for this process, and this process has
        not taken yet, is reset, unless `net.ipv4.tcp_migrate_req` is on.
        """
        if self._shared is not None:
            self._shared.close()

    async def close(self, front: Front, grace_s: float) -> None:
        """Take no new connections, let requests in work finish for `grace_s`, then cut the rest."""
        self.leave_shared()
        self._site.close()
        self._server.pre_shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await front.drained()
        await self._server.shutdown(1.0)
        await port_closed(self._site)
        if self._shared is not None:
            await port_closed(self._shared)


async def listen(
    front: Front, host: str, port: int, tls: ssl.SSLContext | None, connections_max: int, shared_port: int = 0
) -> Listener:
    """Open the port and serve `front` there; `shared_port` (0: none) is bound, for `Listener.share`.

    Raises:
        OSError: a port cannot be had.
    """
    server = BoundedServer(
        front.handle,
        connections_max=connections_max,
        shortcut=front.shortcut,
        access_log=None,
        keepalive_timeout=_KEEPALIVE_S,
        lingering_time=_LINGER_S,
        max_line_size=HEADERS_MAX_BYTES,
        max_field_size=HEADERS_MAX_BYTES,
    )
    shared = await _bind_shared(server, host, shared_port, tls) if shared_port else None
    try:
        site = await open_port(server, host, port, tls)
    except BaseException:
        if shared is not None:
            shared.close()
        raise
    return Listener(server, site, shared)


async def _bind_shared(server: BoundedServer, host: str, port: int, tls: ssl.SSLContext | None) -> asyncio.Server:
    with _telling_who_takes((host, port)):
        return await open_port(server, host, port, tls, shared=True)


@contextlib.contextmanager
def _telling_who_takes(address: Sequence[object]) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno != errno.EADDRINUSE:
            raise
        raise OSError(
            exc.errno,
            f"shared_port {address[1]} at {address[0]} is taken by a process that does not share it, or that another "
            "user runs: end that process, or name another port",
        ) from exc
