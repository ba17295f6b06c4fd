"""TLS on the links themselves: real listeners, real connections, real etcd; renewal under load."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path

import aiohttp
import msgspec
import pytest

from copypool.cancellation import TaskGroup
from copypool.protocol import internal
from copypool.protocol.routes import MSGPACK
from copypool.serving import connections
from copypool.serving.encryption import TlsSection
from copypool.tls import Chain, TlsError, TlsFiles
from copypool.transport import LinkFailed, Transport
from copypool_coordinator.etcd import Changed, Etcd, EtcdSettings, Listed, put
from kit.catalog_world import shared_etcd
from kit.certificates import Authority, Certificate, replace
from kit.coordinator_process import JOIN, running_coordinator
from kit.etcd_process import EtcdCluster
from kit.eventually import eventually
from kit.fake_coordinator import running
from kit.node_process import running_node

RELOAD_S = 0.02
WORKERS = 4


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def stranger(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "stranger")


def section(certificate: Certificate, *, require: bool = True) -> TlsSection:
    return TlsSection(**certificate.section, require_client_cert=require, reload_s=RELOAD_S)  # type: ignore[arg-type]


@asynccontextmanager
async def transport(files: TlsFiles) -> AsyncGenerator[Transport, None]:
    async with Transport(tls=await asyncio.to_thread(Chain, files)) as found:
        yield found


async def status_of(url: str, chain: Chain, method: str = "GET", **headers: str) -> int:
    """The answer to one request over a connection of its own."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=chain.client, force_close=True)) as http,
        http.request(method, url, headers=headers) as response,
    ):
        await response.read()
        return response.status


async def serial_of(url: str, chain: Chain) -> object:
    """Number of the certificate that is shown to a new connection."""
    host, _, port = url.removeprefix("https://").rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=chain.client)
    try:
        return writer.get_extra_info("peercert")["serialNumber"]
    finally:
        writer.close()


async def renewed_under_load(
    renew: Callable[[], object], serial: Callable[[], Awaitable[object]], ask: Callable[[], Awaitable[object]]
) -> None:
    """Renew three times amid requests over new connections; each is seen, and no request fails."""
    seen = {await serial()}
    asked = 0
    over = False

    async def load() -> None:
        nonlocal asked
        while not over:
            await ask()
            asked += 1

    async with TaskGroup() as group:
        for _ in range(WORKERS):
            group.create_task(load())
        for _ in range(3):
            await asyncio.to_thread(renew)

            async def shown() -> bool:
                return await serial() not in seen

            await eventually(shown, "the renewed certificate is shown")
            seen.add(await serial())
            at = asked
            await eventually(lambda at=at: asked > at + 2 * WORKERS, "requests go on")  # type: ignore[misc]
        over = True
    assert len(seen) == 4


# -- the node's listener ---------------------------------------------------------------------------------------
async def test_a_client_refuses_a_node_that_is_not_what_it_says(
    tmp_path: Path, authority: Authority, stranger: Authority
) -> None:
    ours = TlsFiles(str(authority.certificate))
    wrong_name = authority.issue("wrong-name", hosts=["elsewhere.example"])
    expired = authority.issue("expired", ends_in=timedelta(hours=-1))
    for certificate, says in (
        (stranger.issue("n1"), "local issuer|self.signed"),
        (wrong_name, "mismatch"),
        (expired, "expired"),
    ):
        async with (
            running() as fake,
            running_node(tmp_path / certificate.certificate.stem, fake, tls=section(certificate)) as node,
            transport(ours) as link,
        ):
            with pytest.raises(LinkFailed, match=f"TLS to .*({says})") as refused:
                await link.send("GET", f"{node.url}/livez", headers={}, answer_s=30.0)
            assert not refused.value.sent


async def test_only_servers_with_a_certificate_reach_a_nodes_internal_routes(
    tmp_path: Path, authority: Authority, stranger: Authority
) -> None:
    nobody = await asyncio.to_thread(Chain, TlsFiles(str(authority.certificate)))
    server = await asyncio.to_thread(Chain, authority.issue("c1").files)
    other = stranger.issue("x")
    outsider = await asyncio.to_thread(
        Chain, TlsFiles(str(authority.certificate), str(other.certificate), str(other.key))
    )
    async with running() as fake, running_node(tmp_path, fake, tls=section(authority.issue("n1"))) as node:
        for method, path in (("POST", "/i/read-many"), ("GET", "/i/raw/1?from=0&to=1"), ("POST", "/i/append/1")):
            assert await status_of(node.url + path, nobody, method) == 403, path
            assert await status_of(node.url + path, server, method) in (400, 401, 403), path
        wrong = "Command " + "00" * 32
        assert await status_of(f"{node.url}/i/read-many", server, "POST", Authorization=wrong) == 401
        key = fake.command_key(node.node.session.node_id)
        assert await status_of(f"{node.url}/i/read-many", nobody, "POST", Authorization=key) == 403
        assert await status_of(f"{node.url}/livez", nobody) == 200
        with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
            await status_of(f"{node.url}/livez", outsider)


async def test_a_node_shows_a_renewed_certificate_and_fails_no_request_over_it(
    tmp_path: Path, authority: Authority
) -> None:
    certificate = authority.issue("n1")
    client = await asyncio.to_thread(Chain, TlsFiles(str(authority.certificate)))
    async with running() as fake, running_node(tmp_path, fake, tls=section(certificate)) as node:

        async def ask() -> None:
            assert await status_of(f"{node.url}/livez", client) == 200

        await renewed_under_load(
            lambda: replace(certificate, authority.pair("n1")),
            lambda: serial_of(node.url, client),
            ask,
        )


