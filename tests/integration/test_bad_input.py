"""Bad input over real processes: a 4xx with a code and a sentence, and nothing stored."""

from __future__ import annotations

import asyncio

import aiohttp
import msgspec
import pytest
from yarl import URL

from copypool import Client
from copypool.dev.layout import HOST
from copypool.protocol import routes
from copypool.protocol.api import LeaseReply, LeaseRequest, WriteLease
from copypool.protocol.digests import digest_of, format_digest
from copypool.protocol.errors import DigestRefused, Invalid, NotFound, RangeNotSatisfiable, TooLarge
from kit.cluster import RealCluster
from kit.workload import NAMESPACE

WRITE_ID = "00112233445566ff"


async def write_lease(cluster: RealCluster, session: aiohttp.ClientSession) -> WriteLease:
    """A place to write, as the SDK asks for it."""
    async with session.post(
        cluster.plan.process("coordinator1").url + "/rpc/lease",
        data=msgspec.msgpack.encode(LeaseRequest(NAMESPACE)),
        headers={
            "Authorization": f"Bearer {cluster.layout.admin_token.read_text().strip()}",
            "Content-Type": routes.MSGPACK,
            "Accept": routes.MSGPACK,
        },
    ) as response:
        assert response.status == 200, await response.read()
        return msgspec.msgpack.decode(await response.read(), type=LeaseReply).leases[0]


def put_headers(lease: WriteLease, **more: str) -> dict[str, str]:
    return {routes.CAPABILITY: lease.capability, routes.WRITE_ID: WRITE_ID, **more}


async def test_a_wrong_digest_stores_nothing(client: Client) -> None:
    with pytest.raises(DigestRefused):
        await client.put(NAMESPACE, "bad/digest", b"these bytes", digest=format_digest(digest_of(b"other bytes")))
    with pytest.raises(NotFound):
        await client.get(NAMESPACE, "bad/digest")


async def test_a_short_body_stores_nothing(cluster: RealCluster, client: Client) -> None:
    async with aiohttp.ClientSession() as session:
        lease = await write_lease(cluster, session)
    port = int(lease.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection(HOST, port)
    head = [f"PUT /v1/files/{lease.namespace_id}/bad/short HTTP/1.1", f"Host: {HOST}", "Content-Length: 1000"]
    head += [f"{name}: {value}" for name, value in put_headers(lease).items()]
    writer.write("\r\n".join([*head, "", ""]).encode() + b"only these")
    await writer.drain()
    writer.write_eof()
    await asyncio.wait_for(reader.read(), 40)
    writer.close()
    await writer.wait_closed()
    with pytest.raises(NotFound):
        await client.get(NAMESPACE, "bad/short")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("a//b", 400),
        ("a/%2e%2e/b", 400),
        ("%2Fabsolute", 400),
        ("trailing/", 400),
        ("nul%00byte", 400),
        ("not-utf8-%ff", 400),
        ("x" * 1025, 413),
    ],
)
async def test_a_bad_path_is_refused_by_node_and_coordinator(cluster: RealCluster, path: str, status: int) -> None:
    admin = {"Authorization": f"Bearer {cluster.layout.admin_token.read_text().strip()}"}
    async with aiohttp.ClientSession() as session:
        lease = await write_lease(cluster, session)
        for url, headers in (
            (f"{lease.url}/v1/files/{lease.namespace_id}/{path}", put_headers(lease)),
            (f"{cluster.plan.process('coordinator2').url}/v1/files/{NAMESPACE}/{path}", admin),
        ):
            async with session.put(
                URL(url, encoded=True), data=b"x", headers=headers, allow_redirects=False
            ) as response:
                body = await response.json()
                assert (response.status, body["retryable"]) == (status, False), (url, body)
                assert body["code"] in ("invalid", "too_large")
                assert len(body["message"]) > 10


async def test_an_oversize_header_is_refused(cluster: RealCluster) -> None:
    async with aiohttp.ClientSession() as session:
        lease = await write_lease(cluster, session)
        url = f"{lease.url}/v1/files/{lease.namespace_id}/bad/header"
        headers = put_headers(lease, **{routes.METADATA: "x" * (routes.HEADERS_MAX_BYTES + 1)})
        async with session.put(url, data=b"x", headers=headers) as response:
            assert response.status in (400, 431)


async def test_a_body_beyond_the_limit_is_refused_before_it_is_read(cluster: RealCluster) -> None:
    async with aiohttp.ClientSession() as session:
        lease = await write_lease(cluster, session)
        url = f"{lease.url}/v1/files/{lease.namespace_id}/bad/size"
        headers = put_headers(lease, **{"Content-Length": str(10 * 1024**4), "Expect": "100-continue"})
        async with session.put(url, data=b"", headers=headers) as response:
            assert (response.status, (await response.json())["code"]) == (413, "too_large")


async def test_a_range_outside_of_the_file_is_refused(cluster: RealCluster, client: Client) -> None:
    await client.put(NAMESPACE, "bad/range", b"0123456789")
    with pytest.raises(RangeNotSatisfiable):
        await client.get(NAMESPACE, "bad/range", start=11)
    admin = {"Authorization": f"Bearer {cluster.layout.admin_token.read_text().strip()}"}
    url = f"{cluster.plan.process('coordinator1').url}/v1/files/{NAMESPACE}/bad/range"
    async with aiohttp.ClientSession() as session:
        async with session.get(url, headers={**admin, "Range": "bytes=10-"}) as response:
            assert response.status == 416
        async with session.get(url, headers={**admin, "Range": "bytes=8-"}) as response:
            assert (response.status, await response.read()) == (206, b"89")


async def test_an_unknown_namespace_is_not_found(client: Client) -> None:
    with pytest.raises(NotFound):
        await client.put("nowhere", "file", b"x")
    with pytest.raises(NotFound):
        await client.get("nowhere", "file")


async def test_bad_names_and_metadata_are_refused(client: Client) -> None:
    with pytest.raises(Invalid):
        await client.put(NAMESPACE, "a/../b", b"x")
    with pytest.raises(TooLarge):
        await client.put(NAMESPACE, "bad/metadata", b"x", metadata={"key": "v" * 5000})
    with pytest.raises(NotFound):
        await client.stat(NAMESPACE, "bad/metadata")
