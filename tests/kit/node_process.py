"""A node's real code in the test's own process, against a fake coordinator; and a client's side of its HTTP."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import msgspec

from copypool.protocol.api import BatchEntry, BatchReply, PoolType, Receipt, SegmentRef
from copypool.protocol.errors import from_response
from copypool.protocol.framing import encode_entry
from copypool.protocol.routes import CAPABILITY, MSGPACK, WRITE_ID, encode_path
from copypool.serving.encryption import TlsSection, load_chain
from copypool_node.config import Limits, NodeConfig, VolumeConfig
from copypool_node.disk import Disk
from copypool_node.node import Node
from copypool_node.server import NodeServer
from kit.eventually import eventually
from kit.fake_coordinator import JOIN_TOKEN, FakeCoordinator
from kit.ways import LONG_WAY, ONE_PIECE_BYTES


def quick_limits(**changes: float) -> Limits:
    """Limits under which tests are short; no twin is given up because the machine is slow."""
    values: dict[str, float] = {
        "heartbeat_s": 0.05,
        "shutdown_s": 2.0,
        "twin_timeout_s": 20.0,
        "extent_soft_bytes": 64 * 1024 * 1024,
        "verify_bytes_s": 0,
    }
    return Limits(**{**values, **changes})  # type: ignore[arg-type]


class NodeUnderTest:
    """A running node and a client of it."""

    def __init__(
        self, node: Node, server: NodeServer, coordinator: FakeCoordinator, http: aiohttp.ClientSession
    ) -> None:
        self.node = node
        self.server = server
        self.coordinator = coordinator
        self.http = http
        self.url = f"{'https' if node.config.tls else 'http'}://127.0.0.1:{server.port}"

    @property
    def volume(self) -> int:
        """Number of the first volume."""
        return self.node.volumes[0].id

    def write_capability(self, **changes: int) -> str:
        """May write namespace 1 through the first volume."""
        return self.coordinator.write_capability(self.node.session.node_id, self.volume, **changes)  # type: ignore[arg-type]

    async def put(
        self,
        path: str,
        body: object,
        *,
        write_id: bytes | None = None,
        kind: str = "files/1",
        headers: dict[str, str] | None = None,
        capability: str = "",
    ) -> Receipt:
        """PUT; the receipt, or the error raised."""
        sent = {
            CAPABILITY: capability or self.write_capability(),
            WRITE_ID: (write_id or os.urandom(8)).hex(),
            "Accept": MSGPACK,
            **(headers or {}),
        }
        url = f"{self.url}/v1/{kind}/{encode_path(path)}"
        data = io.BytesIO(body) if isinstance(body, bytes) and len(body) > ONE_PIECE_BYTES else body
        async with self.http.put(url, data=data, headers=sent) as response:
            content = await response.read()
            if response.status >= 400:
                raise from_response(response.status, content, response.content_type)
            return msgspec.msgpack.decode(content, type=Receipt)

    async def delete(self, path: str, *, write_id: bytes | None = None) -> Receipt:
        """DELETE; the receipt, or the error raised."""
        sent = {
            CAPABILITY: self.write_capability(),
            WRITE_ID: (write_id or os.urandom(8)).hex(),
            "Accept": MSGPACK,
        }
        async with self.http.delete(f"{self.url}/v1/files/1/{encode_path(path)}", headers=sent) as response:
            content = await response.read()
            if response.status >= 400:
                raise from_response(response.status, content, response.content_type)
            return msgspec.msgpack.decode(content, type=Receipt)

    async def batch(self, files: list[tuple[BatchEntry, bytes]]) -> BatchReply:
        """POST a batch."""
        body = b"".join(encode_entry(entry) + payload for entry, payload in files)
        sent = {CAPABILITY: self.write_capability(), "Accept": MSGPACK}
        async with self.http.post(f"{self.url}/v1/batch/1", data=body, headers=sent) as response:
            content = await response.read()
            if response.status >= 400:
                raise from_response(response.status, content, response.content_type)
            return msgspec.msgpack.decode(content, type=BatchReply)

    async def get(
        self,
        segment: SegmentRef,
        version: int,
        *,
        raw: bool = False,
        headers: dict[str, str] | None = None,
        method: str = "GET",
    ) -> tuple[int, bytes, dict[str, str]]:
        """GET a segment: status, body, headers; an error raised."""
        capability = self.coordinator.read_capability(self.node.session.node_id, segment, version, raw=raw)
        url = f"{self.url}/v1/segments/{segment.extent}/{segment.offset}/{segment.length}?v={version}"
        async with self.http.request(method, url, headers={CAPABILITY: capability, **(headers or {})}) as response:
            content = await response.read()
            if response.status >= 400:
                raise from_response(response.status, content, response.content_type)
            return response.status, content, dict(response.headers)

    async def command(self, verb: str, command: msgspec.Struct) -> bytes:
        """POST /i/<verb>."""
        headers = {"Authorization": self.coordinator.command_key(self.node.session.node_id)}
        async with self.http.post(
            f"{self.url}/i/{verb}", data=msgspec.msgpack.encode(command), headers=headers
        ) as response:
            content = await response.read()
            if response.status >= 400:
                raise from_response(response.status, content, response.content_type)
            return content

    def extent_file(self, extent: int) -> Path:
        """Where the extent's file is."""
        file = self.node.volumes[0].disk.get(extent)
        assert file is not None
        return Path(file.path)


@asynccontextmanager
async def running_node(
    folder: Path,
    coordinator: FakeCoordinator,
    *,
    name: str = "n1",
    pool_type: PoolType = "primary",
    limits: Limits | None = None,
    disk: Disk | None = None,
    wait: bool = True,
    crash: bool = False,
    tls: TlsSection | None = None,
    long_way: bool = False,
) -> AsyncIterator[NodeUnderTest]:
    """A node with one volume below `folder`, ready for writes. With `crash` its end is no orderly one.

    With `long_way`, no request takes the short way.
    """
    token = folder / "join-token"
    home = folder / name
    (home / "volume").mkdir(parents=True, exist_ok=True)
    token.write_text(JOIN_TOKEN)
    token.chmod(0o600)
    config = NodeConfig(
        name=name,
        coordinators=[coordinator.url],
        state_dir=str(home / "state"),
        volumes=[VolumeConfig(str(home / "volume"), f"{name}-a", pool_type, pool_type)],
        listen_port=0,
        join_token_file=str(token),
        limits=limits or quick_limits(),
        tls=tls,
    )
    node = Node(config, tls=await asyncio.to_thread(load_chain, tls), disk=disk)
    server = NodeServer(node)
    await server.start()
    config.advertise_url = f"{'https' if tls else 'http'}://127.0.0.1:{server.port}"
    node.start()
    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=60), headers=LONG_WAY if long_way else {}
    ) as http:
        try:
            if wait:
                # The note that its volume was mounted once is written meanwhile: no disk may fail or end under that.
                await eventually(lambda: node.ready and not node._identity_turn.locked(), "the node takes writes")
            yield NodeUnderTest(node, server, coordinator, http)
        finally:
            if crash:
                await node.crash()
            else:
                await node.stop()
            await server.stop()
