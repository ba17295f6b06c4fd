"""A whole coordinator inside the test's event loop, on a real etcd, and a node played by the test.

    async with running_coordinator(endpoint) as coordinator:
        status, body = await coordinator.rpc("lookup", {...}, token=coordinator.admin)
        node = await PlayedNode.join(coordinator, "n1")

The played node speaks `/n/*` as a real one does and serves what it committed from memory.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import aiohttp
import msgspec
from aiohttp import web
from yarl import URL

from copypool.protocol import internal
from copypool.protocol.api import SegmentRef
from copypool.protocol.digests import digest_of
from copypool.protocol.errors import from_response
from copypool.protocol.routes import MSGPACK
from copypool.protocol.stripes import stored_bytes
from copypool.protocol.versions import VersionClock
from copypool.serving.encryption import load_chain
from copypool_coordinator import keys
from copypool_coordinator.config import Config, Secrets, parse
from copypool_coordinator.etcd import Etcd, EtcdSettings, delete
from copypool_coordinator.process import Coordinator
from kit.eventually import eventually

T = TypeVar("T")
ADMIN = "admin-token-of-this-test-only"
JOIN = "join-token-of-this-test-only"
HEADER_BYTES = 64


class Running:
    """A coordinator that serves."""

    def __init__(self, coordinator: Coordinator, http: aiohttp.ClientSession) -> None:
        self.coordinator = coordinator
        self.http = http
        self.url = coordinator.url

    @asynccontextmanager
    async def another_client(self) -> AsyncIterator[Running]:
        """The same, called over connections of its own."""
        async with aiohttp.ClientSession() as http:
            yield Running(self.coordinator, http)

    @property
    def short_connections(self) -> int:
        """Connections that aiohttp has not taken over (`serving.shortcut`)."""
        listener = self.coordinator._listener
        assert listener is not None
        assert listener._server._shortcuts is not None
        return len(listener._server._shortcuts.connections)

    async def rpc(self, verb: str, body: Any, token: str = ADMIN) -> tuple[int, Any]:
        """Status and decoded JSON of a client call."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with self.http.post(f"{self.url}/rpc/{verb}", json=body, headers=headers) as response:
            return response.status, await response.json()

    async def file(
        self, method: str, path: str, token: str = ADMIN, **headers: str
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body of `/v1/files/<path>`; `path` is sent as it is."""
        wanted = {name.replace("_", "-"): value for name, value in headers.items()}
        if token:
            wanted["Authorization"] = f"Bearer {token}"
        url = URL(f"{self.url}/v1/files/{path}", encoded=True)
        async with self.http.request(method, url, headers=wanted, allow_redirects=False) as response:
            return response.status, response.headers, await response.read()

    async def token(self, name: str, role: str, namespace: str = "", prefix: str = "", life_s: int = 0) -> str:
        """A new token, known to the coordinator."""
        body = {"name": name, "role": role, "namespace": namespace, "prefix": prefix, "life_s": life_s}
        status, reply = await self.rpc("token_create", body)
        assert status == 200, reply
        token: str = reply["token"]

        async def known() -> bool:
            return (await self.rpc("namespaces", {}, token))[0] != 401

        if life_s == 0:
            await eventually(known, "the token is known")
        return token


@asynccontextmanager
async def running_coordinator(endpoint: str, **settings: Any) -> AsyncIterator[Running]:
    """A coordinator on an emptied catalog, ready to serve; stopped in order at the end."""
    etcd = await Etcd.connect(EtcdSettings((endpoint,)))
    await etcd.txn([], [delete(keys.ROOT, b"/cp0")])
    await etcd.close()
    stop = asyncio.Event()
    config = config_of(endpoint, settings)
    chain = await asyncio.to_thread(load_chain, config.tls)
    coordinator = Coordinator(config, Secrets(b"m" * 32, ADMIN, JOIN), chain)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=chain.client if chain is not None else True)
    ) as http:
        task = asyncio.create_task(coordinator.run(stop))
        try:

            async def ready() -> bool:
                if task.done():
                    await task
                if coordinator._listener is None:
                    return False
                async with http.get(f"{coordinator.url}/readyz") as response:
                    return response.status == 200

            await eventually(ready, "the coordinator is ready")
            yield Running(coordinator, http)
        finally:
            stop.set()
            await task


def config_of(endpoint: str, settings: Mapping[str, Any]) -> Config:
    """The settings of a coordinator of a test, on a free port; its secrets are the test's own."""
    raw = {
        "name": "c1",
        "etcd": {"endpoints": [endpoint]},
        "listen_port": 0,
        "master_secret_file": "-",
        "admin_token_file": "-",
        "join_token_file": "-",
        "shutdown_s": 2.0,
    }
    return parse({**raw, **settings}, {})


class PlayedNode:
    """A node with one volume and one open extent, whose bytes are a dictionary."""

    def __init__(self, coordinator: Running, name: str) -> None:
        self._coordinator = coordinator
        self.name = name
        self.payloads: dict[tuple[int, int], bytes] = {}
        self.reads = 0
        self.fail_reads = False
        self.deleted: list[tuple[str, str]] = []  #: (path, write id) of DELETEs that came
        self.header = ""
        self.url = ""
        self.id = self.epoch = self.volume = 0
        self.revision = 0
        self._runner: web.ServerRunner | None = None
        self._clock = VersionClock()
        self._group = -1
        self.length = internal.EXTENT_HEADER_BYTES
        self.reply: internal.OpenExtentReply

    @classmethod
    async def join(cls, coordinator: Running, name: str, pool: str = "primary") -> PlayedNode:
        """Join, register, mount, open an extent of the default class, and be known as a place to write."""
        node = cls(coordinator, name)
        await node._listen()
        joined = await node.call("join", internal.JoinRequest(name, os.urandom(16)), internal.JoinReply, f"Join {JOIN}")
        node.id = joined.node_id
        node.header = f"Node {node.id}:{joined.credential.hex()}"
        register = internal.RegisterRequest(node.id, os.urandom(16), node.url, "z", name, "test")
        registered = await node.call("register", register, internal.RegisterReply)
        node.epoch = registered.epoch
        mount = internal.MountRequest(
            node.id, node.epoch, f"{name}-a", os.urandom(16), pool, "primary", 1, os.urandom(16)
        )
        node.volume = (await node.call("mount", mount, internal.MountReply)).volume
        await node.beat()
        return node

    async def open(self, class_id: int = 1) -> None:
        """A new extent."""
        request = internal.OpenExtentRequest(self.id, self.epoch, self.volume, class_id)
        self.reply = await self.call("open", request, internal.OpenExtentReply)
        self.revision, self.length, self._group = self.reply.revision, internal.EXTENT_HEADER_BYTES, -1

    async def beat(self) -> internal.HeartbeatReply:
        """One heartbeat, after which the volume can be written to."""
        report = internal.VolumeReport(self.volume, 1 << 40, 1 << 41, 0, 0, 0, False, 0, 0, 0)
        request = internal.HeartbeatRequest(self.id, self.epoch, True, [report])
        reply: internal.HeartbeatReply | None = None

        async def mounted() -> bool:
            nonlocal reply
            reply = await self.call("heartbeat", request, internal.HeartbeatReply)
            return any(directive.volume == self.volume for directive in reply.volumes)

        await eventually(mounted, "the mount is known")
        assert reply is not None
        return reply

    def entry(self, namespace: int, path: str, payload: bytes, **changes: Any) -> internal.CommitEntry:
        """A record appended at the end of the extent."""
        now_ms = self._coordinator.coordinator._catalog.now_ms()  # type: ignore[union-attr]
        offset = self.length + HEADER_BYTES
        self.length = offset + stored_bytes(len(payload))
        segment = SegmentRef(self.reply.extent, offset, len(payload))
        self.payloads[segment.extent, segment.offset] = payload
        fields: dict[str, Any] = {
            "kind": "file",
            "namespace": namespace,
            "path": path,
            "version": self._clock.mint(now_ms),
            "size": len(payload),
            "digest": digest_of(payload),
            "write_id": os.urandom(8),
            "first_sent_ms": now_ms,
            "segment": segment,
            "header_bytes": HEADER_BYTES,
            "if_absent": False,
            "capability": 0,
        }
        return internal.CommitEntry(**(fields | changes))

    async def commit(
        self, entries: list[internal.CommitEntry], capabilities: list[str], *, old_length: int
    ) -> internal.CommitReply:
        """Make a group of entries visible."""
        self._group += 1
        request = internal.CommitRequest(
            node_id=self.id,
            epoch=self.epoch,
            extent=self.reply.extent,
            revision=self.revision,
            group=self._group,
            old_length=old_length,
            new_length=self.length,
            noted=[],
            entries=entries,
            capabilities=capabilities,
        )
        reply = await self.call("commit", request, internal.CommitReply)
        self.revision = reply.revision
        return reply

    async def put(self, namespace: int, path: str, payload: bytes, capability: str) -> internal.EntryResult:
        """One file in a group of its own."""
        old_length = self.length
        entry = self.entry(namespace, path, payload)
        return (await self.commit([entry], [capability], old_length=old_length)).results[0]

    async def call(self, verb: str, request: msgspec.Struct, reply: type[T], header: str = "") -> T:
        """`POST /n/<verb>`; raises the coordinator's error."""
        headers = {"Authorization": header or self.header, "Content-Type": MSGPACK, "Accept": MSGPACK}
        async with self._coordinator.http.post(
            f"{self._coordinator.url}/n/{verb}", data=msgspec.msgpack.encode(request), headers=headers
        ) as response:
            content = await response.read()
            if response.status >= 400:
                raise from_response(response.status, content, response.content_type)
            return msgspec.msgpack.decode(content, type=reply)

    async def close(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _listen(self) -> None:
        self._runner = web.ServerRunner(web.Server(self._serve))
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/i/read-many":
            self.reads += 1
            if self.fail_reads:
                return web.Response(status=503)
            asked = msgspec.msgpack.decode(await request.read(), type=internal.ReadManyRequest)
            items = [
                internal.ReadManyItem("", payload)
                if (payload := self.payloads.get((item.extent, item.offset))) is not None
                else internal.ReadManyItem("not_found", b"")
                for item in asked.items
            ]
            return web.Response(body=msgspec.msgpack.encode(internal.ReadManyReply(items)))
        if request.method == "DELETE":
            self.deleted.append((request.path, request.headers["Copypool-Write-Id"]))
            return web.Response(status=503, text="not now")
        return web.Response(text="alive")
