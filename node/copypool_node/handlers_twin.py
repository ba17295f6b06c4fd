"""`POST /i/append/<extent>`: what the writer of an open extent sends to its twin. Checks the right, hands on."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING

import msgspec
from aiohttp.web import BaseRequest, Response

from copypool.protocol.capability import AppendCapability
from copypool.protocol.errors import Forbidden, Invalid, Overloaded, TooLarge, Unavailable
from copypool.protocol.routes import MSGPACK
from copypool.protocol.twins import APPEND_MAX_BYTES
from copypool_node import requests
from copypool_node.body import Body
from copypool_node.requests import CapabilityDoor

if TYPE_CHECKING:
    from copypool_node.node import Node

APPENDS_AT_ONCE = 8  #: bodies in memory per volume, each of at most APPEND_MAX_BYTES
_encoder = msgspec.msgpack.Encoder()


class TwinHandlers:
    """Handler of appends. Memory is bounded by the bodies that are received at a time; a hung disk holds up its own."""

    def __init__(self, node: Node, door: CapabilityDoor) -> None:
        self._node = node
        self._door = door
        self._turns: defaultdict[int, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(APPENDS_AT_ONCE))

    async def append(self, request: BaseRequest, rest: str, query: str) -> Response:
        """POST /i/append/<extent>?offset=&sync="""
        extent = requests.number(rest, "the extent")
        capability = self._door.open(requests.capability_text(request, query))
        if not isinstance(capability, AppendCapability) or capability.extent != extent:
            raise Forbidden("the capability does not allow appending to this extent")
        offset = requests.number(requests.parameter(query, "offset"), "offset")
        sync = requests.parameter(query, "sync") == "1"
        volume = self._node.volume_by_id(capability.volume)
        if volume is None:
            raise Unavailable(f"volume {capability.volume} is not mounted at this node")
        timeout_s = self._node.config.limits.twin_timeout_s
        turns = self._turns[volume.id]
        try:
            async with asyncio.timeout(timeout_s):
                await turns.acquire()
        except TimeoutError as exc:
            raise Overloaded(f"{APPENDS_AT_ONCE} appends to volume {volume.name} are under way") from exc
        try:
            body = Body(request, max_bytes=APPEND_MAX_BYTES, stall_s=timeout_s)
            if body.length is None:
                raise Invalid("an append states its length")
            data = await body.read_up_to(APPEND_MAX_BYTES)
            if not data:
                raise TooLarge("an append is longer than allowed") if data is None else Invalid("an append has bytes")
            reply = await self._node.twins.append(
                volume, extent, capability.generation, offset, data, sync=sync
            )  # fmt: skip
        finally:
            turns.release()
        return Response(body=_encoder.encode(reply), content_type=MSGPACK)
