"""Real processes export their spans to a collector, here a small one on loopback that speaks OTLP over HTTP."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from copypool import Client
from copypool.telemetry import tracing
from kit.cluster import QUICK, RealCluster, real_cluster, until


class Collector:
    """Takes spans in, by the process that sent them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: list[tuple[str, Span]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector.take(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Nothing of it is of use in a test."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest()
        request.ParseFromString(body)
        with self._lock:
            for of_process in request.resource_spans:
                names = {each.key: each.value.string_value for each in of_process.resource.attributes}
                for scope in of_process.scope_spans:
                    self._spans += [(names["service.instance.id"], span) for span in scope.spans]

    def of(self, trace_id: str) -> list[tuple[str, Span]]:
        with self._lock:
            return [(name, span) for name, span in self._spans if span.trace_id.hex() == trace_id]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture(scope="module")
def shared_cluster(collector: Collector) -> Iterator[RealCluster]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        environment.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        with real_cluster(tuning=msgspec.structs.replace(QUICK, trace_export="otlp")) as cluster:
            yield cluster


async def test_a_recorded_write_is_one_tree_of_spans_from_the_caller_to_the_copy(
    cluster: RealCluster, client: Client, collector: Collector
) -> None:
    trace_id, span_id = os.urandom(16).hex(), os.urandom(8).hex()
    with tracing.continuing(f"00-{trace_id}-{span_id}-01"):
        await client.put("default", "recorded", b"some bytes")
    await client.wait_copied(60.0)

    async def names() -> set[str]:
        return {span.name for _, span in collector.of(trace_id)}

    async def complete() -> bool:
        return {"PUT files", "/rpc/lease", "/n/commit", "copy"} <= await names()

    await until(complete, "the spans of client's call, commit and copy have arrived", within_s=60)
    found = collector.of(trace_id)
    by_id = {span.span_id: (name, span) for name, span in found}
    ((writer, put),) = [(name, span) for name, span in found if span.name == "PUT files"]
    commits = [span for _, span in found if span.name == "/n/commit"]
    copies = [(name, span) for name, span in found if span.name == "copy"]
    assert writer.startswith("node")
    # The caller's own spans stay with the caller: what the cluster did hangs under them.
    assert put.parent_span_id not in by_id
    assert put.span_id in {span.parent_span_id for span in commits}
    assert all(name != writer for name, _ in copies)
    assert all(span.parent_span_id == put.span_id for _, span in copies)


async def test_what_nobody_records_is_mostly_not_sent(
    cluster: RealCluster, client: Client, collector: Collector
) -> None:
    chosen = "0" * 24 + "f" * 8  # far below the share that is recorded in any case
    others = ["f" * 31 + digit for digit in "0123456789abcdef"]
    for trace_id in (*others, chosen):
        with tracing.continuing(f"00-{trace_id}-{os.urandom(8).hex()}-00"):
            await client.put("default", trace_id, b"some bytes")

    async def arrived() -> bool:
        return bool(collector.of(chosen))

    await until(arrived, "the trace that every process chooses has arrived", within_s=60)
    assert [trace_id for trace_id in others if collector.of(trace_id)] == []
