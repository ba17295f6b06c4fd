"""Requests and answers as the handlers see them: bodies in, structs out, errors as `ErrorBody`."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from copypool.protocol.errors import CopypoolError, Invalid, Overloaded, TooLarge, Unavailable, to_body
from copypool.protocol.routes import JSON, MSGPACK, decode_body, encode_body
from copypool.serving.heads import Asks

T = TypeVar("T")

#: A body must have arrived in this time.
BODY_S = 10.0


_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


async def read_body(request: web.BaseRequest, limit_bytes: int) -> bytes:
    """The whole body.

    Raises:
        TooLarge: above the limit; at once when its length is announced.
        Unavailable: it did not arrive within `BODY_S`.
        Invalid: it is cut off or wrongly framed.
    """
    if (request.content_length or 0) > limit_bytes:
        raise TooLarge(f"the body has {request.content_length} bytes; the limit is {limit_bytes}")
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(_CONTINUE)
        request.writer.output_size = 0  # the answer proper has not begun
    content = request.content
    try:
        if content.is_eof():
            body = content.read_nowait()
            if len(body) > limit_bytes:
                raise TooLarge(f"the body has {len(body)} bytes; the limit is {limit_bytes}")
            return body
        chunks = []
        size = 0
        async with asyncio.timeout(BODY_S):
            while chunk := await content.readany():
                size += len(chunk)
                if size > limit_bytes:
                    raise TooLarge(f"the body has more than {limit_bytes} bytes")
                chunks.append(chunk)
        return b"".join(chunks)
    except TimeoutError as exc:
        raise Unavailable(f"the body did not arrive within {BODY_S} s") from exc
    except (HttpProcessingError, web.RequestPayloadError) as exc:
        raise Invalid("the body is cut off or wrongly framed") from exc


async def read_struct(request: web.BaseRequest, struct: type[T], limit_bytes: int) -> T:
    """The body as a struct; see `read_body` and `routes.decode_body`."""
    return decode_body(await read_body(request, limit_bytes), request.headers.get("Content-Type", JSON), struct)


def answer(request: web.BaseRequest, value: object, status: int = 200) -> web.Response:
    """A struct as an answer, in the form that the caller accepts."""
    body, content_type = encode_body(value, request.headers.get("Accept", ""))
    return web.Response(body=body, status=status, headers={"Content-Type": content_type})


def refuse(request: Asks, error: CopypoolError) -> web.Response:
    """An error as an answer."""
    accept = request.headers.get("Accept", "")
    # A node or an SDK that sends msgpack reads it as well, also when it forgot to say so.
    if MSGPACK in request.headers.get("Content-Type", ""):
        accept = MSGPACK
    body, content_type = encode_body(to_body(error), accept)
    headers = {"Content-Type": content_type, "Cache-Control": "no-store"}
    if isinstance(error, Overloaded | Unavailable):
        headers["Retry-After"] = "1"
    if error.http_status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if request.method == "HEAD":
        body = b""
    return web.Response(body=body, status=error.http_status, headers=headers)
