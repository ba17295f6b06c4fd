"""Roles and scopes over real processes: a token does what it was made for, and nothing beside it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from operator import methodcaller

import aiohttp
import pytest

from copypool import Client
from copypool.protocol import routes
from copypool.protocol.errors import CopypoolError, Forbidden, NotFound, Unauthorized
from kit.cluster import RealCluster, until
from kit.workload import NAMESPACE

Call = Callable[[Client], Awaitable[object]]


@pytest.fixture
async def team_files(client: Client) -> None:
    for path in ("team/a/own", "team/ab/other", "elsewhere"):
        await client.put(NAMESPACE, path, path.encode())


async def refused(cluster: RealCluster, token: str, call: Call, error: type[CopypoolError]) -> None:
    async with cluster.client(token) as limited:
        with pytest.raises(error):
            await call(limited)


async def test_a_reader_reads_and_does_nothing_else(cluster: RealCluster, client: Client, team_files: None) -> None:
    token = (await client.token_create("reads", "reader")).token
    async with cluster.client(token) as reader:
        assert await reader.get(NAMESPACE, "elsewhere") == b"elsewhere"
    await refused(cluster, token, lambda reader: reader.put(NAMESPACE, "new", b"x"), Forbidden)
    await refused(cluster, token, lambda reader: reader.delete(NAMESPACE, "elsewhere"), Forbidden)
    await refused(cluster, token, lambda reader: reader.namespace_create("mine"), Forbidden)
    with pytest.raises(NotFound):
        await client.stat(NAMESPACE, "new")


async def test_a_writer_is_no_administrator(cluster: RealCluster, client: Client) -> None:
    token = (await client.token_create("writes", "writer")).token
    async with cluster.client(token) as writer:
        await writer.put(NAMESPACE, "written", b"by a writer")
    await refused(cluster, token, lambda writer: writer.namespace_create("mine"), Forbidden)
    await refused(cluster, token, lambda writer: writer.token_create("more", "admin"), Forbidden)


async def test_a_prefix_ends_at_a_path_boundary(cluster: RealCluster, client: Client, team_files: None) -> None:
    token = (await client.token_create("team-a", "writer", namespace=NAMESPACE, prefix="team/a")).token
    async with cluster.client(token) as scoped:
        assert await scoped.get(NAMESPACE, "team/a/own") == b"team/a/own"
        await scoped.put(NAMESPACE, "team/a/new", b"x")
        assert [entry.path async for entry in scoped.list(NAMESPACE, "team/a")] == ["team/a/new", "team/a/own"]
        assert [entry.path async for entry in scoped.list(NAMESPACE, "")] == ["team/a/new", "team/a/own"]
    for path in ("team/ab/other", "elsewhere"):
        await refused(cluster, token, methodcaller("get", NAMESPACE, path), NotFound)
        await refused(cluster, token, methodcaller("stat", NAMESPACE, path), NotFound)
        await refused(cluster, token, methodcaller("put", NAMESPACE, path, b"mine now"), NotFound)
        await refused(cluster, token, methodcaller("delete", NAMESPACE, path), NotFound)
        assert await client.get(NAMESPACE, path) == path.encode()


async def test_a_token_of_one_namespace_does_not_see_another(cluster: RealCluster, client: Client) -> None:
    await client.namespace_create("other")
    await client.put("other", "secret", b"of others")
    token = (await client.token_create("default-only", "writer", namespace=NAMESPACE)).token
    await refused(cluster, token, lambda scoped: scoped.get("other", "secret"), NotFound)
    await refused(cluster, token, lambda scoped: scoped.put("other", "secret", b"x"), NotFound)
    assert await client.get("other", "secret") == b"of others"


async def test_unknown_expired_and_revoked_tokens_are_refused(cluster: RealCluster, client: Client) -> None:
    async def get(limited: Client) -> object:
        return await limited.get(NAMESPACE, "elsewhere")

    await refused(cluster, "cpt_" + "0" * 48, get, Unauthorized)

    async def unauthorized(token: str) -> bool:
        async with cluster.client(token) as limited:
            try:
                await limited.status()
            except Unauthorized:
                return True
        return False

    expiring = (await client.token_create("short", "reader", life_s=1)).token
    await until(lambda: unauthorized(expiring), "the token expires", within_s=60)
    revoked = (await client.token_create("revoked", "reader")).token
    assert not await unauthorized(revoked)
    await client.token_revoke("revoked")
    await until(lambda: unauthorized(revoked), "every coordinator knows that the token was revoked", within_s=60)


@pytest.mark.parametrize(
    ("kind", "method", "path"),
    [
        ("coordinator", "GET", f"/v1/files/{NAMESPACE}/elsewhere"),
        ("coordinator", "PUT", f"/v1/files/{NAMESPACE}/elsewhere"),
        ("coordinator", "POST", "/rpc/lookup"),
        ("coordinator", "POST", "/rpc/status"),
        ("coordinator", "POST", "/rpc/token_create"),
        ("coordinator", "POST", "/n/join"),
        ("coordinator", "POST", "/n/commit"),
        ("node", "PUT", "/v1/files/1/elsewhere"),
        ("node", "POST", "/v1/batch/1"),
        ("node", "GET", "/v1/segments/1/4096/10?v=1"),
        ("node", "GET", "/i/raw/1?from=0&to=4096"),
        ("node", "POST", "/i/drop"),
        ("node", "POST", "/i/read-many"),
    ],
)
async def test_nobody_gets_anything_without_credentials(
    cluster: RealCluster, client: Client, kind: str, method: str, path: str
) -> None:
    process = cluster.plan.process(f"{kind}1")
    async with (
        aiohttp.ClientSession() as session,
        session.request(
            method, process.url + path, data=b"", headers={routes.WRITE_ID: "0" * 16}, allow_redirects=False
        ) as response,
    ):
        assert response.status in (401, 403)
        assert (await response.json())["code"] in ("unauthorized", "forbidden")
