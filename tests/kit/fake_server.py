"""One in-process HTTP server on a loopback port, and how it answers. Used by the fake cluster."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from aiohttp import web

from copypool.protocol.api import SegmentRef
from copypool.protocol.errors import CopypoolError, to_body
from copypool.protocol.routes import decode_body, encode_body

T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class FakeFile:
    """One version of one file; `deleted` marks a tombstone."""

    version: int
    size: int
    digest: str
    segments: list[SegmentRef]
    write_id: bytes
    manifest: SegmentRef | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    deleted: bool = False


class FakeServer:
    """Starts, stops and starts again on the same port."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.url = ""
        self._port = 0
        self._runner: web.AppRunner | None = None

    def routes(self) -> list[web.RouteDef]:
        """What the server serves."""
        raise NotImplementedError

    async def start(self) -> None:
        """Listen; the port stays the same over restarts."""
        app = web.Application(client_max_size=2**28)
        app.add_routes(self.routes())
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        self._port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self._port}"

    async def stop(self) -> None:
        """Refuse connections and end those there are. Safe to repeat."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None


def answering(handler: Handler) -> Handler:
    """A handler whose Copypool errors become error answers."""

    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except CopypoolError as exc:
            return reply(request, to_body(exc), exc.http_status)

    return handle


def reply(request: web.Request, value: object, status: int = 200) -> web.Response:
    """A struct as the answer, in the form that the caller accepts."""
    content, content_type = encode_body(value, request.headers.get("Accept", ""))
    return web.Response(body=content, content_type=content_type, status=status)


async def body_of(request: web.Request, struct: type[T]) -> T:
    """The request's body as a struct."""
    return decode_body(await request.read(), request.content_type, struct)


def cut(request: web.Request) -> None:
    """Drop the connection without an answer."""
    if request.transport is not None:
        request.transport.abort()
