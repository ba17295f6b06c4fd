"""What a real cluster tells about itself: one trace id from the client to the copy, pages that keep to their lists."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator
from functools import partial
from typing import Any

import msgspec
import pytest

from copypool import Client
from copypool.telemetry import tracing
from kit import metrics_page, metrics_reference, promql
from kit.cluster import QUICK, RealCluster, real_cluster, until

Line = dict[str, Any]


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[RealCluster]:
    with real_cluster(tuning=msgspec.structs.replace(QUICK, log_format="json", log_level="debug")) as cluster:
        yield cluster


def lines_of(cluster: RealCluster, trace: tracing.Trace) -> dict[str, list[Line]]:
    """Log lines that belong to the trace, by process."""
    found = {}
    for kind in ("coordinator", "node"):
        for process in cluster.plan.of(kind):
            text = cluster.layout.log_file(process.name).read_text(encoding="utf-8")
            lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
            assert all(line[kind] == process.name for line in lines)
            found[process.name] = [line for line in lines if line.get("trace_id") == trace.trace_id]
    return found


def texts(found: dict[str, list[Line]], kind: str) -> list[str]:
    return [line["message"] for lines in found.values() for line in lines if kind in line]


async def test_one_trace_goes_from_the_client_through_coordinator_and_node_to_the_copy(
    cluster: RealCluster, client: Client
) -> None:
    with tracing.continuing("") as writing:
        await client.put("default", "traced", os.urandom(300_000))
    await client.wait_copied(60.0)

    async def copied() -> bool:
        found = lines_of(cluster, writing)
        pulled = [line for lines in found.values() for line in lines if "from node" in line["message"]]
        return bool(pulled) and all(isinstance(line["extent"], int) and line["volume"] for line in pulled)

    await until(copied, "the copy's node tells of the writer's trace", within_s=60)
    found = lines_of(cluster, writing)
    assert any(text.startswith("/rpc/lease: ok") for text in texts(found, "coordinator"))
    assert any(text.startswith("PUT files: ok") for text in texts(found, "node"))
    assert any(text.startswith("/n/commit: ok") for text in texts(found, "coordinator"))

    with tracing.continuing("") as getting:
        await client.get("default", "traced")
    with tracing.continuing("") as streaming:
        async with await client.open("default", "traced") as stream:
            assert len(await stream.read()) == 300_000

    async def told(reading: tracing.Trace) -> bool:
        found = lines_of(cluster, reading)
        at_node, at_coordinator = texts(found, "node"), texts(found, "coordinator")
        return any(text.startswith("GET segments: ok") for text in at_node) and any(
            text.startswith("/rpc/lookup: ok") for text in at_coordinator
        )

    for reading in (getting, streaming):
        await until(partial(told, reading), "the read is in both logs", within_s=60)


async def test_a_small_read_by_name_reaches_the_node_under_the_same_trace(cluster: RealCluster, client: Client) -> None:
    await client.put("default", "small", b"some bytes")
    coordinator = cluster.plan.of("coordinator")[0]
    with tracing.continuing("") as trace:
        request = urllib.request.Request(f"{coordinator.url}/v1/files/default/small")
        request.add_header("Authorization", f"Bearer {cluster.layout.admin_token.read_text().strip()}")
        request.add_header("traceparent", tracing.outgoing())
        with urllib.request.urlopen(request, timeout=60) as response:  # noqa: ASYNC210 - this test's only work
            assert response.read() == b"some bytes"

    async def told() -> bool:
        return any(text.startswith("i/read-many: ok") for text in texts(lines_of(cluster, trace), "node"))

    await until(told, "the node's log has the trace", within_s=60)


async def test_what_a_writer_is_copied_to_at_once_carries_its_trace(cluster: RealCluster, client: Client) -> None:
    await client.namespace_create("twins", ack="copy", on_copy_failure="fail")
    with tracing.continuing("") as trace:
        receipt = await client.put("twins", "f", b"x" * 5000)
    assert receipt.ack == "copy"

    async def told() -> bool:
        return any(text.startswith("i/append: ok") for text in texts(lines_of(cluster, trace), "node"))

    await until(told, "the twin's node has the trace in its log", within_s=60)


async def test_every_page_keeps_to_what_is_declared(cluster: RealCluster, client: Client) -> None:
    await client.put("default", "counted", b"bytes")
    for kind in ("node", "coordinator"):
        for process in cluster.plan.of(kind):
            page = metrics_page.check(page_of(process.url), metrics_reference.FAMILIES[kind])
            # Bounded cardinality: no label's values grow with what is stored or asked for.
            assert sum(len(family.samples) for family in page.values()) < 1000


#: What a cluster without TLS, whose controllers have not made anything again, has no samples of.
NOT_HERE = {"copypool_certificate_expires_time_seconds", "copypool_certificate_files_refused"}


async def test_rules_and_dashboard_name_only_what_a_real_cluster_tells(cluster: RealCluster, client: Client) -> None:
    await client.put("default", "pulled", b"bytes")
    await client.wait_copied(60.0)

    async def missing() -> set[str]:
        pages = [page_of(process.url) for kind in ("node", "coordinator") for process in cluster.plan.of(kind)]
        told = {name for page in pages for name, family in metrics_page.parse(page).items() if family.samples}
        return promql.named(promql.expressions().values()) - told - NOT_HERE

    async def complete() -> bool:
        return not await missing()

    await until(complete, "every metric has samples", within_s=60)


def page_of(url: str) -> str:
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as response:
        content: bytes = response.read()
    return content.decode()
