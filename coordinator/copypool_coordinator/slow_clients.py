"""Sending to clients that take little at a time: one that takes nothing any more is cut off, whatever its pace was."""

from __future__ import annotations

import asyncio
import socket
import sys

from aiohttp import web

#: A client that takes nothing for this long is cut off: its stream holds a slot.
CLIENT_STALL_S = 60.0
#: Of `struct tcp_info` (linux/tcp.h), up to and with `tcpi_bytes_acked`.
_TCP_INFO_BYTES = 128


async def write_piece(request: web.BaseRequest, response: web.StreamResponse, piece: bytes) -> None:
    """Send a piece, however slowly the client takes it; `ConnectionResetError`: it takes nothing any more.

    The wait ends with the connection alone: aiohttp can not take up again one that was cancelled.
    """
    loop = asyncio.get_running_loop()
    transport = request.transport
    taken_bytes = _taken_bytes(transport)
    stands_still = False
    timer: asyncio.TimerHandle

    def look() -> None:
        nonlocal taken_bytes, stands_still, timer
        before_bytes, taken_bytes = taken_bytes, _taken_bytes(transport)
        if taken_bytes > before_bytes:
            timer = loop.call_later(CLIENT_STALL_S, look)
            return
        stands_still = True
        if transport is not None:
            transport.abort()

    timer = loop.call_later(CLIENT_STALL_S, look)
    try:
        await response.write(piece)
    except ConnectionError:
        if not stands_still:
            raise
    finally:
        timer.cancel()
    if stands_still:
        raise ConnectionResetError("the client takes no bytes")


def _taken_bytes(transport: asyncio.Transport | None) -> int:
    """What the client's machine has acknowledged so far; 0: the connection is gone.

    The kernel's count, since a transport that encrypts does not tell what waits in the one below it.
    """
    connection = transport.get_extra_info("socket") if transport is not None else None
    if connection is None:
        return 0
    try:
        told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except OSError:
        return 0
    return int.from_bytes(told[_TCP_INFO_BYTES - 8 :], sys.byteorder)
