"""Bad input over real processes: a 4xx with a code and a sentence, and nothing stored."""

from __future__ import annotations

import asyncio
import os

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
from kit.cluster import RealCluster, until
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
    await asyncio.wait_for(reader.read(), 60)
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
        admin = {"Authorization": f"Bearer {cluster.layout.admin_token.read_text().strip()}"}
        other = f"{cluster.plan.process('coordinator1').url}/v1/files/{NAMESPACE}/bad/header"
        for target, sent in ((url, headers), (other, {**admin, "X-Long": headers[routes.METADATA]})):
            async with session.put(target, data=b"x", headers=sent) as response:
                assert (response.status, (await response.json())["code"]) == (431, "too_large"), target


async def test_what_is_no_http_is_refused_with_a_code(cluster: RealCluster) -> None:
    for process in ("node1", "coordinator1"):
        port = int(cluster.plan.process(process).url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection(HOST, port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 60)
        writer.close()
        await writer.wait_closed()
        assert b" 400 " in answer.partition(b"\r\n")[0]
        assert b'"code":"invalid"' in answer


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


async def test_a_download_that_is_resumed_never_joins_two_versions(cluster: RealCluster, client: Client) -> None:
    """Long files come from a node by a redirect, which the client follows with the headers that it had."""
    admin = {"Authorization": f"Bearer {cluster.layout.admin_token.read_text().strip()}"}
    url = f"{cluster.plan.process('coordinator1').url}/v1/files/{NAMESPACE}/bad/resumed"
    one, two = os.urandom(3_000_000), os.urandom(3_000_000)
    await client.put(NAMESPACE, "bad/resumed", one)
    async with aiohttp.ClientSession(headers=admin) as session:

        async def redirected() -> str:
            """The file's ETag, from the node; while that is slow to answer the coordinator sends the bytes itself."""
            async with session.get(url) as response:
                assert await response.read() == one
                return response.headers["ETag"] if response.history else ""

        etag = await until(redirected, "a node is trusted to answer", within_s=60)
        resumed = {"Range": "bytes=1000000-", "If-Range": etag}
        async with session.get(url, headers=resumed) as response:
            assert (response.status, await response.read()) == (206, one[1_000_000:])
        await client.put(NAMESPACE, "bad/resumed", two)
        async with session.get(url, headers=resumed) as response:
            assert (response.status, await response.read()) == (200, two)
            newer = response.headers["ETag"]
        async with session.get(url, headers={"If-Match": etag}) as response:
            assert (response.status, (await response.json())["code"]) == (412, "precondition_failed")
        async with session.get(url, headers={"If-Match": f'"1", {newer}'}) as response:
            assert (response.status, await response.read()) == (200, two)


async def test_an_upload_that_is_resumed_does_not_replace_the_file_by_its_end(
    cluster: RealCluster, client: Client
) -> None:
    """`curl -C - -T` sends the rest of a file with a Content-Range; taken for the file, it loses the beginning."""
    admin = {"Authorization": f"Bearer {cluster.layout.admin_token.read_text().strip()}"}
    url = f"{cluster.plan.process('coordinator1').url}/v1/files/{NAMESPACE}/bad/upload"
    whole = os.urandom(10_000)
    await client.put(NAMESPACE, "bad/upload", whole)
    async with aiohttp.ClientSession() as session:
        lease = await write_lease(cluster, session)
        node = f"{lease.url}/v1/files/{lease.namespace_id}/bad/upload"
        for target, headers in ((url, admin), (node, put_headers(lease))):
            resumed = {**headers, "Content-Range": "bytes 3000-9999/10000"}
            async with session.put(target, data=whole[3000:], headers=resumed) as response:
                assert (response.status, (await response.json())["code"]) == (400, "invalid"), target
    assert await client.get(NAMESPACE, "bad/upload") == whole


async def test_a_file_is_told_of_alike_from_coordinator_and_node(cluster: RealCluster, client: Client) -> None:
    """Short files come from a coordinator, long ones by a redirect from a node, many segments through a coordinator."""
    admin = {"Authorization": f"Bearer {cluster.layout.admin_token.read_text().strip()}"}
    sizes = {"short": 1000, "long": 1_500_000, "many": 34_000_000}
    told: list[tuple[object, ...]] = []
    async with aiohttp.ClientSession(headers=admin) as session:
        for name, size in sizes.items():
            await client.put(NAMESPACE, f"bad/alike/{name}", os.urandom(size))
            url = f"{cluster.plan.process('coordinator1').url}/v1/files/{NAMESPACE}/bad/alike/{name}"
            ranged = {"Range": "bytes=1-3"}
            async with session.get(url) as whole, session.get(url, headers=ranged) as part:
                await whole.read()
                names = ("Content-Type", "X-Content-Type-Options", "Accept-Ranges")
                stored = whole.headers["Last-Modified"], whole.headers["ETag"]
                told.append((whole.status, part.status, *(whole.headers[each] for each in names)))
                assert (part.headers["Last-Modified"], part.headers["ETag"]) == stored
            async with session.head(url, headers=ranged) as head:
                assert (head.status, head.headers["Content-Length"]) == (200, str(size)), "a HEAD has no range"
                assert (head.headers["Last-Modified"], head.headers["ETag"]) == stored
            old = {"If-Unmodified-Since": "Sun, 06 Nov 1994 08:49:37 GMT"}
            async with session.get(url, headers=old) as changed:
                assert (changed.status, (await changed.json())["code"]) == (412, "precondition_failed")
    assert set(told) == {(200, 206, "application/octet-stream", "nosniff", "bytes")}


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


async def test_a_redirect_stores_one_content_at_one_path(cluster: RealCluster, client: Client) -> None:
    """The same URL again with the same bytes is a repeat; with others, as a delete, or for a path below: refused."""
    admin = {"Authorization": f"Bearer {cluster.layout.admin_token.read_text().strip()}"}
    url = f"{cluster.plan.process('coordinator1').url}/v1/files/{NAMESPACE}/bad/once"
    async with aiohttp.ClientSession() as session:
        async with session.put(url, data=b"one", headers=admin, allow_redirects=False) as response:
            target = response.headers["Location"]
        tries = (("PUT", b"one", 201), ("PUT", b"one", 200), ("PUT", b"2", 409), ("DELETE", b"", 409))
        for method, body, status in tries:
            async with session.request(method, URL(target, encoded=True), data=body) as response:
                assert response.status == status, (method, body, await response.text())
                if status in (200, 201):
                    assert (await response.json())["namespace"] == NAMESPACE
        below = URL(target.replace("/bad/once?", "/bad/once/below?"), encoded=True)
        async with session.put(below, data=b"x") as response:
            assert (response.status, (await response.json())["code"]) == (403, "forbidden")
    assert await client.get(NAMESPACE, "bad/once") == b"one"


async def test_if_match_keeps_updates_over_plain_http(cluster: RealCluster, client: Client) -> None:
    admin = {"Authorization": f"Bearer {cluster.layout.admin_token.read_text().strip()}"}
    url = f"{cluster.plan.process('coordinator1').url}/v1/files/{NAMESPACE}/bad/match"
    await client.put(NAMESPACE, "bad/match", b"one")
    async with aiohttp.ClientSession(headers=admin) as session:
        async with session.get(url) as response:
            etag = response.headers["ETag"]
        two = await client.put(NAMESPACE, "bad/match", b"two")
        for method, headers, status in (
            ("PUT", {"If-Match": etag}, 412),
            ("DELETE", {"If-Match": etag}, 412),
            ("PUT", {"If-None-Match": "*"}, 412),
            ("PUT", {"If-Match": "nonsense"}, 400),
            ("DELETE", {"If-Unmodified-Since": "Sun, 06 Nov 1994 08:49:37 GMT"}, 400),
            ("PUT", {"If-Match": f'"{two.version}"'}, 201),
        ):
            async with session.request(method, url, data=b"three", headers=headers) as response:
                assert response.status == status, (method, headers, await response.text())
    assert await client.get(NAMESPACE, "bad/match") == b"three"
