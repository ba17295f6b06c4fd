"""A whole cluster with TLS on every link: the main job, strangers at every door, and renewal amid reads and writes."""

from __future__ import annotations

import asyncio
import os
import random
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from copypool import Client
from copypool.dev.layout import HOST, Process
from copypool.protocol.errors import Forbidden, Invalid, Unavailable
from copypool.tls import Chain, TlsFiles
from copypool.transport import LinkFailed, Transport
from kit.certificates import Authority
from kit.cluster import RealCluster, real_cluster, until
from kit.workload import NAMESPACE, Readers, all_read_back, some_files, working


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[RealCluster]:
    with real_cluster(tls=True) as cluster:
        yield cluster


async def shown_by(process: Process, chain: Chain) -> object:
    """Number of the certificate that a process shows to a new connection."""
    _, writer = await asyncio.open_connection(HOST, process.port, ssl=chain.client)
    try:
        return writer.get_extra_info("peercert")["serialNumber"]
    finally:
        writer.close()


async def test_store_copy_lose_a_primary_read_on_and_rebuild(cluster: RealCluster, client: Client) -> None:
    assert all(process.url.startswith("https://") for process in cluster.plan.processes)
    files = some_files("tls", 60, seed=1)
    files["tls/large"] = random.Random(2).randbytes(20 << 20)
    await client.put_many(NAMESPACE, files.items())
    await client.wait_copied(timeout_s=60)
    readers = Readers(client, files)
    async with working(readers, count=2):
        await until(lambda: readers.read_beyond(50), "readers are in the middle of it", within_s=60)
        await cluster.kill("node1")
        at_kill = readers.reads
        await until(lambda: readers.read_beyond(at_kill + 2 * len(files)), "everything was read again", within_s=60)
    assert readers.failures == []

    async def rebuilt() -> bool:
        shown = await client.stat(NAMESPACE, "tls/large")
        return all(
            any(location.node == "node2" and location.state == "good" for location in segment.locations)
            for segment in shown.segments
        )

    await until(rebuilt, "lost primaries are rebuilt on node2", within_s=60)
    await until(lambda: cluster.is_green(client), "status is green again", within_s=60)
    assert await all_read_back(client, files) == []


async def test_the_command_line_works_with_the_profile(cluster: RealCluster) -> None:
    content = os.urandom(100_000)
    assert (await cluster.cli("put", "-", "default/cli", stdin=content)).code == 0
    got = await cluster.cli("cat", "default/cli")
    assert (got.code, got.out) == (0, content)


async def test_the_shared_port_of_the_coordinators_has_tls_too(cluster: RealCluster) -> None:
    token = cluster.layout.admin_token.read_text().strip()
    async with await Client.connect(
        coordinators=[cluster.plan.shared_url], token=token, ca_file=cluster.ca_file
    ) as client:
        await client.put(NAMESPACE, "shared", b"by the shared port")
        assert await client.get(NAMESPACE, "shared") == b"by the shared port"
    assert cluster.ca_file is not None
    nobody = await asyncio.to_thread(Chain, TlsFiles(cluster.ca_file))
    async with Transport() as plain, Transport(tls=nobody) as link:
        with pytest.raises(LinkFailed):
            await plain.send("GET", f"http://{HOST}:{cluster.plan.shared_port}/livez", headers={}, answer_s=30.0)
        with pytest.raises(Invalid, match="shared by several coordinators"):
            await link.send("POST", f"{cluster.plan.shared_url}/n/heartbeat", headers={}, data=b"", answer_s=30.0)


async def test_strangers_are_refused_at_every_door(cluster: RealCluster, tmp_path: Path) -> None:
    """Another authority, no TLS at all, and no certificate where servers talk to each other."""
    stranger = await asyncio.to_thread(Authority, tmp_path)
    certificate = await asyncio.to_thread(stranger.issue, "stranger")
    assert cluster.ca_file is not None
    nobody = await asyncio.to_thread(Chain, TlsFiles(cluster.ca_file))
    impostor = await asyncio.to_thread(
        Chain, TlsFiles(cluster.ca_file, str(certificate.certificate), str(certificate.key))
    )
    distrustful = await asyncio.to_thread(Chain, certificate.files)
    for process in cluster.plan.processes:
        with pytest.raises(ssl.SSLCertVerificationError):
            await shown_by(process, distrustful)
        async with Transport() as plain, Transport(tls=nobody) as link, Transport(tls=impostor) as faked:
            path = "/health" if process.kind == "etcd" else "/livez"
            with pytest.raises(LinkFailed):
                await plain.send("GET", f"http://{HOST}:{process.port}{path}", headers={}, answer_s=30.0)
            with pytest.raises(LinkFailed):
                await faked.send("GET", process.url + path, headers={}, answer_s=30.0)
            if process.kind == "etcd":
                with pytest.raises(LinkFailed):
                    await link.send("GET", process.url + path, headers={}, answer_s=30.0)
                continue
            assert (await link.send("GET", process.url + path, headers={}, answer_s=30.0)).status == 200
            internal = "/n/heartbeat" if process.kind == "coordinator" else "/i/read-many"
            with pytest.raises(Forbidden, match="no certificate"):
                await link.send("POST", process.url + internal, headers={}, data=b"", answer_s=30.0)

    coordinators = [process.url for process in cluster.plan.of("coordinator")]
    async with await Client.connect(
        coordinators=coordinators, token="x" * 30, ca_file=str(stranger.certificate)
    ) as client:
        with pytest.raises(Unavailable, match="certificate"):
            await client.status()


async def test_certificates_are_renewed_amid_reads_and_writes_and_none_of_them_fails(
    cluster: RealCluster, client: Client
) -> None:
    files = some_files("renewed", 40, seed=3)
    await client.put_many(NAMESPACE, files.items())
    await client.wait_copied(timeout_s=60)
    assert cluster.ca_file is not None
    operator = await asyncio.to_thread(Chain, cluster.layout.certificate("operator"))
    written: dict[str, bytes] = {}
    over = False

    async def write() -> None:
        # A client of its own each time: every write shakes hands anew with a coordinator and a node.
        while not over:
            path = f"renewed/new-{len(written)}"
            content = os.urandom(3000)
            async with cluster.client() as other:
                await other.put(NAMESPACE, path, content)
            written[path] = content

    readers = Readers(client, files)
    writing = asyncio.create_task(write())
    try:
        async with working(readers, count=2):
            for _ in range(3):
                before = {process.name: await shown_by(process, operator) for process in cluster.plan.processes}
                await asyncio.to_thread(cluster.supervisor.renew_certificates)

                async def all_renewed(before: dict[str, object] = before) -> bool:
                    shown = [await shown_by(process, operator) for process in cluster.plan.processes]
                    return not set(shown) & set(before.values())

                await until(all_renewed, "every process shows its new certificate", within_s=60)
                await asyncio.to_thread(operator.look, time.time())
                count, reads = len(written), readers.reads

                async def gone_on(count: int = count, reads: int = reads) -> bool:
                    assert not writing.done(), writing.exception()
                    return len(written) > count and readers.reads > reads + 20

                await until(gone_on, "reads and writes go on", within_s=60)
    finally:
        over = True
        await writing
    assert readers.failures == []
    assert await all_read_back(client, {**files, **written}) == []
    # A restart with the renewed files, and what was stored with the former ones.
    await cluster.terminate("coordinator1")
    await cluster.start("coordinator1")
    await until(lambda: cluster.is_green(client), "status is green", within_s=60)
