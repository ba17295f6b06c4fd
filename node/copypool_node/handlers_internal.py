"""Commands of coordinators and raw reads of peers: `/i/*`. Authenticates, checks the term, hands on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import msgspec
from aiohttp.web import BaseRequest, Response, StreamResponse

from copypool.protocol.api import SMALL_MAX_BYTES, Empty
from copypool.protocol.capability import PullCapability
from copypool.protocol.errors import CopypoolError, Forbidden, Invalid, NotFound, RangeNotSatisfiable, Unavailable
from copypool.protocol.internal import (
    ConfigurationCommand,
    DropCommand,
    DropReply,
    PullCommand,
    ReadManyItem,
    ReadManyReply,
    ReadManyRequest,
    SealCommand,
    VerifyCommand,
)
from copypool.protocol.routes import MSGPACK, OCTETS, TRACE_RESPONSE
from copypool.telemetry import tracing
from copypool_node import requests
from copypool_node.body import Body
from copypool_node.reader import CHUNK_BYTES, Reader
from copypool_node.requests import CapabilityDoor
from copypool_node.verify import VerifyJob

if TYPE_CHECKING:
    from copypool_node.node import Node
    from copypool_node.volumes import MountedVolume

T = TypeVar("T", bound=msgspec.Struct)

COMMAND_MAX_BYTES = 1024 * 1024
READ_MANY_MAX = 256
READ_MANY_BYTES = 16 * 1024 * 1024
_encoder = msgspec.msgpack.Encoder()


class InternalHandlers:
    """Handlers of `/i/*`."""

    def __init__(self, node: Node, door: CapabilityDoor, reader: Reader) -> None:
        self._node = node
        self._session = node.session
        self._door = door
        self._reader = reader
        self._verbs: dict[str, Callable[[BaseRequest], Awaitable[msgspec.Struct]]] = {
            "pull": self._pull,
            "verify": self._verify,
            "drop": self._drop,
            "seal": self._seal,
            "read-many": self._read_many,
            "configuration": self._configuration,
        }

    async def command(self, request: BaseRequest, verb: str) -> Response:
        """POST /i/<verb>: only with this node's command key."""
        self._session.check_command(request.headers.get("Authorization", ""))
        handler = self._verbs.get(verb)
        if handler is None:
            raise NotFound(f"no command {verb!r}")
        return Response(body=_encoder.encode(await handler(request)), content_type=MSGPACK)

    async def _decode(self, request: BaseRequest, struct: type[T]) -> T:
        body = Body(request, max_bytes=COMMAND_MAX_BYTES, stall_s=5.0)
        content = await body.read_up_to(COMMAND_MAX_BYTES)
        try:
            return msgspec.msgpack.decode(content or b"", type=struct)
        except msgspec.MsgspecError as exc:
            raise Invalid(f"the body is not a valid {struct.__name__}: {exc}") from exc

    def _volume(self, volume_id: int) -> MountedVolume:
        volume = self._node.volume_by_id(volume_id)
        if volume is None:
            raise Unavailable(f"volume {volume_id} is not mounted at this node")
        if volume.safe_mode:
            raise Unavailable(f"volume {volume.name} takes no commands: {volume.safe_mode}")
        return volume

    async def _pull(self, request: BaseRequest) -> Empty:
        command = await self._decode(request, PullCommand)
        self._session.check_term(command.term)
        volume = self._volume(command.volume)
        refusal = volume.refusal()
        if refusal:  # said now, so that it is told again soon: a pull that ends by itself is not, for a while
            raise Unavailable(f"volume {volume.name} takes no pulls now: {refusal}")
        await self._node.twins.end(volume, command.extent, command.generation, "it is pulled from now on")
        self._node.puller.submit(command, volume)
        return Empty()

    async def _verify(self, request: BaseRequest) -> Empty:
        command = await self._decode(request, VerifyCommand)
        self._session.check_term(command.term)
        trace = tracing.current()
        job = VerifyJob(command.extent, command.generation, command.length, command.sealed, command.cause, trace)
        self._node.verifiers[self._volume(command.volume)].enqueue(job)
        return Empty()

    async def _drop(self, request: BaseRequest) -> DropReply:
        command = await self._decode(request, DropCommand)
        self._session.check_term(command.term)
        volume = self._volume(command.volume)
        await self._node.twins.end(volume, command.extent, command.generation, "it is dropped")
        await self._node.puller.cancel(volume, command.extent, command.generation)
        holding = self._node.holdings.find(command.extent, volume, command.generation)
        if holding is not None:
            if holding.writing:
                raise Unavailable(f"extent {command.extent} is being written: it must be sealed first")
            self._node.holdings.remove(holding)
        await volume.disk.drop(command.extent, command.generation)
        return DropReply(gone=True)

    async def _seal(self, request: BaseRequest) -> Empty:
        command = await self._decode(request, SealCommand)
        self._session.check_term(command.term)
        volume = self._volume(command.volume)
        if volume.end_extent(command.extent, "it was sealed by the leader", self._node.sealer):
            return Empty()
        await self._node.twins.end(volume, command.extent, command.generation, "the extent is sealed")
        holding = self._node.holdings.find(command.extent, volume, command.generation)
        if holding is None:
            raise NotFound(f"no extent {command.extent} of generation {command.generation} on volume {volume.name}")
        if holding.writing:
            raise Unavailable(f"extent {command.extent} is just being opened")
        if not holding.sealed:
            done = await self._node.sealer.write_footer(holding, command.length, command.group, command.refusals)
            if not done:
                raise Unavailable(f"extent {command.extent} could not be cut and sealed now")
        return Empty()

    async def _configuration(self, request: BaseRequest) -> Empty:
        command = await self._decode(request, ConfigurationCommand)
        self._session.check_term(command.term)
        await self._volume(command.volume).disk.keep_configuration(command.revision, command.content)
        return Empty()

    async def _read_many(self, request: BaseRequest) -> ReadManyReply:
        asked = await self._decode(request, ReadManyRequest)
        if len(asked.items) > READ_MANY_MAX or sum(item.length for item in asked.items) > READ_MANY_BYTES:
            raise Invalid(f"at most {READ_MANY_MAX} items of {READ_MANY_BYTES} bytes together")
        found: list[ReadManyItem] = []
        for item in asked.items:
            try:
                if not 0 <= item.length <= SMALL_MAX_BYTES:
                    raise Invalid(f"an item of {item.length} bytes")
                sources = await self._reader.sources(item.extent, item.offset, item.length)
                payload = await self._reader.small(sources, item.offset, item.length)
            except CopypoolError as exc:
                found.append(ReadManyItem(exc.code, b""))
            else:
                found.append(ReadManyItem("", payload))
                self._node.metrics.get_bytes += len(payload)
        return ReadManyReply(found)

    async def get_raw(self, request: BaseRequest, rest: str, query: str) -> StreamResponse:
        """GET /i/raw/<extent>?from=&to=: bytes of the extent file as they are, never past what is known good."""
        extent = requests.number(rest, "the extent")
        capability = self._door.open(requests.capability_text(request, query))
        if not isinstance(capability, PullCapability) or capability.extent != extent:
            raise Forbidden("the capability does not allow pulling this extent")
        start = requests.number(requests.parameter(query, "from"), "from")
        stop = requests.number(requests.parameter(query, "to"), "to")
        length = self._node.holdings.longest(extent)
        if not length:
            raise Unavailable(f"this node does not hold extent {extent}")
        holding = self._node.holdings.source(extent, start, stop)
        if holding is None or not 0 <= start < stop:
            raise RangeNotSatisfiable(f"extent {extent} reaches {length} here", length=length)
        stop = min(stop, holding.length)
        headers = {"Content-Type": OCTETS}
        if holding.trace is not None:
            headers[TRACE_RESPONSE] = holding.trace.traceparent
        response = StreamResponse(headers=headers)
        response.content_length = stop - start
        data = await holding.file.read(start, min(CHUNK_BYTES, stop - start))
        await response.prepare(request)
        at = start
        while data:
            await response.write(data)
            self._node.metrics.served_pull_bytes += len(data)
            at += len(data)
            if at >= stop:
                await response.write_eof()
                return response
            data = await holding.file.read(at, min(CHUNK_BYTES, stop - at))
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError(f"extent {extent} ends at {at}, before its known length")
