"""When aiohttp's limit on a server's silence (`sock_read`) ends: a client's middlewares. SDK, node and coordinator.

aiohttp stops the limit while a slow reader holds a connection up, and sets it anew when he goes on. It does so too when
he takes up the last bytes (3.14.5): the answer has ended then, and its connection is back in the pool. There the limit
passes, and whatever request is given that connection next fails at once, as if its server were silent.
"""

from __future__ import annotations

from functools import partial

from aiohttp import ClientHandlerType, ClientRequest, ClientResponse
from aiohttp.client_proto import ResponseHandler


async def until_end(request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
    """The limit holds for the whole answer, as long as its reader takes what comes, and not a moment longer."""
    response = await handler(request)
    if (protocol := _protocol_of(response)) is not None:
        response.content.on_eof(partial(_end, protocol))
    return response


async def until_head(request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
    """The limit holds for the head of the answer alone; who reads the body bounds his own waits."""
    response = await handler(request)
    if (protocol := _protocol_of(response)) is not None:
        _end(protocol)
    return response


def _protocol_of(response: ClientResponse) -> ResponseHandler | None:
    """None when the answer has ended already."""
    return response.connection.protocol if response.connection is not None else None


def _end(protocol: ResponseHandler) -> None:
    """No limit runs any more, and none is set anew; the next request brings its own."""
    protocol.read_timeout = None
    protocol.start_timeout()
