"""The cluster of a drill as its stories see it: the containers, awaitable, and clients of them."""

from __future__ import annotations

import asyncio
import http.client
import json
import ssl
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from copypool import Client
from copypool.protocol.api import AckRule, OnCopyFailure, StatusReply
from copypool.writing import WRITE_DEADLINE_S
from drills.containers import Containers
from drills.layout import NAMESPACE, Layout, Member
from kit.cluster import until

P = ParamSpec("P")
T = TypeVar("T")

GREEN_TIMEOUT_S = 120.0
_ETCD_TIMEOUT_S = 5.0


class DrillCluster:
    """One cluster. Nothing here blocks the event loop."""

    def __init__(self, containers: Containers) -> None:
        self.containers = containers

    @property
    def layout(self) -> Layout:
        """Who is there."""
        return self.containers.layout

    async def do(self, call: Callable[P, T], /, *arguments: P.args, **named: P.kwargs) -> T:
        """Run something that blocks, in a thread."""
        return await asyncio.to_thread(call, *arguments, **named)

    @asynccontextmanager
    async def client(
        self, coordinators: Sequence[str] = (), write_deadline_s: float = WRITE_DEADLINE_S
    ) -> AsyncIterator[Client]:
        """The administrator's client, of all coordinators unless it is told of which."""
        coordinators = coordinators or [member.url for member in self.layout.of("coordinator")]
        files = self.containers.files
        async with await Client.connect(
            coordinators=list(coordinators),
            write_deadline_s=write_deadline_s,
            token=self.containers.admin_token,
            ca_file=files.authority if files is not None else None,
        ) as client:
            yield client

    async def acknowledge(self, client: Client, ack: AckRule, on_copy_failure: OnCopyFailure) -> None:
        """Set when writes to the namespace are acknowledged; extents of another rule are not written on."""
        await client.policies.namespace_update(NAMESPACE, ack=ack, on_copy_failure=on_copy_failure)

    # -- looking at it ------------------------------------------------------------------------
    async def leader(self) -> str:
        """The name of the leading coordinator, asked of one that answers."""

        async def asked() -> str:
            async with self.client() as client:
                return (await client.status()).leader

        return await until(asked, "there is a leader", within_s=30)

    async def etcd_leader(self) -> Member:
        """The member that leads etcd."""

        async def asked() -> Member | None:
            for member in self.layout.of("etcd"):
                status = await self.ask_etcd(member, "maintenance/status")
                if status.get("leader") and status["leader"] == status["header"]["member_id"]:
                    return member
            return None

        return await until(asked, "etcd has a leader", within_s=30)

    async def ask_etcd(self, member: Member, call: str, **fields: object) -> dict[str, Any]:
        """A call of etcd's JSON gateway; its answer, empty when there is none."""
        return await self.do(_ask_etcd, f"{member.url}/v3/{call}", fields, self.containers.trust)

    async def green(self, client: Client, what: str, within_s: float = GREEN_TIMEOUT_S) -> StatusReply:
        """Wait until every live byte is at policy; fails with the reasons that are left."""
        last: list[str] = []

        async def healthy() -> StatusReply | None:
            status = await client.status()
            last[:] = status.reasons
            return status if status.healthy else None

        try:
            return await until(healthy, what, within_s=within_s)
        except AssertionError as error:
            raise AssertionError(f"{what}: not within {within_s} s: {last}") from error

    # -- processes ----------------------------------------------------------------------------
    async def kill(self, name: str) -> None:
        """kill -9."""
        await self.do(self.containers.kill, name)

    async def terminate(self, name: str) -> None:
        """SIGTERM."""
        await self.do(self.containers.terminate, name)

    async def start(self, *names: str) -> None:
        """Start these, all at once, and wait until they serve."""
        for name in names:
            await self.do(self.containers.start, name)
        await self.ready(*names)

    async def ready(self, *names: str) -> None:
        """Wait until these serve."""
        await self.do(self.containers.await_ready, names)

    async def in_network_of(self, name: str, commands: Iterable[str]) -> None:
        """Run programs of this machine, one after the other, in the network of a container."""
        for command in commands:
            await self.do(self.containers.in_network_of, name, *command.split())

    def etcd_data(self, name: str) -> Path:
        """Where a member of etcd keeps its data."""
        return self.containers.state(name) / "etcd"


def _ask_etcd(url: str, fields: dict[str, object], trust: ssl.SSLContext | None) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(fields).encode(), method="POST")
    try:
        with urllib.request.urlopen(request, timeout=_ETCD_TIMEOUT_S, context=trust) as reply:
            answer: dict[str, Any] = json.load(reply)
            return answer
    except (OSError, http.client.HTTPException, json.JSONDecodeError):
        return {}