async def test_who_never_shakes_hands_does_not_keep_a_place(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HANDSHAKE_S", 0.5)
    client = await asyncio.to_thread(Chain, TlsFiles(str(authority.certificate)))
    certificate = authority.issue("n1")
    async with running() as fake, running_node(tmp_path, fake, tls=section(certificate)) as node:
        reader, writer = await asyncio.open_connection("127.0.0.1", node.server.port)
        try:
            async with asyncio.timeout(60):
                assert await reader.read() == b"", "closed, without a word"
        finally:
            writer.close()

        async def served() -> bool:
            """Unless this machine takes longer to shake hands than is allowed here."""
            with suppress(aiohttp.ClientError):
                return await status_of(f"{node.url}/livez", client) == 200
            return False

        await eventually(served, "who shakes hands is served")


# -- the coordinator's listener --------------------------------------------------------------------------------
async def test_only_nodes_with_a_certificate_reach_a_coordinators_node_routes(authority: Authority) -> None:
    certificate = authority.issue("c1")
    nobody = await asyncio.to_thread(Chain, TlsFiles(str(authority.certificate)))
    body = msgspec.msgpack.encode(internal.JoinRequest("n1", b"n" * 16))
    headers = {"Authorization": f"Join {JOIN}", "Content-Type": MSGPACK, "Accept": MSGPACK}
    with shared_etcd() as endpoint:
        async with running_coordinator(
            endpoint, tls={**certificate.section, "require_client_cert": True, "reload_s": RELOAD_S}
        ) as coordinator:
            async with coordinator.http.post(f"{coordinator.url}/n/join", data=body, headers=headers) as response:
                assert response.status == 200
            connector = aiohttp.TCPConnector(ssl=nobody.client)
            async with aiohttp.ClientSession(connector=connector) as http:
                async with http.post(f"{coordinator.url}/n/join", data=body, headers=headers) as response:
                    assert response.status == 403
                    assert b"no certificate" in await response.read()
                async with http.post(f"{coordinator.url}/rpc/namespaces", json={}) as response:
                    assert response.status == 401, "clients need a token and no certificate"

            async def ask() -> None:
                assert await status_of(f"{coordinator.url}/readyz", nobody) == 200

            await renewed_under_load(
                lambda: replace(certificate, authority.pair("c1")),
                lambda: serial_of(coordinator.url, nobody),
                ask,
            )


# -- etcd ------------------------------------------------------------------------------------------------------
async def test_etcd_channels_take_renewed_files_and_lose_no_call_and_no_event(
    tmp_path: Path, authority: Authority, stranger: Authority
) -> None:
    """The client's certificate moves to another authority, which is all that etcd trusts after its restart."""
    server = authority.issue("server")
    client = authority.issue("client")
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(authority.certificate.read_bytes() + stranger.certificate.read_bytes())
    async with EtcdCluster(server_tls=(trusted, server.certificate, server.key), client_certificates=True) as cluster:
        settings = EtcdSettings(cluster.endpoints, tls=client.files, reload_s=RELOAD_S)
        etcd = await Etcd.connect(settings)
        seen: list[int] = []
        written = 0

        async def watch() -> None:
            async for event in etcd.mirror([(b"k", b"l")]):
                assert isinstance(event, Changed) or (isinstance(event, Listed) and event.reason == "start")
                if isinstance(event, Changed):
                    seen.extend(int(row.value) for row in event.puts)

        async def write(times: int) -> None:
            nonlocal written
            for _ in range(times):
                written += 1
                assert (await etcd.txn([], [put(b"k", str(written).encode())])).succeeded

        watching = asyncio.create_task(watch())
        try:
            await write(20)
            assert etcd.tls is not None
            for load, pair in enumerate((authority.pair("client"), stranger.pair("client")), 2):
                await asyncio.to_thread(replace, client, pair)
                while etcd.tls.loads < load:
                    await write(1)
                await write(20)
            await eventually(lambda: bool(seen) and seen[-1] == written, "every event came")
            assert seen == sorted(set(seen))
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

        await asyncio.to_thread(trusted.write_bytes, stranger.certificate.read_bytes())
        await cluster.members[0].restart()
        await write(1)
        await etcd.close()
        with pytest.raises(TlsError, match="gone"):
            await Etcd.connect(EtcdSettings(cluster.endpoints, tls=TlsFiles(str(tmp_path / "gone"))))


async def test_etcd_channels_keep_the_files_that_etcd_takes(
    tmp_path: Path, authority: Authority, stranger: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    server = authority.issue("server")
    client = authority.issue("client")
    async with EtcdCluster(
        server_tls=(authority.certificate, server.certificate, server.key), client_certificates=True
    ) as cluster:
        etcd = await Etcd.connect(EtcdSettings(cluster.endpoints, tls=client.files, reload_s=RELOAD_S))
        try:
            await asyncio.to_thread(replace, client, stranger.pair("client"))
            refused = time.monotonic()
            while "takes only the TLS files of before" not in caplog.text:
                assert (await etcd.txn([], [put(b"k", b"v")])).succeeded
                assert time.monotonic() - refused < 60
            await asyncio.to_thread(replace, client, authority.pair("client"))
            assert etcd.tls is not None
            await eventually(lambda: etcd.tls is not None and etcd.tls.loads == 3, "the good files are taken over")
            assert (await etcd.txn([], [put(b"k", b"v")])).succeeded
        finally:
            await etcd.close()
